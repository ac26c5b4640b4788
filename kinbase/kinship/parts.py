"""What workers have read of a tensor: pieces, the sums over them, and their end as a tensor's sums."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from kinbase.checkpoint import Tensor
from kinbase.checkpoint.digest import tensor_digest
from kinbase.kinship.plan import Job, Plan
from kinbase.kinship.sums import FloatArray, TensorSums

if TYPE_CHECKING:
    from kinbase.kinship.sketch import TensorSketch


@dataclass(frozen=True, slots=True)
class Piece:
    """Elements start..stop of a job, whole spans of leaves; `last` if the tensor ends here."""

    job: Job
    start: int
    stop: int
    last: bool
    sketches: "dict[int, TensorSketch]"  # by slot


def sketches_of(job: Job) -> "dict[int, TensorSketch]":
    """A new sketch, by slot, for each tensor of a job that gets one."""
    from kinbase.kinship.sketch import TensorSketch

    return {lane.slot: TensorSketch(lane.label, lane.numel) for lane in job.lanes if lane.label}


@dataclass(slots=True)
class Part:
    """Sums over one piece, or over several in a row. C intervals, N members, K of them new."""

    piece: Piece
    nbytes: int
    stats: FloatArray  # [3, N]: largest magnitude, zeros, non-finite
    sums: FloatArray  # [C, N]
    sumsq: FloatArray  # [C, N]
    dot: FloatArray  # [K, N], right of the diagonal
    leaves: dict[int, list[bytes]]  # by slot
    weights: dict[int, list[FloatArray]]  # by slot, [3] a leaf

    def followed_by(self, later: "Part") -> "Part":
        np.maximum(self.stats[0], later.stats[0], out=self.stats[0])
        self.stats[1:] += later.stats[1:]
        self.sums += later.sums
        self.sumsq += later.sumsq
        self.dot += later.dot
        for slot, leaves in later.leaves.items():
            self.leaves[slot] += leaves
        for slot, weights in later.weights.items():
            self.weights[slot] += weights
        return self

    @classmethod
    def nothing(cls, plan: Plan, piece: Piece) -> "Part":
        """Sums before anything was read."""
        job, members, new = piece.job, len(plan.members), plan.new
        intervals = len(job.intervals)
        return cls(
            piece,
            0,
            np.zeros((3, members)),
            np.zeros((intervals, members)),
            np.zeros((intervals, members)),
            np.zeros((new, members)),
            {lane.slot: [] for lane in job.lanes if lane.hashed},
            {slot: [] for slot in piece.sketches},
        )


def _moments(leaves: list[FloatArray], tensor: Tensor) -> FloatArray:
    """The power sums [3] of a tensor: its leaves' added, the same however many pieces they came in.

    Of a dequantised one the steps are its grid's, not those of the dtype its values are read in.
    """
    sums = np.array(leaves).reshape(-1, 3)
    if not np.isfinite(sums).all():
        return np.full(3, np.nan)
    total = np.asarray(sums.sum(axis=0))
    if tensor.grid is not None:
        total[2] = tensor.grid.steps()
    return total


def result(plan: Plan, total: Part) -> TensorSums:
    job = total.piece.job
    new = plan.new
    numel = np.where(job.unlisted, _base_numel(plan, job), job.cuts).astype(np.float64)
    broken = total.stats[2] > 0
    sums, sumsq = np.cumsum(total.sums, 0), np.cumsum(total.sumsq, 0)
    sums[:, broken] = sumsq[:, broken] = np.nan
    dot = total.dot
    square = np.triu(dot[:, :new], 1)
    dot[:, :new] = square + square.T
    whole = (sums[-1], sumsq[-1]) if len(sums) else (np.zeros(len(numel)), np.zeros(len(numel)))
    dot[np.arange(new), np.arange(new)] = whole[1][:new]
    lacking = broken | (numel == 0)
    dot[lacking[:new]] = np.nan
    dot[:, lacking] = np.nan
    stops = [interval.stop for interval in job.intervals]
    exceptions = []
    for i, j in zip(*np.nonzero((numel[:new, None] != numel) & ~np.isnan(dot)), strict=True):
        if i < j:
            both = min(numel[i], numel[j])
            at = stops.index(both)
            exceptions.append((i, j, both, sums[at, i], sums[at, j], sumsq[at, i], sumsq[at, j]))
    lanes = {lane.slot: lane.tensor for lane in job.lanes}
    digests = tuple(
        # What is dequantised is hashed as it is stored, among the blobs.
        tensor_digest(lanes[slot], total.leaves[slot])
        if slot in total.leaves and lanes[slot].grid is None
        else ""
        for slot in plan.hashed_slots
    )
    return TensorSums(
        position=job.position,
        name=job.name,
        numel=numel,
        sum=whole[0],
        sumsq=whole[1],
        max_abs=np.where(broken, np.nan, total.stats[0]),
        zeros=np.where(job.unlisted, numel, total.stats[1]),
        nonfinite=total.stats[2],
        dot=dot,
        exceptions=np.array(exceptions, np.float64).reshape(-1, 7),
        digests=digests,
        weights=np.array(
            [
                _moments(total.weights[slot], lanes[slot]) if slot in total.weights else np.full(3, np.nan)
                for slot in plan.hashed_slots
            ]
        ).reshape(-1, 3),
        sketches=tuple(total.piece.sketches.get(slot) for slot in plan.hashed_slots),
    )


def _base_numel(plan: Plan, job: Job) -> int:
    """Elements of the base's tensor; 0 for a tensor outside the base."""
    return plan.base.tensors[job.position].numel if job.position < len(plan.base.tensors) else 0
