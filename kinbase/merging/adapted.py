"""A model with an adapter merged into it, tensor by tensor as they are read: W + scale * (B @ A).

As PEFT's merge_and_unload computes it: the factors in float32 (float64 where the weights are), their product, times the
scale, added to the weights and rounded once to their dtype (of an embedding the product is rounded first). A change that
comes in another way than as two matrices, such as a convolution's, is added in float64 and rounded once. Layers that the
adapter holds whole (modules_to_save, and the embeddings that PEFT saves beside their factors) take the place of the
model's, and trained tokens that of its rows, rounded to its dtype.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np

from kinbase.checkpoint import DTYPE_BYTES, FLOAT_DTYPES, Blob, Checkpoint, Factors, Tensor
from kinbase.checkpoint.adapters import elements
from kinbase.checkpoint.alignment import meet
from kinbase.checkpoint.files import shown
from kinbase.checkpoint.names import TOKENS, TOKENS_KEY, bare
from kinbase.errors import KinbaseError

if TYPE_CHECKING:  # torch takes two seconds: after what can be refused
    import torch

KEPT = 2
"""Merged tensors in memory: the one that is written, and the next."""


def adapted(onto: Checkpoint, adapter: Checkpoint, label: str) -> Checkpoint:
    """The weights of `onto` with the change of `adapter`; `label` is what messages call the two.

    Tensors that the adapter does not change are those of `onto`. Raises KinbaseError when the adapter holds what is
    neither a change by factors nor weights in place of the model's, when it changes what the model does not have, or in
    another shape, and for weights in 8 bits.
    """
    trained = _trained(onto, adapter, label)
    changes, _ = meet(onto, adapter)
    met = sum(change is not None for change in changes)
    if met < len(adapter.tensors):
        names = {t.name for t in onto.tensors}
        odd = next((t.name for t in adapter.tensors if t.name not in names), adapter.tensors[0].name)
        raise KinbaseError(
            f"{label}: the model has tensors for {met} of the {len(adapter.tensors)} changes of the adapter, and lacks "
            f"for example {shown(odd)}: is it the adapter of another model?"
        )
    for tensor, change in zip(onto.tensors, changes, strict=True):
        if change is not None:
            _refuse_misfit(tensor, change, label)
            if (own := trained.get(tensor.name)) is not None and own.rows is not None:
                raise KinbaseError(
                    f"{label}: the adapter changes {shown(tensor.name)} by factors and by trained tokens: merge it with PEFT"
                )
    read = lru_cache(maxsize=KEPT)(
        lambda at: _merged(onto.tensors[at], changes[at], trained.get(onto.tensors[at].name), label)
    )
    tensors = [
        tensor
        if change is None and tensor.name not in trained
        else Tensor(tensor.name, tensor.dtype, tensor.shape, _reader(read, at))
        for at, (tensor, change) in enumerate(zip(onto.tensors, changes, strict=True))
    ]

    def close() -> None:
        read.cache_clear()
        adapter.close()
        onto.close()

    return Checkpoint(
        label, onto.source, tensors, [*onto.files, *adapter.files], skipped=dict(onto.skipped), blobs=onto.blobs,
        close=close,
    )  # fmt: skip


@dataclass(frozen=True, slots=True)
class Trained:
    """Weights that take the place of a tensor's: all of them, or those of `rows`."""

    tensor: Tensor
    rows: tuple[int, ...] | None = None


def _trained(onto: Checkpoint, adapter: Checkpoint, label: str) -> dict[str, Trained]:
    """What the adapter holds whole, by the names of the tensors of `onto` whose place it takes.

    Raises KinbaseError for what takes no tensor's place.
    """
    places = {bare(tensor.name): tensor for tensor in onto.tensors}
    tokens = next((_rows(blob) for blob in adapter.blobs if blob.name == TOKENS), {})
    blobs = {blob.name: blob for blob in adapter.blobs if blob.name != TOKENS}
    found: dict[str, Trained] = {}
    for name, blob in blobs.items():
        module = name.removesuffix(TOKENS_KEY)
        place = places.get(bare(name if module == name else f"{module}.weight"))
        if place is None or blob.dtype not in FLOAT_DTYPES:
            raise KinbaseError(
                f"{label}: the adapter also holds {shown(name)}, which is no low-rank change and takes the place of none of "
                "the model's tensors (which may tie it to another): merge it with PEFT"
            )
        new = Tensor(place.name, blob.dtype, blob.shape, blob.read)
        if module == name:
            _refuse_misfit(place, new, label)
            found[place.name] = Trained(new)
            continue
        _refuse_misfit(place, place, label)
        rows = next((rows for end, rows in tokens.items() if f".{module}".endswith(f".{end}")), ())
        if blob.shape != (len(rows), *place.shape[1:]) or max(rows, default=0) >= place.shape[0]:
            raise KinbaseError(
                f"{label}: the {blob.shape[0]} trained tokens of the adapter do not fit {shown(place.name)} of the shape "
                f"{place.shape}: is it the adapter of another model?"
            )
        found[place.name] = Trained(new, rows)
    if (other := next((name for name in adapter.skipped if name not in blobs), None)) is not None:
        raise KinbaseError(
            f"{label}: the adapter also holds {shown(other)}, which is no low-rank change: merge it with PEFT"
        )
    return found


def _rows(blob: Blob) -> dict[str, tuple[int, ...]]:
    """The rows that trained tokens take the place of, by the ends of their modules' names."""
    data = bytearray(blob.nbytes)
    blob.read(0, memoryview(data))
    return {str(module): tuple(rows) for module, rows in json.loads(data).items()}


def _refuse_misfit(tensor: Tensor, change: Tensor, label: str) -> None:
    if change.shape != tensor.shape:
        raise KinbaseError(
            f"{label}: {shown(tensor.name)} has the shape {tensor.shape} and its change {change.shape}: resize the "
            "model's vocabulary first"
        )
    if DTYPE_BYTES[tensor.dtype] == 1 or tensor.grid is not None:
        raise KinbaseError(
            f"{label}: {shown(tensor.name)} is stored in few bits, in which nothing is added: merge into the full weights"
        )


def _reader(read: Callable[[int], bytes], at: int) -> Callable[[int, memoryview], None]:
    def fill(start: int, out: memoryview) -> None:
        out[:] = read(at)[start : start + len(out)]

    return fill


def _merged(tensor: Tensor, change: Tensor | None, trained: Trained | None, label: str) -> bytes:
    """A whole tensor's bytes with its change. Raises KinbaseError when the sum is not finite where its terms are."""
    import torch

    from kinbase.merging.methods import DTYPES

    dtype = DTYPES[tensor.dtype]
    if trained is None:
        weights = _loaded(tensor)
    elif trained.rows is None:
        weights = _loaded(trained.tensor).to(dtype)
    else:
        weights = _loaded(tensor)
        weights[list(trained.rows)] = _loaded(trained.tensor).to(dtype)
    if change is not None and change.factors is not None and len(tensor.shape) == 2:
        product = _product(change.factors, torch.float64 if dtype == torch.float64 else torch.float32)
        weights += product.to(dtype) if change.factors.is_rounded else product
    elif change is not None:
        delta = torch.from_numpy(elements(change, 0, change.numel)).reshape(tensor.shape)
        weights.copy_((weights.double() + delta).to(dtype))
    if not bool(weights.isfinite().all()):
        raise KinbaseError(
            f"{label}: {shown(tensor.name)} is not finite, or not any more with its change: nothing is written of it"
        )
    data: bytes = weights.view(torch.uint8).numpy().tobytes()
    return data


def _loaded(stored: Tensor) -> "torch.Tensor":
    import torch

    from kinbase.merging.methods import DTYPES

    raw = bytearray(stored.nbytes)
    stored.read(0, memoryview(raw))
    return torch.frombuffer(raw, dtype=DTYPES[stored.dtype]).reshape(stored.shape)


def _product(factors: Factors, dtype: "torch.dtype") -> "torch.Tensor":
    """scale * left @ right as PEFT computes it: B @ A first, then turned round, then scaled."""
    left, right = _matrix(factors.left, dtype), _matrix(factors.right, dtype)
    product = (right @ left).T if factors.transposed else left @ right
    return product * factors.scale


def _matrix(tensor: Tensor, dtype: "torch.dtype") -> "torch.Tensor":
    import torch

    values = elements(tensor, 0, tensor.numel).reshape(tensor.shape)
    return torch.from_numpy(np.ascontiguousarray(values)).to(dtype)
