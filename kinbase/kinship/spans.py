"""One call a span on the CPU: it reads, hashes, sketches and multiplies without coming back to the interpreter.

`entries.span` reads by position from the files' descriptors (`Tensor.extent`). A tensor without one (an adapter's, one
elsewhere, one stored in another form) is read through `Tensor.read` into memory first, as much of it at a time as there
is room for, and joins the same call.
"""

from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kinbase.checkpoint.digest import LEAF, SPAN
from kinbase.checkpoint.files import shown
from kinbase.errors import CheckpointError
from kinbase.kinship import native
from kinbase.kinship.cpu import CpuTiles, is_narrow
from kinbase.kinship.layout import INTERVAL, LANE, LEAVES, STATE
from kinbase.kinship.parts import Part
from kinbase.kinship.plan import Job, Lane, Plan
from kinbase.kinship.sketch import STEPS, Buffers, TensorSketch, signs_table

MEMORY_BYTES = 2 << 20
"""Room a worker takes for tensors that have to be in memory first."""


class Spans:
    """A worker's part in the calls: its buffers, and the hashing state of each row."""

    def __init__(self, tiles: CpuTiles, buffers: Buffers) -> None:
        self._tiles, self._buffers = tiles, buffers
        self._states = hashing_states(len(tiles.rows))
        self._memory = np.empty(0, np.uint8)
        self._tables = (native.address(self._states), *sketch_tables(buffers))

    @staticmethod
    def can_run() -> bool:
        """Whether this machine has what the kernel calls: positional reads and xxhash's streaming functions."""
        return "span" in native.entries()

    def read(
        self, plan: Plan, part: Part, start: int, stop: int, step: int, is_stopped: Callable[[], bool]
    ) -> None:
        """Add elements start..stop of a piece's job, one span or the rest of the tensor, in tiles of `step`.

        What is read once `is_stopped` is of no use. Raises CheckpointError when a file ends early, or what `Tensor.read` raises.
        """
        job = part.piece.job
        lanes = [lane for lane in job.lanes if lane.numel > start]
        table = lane_table(lanes, part.piece.sketches, self._buffers)
        moments = np.zeros((len(lanes), LEAVES, 3))
        digests = np.zeros((len(lanes), LEAVES, 2), np.uint64)
        intervals, members = _intervals(job, plan)
        before = (*self._tiles.where(plan.new), start)
        after = (
            step, native.address(table), len(lanes), native.address(intervals), len(intervals),
            *map(native.address, (members, job.codes, plan.direct, part.stats, part.sums, part.sumsq, part.dot)),
            *self._tables, native.address(moments), native.address(digests),
        )  # fmt: skip
        in_memory = [k for k, lane in enumerate(lanes) if lane.tensor.extent is None]
        size = _at_once([lanes[k] for k in in_memory], step)
        with ExitStack() as borrowed:
            for k, lane in enumerate(lanes):
                if extent := lane.tensor.extent:
                    table[k, :2] = borrowed.enter_context(extent.borrow()), extent.offset
            for at in range(start, stop, size):
                if is_stopped():
                    return
                end = min(at + size, stop)
                self._hold(lanes, in_memory, at, end, table)
                if failed := native.call("span", *before, at, end, *after):
                    raise ended_early(lanes[failed - 1], start)
        self._keep(part, lanes, start, stop, moments, digests)

    def _hold(
        self, lanes: list[Lane], which: list[int], start: int, stop: int, table: NDArray[np.int64]
    ) -> None:
        """Read elements start..stop of some lanes into this worker's memory, and tell the table where.

        It is the same memory each time: pages that are new to a process cost as much as what is written to them.
        """
        counts = [max(0, min(stop, lanes[k].numel) - start) * lanes[k].width for k in which]
        room = sum(-(-count // 64) * 64 for count in counts)
        if room > len(self._memory):
            self._memory = np.empty(room, np.uint8)
        place = 0
        for k, count in zip(which, counts, strict=True):
            data = self._memory[place : place + count]
            if count:
                lanes[k].tensor.read(start * lanes[k].width, memoryview(data))  # type: ignore[arg-type]
            table[k, :2] = -1, native.address(data)
            place += -(-count // 64) * 64

    def _keep(
        self,
        part: Part,
        lanes: list[Lane],
        start: int,
        stop: int,
        moments: Any,
        digests: NDArray[np.uint64],
    ) -> None:
        """What the call left, to the piece: bytes read, leaves and power sums by row, and windows that end."""
        for k, lane in enumerate(lanes):
            elements = min(stop, lane.numel) - start
            part.nbytes += elements * lane.width
            leaves = -(-elements // LEAF)
            if lane.is_digested:
                part.leaves[lane.slot] += canonical(digests[k, :leaves])
            if lane.label:
                part.weights[lane.slot] += list(moments[k, :leaves])
                part.piece.sketches[lane.slot].flush(self._buffers, lane.slot)


def hashing_states(rows: int) -> NDArray[np.uint8]:
    """An empty hashing state for each row, STATE bytes apart."""
    room = np.zeros(rows * STATE + 64, np.uint8)
    states = room[-native.address(room) % 64 :]
    for row in range(rows):
        native.call("reset", native.address(states) + row * STATE)
    return states


def sketch_tables(buffers: Buffers) -> tuple[int, ...]:
    """The random signs, their number, a buffer's spare room and STEPS, as the span's kernel takes them."""
    signs = signs_table()
    return native.address(signs), len(signs), native.address(buffers.spare), native.address(STEPS)


def lane_table(lanes: list[Lane], sketches: dict[int, TensorSketch], buffers: Buffers) -> NDArray[np.int64]:
    """The lanes [L, LANE] as the span's kernel takes them, but for where their bytes are."""
    table = np.zeros((len(lanes), LANE), np.int64)
    for k, lane in enumerate(lanes):
        table[k, 2:8] = lane.numel, lane.width, lane.code, lane.slot, lane.is_digested, bool(lane.label)
        if lane.label:
            sketch = sketches[lane.slot]
            window = sketch.window(buffers, lane.slot)
            table[k, 8:11] = sketch.key, sketch.is_small, native.address(window)
    return table


def _intervals(job: Job, plan: Plan) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """A job's intervals [C, INTERVAL] and the members that take part in each [C, N], as the kernel takes them."""
    table = np.zeros((len(job.intervals), INTERVAL), np.int64)
    members = np.zeros((len(job.intervals), len(plan.members)), np.int64)
    for c, interval in enumerate(job.intervals):
        count = len(interval.members)
        narrow = is_narrow(job.codes, plan.direct, interval.members)
        table[c] = interval.stop, count, interval.fresh, narrow
        members[c, :count] = interval.members
    return table, members


def _at_once(lanes: list[Lane], step: int) -> int:
    """How many elements to take at a time of tensors that have to be in memory: whole tiles."""
    if not lanes:
        return SPAN
    room = MEMORY_BYTES // sum(lane.width for lane in lanes)
    return min(SPAN, max(1, room // step) * step)


def _held(lane: Lane, start: int, stop: int) -> NDArray[np.uint8]:
    """The bytes of elements start..stop of a tensor, or of those there are."""
    elements = max(0, min(stop, lane.numel) - start)
    data = np.empty(elements * lane.width, np.uint8)
    if elements:
        lane.tensor.read(start * lane.width, memoryview(data))  # type: ignore[arg-type]
    return data


def canonical(digests: NDArray[np.uint64]) -> list[bytes]:
    """Digests [n, 2], low half first, as xxhash writes them: the high half first, big-endian."""
    return [digest[::-1].astype(">u8").tobytes() for digest in digests]


def ended_early(lane: Lane, start: int) -> CheckpointError:
    """What is wrong with a file that could not be read to its end: its own reader says it best."""
    try:
        _held(lane, start, lane.numel)
    except CheckpointError as error:
        return error
    return CheckpointError(f"tensor {shown(lane.tensor.name)} changed while it was read; import it again")
