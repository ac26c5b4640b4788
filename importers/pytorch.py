"""A torch file (.bin, .pt, .pth): unpickled with weights_only and without its data, which is read by position."""

import os
import re
import warnings
import zipfile
from collections.abc import Callable, Iterator, Mapping
from math import prod
from pathlib import Path
from typing import Any

from kinbase.checkpoint import DTYPE_BYTES, Blob, Checkpoint, Record, Tensor
from kinbase.checkpoint.files import WeightsFile, absolute, is_file, shown
from kinbase.checkpoint.limits import LIMITS
from kinbase.checkpoint.pickles import refuse_costly
from kinbase.checkpoint.tensors import HEADS, records
from kinbase.errors import CheckpointError
from kinbase.importers import state_dict
from kinbase.importers.safetensors import reader

_DTYPES = {
    "float64": "F64",
    "float32": "F32",
    "float16": "F16",
    "bfloat16": "BF16",
    "float8_e4m3fn": "F8_E4M3",
    "float8_e5m2": "F8_E5M2",
    "int64": "I64",
    "uint64": "U64",
    "int32": "I32",
    "uint32": "U32",
    "int16": "I16",
    "uint16": "U16",
    "int8": "I8",
    "uint8": "U8",
    "bool": "BOOL",
}


def recognises(source: str) -> bool:
    """Whether `source` is a file named as torch files are, or a state dict in one: PATH#KEY."""
    path, _ = state_dict.split(source)
    return path.endswith((".bin", ".pt", ".pth", ".ckpt")) and is_file(path)


def open(source: str) -> Iterator[Record]:
    """The weights of one file and what they say of the model; raises CheckpointError."""
    path, key = state_dict.split(source)
    yield from records(checkpoint(path, key=key))


def checkpoint(path: str | os.PathLike[str], kept: bool = True, key: str | None = None) -> Checkpoint:
    """The model's state dict in the file at `path` as a Checkpoint, named after its stem and `key`.

    `kept`: as in WeightsFile; `key` is of a nested state dict, else the largest is read. Tensors that share one
    storage and layout count once.
    Raises CheckpointError when the file is not torch's zip format, holds more than weights, or describes
    tensors its storages do not hold.
    """
    what = shown(path)
    file = WeightsFile(path, kept)
    storages = _storages(file)
    loaded = _unpickle(path)
    found, others = state_dict.chosen(loaded, key, what)
    state = {name: value for name, value in found.state.items() if isinstance(name, str)}
    if not all(map(_is_text, state)):
        raise CheckpointError(f"{what} has a tensor whose name is not text; it is refused")
    weights = Checkpoint(
        Path(path).stem + (f"@{key}" if key else ""),
        f"{absolute(path)}#{key}" if key else str(path),
        [],
        files=[file.stamp],
        close=file.close,
    )
    seen: dict[tuple[object, ...], str] = {}
    # A head tied to its embedding is listed under the embedding's name, as safetensors files have it.
    for name in sorted(state, key=lambda name: name.endswith(HEADS)):
        value = state[name]
        reason = _unread(value)
        if reason:
            weights.skipped[name] = reason
            weights.blobs += _bytes_of(value, name, what, file, storages)
            continue
        layout = _layout(value, name, what, file.stamp.size, storages)
        code, shape, strides, origin = layout
        if layout in seen and prod(shape) > 0:
            weights.skipped[name] = f"tied to {seen[layout]}"
            continue
        seen[layout] = name
        if value.is_contiguous():
            reads = reader(file, origin, prod(shape) * DTYPE_BYTES[code])
        else:
            reads = _strided(file, origin, shape, strides, DTYPE_BYTES[code])
        weights.tensors.append(Tensor(name, code, shape, reads))
    if any(blob.name == _WHOLE for blob in weights.blobs):
        weights.blobs = [Blob(_WHOLE, "file", (), file.stamp.size, reader(file, 0, file.stamp.size))]
    if others:
        keys = ", ".join(f"{shown(o.key or '(the top)')} ({o.numel:,} elements)" for o in others[:5])
        read = f" ({shown(found.key)})" if found.key else ""
        weights.notes.append(
            f"{what} holds other state dicts beside the one that was read{read}: {keys}; choose with --key"
        )
    for listed, count in state_dict.nameless(loaded, found.numel):
        weights.notes.append(
            f"{what} holds {count} tensors without names ({shown(listed)}), perhaps an average of the model: not read"
        )
    return weights


_WHOLE = "the whole file"
"""What identity covers where a tensor's own bytes cannot be told: then only a copy of the file is the same model."""


def _bytes_of(
    value: object, name: str, what: str, file: WeightsFile, storages: Mapping[int, int]
) -> list[Blob]:
    """What tells a value that is not read from another: its bytes, or those of all the file; nothing of no tensor."""
    import torch

    if not isinstance(value, torch.Tensor):
        return []
    whole = [Blob(_WHOLE, "file", (), 0, reader(file, 0, 0))]
    if value.layout != torch.strided or value.is_quantized or not value.is_contiguous():
        return whole
    origin = getattr(value.untyped_storage(), "_checkpoint_offset", None)
    nbytes = value.numel() * value.element_size()
    start = value.storage_offset() * value.element_size()
    if origin is None or start < 0 or start + nbytes > storages.get(origin, -1):
        return whole
    dtype = str(value.dtype).removeprefix("torch.")
    return [Blob(name, dtype, tuple(value.shape), nbytes, reader(file, origin + start, nbytes))]


def _storages(file: WeightsFile) -> dict[int, int]:
    """{offset: bytes} of the records of the zip; raises CheckpointError when torch did not write it.

    Every record has to be stored as it is: a compressed one could be any size once unpacked.
    """
    what = shown(file.path)
    records: dict[int, int] = {}
    seen: set[str] = set()
    try:
        if not zipfile.is_zipfile(file.path):
            raise CheckpointError(
                f"{what} is truncated or in torch's old format, which cannot be read piece by piece; save it "
                "again with torch.save, or as .safetensors"
            )
        with zipfile.ZipFile(file.path) as archive:
            for info in archive.infolist():
                if info.compress_type != zipfile.ZIP_STORED or info.compress_size != info.file_size:
                    raise CheckpointError(
                        f"{what} has a compressed record; torch writes none, so it is refused"
                    )
                if info.filename.endswith(".pkl") and info.file_size > LIMITS.pickle_bytes:
                    raise CheckpointError(f"{what} describes itself in {info.file_size} bytes; it is refused")
                if info.filename in seen:
                    raise CheckpointError(f"{what} has two records of one name; it is refused")
                seen.add(info.filename)
                head = bytearray(30)
                end = info.header_offset + len(head) + info.file_size
                if not 0 <= info.header_offset <= end <= file.stamp.size:
                    raise zipfile.BadZipFile("a record lies outside the file")
                file.read(info.header_offset, memoryview(head))
                names = int.from_bytes(head[26:28], "little") + int.from_bytes(head[28:30], "little")
                offset = info.header_offset + len(head) + names
                records[offset] = info.file_size
                if info.filename.endswith(".pkl"):
                    pickled = bytearray(info.file_size)
                    file.read(offset, memoryview(pickled))
                    refuse_costly(bytes(pickled), what)
                if info.filename.endswith("/byteorder"):
                    order = bytearray(6)
                    file.read(offset, memoryview(order))
                    if order != b"little":
                        raise CheckpointError(f"{what} was written big-endian; save it again on this machine")
    except CheckpointError:
        raise
    except Exception as error:  # a hostile zip can raise nearly anything
        raise CheckpointError(f"{what} is a damaged zip ({shown(error)}); download it again") from None
    finally:
        file.close()
    return records


def _unpickle(path: str | os.PathLike[str]) -> object:
    """What the file holds, its tensors on the meta device: with shapes and offsets, without data."""
    import torch

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of old or odd pickles, which are read or refused all the same
            return torch.load(path, map_location="meta", weights_only=True)
    except MemoryError:
        cause = "it asks for more memory than there is"
    except Exception as error:  # a hostile pickle can raise anything
        # torch's own first line advises weights_only=False; only what it met is of use.
        met = re.search(r"GLOBAL ([\w.]+)", str(error))
        cause = f"it wants to run {shown(met[1])}" if met else type(error).__name__
    raise CheckpointError(
        f"{shown(path)} cannot be unpickled as plain weights ({cause}) and is refused, since any other way "
        "could run its code; ask for a .safetensors file"
    )


def _is_text(name: str) -> bool:
    try:
        name.encode()
    except UnicodeEncodeError:  # half a surrogate pair, which no database takes
        return False
    return True


def _unread(value: object) -> str | None:
    """Why a value of a state dict holds no weights, or None."""
    import torch

    if not isinstance(value, torch.Tensor):
        return "not a tensor"
    if value.layout != torch.strided or value.is_quantized:
        return "sparse or quantised"
    dtype = str(value.dtype).removeprefix("torch.")
    return None if dtype in _DTYPES else f"dtype {dtype} is not read"


def _layout(
    value: Any, name: str, what: str, size: int, storages: Mapping[int, int]
) -> tuple[str, tuple[int, ...], tuple[int, ...], int]:
    """(dtype, shape, strides in elements, offset in the file) of a tensor on the meta device."""
    code = _DTYPES[str(value.dtype).removeprefix("torch.")]
    shape, strides = tuple(value.shape), tuple(value.stride())
    width = DTYPE_BYTES[code]
    storage = getattr(value.untyped_storage(), "_checkpoint_offset", None)
    if storage is None:
        import torch

        raise CheckpointError(
            f"{what}: torch {torch.__version__} does not say where {shown(name)} lies; upgrade torch, or "
            "save it as .safetensors"
        )
    last = value.storage_offset() + sum((n - 1) * s for n, s in zip(shape, strides, strict=True))
    held = storages.get(storage, -1)
    if prod(shape) and (held < 0 or (last + 1) * width > held or min(strides, default=0) < 0):
        raise CheckpointError(f"{what}: tensor {shown(name)} reaches beyond its storage; download it again")
    if prod(shape) * width > size:
        raise CheckpointError(f"{what}: tensor {shown(name)} claims more than the file holds; it is refused")
    return code, shape, strides, storage + value.storage_offset() * width


def _strided(
    file: WeightsFile, origin: int, shape: tuple[int, ...], strides: tuple[int, ...], width: int
) -> Callable[[int, memoryview], None]:
    """`Tensor.read` of a tensor that is not contiguous in the file, a few rows at a time.

    The file is mapped for each read and the rows are copied into order.
    """
    nbytes = prod(shape) * width
    row = nbytes // shape[0]
    span = 1 + sum((n - 1) * s for n, s in zip(shape, strides, strict=True))

    def read(start: int, out: memoryview) -> None:
        import numpy as np

        if start < 0 or start + len(out) > nbytes:
            raise ValueError(f"bytes {start} to {start + len(out)} of a tensor of {nbytes} bytes")
        if not out:
            return
        file.read(origin + span * width - 1, memoryview(bytearray(1)))  # a mapped file may not end early
        mapped = np.memmap(file.path, np.uint8, "r", origin, (span * width,))
        elements = mapped.view(f"V{width}")
        whole = np.lib.stride_tricks.as_strided(
            elements, shape, [s * width for s in strides], writeable=False
        )
        first, last = start // row, -(-(start + len(out)) // row)
        data = np.ascontiguousarray(whole[first:last]).view(np.uint8).reshape(-1)
        skip = start - first * row
        out[:] = data[skip : skip + len(out)].data

    return read
