"""Blocks of ggml: the quantised types of GGUF files (ggml-common.h and ggml-quants.c of llama.cpp).

Q4_0, Q8_0    32 codes and a scale: d (code - 8), d code          Q4_1, Q5_0, Q5_1    likewise, with 5 bits or a minimum
Q6_K          256 codes of 6 bits, 16 scales of 8 bits times d
Q4_K, Q5_K    256 codes, eight scales and minima of 6 bits times d and dmin: d s code - dmin m
"""

from functools import partial

import numpy as np

from kinbase.checkpoint.contract import Tensor
from kinbase.checkpoint.formats.values import Bytes, Floats, dequantised, raw, sampled

BLOCKS = {
    "Q4_0": (32, 18),
    "Q4_1": (32, 20),
    "Q5_0": (32, 22),
    "Q5_1": (32, 24),
    "Q8_0": (32, 34),
    "Q4_K": (256, 144),
    "Q5_K": (256, 176),
    "Q6_K": (256, 210),
}
"""Elements and bytes of a block of each type that is read."""


def blocks(name: str, shape: tuple[int, ...], form: str, stored: Tensor) -> Tensor:
    """The tensor of ggml type `form` whose bytes are `stored`; its numel is whole blocks."""
    numel = stored.numel // BLOCKS[form][1] * BLOCKS[form][0]
    return dequantised(
        name,
        shape,
        form,
        partial(_values, stored, form),
        partial(sampled, numel, partial(_squares, stored, form)),
    )


def _read(stored: Tensor, form: str, first: int, count: int) -> tuple[Bytes, int]:
    """The blocks [B, bytes] that elements `first` on lie in, and where the first block begins."""
    size, nbytes = BLOCKS[form]
    start, stop = first // size, min(-(-(first + count) // size), stored.numel // nbytes)
    return raw(stored, start * nbytes, (stop - start) * nbytes).reshape(-1, nbytes), start * size


def _values(stored: Tensor, form: str, first: int, out: Floats) -> None:
    found, at = _read(stored, form, first, len(out))
    count = len(found) * BLOCKS[form][0]
    whole = out if at == first and count == len(out) else np.empty(count, np.float32)
    decode(found, form, whole)
    if whole is not out:
        out[:] = whole[first - at : first - at + len(out)]


def decode(found: Bytes, form: str, out: Floats) -> None:
    """Fill `out` with the elements of blocks [B, bytes]."""
    from kinbase.checkpoint.formats import kernels

    if form == "Q8_0":
        kernels.q8_0(found, out)
    elif form in ("Q4_0", "Q4_1"):
        kernels.q4(found, 8 if form == "Q4_0" else 0, out)
    elif form in ("Q5_0", "Q5_1"):
        kernels.q5(found, 16 if form == "Q5_0" else 0, out)
    elif form == "Q6_K":
        kernels.q6_k(found, out)
    else:
        kernels.q45_k(found, form == "Q5_K", out)


def _squares(stored: Tensor, form: str, first: int, count: int) -> float:
    """The sum of squared steps of the blocks that elements `first` on lie in."""
    found, _ = _read(stored, form, first, count)
    scales = _scales(found, form).astype(np.float64)
    return float(np.square(scales).sum() * BLOCKS[form][0] / scales.shape[1])


def _scales(found: Bytes, form: str) -> Floats:
    """What a step of one is worth, in each part of each block [B, parts]."""
    if form == "Q6_K":
        return found[:, 192:208].view(np.int8).astype(np.float32) * _half(found, 208)[:, None]
    if form in ("Q4_K", "Q5_K"):
        return _six_bits(found) * _half(found, 0)[:, None]
    return _half(found, 0)[:, None]


def _half(found: Bytes, at: int) -> Floats:
    return np.ascontiguousarray(found[:, at : at + 2]).view(np.float16)[:, 0].astype(np.float32)


def _six_bits(found: Bytes) -> Floats:
    """The eight scales of a Q4_K or Q5_K block, from bytes 4 to 16: four whole, four in parts."""
    low, high = found[:, 4:8], found[:, 12:16]
    return np.concatenate([low & 63, (high & 15) | ((low >> 2) & 48)], axis=1).astype(np.float32)
