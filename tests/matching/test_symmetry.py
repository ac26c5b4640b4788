"""The file of an order: read back as it was written, and refused where it is none or another model's."""

import disguises
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from kinbase.checkpoint.open import read
from kinbase.errors import UsageError
from kinbase.matching.architecture import architecture, config_of
from kinbase.matching.fingerprint import fingerprint
from kinbase.matching.match import match
from kinbase.matching.relabelled import stored
from kinbase.matching.symmetry import FORMAT, load, save


@pytest.fixture
def pair(tmp_path):
    """The architectures of a model and of a disguised copy."""
    model = disguises.llama(1)
    kinds = ("units", "heads", "values", "channels", "signs", "up")
    places = (
        disguises.save(tmp_path / "a", model),
        disguises.save(tmp_path / "b", disguises.disguised(model, 2, *kinds)),
    )
    checkpoints = [read(str(place)).checkpoint for place in places]
    return [architecture(c.tensors, config_of(c), c.name) for c in checkpoints]


def test_what_is_written_is_read_back(pair, tmp_path):
    found = match(*pair).symmetry
    save(found, tmp_path / "order.safetensors", {"model": "b"})
    again = load(tmp_path / "order.safetensors", pair[1])
    assert again.told == {"model": "b", "format": FORMAT}
    for (name, units), (_, other) in zip(found.groups(), again.groups(), strict=True):
        assert (units.index == other.index).all() and (units.factor == other.factor).all(), name


def _twice(tensors):
    tensors["layers.0.units.index"][0] = tensors["layers.0.units.index"][1]


def _zero(tensors):
    tensors["layers.0.units.factor"][0] = 0


def _short(tensors):
    tensors["layers.0.units.index"] = tensors["layers.0.units.index"][:-1].copy()


def _strange(tensors):
    tensors["layers.7.units.index"] = np.arange(4)


@pytest.mark.parametrize(
    ("harm", "why"),
    [(_twice, "is damaged"), (_zero, "is damaged"), (_short, "does not fit"), (_strange, "does not fit")],
)
def test_a_harmed_file_is_refused(pair, tmp_path, harm, why):
    place = tmp_path / "order.safetensors"
    save(match(*pair).symmetry, place, {})
    tensors = load_file(place)
    harm(tensors)
    save_file(tensors, place, metadata={"format": FORMAT})
    with pytest.raises(UsageError, match=why):
        load(place, pair[1])


@pytest.mark.parametrize("content", [b"", b"{}", b"\x08" + bytes(7) + b"{}      "])
def test_another_kind_of_file_is_refused(pair, tmp_path, content):
    place = tmp_path / "order.safetensors"
    place.write_bytes(content)
    with pytest.raises(UsageError, match="is no file of permutations"):
        load(place, pair[1])


def test_a_missing_file_is_told(pair, tmp_path):
    with pytest.raises(UsageError, match=r"cannot read .*none.: no such file"):
        load(tmp_path / "none", pair[1])


def test_fingerprints_tell_models_apart(tmp_path):
    places = [disguises.save(tmp_path / str(seed), disguises.llama(seed)) for seed in (1, 1, 2)]
    prints = [fingerprint(read(str(place)).checkpoint.tensors) for place in places]
    assert prints[0] == prints[1] != prints[2]


def test_bfloat16_is_rounded_to_the_nearest_even():
    import torch

    values = np.random.default_rng(0).standard_normal(10_000) * 10.0 ** np.random.default_rng(1).integers(
        -30, 30, 10_000
    )
    values[:3] = np.inf, -np.inf, 1 + 2.0**-8  # half way between two numbers
    expected = torch.from_numpy(values).to(torch.float32).to(torch.bfloat16).view(torch.int16).numpy()
    assert (stored(values, "BF16").view(np.int16)[:, 0] == expected).all()
    nan = torch.from_numpy(stored(np.array([np.nan]), "BF16").view(np.int16)).view(torch.bfloat16)
    assert bool(nan.isnan().all())
