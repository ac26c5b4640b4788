"""What a model's weights say by themselves: power sums of each tensor, and a seeded linear sketch of all of them.

One kernel call takes the raw bytes of a tile of one checkpoint and does both. The sketch is a rotated block
CountSketch: a tensor is cut into cells of CELL elements, a cell is laid over BUCKETS sums from a random place on,
each element with a random sign, both by a hash of the tensor's name, the cell's number and SEED. So it is linear
(the sketch of a difference is the difference of the sketches), unbiased, and the same however the tensors are
ordered, sharded and read; models of other shapes share what they have in common.

Two sketches give the cosine of their vectors with standard deviation (1 - c^2) / sqrt(BUCKETS)
(Charikar, Chen, Farach-Colton 2002; Weinberger et al. 2009, arXiv 0902.2206, lemma 2). They cannot prove two models
equal: digests do.
"""

# mypy: allow-untyped-defs, allow-untyped-calls
# ruff: noqa: ANN001, ANN202

import threading
from collections import deque
from functools import cache
from hashlib import blake2b
from typing import Any

import numpy as np
from numba import njit
from numpy.typing import NDArray

from kinbase.checkpoint import DTYPE_BYTES, FLOAT_DTYPES
from kinbase.digest import LEAF
from kinbase.kernels import BF16, NARROW, compiled, decode32

BUCKETS = 1 << 14
CELL = 1 << 11
SEED = 0
SCHEME = f"block-countsketch-1 k={BUCKETS} cell={CELL} seed={SEED}"
"""Names algorithm and parameters: only sketches of one scheme compare."""

MOMENTS = ("sum", "sumsq", "sum3", "sum4", "ulpsq")
"""Sums over the elements x of a tensor: x, x^2, x^3, x^4, and the squared distance from x to the next number."""

PLACES = 1 << 13
"""Where in its random signs a cell may begin: two such choices a cell make equal signs rarer than equal places."""

GRAIN = 1.5 * 2.0**12
"""Adding it in float64 rounds to multiples of 2**-40, whose sums below 2**12 are exact, so in any order equal."""

GROUPS = 16
"""Parts of a sketch left out in turn to see how far its estimates spread."""

_FRACTION = np.array([4.0**-bits for bits in (52, 23, 10, 7, 3, 2)])
_SMALLEST = np.array([2.0**-power for power in (1022, 126, 14, 126, 6, 14)])

FloatArray = NDArray[np.float64]


# The kernel.


@compiled
def _mix(x):
    """The finaliser of SplitMix64 (Steele, Lea, Flood 2014): 64 bits, each depending on all."""
    x = np.uint64((x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9))
    x = np.uint64((x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB))
    return np.uint64(x ^ (x >> np.uint64(31)))


@compiled
def _cell_hash(key, cell):
    return _mix(np.uint64(key + np.uint64(cell + 1) * np.uint64(0x9E3779B97F4A7C15)))


@compiled
def _cell_bf16(half, left, right, out, n, centre):
    """Add n signed bfloat16 elements to `out`; returns sums of x, y, x y, y^2 and ulp^2 in float32, y = x^2 - centre.

    Sums of what varies about zero stay small, and so do their roundings.
    """
    total = squares = cubes = fourths = steps = np.float32(0)
    for k in range(n):
        bits = np.uint32(np.uint32(half[k]) << np.uint32(16))
        x = bits.view(np.float32)
        power = np.uint32(bits & np.uint32(0x7F800000)).view(np.float32)
        square = np.float32(x * x - centre)
        total += x
        squares += square
        cubes += np.float32(square * x)
        fourths += np.float32(square * square)
        steps += np.float32(power * power)
        sign = np.uint32(np.uint32(left[k] ^ right[k]) << np.uint32(16))
        out[k] += np.uint32(bits ^ sign).view(np.float32)
    return total, squares, cubes, fourths, steps


@compiled
def _cell_float32(values, left, right, out, n, centre, least):
    """_cell_bf16 of decoded elements of another dtype, of which `least` is the smallest normal number, as its bits."""
    total = squares = cubes = fourths = steps = np.float32(0)
    for k in range(n):
        x = values[k]
        bits = np.float32(x).view(np.uint32)
        power = np.uint32(max(np.uint32(bits & np.uint32(0x7F800000)), least)).view(np.float32)
        square = np.float32(x * x - centre)
        total += x
        squares += square
        cubes += np.float32(square * x)
        fourths += np.float32(square * square)
        steps += np.float32(power * power)
        sign = np.uint32(np.uint32(left[k] ^ right[k]) << np.uint32(16))
        out[k] += np.uint32(bits ^ sign).view(np.float32)
    return total, squares, cubes, fourths, steps


@compiled
def _signed(values, left, right, out, n):
    """Add n signed elements to `out`."""
    for k in range(n):
        sign = np.uint32(np.uint32(left[k] ^ right[k]) << np.uint32(16))
        out[k] += np.uint32(np.float32(values[k]).view(np.uint32) ^ sign).view(np.float32)


@compiled
def _moments32(found, n, centre):
    """What _cell_bf16 returned, as the sums of x, x^2, x^3, x^4 and ulp^2."""
    total, squares, cubes = np.float64(found[0]), np.float64(found[1]), np.float64(found[2])
    fourths = np.float64(found[3]) + 2 * centre * squares + centre * centre * n
    return total, squares + centre * n, cubes + centre * total, fourths, np.float64(found[4])


@compiled
def _moments64(values, n, least):
    """The sums of n elements, all in float64."""
    total = squares = cubes = fourths = steps = 0.0
    for k in range(n):
        x = np.float64(values[k])
        power = np.int64(np.float64(x).view(np.int64) & np.int64(0x7FF0000000000000)).view(np.float64)
        power = max(power, least)
        square = x * x
        total += x
        squares += square
        cubes += square * x
        fourths += square * square
        steps += power * power
    return total, squares, cubes, fourths, steps


@compiled
def _weigh(raw, start, n, code, width, key, signs, spare, window, placed, smallest, fraction, sums):
    """Add elements start..start + n of a tensor to its sums [5] and its window; `raw` holds their bytes.

    `window` is BUCKETS + CELL buckets, or, if `placed`, as many as the tensor has elements, left in their places.
    """
    least = np.float32(max(smallest, 2.0**-126)).view(np.uint32)
    half = (raw if width == 2 else raw[:0]).view(np.uint16)
    single = (raw if width == 4 else raw[:0]).view(np.float32)
    double = (raw if width == 8 else raw[:0]).view(np.float64)
    at = 0
    while at < n:
        element = start + at
        offset = element & (CELL - 1)
        m = min(CELL - offset, n - at)
        chance = _cell_hash(key, element >> 11)
        place = element if placed else np.int64(chance >> np.uint64(50)) + offset
        # Slices, whose indices cannot be negative: only so are the loops over them vectorised.
        out = window[place : place + m]
        left = signs[np.int64(chance & np.uint64(PLACES - 1)) + offset :]
        right = signs[np.int64((chance >> np.uint64(13)) & np.uint64(PLACES - 1)) + offset + PLACES + CELL :]
        if code >= NARROW:
            # The first cell of a leaf is added in float64: it tells about where the squares of the next ones lie.
            first = element & (LEAF - 1)
            centre = np.float32(sums[1] / max(first, 1))
            if code == BF16:
                found = _cell_bf16(half[at : at + m], left, right, out, m, centre)
            else:
                decode32(raw, half, at, m, code, spare)
                found = _cell_float32(spare, left, right, out, m, centre, least)
            # So is one whose fourth powers have no room in float32.
            if first > 0 and found[3] > np.float32(1e-20) and found[3] < np.float32(np.inf):
                wide = _moments32(found, m, np.float64(centre))
            else:
                decode32(raw, half, at, m, code, spare)
                wide = _moments64(spare, m, smallest)
        elif code == 1:
            wide = _moments64(single[at : at + m], m, smallest)
            _signed(single[at : at + m], left, right, out, m)
        else:
            wide = _moments64(double[at : at + m], m, smallest)
            _signed(double[at : at + m], left, right, out, m)
        for moment in range(4):
            sums[moment] += wide[moment]
        sums[4] += wide[4] * fraction
        at += m


# Without `reassoc`: the rounding below is one that it would take away.
_as_written: Any = njit(nogil=True, cache=True, error_model="numpy", boundscheck=False)


@_as_written
def _flush(window, total, fresh):
    """Move a window into BUCKETS float64 sums, which hold nothing yet if `fresh`."""
    for k in range(CELL):
        window[k] += window[BUCKETS + k]
        window[BUCKETS + k] = np.float32(0)
    if fresh:
        for k in range(BUCKETS):
            total[k] = (np.float64(window[k]) + GRAIN) - GRAIN
    else:
        for k in range(BUCKETS):
            total[k] += (np.float64(window[k]) + GRAIN) - GRAIN
    window[:BUCKETS] = np.float32(0)


@_as_written
def _place(values, key, total):
    """Lay signed elements of a whole tensor over BUCKETS float64 sums."""
    for start in range(0, len(values), CELL):
        place = np.int64(_cell_hash(key, start >> 11) >> np.uint64(50))
        for k in range(min(CELL, len(values) - start)):
            total[(place + k) & (BUCKETS - 1)] += (np.float64(values[start + k]) + GRAIN) - GRAIN


# Sketches as they are made.


@cache
def _signs() -> NDArray[np.uint16]:
    """Two rows of random signs, one behind the other: a cell's are the products of a stretch of each."""
    seeds = np.arange(2 * (PLACES + CELL), dtype=np.uint64) + np.uint64(_number(f"signs {SEED}"))
    x = seeds * np.uint64(0x9E3779B97F4A7C15)
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        x = (x ^ (x >> np.uint64(shift))) * np.uint64(factor)
    return ((x >> np.uint64(63)) << np.uint64(15)).astype(np.uint16)


def _number(text: str) -> int:
    return int.from_bytes(blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest(), "little")


def empty() -> FloatArray:
    """The sketch of nothing."""
    return np.zeros(BUCKETS)


_spent: deque[FloatArray] = deque(maxlen=256)
"""Arrays to be used again: getting new ones from the system takes longer than filling them."""


class TensorSketch:
    """The sketch of one tensor, while several threads read it.

    `label` is the name it goes by whatever a file calls it (see `alignment.labels`). A tensor of up to BUCKETS
    elements is kept as it is, signed; of a larger one whole leaves are added to BUCKETS sums.
    """

    def __init__(self, label: str, numel: int) -> None:
        self._key = np.uint64(_number(f"{SEED} {label}"))
        self._small = numel <= BUCKETS
        self._values: NDArray[Any] = np.zeros(numel if self._small else 0, np.float32)
        self._lock = threading.Lock()

    def weigh(
        self, raw: memoryview, start: int, dtype: str, buffers: "Buffers", slot: int, sums: FloatArray
    ) -> None:
        """Take elements from `start` on, `raw` holding their bytes, of which `slot` says whose they are.

        Added to `sums` [5]: MOMENTS. What a leaf holds stays in the buffers until `flush`. 16- and 8-bit
        elements are added in float32 within a cell, others in float64; a cell's sums always in float64.
        """
        code = FLOAT_DTYPES.index(dtype)
        window = self._values if self._small else buffers.window(slot)
        data = np.frombuffer(raw, np.uint8)
        width = DTYPE_BYTES[dtype]
        _weigh(
            data, start, len(data) // width, code, width, self._key, _signs(), buffers.spare, window, self._small,
            _SMALLEST[code], _FRACTION[code], sums,
        )  # fmt: skip

    def flush(self, buffers: "Buffers", slot: int) -> None:
        """Add what the buffers hold of a leaf that ends."""
        if self._small:
            return
        with self._lock:
            fresh = not len(self._values)
            if fresh:
                self._values = _spent.pop() if _spent else np.empty(BUCKETS)
            _flush(buffers.window(slot), self._values, fresh)

    def pour(self, total: FloatArray) -> None:
        """Add the tensor to the sketch of its model [BUCKETS], once."""
        if self._small:
            _place(self._values, self._key, total)
        elif len(self._values):
            total += self._values
            _spent.append(self._values)
            self._values = self._values[:0]


class Buffers:
    """One worker's windows, a checkpoint each."""

    def __init__(self) -> None:
        self.spare = np.empty(CELL, np.float32)
        self._windows: dict[int, NDArray[np.float32]] = {}

    def window(self, slot: int) -> NDArray[np.float32]:
        if slot not in self._windows:
            self._windows[slot] = np.zeros(BUCKETS + CELL, np.float32)
        return self._windows[slot]


# Sketches as they are compared.


def similarity(
    a: NDArray[np.float32], b: NDArray[np.float32], base: NDArray[np.float32] | None = None
) -> tuple[float, float]:
    """Cosine of the vectors behind two sketches [BUCKETS], less `base` if given, and its standard error.

    NaN where one of them is zero. See `compare`.
    """
    one, other = (np.asarray(x, np.float32) if base is None else x - base for x in (a, b))
    cosine, stderr = compare(one, other[None])[:2]
    return float(cosine[0]), float(stderr[0])


def compare(
    one: NDArray[np.float32], many: NDArray[np.float32]
) -> tuple[FloatArray, FloatArray, FloatArray, FloatArray, FloatArray]:
    """Cosine of `one` [BUCKETS] with each of `many` [M, BUCKETS], its standard error, and <x, y>, |x|^2, |y|^2: [M] each.

    The error is (1 - c^2) / sqrt(BUCKETS), or the jackknife over GROUPS parts of the sketch where that is
    larger: so it is for a change of few elements, and 1 where one part holds all there is.
    """
    x = one.reshape(1, GROUPS, -1)
    y = many.reshape(len(many), GROUPS, -1)
    dot = np.einsum("mgk,mgk->mg", np.broadcast_to(x, y.shape), y, dtype=np.float64)
    xx = np.broadcast_to(np.einsum("mgk,mgk->mg", x, x, dtype=np.float64), dot.shape)
    yy = np.einsum("mgk,mgk->mg", y, y, dtype=np.float64)
    sums = [part.sum(1) for part in (dot, xx, yy)]
    with np.errstate(divide="ignore", invalid="ignore"):
        cosine = np.clip(sums[0] / np.sqrt(sums[1] * sums[2]), -1, 1)
        rest = [total[:, None] - part for total, part in zip(sums, (dot, xx, yy), strict=True)]
        without = np.nan_to_num(rest[0] / np.sqrt(rest[1] * rest[2]), posinf=0.0, neginf=0.0)
    spread = np.sqrt((GROUPS - 1) * without.var(1))
    stderr = np.minimum(np.maximum((1 - cosine**2) / np.sqrt(BUCKETS), spread), 1.0)
    return cosine, np.where(np.isnan(cosine), np.nan, stderr), *sums


def folded(delta: NDArray[np.float32], size: int) -> NDArray[np.float32] | None:
    """A sketch [BUCKETS] as one of `size` buckets, of length 1; None for a zero one."""
    coarse = delta.reshape(-1, size).sum(0, dtype=np.float64)
    length = np.linalg.norm(coarse)
    return (coarse / length).astype(np.float32) if length > 0 else None
