"""A program of ours in a process of its own, which reads what a stranger wrote: bounded, and killed where it does not obey.

For libraries that cannot be told how much to take. The child bounds itself before it looks at the file (`confine`),
the parent bounds what it hears of it, and nothing of the child outlives the call.
"""

import contextlib
import math
import os
import resource
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence

from kinbase.errors import CheckpointError

_LENGTH = struct.Struct("<Q")
"""Before each message, the number of its bytes."""


def messages(
    module: str, arguments: Sequence[str], *, what: str, seconds: float, most: int
) -> Iterator[bytes]:
    """What `python -m module` says (`say`), message by message.

    Raises CheckpointError, which calls the file `what`, when it says more than `most` bytes, runs longer than
    ten times its `seconds` of processor time, or dies: of its own bounds, or of the file.
    """
    environment = os.environ | {
        "POLARS_MAX_THREADS": "1",
        "RAYON_NUM_THREADS": "1",
        "PYTHONIOENCODING": "utf-8",
    }
    child = subprocess.Popen(
        [sys.executable, "-P", "-m", module, *arguments],
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env=environment,
    )  # fmt: skip
    assert child.stdout
    # On the clock, should it sleep: a busy machine gives a process less than its share.
    timer = threading.Timer(30 + 10 * seconds, child.kill)
    timer.daemon = True
    timer.start()
    heard = 0
    try:
        while len(head := child.stdout.read(_LENGTH.size)) == _LENGTH.size:
            (length,) = _LENGTH.unpack(head)
            heard += length
            if heard > most:
                raise CheckpointError(
                    f"{what} unpacks to more than a file of its size is worth; it is refused"
                )
            message = child.stdout.read(length)
            if len(message) < length:
                break
            yield message
        if code := child.wait():
            how = "memory or time" if code < 0 else "memory"
            raise CheckpointError(
                f"{what} takes more {how} than a file of its size is worth, or is damaged; it is refused"
            )
    finally:
        timer.cancel()
        child.kill()
        child.wait()
        child.stdout.close()


def say(message: bytes | memoryview) -> None:
    """In the child: one message to the parent."""
    sys.stdout.buffer.write(_LENGTH.pack(len(message)))
    sys.stdout.buffer.write(message)
    sys.stdout.buffer.flush()


RESERVED = 700 << 20
"""Bytes of addresses that libraries and their threads set aside and do not use."""


def confine(*, memory: int, seconds: float) -> None:
    """In the child: from here on no more than `memory` bytes beside what it has, and `seconds` of processor time.

    A limit on addresses has to leave room for what libraries only reserve, so that what is really taken is watched
    by a thread beside it.
    """
    threading.Thread(target=_watch, args=(_peak() + memory,), daemon=True).start()
    limit = math.ceil(seconds)
    with contextlib.suppress(OSError, ValueError):
        resource.setrlimit(resource.RLIMIT_CPU, (limit, limit + 1))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
    with contextlib.suppress(OSError, ValueError):
        with open("/proc/self/statm") as file:
            held = int(file.read().split()[0]) * resource.getpagesize()
        most = held + memory + RESERVED
        resource.setrlimit(resource.RLIMIT_AS, (most, most))


def _watch(most: int) -> None:
    while _peak() <= most:
        time.sleep(0.005)
    os._exit(1)


def _peak() -> int:
    """The most memory this process ever had, in bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
