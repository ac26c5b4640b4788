"""Safetensors shards of known layout, written by position from several threads, whole or not at all.

The layout follows from names, shapes and dtypes, so every tensor's place is known before it is merged.
A shard's header is written last: until then it begins with zeros, which no reader takes for a checkpoint.
"""

import json
import os
from collections.abc import Sequence
from pathlib import Path

from kinbase.merging.plan import Target

SHARD_BYTES = 5_000_000_000
"""The Hub's and mergekit's usual size of a shard."""


class Shards:
    """The weight files of one checkpoint in `folder`: `write` from any thread, then `finish`, always `close`."""

    def __init__(self, folder: Path, targets: Sequence[Target], shard_bytes: int = SHARD_BYTES) -> None:
        groups: list[list[int]] = [[]]
        room = shard_bytes
        for number, target in enumerate(targets):
            if groups[-1] and target.nbytes > room:
                groups.append([])
                room = shard_bytes
            groups[-1].append(number)
            room -= target.nbytes
        count = len(groups)
        self.folder = folder
        self.names = [
            "model.safetensors" if count == 1 else f"model-{i + 1:05d}-of-{count:05d}.safetensors"
            for i in range(count)
        ]
        self._headers = [_header([targets[number] for number in group]) for group in groups]
        self._place: dict[int, tuple[int, int]] = {}
        for shard, group in enumerate(groups):
            at = len(self._headers[shard])
            for number in group:
                self._place[number] = (shard, at)
                at += targets[number].nbytes
        self._map = {targets[n].name: self.names[shard] for n, (shard, _) in self._place.items()}
        self.nbytes = sum(map(len, self._headers)) + sum(target.nbytes for target in targets)
        self._total = sum(target.nbytes for target in targets)
        self._fds: list[int] = []

    def open(self) -> None:
        """Create the files; raises OSError."""
        for name in self.names:
            self._fds.append(os.open(self.folder / name, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666))

    def write(self, target: int, byte: int, data: memoryview) -> None:
        """Put `data` at a byte of a target; raises OSError."""
        shard, at = self._place[target]
        at += byte
        while data:
            count = os.pwrite(self._fds[shard], data, at)
            data, at = data[count:], at + count

    def finish(self) -> None:
        """Put the headers before the tensors, the index beside them, and all of it on the disk; raises OSError."""
        for fd, header in zip(self._fds, self._headers, strict=True):
            os.fsync(fd)
            os.pwrite(fd, header, 0)
            os.fsync(fd)
        if len(self.names) > 1:
            index = {"metadata": {"total_size": self._total}, "weight_map": dict(sorted(self._map.items()))}
            (self.folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=2) + "\n")

    def close(self) -> None:
        """Release the files."""
        while self._fds:
            os.close(self._fds.pop())


def _header(targets: Sequence[Target]) -> bytes:
    """The length and the JSON that describe tensors lying one after another, padded to eight bytes."""
    entries: dict[str, object] = {"__metadata__": {"format": "pt"}}
    at = 0
    for target in targets:
        entries[target.name] = {
            "dtype": target.out,
            "shape": target.shape,
            "data_offsets": [at, at + target.nbytes],
        }
        at += target.nbytes
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text
