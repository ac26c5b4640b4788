"""What a model's weights say by themselves: power sums of each tensor, and a seeded linear sketch of all of them.

One kernel call takes the raw bytes of a tile of one checkpoint and does both. The sketch is a rotated block
CountSketch: a tensor is cut into cells of CELL elements, a cell is laid over BUCKETS sums from a random place on,
each element with a random sign, both by a hash of the tensor's name, the cell's number and SEED. In a tensor's first
BUCKETS elements each has a sum to itself, so that a short vector keeps its length; after them two neighbours share
one. So it is linear (the sketch of a difference is the difference of the sketches), unbiased, and the same however
the tensors are ordered, sharded and read; models of other shapes share what they have in common.

Two sketches give the cosine of their vectors with standard deviation (1 - c^2) / sqrt(BUCKETS)
(Charikar, Chen, Farach-Colton 2002; Weinberger et al. 2009, arXiv 0902.2206, lemma 2). That neighbours always meet raises
the variance by the share BUCKETS / 2n, of n elements that changed alike. They cannot prove two models equal: digests do.
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
from kinbase.checkpoint.digest import LEAF
from kinbase.kinship.kernels import BF16, NARROW, compiled, decode32

BUCKETS = 1 << 14
CELL = 1 << 11
SEED = 0
SCHEME = f"block-countsketch-3 k={BUCKETS} cell={CELL} seed={SEED}"
"""Names algorithm and parameters: only sketches of one scheme compare."""

MOMENTS = ("sum", "sumsq", "ulpsq")
"""Sums over the elements x of a tensor: x, x^2, and the squared distance from x to the next number of its dtype.

The third, of 16- and 8-bit dtypes, is counted in the first cell of each leaf; the others have their part in
proportion to their squares, to which it stands as 4^-bits to 1..4.
"""

ROOM = 1e-24
"""Mean squares of a cell between this and its inverse leave those of its elements room in float32."""

PAIRS = CELL // 2
"""Sums that a later cell is laid over. Neighbours share one: two bfloat16 fill a word, and what the pass waits for are stores."""

STARTS = 1 << 6
"""Stretches of a row of random signs that a cell may take, each 16 words after the last: whole cache lines."""

ROW = np.uint64(16 * STARTS + PAIRS)
"""Words of a row of random signs."""

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


# Indices are unsigned: a negative one would have to be thought of, and then no loop is vectorised.


@compiled
def _cell_bf16(words, at, signs, left, right, flip, window, low, n, centre):
    """Add n words of two bfloat16 elements x, y; returns the sums of them and of x^2 + y^2 - centre in float32.

    Sums of what varies about zero stay small, and so do their roundings.
    """
    total = squares = np.float32(0)
    for k in range(n):
        word = words[at + k]
        signed = np.uint32(word ^ signs[left + k] ^ signs[right + k] ^ flip)
        even = np.uint32(signed << np.uint32(16)).view(np.float32)
        odd = np.uint32(signed & np.uint32(0xFFFF0000)).view(np.float32)
        total += np.uint32(word << np.uint32(16)).view(np.float32)
        total += np.uint32(word & np.uint32(0xFFFF0000)).view(np.float32)
        squares += np.float32(even * even + np.float32(odd * odd - centre))
        window[low + k] += even + odd
    return total, squares


@compiled
def _signed(value, sign):
    return np.uint32(np.float32(value).view(np.uint32) ^ np.uint32(sign)).view(np.float32)


@compiled
def _cell_float32(values, signs, left, right, flip, window, low, n, centre):
    """_cell_bf16 of n pairs of elements of another dtype, as float32."""
    total = squares = np.float32(0)
    for k in range(n):
        even, odd = values[2 * k], values[2 * k + np.uint64(1)]
        total += even + odd
        squares += np.float32(even * even + np.float32(odd * odd - centre))
        sign = np.uint32(signs[left + k] ^ signs[right + k] ^ flip)
        window[low + k] += _signed(even, sign << np.uint32(16)) + _signed(odd, sign & np.uint32(0x80000000))
    return total, squares


@compiled
def _cell_apart(values, signs, left, right, flip, window, low, n):
    """Add n pairs of float32 elements to sums of their own: the even ones, then PAIRS further the odd ones."""
    for k in range(n):
        sign = np.uint32(signs[left + k] ^ signs[right + k] ^ flip)
        window[low + k] += _signed(values[2 * k], sign << np.uint32(16))
        odd = values[2 * k + np.uint64(1)]
        window[low + np.uint64(PAIRS) + k] += _signed(odd, sign & np.uint32(0x80000000))


@compiled
def _moments64(values, n, least, fraction):
    """MOMENTS of n elements, in float64: `fraction` is the squared distance to the next number above 1."""
    total = squares = steps = 0.0
    for k in range(n):
        x = np.float64(values[k])
        power = np.int64(np.float64(x).view(np.int64) & np.int64(0x7FF0000000000000)).view(np.float64)
        power = max(power, least)
        total += x
        squares += x * x
        steps += power * power
    return total, squares, steps * fraction


@compiled
def _weigh(raw, start, n, code, width, key, signs, spare, window, placed, smallest, fraction, sums):
    """Add elements start..start + n of a tensor to its sums [3] and its window; `raw` holds their bytes.

    `window` is BUCKETS + CELL sums, or, if `placed`, CELL for each cell of the tensor, of which none is a later one.
    """
    half = (raw if width == 2 else raw[:0]).view(np.uint16)
    words = half[: len(half) // 2 * 2].view(np.uint32)
    single = (raw if width == 4 else raw[:0]).view(np.float32)
    double = (raw if width == 8 else raw[:0]).view(np.float64)
    at = 0
    while at < n:
        element = start + at
        offset = element & (CELL - 1)
        m = min(CELL - offset, n - at)
        chance = np.uint64(_cell_hash(key, element >> 11))
        left = (chance & np.uint64(STARTS - 1)) << np.uint64(4)
        right = ROW + (((chance >> np.uint64(6)) & np.uint64(STARTS - 1)) << np.uint64(4))
        flip = np.uint32((chance << np.uint64(3)) & np.uint64(0x8000))
        flip = np.uint32(flip | np.uint32((chance << np.uint64(18)) & np.uint64(0x80000000)))
        low = np.uint64(element - offset) if placed else chance >> np.uint64(50)
        skip, lead, odd = np.uint64(offset >> 1), offset & 1, (offset | m) & 1
        left, right, low, pairs = left + skip, right + skip, low + skip, np.uint64((lead + m + 1) >> 1)
        # The first cell of a leaf tells about where the squares of the next ones lie, and how far the next number
        # is in proportion to them.
        first = element & (LEAF - 1)
        centre = np.float32(2 * sums[1] / max(first, 1))  # of the squares of two
        apart = element < BUCKETS
        plain = code == BF16 and not odd and not apart
        if plain:
            found = _cell_bf16(
                words, np.uint64(at >> 1), signs, left, right, flip, window, low, pairs, centre
            )
        else:
            spare[0] = spare[lead + m] = np.float32(0)  # beside a pair that is cut
            if code >= NARROW:
                decode32(raw, half, at, m, code, spare[lead:])
            elif code == 1:
                spare[lead : lead + m] = single[at : at + m]
            else:
                for k in range(m):
                    spare[lead + k] = np.float32(double[at + k])
            if apart:
                _cell_apart(spare, signs, left, right, flip, window, low, pairs)
                found = (np.float32(0), np.float32(0))
            else:
                found = _cell_float32(spare, signs, left, right, flip, window, low, pairs, centre)
        total, squares = np.float64(found[0]), np.float64(found[1]) + np.float64(centre) * pairs
        steps = squares * (sums[2] / sums[1])
        # That one is added in float64. So are a tensor's first cells, wider floats, and what has no room in float32.
        if code == 0:
            total, squares, steps = _moments64(double[at : at + m], m, smallest, fraction)
        elif code == 1:
            total, squares, steps = _moments64(single[at : at + m], m, smallest, fraction)
        elif odd or apart or first < CELL or not (sums[1] > 0 and ROOM < squares / m < 1 / ROOM):
            if plain:
                decode32(raw, half, at, m, code, spare)
            total, squares, steps = _moments64(spare[lead:], m, smallest, fraction)
        sums[0] += total
        sums[1] += squares
        sums[2] += steps
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
    """Lay the signed elements of a whole tensor, its cells one after the other, over BUCKETS float64 sums."""
    for start in range(0, len(values), CELL):
        place = np.int64(_cell_hash(key, start >> 11) >> np.uint64(50))
        for k in range(CELL):
            total[(place + k) & (BUCKETS - 1)] += (np.float64(values[start + k]) + GRAIN) - GRAIN


# Sketches as they are made.


@cache
def _signs() -> NDArray[np.uint32]:
    """Two rows of ROW words, in each the random signs of two elements: a cell's are the products of a stretch of each."""
    seeds = np.arange(4 * ROW, dtype=np.uint64) + np.uint64(_number(f"signs {SEED}"))
    x = seeds * np.uint64(0x9E3779B97F4A7C15)
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        x = (x ^ (x >> np.uint64(shift))) * np.uint64(factor)
    bits = ((x >> np.uint64(63)) << np.uint64(15)).astype(np.uint16)
    words = bits.view(np.uint32)
    room = np.empty(len(words) + 16, np.uint32)  # of which to take what begins with a cache line
    aligned = room[-room.ctypes.data % 64 // 4 :][: len(words)]
    aligned[:] = words
    return aligned


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
    elements is kept as it is, signed; of a larger one whole spans are added to BUCKETS sums.
    """

    def __init__(self, label: str, numel: int) -> None:
        self._key = np.uint64(_number(f"{SEED} {label}"))
        self._small = numel <= BUCKETS
        self._values: NDArray[Any] = np.zeros(-(-numel // CELL) * CELL if self._small else 0, np.float32)
        self._lock = threading.Lock()

    def weigh(
        self, raw: memoryview, start: int, dtype: str, buffers: "Buffers", slot: int, sums: FloatArray
    ) -> None:
        """Take elements from `start` on, `raw` holding their bytes, of which `slot` says whose they are.

        Added to `sums` [3]: MOMENTS. What a span holds stays in the buffers until `flush`. 16- and 8-bit
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
        """Add what the buffers hold of a span that ends."""
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
        self.spare = np.empty(CELL + 1, np.float32)
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
