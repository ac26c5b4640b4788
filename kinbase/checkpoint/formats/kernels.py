"""Compiled loops from codes to weights: stored bytes in, float32 out, in the order of the file.

Each writes `out` from its first element on and holds no GIL. Products and sums are in float32, as in the formats'
own libraries, so a value differs from the exact one by at most a few units of 2**-24 of its terms.
"""

# mypy: allow-untyped-defs, allow-untyped-calls
# ruff: noqa: ANN001, ANN201

from typing import Any

import numpy as np
from numba import njit

compiled: Any = njit(nogil=True, cache=True, error_model="numpy", boundscheck=False)

INTEGERS, E4M3, TABLE = 1, 2, 0
"""What the bytes of `from_table` are."""

# A plain 15 is 64 bits wide, and so would be all that is computed with it.
_LOW = np.int32(15)
_FOUR = np.int32(4)


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
            scale = scales[base + block]
            if kind == INTEGERS:
                for k in range(at, stop):
                    out[k] = np.float32(np.int8(codes[k])) * scale
            elif kind == E4M3:
                # The bits of a float32 over 2**120, which is right for subnormals too; all ones are NaN.
                for k in range(at, stop):
                    code = np.uint32(codes[k])
                    size = np.uint32(code & np.uint32(0x7F))
                    value = np.uint32(size << np.uint32(20)).view(np.float32) * np.float32(2.0**120)
                    bits = np.float32(value).view(np.uint32)
                    if size == np.uint32(0x7F):
                        bits = np.uint32(bits | np.uint32(0x7FC00000))
                    bits = np.uint32(bits | ((code & np.uint32(0x80)) << np.uint32(24)))
                    out[k] = bits.view(np.float32) * scale
            else:
                for k in range(at, stop):
                    out[k] = table[codes[k]] * scale
            column += stop - at
            at = stop


@compiled
def from_pairs(codes, pairs, scales, block, out):
    """Bytes as two indices of a table of 16, given as the `pairs` [256, 2] of values, times their block's scale.

    `out` begins with a block and is even; `block` is even.
    """
    n = len(out)
    for b in range(len(scales)):
        scale = scales[b]
        for k in range(b * block // 2, min((b + 1) * block, n) // 2):
            byte = codes[k]
            out[2 * k] = pairs[byte, 0] * scale
            out[2 * k + 1] = pairs[byte, 1] * scale


@compiled
def from_bits(codes, bits, scales, offsets, group, out):
    """Codes of so many bits, the first in the lowest: scale * code + offset of their group, which `out` begins with."""
    n = len(out)
    mask = np.uint32((1 << bits) - 1)
    for g in range(len(scales)):
        scale, offset = scales[g], offsets[g]
        start, stop = g * group, min((g + 1) * group, n)
        if bits == 4:
            for k in range(start // 2, stop // 2):
                byte = np.int32(codes[k])
                out[2 * k] = np.float32(np.int32(byte & _LOW)) * scale + offset
                out[2 * k + 1] = np.float32(np.int32(byte >> _FOUR)) * scale + offset
        elif bits == 8:
            for k in range(start, stop):
                out[k] = np.float32(np.int32(codes[k])) * scale + offset
        else:
            for k in range(start, stop):
                at = k * bits
                word = np.uint32(codes[at >> 3])
                if (at & 7) + bits > 8:
                    word |= np.uint32(codes[(at >> 3) + 1]) << np.uint32(8)
                code = (word >> np.uint32(at & 7)) & mask
                out[k] = np.float32(np.int32(code)) * scale + offset


@compiled
def from_groups(codes, bits, scales, offsets, groups, column, out):
    """As from_bits, of rows whose columns belong to any `groups` [columns]; `scales`, `offsets` [R, G].

    `out` begins at `column` of the first row, a whole byte of `codes` [R, bytes].
    """
    mask = np.int32((1 << bits) - 1)
    at, row = 0, 0
    while at < len(out):
        stop = min(len(groups), column + len(out) - at)
        for k in range(column, stop):
            code = (np.int32(codes[row, k * bits // 8]) >> np.int32(k * bits % 8)) & mask
            g = groups[k]
            out[at + k - column] = np.float32(np.int32(code)) * scales[row, g] + offsets[row, g]
        at += stop - column
        row, column = row + 1, 0


@compiled
def nibbles_across(words, shifts, codes):
    """Codes of 4 bits in words [columns, R / 8] that hold eight rows each, as bytes [R, columns / 2], low one first."""
    columns = len(words)
    mask = np.uint32(15)
    for start in range(0, columns, 128):
        stop = min(start + 128, columns)
        for place in range(words.shape[1]):
            for k in range(start // 2, stop // 2):
                one, two = words[2 * k, place], words[2 * k + 1, place]
                for j in range(8):
                    low, high = (one >> shifts[j]) & mask, (two >> shifts[j]) & mask
                    codes[8 * place + j, k] = np.uint8(low | high << np.uint32(4))


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


# Blocks of ggml (ggml-common.h), `blocks` [B, bytes] with their half floats decoded: d, m [B].


@compiled
def q8_0(blocks, d, out):
    """32 signed bytes after the scale."""
    for b in range(len(blocks)):
        for k in range(32):
            out[32 * b + k] = np.float32(np.int8(blocks[b, 2 + k])) * d[b]


@compiled
def q4(blocks, d, m, head, out):
    """16 bytes after `head` ones, the low nibbles before the high ones: d * code + m."""
    for b in range(len(blocks)):
        for k in range(16):
            byte = np.int32(blocks[b, head + k])
            out[32 * b + k] = np.float32(byte & 15) * d[b] + m[b]
            out[32 * b + 16 + k] = np.float32(byte >> 4) * d[b] + m[b]


@compiled
def q5(blocks, d, m, head, out):
    """As q4, with the fifth bits of the 32 codes in the four bytes before the nibbles."""
    for b in range(len(blocks)):
        high = np.uint32(0)
        for k in range(4):
            high |= np.uint32(blocks[b, head + k]) << np.uint32(8 * k)
        for k in range(16):
            byte = np.int32(blocks[b, head + 4 + k])
            low = (byte & 15) | np.int32(((high >> np.uint32(k)) & np.uint32(1)) << np.uint32(4))
            up = (byte >> 4) | np.int32(((high >> np.uint32(k + 16)) & np.uint32(1)) << np.uint32(4))
            out[32 * b + k] = np.float32(low) * d[b] + m[b]
            out[32 * b + 16 + k] = np.float32(up) * d[b] + m[b]


@compiled
def q45_k(blocks, scales, mins, fifth, out):
    """256 codes of 4 bits, or of 5 with `fifth`, less a minimum: eight scales and minima [B, 8] a block."""
    head = 48 if fifth else 16
    for b in range(len(blocks)):
        for pair in range(4):
            d1, d2 = scales[b, 2 * pair], scales[b, 2 * pair + 1]
            m1, m2 = mins[b, 2 * pair], mins[b, 2 * pair + 1]
            at = 256 * b + 64 * pair
            for k in range(32):
                byte = np.int32(blocks[b, head + 32 * pair + k])
                low, up = byte & 15, byte >> 4
                if fifth:
                    high = np.int32(blocks[b, 16 + k]) >> (2 * pair)
                    low |= (high & 1) << 4
                    up |= (high & 2) << 3
                out[at + k] = np.float32(low) * d1 - m1
                out[at + 32 + k] = np.float32(up) * d2 - m2


@compiled
def q6_k(blocks, scales, out):
    """256 codes of 6 bits less 32: 128 bytes of low nibbles, 64 of high pairs, sixteen scales [B, 16] a block."""
    for b in range(len(blocks)):
        for half in range(2):
            low, high, at = 64 * half, 128 + 32 * half, 256 * b + 128 * half
            for k in range(32):
                sub = 8 * half + k // 16
                h = np.int32(blocks[b, high + k])
                one, two = np.int32(blocks[b, low + k]), np.int32(blocks[b, low + 32 + k])
                out[at + k] = np.float32(((one & 15) | ((h & 3) << 4)) - 32) * scales[b, sub]
                out[at + 32 + k] = np.float32(((two & 15) | ((h >> 2 & 3) << 4)) - 32) * scales[b, sub + 2]
                out[at + 64 + k] = np.float32(((one >> 4) | ((h >> 4 & 3) << 4)) - 32) * scales[b, sub + 4]
                out[at + 96 + k] = np.float32(((two >> 4) | ((h >> 6 & 3) << 4)) - 32) * scales[b, sub + 6]
