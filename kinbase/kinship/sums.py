"""What a kinship pass returns: sums by tensor, a family's sums, and the pairs and weights derived from them.

These types stand below the pass that makes them and the store that keeps them.
"""

import os
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from kinbase.checkpoint import Checkpoint
from kinbase.errors import DiskError

if TYPE_CHECKING:  # the kernels take half a second to load
    from kinbase.kinship.sketch import TensorSketch
    from kinbase.kinship.sketch_correction import Change

FloatArray = NDArray[np.float64]

IN_MEMORY = 256 << 20
"""Bytes of the products of one family that are kept in memory: 360 members of 256 tensors."""

BLOCK_BYTES = 16 << 20
"""Bytes of products that are made into rows at a time: a fraction of a second of writing."""

STATISTICS = ("numel", "sum", "sumsq", "max_abs", "zeros", "nonfinite")


@dataclass(frozen=True, slots=True)
class TensorSums:
    """What the pass found in one tensor, for N members of which the first K are new.

    `position` counts the base's tensors; from len(base.tensors) on it counts tensors outside the base,
    which were read for their digest only. All arrays are float64. A member without this tensor has
    numel 0; one with a non-finite delta has NaN for sum, sumsq, max_abs and its products. `dot` [K, N]
    is NaN where the pair has no common elements. Members cut to different lengths share a prefix: `dot`
    is over that, and each row of `exceptions` (i, j, numel, sum_i, sum_j, sumsq_i, sumsq_j) gives the
    sums over it of a pair i < j of different lengths. `digests` are the tensor's, in the order of
    `Plan.hashed`, "" for a checkpoint without it; `weights` [H, 3] in the same order are the sums of
    `sketching.MOMENTS` over all its elements as stored, NaN for a checkpoint without it and where one is not
    finite; `sketches` are its sketches, None for a checkpoint without it.
    """

    position: int
    name: str
    numel: FloatArray
    sum: FloatArray
    sumsq: FloatArray
    max_abs: FloatArray
    zeros: FloatArray
    nonfinite: FloatArray
    dot: FloatArray
    exceptions: FloatArray
    digests: tuple[str, ...]
    weights: FloatArray
    sketches: "tuple[TensorSketch | None, ...]"


class Products:
    """The inner products of K new members with all N, of T tensors, [T, K, N]: of a large family in a file.

    Beyond `IN_MEMORY` bytes they lie in an unnamed file in `folder`, so that a pass over thousands of members takes
    no more memory than its tiles. What was not put is NaN.
    """

    def __init__(self, tensors: int, new: int, members: int, folder: Path | None = None) -> None:
        self.shape = (tensors, new, members)
        self._nbytes = 8 * new * members
        is_large = tensors * self._nbytes > IN_MEMORY
        self._array = None if is_large else np.full(self.shape, np.nan)
        self._folder = folder
        self._file = self._opened() if is_large else None
        self._is_put = np.zeros(tensors, np.bool_)

    def put(self, position: int, dot: FloatArray) -> None:
        """Keep the products [K, N] of the tensor at `position`; raises DiskError when there is no room for them."""
        self._is_put[position] = True
        if self._array is not None:
            self._array[position] = dot
            return
        assert self._file
        try:
            rest = memoryview(dot.tobytes())
            offset = position * self._nbytes
            while rest:
                written = os.pwrite(self._file.fileno(), rest, offset)
                rest, offset = rest[written:], offset + written
        except OSError as error:
            raise self._full(error) from None

    def tensor(self, position: int) -> FloatArray:
        """The products [K, N] of one tensor."""
        if self._array is not None:
            return np.asarray(self._array[position])
        assert self._file
        data = os.pread(self._file.fileno(), self._nbytes, position * self._nbytes)
        return np.frombuffer(data).reshape(self.shape[1:])

    def rows(self, first: int, stop: int) -> FloatArray:
        """The products of the new members `first` to `stop` with all, [T, stop - first, N]."""
        if self._array is not None:
            return self._array[:, first:stop]
        assert self._file
        tensors, _, members = self.shape
        rows = np.full((tensors, stop - first, members), np.nan)
        for position in np.flatnonzero(self._is_put).tolist():
            data = os.pread(
                self._file.fileno(),
                8 * members * (stop - first),
                position * self._nbytes + 8 * members * first,
            )
            rows[position] = np.frombuffer(data).reshape(-1, members)
        return rows

    def close(self) -> None:
        """Let go of the file."""
        if self._file:
            self._file.close()

    def _opened(self) -> IO[bytes]:
        try:
            return tempfile.TemporaryFile(prefix="kinbase-", dir=self._folder)
        except OSError as error:
            raise self._full(error) from None

    def _full(self, error: OSError) -> DiskError:
        tensors, new, members = self.shape
        return DiskError(
            f"the products of {new} x {members} members in {tensors} tensors ({tensors * self._nbytes >> 20} MiB) "
            f"cannot be kept in {self._folder or tempfile.gettempdir()}: {error.strerror or error}; make room there"
        )


@dataclass(frozen=True, slots=True)
class PairBlock:
    """Sums of P measured pairs of one family, a_id < b_id: totals over the tensors aligned in both, [P] each.

    `dots` [P, T] is <d_a, d_b> by position, NaN where a tensor is not aligned in both. `parts` are rows of
    (a_id, b_id, position from 1, numel, sum_a, sum_b, sumsq_a, sumsq_b) of tensors of which the two share fewer
    rows than either has.
    """

    a_id: NDArray[np.int32]
    b_id: NDArray[np.int32]
    numel: NDArray[np.int64]
    sum_a: FloatArray
    sum_b: FloatArray
    sumsq_a: FloatArray
    sumsq_b: FloatArray
    dots: FloatArray
    parts: list[tuple[int, int, int, int, float, float, float, float]]


@dataclass(slots=True)
class Weights:
    """Sums over the elements of a model's floating-point tensors, as stored: T tensors, `moments` [T, 3].

    The columns are x, x^2 and the squared distance from x to the next number of its dtype; a row is NaN
    where an element is not finite.
    """

    tensors: list[str]
    dtypes: list[str]
    numels: list[int]
    moments: FloatArray


@dataclass(slots=True)
class FamilySums:
    """A base, its members (the first `new` of them new), and what the pass found.

    `columns[s]` [T, N] holds statistic s of STATISTICS, `dots` [T, K, N] the inner products of new members
    with all, both by tensor position; `digests` are the content digests of the base, if it was new, and
    of the new members, by name; `weights` are those models' power sums and `sketches` [BUCKETS] their sketches;
    `notes` are lines on what was found of members' layers, by name, and `same` says of which model's weights a new
    member's are, how, and what shows it. `changes` says of those that do not fit the base called `fitted_to` what
    that adds (see `kinbase.kinship.sketch_correction`).
    """

    base: Checkpoint
    members: list[Checkpoint]
    new: int
    key: str
    tensors: list[tuple[str, int]]
    columns: dict[str, FloatArray]
    dots: Products
    exceptions: list[FloatArray]
    digests: dict[str, str]
    skipped: list[dict[str, str]]
    weights: dict[str, Weights]
    sketches: dict[str, FloatArray]
    fitted_to: str = ""
    changes: "dict[str, Change | None]" = field(default_factory=dict)
    notes: dict[str, list[str]] = field(default_factory=dict)
    same: dict[str, tuple[str, str, str]] = field(default_factory=dict)

    def fit(self, base: Checkpoint, members: Sequence[Checkpoint], *, is_gone: bool = False) -> None:
        """Find out which of `members` do not fit `base`, reading what does not. May raise CheckpointError.

        Where the base `is_gone`, only its tensors' names and sizes are known: layers of the same numbers meet by those.
        """
        from kinbase.kinship.layers import are_numbered_alike, place_all
        from kinbase.kinship.sketch_correction import misfit

        self.fitted_to = base.name
        for member in members:
            by_number = is_gone and are_numbered_alike(base, member)
            if not member.placed and member.name not in self.notes and not by_number:
                self.notes |= place_all(base, [member])
            if member.delta_of is None and (change := misfit(base, member)) is not None:
                self.changes[member.name] = change

    def forget(self, name: str) -> None:
        """Leave out what the pass found in a checkpoint that was not read by itself alone."""
        for found in (self.weights, self.sketches):
            found.pop(name, None)

    def coverage(self, member: int) -> float:
        """Aligned parameters of a member over the base's."""
        return float(self.columns["numel"][:, member].sum() / max(1, sum(numel for _, numel in self.tensors)))

    def statistics(self, member: int) -> Mapping[str, FloatArray]:
        """A member's statistics by tensor position, [T] each."""
        return {name: values[:, member] for name, values in self.columns.items()}

    def pair_count(self) -> int:
        """The pairs with a new member."""
        return self.new * len(self.members) - self.new * (self.new + 1) // 2

    def pairs(self, ids: Sequence[int | None]) -> Iterator[PairBlock]:
        """Sums of every pair with a new member, in blocks of some MB; a member without an id is left out."""
        tensors, count = len(self.tensors), len(self.members)
        step = max(1, BLOCK_BYTES // (8 * max(1, tensors) * max(1, count)))
        parts = self._parts()
        for first in range(0, self.new, step):
            stop = min(first + step, self.new)
            rows = self.dots.rows(first, stop)
            blocks = [
                block
                for i in range(first, stop)
                if (block := self._pairs_of(i, rows[:, i - first], ids, parts.get(i, {}))) is not None
            ]
            if blocks:
                yield _joined(blocks)

    def _parts(self) -> dict[int, dict[int, list[tuple[int, list[float]]]]]:
        """By new member and by other: position and sums of the tensors that they share less of than either has."""
        parts: dict[int, dict[int, list[tuple[int, list[float]]]]] = {}
        for position, rows in enumerate(self.exceptions):
            for i, j, *sums in rows.tolist():
                parts.setdefault(int(i), {}).setdefault(int(j), []).append((position, sums))
        return parts

    def _pairs_of(
        self,
        i: int,
        dots: FloatArray,
        ids: Sequence[int | None],
        parts: dict[int, list[tuple[int, list[float]]]],
    ) -> PairBlock | None:
        """The pairs of new member i, whose products are `dots` [T, N], with those after it."""
        others = np.array([j for j in range(i + 1, len(ids)) if ids[j] is not None], np.intp)
        own = ids[i]
        if own is None or not len(others):
            return None
        numel, total, sumsq = (self.columns[name] for name in ("numel", "sum", "sumsq"))
        dots = dots[:, others]
        sums = np.stack(
            [
                np.minimum(numel[:, i : i + 1], numel[:, others]),
                np.broadcast_to(total[:, i : i + 1], dots.shape),
                total[:, others],
                np.broadcast_to(sumsq[:, i : i + 1], dots.shape),
                sumsq[:, others],
            ]
        )
        rows = []
        for k, j in enumerate(others.tolist()):
            for position, values in parts.get(j, ()):
                sums[:, position, k] = values
                rows.append((own, ids[j], position + 1, int(values[0]), *values[1:]))
        both = ~np.isnan(dots)
        sums[:, ~both] = 0
        is_met = both.any(axis=0)
        if not is_met.any():
            return None
        n, sum_a, sum_b, sumsq_a, sumsq_b = sums.sum(axis=1)[:, is_met]
        b_id = np.array([ids[j] for j in others[is_met]], np.int32)
        a_id = np.full_like(b_id, own)
        swap = a_id > b_id
        return PairBlock(
            np.where(swap, b_id, a_id),
            np.where(swap, a_id, b_id),
            n.astype(np.int64),
            np.where(swap, sum_b, sum_a),
            np.where(swap, sum_a, sum_b),
            np.where(swap, sumsq_b, sumsq_a),
            np.where(swap, sumsq_a, sumsq_b),
            np.ascontiguousarray(dots[:, is_met].T),
            [_ordered(*row) for row in rows],
        )


def _ordered(
    a: int, b: int, position: int, numel: int, sum_a: float, sum_b: float, sumsq_a: float, sumsq_b: float
) -> tuple[int, int, int, int, float, float, float, float]:
    """A row of `PairBlock.parts` with the smaller id first."""
    if a < b:
        return a, b, position, numel, sum_a, sum_b, sumsq_a, sumsq_b
    return b, a, position, numel, sum_b, sum_a, sumsq_b, sumsq_a


def _joined(blocks: Sequence[PairBlock]) -> PairBlock:
    columns = ("a_id", "b_id", "numel", "sum_a", "sum_b", "sumsq_a", "sumsq_b", "dots")
    joined = {name: np.concatenate([getattr(block, name) for block in blocks]) for name in columns}
    return PairBlock(**joined, parts=[row for block in blocks for row in block.parts])
