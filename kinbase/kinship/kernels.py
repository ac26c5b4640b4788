"""The CPU kernel of the kinship pass: raw bytes of one tile in, sums and products of deltas out.

One call takes the same elements of every checkpoint of a family as raw little-endian bytes, a row each,
decodes them block by block into deltas that stay in the first- and second-level caches, and adds their
sums and products, all in float64, to the caller's arrays. It holds no GIL.

Deltas of 16- and 8-bit floats, and of what is dequantised, are kept as float32: a difference is right to 2**-24 there, and
of the first exact unless the two weights are 2**13 apart in size. All others are kept as float64.

Only the order of additions is loose (`reassoc`, `contract`): without that no sum is vectorised. `nnan`
and `ninf` stay off, because a non-finite delta must come out as one. Numba cannot read annotations:
"""

# mypy: allow-untyped-defs, allow-untyped-calls
# ruff: noqa: ANN001, ANN201, ANN202

from typing import Any

import numpy as np
from numba import njit

from kinbase.kinship.layout import BF16, PADDING, ROUNDED

compiled: Any = njit(
    nogil=True, error_model="numpy", boundscheck=False, fastmath={"reassoc", "contract", "nsz"}
)

_INF32 = np.int32(0x7F800000)


@compiled
def decode32(raw8, raw16, start, n, code, out):
    """Decode n elements of 16- or 8-bit floats to float32, exactly.

    A float with fewer exponent bits is moved to float32's mantissa and scaled by a power of two, which
    is right for subnormals too; its all-ones exponent is put back by hand.
    """
    if code == 3:
        half = raw16[start : start + n]
        for k in range(n):
            out[k] = np.uint32(np.uint32(half[k]) << np.uint32(16)).view(np.float32)
    elif code == 2:
        half = raw16[start : start + n]
        for k in range(n):
            x = np.uint32(half[k])
            m = x & np.uint32(0x7FFF)
            v = np.uint32(m << np.uint32(13)).view(np.float32) * np.float32(2.0**112)
            bits = np.float32(v).view(np.uint32)
            if m >= np.uint32(0x7C00):
                bits = np.uint32(bits | np.uint32(0x7F800000))
            out[k] = np.uint32(bits | ((x & np.uint32(0x8000)) << np.uint32(16))).view(np.float32)
    elif code == 4:
        byte = raw8[start : start + n]
        for k in range(n):
            x = np.uint32(byte[k])
            m = x & np.uint32(0x7F)
            v = np.uint32(m << np.uint32(20)).view(np.float32) * np.float32(2.0**120)
            bits = np.float32(v).view(np.uint32)
            if m == np.uint32(0x7F):
                bits = np.uint32(bits | np.uint32(0x7FC00000))
            out[k] = np.uint32(bits | ((x & np.uint32(0x80)) << np.uint32(24))).view(np.float32)
    else:
        byte = raw8[start : start + n]
        for k in range(n):
            x = np.uint32(byte[k])
            m = x & np.uint32(0x7F)
            v = np.uint32(m << np.uint32(21)).view(np.float32) * np.float32(2.0**112)
            bits = np.float32(v).view(np.uint32)
            if m >= np.uint32(0x7C):
                bits = np.uint32(bits | np.uint32(0x7F800000))
            out[k] = np.uint32(bits | ((x & np.uint32(0x80)) << np.uint32(24))).view(np.float32)


@compiled
def _decode64(raw8, raw16, raw32, raw64, start, n, code, spare, out):
    """Decode n elements of any float dtype to float64, exactly."""
    if code == 0:
        wide = raw64[start : start + n]
        for k in range(n):
            out[k] = wide[k]
    elif code == 1 or code == ROUNDED:
        single = raw32[start : start + n]
        for k in range(n):
            out[k] = np.float64(single[k])
    else:
        decode32(raw8, raw16, start, n, code, spare)
        for k in range(n):
            out[k] = np.float64(spare[k])


@compiled
def _subtract32(weights, base, n, out):
    """out = weights - base in float32; returns the largest magnitude as its bits, and the zeros.

    Magnitudes are compared as integers: the order is the same, a NaN counts as larger than infinity, and
    the comparison is vectorised although NaNs are allowed.
    """
    peak = np.int32(0)
    zeros = np.int32(0)
    for k in range(n):
        delta = np.float32(weights[k] - base[k])
        bits = np.int32(np.float32(delta).view(np.int32) & np.int32(0x7FFFFFFF))
        peak = max(peak, bits)
        zeros += np.int32(bits == 0)
        out[k] = delta
    return peak, zeros


@compiled
def _subtract_bf16(raw16, base, start, n, out):
    """_subtract32 of n bfloat16 elements from `start` on, the commonest weights, without a pass to decode."""
    half = raw16[start : start + n]
    peak = np.int32(0)
    zeros = np.int32(0)
    for k in range(n):
        weight = np.uint32(np.uint32(half[k]) << np.uint32(16)).view(np.float32)
        delta = np.float32(weight - base[k])
        bits = np.int32(np.float32(delta).view(np.int32) & np.int32(0x7FFFFFFF))
        peak = max(peak, bits)
        zeros += np.int32(bits == 0)
        out[k] = delta
    return peak, zeros


@compiled
def _subtract64(base, n, out):
    """out -= base; returns the largest magnitude as its bits, the zeros and the non-finite deltas."""
    peak = np.int64(0)
    zeros = np.int64(0)
    broken = np.int64(0)
    for k in range(n):
        delta = np.float64(out[k] - base[k])
        bits = np.float64(delta).view(np.int64) & np.int64(0x7FFFFFFFFFFFFFFF)
        peak = max(peak, bits)
        zeros += np.int64(bits == 0)
        broken += np.int64(bits >= np.int64(0x7FF0000000000000))
        out[k] = delta
    return peak, zeros, broken


@compiled
def _square(a, b, c, d, e, f, g, h, n):
    """The 16 inner products of four rows with four others."""
    s00 = s01 = s02 = s03 = s10 = s11 = s12 = s13 = 0.0
    s20 = s21 = s22 = s23 = s30 = s31 = s32 = s33 = 0.0
    for k in range(n):
        x, y, z, w = np.float64(e[k]), np.float64(f[k]), np.float64(g[k]), np.float64(h[k])
        p = np.float64(a[k])
        s00 += p * x
        s01 += p * y
        s02 += p * z
        s03 += p * w
        p = np.float64(b[k])
        s10 += p * x
        s11 += p * y
        s12 += p * z
        s13 += p * w
        p = np.float64(c[k])
        s20 += p * x
        s21 += p * y
        s22 += p * z
        s23 += p * w
        p = np.float64(d[k])
        s30 += p * x
        s31 += p * y
        s32 += p * z
        s33 += p * w
    return (s00, s01, s02, s03), (s10, s11, s12, s13), (s20, s21, s22, s23), (s30, s31, s32, s33)


@compiled
def _triangle(a, b, c, d, n):
    """The 10 inner products among four rows, and their sums."""
    s00 = s01 = s02 = s03 = s11 = s12 = s13 = s22 = s23 = s33 = 0.0
    t0 = t1 = t2 = t3 = 0.0
    for k in range(n):
        x, y, z, w = np.float64(a[k]), np.float64(b[k]), np.float64(c[k]), np.float64(d[k])
        t0 += x
        t1 += y
        t2 += z
        t3 += w
        s00 += x * x
        s01 += x * y
        s02 += x * z
        s03 += x * w
        s11 += y * y
        s12 += y * z
        s13 += y * w
        s22 += z * z
        s23 += z * w
        s33 += w * w
    return (s01, s02, s03, s12, s13, s23), (s00, s11, s22, s33), (t0, t1, t2, t3)


@compiled
def _strip(a, e, f, g, h, n):
    """The inner products of one row with four others."""
    s0 = s1 = s2 = s3 = 0.0
    for k in range(n):
        p = np.float64(a[k])
        s0 += p * np.float64(e[k])
        s1 += p * np.float64(f[k])
        s2 += p * np.float64(g[k])
        s3 += p * np.float64(h[k])
    return s0, s1, s2, s3


@compiled
def _single(a, e, n):
    """The inner product of two rows."""
    total = 0.0
    for k in range(n):
        total += np.float64(a[k]) * np.float64(e[k])
    return total


@compiled
def _moments(a, n):
    """Sum and sum of squares of one row."""
    total = squares = 0.0
    for k in range(n):
        x = np.float64(a[k])
        total += x
        squares += x * x
    return total, squares


@compiled
def _gram(deltas, n, members, fresh, sums, sumsq, dot):
    """Add the products of one block: rows 0..fresh-1 of `deltas` with every later row, and the moments.

    `deltas` is float32 or float64, products and sums are float64: tiles of 4 x 4 keep their 16 sums in
    registers, what does not fill one is done in strips of 4 and singly.
    """
    rows = len(members)
    a = 0
    while a + 4 <= fresh:
        d0, d1, d2, d3 = deltas[a], deltas[a + 1], deltas[a + 2], deltas[a + 3]
        products, squares, totals = _triangle(d0, d1, d2, d3, n)
        for r in range(4):
            sums[members[a + r]] += totals[r]
            sumsq[members[a + r]] += squares[r]
        dot[members[a], members[a + 1]] += products[0]
        dot[members[a], members[a + 2]] += products[1]
        dot[members[a], members[a + 3]] += products[2]
        dot[members[a + 1], members[a + 2]] += products[3]
        dot[members[a + 1], members[a + 3]] += products[4]
        dot[members[a + 2], members[a + 3]] += products[5]
        b = a + 4
        while b + 4 <= rows:
            tile = _square(d0, d1, d2, d3, deltas[b], deltas[b + 1], deltas[b + 2], deltas[b + 3], n)
            for r in range(4):
                for c in range(4):
                    dot[members[a + r], members[b + c]] += tile[r][c]
            b += 4
        while b < rows:
            strip = _strip(deltas[b], d0, d1, d2, d3, n)
            for r in range(4):
                dot[members[a + r], members[b]] += strip[r]
            b += 1
        a += 4
    for i in range(a, rows):
        total, square = _moments(deltas[i], n)
        sums[members[i]] += total
        sumsq[members[i]] += square
    while a < fresh:
        b = a + 1
        while b + 4 <= rows:
            strip = _strip(deltas[a], deltas[b], deltas[b + 1], deltas[b + 2], deltas[b + 3], n)
            for c in range(4):
                dot[members[a], members[b + c]] += strip[c]
            b += 4
        while b < rows:
            dot[members[a], members[b]] += _single(deltas[a], deltas[b], n)
            b += 1
        a += 1


@compiled
def _add_narrow(raw8, raw16, raw32, at, stop, codes, members, fresh, block, found, stats, sums, sumsq, dot):
    """Add float32 deltas; returns where it stopped: at `stop`, or at a block with one that is not finite.

    Rows of `block`: the base, one spare, the deltas. `found` holds their largest magnitudes and zeros.
    """
    length = block.shape[1] - PADDING
    base, spare, deltas = block[0], block[1], block[2:]
    while at < stop:
        n = min(length - at % length, stop - at)
        if codes[0] == ROUNDED:
            single = raw32[0, at : at + n]
            for k in range(n):
                base[k] = single[k]
        else:
            decode32(raw8[0], raw16[0], at, n, codes[0], base)
        finite = True
        for a in range(len(members)):
            row = members[a] + 1
            if codes[row] == BF16:
                found[0, a], found[1, a] = _subtract_bf16(raw16[row], base, at, n, deltas[a])
            elif codes[row] == ROUNDED:
                found[0, a], found[1, a] = _subtract32(raw32[row, at : at + n], base, n, deltas[a])
            else:
                decode32(raw8[row], raw16[row], at, n, codes[row], spare)
                found[0, a], found[1, a] = _subtract32(spare, base, n, deltas[a])
            finite &= found[0, a] < _INF32
        if not finite:
            break
        for a in range(len(members)):
            i = members[a]
            stats[0, i] = max(stats[0, i], np.float64(np.int32(found[0, a]).view(np.float32)))
            stats[1, i] += found[1, a]
        _gram(deltas, n, members, fresh, sums, sumsq, dot)
        at += n
    return at


@compiled
def _add_wide(
    raw8, raw16, raw32, raw64, at, stop, codes, direct, members, fresh, spare, block, stats, sums, sumsq, dot
):
    """Add float64 deltas. Rows of `block`: the base, one of zeros, the deltas."""
    length = block.shape[1] - PADDING
    base, zero, deltas = block[0], block[1], block[2:]
    subtracted = False
    for i in members:
        subtracted |= not direct[i]
    while at < stop:
        n = min(length - at % length, stop - at)
        if subtracted:
            _decode64(raw8[0], raw16[0], raw32[0], raw64[0], at, n, codes[0], spare, base)
        for a in range(len(members)):
            i = members[a]
            row = i + 1
            _decode64(raw8[row], raw16[row], raw32[row], raw64[row], at, n, codes[row], spare, deltas[a])
            peak, zeros, broken = _subtract64(zero if direct[i] else base, n, deltas[a])
            stats[0, i] = max(stats[0, i], np.int64(peak).view(np.float64))
            stats[1, i] += zeros
            stats[2, i] += broken
        _gram(deltas, n, members, fresh, sums, sumsq, dot)
        at += n


@compiled
def add_tile(
    raw8, raw16, raw32, raw64, start, stop, codes, direct, members, fresh, narrow, block32, found, block64,
    stats, sums, sumsq, dot,
):  # fmt: skip
    """Add elements start..stop of the rows; see `cpu.CpuTiles.add`. `narrow`: all are of few bits or ROUNDED, none a delta."""
    length = block32.shape[1] - PADDING
    end = stop
    while start < stop:
        if narrow:
            start = _add_narrow(
                raw8,
                raw16,
                raw32,
                start,
                stop,
                codes,
                members,
                fresh,
                block32,
                found,
                stats,
                sums,
                sumsq,
                dot,
            )
            end = min(start + length - start % length, stop)
        if start < end:
            _add_wide(
                raw8, raw16, raw32, raw64, start, end, codes, direct, members, fresh, block32[1], block64,
                stats, sums, sumsq, dot,
            )  # fmt: skip
        start = end
