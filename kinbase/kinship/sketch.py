"""What a model's weights say by themselves: power sums of each tensor, and a seeded linear sketch of all of them.

One kernel (`sketch_kernels.weigh`) takes the raw bytes of a tile of one checkpoint and does both. The sketch is a
rotated block CountSketch: a tensor is cut into cells of CELL elements, a cell is laid over BUCKETS sums from a random place on,
each element with a random sign, both by a hash of the tensor's name, the cell's number and SEED. In a tensor's first
BUCKETS elements each has a sum to itself, so that a short vector keeps its length; after them two neighbours share
one. So it is linear (the sketch of a difference is the difference of the sketches), unbiased, and the same however
the tensors are ordered, sharded and read; models of other shapes share what they have in common.

Two sketches give the cosine of their vectors with standard deviation (1 - c^2) / sqrt(BUCKETS)
(Charikar, Chen, Farach-Colton 2002; Weinberger et al. 2009, arXiv 0902.2206, lemma 2). That neighbours always meet raises
the variance by the share BUCKETS / 2n, of n elements that changed alike. They cannot prove two models equal: digests do.
"""

import ctypes
import threading
from collections import deque
from functools import cache
from hashlib import blake2b
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kinbase.kinship import native
from kinbase.kinship.layout import BUCKETS, CELL, ROW, WIDTHS

SEED = 0
SCHEME = f"block-countsketch-3 k={BUCKETS} cell={CELL} seed={SEED}"
"""Names algorithm and parameters: only sketches of one scheme compare."""

MOMENTS = ("sum", "sumsq", "ulpsq")
"""Sums over the elements x of a tensor: x, x^2, and the squared distance from x to the next number of its dtype.

The third, of 16- and 8-bit dtypes, is counted in the first cell of each leaf; the others have their part in
proportion to their squares, to which it stands as 4^-bits to 1..4.
"""

GROUPS = 16
"""Parts of a sketch left out in turn to see how far its estimates spread."""

STEPS = np.array(
    [
        [2.0**-power for power in (1022, 126, 14, 126, 6, 14, 126)],
        [4.0**-bits for bits in (52, 23, 10, 7, 3, 2, 23)],
    ]
)
"""By code: the smallest normal number, and the squared distance from 1 to the next number."""

FloatArray = NDArray[np.float64]


# Sketches as they are made.


@cache
def signs_table() -> NDArray[np.uint32]:
    """Two rows of ROW words, in each the random signs of two elements: a cell's are the products of a stretch of each."""
    seeds = np.arange(4 * ROW, dtype=np.uint64) + np.uint64(_number(f"signs {SEED}"))
    x = seeds * np.uint64(0x9E3779B97F4A7C15)
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        x = (x ^ (x >> np.uint64(shift))) * np.uint64(factor)
    bits = ((x >> np.uint64(63)) << np.uint64(15)).astype(np.uint16)
    words = bits.view(np.uint32)
    room = np.empty(len(words) + 16, np.uint32)  # of which to take what begins with a cache line
    aligned = room[-room.ctypes.data % 64 // 4 :][: len(words)]
    aligned[:] = words
    return aligned


def _number(text: str) -> int:
    return int.from_bytes(blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest(), "little")


def empty() -> FloatArray:
    """The sketch of nothing."""
    return np.zeros(BUCKETS)


_spent: deque[FloatArray] = deque(maxlen=256)
"""Arrays to be used again: getting new ones from the system takes longer than filling them."""


class TensorSketch:
    """The sketch of one tensor, while several threads read it.

    `label` is the name it goes by whatever a file calls it (see `alignment.labels`). A tensor of up to BUCKETS
    elements is kept as it is, signed; of a larger one whole spans are added to BUCKETS sums.
    """

    def __init__(self, label: str, numel: int) -> None:
        self.key = ctypes.c_int64(_number(f"{SEED} {label}")).value
        self.is_small = numel <= BUCKETS
        self._values: NDArray[Any] = np.zeros(-(-numel // CELL) * CELL if self.is_small else 0, np.float32)
        self._lock = threading.Lock()

    def weigh(
        self, raw: memoryview, start: int, code: int, buffers: "Buffers", slot: int, sums: FloatArray
    ) -> None:
        """Take elements from `start` on, `raw` holding their bytes, of which `slot` says whose they are.

        `code` is what the kernels know them by (`layout.code_of`). Added to `sums` [3]: MOMENTS. What a span holds stays
        in the buffers until `flush`. 16- and 8-bit elements, and what is dequantised, are added in float32 within a cell,
        others in float64; a cell's sums always in float64.
        """
        window = self.window(buffers, slot)
        data = np.frombuffer(raw, np.uint8)
        signs = signs_table()
        native.call(
            "weigh", native.address(data), len(data), start, len(data) // WIDTHS[code], code, self.key,
            native.address(signs), len(signs), native.address(buffers.spare), native.address(window), len(window), self.is_small,
            native.address(STEPS), native.address(sums),
        )  # fmt: skip

    def window(self, buffers: "Buffers", slot: int) -> NDArray[np.float32]:
        """Where the elements of a span are added: the tensor's own place if it is small, else one of the buffers."""
        return self._values if self.is_small else buffers.windows[slot]

    def flush(self, buffers: "Buffers", slot: int) -> None:
        """Add what the buffers hold of a span that ends."""
        if self.is_small:
            return
        window = buffers.windows[slot]
        with self._lock:
            fresh = not len(self._values)
            if fresh:
                self._values = _spent.pop() if _spent else np.empty(BUCKETS)
            native.call("flush", native.address(window), native.address(self._values), fresh)

    def pour(self, total: FloatArray) -> None:
        """Add the tensor to the sketch of its model [BUCKETS], once."""
        if self.is_small:
            native.call(
                "place", native.address(self._values), len(self._values), self.key, native.address(total)
            )
        elif len(self._values):
            total += self._values
            _spent.append(self._values)
            self._values = self._values[:0]


class Buffers:
    """One worker's windows [rows, BUCKETS + CELL], a checkpoint each; memory that is not used is not taken."""

    def __init__(self, rows: int = 1) -> None:
        self.spare = np.empty(CELL + 1, np.float32)
        self.windows = np.zeros((rows, BUCKETS + CELL), np.float32)


# Sketches as they are compared.


def similarity(
    a: NDArray[np.float32], b: NDArray[np.float32], base: NDArray[np.float32] | None = None
) -> tuple[float, float]:
    """Cosine of the vectors behind two sketches [BUCKETS], less `base` if given, and its standard error.

    NaN where one of them is zero. See `compare`.
    """
    one, other = (np.asarray(x, np.float32) if base is None else x - base for x in (a, b))
    cosine, stderr = compare(one, other[None])[:2]
    return float(cosine[0]), float(stderr[0])


def compare(
    one: NDArray[np.float32], many: NDArray[np.float32]
) -> tuple[FloatArray, FloatArray, FloatArray, FloatArray, FloatArray]:
    """Cosine of `one` [BUCKETS] with each of `many` [M, BUCKETS], its standard error, and <x, y>, |x|^2, |y|^2: [M] each.

    The error is (1 - c^2) / sqrt(BUCKETS), or the jackknife over GROUPS parts of the sketch where that is
    larger: so it is for a change of few elements, and 1 where one part holds all there is.
    """
    x = one.reshape(1, GROUPS, -1)
    y = many.reshape(len(many), GROUPS, -1)
    dot = np.einsum("mgk,mgk->mg", np.broadcast_to(x, y.shape), y, dtype=np.float64)
    xx = np.broadcast_to(np.einsum("mgk,mgk->mg", x, x, dtype=np.float64), dot.shape)
    yy = np.einsum("mgk,mgk->mg", y, y, dtype=np.float64)
    sums = [part.sum(1) for part in (dot, xx, yy)]
    with np.errstate(divide="ignore", invalid="ignore"):
        cosine = np.clip(sums[0] / np.sqrt(sums[1] * sums[2]), -1, 1)
        rest = [total[:, None] - part for total, part in zip(sums, (dot, xx, yy), strict=True)]
        without = np.nan_to_num(rest[0] / np.sqrt(rest[1] * rest[2]), posinf=0.0, neginf=0.0)
    spread = np.sqrt((GROUPS - 1) * without.var(1))
    stderr = np.minimum(np.maximum((1 - cosine**2) / np.sqrt(BUCKETS), spread), 1.0)
    return cosine, np.where(np.isnan(cosine), np.nan, stderr), *sums


def folded(delta: NDArray[np.float32], size: int) -> NDArray[np.float32] | None:
    """A sketch [BUCKETS] as one of `size` buckets, of length 1; None for a zero one."""
    coarse = delta.reshape(-1, size).sum(0, dtype=np.float64)
    length = np.linalg.norm(coarse)
    return (coarse / length).astype(np.float32) if length > 0 else None
