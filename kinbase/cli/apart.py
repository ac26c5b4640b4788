"""A query of the command line in a forked process, which is killed where DuckDB does not stop.

Forking costs a thousandth of a second, while nothing that starts threads is imported yet; the child writes the
answer itself, so that a result of any length streams. The parent only waits: for the end, the time, or Ctrl-C.
"""

import contextlib
import os
import select
import signal
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NoReturn

from kinbase.errors import KinbaseError

OPEN = b"o"
"""What the child says when the file is open: the time counts from there, not while a lock is waited for."""

ANSWERED = b"a"
"""What it says when it has its answer and a person reads it: for as long as they like, and Ctrl-C is their pager's."""

Tell = Callable[[bytes], None]


def apart(run: Callable[[Tell], None], *, seconds: float, leftovers: Sequence[str] = ()) -> None:
    """Call `run` in a process of its own, which exits as the command line does; `run` tells OPEN, and maybe ANSWERED.

    The process is killed a moment after `seconds` (0: never), and when this one is interrupted; then the files
    `leftovers` are taken away. Raises KinbaseError for a query that had to be killed or took too much memory.
    """
    if (
        not hasattr(os, "fork")
        or threading.active_count() > 1
        or sys.stdout is not sys.__stdout__
        or sys.stdout is None
    ):
        run(
            lambda word: None
        )  # threads do not survive a fork, and neither does what takes the output instead
        return
    from kinbase.store.worker import GRACE, REAPED, stopped, too_much

    sys.stdout.flush()
    sys.stderr.flush()
    ours, theirs = os.pipe()
    child = os.fork()
    if not child:
        os.close(ours)
        _in_child(run, theirs)
    os.close(theirs)
    before = signal.signal(signal.SIGTERM, _raise)
    interrupt = signal.getsignal(signal.SIGINT)
    try:
        code = _waited(child, ours, seconds + GRACE if seconds else None)
    except TimeoutError:
        raise stopped(seconds) from None
    finally:
        signal.signal(signal.SIGTERM, before)
        signal.signal(signal.SIGINT, interrupt)
        os.close(ours)
        if _is_there(child):
            os.kill(child, signal.SIGKILL)
            until = time.monotonic() + REAPED
            while _is_there(child) and time.monotonic() < until:
                time.sleep(0.01)
            _clear(leftovers)
    if code == -signal.SIGINT:  # the terminal told the child too, and it was faster
        _clear(leftovers)
        raise KeyboardInterrupt
    if code < 0:
        _clear(leftovers)
        raise too_much()
    if code:
        raise SystemExit(code)


def _in_child(run: Callable[[Tell], None], pipe: int) -> NoReturn:
    from kinbase.cli.edge import finish
    from kinbase.store.worker import confine

    code = 1
    try:
        signal.signal(signal.SIGINT, signal.SIG_DFL)  # at once, whatever DuckDB is doing
        confine()
        code = finish(lambda: run(lambda word: _say(pipe, word)))
    finally:
        os._exit(code)


def _say(pipe: int, word: bytes) -> None:
    if word == ANSWERED:
        signal.signal(signal.SIGINT, signal.SIG_IGN)
    with contextlib.suppress(OSError):
        os.write(pipe, word)


def _waited(child: int, pipe: int, seconds: float | None) -> int:
    """How the child ended; raises TimeoutError `seconds` after it began."""
    until: float | None = None
    while True:
        left = None if until is None else max(0.0, until - time.monotonic())
        ready, _, _ = select.select([pipe], [], [], left)
        if not ready:
            raise TimeoutError
        word = os.read(pipe, 1)
        if not word:  # its end of the pipe is closed: it has ended
            return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        if word == ANSWERED:
            signal.signal(signal.SIGINT, signal.SIG_IGN)
        until = time.monotonic() + seconds if seconds is not None and word == OPEN else None


def _is_there(child: int) -> bool:
    try:
        return os.waitpid(child, os.WNOHANG) == (0, 0)
    except ChildProcessError:
        return False


def _clear(leftovers: Sequence[str]) -> None:
    for path in leftovers:
        with contextlib.suppress(OSError):
            Path(path).unlink(missing_ok=True)


def _raise(number: int, frame: object) -> NoReturn:
    raise KinbaseError("the query was stopped from outside")
