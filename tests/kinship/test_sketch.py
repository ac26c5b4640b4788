"""Power sums and sketches of weights against float64 references.

A sketched cosine has standard deviation (1 - c^2) / sqrt(k): a test of one draw allows five of them, a mean of
n draws five over sqrt(n), which a right implementation fails once in two million times (and, seeded, never).
"""

import families
import numpy as np
import pytest
import torch
from gaussian import checkpoint, gaussian_family, vocabulary_family
from hypothesis import given, settings
from hypothesis import strategies as st

from kinbase.checkpoint import FLOAT_DTYPES
from kinbase.checkpoint.alignment import labels
from kinbase.checkpoint.digest import LEAF, SPAN
from kinbase.kinship import stream
from kinbase.kinship.layout import BUCKETS, CELL
from kinbase.kinship.sketch import Buffers, TensorSketch, compare, empty, similarity
from kinbase.kinship.sketch_correction import misfit
from kinbase.kinship.stream import Plan, run

STORED = dict(zip(FLOAT_DTYPES, (52, 23, 10, 7, 3, 2), strict=True))  # bits of the fraction


SMALLEST = dict(zip(FLOAT_DTYPES, (-1022, -126, -14, -126, -6, -14), strict=True))


def weighed(tensors):
    """Power sums by name and the sketch of {name: torch.Tensor}, read alone."""
    total, sums = empty(), {}
    for found in run(Plan(checkpoint(tensors), hash_base=True)):
        sums[found.name] = found.weights[0]
        if found.sketches[0]:
            found.sketches[0].pour(total)
    return sums, total


def sketch_of(values, label="w", start=0, seed=0):
    """The sketch of a vector, called by another name for another seed."""
    flat = np.asarray(values, np.float64).reshape(-1)
    tensor, buffers, total = TensorSketch(f"{label} {seed}", start + len(flat)), Buffers(), empty()
    for at in range(0, len(flat), SPAN):
        raw = memoryview(flat[at : at + SPAN]).cast("B")
        tensor.weigh(raw, start + at, FLOAT_DTYPES.index("F64"), buffers, 0, np.zeros(3))
        tensor.flush(buffers, 0)
    tensor.pour(total)
    return total


def spacing(values, dtype):
    """Distance from each number to the next in its dtype; that of the smallest normal ones below them."""
    exponent = np.full(values.shape, SMALLEST[dtype])
    exponent[values != 0] = np.maximum(np.frexp(values[values != 0])[1] - 1, SMALLEST[dtype])
    return 2.0 ** (exponent - STORED[dtype])


# --- power sums ---


@pytest.mark.parametrize("dtype", FLOAT_DTYPES)
@pytest.mark.parametrize("mean", [0.0, 1.0])
def test_power_sums_of_every_dtype_meet_float64(dtype, mean):
    g = torch.Generator().manual_seed(0)
    weights = (mean + 0.05 * torch.randn(3 * LEAF // 2 + 77, generator=g, dtype=torch.float64)).to(
        families.TORCH_DTYPES[dtype]
    )
    sums, _ = weighed({"w": weights})
    x = weights.double().numpy()
    # Narrow floats are added in float32 within a cell of 2048: 2048 roundings of 2^-24 that mostly cancel.
    tolerance = 1e-12 if dtype in ("F64", "F32") else 2e-7
    for power in (1, 2):
        assert abs(sums["w"][power - 1] - (x**power).sum()) <= tolerance * (np.abs(x) ** power).sum()
    # And one cell of 2048 in a leaf tells the spacing of all, in proportion to squares whose ratio to it spreads by
    # a factor of 4 at most, a standard deviation below 0.4: five of them over sqrt(2048).
    rel = 1e-12 if dtype in ("F64", "F32") else 0.045
    assert sums["w"][2] == pytest.approx((spacing(x, dtype) ** 2).sum(), rel=rel)


def test_numbers_with_no_room_in_float32_powers_are_summed_in_float64():
    for scale in (1e-18, 1e15):
        x = (scale * torch.randn(9000, generator=torch.Generator().manual_seed(1))).bfloat16()
        sums, _ = weighed({"w": x})
        assert sums["w"][1] == pytest.approx((x.double() ** 2).sum().item(), rel=1e-12)


def test_what_is_not_finite_has_no_sums_and_makes_no_sketch():
    for bad in (float("nan"), float("inf"), -float("inf")):
        x = torch.ones(5000)
        x[4321] = bad
        x[7] = -bad
        sums, total = weighed({"w": x, "v": torch.ones(3)})
        assert np.isnan(sums["w"]).all() and sums["v"][0] == 3
        assert not np.isfinite(total).all()


# --- the map ---


def everything(plan, **options):
    """Power sums and the sketches of a run, comparable to the bit."""
    sums, totals = [], np.zeros((len(plan.hashed), BUCKETS))
    for found in run(plan, **options):
        sums.append((found.name, found.weights.tobytes()))
        for sketch, total in zip(found.sketches, totals, strict=True):
            if sketch:
                sketch.pour(total)
    return sums, totals


def test_threads_tiles_and_company_do_not_change_a_bit(monkeypatch):
    base, members = vocabulary_family()
    plan = Plan(base, members, hash_base=True)
    sums, totals = everything(plan, threads=1)
    again = everything(plan, threads=5)
    assert again[0] == sums and again[1].tobytes() == totals.tobytes()
    monkeypatch.setattr(stream, "TILE_BYTES", 1)
    again = everything(plan, threads=2)
    assert again[0] == sums and again[1].tobytes() == totals.tobytes()
    for one, total in zip(plan.hashed, totals, strict=True):
        one.tensors.reverse()
        assert everything(Plan(one, hash_base=True))[1][0].tobytes() == total.tobytes()


def test_wrappers_and_shards_do_not_change_the_sketch():
    _, (weights,) = gaussian_family({"a.w": (300, 200), "b.w": (70,)}, 1)
    wrapped = {f"model.{name}": tensor for name, tensor in reversed(weights.items())}
    assert weighed(weights)[1].tobytes() == weighed(wrapped)[1].tobytes()
    twice = checkpoint({"model.w": torch.ones(3), "w": torch.ones(3), "model.v": torch.ones(2)})
    assert labels(twice.tensors) == {"model.w": "model.w", "w": "w", "model.v": "v"}


@settings(deadline=None, max_examples=40)
@given(st.integers(1, 3 * CELL * 9), st.integers(0, 99), st.floats(-3, 3))
def test_the_sketch_is_linear(n, seed, factor):
    g = np.random.default_rng(seed)
    a, b = g.standard_normal((2, n))
    whole = sketch_of(a + factor * b)
    parts = sketch_of(a) + factor * sketch_of(b)
    # Each element is rounded to float32 once, and a bucket adds a few of them.
    assert whole == pytest.approx(parts, abs=2e-5)


@settings(deadline=None, max_examples=40)
@given(st.integers(1, 60_000), st.data())
def test_a_vector_is_the_sum_of_its_stretches(n, data):
    cut = data.draw(st.integers(0, n))
    x = np.random.default_rng(n).standard_normal(n)
    tensor, buffers, parts = TensorSketch("w 0", n), Buffers(), empty()
    for first, last in ((0, cut), (cut, n)):
        tensor.weigh(
            memoryview(x[first:last]).cast("B"), first, FLOAT_DTYPES.index("F64"), buffers, 0, np.zeros(3)
        )
        tensor.flush(buffers, 0)
    tensor.pour(parts)
    assert sketch_of(x) == pytest.approx(parts, abs=1e-5)


def test_short_vectors_keep_their_length_and_no_place_is_used_twice_within_a_cell():
    x = np.random.default_rng(0).standard_normal(CELL)
    assert np.linalg.norm(sketch_of(x)) == pytest.approx(np.linalg.norm(x), rel=1e-6)
    assert sorted(np.abs(sketch_of(x))[np.abs(sketch_of(x)) > 0]) == pytest.approx(
        sorted(np.abs(x)), rel=1e-6
    )


def changes(kind, g):
    """Two vectors of 400,000 elements, rows of 500, that differ from zero as `kind` says."""
    a, b = np.zeros((2, 800, 500))
    if kind == "dense":
        a[:] = g.standard_normal(a.shape)
        b[:] = 0.5 * a + g.standard_normal(a.shape)
    elif kind == "sparse":
        where = g.random(a.shape) < 1e-3
        a[where], b[where] = g.standard_normal((2, where.sum()))
    elif kind == "low rank":
        shared = g.standard_normal((2, 500))
        a[:], b[:] = g.standard_normal((800, 2)) @ shared, g.standard_normal((800, 2)) @ shared
    elif kind == "column":
        a[:, 3], b[:, 3] = g.standard_normal((2, 800))
    elif kind == "rows":
        a[:20], b[:20] = g.standard_normal((2, 20, 500))
    elif kind == "constant":
        a[:], b[:400], b[400:] = 1.0, 1.0, -0.5
    return a.ravel(), b.ravel()


@pytest.mark.parametrize("kind", ["dense", "sparse", "low rank", "column", "rows", "constant"])
def test_the_cosine_is_unbiased_with_the_stated_error(kind):
    a, b = changes(kind, np.random.default_rng(5))
    true = a @ b / np.linalg.norm(a) / np.linalg.norm(b)
    seeds = 40
    found = np.array([similarity(sketch_of(a, seed=s), sketch_of(b, seed=s)) for s in range(seeds)])
    off = found[:, 0] - true
    theory = (1 - true**2) / np.sqrt(BUCKETS)
    assert abs(off.mean()) < 5 * theory / np.sqrt(seeds)
    # The root mean square of 40 normal draws is within 1.3 of its own but once in 300; five of its deviations are 1.56.
    assert np.sqrt((off**2).mean()) < 1.56 * theory
    assert (found[:, 1] >= (1 - found[:, 0] ** 2) / np.sqrt(BUCKETS) - 1e-12).all()
    assert np.sqrt((off**2).mean()) < 1.3 * found[:, 1].mean()


def test_an_estimate_that_hangs_on_two_elements_says_so():
    a, b = np.zeros((2, 100_000))
    a[[5, 70_000]], b[[5, 70_000]] = (1, 1), (1, -1)
    cosine, stderr = similarity(sketch_of(a), sketch_of(b))
    assert abs(cosine) < 1e-6 and stderr > 0.5
    cosine, stderr = similarity(sketch_of(a), sketch_of(a))
    assert cosine == pytest.approx(1) and stderr >= 0


def test_strangers_of_one_shape_and_of_others_are_near_zero():
    g = np.random.default_rng(3)
    a, b = g.standard_normal((2, 500_000))
    for other in (sketch_of(b), sketch_of(a, label="another"), sketch_of(b[:90_000])):
        cosine, stderr = similarity(sketch_of(a), other)
        assert abs(cosine) < 5 / np.sqrt(BUCKETS) and stderr >= 0.999 / np.sqrt(BUCKETS)
    common = similarity(sketch_of(a), sketch_of(a[:250_000]))[0]
    assert common == pytest.approx(np.sqrt(0.5), abs=5 * 0.5 / np.sqrt(BUCKETS))


def test_zero_has_no_cosine():
    one = sketch_of(np.ones(9)).astype(np.float32)
    for cosine, stderr, *_ in (compare(one, np.zeros((1, BUCKETS), np.float32)), compare(0 * one, one[None])):
        assert np.isnan(cosine).all() and np.isnan(stderr).all()
    assert similarity(one, one, base=one) == pytest.approx((np.nan, np.nan), nan_ok=True)


# --- what does not fit the base ---


def cut(tensors, rows):
    return {n: t[:rows].clone() if n.startswith("embed.weight") else t for n, t in tensors.items()}


def test_the_change_of_resized_extra_and_missing_tensors_is_that_of_what_meets():
    base, (member,) = gaussian_family({"embed.weight": (900, 301), "w": (64, 65), "gone": (50,)}, 1, ("F32",))
    longer = {
        **member,
        "embed.weight": torch.cat([member["embed.weight"], torch.ones(7, 301)]),
        "new": torch.ones(999),
    }
    del longer["gone"]
    for ours, theirs in ((base, longer), (base, cut(longer, 850)), (cut(base, 800), longer)):
        opened = checkpoint(ours, "base"), checkpoint(theirs, "m")
        change = misfit(*opened)
        found = weighed(theirs)[1] - weighed(ours)[1] + change.sums
        rows = min(ours["embed.weight"].shape[0], theirs["embed.weight"].shape[0])
        delta = {
            "embed.weight": theirs["embed.weight"][:rows].double() - ours["embed.weight"][:rows].double(),
            "w": theirs["w"].double() - ours["w"].double(),
        }
        # Weights are ten times their changes and are rounded to float32 in sums of a dozen.
        assert found == pytest.approx(weighed(delta)[1], abs=1e-5)
        assert change.numel == sum(t.numel() for t in delta.values())
        sums = [sum(s[0] for s in weighed(c)[0].values()) for c in (theirs, ours)]
        expected = sum(t.sum().item() for t in delta.values())
        assert sums[0] - sums[1] + change.sum == pytest.approx(expected, abs=1e-6)
