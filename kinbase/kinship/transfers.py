"""Pinned slabs in host memory and their copies on a torch device, in an order that two events keep."""

from contextlib import nullcontext
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    import torch

SLABS = 4
"""Slabs in turn: one computed, one copied, two filled."""


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
