"""A model's tensors with their units in another's order, as they are read: rows gathered, columns permuted, to the bit.

A factor of -1 flips the sign bit, others multiply in float64 and round once to the tensor's dtype. What is in memory
is the stretch that was asked for and, where columns move, the rows around it.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from kinbase.checkpoint import DTYPE_BYTES, Tensor
from kinbase.checkpoint.adapters import decoded
from kinbase.checkpoint.files import shown
from kinbase.errors import KinbaseError
from kinbase.matching.architecture import Architecture, Piece
from kinbase.matching.symmetry import Factors, Indices, Symmetry

Bytes = NDArray[np.uint8]


@dataclass(frozen=True, slots=True)
class Axis:
    """Where the units along one axis of a tensor come from, and times what; None for one that stays."""

    index: Indices
    factor: Factors

    @property
    def is_same(self) -> bool:
        """Whether nothing moves along it and nothing is multiplied."""
        return bool((self.index == np.arange(len(self.index))).all() and (self.factor == 1).all())


def relabelled(tensors: Mapping[str, Tensor], model: Architecture, symmetry: Symmetry) -> dict[str, Tensor]:
    """Tensors by name, each with its units as `symmetry` says; those that nothing moves are as they were.

    `model` has the roles of these tensors. Raises KinbaseError for weights in 8 bits that would have to be scaled.
    """
    by_tensor: dict[int, list[Piece]] = {}
    for piece in model.every():
        by_tensor.setdefault(id(piece.tensor), []).append(piece)
    return {
        name: moved(tensor, by_tensor[id(tensor)], symmetry) if id(tensor) in by_tensor else tensor
        for name, tensor in tensors.items()
    }


def moved(tensor: Tensor, pieces: Sequence[Piece], symmetry: Symmetry) -> Tensor:
    """One tensor, of which `pieces` are all."""
    is_turned = pieces[0].is_turned
    shape = tensor.shape[::-1] if is_turned else tensor.shape
    out = Axis(np.arange(shape[0]), np.ones(shape[0]))
    for piece in pieces:
        if piece.out is not None:
            index, factor = symmetry.along(piece.out)
            rows = np.arange(shape[0]) if piece.rows is None else piece.rows
            out.index[rows], out.factor[rows] = rows[index], factor
    into = Axis(np.arange(1), np.ones(1))
    if len(shape) == 2:
        told = symmetry.along(pieces[0].into) if pieces[0].into else (np.arange(shape[1]), np.ones(shape[1]))
        into = Axis(*told)
    if out.is_same and into.is_same:
        return tensor
    if DTYPE_BYTES[tensor.dtype] == 1 and any((np.abs(axis.factor) != 1).any() for axis in (out, into)):
        raise KinbaseError(
            f"{shown(tensor.name)} is stored in 8 bits, in which nothing is scaled: align the full weights"
        )
    first, second = (into, out) if is_turned else (out, into)
    return replace(tensor, read=_reader(tensor, first, second), extent=None, grid=None, factors=None)


def _reader(tensor: Tensor, rows: Axis, columns: Axis) -> Callable[[int, memoryview], None]:
    """Reads the tensor [rows, columns] with both axes moved, from any byte on."""
    width = DTYPE_BYTES[tensor.dtype]
    across = len(columns.index)
    step = across * width
    is_plain = columns.is_same

    def read(start: int, out: memoryview) -> None:
        first, last = start // step, -(-(start + len(out)) // step)
        block = np.empty((last - first, step), np.uint8)
        _gather(tensor, rows.index[first:last], block)
        values = block.reshape(last - first, across, width)
        if not is_plain:
            values = values[:, columns.index]
        factor = rows.factor[first:last, None] * columns.factor
        values = _times(np.ascontiguousarray(values), factor, tensor.dtype)
        flat = memoryview(values.reshape(-1))  # type: ignore[arg-type]
        out[:] = flat[start - first * step : start - first * step + len(out)]

    return read


def _gather(tensor: Tensor, rows: Indices, block: Bytes) -> None:
    """Read rows of a tensor into `block`, those that lie one after another in one go."""
    step = block.shape[1]
    cuts = np.flatnonzero(np.diff(rows) != 1) + 1
    for run in np.split(np.arange(len(rows)), cuts):
        if len(run):
            tensor.read(int(rows[run[0]]) * step, memoryview(block[run[0] : run[-1] + 1].reshape(-1)))  # type: ignore[arg-type]


def _times(values: Bytes, factor: Factors, dtype: str) -> Bytes:
    """Stored elements [rows, columns, bytes] times factors [rows, columns]."""
    flips = factor < 0
    if flips.any():
        values[..., -1] ^= (
            flips.astype(np.uint8) << 7
        )  # little-endian: the sign is the highest bit of the last byte
    size = np.abs(factor)
    scaled = size != 1
    if scaled.any():
        exact = decoded(values.reshape(-1), dtype).reshape(factor.shape)
        values[scaled] = stored((exact * size)[scaled], dtype)
    return values


def stored(values: Factors, dtype: str) -> Bytes:
    """float64 [n] as bytes [n, width] of a dtype of 16 bits or more, rounded to the nearest, ties to even."""
    if dtype != "BF16":
        kind = {"F64": np.float64, "F32": np.float32, "F16": np.float16}[dtype]
        return values.astype(kind).view(np.uint8).reshape(len(values), -1)
    bits = values.astype(np.float32).view(np.uint32).astype(np.uint64)
    rounded = ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)
    nan = np.isnan(values)
    rounded[nan] = (bits[nan] >> 16).astype(np.uint16) | 0x40
    return rounded.view(np.uint8).reshape(len(values), 2)
