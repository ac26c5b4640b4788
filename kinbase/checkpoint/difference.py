"""How two checkpoints differ: tensor by tensor, streamed; their configurations; the files of their tokenizers.

Tensors are met by name, or by the name without what wrappers and model classes add. Values are compared in float64,
a stretch at a time, so that memory does not grow with the models; equal bytes are not computed with.
"""

import json
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from kinbase.checkpoint import DTYPE_BYTES, FLOAT_DTYPES, Checkpoint, Tensor
from kinbase.checkpoint.adapters import elements
from kinbase.checkpoint.files import is_file, read_bounded
from kinbase.checkpoint.names import bare
from kinbase.errors import CheckpointError

STRETCH = 1 << 20
"""Elements compared at once."""

TOKENIZER = (
    "tokenizer.json", "tokenizer.model", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json",
    "vocab.json", "vocab.txt", "merges.txt", "spiece.model", "chat_template.jinja", "chat_template.json",
)  # fmt: skip
CONFIGS = ("config.json", "generation_config.json", "adapter_config.json")
LIMIT = 256 << 20
"""Bytes of a file beside the weights."""


@dataclass(frozen=True, slots=True)
class TensorDifference:
    """One tensor of either checkpoint: equal, changed, dtype, shape, only in a, only in b, or not comparable.

    `relative` is |b - a| / |a| in Euclidean length, `max_abs` the largest change of an element, `changed` the share of
    elements that differ; None where they are not defined. Elements that are not finite in either count as changed
    where they differ, and are left out of the other two.
    """

    tensor: str
    difference: str
    a: str | None
    b: str | None
    numel: int
    relative: float | None = None
    max_abs: float | None = None
    changed: float | None = None


def tensors(
    a: Checkpoint, b: Checkpoint, on_progress: Callable[[int, int], None] = lambda done, total: None
) -> Iterator[TensorDifference]:
    """Every tensor of two checkpoints, a's first. Raises CheckpointError when one cannot be read.

    `on_progress` is told bytes of a.
    """
    met = _met(a, b)
    used = {id(other) for other in met.values()}
    done, total = 0, sum(tensor.nbytes for tensor in a.tensors)
    for tensor in a.tensors:
        other = met.get(tensor.name)
        if other is None:
            yield TensorDifference(tensor.name, "only in a", _form(tensor), None, tensor.numel)
        elif other.shape != tensor.shape:
            yield TensorDifference(tensor.name, "shape", _form(tensor), _form(other), tensor.numel)
        else:
            yield _compared(tensor, other)
        done += tensor.nbytes
        on_progress(done, total)
    for tensor in b.tensors:
        if id(tensor) not in used:
            yield TensorDifference(tensor.name, "only in b", None, _form(tensor), tensor.numel)


def _met(a: Checkpoint, b: Checkpoint) -> dict[str, Tensor]:
    """b's tensor for each of a's names; by the bare name where that is one tensor's alone on either side."""
    by_name = {tensor.name: tensor for tensor in b.tensors}
    met = {tensor.name: by_name[tensor.name] for tensor in a.tensors if tensor.name in by_name}
    left, right = _alone(a, set(met)), _alone(b, {tensor.name for tensor in met.values()})
    return met | {tensor.name: right[name] for name, tensor in left.items() if name in right}


def _alone(checkpoint: Checkpoint, met: set[str]) -> dict[str, Tensor]:
    found: dict[str, list[Tensor]] = {}
    for tensor in checkpoint.tensors:
        if tensor.name not in met:
            found.setdefault(bare(tensor.name), []).append(tensor)
    return {name: same[0] for name, same in found.items() if len(same) == 1}


def _form(tensor: Tensor) -> str:
    return f"{tensor.form} {' x '.join(map(str, tensor.shape)) or 'scalar'}"


def _compared(a: Tensor, b: Tensor) -> TensorDifference:
    is_float = a.dtype in FLOAT_DTYPES and b.dtype in FLOAT_DTYPES
    forms = _form(a), _form(b)
    if not is_float:
        if a.dtype != b.dtype:
            return TensorDifference(a.name, "dtype", *forms, a.numel)
        same = all(_bytes(a, i, n) == _bytes(b, i, n) for i, n in _stretches(a))
        return TensorDifference(a.name, "equal" if same else "changed", *forms, a.numel)
    squares = own = largest = 0.0
    changed = 0
    for first, count in _stretches(a):
        if a.dtype == b.dtype:
            raw = _bytes(a, first, count)
            if raw == _bytes(b, first, count):
                values = elements(a, first, count)
                own += float(np.square(values[np.isfinite(values)]).sum())
                continue
        x, y = elements(a, first, count), elements(b, first, count)
        changed += int(((x != y) & ~(np.isnan(x) & np.isnan(y))).sum())
        finite = np.isfinite(x) & np.isfinite(y)
        x, y = x[finite], y[finite]
        delta = y - x
        squares += float(np.square(delta).sum())
        own += float(np.square(x).sum())
        largest = max(largest, float(np.abs(delta).max(initial=0)))
    difference = "dtype" if a.form != b.form else "changed" if changed else "equal"
    relative = math.sqrt(squares / own) if own else (0.0 if not squares else None)
    share = changed / a.numel if a.numel else 0.0
    return TensorDifference(a.name, difference, *forms, a.numel, relative, largest, share)


def _stretches(tensor: Tensor) -> Iterator[tuple[int, int]]:
    for first in range(0, tensor.numel, STRETCH):
        yield first, min(STRETCH, tensor.numel - first)


def _bytes(tensor: Tensor, first: int, count: int) -> bytearray:
    width = DTYPE_BYTES[tensor.dtype]
    raw = bytearray(count * width)
    tensor.read(first * width, memoryview(raw))
    return raw


def configs(a: Path, b: Path) -> Iterator[tuple[str, str | None, str | None]]:
    """(key, a's, b's) of every key of the configurations in two folders in which they differ, as JSON."""
    for file in CONFIGS:
        left, right = _flat(a / file), _flat(b / file)
        for key in dict.fromkeys((*left, *right)):
            if left.get(key) != right.get(key):
                yield f"{file}: {key}", left.get(key), right.get(key)


def _flat(file: Path) -> dict[str, str]:
    """A JSON file's values by their path, as JSON; nothing for none, and its bytes' length for one that is none."""
    if not is_file(str(file)):
        return {}
    try:
        record = json.loads(read_bounded(file, LIMIT))
    except (ValueError, RecursionError):
        return {"": f"not JSON ({file.stat().st_size} bytes)"}
    found: dict[str, str] = {}
    todo: list[tuple[str, object]] = [("", record)]
    while todo:
        path, value = todo.pop()
        if isinstance(value, dict) and value:
            todo += [(f"{path}.{key}" if path else str(key), item) for key, item in reversed(value.items())]
        else:
            found[path] = json.dumps(value, sort_keys=True, ensure_ascii=False)
    return found


def tokenizers(a: Path, b: Path) -> Iterator[tuple[str, str, str | None, str | None]]:
    """(file, difference, a's size, b's size) of every file of a tokenizer in either folder, equal ones too."""
    for file in TOKENIZER:
        left, right = _contents(a / file), _contents(b / file)
        if left is None and right is None:
            continue
        if left is None or right is None:
            yield file, "only in b" if left is None else "only in a", _size(left), _size(right)
        elif left == right:
            yield file, "equal", _size(left), _size(right)
        else:
            yield file, "changed", _tokens(left) or _size(left), _tokens(right) or _size(right)


def _contents(file: Path) -> bytes | None:
    return read_bounded(file, LIMIT) if is_file(str(file)) else None


def _size(data: bytes | None) -> str | None:
    return None if data is None else f"{len(data)} bytes"


def _tokens(data: bytes) -> str | None:
    """How many tokens a tokenizer.json or vocab.json has."""
    try:
        record = json.loads(data)
        vocabulary = record["model"]["vocab"] if "model" in record else record
        added = record.get("added_tokens", []) if isinstance(record, Mapping) else []
        names = {token["content"] for token in added}
        names |= set(vocabulary) if isinstance(vocabulary, dict) else {token for token, *_ in vocabulary}
    except (ValueError, RecursionError, KeyError, TypeError, AttributeError):
        return None
    return f"{len(names)} tokens"


def home(checkpoint: Checkpoint) -> Path:
    """The folder in which a checkpoint's files beside the weights are. Raises CheckpointError for one elsewhere."""
    place = Path(checkpoint.source)
    if not place.exists():
        raise CheckpointError(f"{checkpoint.source} is not on this machine")
    return place if place.is_dir() else place.parent
