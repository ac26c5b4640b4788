"""Weights of 8 bits with scales: 8-bit floats by tensor, row, column, expert or block, and integers by row.

    W[r, c] = T[code[r, c]] * s[block of r, block of c]

T is the table of 256 values of the code (Micikevicius et al. 2022, arXiv 2209.05433, for floats). The scale's shape
says which elements share one: with the codes' own extents or 1 on an axis, else in blocks (DeepSeek-V3,
arXiv 2412.19437, section 3.3: 128 x 128). bitsandbytes' int8 is W = SCB * code / 127 (Dettmers et al. 2022,
arXiv 2208.07339).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kinbase.checkpoint.adapters import byte_floats
from kinbase.checkpoint.contract import Tensor
from kinbase.checkpoint.files import shown
from kinbase.checkpoint.formats.values import (
    Floats,
    Kept,
    dequantised,
    floats,
    of_values,
    raw,
    sampled,
    widths,
)
from kinbase.errors import CheckpointError

MOST_SCALES = 1 << 24
"""Scales of one tensor, which are held as it is read: 64 MiB of them."""

BLOCK = 128
"""Rows and columns of a block where a configuration does not say."""


@dataclass(frozen=True, slots=True)
class Blocks:
    """Codes as [lead, rows, columns], and which scale of [lead or 1, grid rows, grid columns] is theirs."""

    rows: int
    columns: int
    row_block: int
    column_block: int
    grid_rows: int
    grid_columns: int


def table_of(dtype: str) -> NDArray[np.float64]:
    """The 256 values of a code of 8 bits."""
    if dtype == "I8":
        return np.arange(256).astype(np.uint8).view(np.int8).astype(np.float64)
    return byte_floats(dtype)


def scaled(
    codes: Tensor, scale: Tensor, kept: Kept, *, divisor: float = 1.0, block: Sequence[int] | None = None
) -> Tensor:
    """The weight that 8-bit `codes` and their `scale` are, under the codes' name.

    `block` is what the configuration says of the blocks. Raises CheckpointError when the scale's shape fits none.
    """
    blocks = _blocks(codes, scale, block)
    if scale.numel > MOST_SCALES:
        raise CheckpointError(
            f"{shown(scale.name)} has {scale.numel:,} scales for one tensor, which is refused"
        )
    table = table_of(codes.dtype)
    form = {"I8": "INT8", "F8_E4M3": "FP8", "F8_E5M2": "FP8_E5M2"}[codes.dtype]
    values = partial(_values, codes, scale, divisor, blocks, table.astype(np.float32), False, kept)
    steps = partial(_values, codes, scale, divisor, blocks, widths(table).astype(np.float32), True, kept)
    return dequantised(
        codes.name, codes.shape, form, values, partial(sampled, codes.numel, partial(of_values, steps))
    )


def _values(
    codes: Tensor, scale: Tensor, divisor: float, blocks: Blocks, table: Floats, by_table: bool, kept: Kept,
    first: int, out: Floats,
) -> None:  # fmt: skip
    from kinbase.checkpoint.formats.kernels import E4M3, INTEGERS, TABLE, from_table

    def scales() -> tuple[Floats]:
        return (floats(scale, 0, scale.numel) / np.float32(divisor),)

    kind = TABLE if by_table else {"I8": INTEGERS, "F8_E4M3": E4M3}.get(codes.dtype, TABLE)
    count = min(len(out), codes.numel - first)
    from_table(
        raw(codes, first, count), kind, table, kept.get((id(scale), "scales"), scales)[0], first, blocks.rows,
        blocks.columns, blocks.row_block, blocks.column_block, blocks.grid_rows, blocks.grid_columns, out[:count],
    )  # fmt: skip
    out[count:] = 0


def _blocks(codes: Tensor, scale: Tensor, said: Sequence[int] | None) -> Blocks:
    """How the scale's shape divides the codes'; raises CheckpointError when it does not."""
    shape, grid = codes.shape, scale.shape
    refusal = CheckpointError(
        f"{shown(scale.name)} of shape {_extents(grid)} does not divide {shown(codes.name)} of shape {_extents(shape)}"
    )
    if scale.numel == 1:
        return Blocks(1, codes.numel, 1, codes.numel, 1, 1)
    grid = grid + (1,) * (len(shape) - len(grid))  # a vector is of rows, or of experts
    if len(grid) != len(shape) or len(shape) not in (2, 3) or 0 in grid or 0 in shape:
        raise refusal
    lead = 1 if len(shape) == 2 else shape[0]
    if len(shape) == 3 and grid[0] not in (1, lead):
        raise refusal
    rows, columns = shape[-2:]
    grid_rows, grid_columns = grid[-2:]
    row_block = _block(rows, grid_rows, said[0] if said else BLOCK)
    column_block = _block(columns, grid_columns, said[1] if said else BLOCK)
    if row_block is None or column_block is None:
        raise refusal
    return Blocks(rows, columns, row_block, column_block, grid_rows, grid_columns)


def fits(codes: Tensor, scale: Tensor, block: Sequence[int] | None = None) -> bool:
    """Whether the shape of `scale` divides that of the codes."""
    try:
        _blocks(codes, scale, block)
    except CheckpointError:
        return False
    return True


def _block(extent: int, count: int, usual: int) -> int | None:
    """Elements of an axis of `extent` that share one of `count` scales; None when they cannot."""
    if count in (1, extent):
        return extent // count
    if -(-extent // usual) == count:
        return usual
    return extent // count if extent % count == 0 else None


def block_size(config: Mapping[str, Any]) -> Sequence[int] | None:
    """The rows and columns of a block as a quantization_config says, if it says two sizes."""
    said = config.get("weight_block_size")
    if isinstance(said, list) and len(said) == 2 and all(type(n) is int and 0 < n < 1 << 31 for n in said):
        return said
    return None


def _extents(shape: Sequence[int]) -> str:
    return "(" + ", ".join(map(str, shape)) + ")"
