"""Programs that a run starts: bounded in time and output, stopped with everything they started.

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
from collections.abc import Mapping, Sequence
from typing import Any

from kinbase.errors import KinbaseError
from kinbase.importers.files import shown

MOST = 16 * 1024 * 1024
"""Bytes of an answer; the largest result files of lm-eval are a fraction of it."""


def output(words: Sequence[str], *, folder: str, timeout: float) -> str:
    """What a program prints on stdout. Raises KinbaseError when it cannot be started, fails, prints too much or hangs."""
    process = _start(words, folder)
    assert process.stdin
    process.stdin.close()  # nobody answers what it may ask
    try:
        text = _read(process, timeout, words[0], until_line=False)
        code = process.wait(timeout=5)
    except subprocess.TimeoutExpired:
        raise KinbaseError(f"{shown(words[0])} closed its output and did not end") from None
    finally:
        stop(process)
    if code:
        how = f"was ended by signal {-code}" if code < 0 else f"failed with exit code {code}"
        raise KinbaseError(f"{shown(words[0])} {how}; what it says is above")
    return text


class Caller:
    """Calls functions in a process of its own (`kinbase.evolution.worker`), which is started when it is first needed."""

    def __init__(self, folder: str) -> None:
        self.folder = folder
        self.process: subprocess.Popen[bytes] | None = None

    def call(
        self, function: str, arguments: Sequence[str], settings: Mapping[str, Any], *, timeout: float
    ) -> Any:
        """What `function` (module:name) returns, as JSON can say it; raises KinbaseError when it fails or hangs."""
        if self.process is None:
            self.process = _start(
                [sys.executable, "-m", "kinbase.evolution.worker", self.folder], self.folder
            )
        assert self.process.stdin
        request = {"function": function, "arguments": list(arguments), "settings": dict(settings)}
        try:
            self.process.stdin.write(json.dumps(request).encode() + b"\n")
            self.process.stdin.flush()
            text = _read(self.process, timeout, function, until_line=True)
            answer = json.loads(text)
        except (BrokenPipeError, ValueError):  # it ended before it answered, or in the middle of its answer
            answer = {"error": "its process ended; what it says is above"}
            self.close()  # the next call gets another one
        except KinbaseError:
            self.close()
            raise
        if "error" in answer:
            raise KinbaseError(f"{shown(function)} failed: {answer['error']}")
        return answer["result"]

    def close(self) -> None:
        """End the process, and what it started."""
        if self.process is not None:
            stop(self.process)
            self.process = None


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


def _read(process: "subprocess.Popen[bytes]", timeout: float, who: str, *, until_line: bool) -> str:
    """What a process prints up to the end of a line, or of all; raises KinbaseError after `timeout` seconds or MOST bytes."""
    assert process.stdout
    deadline = time.monotonic() + timeout
    found = bytearray()
    with selectors.DefaultSelector() as selector:
        selector.register(process.stdout, selectors.EVENT_READ)
        while True:
            left = deadline - time.monotonic()
            if left <= 0 or not selector.select(left):
                raise KinbaseError(
                    f"{shown(who)} gave no answer in {timeout:g} s and was stopped: evaluate.timeout bounds it"
                )
            piece = os.read(process.stdout.fileno(), 65536)
            found += piece
            if len(found) > MOST:
                raise KinbaseError(f"{shown(who)} printed more than {MOST >> 20} MiB and was stopped")
            if not piece or (until_line and found.endswith(b"\n")):
                return found.decode("utf-8", "replace")
