"""Choosing the device of the kinship pass, and the pass's arithmetic on a torch device.

Torch is imported where it is used: importing it takes two seconds, which a machine without a GPU need
not spend to find that out.
"""

import ctypes
import platform
import sys
from contextlib import nullcontext
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from kinbase.checkpoint import DTYPE_BYTES, FLOAT_DTYPES
from kinbase.errors import UsageError

if TYPE_CHECKING:
    import torch

WORTHWHILE = 16
"""Members from which `auto` takes a GPU: below, the pass waits for the disk and the bus, not for sums."""

DRIVERS = {"linux": "libcuda.so.1", "win32": "nvcuda.dll"}

SEGMENT = 1024
"""Elements summed in float32, where there is no float64, before float64 takes over."""


def resolve_device(name: str, members: int) -> str:
    """Return cpu, cuda, cuda:N or mps for `name` (auto, cpu, cuda, cuda:N, mps) and a family of `members`.

    `auto` is the CPU unless the family is large and there is a CUDA device. Raises UsageError for a
    device that this machine or this torch does not have.
    """
    if name == "cpu":
        return name
    if name == "auto":
        return "cuda" if members >= WORTHWHILE and _cuda_devices() else "cpu"
    kind, _, index = name.partition(":")
    if kind == "cuda" and (not index or index.isdecimal()):
        count = _cuda_devices()
        if count <= int(index or 0):
            reason = f"torch sees {count} CUDA devices" if count else "torch finds no CUDA device here"
            raise UsageError(f"device {name}: {reason}; use --device cpu, or install a CUDA build of torch")
        return name
    if name == "mps":
        if not _has_mps():
            raise UsageError("device mps: this is no Mac with Apple silicon and its torch; use --device cpu")
        return name
    raise UsageError(f"device {name!r} is unknown; use auto, cpu, cuda, cuda:N or mps")


def _cuda_devices() -> int:
    try:
        ctypes.CDLL(DRIVERS[sys.platform])
    except (KeyError, OSError):
        return 0
    import torch

    return int(torch.cuda.device_count())


def _has_mps() -> bool:
    if (sys.platform, platform.machine()) != ("darwin", "arm64"):
        return False
    import torch

    return bool(torch.backends.mps.is_available())


class TorchTiles:
    """One worker's buffers and arithmetic on a torch device; the counterpart of `kernels.CpuTiles`.

    Rows are read into pinned memory and copied as they are; decoding, deltas and products happen on the
    device in float64. A device without float64 (MPS) gets float32 weights and sums SEGMENT elements at a
    time. On CUDA each worker has a stream, so that one copies while another computes.
    """

    def __init__(self, device: "str | torch.device", rows: int, row_bytes: int) -> None:
        import torch

        self._device = torch.device(device)
        on_cuda = self._device.type == "cuda"
        self._float64 = self._device.type != "mps"
        self._stream = torch.cuda.Stream(self._device) if on_cuda else None
        self._dtypes = dict(
            zip(
                FLOAT_DTYPES,
                (
                    torch.float64,
                    torch.float32,
                    torch.float16,
                    torch.bfloat16,
                    torch.float8_e4m3fn,
                    torch.float8_e5m2,
                ),
                strict=True,
            )
        )
        self._host = torch.empty((rows, row_bytes), dtype=torch.uint8, pin_memory=on_cuda)
        self.rows = [memoryview(row) for row in self._host.numpy()]

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
        """Add elements start..stop of the rows to the sums; see `kernels.CpuTiles.add`."""
        import torch

        with torch.no_grad(), torch.cuda.stream(self._stream) if self._stream else nullcontext():
            base = None if direct[members].all() else self._weights(0, start, stop, codes)
            deltas = torch.stack([self._weights(i + 1, start, stop, codes) for i in members.tolist()])
            for row, i in enumerate(members.tolist()):
                if not direct[i]:
                    deltas[row] -= base
            largest = deltas.abs().amax(1)
            zeros = (deltas == 0).sum(1)
            broken = (~deltas.isfinite()).sum(1)
            if not self._float64:
                deltas = torch.nn.functional.pad(deltas, (0, -deltas.shape[1] % SEGMENT))
            segments = deltas.view(len(members), -1, deltas.shape[1] if self._float64 else SEGMENT)
            segments = segments.transpose(0, 1)
            products = segments[:, :fresh] @ segments.transpose(1, 2)
            found = [self._fetch(x) for x in (largest, zeros, broken)]
            totals = [self._fetch(x).sum(0) for x in (segments.sum(2), segments.square().sum(2), products)]
        # A NaN must not pass for the largest: the pass reports it by the count of broken ones.
        stats[0, members] = np.fmax(stats[0, members], found[0])
        stats[1, members] += found[1]
        stats[2, members] += found[2]
        sums[members] += totals[0]
        sumsq[members] += totals[1]
        dot[np.ix_(members[:fresh], members)] += totals[2]

    def _weights(self, row: int, start: int, stop: int, codes: NDArray[np.int64]) -> "torch.Tensor":
        """Elements start..stop of a row on the device, as float64, or float32 where there is none."""
        import torch

        dtype = FLOAT_DTYPES[codes[row]]
        width = DTYPE_BYTES[dtype]
        raw = self._host[row, start * width : stop * width]
        if self._float64:
            return raw.to(self._device, non_blocking=True).view(self._dtypes[dtype]).to(torch.float64)
        return raw.view(self._dtypes[dtype]).float().to(self._device)

    @staticmethod
    def _fetch(result: "torch.Tensor") -> NDArray[np.float64]:
        array: NDArray[np.float64] = result.cpu().numpy().astype(np.float64)
        return array
