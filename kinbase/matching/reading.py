"""Pieces of two models as float32 matrices in one order of units, a piece at a time."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from kinbase.checkpoint import Tensor
from kinbase.checkpoint.adapters import elements
from kinbase.matching.architecture import Architecture, Piece
from kinbase.matching.assignment import Matrix
from kinbase.matching.symmetry import Symmetry

ROWS, RUN = 16384, 256
"""Tokens at most by which channels are matched, and how many of them are read in a row: spread over the vocabulary."""

STRETCH = 1 << 20
"""Elements read at once."""


def matrix(piece: Piece) -> Matrix:
    """A piece as a matrix [out, in]; a vector as [out, 1]. Raises CheckpointError when it cannot be read."""
    tensor = piece.tensor
    whole = _rows(tensor, 0, tensor.shape[0])
    if piece.is_turned:
        whole = whole.T
    return whole if piece.rows is None else whole[piece.rows]


def _rows(tensor: Tensor, first: int, count: int) -> Matrix:
    """Rows `first` to `first + count` of a tensor [rows, columns]."""
    across = tensor.numel // tensor.shape[0] if tensor.shape[0] else 0
    values = np.empty(count * across, np.float32)
    for start in range(0, len(values), STRETCH):
        length = min(STRETCH, len(values) - start)
        values[start : start + length] = elements(tensor, first * across + start, length)
    return values.reshape(count, across)


def some_rows(a: Tensor, b: Tensor) -> tuple[Matrix, Matrix]:
    """The same rows of both tensors, of those that both have: all, or ROWS of them in runs spread over all."""
    rows = min(a.shape[0], b.shape[0])
    if rows <= ROWS:
        return _rows(a, 0, rows), _rows(b, 0, rows)
    starts = np.linspace(0, rows - RUN, ROWS // RUN).astype(int).tolist()
    read = [np.concatenate([_rows(tensor, start, RUN) for start in starts]) for tensor in (a, b)]
    return read[0], read[1]


@dataclass(slots=True)
class Couple:
    """Two models of one architecture, and what is known so far of how the second's units lie in the first's order."""

    a: Architecture
    b: Architecture
    symmetry: Symmetry

    def both(self, role: str, layer: int | None, *, is_bias: bool = False) -> tuple[Piece, Piece] | None:
        """The pieces of one role, where both models have it."""
        key = (role, layer, is_bias)
        return (
            (self.a.pieces[key], self.b.pieces[key])
            if key in self.a.pieces and key in self.b.pieces
            else None
        )

    def gains(self, role: str, layer: int | None) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """What a norm multiplies the channels by, in both [d]; the second's in the first's order. Ones without one."""
        pair = self.both(role, layer)
        if pair is None:
            ones = np.ones(self.a.hidden, np.float32)
            return ones, ones
        return matrix(pair[0])[:, 0], matrix(pair[1])[:, 0][self.symmetry.residual.index]

    def inputs(self, role: str, layer: int, *, is_folded: bool = True) -> tuple[Matrix, Matrix]:
        """The rows of a projection of the stream in both models, over the first's channels, with its bias if it has one.

        The second's rows are in its own order. `is_folded`: with the gain of the norm before it.
        """
        pair = self.both(role, layer)
        assert pair is not None
        a, b = matrix(pair[0]), matrix(pair[1])[:, self.symmetry.residual.index]
        b = b * self.symmetry.residual.factor.astype(np.float32)
        norm = str(pair[0].into).partition(".")[0].removeprefix("into-")
        if is_folded:
            mine, other = self.gains(norm, layer)
            a, b = a * mine, b * other
            bias = self.both(role, layer, is_bias=True)
            if bias:
                a, b = np.hstack([a, matrix(bias[0])]), np.hstack([b, matrix(bias[1])])
        return a, b

    def outputs(self, role: str, layer: int) -> tuple[Matrix, Matrix]:
        """The columns of a projection back into the stream, as rows [units, d] over the first's channels."""
        pair = self.both(role, layer)
        assert pair is not None
        a, b = matrix(pair[0]), matrix(pair[1])[self.symmetry.residual.index]
        b = b * self.symmetry.residual.factor.astype(np.float32)[:, None]
        return np.ascontiguousarray(a.T), np.ascontiguousarray(b.T)
