"""Weights of few bits in groups along their rows: MLX's affine quantisation, and compressed-tensors' packed integers.

    W[r, c] = s[r, c // group] * code[r, c] + b[r, c // group]

Codes lie in 32-bit words, the first in the lowest bits, without gaps (MLX: mlx.core.quantize; of 3, 5 and 6 bits too).
A symmetric integer of compressed-tensors is stored with 2^(bits - 1) added: b = -2^(bits - 1) s.
"""

from functools import partial

import numpy as np

from kinbase.checkpoint.contract import FLOAT_DTYPES, Tensor
from kinbase.checkpoint.files import shown
from kinbase.checkpoint.formats.values import Floats, dequantised, floats, mean_square, raw
from kinbase.errors import CheckpointError

BITS = (2, 3, 4, 5, 6, 8)


def affine(codes: Tensor, scales: Tensor, biases: Tensor, group: int, said: int | None = None) -> Tensor:
    """The weight that MLX packed into `codes`, whose groups have `group` elements, of as many bits as is `said`.

    Raises CheckpointError when the shapes do not fit together, or what is said.
    """
    bits = _bits(codes, scales, group)
    if said not in (None, bits):
        raise CheckpointError(
            f"{shown(codes.name)} of shape {codes.shape} holds codes of {bits} bits in groups of {group} by its scales "
            f"of shape {scales.shape}, and the config says {said}"
        )
    if biases.shape != scales.shape or biases.dtype not in FLOAT_DTYPES:
        raise CheckpointError(f"{shown(biases.name)} does not fit {shown(scales.name)}")
    return _grouped(codes.name, codes, scales, biases, group, bits, f"INT{bits}")


def symmetric(name: str, codes: Tensor, scales: Tensor, columns: int, bits: int) -> Tensor:
    """The weight called `name` with `columns`, whose integers of `bits` compressed-tensors packed into `codes`."""
    count = scales.shape[-1] if scales.shape else 0
    if bits not in BITS or not count or columns % count or _bits(codes, scales, columns // count) != bits:
        raise CheckpointError(
            f"{shown(codes.name)} of shape {codes.shape} does not hold {columns} integers of {bits} bits a row"
        )
    return _grouped(name, codes, scales, None, columns // count, bits, f"INT{bits}")


def _bits(codes: Tensor, scales: Tensor, group: int) -> int:
    """The bits of a code by the shapes; raises CheckpointError when it is no whole number of them."""
    fault = CheckpointError(
        f"{shown(codes.name)} of shape {codes.shape} does not fit {shown(scales.name)} of shape {scales.shape} in "
        f"groups of {group}"
    )
    if len(codes.shape) < 2 or codes.shape[:-1] != scales.shape[:-1] or scales.dtype not in FLOAT_DTYPES:
        raise fault
    columns = scales.shape[-1] * group
    if not columns or 32 * codes.shape[-1] % columns or group % 8:
        raise fault
    bits = 32 * codes.shape[-1] // columns
    if bits not in BITS:
        raise fault
    return bits


def _grouped(
    name: str, codes: Tensor, scales: Tensor, biases: Tensor | None, group: int, bits: int, form: str
) -> Tensor:
    shape = (*codes.shape[:-1], scales.shape[-1] * group)
    values = partial(_values, codes, scales, biases, group, bits)
    return dequantised(name, shape, form, values, lambda: mean_square(scales) * scales.numel * group)


def _values(
    codes: Tensor, scales: Tensor, biases: Tensor | None, group: int, bits: int, first: int, out: Floats
) -> None:
    from kinbase.checkpoint.formats.kernels import from_bits

    start, stop = first // group, -(-(first + len(out)) // group)
    at, count = start * group, (stop - start) * group
    own = floats(scales, start, stop - start)
    offsets = floats(biases, start, stop - start) if biases else own * np.float32(-(1 << (bits - 1)))
    packed = raw(codes, at * bits // 8, count * bits // 8)
    whole = out if at == first and count == len(out) else np.empty(count, np.float32)
    from_bits(packed, bits, own, offsets, group, whole)
    if whole is not out:
        out[:] = whole[first - at : first - at + len(out)]
