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


@compiled
def from_table(
    codes, table, scales, first, rows, columns, row_block, column_block, grid_rows, grid_columns, out
):
    """Bytes as indices of `table` [256], times the scale of their block.

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
                byte = codes[k]
                out[2 * k] = np.float32(np.int32(byte & 15)) * scale + offset
                out[2 * k + 1] = np.float32(np.int32(byte >> 4)) * scale + offset
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
def down_columns(words, bits, scales, zeros, groups, row, column, out):
    """Rows of a weight [rows, columns] that is stored transposed, in 32-bit words of codes down the columns.

    `words` [columns / m, R], the first of m codes in the lowest bits; `scales` and `zeros` [G, R] float32; `groups`
    [columns] the group of each column. The first element is `column` of the `row` of these R.
    """
    count = 32 // bits
    mask = np.uint32((1 << bits) - 1)
    at = 0
    while at < len(out):
        stop = min(len(groups), column + len(out) - at)
        k = column
        while k < stop:
            word = words[k // count, row] >> np.uint32(bits * (k % count))
            end = min(stop, (k // count + 1) * count)
            while k < end:
                g = groups[k]
                out[at + k - column] = scales[g, row] * (np.float32(np.int32(word & mask)) - zeros[g, row])
                word >>= np.uint32(bits)
                k += 1
        at += stop - column
        row, column = row + 1, 0


@compiled
def across_columns(words, shifts, scales, zeros, groups, row, column, out):
    """As down_columns, of codes of 4 bits packed along the rows: `words` [columns, R / 8], `shifts` [8] of each code."""
    mask = np.uint32(15)
    at = 0
    while at < len(out):
        stop = min(len(groups), column + len(out) - at)
        place, shift = row // 8, shifts[row % 8]
        for k in range(column, stop):
            g = groups[k]
            code = np.float32(np.int32((words[k, place] >> shift) & mask))
            out[at + k - column] = scales[g, row] * (code - zeros[g, row])
        at += stop - column
        row, column = row + 1, 0


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
