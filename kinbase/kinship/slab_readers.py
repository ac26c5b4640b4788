"""The threads that fill slabs for a device: each always the same rows, hashed and sketched while they are in a near cache."""

import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from kinbase.checkpoint.digest import LEAF, SPAN
from kinbase.kinship import native
from kinbase.kinship.lanes import LaneReader
from kinbase.kinship.layout import LEAVES
from kinbase.kinship.parts import Part, Piece, sketches_of
from kinbase.kinship.plan import Job, Lane, Plan
from kinbase.kinship.sketch import Buffers
from kinbase.kinship.spans import Spans, canonical, ended_early, hashing_states, lane_table, sketch_tables
from kinbase.kinship.transfers import SLABS, Transfers

SLAB_BYTES = 32 << 20
"""Bytes of a slab: large enough that a copy and two dozen launches cost little beside it."""

NEAR_BYTES = 256 << 10
"""What is hashed and sketched at a time: still in a near cache then."""


@dataclass(frozen=True, slots=True)
class Slab:
    """Elements start..start + count of a job's tensors, `stride` bytes from row to row; `last` if the tensor ends here."""

    job: Job
    start: int
    count: int
    stride: int
    last: bool


def slabs(jobs: list[Job], rows: int) -> Iterator[Slab]:
    """The jobs cut into slabs, by what the family is and nothing else."""
    for job in jobs:
        step = _step(job, rows)
        for start in range(0, max(job.numel, 1), step):
            count = min(step, job.numel - start)
            yield Slab(job, start, count, _stride(job, count), start + step >= job.numel)


def slab_bytes(job: Job, rows: int) -> int:
    """Bytes of a job's largest slab."""
    return rows * _stride(job, min(_step(job, rows), job.numel))


def _width(job: Job) -> int:
    return max((lane.width for lane in job.lanes), default=1)


def _stride(job: Job, count: int) -> int:
    return -(-count * _width(job) // 64) * 64


def _step(job: Job, rows: int) -> int:
    room = max(SLAB_BYTES // (rows * _width(job)), 1)
    return min(SPAN, max(1 << 12, 1 << (room.bit_length() - 1)))


class Readers:
    """The threads that fill slabs, one after the other in the order of `slabs`: each reads the rows of its own."""

    def __init__(self, plan: Plan, jobs: list[Job], transfers: Transfers, count: int) -> None:
        self._plan, self._jobs, self._transfers = plan, jobs, transfers
        self._rows = len(plan.members) + 1
        self._count = min(count, self._rows)
        self._changed = threading.Condition()
        self._filled: dict[int, int] = {}
        self._parts: dict[int, Part] = {}  # by the job's position
        self._released = -1
        self._failure: BaseException | None = None
        self._stopped = False
        self._native = Spans.can_run()
        self._states = hashing_states(self._rows) if self._native else None
        self._windows = Buffers(self._rows).windows
        self._threads = [
            threading.Thread(
                target=self._read_all, args=(number,), name=f"kinbase-reader-{number}", daemon=True
            )
            for number in range(self._count)
        ]
        for thread in self._threads:
            thread.start()

    def wait(self, number: int, slab: Slab) -> Part:
        """The part that a slab belongs to, when the slab is full. Raises what a reader raised."""
        with self._changed:
            self._changed.wait_for(lambda: self._failure or self._filled.get(number, 0) == self._count)
            if self._failure:
                raise self._failure
            del self._filled[number]
            place = slab.job.position
            return self._parts.pop(place) if slab.last else self._parts[place]

    def release(self, number: int) -> None:
        """The slab `number` may be filled again."""
        with self._changed:
            self._released = max(self._released, number)
            self._changed.notify_all()

    def close(self) -> None:
        """Stop the threads between two reads and wait for them."""
        with self._changed:
            self._stopped = True
            self._changed.notify_all()
        for thread in self._threads:
            thread.join()

    def _read_all(self, reader: int) -> None:
        try:
            rows = RowReaders(self._rows, self._windows, self._states, lambda: self._stopped)
            for number, slab in enumerate(slabs(self._jobs, self._rows)):
                part, data = self._begin(number, slab)
                if self._stopped:
                    return
                rows.fill(slab, part, data, [k for k in slab.job.lanes if k.slot % self._count == reader])
                with self._changed:
                    self._filled[number] = self._filled.get(number, 0) + 1
                    self._changed.notify_all()
        except BaseException as error:  # told to the thread that waits for the slab
            with self._changed:
                self._failure = self._failure or error
                self._changed.notify_all()

    def _begin(self, number: int, slab: Slab) -> tuple[Part, NDArray[np.uint8]]:
        """The part a slab belongs to and its host memory, once that may be filled."""
        with self._changed:
            self._changed.wait_for(lambda: self._stopped or self._failure or self._released >= number - SLABS)
            job = slab.job
            if job.position not in self._parts:
                self._parts[job.position] = Part.nothing(
                    self._plan, Piece(job, 0, job.numel, True, sketches_of(job))
                )
            return self._parts[job.position], self._transfers.host(number % SLABS)


class RowReaders:
    """One thread's reading of its rows: hashing states and windows go on from slab to slab."""

    def __init__(
        self,
        rows: int,
        windows: NDArray[np.float32],
        states: NDArray[np.uint8] | None,
        is_stopped: Callable[[], bool],
    ) -> None:
        self._buffers = Buffers(0)
        self._buffers.windows = windows
        self._states, self._is_stopped = states, is_stopped
        self._open: dict[int, tuple[NDArray[np.float64], NDArray[np.uint64]]] = {}
        self._plain: dict[int, LaneReader] = {}

    def fill(self, slab: Slab, part: Part, data: NDArray[np.uint8], lanes: list[Lane]) -> None:
        """Read the slab's elements of `lanes` into their rows."""
        for lane in lanes:
            count = min(slab.count, lane.numel - slab.start)
            if count <= 0 or self._is_stopped():
                continue
            row = data[lane.slot * slab.stride :][: count * lane.width]
            if self._states is None:
                self._fill_plainly(slab, part, row, lane)
            else:
                self._fill(slab, part, row, lane, count)

    def _fill(self, slab: Slab, part: Part, row: NDArray[np.uint8], lane: Lane, count: int) -> None:
        first = slab.start // SPAN * SPAN
        if slab.start == first:
            self._open[lane.slot] = np.zeros((1, LEAVES, 3)), np.zeros((1, LEAVES, 2), np.uint64)
        moments, digests = self._open[lane.slot]
        table = lane_table([lane], part.piece.sketches, self._buffers)
        stop = slab.start + count
        table[0, 11:] = native.address(row), 1
        assert self._states is not None
        with ExitStack() as borrowed:
            if extent := lane.tensor.extent:
                table[0, :2] = borrowed.enter_context(extent.borrow()), extent.offset
            else:
                lane.tensor.read(slab.start * lane.width, memoryview(row))  # type: ignore[arg-type]
                table[0, :2] = -1, native.address(row)
            failed = native.call(
                "span", *[0] * 8, first, slab.start, stop, NEAR_BYTES // lane.width, native.address(table), 1, *[0] * 9,
                native.address(self._states), *sketch_tables(self._buffers), native.address(moments), native.address(digests),
            )  # fmt: skip
        if failed:
            raise ended_early(lane, slab.start)
        if stop == lane.numel or stop == first + SPAN:
            leaves = -(-(stop - first) // LEAF)
            if lane.is_digested:
                part.leaves[lane.slot] += canonical(digests[0, :leaves])
            if lane.label:
                part.weights[lane.slot] += list(moments[0, :leaves])
                part.piece.sketches[lane.slot].flush(self._buffers, lane.slot)

    def _fill_plainly(self, slab: Slab, part: Part, row: NDArray[np.uint8], lane: Lane) -> None:
        if slab.start == 0:
            self._plain[lane.slot] = LaneReader(lane, part, self._buffers)
        for at in range(0, len(row), NEAR_BYTES):
            tile = memoryview(row[at : at + NEAR_BYTES])  # type: ignore[arg-type]
            self._plain[lane.slot].read(slab.start + at // lane.width, tile)
