"""GPTQ and AWQ: weights of few bits stored transposed, in 32-bit words, with scales and zero points a group.

    W[o, i] = s[g(i), o] * (code[i, o] - z[g(i), o])

GPTQ (Frantar et al. 2023, arXiv 2210.17323) packs down the input, the first code lowest; `g_idx` says the groups, and
its zero points are stored less 1, but in the format gptq_v2. AWQ (Lin et al. 2024, arXiv 2306.00978) packs along the
output, in the order 0 2 4 6 1 3 5 7. A tensor is read in panels of some rows o, which lie in strips of the file.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial

import numpy as np
from numpy.typing import NDArray

from kinbase.checkpoint.contract import FLOAT_DTYPES, Tensor
from kinbase.checkpoint.files import shown
from kinbase.checkpoint.formats.values import Floats, Kept, dequantised, floats, mean_square, raw
from kinbase.errors import CheckpointError

PANEL_BYTES = 16 << 20
"""Codes held at once: more, and the panel is narrower; a read of the file is a strip of it."""

_AWQ_SHIFTS = 4 * np.array([0, 4, 1, 5, 2, 6, 3, 7], np.uint32)
"""Where in its word the code of each of eight outputs lies."""

_INDICES_LIMIT = 1 << 24


@dataclass(frozen=True, slots=True)
class Layout:
    """One weight [rows, columns] in words of `count` codes: down the input, or `across` the output.

    `groups` [columns] are those of the columns; `is_even` where they are one after the other, each as long, and whole bytes.
    """

    words: Tensor
    zeros: Tensor | None
    scales: Tensor
    rows: int
    columns: int
    bits: int
    across: bool
    lift: int
    groups: NDArray[np.int64]
    is_even: bool

    @property
    def count(self) -> int:
        return 32 // self.bits

    @property
    def shifts(self) -> NDArray[np.uint32]:
        return _AWQ_SHIFTS if self.across else np.arange(self.count, dtype=np.uint32) * np.uint32(self.bits)


def packed_columns(
    name: str, beside: Mapping[str, Tensor], kept: Kept, *, bits: int | None, second: bool
) -> Tensor:
    """The weight called `name` of `qweight`, `scales`, `qzeros` and `g_idx` in `beside`.

    `bits` is what the configuration says; `second` that zero points are stored as they are (gptq_v2). Raises
    CheckpointError when the shapes do not fit together.
    """
    layout = _layout(name, beside, bits, second)
    rows = layout.rows
    width = max(PANEL_BYTES // max(4 * layout.words.numel // rows, 1), 64) // 64 * 64
    values = partial(_values, layout, kept, min(width, rows))
    form = f"{'AWQ' if layout.across else 'GPTQ'}{layout.bits}"
    steps = lambda: mean_square(layout.scales) * rows * layout.columns  # noqa: E731
    return dequantised(name, (rows, layout.columns), form, values, steps)


def _layout(name: str, beside: Mapping[str, Tensor], bits: int | None, second: bool) -> Layout:
    words, scales, zeros, indices = (beside.get(key) for key in ("qweight", "scales", "qzeros", "g_idx"))
    what = shown(name)
    if words is None or scales is None or len(words.shape) != 2 or len(scales.shape) != 2:
        raise CheckpointError(f"{what} has no qweight and scales of two dimensions")
    if (
        words.dtype not in ("I32", "U32")
        or scales.dtype not in FLOAT_DTYPES
        or not words.numel
        or not scales.numel
    ):
        raise CheckpointError(
            f"{what} is {words.dtype} with scales of {scales.dtype}, which is neither GPTQ nor AWQ"
        )
    groups, rows = scales.shape
    across = words.shape[1] != rows
    if across and (words.shape[1] * 8 != rows or bits not in (None, 4) or zeros is None):
        raise CheckpointError(f"{what}: a qweight of {words.shape} does not fit scales of {scales.shape}")
    bits = 4 if across else _bits(what, words, rows, zeros, indices, bits)
    columns = words.shape[0] * (1 if across else 32 // bits)
    fits = rows % max(8, 32 // bits) == 0 and columns % 2 == 0
    if not fits or (zeros is not None and zeros.shape != (groups, rows * bits // 32)):
        raise CheckpointError(
            f"{what}: qzeros of {zeros.shape if zeros else ()} do not fit scales of {scales.shape}"
        )
    if zeros is not None and zeros.dtype not in ("I32", "U32"):
        raise CheckpointError(f"{what} has qzeros of {zeros.dtype}")
    found = _groups(what, None if across else indices, groups, columns)
    lift = 0 if across or second else 1
    size = columns // groups
    is_even = size % 8 == 0 and bool((found == np.arange(columns) // max(size, 1)).all())
    return Layout(words, zeros, scales, rows, columns, bits, across, lift, found, is_even)


def _bits(
    what: str, words: Tensor, rows: int, zeros: Tensor | None, indices: Tensor | None, bits: int | None
) -> int:
    """Bits of a GPTQ code: as the configuration says, else as the zero points or the index of groups make them."""
    if zeros is not None and zeros.numel and bits is None:
        bits = 32 * zeros.shape[-1] // rows
    if not bits:
        bits = 32 * words.shape[0] // indices.numel if indices is not None and indices.numel else 4
    if bits not in (2, 4, 8):
        raise CheckpointError(f"{what} is packed in {bits} bits, and 2, 4 and 8 are read")
    return bits


def _groups(what: str, indices: Tensor | None, groups: int, columns: int) -> NDArray[np.int64]:
    """The group of each column, checked: an index may not lead out of the scales."""
    if columns > _INDICES_LIMIT:
        raise CheckpointError(f"{what} has {columns:,} columns, which is refused")
    if indices is None or not indices.numel:
        if columns % groups:
            raise CheckpointError(f"{what} has {columns} columns in {groups} groups")
        return np.arange(columns, dtype=np.int64) // (columns // groups)
    if indices.numel != columns or indices.dtype not in ("I32", "I64"):
        raise CheckpointError(f"{what} has a g_idx of {indices.numel} {indices.dtype} for {columns} columns")
    width = np.int32 if indices.dtype == "I32" else np.int64
    found = raw(indices, 0, indices.nbytes).view(width).astype(np.int64)
    if found.min() < 0 or found.max() >= groups:
        raise CheckpointError(f"{what} has a g_idx that leads out of its {groups} groups")
    return found


def _values(layout: Layout, kept: Kept, width: int, first: int, out: Floats) -> None:
    from kinbase.checkpoint.formats.kernels import from_bits, from_groups

    columns, bits = layout.columns, layout.bits
    group = columns // layout.scales.shape[0] if layout.is_even else 0
    at = 0
    while at < len(out):
        row = (first + at) // columns
        panel = row // width
        start, stop = panel * width, min((panel + 1) * width, layout.rows)
        count = min(len(out) - at, stop * columns - first - at)
        codes, scales, offsets = kept.get((id(layout.words), panel), partial(_panel, layout, start, stop))
        within, part = first + at - start * columns, out[at : at + count]
        if layout.is_even and within % group == 0:
            groups = slice(within // group, -(-(within + count) // group))
            from_bits(
                codes.reshape(-1)[within * bits // 8 :], bits, scales.reshape(-1)[groups], offsets.reshape(-1)[groups],
                group, part,
            )  # fmt: skip
        else:
            row -= start
            from_groups(codes[row:], bits, scales[row:], offsets[row:], layout.groups, within % columns, part)
        at += count


def _panel(layout: Layout, start: int, stop: int) -> tuple[NDArray[np.uint8], Floats, Floats]:
    """Codes of the rows `start` to `stop` as they would lie row by row, and scales and offsets [R, G]: W = s code + o."""
    from kinbase.checkpoint.formats.kernels import nibbles_across, turned

    packing = layout.count if layout.across else 1
    words = _strip(layout.words, start // packing, stop // packing).view(np.uint32)
    count, groups = stop - start, layout.scales.shape[0]
    aside = np.empty(words.shape[::-1], np.uint32)
    turned(words, aside)
    codes = aside.view(np.uint8)
    if layout.across:
        codes = np.empty((count, layout.columns // 2), np.uint8)
        nibbles_across(aside, layout.shifts, codes)
    if layout.scales.dtype == "F16":
        scales = _strip(layout.scales, start, stop).view(np.float16).astype(np.float32)
    else:
        scales = np.stack([floats(layout.scales, g * layout.rows + start, count) for g in range(groups)])
    if layout.zeros is None:
        zeros = np.full(scales.shape, 1 << (layout.bits - 1), np.float32)
    else:
        packed = _strip(layout.zeros, start // layout.count, stop // layout.count).view(np.uint32)
        points = (packed[:, :, None] >> layout.shifts) & np.uint32((1 << layout.bits) - 1)
        zeros = points.reshape(groups, count).astype(np.float32) + np.float32(layout.lift)
    scales = np.ascontiguousarray(scales.T)
    return codes, scales, -scales * np.ascontiguousarray(zeros.T)


def _strip(tensor: Tensor, start: int, stop: int) -> NDArray[np.uint8]:
    """Columns `start` to `stop` of a matrix, as bytes [rows, bytes]."""
    rows, columns = tensor.shape
    width = tensor.nbytes // tensor.numel
    if stop - start == columns:
        return raw(tensor, 0, tensor.nbytes).reshape(rows, -1)
    strip = np.empty((rows, (stop - start) * width), np.uint8)
    for row in range(rows):
        tensor.read((row * columns + start) * width, memoryview(strip[row]))
    return strip
