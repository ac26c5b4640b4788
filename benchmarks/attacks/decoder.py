"""The Parquet decoder of kinbase.checkpoint.parquet, in one process for many files: starting one each takes a second."""

import contextlib
import io
import os
import select
import struct
import subprocess
import sys
from collections.abc import Iterator, Sequence
from unittest import mock

from kinbase.errors import CheckpointError

SECONDS = 60.0
"""After which a decoder is taken to hang; an import kills it sooner."""
MEMORY = 4 << 30


class Decoder:
    """Stands for kinbase.checkpoint.confined.lines. A decoder that dies is started again, and its file is refused."""

    def __init__(self) -> None:
        self._child: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> "Decoder":
        return self

    def __exit__(self, *_: object) -> None:
        self._end()

    def lines(
        self, module: str, arguments: Sequence[str], *, what: str, seconds: float, most: int
    ) -> Iterator[bytes]:
        """What the decoder prints of a file, line by line, as `lines` gives it."""
        if self._child is None:
            self._child = subprocess.Popen(
                [sys.executable, __file__, module], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL, env=os.environ | {"POLARS_MAX_THREADS": "1"},
            )  # fmt: skip
        child = self._child
        assert child.stdin and child.stdout
        child.stdin.write("\0".join(arguments).encode() + b"\n")
        child.stdin.flush()
        ready, _, _ = select.select([child.stdout], [], [], SECONDS)
        head = child.stdout.read(8) if ready else b""
        if len(head) < 8:
            self._end()
            raise CheckpointError(
                f"{what} takes more memory or time than a file of its size is worth; it is refused"
            )
        said = child.stdout.read(*struct.unpack("<Q", head))
        if len(said) > most:
            raise CheckpointError(f"{what} unpacks to more than a file of its size is worth; it is refused")
        yield from said.splitlines(keepends=True)

    def _end(self) -> None:
        child, self._child = self._child, None
        if child is not None:
            child.kill()
            child.communicate()


def _serve(module: str) -> None:
    """In the process: decode what stdin names, and write the length of what is said before it."""
    import importlib
    import resource

    decoder = importlib.import_module(module)
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    out = os.fdopen(os.dup(1), "wb")
    for line in sys.stdin.buffer:
        said = io.StringIO()
        words = [module, *line.decode().rstrip("\n").split("\0")]
        with (
            contextlib.redirect_stdout(said),
            mock.patch.object(sys, "argv", words),
            mock.patch.object(decoder, "confine", lambda **_: None),
        ):
            decoder.main()
        data = said.getvalue().encode()
        out.write(struct.pack("<Q", len(data)) + data)
        out.flush()


if __name__ == "__main__":
    _serve(sys.argv[1])
