"""Compiled loops from codes to weights: stored bytes in, float32 out, in the order of the file.

Each writes `out` from its first element on and holds no GIL. Products and sums are in float32, as in the formats'
own libraries, so a value differs from the exact one by at most a few units of 2**-24 of its terms.
"""

# mypy: allow-untyped-defs, allow-untyped-calls
# ruff: noqa: ANN001, ANN201, ANN202

from typing import Any

import numpy as np
from numba import njit

compiled: Any = njit(nogil=True, cache=True, error_model="numpy", boundscheck=False)

INTEGERS, E4M3, TABLE = 1, 2, 0
"""What the bytes of `from_table` are."""

# A plain 15 is 64 bits wide, and so would be all that is computed with it.
_LOW = np.int32(15)
_FOUR = np.int32(4)


# Indices of the inner loops are unsigned: a negative one would have to be thought of, and then nothing is vectorised. Nor
# are slices taken there, which are counted one by one.


@compiled
def from_table(
    codes, kind, table, scales, first, rows, columns, row_block, column_block, grid_rows, grid_columns, out
):
    """Bytes as indices of `table` [256], times the scale of their block; of INTEGERS and E4M3 by arithmetic, which is faster.

    `codes` are those of elements `first` on of a tensor [L, rows, columns]; `scales` [L or 1, grid_rows,
    grid_columns] are flat.
    """
    n = len(out)
    many = len(scales) > grid_rows * grid_columns
    at = 0
    while at < n:
        row, column = (first + at) // columns, (first + at) % columns
        end = min(at + columns - column, n)
        base = (row % rows) // row_block * grid_columns
        if many:
            base += row // rows * grid_rows * grid_columns
        while at < end:
            block = column // column_block
            stop = min(at + (block + 1) * column_block - column, end)
            _from_table(codes, kind, table, scales[base + block], np.uint64(at), np.uint64(stop), out)
            column += stop - at
            at = stop


@compiled
def _from_table(codes, kind, table, scale, start, stop, out):
    """`from_table` of elements that have one scale."""
    if kind == INTEGERS:
        for k in range(start, stop):
            out[k] = np.float32(np.int8(codes[k])) * scale
    elif kind == E4M3:
        # The bits of a float32 over 2**120, which is right for subnormals too; all ones are NaN.
        for k in range(start, stop):
            code = np.uint32(codes[k])
            size = np.uint32(code & np.uint32(0x7F))
            value = np.uint32(size << np.uint32(20)).view(np.float32) * np.float32(2.0**120)
            bits = np.float32(value).view(np.uint32)
            if size == np.uint32(0x7F):
                bits = np.uint32(bits | np.uint32(0x7FC00000))
            bits = np.uint32(bits | ((code & np.uint32(0x80)) << np.uint32(24)))
            out[k] = bits.view(np.float32) * scale
    else:
        for k in range(start, stop):
            out[k] = table[codes[k]] * scale


@compiled
def from_pairs(codes, pairs, scales, block, out):
    """Bytes as two indices of a table of 16, given as the `pairs` [256, 2] of values, times their block's scale.

    `out` begins with a block and is even; `block` is even.
    """
    n = np.uint64(len(out))
    whole, two = out.view(np.int64), pairs.reshape(-1).view(np.int64)  # both values of a byte are one load
    step = np.uint64(block)
    for b in range(len(scales)):
        start = np.uint64(b) * step
        stop = min(start + step, n)
        for k in range(start >> np.uint64(1), stop >> np.uint64(1)):
            whole[k] = two[codes[k]]
        scale = scales[b]
        for k in range(start, stop):
            out[k] *= scale


@compiled
def from_bits(codes, bits, scales, offsets, group, out):
    """Codes of so many bits, the first in the lowest: scale * code + offset of their group, which `out` begins with.

    `group` is a multiple of 8.
    """
    n, size = np.uint64(len(out)), np.uint64(group)
    for g in range(len(scales)):
        start = np.uint64(g) * size
        stop = min(start + size, n)
        if bits == 4:
            _nibbles(codes, scales[g], offsets[g], start >> np.uint64(1), stop >> np.uint64(1), out)
        elif bits == 8:
            _bytes(codes, scales[g], offsets[g], start, stop, out)
        else:
            whole = stop - (stop - start) % np.uint64(8)
            _eights(codes, bits, scales[g], offsets[g], start >> np.uint64(3), whole >> np.uint64(3), out)
            _bits(codes, bits, scales[g], offsets[g], whole, stop, out)


@compiled
def _nibbles(codes, scale, offset, start, stop, out):
    for k in range(start, stop):
        byte = np.int32(codes[k])
        out[np.uint64(2) * k] = np.float32(np.int32(byte & _LOW)) * scale + offset
        out[np.uint64(2) * k + np.uint64(1)] = np.float32(np.int32(byte >> _FOUR)) * scale + offset


@compiled
def _bytes(codes, scale, offset, start, stop, out):
    for k in range(start, stop):
        out[k] = np.float32(np.int32(codes[k])) * scale + offset


@compiled
def _eights(codes, bits, scale, offset, start, stop, out):
    """Eight codes at a time, which are whole bytes."""
    step = np.uint64(bits)
    mask = (np.uint64(1) << step) - np.uint64(1)
    for k in range(start, stop):
        word = np.uint64(0)
        for j in range(step):
            word |= np.uint64(codes[k * step + j]) << (np.uint64(8) * j)
        for j in range(np.uint64(8)):
            code = np.int32((word >> (step * j)) & mask)
            out[np.uint64(8) * k + j] = np.float32(code) * scale + offset


@compiled
def _bits(codes, bits, scale, offset, start, stop, out):
    """Codes one by one: the rest of a group that is cut."""
    step = np.uint64(bits)
    mask = (np.uint64(1) << step) - np.uint64(1)
    for k in range(start, stop):
        at = k * step
        word = np.uint64(codes[at >> np.uint64(3)])
        if (at & np.uint64(7)) + step > np.uint64(8):
            word |= np.uint64(codes[(at >> np.uint64(3)) + np.uint64(1)]) << np.uint64(8)
        code = np.int32((word >> (at & np.uint64(7))) & mask)
        out[k] = np.float32(code) * scale + offset


@compiled
def from_groups(codes, bits, scales, offsets, groups, column, out):
    """As from_bits, of rows whose columns belong to any `groups` [columns]; `scales`, `offsets` [R, G].

    `out` begins at `column` of the first row, a whole byte of `codes` [R, bytes].
    """
    mask = np.int32((1 << bits) - 1)
    at, row = 0, 0
    while at < len(out):
        stop = min(len(groups), column + len(out) - at)
        shift = np.uint64(at - column)  # below zero it wraps, and so does the sum
        for k in range(np.uint64(column), np.uint64(stop)):
            place = k * np.uint64(bits)
            code = (np.int32(codes[row, place >> np.uint64(3)]) >> np.int32(place & np.uint64(7))) & mask
            g = np.uint64(groups[k])
            out[k + shift] = np.float32(np.int32(code)) * scales[row, g] + offsets[row, g]
        at += stop - column
        row, column = row + 1, 0


@compiled
def turned(words, out):
    """A matrix of words [R, C] as [C, R], in squares that stay in a near cache."""
    rows, columns, side = np.uint64(words.shape[0]), np.uint64(words.shape[1]), np.uint64(32)
    for top in range(np.uint64(0), rows, side):
        bottom = min(top + side, rows)
        for start in range(np.uint64(0), columns, side):
            for c in range(start, min(start + side, columns)):
                for r in range(top, bottom):
                    out[c, r] = words[r, c]


@compiled
def nibbles_across(words, shifts, codes):
    """Codes of 4 bits in words [R / 8, columns] that hold eight rows each, as bytes [R, columns / 2], low one first."""
    mask, two = np.uint32(15), np.uint64(2)
    for place in range(np.uint64(words.shape[0])):
        for j in range(np.uint64(8)):
            shift, row = shifts[j], np.uint64(8) * place + j
            for k in range(np.uint64(words.shape[1] // 2)):
                low = (words[place, two * k] >> shift) & mask
                high = (words[place, two * k + np.uint64(1)] >> shift) & mask
                codes[row, k] = np.uint8(low | high << np.uint32(4))


@compiled
def from_transposed_pairs(codes, pairs, scales, rows, columns, row, column, out):
    """A matrix [columns, rows] from one that is stored [rows, columns] in nibbles, low one first, blocks of 32.

    `row`, `column` are of the first element wanted: `row` counts the stored columns.
    """
    at = 0
    blocks = columns // 32
    while at < len(out):
        stop = min(rows, column + len(out) - at)
        for k in range(column, stop):
            byte = codes[k * (columns // 2) + row // 2]
            out[at + k - column] = pairs[byte, row & 1] * scales[k * blocks + row // 32]
        at += stop - column
        row, column = row + 1, 0


# Blocks of ggml (ggml-common.h), `blocks` [B, bytes].

_TWO, _SIXTEEN, _THIRTY_TWO = np.uint64(2), np.uint64(16), np.uint64(32)
_BLOCK = np.uint64(256)


@compiled
def _half(blocks, b, at):
    """The half float at byte `at` of a block, exactly: moved to float32's mantissa and scaled by a power of two."""
    bits = np.uint32(
        np.uint32(blocks[b, at]) | np.uint32(np.uint32(blocks[b, at + np.uint64(1)]) << np.uint32(8))
    )
    size = np.uint32(bits & np.uint32(0x7FFF))
    value = np.uint32(size << np.uint32(13)).view(np.float32) * np.float32(2.0**112)
    found = np.float32(value).view(np.uint32)
    if size >= np.uint32(0x7C00):
        found = np.uint32(found | np.uint32(0x7F800000))
    return np.uint32(found | ((bits & np.uint32(0x8000)) << np.uint32(16))).view(np.float32)


@compiled
def q8_0(blocks, out):
    """32 signed bytes after the scale."""
    count = (
        np.uint64(blocks.shape[1]) - _TWO
    )  # 32; a loop of a constant length is unrolled, and not vectorised
    for b in range(np.uint64(len(blocks))):
        scale, at = _half(blocks, b, np.uint64(0)), _THIRTY_TWO * b
        for k in range(count):
            out[at + k] = np.float32(np.int8(blocks[b, _TWO + k])) * scale


@compiled
def q4(blocks, zero, out):
    """16 bytes after the scale and, if `zero` is 0, a minimum; the low nibbles before the high ones: d * code + m.

    Without a minimum m is -d * zero.
    """
    first = np.uint64(2 if zero else 4)
    count = np.uint64(blocks.shape[1]) - first  # 16, as in q8_0
    for b in range(np.uint64(len(blocks))):
        scale, at = _half(blocks, b, np.uint64(0)), _THIRTY_TWO * b
        offset = scale * np.float32(-zero) if zero else _half(blocks, b, _TWO)
        for k in range(count):
            byte = np.int32(blocks[b, first + k])
            out[at + k] = np.float32(np.int32(byte & _LOW)) * scale + offset
            out[at + _SIXTEEN + k] = np.float32(np.int32(byte >> _FOUR)) * scale + offset


@compiled
def q5(blocks, zero, out):
    """As q4, with the fifth bits of the 32 codes in the four bytes before the nibbles."""
    first = np.uint64(2 if zero else 4)
    for b in range(np.uint64(len(blocks))):
        scale, at = _half(blocks, b, np.uint64(0)), _THIRTY_TWO * b
        offset = scale * np.float32(-zero) if zero else _half(blocks, b, _TWO)
        high = np.uint32(0)
        for k in range(np.uint64(4)):
            high |= np.uint32(blocks[b, first + k]) << np.uint32(np.uint64(8) * k)
        for k in range(_SIXTEEN):
            byte = np.uint32(blocks[b, first + np.uint64(4) + k])
            fifth = (high >> np.uint32(k)) & np.uint32(1)
            last = (high >> np.uint32(k + _SIXTEEN)) & np.uint32(1)
            low = np.int32((byte & np.uint32(15)) | (fifth << np.uint32(4)))
            up = np.int32((byte >> np.uint32(4)) | (last << np.uint32(4)))
            out[at + k] = np.float32(low) * scale + offset
            out[at + _SIXTEEN + k] = np.float32(up) * scale + offset


@compiled
def _six_bits(blocks, b, j):
    """Scale and minimum `j` of a Q4_K or Q5_K block, in 6 bits each in bytes 4 to 16: four whole, four in parts."""
    four, nibble, pair = np.uint64(4), np.uint8(15), np.uint8(63)
    if j < four:
        return np.float32(blocks[b, four + j] & pair), np.float32(blocks[b, np.uint64(8) + j] & pair)
    last = blocks[b, np.uint64(8) + j]
    low, high = (
        (blocks[b, j] >> np.uint8(2)) & np.uint8(48),
        (blocks[b, four + j] >> np.uint8(2)) & np.uint8(48),
    )
    return np.float32((last & nibble) | low), np.float32((last >> np.uint8(4)) | high)


@compiled
def q45_k(blocks, fifth, out):
    """256 codes of 4 bits, or of 5 with `fifth`, less a minimum, in eight parts of a scale and a minimum each."""
    head = np.uint64(48 if fifth else 16)
    for b in range(np.uint64(len(blocks))):
        d, m = _half(blocks, b, np.uint64(0)), _half(blocks, b, _TWO)
        for pair in range(np.uint64(4)):
            one, two = _TWO * pair, _TWO * pair + np.uint64(1)
            (d1, m1), (d2, m2) = _six_bits(blocks, b, one), _six_bits(blocks, b, two)
            d1, d2, m1, m2 = d1 * d, d2 * d, m1 * m, m2 * m
            at, codes = _BLOCK * b + np.uint64(64) * pair, head + _THIRTY_TWO * pair
            if fifth:
                shift = np.int32(one)
                for k in range(_THIRTY_TWO):
                    byte = np.int32(blocks[b, codes + k])
                    high = np.int32(np.int32(blocks[b, _SIXTEEN + k]) >> shift)
                    low = np.int32((byte & _LOW) | ((high & np.int32(1)) << _FOUR))
                    up = np.int32((byte >> _FOUR) | ((high & np.int32(2)) << np.int32(3)))
                    out[at + k] = np.float32(low) * d1 - m1
                    out[at + _THIRTY_TWO + k] = np.float32(up) * d2 - m2
            else:
                for k in range(_THIRTY_TWO):
                    byte = np.int32(blocks[b, codes + k])
                    out[at + k] = np.float32(np.int32(byte & _LOW)) * d1 - m1
                    out[at + _THIRTY_TWO + k] = np.float32(np.int32(byte >> _FOUR)) * d2 - m2


@compiled
def q6_k(blocks, out):
    """256 codes of 6 bits less 32: 128 bytes of low nibbles, 64 of high pairs, sixteen scales, and what these are times."""
    for b in range(np.uint64(len(blocks))):
        d = _half(blocks, b, np.uint64(208))
        for quarter in range(np.uint64(4)):  # 16 codes in each of four rows have one scale
            half, side = quarter >> np.uint64(1), quarter & np.uint64(1)
            skip = _SIXTEEN * side
            low = np.uint64(64) * half + skip
            high = np.uint64(128) + _THIRTY_TWO * half + skip
            at = _BLOCK * b + np.uint64(128) * half + skip
            sub = np.uint64(192) + np.uint64(8) * half + side
            s0, s2 = np.float32(np.int8(blocks[b, sub])) * d, np.float32(np.int8(blocks[b, sub + _TWO])) * d
            s4 = np.float32(np.int8(blocks[b, sub + np.uint64(4)])) * d
            s6 = np.float32(np.int8(blocks[b, sub + np.uint64(6)])) * d
            for k in range(_SIXTEEN):
                h = np.int32(blocks[b, high + k])
                one, two = np.int32(blocks[b, low + k]), np.int32(blocks[b, low + _THIRTY_TWO + k])
                out[at + k] = np.float32(_six(one & _LOW, h)) * s0
                out[at + _THIRTY_TWO + k] = np.float32(_six(two & _LOW, h >> np.int32(2))) * s2
                out[at + np.uint64(64) + k] = np.float32(_six(one >> _FOUR, h >> np.int32(4))) * s4
                out[at + np.uint64(96) + k] = np.float32(_six(two >> _FOUR, h >> np.int32(6))) * s6


@compiled
def _six(low, high):
    return np.int32(np.int32(low | ((high & np.int32(3)) << _FOUR)) - np.int32(32))
