"""A file that lies elsewhere, read in ranges: a little where little is asked for, blocks read ahead where all is."""

import hashlib
import os
import threading
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

from kinbase.checkpoint import FileStamp
from kinbase.checkpoint.files import shown
from kinbase.errors import CheckpointError

HEAD = 16 << 10
"""Bytes asked for first: the whole header of most shards, and little enough for a node of a family tree."""

BLOCK = 2 << 20
"""Bytes of a request where a file is read from end to end: enough that its latency is paid once."""

_WORKERS = min(16, os.cpu_count() or 1)
"""Places that the kinship pass reads at the same time."""


@dataclass(frozen=True, slots=True)
class Piece:
    """Bytes of a file, with the length of the whole file and what tells its content from another."""

    data: bytes
    size: int
    identity: str


Fetch = Callable[[int, int], Piece]
"""Fetches bytes from a start to a stop, fewer where the file ends before; raises CheckpointError."""


class Blocks:
    """The blocks of one checkpoint that were read last, and those that will be needed next, for all its files."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._kept: OrderedDict[tuple[RangedFile, int], Future[bytes]] = OrderedDict()
        self._pool: ThreadPoolExecutor | None = None

    def get(self, file: "RangedFile", index: int) -> bytes:
        """Block `index` of `file`; the one after it is asked for at the same time."""
        wanted = [i for i in (index, index + 1) if i * BLOCK < file.stamp.size]
        with self._lock:
            if self._pool is None:
                self._pool = ThreadPoolExecutor(max(4, 2 * _WORKERS), thread_name_prefix="kinbase-ranges")
            for i in wanted:
                key = (file, i)  # the file itself, so that no other one takes its place
                if key not in self._kept:
                    self._kept[key] = self._pool.submit(file.fetch, i * BLOCK, (i + 1) * BLOCK)
                self._kept.move_to_end(key)
            found = self._kept[file, index]
            while len(self._kept) > 4 * _WORKERS:
                self._kept.popitem(last=False)
        return found.result()

    def close(self) -> None:
        """Forget the blocks, and stop what is still being asked for."""
        with self._lock:
            self._kept.clear()
            pool, self._pool = self._pool, None
        if pool is not None:
            pool.shutdown(wait=False, cancel_futures=True)


class RangedFile:
    """Positional reads of a file elsewhere, from any thread: the counterpart of files.WeightsFile.

    `path` tells the file and, where it can, its version. The first bytes are read when it is opened, so its
    size is known; every later answer must tell of the same size and identity. With `blocks` it is read in
    blocks ahead of what is asked for, without just what is asked for. Raises CheckpointError.
    """

    def __init__(self, path: str, fetch: Fetch, blocks: Blocks | None = None) -> None:
        self.path = path
        self._fetch = fetch
        self._blocks = blocks
        first = fetch(0, HEAD)
        self._head, self._identity = first.data, first.identity
        self.stamp = FileStamp(path, first.size, _number(first.identity))
        if len(self._head) != min(HEAD, first.size):
            raise CheckpointError(
                f"{shown(path)} was cut short: {len(self._head)} of {first.size} bytes came; try again"
            )

    def fetch(self, start: int, stop: int) -> bytes:
        """The bytes from `start` to `stop`, or to the end of the file."""
        stop = min(stop, self.stamp.size)
        if stop <= len(self._head):
            return self._head[start:stop]
        piece = self._fetch(start, stop)
        if (piece.size, piece.identity) != (self.stamp.size, self._identity):
            raise CheckpointError(f"{shown(self.path)} changed while it was read; import it again")
        if len(piece.data) != stop - start:
            raise CheckpointError(f"{shown(self.path)} ends before its tensors do; import it again")
        return piece.data

    def read(self, offset: int, out: memoryview) -> None:
        """Fill `out` with the bytes from `offset` on."""
        end = offset + len(out)
        if end > self.stamp.size:
            raise CheckpointError(f"{shown(self.path)} ends before its tensors do; import it again")
        if self._blocks is None:
            begin = min(max(offset, len(self._head)), end) if offset < len(self._head) else offset
            out[: begin - offset] = self._head[offset:begin]
            if begin < end:
                out[begin - offset :] = self.fetch(begin, end)
            return
        while offset < end:
            index, within = divmod(offset, BLOCK)
            data = self._blocks.get(self, index)[within : within + end - offset]
            out[: len(data)] = data
            offset, out = offset + len(data), out[len(data) :]

    def close(self) -> None:
        """Forget what was read ahead."""
        if self._blocks is not None:
            self._blocks.close()


def _number(identity: str) -> int:
    """An identity as the number that a FileStamp has room for; 63 bits."""
    return int.from_bytes(hashlib.blake2b(identity.encode(), digest_size=8).digest(), "little") >> 1
