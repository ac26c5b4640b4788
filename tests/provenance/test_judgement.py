"""One judgement of a family: whatever else is in it, a model's verdict is the same, and no fine-tune is accused.

Families are drawn here with numpy and rounded by torch; their sums are taken in float64 from the weights.
"""

import families
import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kinbase.provenance.phylogeny.distances import Points
from kinbase.provenance.phylogeny.merges import judged
from kinbase.provenance.recipes.judgement import (
    AVERAGE,
    DIFFERENCE,
    NOTHING,
    OPPOSITION,
    SUM,
    Judgement,
    plausibility,
)
from kinbase.provenance.recipes.least_squares import Grams
from kinbase.provenance.recipes.rounding import spacing
from kinbase.provenance.recipes.verdict import (
    ADAPTER,
    COPY,
    MERGE,
    NONE,
    SELECTED,
    UNDECIDABLE,
    Finding,
    Parent,
    judge,
)

SHAPES = {
    f"model.layers.{i}.{part}.weight": n
    for i in range(3)
    for part, n in {"self_attn.q_proj": 4000, "mlp.up_proj": 5000, "input_layernorm": 64}.items()
}
ACCUSING = (MERGE, ADAPTER, SELECTED, COPY)


def stored(values, dtype):
    return torch.from_numpy(np.asarray(values)).to(families.TORCH_DTYPES[dtype]).double().numpy()


def grown(seed, dtype="BF16", tunes=4, size=0.05):
    """{name: [weights by tensor]}: a base, fine-tunes t0.. of it that share a direction by 0.2 of their squares."""
    rng = np.random.default_rng(seed)
    base = [
        stored((1 if n == 64 else 0) + (0.05 if n == 64 else 0.02) * rng.standard_normal(n), dtype)
        for n in SHAPES.values()
    ]
    shared = [rng.standard_normal(len(b)) for b in base]
    models = {"base": base}
    for i in range(tunes):
        models[f"t{i}"] = [
            stored(
                b + size * b.std() * 2 ** rng.uniform(-0.3, 0.3)
                * (np.sqrt(0.2) * s + np.sqrt(0.8) * rng.standard_normal(len(b))), dtype,
            )
            for b, s in zip(base, shared, strict=True)
        ]  # fmt: skip
    return models


def mixed(models, shares, dtype="BF16"):
    """base + sum of shares of deltas, rounded once."""
    return [
        stored(b + sum(a * (models[p][t] - b) for p, a in shares.items()), dtype)
        for t, b in enumerate(models["base"])
    ]


def findings(models, dtype="BF16"):
    """The findings of a family by name, the base known."""
    names = list(models)
    theta = [np.stack([models[n][t] for n in names]) for t in range(len(SHAPES))]
    squared = np.array([((w[:, None] - w[None]) ** 2).sum(axis=2) for w in theta])
    noise = np.array([(spacing(w, dtype) ** 2).sum(axis=1) / 12 for w in theta])
    root = names.index("base")
    points = Points(
        names, squared, np.array([(w**2).sum(axis=1) for w in theta]), noise, np.array(list(SHAPES.values()), float),
        [dtype] * len(names), [None] * len(names), tensors=list(SHAPES),
        zeros=np.array([(w == w[root]).mean(axis=1) for w in theta]), reference=root,
    )  # fmt: skip
    judgement = judged(points, root)
    return {name: judgement.of(i) for i, name in enumerate(names) if i != root}


def parents(finding):
    return {p.parent for p in finding.parents}


def family_of_merges(seed, dtype="BF16"):
    models = grown(seed, dtype)
    truth = {
        "early": {"t0": 0.5, "t1": 0.5},
        "late": {"t0": 0.7, "t1": 0.3},
        "m3": {"t0": 0.5, "t2": 0.3, "t3": 0.2},
        "again": {"early": 0.4, "t2": 0.6},
    }
    for name, shares in truth.items():
        models[name] = mixed(models, shares, dtype)
    return models, truth


@pytest.mark.parametrize("dtype", ["BF16", "F32"])
def test_merges_keep_their_parents_and_fine_tunes_stay_fine_tunes(dtype):
    models, truth = family_of_merges(1, dtype)
    found = findings(models, dtype)
    for name, shares in truth.items():
        assert found[name].verdict == MERGE
        assert parents(found[name]) == set(shares)
        for parent in found[name].parents:
            # The interval is of 95%; three more half widths are out of reach of chance.
            room = 3 * (parent.high - parent.low)
            assert parent.low - room <= shares[parent.parent] <= parent.high + room
    assert {found[f"t{i}"].verdict for i in range(4)} == {NONE}


@given(seed=st.integers(0, 10_000), data=st.data())
@settings(max_examples=8, deadline=None, suppress_health_check=list(HealthCheck))
def test_relatives_never_turn_a_right_verdict_into_a_wrong_one(seed, data):
    """Some of the merges missing, in any order: what is decided is right, and no fine-tune is accused."""
    models, truth = family_of_merges(seed)
    gone = data.draw(st.sets(st.sampled_from(sorted(truth))))
    order = data.draw(st.permutations([n for n in models if n not in gone]))
    found = findings({name: models[name] for name in order})
    for name in order:
        if name.startswith("t"):
            assert found[name].verdict not in ACCUSING
        elif name != "base" and found[name].verdict == MERGE:
            shares = truth[name]
            if "early" in gone and "early" in shares:
                shares = {"t0": 0.2, "t1": 0.2, "t2": 0.6}
            assert parents(found[name]) == set(shares)


def test_a_parent_that_is_missing_leaves_no_merge():
    models, _ = family_of_merges(3)
    found = findings({name: models[name] for name in ("base", "t0", "t1", "m3")})
    assert found["m3"].verdict not in (MERGE, SELECTED)
    assert {found["t0"].verdict, found["t1"].verdict} == {NONE}


def test_dropped_elements_are_the_childs_and_not_the_parents():
    rng = np.random.default_rng(5)
    models = grown(5)

    def kept(name):
        return [
            (w - b) * (rng.random(len(b)) < 0.5) * 2
            for w, b in zip(models[name], models["base"], strict=True)
        ]

    models["dare"] = [
        stored(b + (x + y) / 2, "BF16")
        for b, x, y in zip(models["base"], kept("t0"), kept("t1"), strict=True)
    ]
    models["of_it"] = mixed(models, {"dare": 0.5, "t2": 0.5})
    found = findings(models)
    assert (found["dare"].verdict, parents(found["dare"])) == (SELECTED, {"t0", "t1"})
    assert (found["of_it"].verdict, parents(found["of_it"])) == (MERGE, {"dare", "t2"})
    assert {found[f"t{i}"].verdict for i in range(4)} == {NONE}


def test_a_negative_weight_is_not_read_backwards():
    """c = t0 - 0.4 t1 reads as t0 = c + 0.4 t1 as well, but then c and t1 point away from each other."""
    models = grown(7)
    models["c"] = mixed(models, {"t0": 1.0, "t1": -0.4})
    found = findings(models)
    assert found["t0"].verdict not in ACCUSING
    assert found["c"].verdict in (MERGE, UNDECIDABLE)
    assert found["c"].verdict == UNDECIDABLE or parents(found["c"]) == {"t0", "t1"}


def test_the_most_plausible_reading():
    def merge(*shares, opposed=0.2, ratio=1.0):
        told = [Parent(str(i), a, a, a) for i, a in enumerate(shares)]
        return plausibility(Finding(MERGE, "", parents=told, ratio=ratio, opposed=opposed))[0]

    assert merge(0.6, 0.4) == AVERAGE
    assert merge(1.0, 1.0) == SUM
    assert merge(1.7, -0.7) == DIFFERENCE
    assert merge(1.0, 0.4, opposed=-0.3) == OPPOSITION
    assert plausibility(Finding(NONE, ""))[0] == NOTHING == plausibility(None)[0]


def test_a_stranger_is_no_fine_tune():
    models = grown(9)
    rng = np.random.default_rng(10)
    models["stranger"] = [
        stored((1 if len(b) == 64 else 0) + 0.02 * rng.standard_normal(len(b)), "BF16")
        for b in models["base"]
    ]
    theta = [np.stack([models[n][t] for n in ("base", "stranger", "t0")]) for t in range(len(SHAPES))]
    columns = [np.stack([w[2] - w[0], w[0]]) for w in theta]
    delta = [w[1] - w[0] for w in theta]
    grams = Grams(
        ["t0"], list(SHAPES), np.array(list(SHAPES.values()), float), np.array([c @ c.T for c in columns]),
        np.array([c @ d for c, d in zip(columns, delta, strict=True)]), np.array([d @ d for d in delta]),
        np.array([(spacing(w[1], "BF16") ** 2).sum() / 12 for w in theta]), True, ["BF16"] * 3,
        np.array([w[0].mean() for w in theta]),
    )  # fmt: skip
    assert judge(grams).verdict == "unrelated"


def test_of_a_model_among_many_siblings_only_those_that_are_nearest_are_read():
    count, read = 40, []

    def reading(child, without):
        read.append(child)
        if child == 0:
            rounded = [Parent("m1", 1.0, 1.0, 1.0)]
            return Finding(COPY, "", 0.02, 0.02, rounded, expected=0.02, ratio=1.01)
        near = [Parent(f"m{1 + (child + i) % (count - 1)}", 0.15, 0.1, 0.2) for i in range(5)]
        return Finding(NONE, "", 0.85, 0.01, nearest=near)

    ids = {f"m{i}": i for i in range(count)}
    judgement = Judgement(reading, lambda child, others: None, lambda child: [], ids)
    assert judgement.of(0).verdict == COPY and read == [0]  # rounding is the last thing that was done
    assert judgement.of(1).verdict == NONE and len(read) <= 7
