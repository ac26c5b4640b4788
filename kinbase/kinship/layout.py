"""Numbers that the kernels and those who call them share: how buffers are laid out, and a sketch's shape."""

import numpy as np

from kinbase.checkpoint import DTYPE_BYTES, FLOAT_DTYPES, Tensor

BF16 = FLOAT_DTYPES.index("BF16")

NARROW = FLOAT_DTYPES.index("F16")
"""The dtype codes from here on are those of 16 and 8 bits."""

ROUNDED = len(FLOAT_DTYPES)
"""The code of float32 that was dequantised: its grid is coarser than float32 by far, which is room enough for its deltas
and for the sums of a cell, as it is for 16 and 8 bits."""

CODES = ROUNDED + 1

WIDTHS = (*(DTYPE_BYTES[dtype] for dtype in FLOAT_DTYPES), 4)
"""Bytes of an element by its code."""

PADDING = 16
"""Elements between rows: rows a multiple of 4 KiB apart would share one set of the first-level cache."""

STATE = 640
"""Bytes between the hashing states of two rows: XXH3_state_t has 576, aligned to 64."""

LEAVES = 4
"""Leaves of a span (`digest.SPAN`)."""

LANE = 13
"""Numbers of a lane as the span's kernel takes it: descriptor (-1: in memory), offset in the file of the tensor's first
element or address of the first one asked for, elements, bytes an element, dtype code, row, whether it is hashed, whether
it is sketched, the sketch's key, whether its elements lie in place, the address of its window, where to read it to (0: the
row of the tile), and whether what follows is read behind that or over it."""

INTERVAL = 4
"""Numbers of an interval: where it stops, how many members take part, how many of them are new, whether all are narrow."""

BUCKETS = 1 << 14
"""Sums of a sketch."""

CELL = 1 << 11
"""Elements that are laid over a sketch together."""

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


def code_of(tensor: Tensor) -> int:
    """What the kernels know a tensor's elements by: its dtype's position in FLOAT_DTYPES, 0 where it is not there; or ROUNDED."""
    if tensor.grid is not None and tensor.dtype == "F32":
        return ROUNDED
    return FLOAT_DTYPES.index(tensor.dtype) if tensor.dtype in FLOAT_DTYPES else 0
