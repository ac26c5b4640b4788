"""Selected, stacked and cast relatives, in any order and some missing, never turn a right verdict into a wrong one."""

import numpy as np
from gram_families import NAMES, NUMELS, Family
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kinbase.provenance.phylogeny.distances import Points
from kinbase.provenance.phylogeny.merges import judged
from kinbase.provenance.recipes.elements import Elements
from kinbase.provenance.recipes.least_squares import BITS
from kinbase.provenance.recipes.rounding import spacing, to_dtype
from kinbase.provenance.recipes.verdict import ADAPTER, COPY, MERGE, SELECTED, UNDECIDABLE

TRUTH = {
    "dropped": {"t0", "t1"},
    "trimmed": {"t1", "t2"},
    "stacked": {"t0", "t3"},
    "cast": {"t2", "t3"},
    "of_dropped": {"dropped", "t3"},
}


def grown(seed):
    """{name: (weights by tensor, dtype)} of a bf16 base and fine-tunes, and what TRUTH says was made of them."""
    family = Family("BF16", 0.05, count=4, seed=seed)
    rng, base = np.random.default_rng(seed), family.base
    models = {"base": base} | {f"t{i}": weights for i, weights in enumerate(family.models)}

    def changes(name):
        return [w - b for w, b in zip(models[name], base, strict=True)]

    def trimmed(name):
        return [d * (np.abs(d) >= np.median(np.abs(d))) for d in changes(name)]

    dropped = [[d * (rng.random(len(d)) < 0.5) for d in changes(name)] for name in ("t0", "t1")]
    models["dropped"] = family.rounded([b + x + y for b, x, y in zip(base, *dropped, strict=True)])
    chosen = []
    for b, x, y in zip(base, trimmed("t1"), trimmed("t2"), strict=True):
        sign = np.sign(x + y)
        both = (np.sign(x) == sign).astype(int) + (np.sign(y) == sign) * (sign != 0)
        chosen.append(b + (x * (np.sign(x) == sign) + y * (np.sign(y) == sign)) / np.maximum(both, 1))
    models["trimmed"] = family.rounded(chosen)
    models["stacked"] = [
        models["t0" if int(name.split(".")[2]) < 2 else "t3"][t] for t, name in enumerate(NAMES)
    ]
    models["of_dropped"] = family.rounded(
        [0.5 * x + 0.5 * y for x, y in zip(models["dropped"], models["t3"], strict=True)]
    )
    half = [to_dtype(0.6 * x + 0.4 * y, "F16") for x, y in zip(models["t2"], models["t3"], strict=True)]
    return {name: (weights, "BF16") for name, weights in models.items()} | {"cast": (half, "F16")}


def findings(models):
    names, dtypes = list(models), [dtype for _, dtype in models.values()]
    theta = [np.stack([weights[t] for weights, _ in models.values()]) for t in range(len(NAMES))]
    root = names.index("base")
    flat = {name: np.concatenate(weights) for name, (weights, _) in models.items()}
    group = np.repeat(np.arange(len(NAMES)), NUMELS)

    def sampler(child, base, candidates):
        bits = np.full(len(group), BITS[models[child][1]])
        return Elements(flat[child], flat[base], {name: flat[name] for name in candidates}, bits, group)

    points = Points(
        names, np.array([((w[:, None] - w[None]) ** 2).sum(axis=2) for w in theta]),
        np.array([(w**2).sum(axis=1) for w in theta]),
        np.array([[(spacing(row, d) ** 2).sum() / 12 for row, d in zip(w, dtypes, strict=True)] for w in theta]),
        np.array(NUMELS, float), dtypes, [None] * len(names), bits=np.array([[BITS[d] for d in dtypes]] * len(theta)),
        zeros=np.array([(w == w[root]).mean(axis=1) for w in theta]), reference=root, tensors=NAMES, sampler=sampler,
    )  # fmt: skip
    judgement = judged(points, root)
    return {name: judgement.of(i) for i, name in enumerate(names) if i != root}


@given(seed=st.integers(0, 10_000), data=st.data())
@settings(max_examples=5, deadline=None, suppress_health_check=list(HealthCheck))
def test_what_is_decided_is_right_whoever_is_missing(seed, data):
    models = grown(seed)
    gone = data.draw(st.sets(st.sampled_from(sorted(TRUTH)), max_size=3))
    order = data.draw(st.permutations([name for name in models if name not in gone]))
    found = findings({name: models[name] for name in order})
    for name, finding in found.items():
        parents = {p.parent for p in finding.parents}
        if name not in TRUTH:
            assert finding.verdict not in (MERGE, ADAPTER, SELECTED, COPY), (name, finding.reason)
        elif TRUTH[name] & gone:
            assert finding.verdict == UNDECIDABLE or not parents & set(TRUTH) - TRUTH[name]
        else:
            assert parents == TRUTH[name], (name, finding.verdict, finding.reason)


def merged_again(seed):
    """{name: (weights, dtype)} of fine-tunes and merges of merges, and the parents of each merge."""
    family, rng = Family("BF16", 0.05, count=4, seed=seed), np.random.default_rng(seed)
    models, truth = {f"t{i}": weights for i, weights in enumerate(family.models)}, {}
    for i in range(5):
        parents = [str(name) for name in rng.choice(list(models), rng.choice([2, 2, 3]), replace=False)]
        shares = rng.dirichlet(np.full(len(parents), 5.0))
        models[f"m{i}"] = family.rounded(
            [sum(s * models[p][t] for p, s in zip(parents, shares, strict=True)) for t in range(len(NAMES))]
        )
        truth[f"m{i}"] = set(parents)
    return {name: (weights, "BF16") for name, weights in {"base": family.base, **models}.items()}, truth


@given(seed=st.integers(0, 10_000), data=st.data())
@settings(max_examples=5, deadline=None, suppress_health_check=list(HealthCheck))
def test_one_more_relative_never_turns_a_right_verdict_into_a_wrong_one(seed, data):
    models, truth = merged_again(seed)
    gone = data.draw(st.sets(st.sampled_from(sorted(models.keys() - {"base"})), max_size=2))
    one = data.draw(st.sampled_from(sorted(models.keys() - {"base"} - gone)))
    order = data.draw(st.permutations([name for name in models if name not in gone]))
    after = findings({name: models[name] for name in order})
    before = findings({name: models[name] for name in order if name != one})
    for name, finding in after.items():
        if name not in truth:
            assert finding.verdict not in (MERGE, ADAPTER, SELECTED, COPY), (name, finding.reason)
        elif not truth[name] & gone and finding.verdict in (MERGE, SELECTED, COPY):
            assert {p.parent for p in finding.parents} == truth[name], (name, finding.reason)
        if name in before and {p.parent for p in before[name].parents} == truth.get(name, set()):
            right = {p.parent for p in finding.parents} == truth.get(name, set())
            assert right or finding.verdict == UNDECIDABLE, (name, one, finding.reason)
