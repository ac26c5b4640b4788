"""Weights of 4 bits from a table of 16 values: bitsandbytes' nf4 and fp4, and the experts of mxfp4.

bitsandbytes (Dettmers et al. 2023, arXiv 2305.14314): flat blocks, the high nibble first, W = T[code] * absmax, and
with double quantisation absmax = T2[code2] * absmax2 + offset over blocks of absmax. The tables lie in the file.

mxfp4 (OCP Microscaling Formats 1.0; gpt-oss): blocks of 32 along the input, the low nibble first, of values
0, 0.5, 1, 1.5, 2, 3, 4, 6 and their negatives times 2^(e - 127); the weight is the transpose of what is stored.
"""

import json
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kinbase.checkpoint.contract import FLOAT_DTYPES, Tensor
from kinbase.checkpoint.files import shown
from kinbase.checkpoint.formats.values import (
    Floats,
    Kept,
    Values,
    dequantised,
    floats,
    of_values,
    powers,
    raw,
    sampled,
    widths,
)
from kinbase.errors import CheckpointError

FP4 = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6, 0, -0.5, -1, -1.5, -2, -3, -4, -6])
"""The values of a 4-bit float (E2M1)."""

_STATE_LIMIT = 64 << 10
"""Bytes of the JSON that bitsandbytes keeps beside a weight; it takes about a hundred."""


def pairs(table: NDArray[np.float64], *, high_first: bool) -> Floats:
    """The two values of each byte [256, 2], of a table of 16."""
    byte = np.arange(256)
    order = (byte >> 4, byte & 15) if high_first else (byte & 15, byte >> 4)
    return np.stack([table[order[0]], table[order[1]]], axis=1).astype(np.float32)


@dataclass(frozen=True, slots=True)
class Absmax:
    """The scales of bitsandbytes' blocks, quantised themselves where `nested` is there: [0] its scales, [1] its table."""

    scales: Tensor
    nested: tuple[Tensor, Floats] | None = None
    nested_block: int = 256
    offset: float = 0.0

    def get(self, first: int, count: int) -> Floats:
        """The scales of `count` blocks."""
        if self.nested is None:
            return floats(self.scales, first, count)
        outer, table = self.nested
        start, stop = first // self.nested_block, -(-(first + count) // self.nested_block)
        of = np.repeat(floats(outer, start, stop - start), self.nested_block)
        skip = first - start * self.nested_block
        found: Floats = table[raw(self.scales, first, count)] * of[skip : skip + count] + np.float32(
            self.offset
        )
        return found


def four_bits(codes: Tensor, beside: dict[str, Tensor]) -> Tensor:
    """A weight of bitsandbytes; `beside` are its statistics by what follows its name and a dot.

    Raises CheckpointError when they are not there or do not fit.
    """
    what = shown(codes.name)
    key = next((k for k in beside if k.startswith("quant_state.")), None)
    state = _state(beside[key], what) if key else {}
    shape, block = state.get("shape"), state.get("blocksize")
    sizes = isinstance(shape, list) and all(type(n) is int and 0 < n < 1 << 40 for n in shape)
    if (
        not sizes
        or not isinstance(shape, list)
        or type(block) is not int
        or not 2 <= block <= 1 << 16
        or block % 2
    ):
        raise CheckpointError(f"{what} has no quant_state that says its shape and block size")
    numel = int(np.prod(shape, dtype=object))
    if codes.dtype != "U8" or codes.numel != -(-numel // 2):
        raise CheckpointError(
            f"{what} holds {codes.numel} bytes of {codes.dtype}, and its quant_state says {numel} weights"
        )
    table = _table(beside, "quant_map", 16, what)
    absmax = beside.get("absmax")
    count = -(-numel // block)
    if absmax is None or absmax.numel != count:
        raise CheckpointError(f"{what} has no absmax for {count} blocks of {block}")
    scales = _absmax(absmax, beside, state, what)
    form = str(key).rpartition("__")[2].upper() if key else "4BIT"

    def of(table: NDArray[np.float64]) -> Values:
        return partial(_flat, codes, scales, pairs(table, high_first=True), block, numel)

    steps = partial(sampled, numel, partial(of_values, of(widths(table))))
    return dequantised(codes.name, tuple(shape), form if form in ("NF4", "FP4") else "4BIT", of(table), steps)


def _absmax(absmax: Tensor, beside: dict[str, Tensor], state: dict[str, Any], what: str) -> Absmax:
    if absmax.dtype in FLOAT_DTYPES:
        return Absmax(absmax)
    outer, block, offset = (
        beside.get("nested_absmax"),
        state.get("nested_blocksize"),
        state.get("nested_offset"),
    )
    if (
        absmax.dtype != "U8" or outer is None or type(block) is not int or not 0 < block <= 1 << 20
        or outer.numel != -(-absmax.numel // block) or not isinstance(offset, int | float) or not np.isfinite(offset)
    ):  # fmt: skip
        raise CheckpointError(
            f"{what} has an absmax of {absmax.dtype} without the nested statistics that fit it"
        )
    return Absmax(
        absmax,
        (outer, _table(beside, "nested_quant_map", 256, what).astype(np.float32)),
        block,
        float(offset),
    )


def _table(beside: dict[str, Tensor], name: str, size: int, what: str) -> NDArray[np.float64]:
    found = beside.get(name)
    if found is None or found.numel != size or found.dtype not in FLOAT_DTYPES:
        raise CheckpointError(f"{what} has no {name} of {size} values")
    table = floats(found, 0, size).astype(np.float64)
    if not np.isfinite(table).all():
        raise CheckpointError(f"{what} has a {name} that is not finite")
    return table


def _state(tensor: Tensor, what: str) -> dict[str, Any]:
    """The JSON that bitsandbytes keeps as bytes."""
    if tensor.dtype != "U8" or tensor.numel > _STATE_LIMIT:
        raise CheckpointError(f"{what} has a quant_state of {tensor.numel} {tensor.dtype}, which is none")
    try:
        found = json.loads(raw(tensor, 0, tensor.numel).tobytes())
    except (ValueError, RecursionError):
        raise CheckpointError(f"{what} has a quant_state that is no JSON") from None
    return found if isinstance(found, dict) else {}


def _flat(
    codes: Tensor, scales: Absmax, table: Floats, block: int, numel: int, first: int, out: Floats
) -> None:
    from kinbase.checkpoint.formats.kernels import from_pairs

    start = first // block
    stop = -(-min(first + len(out), numel) // block)
    at = start * block
    count = min(stop * block, numel + numel % 2) - at
    whole = out if at == first and count == len(out) else np.empty(count, np.float32)
    from_pairs(raw(codes, at // 2, count // 2), table, scales.get(start, stop - start), block, whole)
    if whole is not out:
        part = whole[first - at : first - at + len(out)]
        out[: len(part)] = part
        out[len(part) :] = 0


def mx_experts(name: str, codes: Tensor, scales: Tensor, kept: Kept) -> Tensor:
    """The weight [E, columns, rows] that `codes` [E, rows, columns / 32, 16] and `scales` [E, rows, columns / 32] are."""
    shape = codes.shape
    if codes.dtype != "U8" or scales.dtype not in ("U8", "F8_E8M0") or len(shape) != 4 or shape[3] != 16:
        raise CheckpointError(
            f"{shown(codes.name)} is {codes.dtype} {shape}, not blocks of 16 bytes an expert and row"
        )
    if scales.shape != shape[:3]:
        raise CheckpointError(
            f"{shown(scales.name)} is {scales.shape}, not an exponent a block of {shown(codes.name)}"
        )
    experts, rows, columns = shape[0], shape[1], 32 * shape[2]
    if rows % 2:
        raise CheckpointError(f"{shown(codes.name)} has an odd number of rows, which is not read")

    def of(table: NDArray[np.float64]) -> Values:
        return partial(_transposed, codes, scales, pairs(table, high_first=False), kept, rows, columns)

    steps = partial(sampled, experts * rows * columns, partial(of_values, of(widths(FP4))))
    return dequantised(name, (experts, columns, rows), "MXFP4", of(FP4), steps)


def _transposed(
    codes: Tensor, scales: Tensor, table: Floats, kept: Kept, rows: int, columns: int, first: int, out: Floats
) -> None:
    from kinbase.checkpoint.formats.kernels import from_transposed_pairs

    size = rows * columns
    at = 0
    while at < len(out):
        expert, within = divmod(first + at, size)
        count = min(len(out) - at, size - within)
        packed, exponents = kept.get(
            (id(codes), expert),
            partial(_expert, codes, scales, expert, size),
        )
        row, column = divmod(within, rows)
        from_transposed_pairs(packed, table, exponents, rows, columns, row, column, out[at : at + count])
        at += count


def _expert(codes: Tensor, scales: Tensor, expert: int, size: int) -> tuple[NDArray[np.uint8], Floats]:
    return raw(codes, expert * size // 2, size // 2), powers(raw(scales, expert * size // 32, size // 32))
