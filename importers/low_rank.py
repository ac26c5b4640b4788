"""scale * left @ right, a few rows at a time, with the same bits wherever and however it is computed.

A model's digest is taken over these bytes, and a BLAS gives other last bits for another processor,
number of threads or height of tile. So each factor is cut into two slices of integers small enough
that every sum of their products is exact in float64: then the order of summation cannot matter. What
the slices leave out is below 2**-40 of the largest element of its row or column.
"""

from collections.abc import Callable
from dataclasses import dataclass
from math import prod

import numpy as np
from numpy.typing import NDArray

from kinbase.checkpoint import Factors, Tensor

Matrix = NDArray[np.float64]

FACTOR_DTYPES = ("F64", "F32", "F16", "BF16")
"""Dtypes of the factors that `matrix` can read."""

_TILE = 1 << 21
"""Bytes of the product that are computed at once."""


def matrix(tensor: Tensor, rows: int) -> Matrix:
    """All elements of a factor as float64, [rows, the rest]."""
    data = bytearray(tensor.nbytes)
    tensor.read(0, memoryview(data))
    if tensor.dtype == "BF16":
        values = (np.frombuffer(data, "<u2").astype(np.uint32) << 16).view(np.float32)
    else:
        values = np.frombuffer(data, {"F64": "<f8", "F32": "<f4", "F16": "<f2"}[tensor.dtype])
    return values.astype(np.float64).reshape(rows, -1)


@dataclass(frozen=True, slots=True)
class Prepared:
    """Both factors in memory, balanced, the right one cut into its slices.

    right = (right_high + right_low * 2**-bits) * 2**(right_exponent - bits), column by column.
    """

    left: Matrix
    right_high: Matrix
    right_slices: Matrix
    right_exponent: NDArray[np.int32]
    bits: int
    scale: float

    def rows(self, first: int, last: int) -> Matrix:
        """Rows `first` to `last` of the product."""
        with np.errstate(invalid="ignore", over="ignore"):
            high, low, exponent = _slices(self.left[first:last], self.bits, axis=1)
            result = high @ self.right_high
            rest = np.hstack([high, low]) @ self.right_slices
            rest *= 2.0**-self.bits
            result += rest
            # Scaling by powers of two is exact, so the product with `scale` is rounded once.
            result *= np.ldexp(self.scale, exponent - self.bits)
            result *= np.ldexp(1.0, self.right_exponent - self.bits)
        return result


def prepare(factors: Factors) -> Prepared:
    """The factors read into memory, balanced and sliced; raises CheckpointError when they cannot be read."""
    left, right = (
        matrix(factors.left, factors.rank if factors.transposed else factors.left.shape[0]),
        matrix(factors.right, factors.right.shape[0] if factors.transposed else factors.rank),
    )
    if factors.transposed:
        left, right = np.ascontiguousarray(left.T), np.ascontiguousarray(right.T)
    bits = (53 - 1 - (factors.rank - 1).bit_length()) // 2
    with np.errstate(invalid="ignore", over="ignore"):
        # One of the r terms may be large on the left and small on the right: level them first.
        shift = (_exponents(right, axis=1).ravel() - _exponents(left, axis=0).ravel()) // 2
        left, right = np.ldexp(left, shift[None, :]), np.ldexp(right, -shift[:, None])
        high, low, exponent = _slices(right, bits, axis=0)
    return Prepared(left, high, np.vstack([low, high]), exponent, bits, factors.scale)


def reader(
    shape: tuple[int, ...], factors: Factors, prepared: Callable[[Factors], Prepared] = prepare
) -> Callable[[int, memoryview], None]:
    """`Tensor.read` of the F64 tensor of `shape` that is the product; `prepared` may remember its answers."""
    columns = prod(shape) // shape[0]
    step = max(1, _TILE // (8 * columns))

    def read(start: int, out: memoryview) -> None:
        end = start + len(out)
        if start < 0 or end > 8 * prod(shape):
            raise ValueError(f"bytes {start} to {end} of a tensor of {8 * prod(shape)} bytes")
        last = -(-end // (8 * columns))
        for row in range(start // (8 * columns), last, step):
            origin = 8 * columns * row
            tile = prepared(factors).rows(row, min(row + step, last))
            data = memoryview(tile.astype("<f8", copy=False).reshape(-1).view(np.uint8).data)
            begin, stop = max(start, origin), min(end, origin + len(data))
            out[begin - start : stop - start] = data[begin - origin : stop - origin]

    return read


def _slices(values: Matrix, bits: int, axis: int) -> tuple[Matrix, Matrix, NDArray[np.int32]]:
    """(high, low, exponent): integers of at most 2**bits, with values = (high + low/2**bits) * 2**(exponent - bits)."""
    exponent = _exponents(values, axis)
    scaled = np.ldexp(values, bits - exponent)
    high = np.rint(scaled)
    return high, np.rint(np.ldexp(scaled - high, bits)), exponent


def _exponents(values: Matrix, axis: int) -> NDArray[np.int32]:
    """Exponent of the largest finite magnitude along `axis`, kept as an axis of one."""
    largest = np.max(np.abs(np.where(np.isfinite(values), values, 0)), axis=axis, keepdims=True)
    exponents: NDArray[np.int32] = np.frexp(largest)[1]
    return exponents
