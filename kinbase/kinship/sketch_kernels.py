"""The kernels of a sketch and of power sums: source that `kinbase.kinship.native` compiles, and nothing imports otherwise.

`kinbase.kinship.sketch` says what they compute. Numba cannot read annotations:
"""

# mypy: allow-untyped-defs, allow-untyped-calls
# ruff: noqa: ANN001, ANN201, ANN202

from typing import Any

import numpy as np
from numba import njit

from kinbase.checkpoint.digest import LEAF
from kinbase.kinship.kernels import compiled, decode32
from kinbase.kinship.layout import BF16, BUCKETS, CELL, GRAIN, NARROW, PAIRS, ROOM, ROUNDED, ROW, STARTS


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
def weigh(
    raw8, raw16, words, single, double, start, n, code, key, signs, spare, window, placed, smallest, fraction, sums
):  # fmt: skip
    """Add elements start..start + n of a tensor to its sums [3] and its window; `raw8` to `double` hold their bytes.

    `window` is BUCKETS + CELL sums, or, if `placed`, CELL for each cell of the tensor, of which none is a later one.
    """
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
            where = np.uint64(at >> 1)
            found = _cell_bf16(words, where, signs, left, right, flip, window, low, pairs, centre)
        else:
            spare[0] = spare[lead + m] = np.float32(0)  # beside a pair that is cut
            if code == 1 or code == ROUNDED:
                into, values = spare[lead : lead + m], single[at : at + m]
                for k in range(m):
                    into[k] = values[k]
            elif code >= NARROW:
                decode32(raw8, raw16, at, m, code, spare[lead:])
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
                decode32(raw8, raw16, at, m, code, spare)
            total, squares, steps = _moments64(spare[lead:], m, smallest, fraction)
        sums[0] += total
        sums[1] += squares
        sums[2] += steps
        at += m


# Without `reassoc`: the rounding below is one that it would take away.
_as_written: Any = njit(nogil=True, cache=True, error_model="numpy", boundscheck=False)


@_as_written
def flush(window, total, fresh):
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
def place(values, key, total):
    """Lay the signed elements of a whole tensor, its cells one after the other, over BUCKETS float64 sums."""
    for start in range(0, len(values), CELL):
        place = np.int64(_cell_hash(key, start >> 11) >> np.uint64(50))
        for k in range(CELL):
            total[(place + k) & (BUCKETS - 1)] += (np.float64(values[start + k]) + GRAIN) - GRAIN
