"""One .safetensors file: its header checked to the byte, its tensors read by position."""

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

from kinbase.checkpoint import DTYPE_BYTES, Blob, Checkpoint, Extent, FileStamp, Record, Tensor
from kinbase.checkpoint.files import WeightsFile, absolute, is_file, parse_object, shown
from kinbase.checkpoint.limits import LIMITS
from kinbase.checkpoint.tensors import records
from kinbase.errors import CheckpointError
from kinbase.importers import state_dict
from kinbase.importers.metadata import told

HEADER_LIMIT = LIMITS.header_bytes
"""Bytes of a header; the format's own limit."""

UNREAD_DTYPE_BITS = {
    "F4": 4,
    "F6_E2M3": 6,
    "F6_E3M2": 6,
    "C64": 64,
}
"""Dtypes the format knows and kinbase has no arithmetic for; their lengths are checked all the same."""

_LARGEST = 2**63 - 1


@dataclass(frozen=True, slots=True)
class Entry:
    """One tensor of a header; `offset` counts from the start of the file."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    offset: int
    nbytes: int


class Readable(Protocol):
    """A file read by position: files.WeightsFile, which documents it, or ranges.RangedFile."""

    @property
    def path(self) -> str | os.PathLike[str]: ...

    @property
    def stamp(self) -> FileStamp: ...

    def read(self, offset: int, out: memoryview) -> None: ...

    def close(self) -> None: ...


def recognises(source: str) -> bool:
    """Whether `source` is a .safetensors file, or what lies under one prefix of its names: PATH#PREFIX."""
    path, _ = state_dict.split(source)
    return path.endswith(".safetensors") and is_file(path)


def open(source: str) -> Iterator[Record]:
    """The weights of one file and what they say of the model; raises CheckpointError."""
    path, key = state_dict.split(source)
    weights = checkpoint(path)
    if key is not None:
        weights = _under(weights, key)
    elif copies := state_dict.averages(tensor.name for tensor in weights.tensors):
        weights.notes.append(
            f"{shown(path)} holds averages of the model beside it: {', '.join(map(shown, copies))}; choose one with --key"
        )
    yield from records(weights)
    yield from told(weights.metadata, weights.name)


def _under(weights: Checkpoint, key: str) -> Checkpoint:
    """The tensors whose names begin with `key` and a dot, without it; raises CheckpointError when there are none."""
    start = key + "."
    tensors = [replace(t, name=t.name[len(start) :]) for t in weights.tensors if t.name.startswith(start)]
    if not tensors:
        first = sorted({tensor.name.partition(".")[0] for tensor in weights.tensors})[:5]
        raise CheckpointError(
            f"{shown(weights.source)} holds no tensors under {shown(key)}: their names begin with {', '.join(map(shown, first))}"
        )
    return replace(
        weights,
        name=f"{weights.name}@{key}",
        source=f"{absolute(weights.source)}#{key}",
        tensors=tensors,
        skipped={n[len(start) :]: reason for n, reason in weights.skipped.items() if n.startswith(start)},
        blobs=[replace(b, name=b.name[len(start) :]) for b in weights.blobs if b.name.startswith(start)],
    )


def checkpoint(path: str | os.PathLike[str], kept: bool = True) -> Checkpoint:
    """The file at `path` as a Checkpoint, named after its stem.

    `kept`: as in WeightsFile. Raises CheckpointError when the file is not exactly what the format
    allows.
    """
    return of_file(WeightsFile(path, kept), Path(path).stem, str(path))


def of_file(file: Readable, name: str, source: str) -> Checkpoint:
    """As `checkpoint`, of a file that is open already, wherever it lies."""
    tensors: list[Tensor] = []
    skipped: dict[str, str] = {}
    blobs: list[Blob] = []
    try:
        entries, metadata = read_header(file)
    finally:
        file.close()
    for entry in entries:
        read = reader(file, entry.offset, entry.nbytes)
        if entry.dtype in DTYPE_BYTES:
            place = Extent(file.borrow, entry.offset) if isinstance(file, WeightsFile) else None
            tensors.append(Tensor(entry.name, entry.dtype, entry.shape, read, place))
        else:
            skipped[entry.name] = f"dtype {shown(entry.dtype)} is not read"
            blobs.append(Blob(entry.name, entry.dtype, entry.shape, entry.nbytes, read))
    return Checkpoint(
        name,
        source,
        tensors,
        files=[file.stamp],
        skipped=skipped,
        blobs=blobs,
        metadata=metadata,
        close=file.close,
    )


def reader(file: Readable, origin: int, nbytes: int) -> Callable[[int, memoryview], None]:
    """`Tensor.read` of the `nbytes` bytes at `origin` of `file`."""

    def read(start: int, out: memoryview) -> None:
        if start < 0 or start + len(out) > nbytes:
            raise ValueError(f"bytes {start} to {start + len(out)} of a tensor of {nbytes} bytes")
        file.read(origin + start, out)

    return read


def read_header(file: Readable) -> tuple[list[Entry], dict[str, str]]:
    """The tensors of a file, in the order they lie in it, and its metadata.

    Raises CheckpointError when the header is longer than the format or the file allows, is not a
    JSON object with the format's fields, or when the tensors do not cover the data exactly.
    """
    what, size = shown(file.path), file.stamp.size
    if size < 8:
        raise CheckpointError(f"{what} is truncated: {size} bytes, no safetensors header; download it again")
    head = bytearray(8)
    file.read(0, memoryview(head))
    length = int.from_bytes(head, "little")
    if length > HEADER_LIMIT:
        raise CheckpointError(f"{what} claims a header of {length} bytes; it is not a safetensors file")
    if length > size - 8:
        raise CheckpointError(
            f"{what} claims a header of {length} bytes but has {size - 8} after the length; download it again"
        )
    raw = bytearray(length)
    file.read(8, memoryview(raw))
    header = parse_object(raw, f"the header of {what}", items=LIMITS.header_items)
    metadata = header.pop("__metadata__", None) or {}
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise CheckpointError(f"the header of {what} has metadata that is not text; download it again")
    data = size - 8 - length
    entries = sorted(
        (_entry(name, value, data, what) for name, value in header.items()),
        key=lambda entry: (entry.offset, entry.nbytes),
    )
    end = 0
    for entry in entries:
        if entry.offset != end:
            fault = "overlaps the tensor before it" if entry.offset < end else "leaves a hole before it"
            raise CheckpointError(
                f"{what}: tensor {shown(entry.name)} {fault}; the file is malformed, refused"
            )
        end += entry.nbytes
    if end != data:
        raise CheckpointError(
            f"{what}: its tensors take {end} bytes and {data} follow the header; the file is malformed, refused"
        )
    return [Entry(e.name, e.dtype, e.shape, 8 + length + e.offset, e.nbytes) for e in entries], metadata


def _entry(name: str, value: object, data: int, what: str) -> Entry:
    """One header entry, checked by itself; its offset counts from the start of the data."""

    def refuse(fault: str) -> CheckpointError:
        return CheckpointError(f"{what}: tensor {shown(name)} {fault}; the file is malformed, refused")

    if not isinstance(value, dict):
        raise refuse("is not described by an object")
    dtype, shape, offsets = (value.get(key) for key in ("dtype", "shape", "data_offsets"))
    if not isinstance(dtype, str):
        raise refuse("has no dtype")
    if not isinstance(shape, list) or not all(_is_size(extent) for extent in shape):
        raise refuse("has a shape that is no list of sizes")
    if not isinstance(offsets, list) or len(offsets) != 2 or not all(_is_size(offset) for offset in offsets):
        raise refuse("has data_offsets that are no pair of sizes")
    begin, end = offsets
    if not begin <= end <= data:
        raise refuse(f"lies at {begin} to {end} of {data} bytes of data (truncated, or lying)")
    bits = 8 * DTYPE_BYTES[dtype] if dtype in DTYPE_BYTES else UNREAD_DTYPE_BITS.get(dtype)
    if bits is not None:
        numel = 1
        for extent in shape:
            numel *= extent
            if numel * bits > _LARGEST:  # at each step, or a zero could hide an absurd product
                raise refuse("has a shape whose product overflows")
        if numel * bits != 8 * (end - begin):
            raise refuse(f"takes {end - begin} bytes, which {dtype} x {shown(shape)} does not")
    return Entry(name, dtype, tuple(shape), begin, end - begin)


def _is_size(value: object) -> bool:
    return type(value) is int and 0 <= value <= _LARGEST  # bool is an int to isinstance
