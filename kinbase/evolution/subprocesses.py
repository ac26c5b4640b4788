"""Programs that a run starts: bounded in time and output, stopped with everything they started.

Each is begun at once and waited for when its answer is asked, so that a run can write what it knows meanwhile.
Their stdout is the answer, their stderr goes where ours does. A program that fails, hangs or says nothing is a
KinbaseError of one line.
"""

import contextlib
import json
import os
import selectors
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from kinbase.checkpoint.files import shown
from kinbase.errors import KinbaseError

MOST = 16 * 1024 * 1024
"""Bytes of an answer; the largest result files of lm-eval are a fraction of it."""

LONGEST = 3600.0
"""Seconds of one wait on a pipe: a system's clock counts milliseconds to 25 days, and a timeout has no bound."""

Answer = Callable[[], tuple[Any, float]]
"""Waits for an answer, and tells the seconds it took. Raises KinbaseError when there is none."""


class Caller:
    """Programs of a run, and functions in a process of its own (`kinbase.evolution.worker`); one at a time."""

    def __init__(self, folder: str) -> None:
        self.folder = folder
        self.program: subprocess.Popen[bytes] | None = None
        self.worker: subprocess.Popen[bytes] | None = None

    def run(self, words: Sequence[str], *, timeout: float) -> Answer:
        """Start a program; its answer is what it prints on stdout. Raises KinbaseError when it cannot be started.

        The answer raises KinbaseError when the program fails, prints too much or has not ended `timeout` seconds from now.
        """
        self.program = process = _start(words, self.folder)
        began = time.monotonic()
        assert process.stdin
        process.stdin.close()  # nobody answers what it may ask

        def answer() -> tuple[str, float]:
            try:
                text = _read(process, began, timeout, words[0], until_line=False)
                code = process.wait(timeout=5)
            except subprocess.TimeoutExpired:
                raise KinbaseError(f"{shown(words[0])} closed its output and did not end") from None
            finally:
                stop(process)
                self.program = None
            if code:
                how = f"was ended by signal {-code}" if code < 0 else f"failed with exit code {code}"
                raise KinbaseError(f"{shown(words[0])} {how}; what it says is above")
            return text, time.monotonic() - began

        return answer

    def call(
        self, function: str, arguments: Sequence[str], settings: Mapping[str, Any], *, timeout: float
    ) -> Answer:
        """Call `function` (module:name); its answer is what that returns, as JSON can say it.

        The answer raises KinbaseError when the function fails or has not returned `timeout` seconds from now.
        """
        if self.worker is None:
            self.worker = _start([sys.executable, "-m", "kinbase.evolution.worker", self.folder], self.folder)
        process, began = self.worker, time.monotonic()
        assert process.stdin
        request = {"function": function, "arguments": list(arguments), "settings": dict(settings)}
        with contextlib.suppress(BrokenPipeError):  # it has ended, as its answer will tell
            process.stdin.write(json.dumps(request).encode() + b"\n")
            process.stdin.flush()

        def answer() -> tuple[Any, float]:
            try:
                said = json.loads(_read(process, began, timeout, function, until_line=True))
            except ValueError:  # it ended before it answered, or in the middle of its answer
                said = {"error": "its process ended; what it says is above"}
                self.close()  # the next call gets another one
            except KinbaseError:
                self.close()
                raise
            if "error" in said:
                raise KinbaseError(f"{shown(function)} failed: {said['error']}")
            return said["result"], said["seconds"]

        return answer

    def close(self) -> None:
        """End what is at work, and what it started."""
        for process in (self.program, self.worker):
            if process is not None:
                stop(process)
        self.program = self.worker = None


def stop(process: "subprocess.Popen[bytes]") -> None:
    """End a program and all it started; nothing when it has ended."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    for pipe in (process.stdin, process.stdout):
        if pipe is not None:
            with contextlib.suppress(BrokenPipeError):
                pipe.close()


def _start(words: Sequence[str], folder: str) -> "subprocess.Popen[bytes]":
    try:
        return subprocess.Popen(
            list(words), cwd=folder, stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True
        )
    except (OSError, ValueError) as error:
        raise KinbaseError(
            f"{shown(words[0])} cannot be started: {getattr(error, 'strerror', None) or error}"
        ) from None


def _read(
    process: "subprocess.Popen[bytes]", began: float, timeout: float, who: str, *, until_line: bool
) -> str:
    """What a process prints up to the end of a line, or of all.

    Raises KinbaseError `timeout` seconds after it `began`, unless all is there already, or after MOST bytes.
    """
    assert process.stdout
    found = bytearray()
    with selectors.DefaultSelector() as selector:
        selector.register(process.stdout, selectors.EVENT_READ)
        while True:
            left = began + timeout - time.monotonic()
            if not selector.select(min(max(left, 0), LONGEST)):
                if left > LONGEST:
                    continue
                raise KinbaseError(
                    f"{shown(who)} gave no answer in {timeout:g} s and was stopped: evaluate.timeout bounds it"
                )
            piece = os.read(process.stdout.fileno(), 65536)
            found += piece
            if len(found) > MOST:
                raise KinbaseError(f"{shown(who)} printed more than {MOST >> 20} MiB and was stopped")
            if not piece or (until_line and found.endswith(b"\n")):
                return found.decode("utf-8", "replace")
