"""The streaming pass against float64 references of the flattened weights."""

import itertools

import families
import numpy as np
import pytest
import torch
from gaussian import TOLERANCE, bits, checkpoint, gaussian_family, passed
from hypothesis import given, settings
from hypothesis import strategies as st

from kinbase.checkpoint import FLOAT_DTYPES
from kinbase.kinship.stream import Plan, run


def deltas(base, members, name):
    """[N, numel] float64 reference of one tensor."""
    return np.stack([(m[name].double() - base[name].double()).flatten().numpy() for m in members])


def total(results, field, *index):
    return sum(getattr(r, field)[index] for r in results)


def metrics(results, i, j):
    """pcc, cs and ed of a pair from the stored sums, as the views derive them."""
    n = total(results, "numel", i)
    g_ij, g_ii, g_jj = (total(results, "dot", *pair) for pair in ((i, j), (i, i), (j, j)))
    s_i, s_j = total(results, "sum", i), total(results, "sum", j)
    pcc = (g_ij - s_i * s_j / n) / np.sqrt((g_ii - s_i * s_i / n) * (g_jj - s_j * s_j / n))
    return pcc, g_ij / np.sqrt(g_ii * g_jj), np.sqrt(max(g_ii + g_jj - 2 * g_ij, 0.0))


def assert_metrics(results, base, members):
    flat = np.concatenate([deltas(base, members, name) for name in base], axis=1)
    for i, j in itertools.combinations(range(len(members)), 2):
        pcc, cs, ed = metrics(results, i, j)
        a, b = flat[i], flat[j]
        assert pcc == pytest.approx(np.corrcoef(a, b)[0, 1], abs=1e-6)
        assert cs == pytest.approx(a @ b / np.linalg.norm(a) / np.linalg.norm(b), abs=1e-6)
        assert ed == pytest.approx(np.linalg.norm(a - b), rel=1e-6)


def assert_sums(results, base, members, tolerance=TOLERANCE):
    for result in results:
        d = deltas(base, members, result.name)
        gram = d @ d.T
        size = np.sqrt(np.outer(np.diag(gram), np.diag(gram))) + 1e-300
        assert (np.abs(result.dot - gram) / size).max() < tolerance
        assert result.sumsq == pytest.approx(np.diag(gram), rel=tolerance)
        assert (np.abs(result.sum - d.sum(1)) <= tolerance * (np.abs(d).sum(1) + 1e-300)).all()
        # One float32 rounding: the largest delta is not averaged with anything.
        assert result.max_abs == pytest.approx(np.abs(d).max(1), rel=2**-24)
        assert (result.zeros == (d == 0).sum(1)).all()
        assert (result.nonfinite == 0).all()
        assert (result.numel == d.shape[1]).all()


# Several pieces, a last leaf that is short, an odd width, a norm and a scalar.
SHAPES = {"embed": (1100, 1201), "mlp": (513, 129), "norm": (33,), "scale": ()}


@pytest.mark.parametrize("dtype", FLOAT_DTYPES)
def test_every_dtype_meets_the_float64_reference(dtype):
    base, members = gaussian_family(SHAPES, 5, (dtype,), scale=2e-2)
    results = passed(base, members)
    assert [r.name for r in results] == list(SHAPES)
    assert_sums(results, base, members)
    assert_metrics(results, base, members)


@pytest.mark.parametrize("dtype", ["F16", "BF16", "F8_E4M3", "F8_E5M2"])
def test_every_finite_value_of_a_small_dtype_is_decoded(dtype):
    """All bit patterns, subnormals and both zeros among them, against a base of zeros."""
    width = 1 if dtype.startswith("F8") else 2
    patterns = torch.arange(256**width, dtype=torch.int32).to(torch.uint8 if width == 1 else torch.uint16)
    values = patterns.view(families.TORCH_DTYPES[dtype])
    values = values[values.double().isfinite()]
    # The largest bf16 values have squares that still fit float64 but drown all others: weigh by slices.
    for part in values.split(97):
        base = {"w": torch.zeros(len(part), dtype=part.dtype)}
        (result,) = passed(base, [{"w": part}])
        reference = part.double().numpy()
        assert result.sum[0] == pytest.approx(reference.sum(), rel=1e-12)
        assert result.sumsq[0] == pytest.approx((reference**2).sum(), rel=1e-12, abs=0)
        assert result.zeros[0] == (reference == 0).sum()
        assert result.nonfinite[0] == 0


@pytest.mark.parametrize("count", [1, 2, 3, 6, 9])
def test_families_that_do_not_fill_a_register_tile(count):
    base, members = gaussian_family({"w": (70, 41), "b": (7,)}, count, ("F32",))
    assert_sums(passed(base, members), base, members)


@pytest.mark.parametrize("dtype", ["F64", "F32", "F16", "BF16"])
@pytest.mark.parametrize("apart", [1e-2, 1e-3])
def test_near_twins_keep_their_distance(dtype, apart):
    """Twins of kinship about 1 - apart**2 / 2: ed**2 is apart**2 of the sums it is the difference of.

    float64 sums are good to some 1e-15, so 1e-6 holds for ed as long as twins are 1e-4 of a delta apart.
    """
    g = torch.Generator().manual_seed(3)
    stored = families.TORCH_DTYPES[dtype]
    for shape in [(40, 50), (900, 700)]:
        base = {"w": (0.02 * torch.randn(shape, generator=g)).to(stored)}
        first = {"w": (base["w"].double() + 0.05 * torch.randn(shape, generator=g)).to(stored)}
        second = {"w": (first["w"].double() + 0.05 * apart * torch.randn(shape, generator=g)).to(stored)}
        results = passed(base, [first, second])
        assert metrics(results, 0, 1)[0] > 0.9999
        assert_metrics(results, base, [first, second])


def test_pearson_survives_deltas_far_from_zero_mean():
    """With a mean of ten standard deviations the mean's square is subtracted from a hundred times the rest."""
    base, members = gaussian_family({"w": (700, 650), "b": (300,)}, 3, ("F32",), mean=10.0)
    results = passed(base, members)
    assert_metrics(results, base, members)
    pcc, cs, _ = metrics(results, 0, 1)
    assert cs > 0.98 and pcc < 0.5


def test_dtypes_may_differ_within_a_family():
    base, members = gaussian_family(
        {"w": (600, 701)}, 5, ("BF16", "F32", "F16", "F8_E4M3", "F64", "BF16"), scale=1e-2
    )
    assert_sums(passed(base, members), base, members)


def test_a_member_equal_to_the_base_has_zero_sums_not_missing_ones():
    base, members = gaussian_family({"w": (30, 30)}, 1)
    (result,) = passed(base, [base, *members])
    assert result.zeros[0] == result.numel[0] == 900
    assert result.sumsq[0] == result.max_abs[0] == 0
    assert (result.dot[0] == 0).all() and result.dot[1, 1] > 0


def test_only_new_rows_are_computed():
    base, members = gaussian_family({"w": (300, 300), "b": (5,)}, 6)
    checkpoints = [checkpoint(m) for m in members]
    full = list(run(Plan(checkpoint(base), checkpoints)))
    plan = Plan(checkpoint(base), checkpoints, new=2)
    for some, every in zip(run(plan), full, strict=True):
        assert some.dot.shape == (2, 6)
        assert some.dot == pytest.approx(every.dot[:2], rel=1e-12)
        assert some.sumsq == pytest.approx(every.sumsq, rel=1e-12)
        assert some.sum == pytest.approx(every.sum, rel=1e-12)
        assert some.digests == every.digests[:2]


def test_an_adapter_brings_its_delta_and_leaves_the_rest_alone():
    base, (tuned,) = gaussian_family({"w": (50, 40), "b": (40,)}, 1, ("BF16",))
    change = torch.randn((50, 40), dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    plan = Plan(checkpoint(base), [checkpoint({"w": change}, delta_of="base"), checkpoint(tuned)])
    w, b = run(plan)
    d = np.stack([change.flatten().numpy(), deltas(base, [tuned], "w")[0]])
    assert w.dot == pytest.approx(d @ d.T, rel=TOLERANCE)
    assert b.numel.tolist() == [40, 40] and b.zeros[0] == 40 and b.sumsq[0] == 0
    assert b.dot[0].tolist() == [0, 0] and b.dot[1, 1] > 0
    assert plan.skipped[0] == {}
    assert b.digests[0] == "" and b.digests[1] != ""


@pytest.mark.parametrize("rows", [(90, 100), (120, 110), (90, 120), (100, 64)])
def test_resized_vocabularies_use_the_common_rows(rows):
    """Base of 100 rows, members cut to min(rows, 100); leaves and intervals meet inside one tile."""
    width = 4001
    base = {"embed.weight": torch.randn((100, width), generator=torch.Generator().manual_seed(0)).bfloat16()}
    members = [
        {"embed.weight": torch.randn((r, width), generator=torch.Generator().manual_seed(r)).bfloat16()}
        for r in (*rows, 100)
    ]
    (result,) = passed(base, members)
    kept = [min(r, 100) * width for r in (*rows, 100)]
    b = base["embed.weight"].double().flatten().numpy()
    d = [m["embed.weight"].double().flatten().numpy()[:n] - b[:n] for m, n in zip(members, kept, strict=True)]
    assert result.numel.tolist() == kept
    assert result.sum == pytest.approx([x.sum() for x in d], rel=TOLERANCE, abs=1e-6)
    assert result.sumsq == pytest.approx([x @ x for x in d], rel=TOLERANCE)
    expected = {}
    for i, j in itertools.combinations(range(3), 2):
        n = min(kept[i], kept[j])
        x, y = d[i][:n], d[j][:n]
        # Unrelated members: the product is small beside the norms it is compared with.
        assert abs(result.dot[i, j] - x @ y) < TOLERANCE * np.sqrt((x @ x) * (y @ y))
        if kept[i] != kept[j]:
            expected[i, j] = [n, x.sum(), y.sum(), x @ x, y @ y]
    assert {(int(i), int(j)) for i, j, *_ in result.exceptions} == set(expected)
    for i, j, *sums in result.exceptions:
        assert sums == pytest.approx(expected[int(i), int(j)], rel=TOLERANCE, abs=1e-6)


@pytest.mark.parametrize("dtype", FLOAT_DTYPES)
def test_a_nonfinite_member_spoils_only_its_own_entries(dtype):
    base, members = gaussian_family({"w": (700, 500), "b": (9,)}, 4, (dtype,))
    clean = passed(base, [members[0], members[2], members[3]])
    # A float8_e4m3fn has no infinity.
    bad = [float("nan")] if dtype == "F8_E4M3" else [float("inf"), float("nan"), -float("inf")]
    for k, value in enumerate(bad):
        members[1]["w"].view(-1)[300_001 * k % 350_000] = value
    w, b = passed(base, members)
    rest = [0, 2, 3]
    assert w.nonfinite.tolist() == [0, len(bad), 0, 0]
    assert np.isnan([w.sum[1], w.sumsq[1], w.max_abs[1]]).all()
    assert np.isnan(w.dot[1]).all() and np.isnan(w.dot[:, 1]).all()
    assert w.dot[np.ix_(rest, rest)] == pytest.approx(clean[0].dot, rel=1e-12)
    assert w.sum[rest] == pytest.approx(clean[0].sum, rel=1e-12)
    assert np.isfinite(b.dot).all()


def test_a_nonfinite_base_poisons_every_difference():
    base, members = gaussian_family({"w": (60, 60)}, 2)
    base["w"][3, 3] = float("inf")
    members[0]["w"][3, 3] = float("inf")
    plan = Plan(
        checkpoint(base), [*map(checkpoint, members), checkpoint({"w": torch.ones(60, 60)}, delta_of="base")]
    )
    (result,) = run(plan)
    assert result.nonfinite.tolist() == [1, 1, 0]
    assert np.isnan(result.dot[:2]).all()
    assert result.dot[2, 2] == 3600


def test_a_difference_beyond_float32_is_still_finite():
    big = {"w": torch.full((4000,), 3e38, dtype=torch.bfloat16)}
    (result,) = passed(big, [{"w": -big["w"]}, {"w": big["w"] / 2}])
    d = deltas(big, [{"w": -big["w"]}, {"w": big["w"] / 2}], "w")
    assert result.nonfinite.tolist() == [0, 0]
    assert result.dot == pytest.approx(d @ d.T, rel=TOLERANCE)
    assert result.max_abs == pytest.approx(np.abs(d).max(1), rel=2**-24)


@st.composite
def small_families(draw):
    shapes = draw(
        st.dictionaries(
            st.text(min_size=1, max_size=4),
            st.lists(st.integers(0, 9), max_size=3).map(tuple),
            min_size=1,
            max_size=4,
        )
    )
    count = draw(st.integers(1, 6))
    dtypes = draw(st.lists(st.sampled_from(FLOAT_DTYPES), min_size=1, max_size=count + 1))
    return gaussian_family(
        shapes, count, dtypes, draw(st.integers(0, 99)), scale=draw(st.sampled_from([1e-3, 0.1, 3.0]))
    )


@settings(deadline=None, max_examples=60)
@given(small_families())
def test_streamed_is_flattened(family):
    base, members = family
    results = [r for r in passed(base, members) if r.numel.any()]
    # A handful of elements does not average the 2**-24 of a float32 difference; a product has two.
    assert_sums(results, base, members, tolerance=2**-22)


@settings(deadline=None, max_examples=60)
@given(small_families(), st.randoms(use_true_random=False))
def test_the_gram_is_symmetric_and_positive_and_blind_to_order(family, random):
    base, members = family
    results = {r.name: r for r in passed(base, members)}
    shuffled = [dict(random.sample(list(m.items()), len(m))) for m in members]
    for again in passed(dict(reversed(base.items())), shuffled):
        first = results[again.name]
        assert bits([first])[0][3:] == bits([again])[0][3:]
        assert first.digests == again.digests
        if first.numel.any():
            assert np.array_equal(first.dot, first.dot.T)
            # Rounding can push a zero eigenvalue below zero by a few ulps of the largest.
            assert np.linalg.eigvalsh(first.dot).min() >= -1e-12 * np.trace(first.dot)
