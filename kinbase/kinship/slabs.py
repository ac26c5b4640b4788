"""The pass on a torch device: readers fill slabs in pinned memory, one copy takes a slab over, the device keeps the sums.

A slab is the same elements of every checkpoint, a row each. Several readers fill the rows of one, each always the same
rows, and hash and sketch what they read while it is still in a near cache; the thread that runs the generator copies full
slabs to the device and computes there. The sums of a tensor stay on the device until its end. How many elements a slab
has depends on the family alone, so the sums have the same bits whatever the number of readers.

Deltas and products are float64, which fp64 tensor cores keep up with the bus up to about a thousand members; a device
without float64 (MPS) sums float32 SEGMENT elements at a time and then in float64.
"""

import threading
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from kinbase.checkpoint import DTYPE_BYTES, FLOAT_DTYPES
from kinbase.checkpoint.digest import LEAF, SPAN
from kinbase.errors import KinbaseError
from kinbase.kinship import native
from kinbase.kinship.lanes import LaneReader
from kinbase.kinship.layout import LEAVES
from kinbase.kinship.parts import Part, Piece, result, sketches_of
from kinbase.kinship.plan import Job, Lane, Plan
from kinbase.kinship.sketch import Buffers
from kinbase.kinship.spans import Spans, canonical, ended_early, hashing_states, lane_table, sketch_tables
from kinbase.kinship.sums import TensorSums

if TYPE_CHECKING:
    import torch

SLAB_BYTES = 32 << 20
"""Bytes of a slab: large enough that a copy and two dozen launches cost little beside it."""

SLABS = 4
"""Slabs in turn: one computed, one copied, two filled."""

NEAR_BYTES = 256 << 10
"""What is hashed and sketched at a time: still in a near cache then."""

SPLIT = 8192
"""Elements of a row in each of the products that a slab of few rows is multiplied in: one would fill few processors."""

FEW_ROWS = 128

SEGMENT = 1024
"""Elements summed in float32, where there is no float64, before float64 takes over."""


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


def run_on_device(
    device: str, plan: Plan, jobs: list[Job], readers: int, report: Callable[[int], None]
) -> Iterator[TensorSums]:
    """As `stream.run`, on a torch device. Raises KinbaseError when the device fails or is full."""
    import torch

    try:
        rows = len(plan.members) + 1
        largest = max((slab_bytes(job, rows) for job in jobs), default=1)
        yield from _run(Transfers(device, largest), plan, jobs, readers, report)
    except torch.cuda.OutOfMemoryError as error:
        raise _device_failed(device, "has too little memory", error) from None
    except RuntimeError as error:
        raise _device_failed(device, "failed", error) from None


def _device_failed(device: str, how: str, error: Exception) -> KinbaseError:
    first = str(error).splitlines()[0] if str(error) else type(error).__name__
    return KinbaseError(
        f"device {device} {how} ({first}): run it again with --device cpu, it goes on where it was"
    )


def _run(
    transfers: "Transfers", plan: Plan, jobs: list[Job], readers: int, report: Callable[[int], None]
) -> Iterator[TensorSums]:
    rows = len(plan.members) + 1
    with closing(Readers(plan, jobs, transfers, readers)) as filled:
        sums: DeviceSums | None = None
        copies: deque[tuple[int, Any]] = deque()
        for number, slab in enumerate(slabs(jobs, rows)):
            part = filled.wait(number, slab)
            sums = sums or DeviceSums(transfers, plan, slab.job)
            data, copied = transfers.start(number % SLABS, rows, slab.stride)
            copies.append((number, copied))
            while len(copies) > 1:  # a slab may be filled again once it is copied, not before
                done, waiting = copies.popleft()
                transfers.wait(waiting)
                filled.release(done)
            sums.add(data, slab)
            transfers.computed(number % SLABS)
            if slab.last:
                sums.fetch(part)
                report(slab.job.nbytes)
                yield result(plan, part)
                sums = None


class Transfers:
    """Pinned slabs and their copies on the device. On CUDA, copying and computing run beside each other in two streams.

    A slab in host memory may be written again when its copy is over (`wait`), one on the device when what was computed
    with it is (`computed`): two events keep that order.
    """

    def __init__(self, device: "str | torch.device", nbytes: int) -> None:
        import torch

        self.device = torch.device(device)
        self.has_float64 = self.device.type != "mps"
        on_cuda = self.device.type == "cuda"
        self._copying = torch.cuda.Stream(self.device) if on_cuda else None
        self._computing = torch.cuda.Stream(self.device) if on_cuda else None
        self._used: list[Any] = [None] * SLABS
        self._host = [torch.empty(nbytes, dtype=torch.uint8, pin_memory=on_cuda) for _ in range(SLABS)]
        self._there = [
            torch.empty(nbytes if on_cuda else 0, dtype=torch.uint8, device=self.device) for _ in range(SLABS)
        ]

    def host(self, slot: int) -> NDArray[np.uint8]:
        """The slab `slot` in host memory."""
        view: NDArray[np.uint8] = self._host[slot].numpy()
        return view

    def start(self, slot: int, rows: int, stride: int) -> tuple["torch.Tensor", Any]:
        """Begin to copy a full slab: its rows [rows, stride] on the device, and what to wait for before it is filled again."""
        import torch

        nbytes = rows * stride
        host = self._host[slot][:nbytes]
        if self._copying is None:
            there = host if self.device.type == "cpu" else host.to(self.device)
            return there.view(rows, stride), None
        there = self._there[slot][:nbytes]
        with torch.cuda.stream(self._copying):
            if self._used[slot] is not None:
                self._copying.wait_event(self._used[slot])
            there.copy_(host, non_blocking=True)
            copied = torch.cuda.Event()
            copied.record(self._copying)
        assert self._computing is not None
        self._computing.wait_event(copied)
        return there.view(rows, stride), copied

    def wait(self, copied: Any) -> None:
        """Return when a copy is over."""
        if copied is not None:
            copied.synchronize()

    def computing(self) -> Any:
        """The context to compute in."""
        import torch

        return torch.cuda.stream(self._computing) if self._computing is not None else nullcontext()

    def computed(self, slot: int) -> None:
        """What was asked of the device so far is all that needs its slab `slot`."""
        if self._computing is not None:
            import torch

            self._used[slot] = torch.cuda.Event()
            self._used[slot].record(self._computing)


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
            if lane.hashed:
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


class DeviceSums:
    """The sums of one tensor, on the device until its end."""

    def __init__(self, transfers: Transfers, plan: Plan, job: Job) -> None:
        import torch

        self._transfers, self._plan, self._job = transfers, plan, job
        self._exact = torch.float64 if transfers.has_float64 else torch.float32
        members, intervals = len(plan.members), len(job.intervals)
        with transfers.computing():
            self._stats, self._sums, self._sumsq, self._dot = (
                torch.zeros(shape, dtype=self._exact, device=transfers.device)
                for shape in ((3, members), (intervals, members), (intervals, members), (plan.new, members))
            )
        # Where the device has no float64, what a slab adds is fetched and added here.
        self._totals = [np.zeros(x.shape) for x in (self._sums, self._sumsq, self._dot)]

    def add(self, data: "torch.Tensor", slab: Slab) -> None:
        """Add a slab's rows [rows, stride], which are still bytes."""
        import torch

        begin = slab.start
        with torch.no_grad(), self._transfers.computing():
            for c, interval in enumerate(self._job.intervals):
                end = min(interval.stop, slab.start + slab.count)
                if begin < end:
                    deltas = self._deltas(data, interval.members, begin - slab.start, end - slab.start)
                    self._add(deltas, c, torch.as_tensor(interval.members).to(data.device), interval.fresh)
                    begin = end

    def _deltas(
        self, data: "torch.Tensor", members: NDArray[np.int64], start: int, stop: int
    ) -> "torch.Tensor":
        """Elements start..stop of the rows of `members` less the base's, but for those that are deltas."""
        import torch

        codes, direct = self._job.codes, self._plan.direct
        deltas = torch.empty((len(members), stop - start), dtype=self._exact, device=data.device)
        for code in np.unique(codes[members + 1]):  # the rows of one dtype together
            here = np.flatnonzero(codes[members + 1] == code)
            at = torch.as_tensor(here).to(data.device)
            deltas[at] = self._weights(
                data[torch.as_tensor(members[here] + 1).to(data.device)], code, start, stop
            )
        if not direct[members].all():
            base = self._weights(data[:1], codes[0], start, stop)
            if direct[members].any():
                subtracted = torch.as_tensor(np.flatnonzero(~direct[members])).to(data.device)
                deltas[subtracted] -= base
            else:
                deltas -= base
        return deltas

    def _weights(self, rows: "torch.Tensor", code: int, start: int, stop: int) -> "torch.Tensor":
        import torch

        dtype = FLOAT_DTYPES[code]
        width = DTYPE_BYTES[dtype]
        kind = {
            "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16,
            "F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2,
        }[dtype]  # fmt: skip
        raw = rows[:, start * width : stop * width].contiguous().view(kind)
        if code == 0 and not self._transfers.has_float64:
            return raw.cpu().to(torch.float32).to(rows.device)  # only the host can take their last digits
        return raw.to(self._exact)

    def _add(self, deltas: "torch.Tensor", interval: int, members: "torch.Tensor", fresh: int) -> None:
        import torch

        finite = deltas.isfinite()
        # A NaN must not pass for the largest: it is told by the count of broken ones.
        largest = torch.where(deltas.isnan(), 0, deltas).abs().amax(1)
        self._stats[0, members] = torch.maximum(self._stats[0, members], largest)
        self._stats[1, members] += (deltas == 0).sum(1)
        self._stats[2, members] += (~finite).sum(1)
        if self._transfers.has_float64:
            self._sums[interval, members] += deltas.sum(1)
            self._sumsq[interval, members] += deltas.square().sum(1)
            new = members[:fresh]
            self._dot[new[:, None], members] += _products(deltas, fresh)
            return
        segments = torch.nn.functional.pad(deltas, (0, -deltas.shape[1] % SEGMENT)).view(
            len(deltas), -1, SEGMENT
        )
        segments = segments.transpose(0, 1)
        here = members.cpu().numpy()
        sums, sumsq, dot = self._totals
        sums[interval, here] += _fetch(segments.sum(2)).sum(0)
        sumsq[interval, here] += _fetch(segments.square().sum(2)).sum(0)
        dot[np.ix_(here[:fresh], here)] += _fetch(segments[:, :fresh] @ segments.transpose(1, 2)).sum(0)

    def fetch(self, part: Part) -> None:
        """Bring the sums to the host, into a part that has none yet."""
        with self._transfers.computing():
            part.stats[:] = _fetch(self._stats)
            if self._transfers.has_float64:
                self._totals = [_fetch(x) for x in (self._sums, self._sumsq, self._dot)]
        for into, total in zip((part.sums, part.sumsq, part.dot), self._totals, strict=True):
            into[:] = total


def _products(deltas: "torch.Tensor", fresh: int) -> "torch.Tensor":
    """Inner products [fresh, members] of the first rows with all: in splits where few rows would leave the device idle."""
    rows, n = deltas.shape
    if rows >= FEW_ROWS or n < 2 * SPLIT:
        return deltas[:fresh] @ deltas.T
    whole = n // SPLIT * SPLIT
    parts = deltas[:, :whole].view(rows, -1, SPLIT).transpose(0, 1)
    products = (parts[:, :fresh] @ parts.transpose(1, 2)).sum(0)
    return products + deltas[:fresh, whole:] @ deltas[:, whole:].T


def _fetch(values: "torch.Tensor") -> NDArray[np.float64]:
    array: NDArray[np.float64] = values.cpu().numpy().astype(np.float64)
    return array
