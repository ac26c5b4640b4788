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
span of four leaves (`kinbase.kinship.spans`); where the system lacks what that needs, each tile goes through
`Tensor.read` and `CpuTiles.add`; a GPU takes slabs (`kinbase.kinship.slabs`). Partial sums are combined in the order
of the leaves, so the result has the same bits whatever the number of threads.
"""

import os
import threading
from collections import deque
from collections.abc import Callable, Container, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING

from kinbase.checkpoint.digest import LEAF, SPAN
from kinbase.kinship.parts import Part, Piece, result, sketches_of
from kinbase.kinship.plan import Job, Plan
from kinbase.kinship.sums import FloatArray, TensorSums

if TYPE_CHECKING:  # the kernels take half a second to load
    from kinbase.kinship.cpu import CpuTiles
    from kinbase.kinship.sketch import Buffers
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
    count = threads or min(_cores(), 16)
    if device == "cpu":
        yield from _run_on_cpu(plan, jobs, count, report)
    else:
        from kinbase.kinship.slabs import run_on_device

        yield from run_on_device(device, plan, jobs, count, report)


def _cores() -> int:
    """The cores that this process may use: of a shared machine a scheduler gives some."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _run_on_cpu(
    plan: Plan, jobs: list[Job], count: int, report: Callable[[int], None]
) -> Iterator[TensorSums]:
    rows = len(plan.members) + 1
    row_bytes = _row_bytes(rows * count)
    free: deque[Worker] = deque(_worker(rows, row_bytes) for _ in range(count))
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
                    yield result(plan, total)
                    total = None
    finally:
        stop.set()
        pool.shutdown(cancel_futures=True)


@dataclass(frozen=True, slots=True)
class Worker:
    """What one thread reads into and computes in; `spans` where one call does both."""

    tiles: "CpuTiles"
    buffers: "Buffers"
    spans: "Spans | None"


def _worker(rows: int, row_bytes: int) -> Worker:
    from kinbase.kinship.cpu import CpuTiles
    from kinbase.kinship.sketch import Buffers
    from kinbase.kinship.spans import Spans

    tiles, buffers = CpuTiles(rows, row_bytes), Buffers(rows)
    return Worker(tiles, buffers, Spans(tiles, buffers) if Spans.can_run() else None)


def _row_bytes(rows: int) -> int:
    """Bytes of a row of a tile, for so many rows in all: a power of two, shrinking as the family grows.

    Reads of 256 KiB spend little in Python and are still in a near cache when they are hashed and
    decoded; below 32 KiB a read costs more than its bytes. The CPU's sums do not depend on it.
    """
    return 1 << min(18, max(15, (TILE_BYTES // rows).bit_length() - 1))


def _batches(jobs: Iterable[Job], part_bytes: int) -> Iterator[list[Piece]]:
    """Group the jobs' pieces into tasks: large tensors are split, small ones share a task.

    Where a tensor is split depends on the family alone, never on its neighbours or the threads.
    `part_bytes` is what the sums of one piece take, which for a small tensor of a large family is more
    than its weights.
    """
    batch: list[Piece] = []
    room = PIECE_BYTES
    for job in jobs:
        step = SPAN * max(1, PIECE_BYTES * LEAF // (SPAN * job.leaf_bytes))
        sketches = sketches_of(job)
        for start in range(0, max(job.numel, 1), step):
            stop = min(start + step, job.numel)
            batch.append(Piece(job, start, stop, stop == job.numel, sketches))
            room -= (stop - start) * job.leaf_bytes // LEAF + part_bytes
            if room <= 0:
                yield batch
                batch, room = [], PIECE_BYTES
    if batch:
        yield batch


def _work(
    plan: Plan, batch: list[Piece], free: deque[Worker], row_bytes: int, stop: threading.Event
) -> list[Part]:
    worker = free.pop()
    try:
        return [_read_piece(plan, piece, worker, row_bytes, stop) for piece in batch]
    finally:
        free.append(worker)


def _read_piece(plan: Plan, piece: Piece, worker: Worker, row_bytes: int, stop: threading.Event) -> Part:
    part = Part.nothing(plan, piece)
    step = min(LEAF, row_bytes // max((lane.width for lane in piece.job.lanes), default=1))
    if worker.spans:
        for start in range(piece.start, piece.stop, SPAN):
            worker.spans.read(plan, part, start, min(start + SPAN, piece.stop), step, stop.is_set)
    else:
        _read_tiles(plan, part, worker, step, stop)
    return part


def _read_tiles(plan: Plan, part: Part, worker: Worker, step: int, stop: threading.Event) -> None:
    """Read a piece tile by tile, each row through `Tensor.read`."""
    from kinbase.kinship.lanes import LaneReader

    piece, tiles = part.piece, worker.tiles
    job = piece.job
    readers = [LaneReader(lane, part, worker.buffers) for lane in job.lanes]
    for start in range(piece.start, piece.stop, step):
        if stop.is_set():
            return
        for lane, reader in zip(job.lanes, readers, strict=True):
            elements = min(step, lane.numel - start)
            if elements > 0:
                reader.read(start, tiles.rows[lane.slot][: elements * lane.width])
        begin = start
        for interval, sums, sumsq in zip(job.intervals, part.sums, part.sumsq, strict=True):
            end = min(interval.stop, start + step)
            if begin < end:
                tiles.add(
                    begin - start, end - start, job.codes, plan.direct, interval.members, interval.fresh,
                    part.stats, sums, sumsq, part.dot,
                )  # fmt: skip
                begin = end
