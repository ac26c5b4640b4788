"""Dequantised tensors as the kinship pass reads them: float32 by position, from codes and scales read by position."""

import threading
from collections import OrderedDict
from collections.abc import Callable
from functools import partial

import numpy as np
from numpy.typing import NDArray

from kinbase.checkpoint.adapters import elements
from kinbase.checkpoint.contract import Grid, Tensor

Bytes = NDArray[np.uint8]
Floats = NDArray[np.float32]

Values = Callable[[int, Floats], None]
"""values(first, out): fill `out` with the elements from `first` on; `first` and len(out) are even where the last axis is."""

KEPT_BYTES = 64 << 20
"""Room for panels of codes and for scales that one checkpoint keeps; a larger one is kept alone."""

_SAMPLES = 16
_SAMPLED = 4096
"""Stretches and their elements that the steps of an uneven grid are counted in: an error of about one in a hundred."""

_PIECE = 1 << 20


class Kept:
    """What one checkpoint's tensors read last and will need again: panels and scales, the oldest dropped first."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._arrays: OrderedDict[object, tuple[NDArray[np.generic], ...]] = OrderedDict()
        self._nbytes = 0
        self._making: dict[object, threading.Lock] = {}

    def get(
        self, key: object, make: Callable[[], tuple[NDArray[np.generic], ...]]
    ) -> tuple[NDArray[np.generic], ...]:
        """The arrays kept under `key`, or made now, by one thread, which others wait for."""
        found = self._kept(key)
        if found is not None:
            return found
        with self._lock:
            mine = self._making.setdefault(key, threading.Lock())
        with mine:
            found = self._kept(key)
            if found is not None:
                return found
            made = make()
            with self._lock:
                self._making.pop(key, None)
                if key not in self._arrays:
                    self._nbytes += sum(array.nbytes for array in made)
                self._arrays[key] = made
                while self._nbytes > KEPT_BYTES and len(self._arrays) > 1:
                    self._nbytes -= sum(array.nbytes for array in self._arrays.popitem(last=False)[1])
        return made

    def _kept(self, key: object) -> tuple[NDArray[np.generic], ...] | None:
        with self._lock:
            if key in self._arrays:
                self._arrays.move_to_end(key)
            return self._arrays.get(key)

    def clear(self) -> None:
        """Forget everything: the checkpoint is closed."""
        with self._lock:
            self._arrays.clear()
            self._nbytes = 0


def raw(tensor: Tensor, start: int, length: int) -> Bytes:
    """Bytes of a tensor as it is stored."""
    data = np.empty(length, np.uint8)
    tensor.read(start, memoryview(data))  # type: ignore[arg-type]
    return data


def floats(tensor: Tensor, first: int, count: int) -> Floats:
    """Elements of a tensor of scales in float32; exponents (F8_E8M0) as the powers of two they stand for."""
    if tensor.dtype in ("F8_E8M0", "U8"):
        return powers(raw(tensor, first, count))
    if tensor.dtype == "F16":
        return raw(tensor, 2 * first, 2 * count).view(np.float16).astype(np.float32)
    if tensor.dtype == "F32":
        return raw(tensor, 4 * first, 4 * count).view(np.float32)
    return elements(tensor, first, count).astype(np.float32)


def powers(exponents: Bytes) -> Floats:
    """2^(e - 127) of bytes e, NaN for 255 (OCP Microscaling Formats 1.0, section 5.4.1)."""
    return _POWERS[exponents]


_POWERS = np.append(np.ldexp(1.0, np.arange(255) - 127), np.nan).astype(np.float32)


def dequantised(
    name: str, shape: tuple[int, ...], form: str, values: Values, steps: Callable[[], float]
) -> Tensor:
    """A tensor of float32 whose elements `values` gives, on the grid of the format called `form`."""
    return Tensor(name, "F32", shape, partial(_read, values), grid=Grid(form, steps))


def _read(values: Values, start: int, out: memoryview) -> None:
    """`Tensor.read` for any bytes: those of a half-wanted element are cut off."""
    if start % 8 == 0 and len(out) % 8 == 0:
        values(start // 4, np.frombuffer(out, np.float32))
        return
    first = start // 8 * 2
    last = -(-(start + len(out)) // 8) * 2
    whole = np.empty(last - first, np.float32)
    values(first, whole)
    skip = start - 4 * first
    out[:] = whole.view(np.uint8)[skip : skip + len(out)].data


def sampled(numel: int, squares: Callable[[int, int], float]) -> float:
    """The sum over `numel` elements of what `squares(first, count)` sums, from stretches spread over all of them."""
    if numel <= _SAMPLES * _SAMPLED:
        return squares(0, numel)
    starts = np.linspace(0, numel - _SAMPLED, _SAMPLES).astype(np.int64) // _SAMPLED * _SAMPLED
    return sum(squares(int(first), _SAMPLED) for first in starts) / (_SAMPLES * _SAMPLED) * numel


def of_values(values: Values, first: int, count: int) -> float:
    """The sum of squares of `values` from `first` on: for values that are the widths of steps."""
    out = np.empty(count + count % 2, np.float32)
    values(first, out)
    return float(np.square(out[:count], dtype=np.float64).sum())


def mean_square(scales: Tensor) -> float:
    """The mean square of a tensor of scales, whole, a piece at a time."""
    total = 0.0
    for first in range(0, scales.numel, _PIECE):
        total += float(
            np.square(floats(scales, first, min(_PIECE, scales.numel - first)), dtype=np.float64).sum()
        )
    return total / max(scales.numel, 1)


def widths(table: NDArray[np.float64]) -> NDArray[np.float64]:
    """How far the grid's values lie apart about each entry of `table`, NaN where it is not finite.

    Half the way to either neighbour; at the ends, where nothing larger is rounded, twice the half within.
    """
    values, inverse = np.unique(table[np.isfinite(table)], return_inverse=True)
    gaps = np.diff(values)
    if not len(gaps):
        return np.where(np.isfinite(table), 0.0, np.nan)
    about = np.concatenate([gaps[:1], (gaps[:-1] + gaps[1:]) / 2, gaps[-1:]])
    found = np.full(table.shape, np.nan)
    found[np.isfinite(table)] = about[inverse]
    return found
