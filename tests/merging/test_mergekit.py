"""The built-in merges equal those of mergekit, where it is installed."""

import math
import os

import families
import numpy as np
import pytest
import torch
from merges import NORM, Bare, delta_config, merged, models, weights

from kinbase.errors import KinbaseError
from kinbase.merging import methods

UNIT = {torch.bfloat16: 2.0**-7, torch.float16: 2.0**-10, torch.float32: 2.0**-23}
"""The unit in the last place of 1.0."""


@pytest.fixture(scope="module")
def kit():
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    pytest.importorskip("mergekit")
    import mergekit.config
    import mergekit.merge

    return mergekit


def by_mergekit(kit, config, out):
    wanted = kit.config.MergeConfiguration.model_validate(config)
    options = kit.merge.MergeOptions(
        quiet=True, write_model_card=False, copy_tokenizer=False, out_shard_size=12_000
    )
    kit.merge.run_merge(wanted, str(out), options)
    return weights(out)


GRADIENT = {
    "t": [{"filter": "self_attn", "value": [0, 0.5, 1]}, {"filter": "mlp", "value": [1, 0]}, {"value": 0.5}]
}
PLANS = {
    "linear": ("linear", {}),
    "sum": ("linear", {"normalize": False}),
    "slerp": ("slerp", GRADIENT),
    "task_arithmetic": ("task_arithmetic", {"lambda": 0.7}),
    "mean change": ("task_arithmetic", {"normalize": True}),
    "ties": ("ties", {}),
    "rescaled ties": ("ties", {"rescale": True, "normalize": False, "int8_mask": True}),
}


@pytest.mark.parametrize("plan", PLANS)
@pytest.mark.parametrize("stored, dtype, out", [
    ("BF16", None, None), ("F16", None, None), ("F32", "bfloat16", None), ("BF16", "float32", "bfloat16"), ("F32", None, None),
])  # fmt: skip
def test_equal_to_mergekit(tmp_path, monkeypatch, kit, plan, stored, dtype, out):
    # mergekit keeps whichever of equal magnitudes its unstable sort finds; ours keeps the first.
    sort = torch.argsort
    monkeypatch.setattr(
        torch,
        "argsort",
        lambda x, dim=-1, descending=False: sort(x, dim=dim, descending=descending, stable=True),
    )
    family = families.make_family(tmp_path / "family", dtype=stored)
    method, parameters = PLANS[plan]
    each = {
        "ft_a": {"weight": 0.6, "density": 0.5},
        "ft_b": {"weight": [0.2, 0.5], "density": 0.3},
        "ft_c": {"weight": 0.3, "density": 1},
    }
    config = {"merge_method": method, "models": models(family, **each), "parameters": parameters}
    if method == "slerp":
        config |= {
            "models": [{"model": str(family[name])} for name in ("ft_a", "ft_b")],
            "base_model": str(family["ft_b"]),
        }
    elif method != "linear":
        config["base_model"] = str(family["base"])
    config |= ({"dtype": dtype} if dtype else {}) | ({"out_dtype": out} if out else {})
    theirs = by_mergekit(kit, config, tmp_path / "theirs")
    ours = merged(config, tmp_path / "ours")
    assert ours.keys() == theirs.keys()
    for name, tensor in theirs.items():
        assert ours[name].dtype == tensor.dtype
        size = 2.0 ** torch.floor(torch.log2(tensor.double().abs().clamp_min(1e-30)))
        assert bool(((ours[name].double() - tensor.double()).abs() <= UNIT[tensor.dtype] * size).all()), name


@pytest.mark.parametrize("method, elect", [("dare_linear", False), ("dare_ties", True)])
@pytest.mark.parametrize("stored", ["BF16", "F16", "F32"])
def test_dare_equals_mergekit_with_the_same_masks(tmp_path, monkeypatch, kit, method, elect, stored):
    drawn = {}
    bernoulli = torch.bernoulli

    def keep(tensor, *rest, **more):
        mask = bernoulli(tensor, *rest, **more)
        drawn.setdefault(tuple(mask.shape), []).append(mask)
        return mask

    family = families.make_family(tmp_path / "family", dtype=stored)
    config = delta_config(family, method)
    monkeypatch.setattr(torch, "bernoulli", keep)
    theirs = by_mergekit(kit, config, tmp_path / "theirs")
    base, a, b = (weights(family[name]) for name in ("base", "ft_a", "ft_b"))
    shared = {"normalize": False, "rescale": True, "lambda": 1.0}
    name = NORM  # the only one of its size but the layers' norms, and merged after them
    masks = drawn[tuple(base[name].shape)]
    fits = []
    for first in range(0, len(masks), 2):
        look = Bare(
            [base[name], a[name], b[name]],
            shared,
            ({}, {"weight": 0.7, "density": 0.5}, {"weight": 0.4, "density": 0.5}),
            step=10,
        )
        pair = masks[first : first + 2]
        got = look.result(
            methods.dare, elect=elect, mask=lambda _, i, s, pair=pair: pair[i][s.start : s.stop].float()
        )
        fits.append(
            bool(((got.double() - theirs[name].double()).abs() <= UNIT[got.dtype]).all())
        )  # norms are near 1
    assert any(fits) and len(fits) == 5


def test_dare_is_equal_to_mergekit_in_distribution(tmp_path, kit):
    family = families.make_family(tmp_path / "family", dtype="F32")
    config = delta_config(family, "dare_linear", density=0.3)
    ours, theirs = merged(config, tmp_path / "ours", seed=1), by_mergekit(kit, config, tmp_path / "theirs")
    base = weights(family["base"])
    # Both of two changes are dropped with probability 0.49, and then the weight is the base's.
    for child in (ours, theirs):
        kept = np.concatenate([(child[name] == base[name]).flatten().numpy() for name in base])
        assert abs(kept.mean() - 0.49) < 5 * math.sqrt(0.49 * 0.51 / len(kept))


def test_the_mergekit_backend(tmp_path, db, kit):
    config = {
        "merge_method": "nuslerp", "base_model": "base", "parameters": {"weight": 0.5},
        "models": ["ft_a", "ft_b"],
    }  # fmt: skip
    config["models"] = [{"model": name, "parameters": {"weight": 0.5}} for name in config["models"]]
    (row,) = db.merge(config, tmp_path / "child", backend="mergekit").to_dicts()
    assert (row["model"], row["base"]) == ("child", "base")
    assert {"ft_a", "ft_b"} <= set(db.sql("select parent from lineage where child = 'child'")["parent"])
    with pytest.raises(KinbaseError, match=r"no known merge_method 'nuslrp': nearest are nuslerp"):
        db.merge({**config, "merge_method": "nuslrp"}, tmp_path / "other", backend="mergekit")
    with pytest.raises(KinbaseError, match=r"mergekit refused the merge: "):
        db.merge(
            {**config, "parameters": {"weight": "x"}, "models": ["ft_a"]},
            tmp_path / "other",
            backend="mergekit",
        )
    assert not list(tmp_path.glob("other*"))
