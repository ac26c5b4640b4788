"""A worker's buffers on the CPU, and the calls of the kernels on them (`kinbase.kinship.kernels`, compiled by `native`)."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from kinbase.kinship import native
from kinbase.kinship.layout import NARROW, PADDING

SCRATCH_BYTES = 1 << 19
"""Room for the float32 deltas of one block of all members: half a second-level cache."""


class CpuTiles:
    """One worker's buffers: a row of raw bytes a checkpoint, and the kernels' scratch blocks."""

    def __init__(self, rows: int, row_bytes: int) -> None:
        self._raw = np.empty((rows, row_bytes + 4 * PADDING), np.uint8)
        # Long blocks hide the horizontal sums at their end, short ones keep the deltas in cache. They lie
        # on a grid that tiles are whole cells of, so that the size of a tile changes no sum.
        block = 1 << min(11, max(9, (SCRATCH_BYTES // 4 // rows).bit_length() - 1))
        self._scratch: tuple[NDArray[Any], ...] = (
            np.empty((rows + 1, block + PADDING), np.float32),
            np.empty((2, rows), np.int32),
            np.zeros((rows + 1, block + PADDING), np.float64),
        )
        self.rows = [memoryview(row)[:row_bytes] for row in self._raw]  # type: ignore[arg-type]
        self._where = (
            native.address(self._raw), rows, self._raw.shape[1], block, *map(native.address, self._scratch)
        )  # fmt: skip

    def where(self, new: int) -> tuple[int, ...]:
        """The buffers [8] as an entry takes them, for a family of `new` new members."""
        return (*self._where, new)

    def add(
        self,
        start: int,
        stop: int,
        codes: NDArray[np.int64],
        direct: NDArray[np.bool_],
        members: NDArray[np.int64],
        fresh: int,
        stats: NDArray[np.float64],
        sums: NDArray[np.float64],
        sumsq: NDArray[np.float64],
        dot: NDArray[np.float64],
    ) -> None:
        """Add elements start..stop of the rows to the sums of a family of N members.

        Row 0 holds the base and row i + 1 member i; `codes` [N + 1] are their dtypes as positions in
        FLOAT_DTYPES, and `direct` [N] says whose row is a delta already. `members` are the indices
        taking part, ascending, `fresh` of them below K. Added to: `stats` [3, N] (largest magnitude,
        zeros, non-finite deltas), `sums` [N], `sumsq` [N], and `dot` [K, N] right of the diagonal.
        """
        native.call(
            "add", *self.where(len(dot)), start, stop, native.address(members), len(members), fresh,
            is_narrow(codes, direct, members),
            *(native.address(array) for array in (codes, direct, stats, sums, sumsq, dot)),
        )  # fmt: skip


def is_narrow(codes: NDArray[np.int64], direct: NDArray[np.bool_], members: NDArray[np.int64]) -> bool:
    """Whether base and members are all weights of 16 or 8 bits, whose deltas float32 holds."""
    return bool((codes[members + 1] >= NARROW).all() and codes[0] >= NARROW and not direct[members].any())
