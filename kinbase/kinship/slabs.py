"""The pass on a torch device: readers fill slabs in pinned memory, one copy takes a slab over, the device keeps the sums.

A slab is the same elements of every checkpoint, a row each. Several readers fill the rows of one, each always the same
rows, and hash and sketch what they read while it is still in a near cache; the thread that runs the generator copies full
slabs to the device and computes there. The sums of a tensor stay on the device until its end. How many elements a slab
has depends on the family alone, so the sums have the same bits whatever the number of readers.

Deltas and products are float64, which fp64 tensor cores keep up with the bus up to about a thousand members; a device
without float64 (MPS) sums float32 SEGMENT elements at a time and then in float64.
"""

from collections import deque
from collections.abc import Callable, Iterator
from contextlib import closing
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from kinbase.checkpoint import DTYPE_BYTES, FLOAT_DTYPES
from kinbase.errors import KinbaseError
from kinbase.kinship.layout import ROUNDED
from kinbase.kinship.parts import Part, result
from kinbase.kinship.plan import Job, Plan
from kinbase.kinship.slab_readers import Readers, Slab, slab_bytes, slabs
from kinbase.kinship.sums import TensorSums
from kinbase.kinship.transfers import SLABS, Transfers

if TYPE_CHECKING:
    import torch

SPLIT = 8192
"""Elements of a row in each of the products that a slab of few rows is multiplied in: one would fill few processors."""

FEW_ROWS = 128

SEGMENT = 1024
"""Elements summed in float32, where there is no float64, before float64 takes over."""


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

        dtype = "F32" if code == ROUNDED else FLOAT_DTYPES[code]
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
