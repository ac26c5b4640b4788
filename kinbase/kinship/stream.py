"""The streaming kinship pass: one reading of a family gives every sum that kinship is derived from.

For base weights theta_0 and members theta_i the pass takes, tensor by tensor, the deltas
d_i = theta_i - theta_0 over the aligned elements and returns per member their count, sum, sum of
squares, largest magnitude, zeros and non-finite values, and the inner products <d_i, d_j>; pcc, cs and
ed follow by algebra (schema/views). The same reading hashes the checkpoints that are new, and takes the
power sums and the sketch of their weights (`kinbase.kinship.sketch`)::

    plan = Plan(base, members, new=2)
    for sums in run(plan): ...          # one TensorSums a tensor, in the order of the base

A tensor is cut into leaves of 2**18 elements and a leaf is read in tiles into reusable buffers: a worker holds one
tile of every checkpoint, however large the models are. On the CPU one call reads, hashes, sketches and multiplies a
span of four leaves (`kinbase.kinship.spans`); elsewhere, and where the system lacks what that needs, each tile goes
through `Tensor.read` and `Tiles.add`. Partial sums are combined in the order of the leaves, so the result has
the same bits either way and whatever the number of threads.
"""

import os
import threading
from collections import deque
from collections.abc import Callable, Container, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import numpy as np
import xxhash
from numpy.typing import NDArray

from kinbase.checkpoint.digest import LEAF, SPAN, tensor_digest
from kinbase.kinship.plan import Job, Lane, Plan
from kinbase.kinship.sums import FloatArray, TensorSums

if TYPE_CHECKING:  # the kernels take half a second to load
    from kinbase.kinship.sketch import Buffers, TensorSketch
    from kinbase.kinship.spans import Spans

__all__ = ["FloatArray", "Plan", "TensorSums", "run"]

TILE_BYTES = 32 << 20
"""Room for the tiles of all workers together: what bounds the memory of the pass."""

PIECE_BYTES = 8 << 20
"""Raw bytes handed to a worker at a time: enough that handing over costs nothing."""


def run(
    plan: Plan,
    *,
    device: str = "cpu",
    threads: int | None = None,
    done: Container[int] = (),
    on_bytes: Callable[[int], None] | None = None,
) -> Iterator[TensorSums]:
    """Yield the sums of each tensor whose position is not in `done`, in the order of the plan.

    `device` is what `gpu.resolve_device` returned. `on_bytes` is called from this thread with the bytes
    read (or not read again) since it was last called; its arguments add up to `plan.nbytes`. Closing the
    generator, or an interrupt, stops the workers between two tiles and joins them. Raises what
    `Tensor.read` raises: CheckpointError for a file that is shorter than it said.
    """
    report = on_bytes or (lambda _: None)
    jobs = [job for job in plan.jobs if job.position not in done]
    report(plan.nbytes - sum(job.nbytes for job in jobs))
    count = threads or min(os.cpu_count() or 1, 16)
    rows = len(plan.members) + 1
    row_bytes = _row_bytes(rows * count)
    free: deque[Worker] = deque(_worker(device, rows, row_bytes) for _ in range(count))
    stop = threading.Event()
    pool = ThreadPoolExecutor(count, thread_name_prefix="kinbase-pass")
    batches = _batches(jobs, 8 * plan.new * len(plan.members))
    window: deque[Future[list[Part]]] = deque()
    total: Part | None = None
    try:
        while True:
            while len(window) < 2 * count and (batch := next(batches, None)):
                window.append(pool.submit(_work, plan, batch, free, row_bytes, stop))
            if not window:
                return
            for part in window.popleft().result():
                total = part if total is None else total.followed_by(part)
                report(part.nbytes)
                if part.piece.last:
                    yield _result(plan, total)
                    total = None
    finally:
        stop.set()
        pool.shutdown(cancel_futures=True)


class Tiles(Protocol):
    """A worker's buffers and its arithmetic: `kernels.CpuTiles`, which documents it, or `gpu.TorchTiles`."""

    rows: list[memoryview]

    def add(
        self,
        start: int,
        stop: int,
        codes: NDArray[np.int64],
        direct: NDArray[np.bool_],
        members: NDArray[np.int64],
        fresh: int,
        stats: FloatArray,
        sums: FloatArray,
        sumsq: FloatArray,
        dot: FloatArray,
    ) -> None: ...


@dataclass(frozen=True, slots=True)
class Worker:
    """What one thread reads into and computes in; `spans` where one call does both."""

    tiles: Tiles
    buffers: "Buffers"
    spans: "Spans | None" = None


def _worker(device: str, rows: int, row_bytes: int) -> Worker:
    from kinbase.kinship.sketch import Buffers

    buffers = Buffers(rows)
    if device == "cpu":
        from kinbase.kinship.cpu import CpuTiles
        from kinbase.kinship.spans import Spans

        tiles = CpuTiles(rows, row_bytes)
        return Worker(tiles, buffers, Spans(tiles, buffers) if Spans.can_run() else None)
    from kinbase.kinship.gpu import TorchTiles

    return Worker(TorchTiles(device, rows, row_bytes), buffers)


def _row_bytes(rows: int) -> int:
    """Bytes of a row of a tile, for so many rows in all: a power of two, shrinking as the family grows.

    Reads of 256 KiB spend little in Python and are still in a near cache when they are hashed and
    decoded; below 32 KiB a read costs more than its bytes. The CPU's sums do not depend on it.
    """
    return 1 << min(18, max(15, (TILE_BYTES // rows).bit_length() - 1))


@dataclass(frozen=True, slots=True)
class Piece:
    """Elements start..stop of a job, whole spans of leaves; `last` if the tensor ends here."""

    job: Job
    start: int
    stop: int
    last: bool
    sketches: "dict[int, TensorSketch]"  # by slot


def _batches(jobs: Iterable[Job], part_bytes: int) -> Iterator[list[Piece]]:
    """Group the jobs' pieces into tasks: large tensors are split, small ones share a task.

    Where a tensor is split depends on the family alone, never on its neighbours or the threads.
    `part_bytes` is what the sums of one piece take, which for a small tensor of a large family is more
    than its weights.
    """
    from kinbase.kinship.sketch import TensorSketch

    batch: list[Piece] = []
    room = PIECE_BYTES
    for job in jobs:
        step = SPAN * max(1, PIECE_BYTES * LEAF // (SPAN * job.leaf_bytes))
        sketches = {lane.slot: TensorSketch(lane.label, lane.numel) for lane in job.lanes if lane.label}
        for start in range(0, max(job.numel, 1), step):
            stop = min(start + step, job.numel)
            batch.append(Piece(job, start, stop, stop == job.numel, sketches))
            room -= (stop - start) * job.leaf_bytes // LEAF + part_bytes
            if room <= 0:
                yield batch
                batch, room = [], PIECE_BYTES
    if batch:
        yield batch


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


def _work(
    plan: Plan, batch: list[Piece], free: deque[Worker], row_bytes: int, stop: threading.Event
) -> list[Part]:
    worker = free.pop()
    try:
        return [_read_piece(plan, piece, worker, row_bytes, stop) for piece in batch]
    finally:
        free.append(worker)


def _read_piece(plan: Plan, piece: Piece, worker: Worker, row_bytes: int, stop: threading.Event) -> Part:
    part = _nothing(plan, piece)
    step = min(LEAF, row_bytes // max((lane.width for lane in piece.job.lanes), default=1))
    if worker.spans:
        for start in range(piece.start, piece.stop, SPAN):
            worker.spans.read(plan, part, start, min(start + SPAN, piece.stop), step, stop.is_set)
    else:
        _read_tiles(plan, part, worker, step, stop)
    return part


def _nothing(plan: Plan, piece: Piece) -> Part:
    job, members, new = piece.job, len(plan.members), plan.new
    intervals = len(job.intervals)
    return Part(
        piece,
        0,
        np.zeros((3, members)),
        np.zeros((intervals, members)),
        np.zeros((intervals, members)),
        np.zeros((new, members)),
        {lane.slot: [] for lane in job.lanes if lane.hashed},
        {slot: [] for slot in piece.sketches},
    )


def _read_tiles(plan: Plan, part: Part, worker: Worker, step: int, stop: threading.Event) -> None:
    """Read a piece tile by tile, each row through `Tensor.read`."""
    piece, tiles = part.piece, worker.tiles
    job = piece.job
    hashers = {slot: xxhash.xxh3_128() for slot in part.leaves}
    for start in range(piece.start, piece.stop, step):
        if stop.is_set():
            return
        ends_leaf = (start + step) % LEAF == 0
        for lane in job.lanes:
            elements = min(step, lane.numel - start)
            if elements <= 0:
                continue
            raw = tiles.rows[lane.slot][: elements * lane.width]
            lane.tensor.read(start * lane.width, raw)
            part.nbytes += len(raw)
            if lane.hashed:
                hasher = hashers[lane.slot]
                hasher.update(raw)
                if lane.label:
                    _weigh(part, lane, raw, start, worker.buffers)
                if ends_leaf or start + elements == lane.numel:
                    part.leaves[lane.slot].append(hasher.digest())
                    hasher.reset()
                if lane.label and ((start + step) % SPAN == 0 or start + elements == lane.numel):
                    piece.sketches[lane.slot].flush(worker.buffers, lane.slot)
        begin = start
        for interval, sums, sumsq in zip(job.intervals, part.sums, part.sumsq, strict=True):
            end = min(interval.stop, start + step)
            if begin < end:
                tiles.add(
                    begin - start,
                    end - start,
                    job.codes,
                    plan.direct,
                    interval.members,
                    interval.fresh,
                    part.stats,
                    sums,
                    sumsq,
                    part.dot,
                )
                begin = end


def _weigh(part: Part, lane: Lane, raw: memoryview, start: int, buffers: "Buffers") -> None:
    """Add a tile to its leaf's power sums and sketch."""
    leaves = part.weights[lane.slot]
    if start % LEAF == 0:
        leaves.append(np.zeros(3))
    part.piece.sketches[lane.slot].weigh(raw, start, lane.tensor.dtype, buffers, lane.slot, leaves[-1])


def _moments(leaves: list[FloatArray]) -> FloatArray:
    """The power sums [3] of a tensor: its leaves' added, the same however many pieces they came in."""
    sums = np.array(leaves).reshape(-1, 3)
    if not np.isfinite(sums).all():
        return np.full(3, np.nan)
    return np.asarray(sums.sum(axis=0))


def _result(plan: Plan, total: Part) -> TensorSums:
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
        tensor_digest(lanes[slot], total.leaves[slot]) if slot in total.leaves else ""
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
                _moments(total.weights[slot]) if slot in total.weights else np.full(3, np.nan)
                for slot in plan.hashed_slots
            ]
        ).reshape(-1, 3),
        sketches=tuple(total.piece.sketches.get(slot) for slot in plan.hashed_slots),
    )


def _base_numel(plan: Plan, job: Job) -> int:
    """Elements of the base's tensor; 0 for a tensor outside the base."""
    return plan.base.tensors[job.position].numel if job.position < len(plan.base.tensors) else 0
