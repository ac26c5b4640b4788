"""One reader on one file, watched from outside: whatever it does, it ends within its seconds and its memory.

Counts bound what is known to be costly (kinbase.checkpoint.limits); this bounds what nobody thought of. A second
thread looks at the reader's processor time and at the memory of the process, and when either is over raises an
error in the reader, between two steps of Python. In the main thread a timer of the system does it too: a regular
expression keeps all other threads waiting, but looks at signals. All else that runs in C must bound itself.
"""

import ctypes
import os
import resource
import signal
import sys
import threading
import time
from collections.abc import Callable
from typing import Any, TypeVar

from kinbase.checkpoint.files import shown
from kinbase.checkpoint.limits import LIMITS, Limits
from kinbase.errors import CheckpointError

Result = TypeVar("Result")

RATE, PARQUET_RATE = 4e6, 5e5
"""Bytes of a file that are worth a second more; Parquet's columns hold many rows in few."""

_EVERY = 0.02
"""Seconds between two looks."""


_HAS_TIMER = hasattr(signal, "pthread_kill") and hasattr(signal, "ITIMER_VIRTUAL")


class _OverError(SystemExit):
    """Raised in the reader from outside; an exit, so that nobody takes it for an error of a library and goes on."""


def watched(read: Callable[[], Result], source: str, limits: Limits = LIMITS) -> Result:
    """What `read` returns. Raises CheckpointError when it takes more than a file of this size is worth.

    `source` is the file or folder that it reads; `read` runs in this thread.
    """
    nbytes = _size(source)
    seconds = limits.seconds + nbytes / (PARQUET_RATE if source.endswith(".parquet") else RATE)
    memory = limits.memory + 16 * nbytes
    watch = _Watch(seconds, memory)
    try:
        try:
            watch.start()
            result = read()
        finally:
            watch.end()
        if watch.over:  # a library may have swallowed what was raised in it
            raise _OverError
        return result
    except _OverError:
        watch.end()  # if it arrived there before anything was ended
        raise CheckpointError(
            f"{shown(source)} takes more {watch.over} than a file of its size is worth; it is refused"
        ) from None
    except MemoryError:
        raise CheckpointError(f"{shown(source)} asks for more memory than there is; it is refused") from None
    except RecursionError:
        raise CheckpointError(f"{shown(source)} is nested too deeply to be genuine; it is refused") from None


class _Watch(threading.Thread):
    def __init__(self, seconds: float, memory: int) -> None:
        super().__init__(daemon=True)
        self._reader = threading.get_ident()
        self._clock = _clock_of(self._reader)
        self._ends = self._now() + seconds
        self._most, self._before = _resident() + memory, _peak()
        self._done = threading.Event()
        self._lock = threading.Lock()
        self.over = ""
        self._timed: tuple[Any, tuple[float, float]] | None = (
            None  # the signal's handler, and the timer, before
        )
        if _HAS_TIMER and threading.current_thread() is threading.main_thread():
            before = signal.signal(signal.SIGVTALRM, self._look)
            self._timed = before, signal.setitimer(signal.ITIMER_VIRTUAL, seconds + _EVERY, 1.0)

    def run(self) -> None:
        while not self._done.wait(_EVERY):
            over = "time" if self._now() > self._ends else "memory" if self._is_large() else ""
            with self._lock:
                if over and not self._done.is_set():
                    self.over = over
                    self._stop_reader()
                    # Once more if a reader swallowed it, but not before it had the time to end.
                    self._ends = self._now() + 1
                    self._most, self._before = _resident() + (64 << 20), _peak()

    def _is_large(self) -> bool:
        """Whether the process has too much memory, or had since the last look; what it had before the reader began is not its."""
        return _resident() > self._most or _peak() > max(self._most, self._before)

    def end(self) -> None:
        """Watch no more; what was raised and has not arrived yet arrives here, and is forgotten.

        It is not taken back by `PyThreadState_SetAsyncExc(..., None)`: under a tracer (a profiler, a debugger) CPython
        3.11 then looks for ever at the step that it would have interrupted.
        """
        while True:
            try:
                with self._lock:
                    self._done.set()
                for _ in range(100 if self.over else 0):  # it arrives between two steps of a loop
                    pass
                break
            except _OverError:
                continue
        if self._timed:
            signal.setitimer(signal.ITIMER_VIRTUAL, *self._timed[1])
            signal.signal(signal.SIGVTALRM, self._timed[0])
            self._timed = None

    def _stop_reader(self) -> None:
        if self._timed:
            signal.pthread_kill(self._reader, signal.SIGVTALRM)
        else:
            ctypes.pythonapi.PyThreadState_SetAsyncExc(
                ctypes.c_ulong(self._reader), ctypes.py_object(_OverError)
            )

    def _look(self, number: int, frame: object) -> None:
        """In the reader, at a signal: its own, or the timer's, which counts the time of all threads."""
        if self._now() > self._ends:
            self.over = self.over or "time"
            self._ends += 1
            raise _OverError
        if self.over:
            raise _OverError

    def _now(self) -> float:
        try:
            return time.clock_gettime(self._clock) if self._clock is not None else time.monotonic()
        except OSError:  # the reader's thread has ended
            return 0.0


def _clock_of(thread: int) -> int | None:
    """The clock of a thread's processor time: a busy machine costs no file its reading. None where there is none."""
    return time.pthread_getcpuclockid(thread) if hasattr(time, "pthread_getcpuclockid") else None


def _resident() -> int:
    """The memory this process has, in bytes; where that is not told, the most it ever had."""
    try:
        with open("/proc/self/statm", "rb") as file:
            return int(file.read().split()[1]) * resource.getpagesize()
    except OSError:
        return _peak()


def _peak() -> int:
    """The most memory this process ever had, in bytes."""
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def _size(source: str) -> int:
    """Bytes of a file, or of the files directly in a folder; 0 for what is not here."""
    try:
        if os.path.isdir(source):  # noqa: PTH112
            return sum(entry.stat().st_size for entry in os.scandir(source) if entry.is_file())
        return os.stat(source).st_size  # noqa: PTH116
    except (OSError, ValueError):
        return 0
