"""A model with an adapter merged into it, tensor by tensor as they are read: W + scale * (B @ A).

As PEFT's merge_and_unload computes it: the factors in float32 (float64 where the weights are), their product, times the
scale, added to the weights and rounded once to their dtype. A change that comes in another way than as two matrices,
such as a convolution's, is added in float64 and rounded once.
"""

from collections.abc import Callable
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np

from kinbase.checkpoint import DTYPE_BYTES, Checkpoint, Factors, Tensor
from kinbase.checkpoint.adapters import elements
from kinbase.checkpoint.alignment import meet
from kinbase.checkpoint.files import shown
from kinbase.errors import KinbaseError

if TYPE_CHECKING:  # torch takes two seconds: after what can be refused
    import torch

KEPT = 2
"""Merged tensors in memory: the one that is written, and the next."""


def adapted(onto: Checkpoint, adapter: Checkpoint, label: str) -> Checkpoint:
    """The weights of `onto` with the change of `adapter`; `label` is what messages call the two.

    Tensors that the adapter does not change are those of `onto`. Raises KinbaseError when the adapter holds more than
    a change by factors, when it changes what the model does not have, or in another shape, and for weights in 8 bits.
    """
    whole = next(iter(adapter.skipped), None) or next((blob.name for blob in adapter.blobs), None)
    if whole is not None:
        raise KinbaseError(
            f"{label}: the adapter also holds {shown(whole)}, which is no low-rank change: merge it with PEFT"
        )
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
    read = lru_cache(maxsize=KEPT)(lambda at: _merged(onto.tensors[at], changes[at], label))
    tensors = [
        tensor if change is None else Tensor(tensor.name, tensor.dtype, tensor.shape, _reader(read, at))
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


def _merged(tensor: Tensor, change: Tensor | None, label: str) -> bytes:
    """A whole tensor's bytes with its change. Raises KinbaseError when the sum is not finite where its terms are."""
    import torch

    from kinbase.merging.methods import DTYPES

    assert change is not None
    dtype = DTYPES[tensor.dtype]
    raw = bytearray(tensor.nbytes)
    tensor.read(0, memoryview(raw))
    weights = torch.frombuffer(raw, dtype=dtype).reshape(tensor.shape)
    factors = change.factors
    if factors is not None and len(tensor.shape) == 2:
        weights += _product(factors, torch.float64 if dtype == torch.float64 else torch.float32)
    else:
        delta = torch.from_numpy(elements(change, 0, change.numel)).reshape(tensor.shape)
        weights.copy_((weights.double() + delta).to(dtype))
    if not bool(weights.isfinite().all()):
        raise KinbaseError(
            f"{label}: {shown(tensor.name)} is not finite, or not any more with its change: nothing is written of it"
        )
    data: bytes = weights.view(torch.uint8).numpy().tobytes()
    return data


def _product(factors: Factors, dtype: "torch.dtype") -> "torch.Tensor":
    """scale * left @ right as PEFT computes it: B @ A first, then turned round, then scaled."""
    left, right = _matrix(factors.left, dtype), _matrix(factors.right, dtype)
    product = (right @ left).T if factors.transposed else left @ right
    return product * factors.scale


def _matrix(tensor: Tensor, dtype: "torch.dtype") -> "torch.Tensor":
    import torch

    values = elements(tensor, 0, tensor.numel).reshape(tensor.shape)
    return torch.from_numpy(np.ascontiguousarray(values)).to(dtype)
