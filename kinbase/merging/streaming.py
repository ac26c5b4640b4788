"""One merge, tensor by tensor and stretch by stretch: what is in memory does not grow with the models.

Workers take the stretches of one tensor: each reads the inputs there by position, merges them and writes
the result to its place in the shard. A method that must know the whole tensor first reads it again.
"""

import math
import os
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

from kinbase.checkpoint import DTYPE_BYTES
from kinbase.checkpoint.files import shown
from kinbase.errors import CheckpointError, KinbaseError
from kinbase.merging.methods import DTYPES, METHODS, Stretch
from kinbase.merging.plan import Target

T = TypeVar("T")

STRETCH = 1 << 17
"""Elements of a stretch: a few tens of microseconds of Python to some hundred of arithmetic, and its
float32 copies of several inputs still fit the second- and third-level caches."""

AHEAD = 32
"""Stretches under way at most: more than any number of workers needs."""

Write = Callable[[int, int, memoryview], None]
"""write(target, byte, data): put data at a byte of a target."""


class Look:
    """One target, its stretches and the workers that go over them; see `methods.Look`."""

    def __init__(self, target: Target, pool: ThreadPoolExecutor, seed: int, stop: threading.Event) -> None:
        self.target, self.seed = target, seed
        self._pool, self._stop = pool, stop
        starts = range(0, target.numel, STRETCH)
        self.stretches = [
            Stretch(i, start, min(start + STRETCH, target.numel)) for i, start in enumerate(starts)
        ]

    def load(self, stretch: Stretch) -> list[Tensor]:
        """The inputs' elements there, flat, rounded to the dtype of the merge."""
        dtype = DTYPES[self.target.dtype]
        return [self._read(i, stretch).to(dtype) for i in range(len(self.target.inputs))]

    def _read(self, i: int, stretch: Stretch) -> Tensor:
        if self._stop.is_set():
            raise InterruptedError
        tensor = self.target.inputs[i]
        width = DTYPE_BYTES[tensor.dtype]
        raw = np.empty((stretch.stop - stretch.start) * width, np.uint8)
        tensor.read(stretch.start * width, memoryview(raw))  # type: ignore[arg-type]
        return torch.from_numpy(raw).view(DTYPES[tensor.dtype])

    def over(self, seen: Callable[[Stretch], T]) -> Iterator[T]:
        """`seen` of every stretch, in their order, by the workers."""
        if len(self.stretches) == 1:
            return iter([seen(self.stretches[0])])  # most tensors are small: no worker is worth waking
        return self._by_workers(seen)

    def _by_workers(self, seen: Callable[[Stretch], T]) -> Iterator[T]:
        """A few stretches ahead and no more, so that results do not pile up."""
        window: deque[Future[T]] = deque()
        for stretch in self.stretches:
            window.append(self._pool.submit(seen, stretch))
            if len(window) > AHEAD:
                yield window.popleft().result()
        while window:
            yield window.popleft().result()

    def blame(self, stretch: Stretch) -> KinbaseError:
        """What to say of a result there that is not finite: its cause may lie elsewhere in the tensor."""
        for number, model in enumerate(self.target.models):
            if not all(
                bool(self._read(number, part).to(torch.float64).isfinite().all())
                for part in (stretch, *self.stretches)
            ):
                return KinbaseError(
                    f"{model} holds NaN or infinity in {shown(self.target.name)}: it cannot be merged"
                )
        return KinbaseError(
            f"{shown(self.target.name)} overflows when it is merged and stored as {self.target.out}: "
            "use smaller weights, or dtype: bfloat16 or float32"
        )


def merge_tensors(
    targets: Sequence[Target],
    method: str,
    write: Write,
    *,
    seed: int = 0,
    threads: int | None = None,
    report: Callable[[int, int], None] = lambda done, total: None,
) -> None:
    """Merge every target and hand its bytes to `write`, which is called from several threads.

    `report(done, total)` is told bytes written. Raises KinbaseError for buffers that differ and results
    that are not finite, and what reading and writing raise. An interrupt stops the workers within a stretch.
    """
    total, done = sum(target.nbytes for target in targets), 0
    stop = threading.Event()
    pool = ThreadPoolExecutor(threads or min(os.cpu_count() or 1, 8), thread_name_prefix="kinbase-merge")
    before = torch.get_num_threads()
    torch.set_num_threads(1)  # the workers are the threads; and sums must not depend on the number of cores
    try:
        for number, target in enumerate(targets):
            look = Look(target, pool, seed, stop)
            for count in _copy(look, number, write) if target.buffer else _merge(look, number, method, write):
                done += count
                report(done, total)
    finally:
        stop.set()
        pool.shutdown(cancel_futures=True)
        torch.set_num_threads(before)


def _merge(look: Look, number: int, method: str, write: Write) -> Iterator[int]:
    """Merge one target; the bytes of each stretch as it is written."""
    target = look.target
    if target.numel == 0:
        return iter([])
    merged = METHODS[method](look)
    out, width = DTYPES[target.out], DTYPE_BYTES[target.out]

    def written(stretch: Stretch) -> int:
        result = merged(stretch).to(out).cpu()
        # A sum is not finite when one of its terms is not; it may also overflow, so that is looked into.
        if not math.isfinite(float(result.float().sum())) and not bool(result.isfinite().all()):
            raise look.blame(stretch)
        data = result.view(torch.uint8).numpy()
        write(number, stretch.start * width, memoryview(data))
        return len(data)

    return look.over(written)


def _copy(look: Look, number: int, write: Write) -> Iterator[int]:
    """Copy a buffer of integers that all inputs agree on."""
    tensor, *others = look.target.inputs
    for start in range(0, tensor.nbytes, STRETCH):
        length = min(STRETCH, tensor.nbytes - start)
        first, other = bytearray(length), bytearray(length)
        tensor.read(start, memoryview(first))
        for again, model in zip(others, look.target.models[1:], strict=True):
            again.read(start, memoryview(other))
            if other != first:
                raise CheckpointError(
                    f"the buffer {shown(tensor.name)} is not the same in {look.target.models[0]} and {model}: "
                    "integers cannot be merged"
                )
        write(number, start, memoryview(first))
        yield length
