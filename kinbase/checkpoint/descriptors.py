"""Descriptors that stay open between reads, of all files of the process together: no more than it may open.

A family of a thousand checkpoints of several shards has more files than a process may hold open. Those that were
read least lately are closed, and opened again when they are read.
"""

import contextlib
import os
import sys
import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterator
from dataclasses import dataclass

SHARE = 2
"""The part of the files a process may open that is left to everything else: one in so many."""

LEAST = 16


@dataclass(slots=True)
class _Open:
    fd: int
    users: int
    is_dropped: bool = False


class Descriptors:
    """Open descriptors by file, the ones read least lately first; one in use is never closed."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._open: OrderedDict[Hashable, _Open] = OrderedDict()

    @contextlib.contextmanager
    def borrow(self, file: Hashable, open_: Callable[[], int]) -> Iterator[int]:
        """A descriptor of `file` while the context lasts, which `open_` opens where there is none."""
        held = self._take(file, open_)
        try:
            yield held.fd
        finally:
            with self._lock:
                held.users -= 1
                is_last = held.is_dropped and not held.users
            if is_last:
                os.close(held.fd)

    def drop(self, file: Hashable) -> None:
        """Close a file's descriptor, when nobody reads any more."""
        with self._lock:
            held = self._open.pop(file, None)
            if held is None:
                return
            held.is_dropped = True
            is_idle = not held.users
        if is_idle:
            os.close(held.fd)

    def _take(self, file: Hashable, open_: Callable[[], int]) -> _Open:
        with self._lock:
            if held := self._open.get(file):
                self._open.move_to_end(file)
                held.users += 1
                return held
        fd = open_()  # without the lock: a slow disk does not keep the others waiting
        spare = []
        with self._lock:
            held = self._open.get(file)
            if held:
                held.users += 1
                spare.append(fd)
            else:
                held = self._open[file] = _Open(fd, 1)
                spare += self._surplus()
        for other in spare:
            os.close(other)
        return held

    def _surplus(self) -> list[int]:
        """What has to be closed, taken out; called with the lock."""
        more = len(self._open) - most()
        idle = [file for file, held in self._open.items() if not held.users][: max(more, 0)]
        return [self._open.pop(file).fd for file in idle]


def most() -> int:
    """How many files are kept open."""
    if sys.platform == "win32":
        return 256
    import resource

    soft = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    return max(LEAST, 1 << 16 if soft == resource.RLIM_INFINITY else soft // SHARE)


OPEN = Descriptors()
"""Those of this process: the limit is the process's."""
