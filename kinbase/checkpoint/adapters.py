"""An adapter on a model that is not its family's base: their weights together, read as float64.

An adapter on the base itself needs none of this: its delta is its own. On a fine-tune the delta against
the base is the fine-tune's plus the adapter's, so the two are added as they are read.
"""

import numpy as np
from numpy.typing import NDArray

from kinbase.checkpoint import DTYPE_BYTES, Checkpoint, Tensor
from kinbase.checkpoint.alignment import meet


def applied(adapter: Checkpoint, onto: Checkpoint) -> Checkpoint:
    """The weights of `onto` with the deltas of `adapter` added, tensor by tensor, as they are read.

    Changed tensors have dtype F64: the sum is not rounded to what a merged file would hold. The files
    are both checkpoints', the name and source the adapter's.
    """
    changes, skipped = meet(onto, adapter)
    tensors = [t if d is None else _sum(t, d) for t, d in zip(onto.tensors, changes, strict=True)]
    files = [*onto.files, *adapter.files]
    return Checkpoint(adapter.name, adapter.source, tensors, files, skipped={**skipped, **adapter.skipped})


def _sum(weights: Tensor, delta: Tensor) -> Tensor:
    """Their common prefix is added; rows the delta does not have stay as they are."""

    def read(start: int, out: memoryview) -> None:
        first, count = start // 8, len(out) // 8
        total = np.frombuffer(out, np.float64)
        total[:] = elements(weights, first, count)
        both = min(count, delta.numel - first)
        if both > 0:
            total[:both] += elements(delta, first, both)

    return Tensor(weights.name, "F64", weights.shape, read)


def elements(tensor: Tensor, first: int, count: int) -> NDArray[np.float64]:
    """Elements `first` to `first + count` of a tensor as float64 [count], exactly; raises CheckpointError."""
    raw = bytearray(count * DTYPE_BYTES[tensor.dtype])
    tensor.read(first * DTYPE_BYTES[tensor.dtype], memoryview(raw))
    return decoded(np.frombuffer(raw, np.uint8), tensor.dtype)


def decoded(raw: NDArray[np.uint8], dtype: str) -> NDArray[np.float64]:
    """The elements whose bytes are `raw` [count * width], as float64 [count], exactly."""
    if dtype == "BF16":
        return (raw.view(np.uint16).astype(np.uint32) << 16).view(np.float32).astype(np.float64)
    if dtype in ("F8_E4M3", "F8_E5M2"):
        return byte_floats(dtype)[raw]
    return raw.view({"F64": np.float64, "F32": np.float32, "F16": np.float16}[dtype]).astype(np.float64)


def byte_floats(dtype: str) -> NDArray[np.float64]:
    """The 256 values of an 8-bit float (Micikevicius et al. 2022, arXiv 2209.05433, table 1)."""
    mantissa_bits, bias = (3, 7) if dtype == "F8_E4M3" else (2, 15)
    byte = np.arange(256)
    exponent = (byte & 0x7F) >> mantissa_bits
    mantissa = (byte & ((1 << mantissa_bits) - 1)) / (1 << mantissa_bits)
    value = np.where(exponent > 0, (1 + mantissa) * 2.0 ** (exponent - bias), mantissa * 2.0 ** (1 - bias))
    if dtype == "F8_E4M3":
        value[(byte & 0x7F) == 0x7F] = np.nan
    else:
        value[exponent == 31] = np.where(mantissa[exponent == 31] > 0, np.nan, np.inf)
    return np.where(byte & 0x80, -value, value)
