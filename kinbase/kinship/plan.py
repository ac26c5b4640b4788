"""What a pass over one family reads and computes: which tensors meet, over which elements, who is hashed."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from kinbase.checkpoint import DTYPE_BYTES, FLOAT_DTYPES, Checkpoint, Tensor
from kinbase.checkpoint.alignment import labels, meet
from kinbase.checkpoint.digest import LEAF, model_digest
from kinbase.checkpoint.names import bare
from kinbase.kinship.layout import code_of

if TYPE_CHECKING:
    from kinbase.kinship.sums import TensorSums


@dataclass(frozen=True, slots=True)
class Lane:
    """A tensor to be read into row `slot` (0 the base, i + 1 member i): its first `numel` elements (a blob's bytes).

    `label` is its name in its model's sums, "" if it has none: no floating-point tensor, or not hashed.
    """

    slot: int
    tensor: Tensor
    numel: int
    hashed: bool
    width: int
    label: str = ""

    @property
    def is_digested(self) -> bool:
        """Whether its bytes are hashed as they are read: what is dequantised is hashed as it is stored, among the blobs."""
        return self.hashed and self.tensor.grid is None

    @property
    def code(self) -> int:
        """`layout.code_of` its tensor."""
        return code_of(self.tensor)


@dataclass(frozen=True, slots=True)
class Interval:
    """Elements up to `stop` in which the same members take part, `fresh` of them new."""

    stop: int
    members: NDArray[np.int64]
    fresh: int


@dataclass(frozen=True, slots=True)
class Job:
    """One tensor of all checkpoints.

    `cuts` [N] is the number of aligned elements, 0 where a member lacks the tensor; `unlisted` [N] says
    which members are adapters that leave it alone; `codes` [N + 1] are those of the rows' lanes.
    """

    position: int
    name: str
    lanes: list[Lane]
    cuts: NDArray[np.int64]
    unlisted: NDArray[np.bool_]
    codes: NDArray[np.int64]
    intervals: list[Interval]

    @property
    def numel(self) -> int:
        return max((lane.numel for lane in self.lanes), default=0)

    @property
    def leaf_bytes(self) -> int:
        return max(1, sum(min(lane.numel, LEAF) * lane.width for lane in self.lanes))

    @property
    def nbytes(self) -> int:
        return sum(lane.numel * lane.width for lane in self.lanes)


class Plan:
    """What a pass over one family reads and computes.

    The first `new` of `members` (default: all) are measured against all members and are hashed; the
    base is hashed if `hash_base`. A lone checkpoint is a base without members. `aligned[i]` is member
    i's tensor or None for each base tensor, `skipped[i]` {name: why it takes no part}, `hashed` the
    checkpoints that get a digest, `nbytes` what a run reads.
    """

    def __init__(
        self,
        base: Checkpoint,
        members: Sequence[Checkpoint] = (),
        *,
        new: int | None = None,
        hash_base: bool = False,
    ) -> None:
        self.base = base
        self.members = list(members)
        self.new = len(self.members) if new is None else new
        self.hashed = [base] * hash_base + self.members[: self.new]
        self._kept = [{bare(name) for name in member.skipped} for member in self.members]
        self.direct = np.array([member.delta_of is not None for member in self.members], np.bool_)
        self.aligned: list[list[Tensor | None]] = []
        self.skipped: list[dict[str, str]] = []
        for member in self.members:
            aligned, skipped = meet(base, member)
            self.aligned.append(aligned)
            self.skipped.append(skipped)
        self.hashed_slots = [0] * hash_base + [i + 1 for i in range(self.new)]
        # A view of a tensor in another layout is read for kinship alone: the tensor itself is hashed.
        self._own = [{id(t) for t in c.tensors} for c in (base, *self.members)]
        self._labels = {
            slot: labels(checkpoint.tensors)
            for slot, checkpoint in zip(self.hashed_slots, self.hashed, strict=True)
        }
        self.jobs = [self._base_job(position) for position in range(len(base.tensors))]
        self.jobs += self._outside_jobs()
        self.nbytes = sum(job.nbytes for job in self.jobs)

    @property
    def positions(self) -> range:
        """The positions of all tensors."""
        return range(len(self.jobs))

    def _base_job(self, position: int) -> Job:
        base = self.base.tensors[position]
        tensors = [aligned[position] for aligned in self.aligned]
        cuts = np.array([0 if t is None else min(t.numel, base.numel) for t in tensors], np.int64)
        # What an adapter holds but does not change by factors (modules_to_save) changed by nobody knows what.
        unlisted = np.array([t is None for t in tensors], np.bool_) & self.direct
        unlisted &= np.array([bare(base.name) not in kept for kept in self._kept], np.bool_)
        unlisted &= base.dtype in FLOAT_DTYPES
        subtracted = int(max(cuts[~self.direct], default=0))
        lanes = [self._lane(0, base, subtracted)]
        lanes += [self._lane(i + 1, t, int(cuts[i])) for i, t in enumerate(tensors) if t is not None]
        codes = np.zeros(len(tensors) + 1, np.int64)
        intervals = []
        if cuts.any():
            for lane in lanes:
                codes[lane.slot] = lane.code
        for stop in np.unique(cuts[cuts > 0]):
            active = np.flatnonzero(cuts >= stop)
            intervals.append(Interval(int(stop), active, int(np.searchsorted(active, self.new))))
        lanes = [lane for lane in lanes if lane.numel or lane.hashed]
        return Job(position, base.name, lanes, cuts, unlisted, codes, intervals)

    def _outside_jobs(self) -> Iterator[Job]:
        """Tensors that take no part in kinship but belong to the identity of a new member."""
        position = len(self.base.tensors)
        for i, member in enumerate(self.members[: self.new]):
            inside = {id(tensor) for tensor in self.aligned[i]}
            for tensor in member.tensors:
                if id(tensor) not in inside:
                    yield self._alone(position, self._lane(i + 1, tensor, 0))
                    position += 1
        for slot, checkpoint in zip(self.hashed_slots, self.hashed, strict=True):
            for blob in checkpoint.blobs:
                tensor = Tensor(blob.name, blob.dtype, blob.shape, blob.read)
                yield self._alone(position, Lane(slot, tensor, blob.nbytes, True, 1))
                position += 1

    def _alone(self, position: int, lane: Lane) -> Job:
        nobody = np.zeros(len(self.members), np.int64)
        codes = np.zeros(len(self.members) + 1, np.int64)
        return Job(position, lane.tensor.name, [lane], nobody, nobody.astype(np.bool_), codes, [])

    def _lane(self, slot: int, tensor: Tensor, needed: int) -> Lane:
        hashed = slot in self.hashed_slots and id(tensor) in self._own[slot]
        label = self._labels[slot].get(tensor.name, "") if hashed else ""
        numel = tensor.numel if hashed else needed
        return Lane(slot, tensor, numel, hashed, DTYPE_BYTES[tensor.dtype], label)

    def model_digests(self, results: Iterable["TensorSums"]) -> list[str]:
        """Digests of the checkpoints in `hashed`, from the results of all tensors, in any order."""
        found = [result.digests for result in results]
        return [model_digest(digests[k] for digests in found if digests[k]) for k in range(len(self.hashed))]
