"""GGUF files, for what their header says of the model (ggml docs/gguf.md): lineage, and weights.

The header is read here and not by the `gguf` package: its reader makes a numpy object of every
vocabulary entry (11 s and 0.8 GB for a vocabulary of 128,000) and follows a length that lies (60
bytes made it take 3 GB). Here a value is read only if its key is wanted, and skipped otherwise.

`general.source.*` names what the file was converted from: that is the quantised model's parent,
and then the base models are the parents of that source. Without it the base models are still those of the
model that was converted (its card's), not of the quantisation: the file's own parent is that model, where the
file calls it by an id. But a file that bears a quantiser's name has the metadata of that quantiser's card.
A file of the type "adapter" is an adapter of its base models.
"""

import os
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from kinbase.checkpoint import Checkpoint, Edge, Facts, Problem, Record
from kinbase.checkpoint.files import opened, shown
from kinbase.checkpoint.ids import folded, hub_id
from kinbase.checkpoint.limits import LIMITS
from kinbase.checkpoint.untrusted import head, model_id, name, problems
from kinbase.errors import CheckpointError
from kinbase.importers.gguf_tensors import Entry, Heads, checkpoint, data_start

MAX_HEADER = LIMITS.gguf_bytes
"""Bytes of metadata that are walked through; the largest vocabularies take about 20 MB."""
_MAX_KEY = 65535
_MAX_TEXT = LIMITS.gguf_text
_MAX_TEXTS = 4 << 20
"""Bytes of all texts that are kept."""
_MAX_BASES = 1000
_MAX_TENSORS = 1 << 18
_HEADS = (".attention.head_count", ".attention.head_count_kv")

_STRING, _ARRAY = 8, 9
_FORMATS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}

FILE_TYPES = {
    0: "F32", 1: "F16", 2: "Q4_0", 3: "Q4_1", 7: "Q8_0", 8: "Q5_0", 9: "Q5_1", 10: "Q2_K", 11: "Q3_K_S",
    12: "Q3_K_M", 13: "Q3_K_L", 14: "Q4_K_S", 15: "Q4_K_M", 16: "Q5_K_S", 17: "Q5_K_M", 18: "Q6_K", 19: "IQ2_XXS",
    20: "IQ2_XS", 21: "Q2_K_S", 22: "IQ3_XS", 23: "IQ3_XXS", 24: "IQ1_S", 25: "IQ4_NL", 26: "IQ3_S", 27: "IQ3_M",
    28: "IQ2_S", 29: "IQ2_M", 30: "IQ4_XS", 31: "IQ1_M", 32: "BF16", 36: "TQ1_0", 37: "TQ2_0", 38: "MXFP4_MOE",
    39: "NVFP4", 40: "Q1_0",
}  # fmt: skip
"""`general.file_type`: which type most of the tensors have."""


def recognises(source: str) -> bool:
    """A file that begins with the magic, whatever it is called."""
    return head(source, 4) == b"GGUF"


def _read_header(path: Path) -> "_Header":
    try:
        with opened(path) as file:
            return _header(file, os.fstat(file.fileno()).st_size)
    except OSError as error:
        raise CheckpointError(f"cannot read {shown(path)}: {error.strerror}") from None
    except (EOFError, _LyingError) as error:
        raise CheckpointError(
            f"{shown(path)} has a GGUF header that is cut short or wrong: {error}"
        ) from None


def open(source: str) -> Iterator[Record]:
    """Facts and edges of the model the file holds."""
    path = Path(source)
    header = _read_header(path)
    values, parameters = header.values, header.parameters
    refused: list[str] = []

    def text(key: str) -> str | None:
        value = values.get(key)
        return name(value, refused) if isinstance(value, str) else None

    file_type = values.get("general.file_type")
    dtype = FILE_TYPES.get(file_type) if isinstance(file_type, int) else None
    quantised = dtype not in ("F32", "F16", "BF16")
    kept = {"file_type": dtype, "quantized_by": text("general.quantized_by"), **_adapter(values)}
    detail: dict[str, object] = {key: value for key, value in kept.items() if value}
    is_adapter = text("general.type") == "adapter"
    origin = model_id(
        text("general.source.huggingface.repository")
        or text("general.source.repo_url")
        or text("general.source.url"),
        refused,
    )
    bases = _bases(values, text, refused)
    own = model_id(text("general.repo_url"), []) or ""
    if (
        not origin
        and quantised
        and len(bases) == 1
        and (text("general.quantized_by") or "gguf" in own.lower())
    ):
        # Metadata of the quantiser's own card: its one base model is what was quantised.
        ((origin, more),) = bases
        bases, detail = [], detail | more
    relation = "adapter" if is_adapter else "quantized" if quantised or origin else None
    if not is_adapter and header.entries:
        try:
            weights = _weights(path, header)
        except CheckpointError as error:
            yield Problem(f"{shown(path)} has no weights to compare and is kept for lineage: {error}")
        else:
            yield weights
    yield Facts(
        architecture=text("general.architecture"),
        license=text("general.license.name")
        if text("general.license") == "other"
        else text("general.license"),
        relation=relation,
        parameters=parameters,
        dtype=dtype,
    )
    title = text("general.name")
    yield from _edges(origin, bases, detail, is_adapter=is_adapter, is_quantised=quantised, title=title)
    yield from problems(path.name, refused)


def _edges(
    origin: str | None, bases: list[tuple[str, dict[str, object]]], detail: dict[str, object], *, is_adapter: bool,
    is_quantised: bool, title: str | None,
) -> Iterator[Edge]:  # fmt: skip
    """The claims on the file's model, and on the model that was converted where the file tells which that is."""
    if is_adapter:
        # A conversion of an adapter in whatever precision is one still.
        for parent, more in bases:
            yield Edge(parent, "adapter", "gguf", detail=detail | more)
        return
    converted = None if origin else _converted(title, [parent for parent, _ in bases])
    if origin or converted:
        relation = "quantized" if is_quantised or origin else "conversion"
        yield Edge(str(origin or converted), relation, "gguf", detail=detail)
    how = "merge" if len(bases) > 1 else "finetune"
    for parent, more in bases:
        child = origin or converted
        evidence = "gguf" if child is None else "reported"  # of a model that is not in this file
        yield Edge(parent, how, evidence, child, detail=more if child else detail | more)


def _bases(
    values: dict[str, object], text: Callable[[str], str | None], refused: list[str]
) -> list[tuple[str, dict[str, object]]]:
    """The base models of the model that was converted, and what is said of each beside its name."""
    stated = values.get("general.base_model.count", 0)
    if isinstance(stated, int) and stated > _MAX_BASES:
        refused.append(f"all but {_MAX_BASES} of {stated:,} base models")
    found: list[tuple[str, dict[str, object]]] = []
    for index in range(min(stated, _MAX_BASES) if isinstance(stated, int) else 0):
        key = f"general.base_model.{index}."
        repository = text(key + "repo_url") or text(key + "url")
        parts = [part.replace(" ", "-") for part in (text(key + "organization"), text(key + "name")) if part]
        parent = model_id(repository, refused) or "/".join(parts)
        if not parent:
            refused.append(f"base model {index}, which has no name")
            continue
        version = text(key + "version")
        found.append((parent, {"version": version} if version else {}))
    return found


def _converted(title: str | None, bases: list[str]) -> str | None:
    """The model that was converted, where the file calls it by an id; a title is made up by the converter and names none."""
    label = hub_id(title) if title else None
    return label if label and "/" in label and folded(label) not in {folded(base) for base in bases} else None


def _adapter(values: dict[str, object]) -> dict[str, object]:
    """What the header says of an adapter: its kind and alpha."""
    told = {"adapter_type": values.get("adapter.type"), "lora_alpha": values.get("adapter.lora.alpha")}
    return {key: value for key, value in told.items() if isinstance(value, str | int | float)}


class _LyingError(Exception):
    """The header contradicts itself or the file."""


@dataclass(frozen=True, slots=True)
class _Header:
    """What is kept of a header: `general.` values and heads, the tensors, where it ends, and whether it is a part."""

    values: dict[str, object]
    parameters: int | None
    entries: list[Entry]
    end: int
    is_part: bool


def _weights(path: Path, header: _Header) -> Checkpoint:
    """The file's tensors as a Checkpoint; raises CheckpointError when they are not read."""
    if header.is_part:
        raise CheckpointError("it is one part of several, which llama-gguf-split --merge joins")
    architecture = header.values.get("general.architecture")

    def heads(key: str) -> int:
        value = header.values.get(f"{architecture}.attention.{key}", 0)
        return value if isinstance(value, int) and 0 <= value < 1 << 20 else 0

    queries = heads("head_count")
    found = checkpoint(
        str(path), architecture if isinstance(architecture, str) else None, header.entries,
        data_start(header.end, header.values.get("general.alignment")), Heads(queries, heads("head_count_kv") or queries),
    )  # fmt: skip
    found.name = path.stem
    return found


def _header(file: BinaryIO, size: int) -> _Header:
    """Raises _LyingError when the header contradicts itself or the file, EOFError where it is cut short."""
    if file.read(4) != b"GGUF":
        raise _LyingError("no GGUF magic")
    version, tensors, pairs = struct.unpack("<IQQ", _exactly(file, 20))
    if version not in (2, 3):
        raise _LyingError(f"version {version} (2 and 3 are read, little-endian)")
    limit = min(size, MAX_HEADER)
    values: dict[str, object] = {}
    split = False
    texts, left = 0, LIMITS.gguf_values
    for _ in range(pairs):
        key = _text(file, limit, _MAX_KEY)
        (kind,) = struct.unpack("<I", _exactly(file, 4))
        wanted = key.startswith(("general.", "adapter.")) or key.endswith(_HEADS)
        if wanted and kind != _ARRAY:
            if key in values:
                raise _LyingError(f"the key {shown(key)} twice")
            values[key] = _text(file, limit, _MAX_TEXT) if kind == _STRING else _scalar(file, kind)
            texts += len(key) + len(str(values[key]))
            if texts > _MAX_TEXTS:
                raise _LyingError(f"texts of more than {_MAX_TEXTS:,} bytes")
        else:
            split = split or key == "split.count"
            left = _skip(file, kind, limit, 0, left)
    parameters = 0
    entries: list[Entry] = []
    for _ in range(tensors):
        tensor = _text(file, limit, _MAX_KEY)
        (dimensions,) = struct.unpack("<I", _exactly(file, 4))
        if dimensions > 8:
            raise _LyingError(f"a tensor of {dimensions} dimensions")
        product = 1
        extents = struct.unpack(f"<{dimensions}Q", _exactly(file, 8 * dimensions))
        for extent in extents:
            product *= extent
        parameters += product
        kind, offset = struct.unpack("<IQ", _exactly(file, 12))
        if len(entries) == _MAX_TENSORS:
            raise _LyingError(f"more than {_MAX_TENSORS:,} tensors")
        entries.append(Entry(tensor, extents, kind, offset))
    whole = parameters if 0 < parameters < 2**53 and not split else None
    return _Header(values, whole, entries, file.tell(), split)


def _exactly(file: BinaryIO, length: int) -> bytes:
    data = file.read(length)
    if len(data) != length:
        raise EOFError(f"it ends after {file.tell():,} bytes")
    return data


def _length(file: BinaryIO) -> int:
    return int.from_bytes(_exactly(file, 8), "little")


def _forward(file: BinaryIO, length: int, limit: int) -> None:
    if file.tell() + length > limit:
        raise _LyingError(f"a value of {length:,} bytes that ends beyond {limit:,}")
    file.seek(length, 1)


def _text(file: BinaryIO, limit: int, longest: int) -> str:
    length = _length(file)
    if length > longest or length > limit:
        raise _LyingError(f"a text of {length:,} bytes")
    return _exactly(file, length).decode("utf-8", errors="replace")


def _scalar(file: BinaryIO, kind: int) -> object:
    if kind not in _FORMATS:
        raise _LyingError(f"a value of unknown type {kind}")
    code = "<" + _FORMATS[kind]
    return struct.unpack(code, _exactly(file, struct.calcsize(code)))[0]


def _skip(file: BinaryIO, kind: int, limit: int, depth: int, left: int) -> int:
    """Go past a value; how many more may be met, of `left`."""
    if left <= 0:
        raise _LyingError(f"more than {LIMITS.gguf_values:,} values")
    if kind == _STRING:
        _forward(file, _length(file), limit)
    elif kind in _FORMATS:
        _forward(file, struct.calcsize("<" + _FORMATS[kind]), limit)
    elif kind == _ARRAY and depth < 4:
        (inner,) = struct.unpack("<I", _exactly(file, 4))
        count = _length(file)
        if inner in _FORMATS:
            _forward(file, count * struct.calcsize("<" + _FORMATS[inner]), limit)
            return left - 1
        for _ in range(count):
            left = _skip(file, inner, limit, depth + 1, left)
    else:
        raise _LyingError(f"a value of unknown type {kind}")
    return left - 1
