"""What is dequantised is added in float32, as 16 bits are: its sums against float64, and its sketch against float32's own."""

import threading

import numpy as np
import pytest

from kinbase.checkpoint import Checkpoint, Grid, Tensor
from kinbase.checkpoint.formats.values import Kept
from kinbase.kinship.sketch import empty
from kinbase.kinship.stream import Plan, run

COUNT = 300_001
"""Elements: more than a leaf, and a pair that is cut."""


def tensor(values, dtype="F32", grid=None):
    data = np.ascontiguousarray(values).tobytes()

    def read(start, out):
        out[:] = data[start : start + len(out)]

    return Tensor("w", dtype, values.shape, read, grid=grid)


def bf16(values):
    """The upper halves of float32, and what they stand for."""
    upper = (values.view(np.uint32) >> 16).astype(np.uint16)
    return upper, (upper.astype(np.uint32) << 16).view(np.float32)


@pytest.fixture
def drawn():
    rng = np.random.default_rng(0)
    halves, base = bf16((rng.standard_normal(COUNT) / 30).astype(np.float32))
    members = [(base + rng.standard_normal(COUNT) / 900).astype(np.float32) for _ in range(2)]
    return halves, base, members


def measured(halves, members, grid, threads=1):
    base = Checkpoint("base", "", [tensor(halves, "BF16")])
    found = [Checkpoint(f"m{i}", "", [tensor(values, grid=grid)]) for i, values in enumerate(members)]
    plan = Plan(base, found, hash_base=True)
    (sums,) = run(plan, threads=threads)
    return sums


GRID = Grid("NF4", lambda: 3.5)


def test_sums_are_those_of_float64(drawn):
    halves, base, members = drawn
    sums = measured(halves, members, GRID)
    deltas = np.array([m.astype(np.float64) - base for m in members])
    # A delta is rounded once to 24 bits: its square is off by 2**-23 at most, and the sums are in float64.
    assert sums.sumsq == pytest.approx(np.square(deltas).sum(1), rel=2**-23)
    assert sums.dot[0, 1] == pytest.approx(deltas[0] @ deltas[1], abs=2**-23 * float(sums.sumsq.max()))
    assert sums.max_abs == pytest.approx(np.abs(deltas).max(1), rel=2**-24)
    # Squares of weights are added in float32 within a cell, about their mean: each is off by some 2**-24.
    for found, values in zip(sums.weights[1:], members, strict=True):
        assert found[1] == pytest.approx(np.square(values, dtype=np.float64).sum(), rel=1e-6)
        assert found[2] == 3.5


def test_the_sketch_is_that_of_the_same_floats(drawn):
    halves, _, members = drawn
    rounded, plain = (measured(halves, members, grid) for grid in (GRID, None))
    for mine, theirs in zip(rounded.sketches[1:], plain.sketches[1:], strict=True):
        both = empty(), empty()
        mine.pour(both[0])
        theirs.pour(both[1])
        assert np.array_equal(*both)


def test_bits_do_not_hang_on_threads_and_digests_are_of_what_is_stored(drawn):
    halves, _, members = drawn
    one, two = (measured(halves, members, GRID, threads) for threads in (1, 2))
    assert np.array_equal(one.sumsq, two.sumsq) and np.array_equal(one.dot, two.dot)
    assert one.digests[0] and one.digests[1:] == ("", "")


def test_what_is_not_finite_is_counted(drawn):
    halves, _, members = drawn
    broken = [members[0].copy(), members[1]]
    broken[0][[5, 70_000]] = np.nan, np.inf
    sums = measured(halves, broken, GRID)
    assert sums.nonfinite.tolist() == [2, 0] and np.isnan(sums.sumsq[0]) and np.isfinite(sums.sumsq[1])


def test_one_thread_makes_what_several_ask_for():
    kept, made, ready = Kept(), [], threading.Barrier(4)

    def make():
        made.append(threading.get_ident())
        return (np.zeros(4),)

    def ask():
        ready.wait()
        kept.get("panel", make)

    threads = [threading.Thread(target=ask) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(made) == 1


def test_what_could_not_be_made_is_made_by_the_next():
    kept = Kept()
    with pytest.raises(OSError, match="gone"):
        kept.get("panel", lambda: (_ for _ in ()).throw(OSError("gone")))
    assert kept.get("panel", lambda: (np.ones(1),))[0][0] == 1
