"""Units matched again after every disguise: exactly, with the correlation that the undisguised model has."""

import disguises
import numpy as np
import pytest
from checkpoints import data

from kinbase.checkpoint.open import read
from kinbase.errors import KinbaseError
from kinbase.matching.agreement import Agreement, View, agreements
from kinbase.matching.architecture import architecture, config_of
from kinbase.matching.match import match
from kinbase.matching.relabelled import relabelled

PERMUTED = ("units", "heads", "values", "channels", "signs")
SCALED = ("up", "keys", "gains")


def opened(folder):
    checkpoint = read(str(folder)).checkpoint
    return checkpoint, architecture(checkpoint.tensors, config_of(checkpoint), checkpoint.name)


def matched(a, b):
    """(what was found, b's tensors in a's order by name, sums over all) of two folders."""
    (one, first), (other, second) = opened(a), opened(b)
    found = match(first, second)
    tensors = relabelled({t.name: t for t in other.tensors}, second, found.symmetry)
    whole = Agreement()
    for part in agreements(View.plain(one), View(other, tensors)):
        whole.plus(part)
    return found, tensors, whole


@pytest.mark.parametrize("groups", [6, 2, 1])
@pytest.mark.parametrize("kinds", [(kind,) for kind in PERMUTED] + [PERMUTED])
def test_permuted_and_flipped_units_come_back_to_the_bit(tmp_path, groups, kinds):
    model = disguises.llama(1, groups)
    tuned = disguises.tuned(model, 2)
    a = disguises.save(tmp_path / "a", model, groups=groups)
    b = disguises.save(tmp_path / "b", disguises.disguised(tuned, 3, *kinds, groups=groups), groups=groups)
    found, tensors, whole = matched(a, b)
    assert found.test.p < 1e-100
    assert not found.symmetry.is_identity
    for name, weight in tuned.items():
        assert data(tensors[name]) == weight.tobytes(), name
    assert whole.before.pcc < 0.95 < whole.after.pcc
    assert whole.after.pcc == pytest.approx(
        disguises.pearson(model, tuned), abs=1e-9
    )  # float64 sums of 55,000 terms


@pytest.mark.parametrize("groups", [6, 2])
@pytest.mark.parametrize("kinds", [(kind,) for kind in SCALED] + [(*PERMUTED, *SCALED)])
def test_scales_are_undone_where_they_are_evident(tmp_path, groups, kinds):
    model = disguises.llama(4, groups)
    tuned = disguises.tuned(model, 5)
    a = disguises.save(tmp_path / "a", model, groups=groups)
    b = disguises.save(tmp_path / "b", disguises.disguised(tuned, 6, *kinds, groups=groups), groups=groups)
    found, tensors, whole = matched(a, b)
    assert found.symmetry.counts()["scaled"] > 20
    assert whole.after.pcc == pytest.approx(
        disguises.pearson(model, tuned), abs=1e-3
    )  # what a fine-tune is to reach
    for name, weight in tuned.items():
        values = np.frombuffer(data(tensors[name]), np.float32).reshape(weight.shape)
        # A scale comes from lengths that training changed too, by a tenth of one element in the root of their number.
        assert np.linalg.norm(values - weight) < 0.05 * np.linalg.norm(weight), name


def test_channels_that_the_embeddings_leave_in_doubt_are_matched_by_all_weights(tmp_path, monkeypatch):
    from kinbase.matching import match as matching

    swept = []
    sweep = matching._sweep
    monkeypatch.setattr(matching, "_sweep", lambda *given: swept.append(sweep(*given)) or swept[-1])
    model = disguises.llama(1)
    tuned = disguises.tuned(model, 2, size=0.02)
    rng = np.random.default_rng(5)
    for name in (
        "model.embed_tokens.weight",
        "lm_head.weight",
    ):  # trained until four times their length is new
        tuned[name] = (tuned[name] + 0.4 * rng.standard_normal(tuned[name].shape)).astype(np.float32)
    a = disguises.save(tmp_path / "a", model)
    b = disguises.save(tmp_path / "b", disguises.disguised(tuned, 3, "units", "heads", "channels", "signs"))
    found, tensors, _ = matched(a, b)
    assert swept == [True] and found.is_converged
    for name, weight in tuned.items():
        assert data(tensors[name]) == weight.tobytes(), name


def test_an_order_that_is_not_settled_on_is_told(tmp_path, monkeypatch):
    import kinbase
    from kinbase.matching import match as matching

    monkeypatch.setattr(matching, "_sweep", lambda couple, tokens: False)
    monkeypatch.setattr(matching, "_set_channels", lambda couple, cosines: False)
    place = (
        disguises.save(tmp_path / "a", disguises.llama(1)),
        disguises.save(tmp_path / "b", disguises.llama(1)),
    )
    (row,) = kinbase.open(tmp_path / "none.duckdb").kin([str(p) for p in place], aligned=True).to_dicts()
    assert row["verdict"] == "not aligned" and row["pcc"] == 1 and row["p"] < 1e-9
    assert row["notes"] == ["channels went on changing their places: what is given is the best found"]


def test_a_plain_fine_tune_is_left_where_it_is(tmp_path):
    model = disguises.llama(7)
    a = disguises.save(tmp_path / "a", model)
    for seed in range(3):
        b = disguises.save(tmp_path / f"b{seed}", disguises.tuned(model, seed, size=0.03))
        found, _, whole = matched(a, b)
        assert found.symmetry.is_identity
        assert whole.before.pcc == whole.after.pcc


def test_a_model_of_other_weights_is_not_related(tmp_path):
    a = disguises.save(tmp_path / "a", disguises.llama(8))
    b = disguises.save(tmp_path / "b", disguises.llama(9))
    found, _, whole = matched(a, b)
    assert found.test.p > 0.001
    assert whole.after.pcc < 0.6


def test_models_of_other_sizes_are_refused(tmp_path):
    a = disguises.save(tmp_path / "a", disguises.llama(1))
    b = disguises.save(tmp_path / "b", disguises.llama(1, 2), groups=2)
    with pytest.raises(KinbaseError, match="6 and 2 key-value heads: their sizes must agree"):
        matched(a, b)


def test_dead_units_stay_where_they_are(tmp_path):
    model = disguises.llama(10)
    for layer in range(disguises.LAYERS):
        for part in ("gate", "up"):
            model[f"model.layers.{layer}.mlp.{part}_proj.weight"][5:9] = 0
    a = disguises.save(tmp_path / "a", model)
    found, _, _ = matched(a, a)
    assert found.symmetry.is_identity
