"""Quantised checkpoints for tests: each format written as its library writes it, with the weights it stands for.

Every function takes weights [rows, columns] as float64 and returns the tensors of one linear module by their last
name, and the float64 values that the codes stand for, computed from codes, scales and zero points, not from packed bytes.
"""

import json

import numpy as np
import torch

GROUP = 32
"""Elements that share a scale."""

NF4 = np.array(
    [
        -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635, -0.18477343022823334,
        -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224,
        0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0,
    ]
)  # fmt: skip
"""The quantiles of Dettmers et al. 2023, as bitsandbytes stores them."""

FP4 = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6, 0, -0.5, -1, -1.5, -2, -3, -4, -6])


def half(values):
    """Rounded to float16, as scales are stored."""
    return np.asarray(values).astype(np.float16).astype(np.float64)


def words(codes, bits, axis):
    """Codes packed into 32-bit words along an axis, the first in the lowest bits."""
    codes = np.moveaxis(codes.astype(np.uint64), axis, -1)
    flat = codes[..., None] >> np.arange(bits, dtype=np.uint64) & np.uint64(1)
    grouped = flat.reshape(*codes.shape[:-1], -1, 32)
    packed = (grouped << np.arange(32, dtype=np.uint64)).sum(-1).astype(np.uint32)
    return torch.from_numpy(np.ascontiguousarray(np.moveaxis(packed, -1, axis)).view(np.int32))


def groups_of(weights, bits):
    """Scale, zero point and codes of each group along the rows, by its extremes."""
    rows, columns = weights.shape
    grouped = weights.reshape(rows, columns // GROUP, GROUP)
    low, high = grouped.min(-1), grouped.max(-1)
    scale = half(np.maximum(high - low, 1e-6) / (2**bits - 1))
    zero = np.clip(np.round(-low / scale), 1, 2**bits - 1)
    codes = np.clip(np.round(grouped / scale[..., None]) + zero[..., None], 0, 2**bits - 1)
    values = (codes - zero[..., None]) * scale[..., None]
    return scale, zero, codes.reshape(rows, columns).astype(np.int64), values.reshape(rows, columns)


def gptq(weights, bits=4, order=None, second=False):
    """`order` permutes the columns before they are grouped, as desc_act does."""
    columns = weights.shape[1]
    order = np.arange(columns) if order is None else order
    scale, zero, codes, values = groups_of(weights[:, order], bits)
    back = np.argsort(order)
    return {
        "qweight": words(codes[:, back].T, bits, 0),
        "qzeros": words((zero - (0 if second else 1)).T, bits, 1),
        "scales": torch.from_numpy(scale.T.copy()).half(),
        "g_idx": torch.from_numpy((back // GROUP).astype(np.int32)),
    }, values[:, back]


def awq(weights):
    scale, zero, codes, values = groups_of(weights, 4)

    def packed(numbers):
        eight = numbers.reshape(len(numbers), -1, 8)[:, :, [0, 2, 4, 6, 1, 3, 5, 7]]
        return words(eight.reshape(len(numbers), -1), 4, 1)

    return {
        "qweight": packed(codes.T),
        "qzeros": packed(zero.T),
        "scales": torch.from_numpy(scale.T.copy()).half(),
    }, values


def mlx(weights, bits=4):
    rows, columns = weights.shape
    grouped = weights.reshape(rows, -1, GROUP)
    bias = half(grouped.min(-1))
    scale = half(np.maximum(grouped.max(-1) - bias, 1e-6) / (2**bits - 1))
    codes = np.clip(np.round((grouped - bias[..., None]) / scale[..., None]), 0, 2**bits - 1)
    values = codes * scale[..., None] + bias[..., None]
    return {
        "weight": words(codes.reshape(rows, columns), bits, 1).view(torch.uint32),
        "scales": torch.from_numpy(scale).half(),
        "biases": torch.from_numpy(bias).half(),
    }, values.reshape(rows, columns)


def integers(weights, bits=4):
    """compressed-tensors: symmetric, a group at a time, stored with half the range added."""
    rows, columns = weights.shape
    grouped = weights.reshape(rows, -1, GROUP)
    scale = half(np.abs(grouped).max(-1) / (2 ** (bits - 1) - 1))
    codes = np.clip(np.round(grouped / scale[..., None]), -(2 ** (bits - 1)), 2 ** (bits - 1) - 1)
    return {
        "weight_packed": words(codes.reshape(rows, columns) + 2 ** (bits - 1), bits, 1),
        "weight_scale": torch.from_numpy(scale).half(),
        "weight_shape": torch.tensor([rows, columns]),
    }, (codes * scale[..., None]).reshape(rows, columns)


def int8(weights):
    scb = np.abs(weights).max(1).astype(np.float32).astype(np.float64)
    codes = np.round(weights / scb[:, None] * 127)
    return {
        "weight": torch.from_numpy(codes).to(torch.int8),
        "SCB": torch.from_numpy(scb).float(),
        "weight_format": torch.zeros((), dtype=torch.uint8),
    }, codes * scb[:, None] / 127


def float8(weights, by="tensor", name="weight_scale"):
    """`by` is tensor, row or block (of 32 x 16)."""
    rows, columns = weights.shape
    if by == "tensor":
        scale, whole = np.float32(np.abs(weights).max() / 448), None
        whole = np.full(weights.shape, scale, np.float64)
    elif by == "row":
        scale = (np.abs(weights).max(1, keepdims=True) / 448).astype(np.float32)
        whole = np.broadcast_to(scale.astype(np.float64), weights.shape)
    else:
        blocks = -(-rows // 32), -(-columns // 16)
        padded = np.zeros((blocks[0] * 32, blocks[1] * 16))
        padded[:rows, :columns] = weights
        scale = np.abs(padded.reshape(blocks[0], 32, blocks[1], 16)).max((1, 3))
        scale = (np.maximum(scale, 1e-6) / 448).astype(np.float32)
        whole = np.repeat(np.repeat(scale.astype(np.float64), 32, 0), 16, 1)[:rows, :columns]
    codes = torch.from_numpy(weights / whole).to(torch.float8_e4m3fn)
    return {"weight": codes, name: torch.from_numpy(np.asarray(scale))}, codes.double().numpy() * whole


def bitsandbytes(weights, form="nf4", nested=True, block=64):
    """4-bit codes in flat blocks, the high nibble first; with `nested` their scales are quantised to a table too."""
    table = (
        NF4
        if form == "nf4"
        else np.array([0, 0.0052, 0.6667, 1, 0.3333, 0.5, 0.1667, 0.25] * 2) * np.repeat([1, -1], 8)
    )
    table = table.astype(np.float32).astype(np.float64)
    flat = weights.reshape(-1)
    padded = np.zeros(-(-len(flat) // block) * block)
    padded[: len(flat)] = flat
    absmax = np.abs(padded.reshape(-1, block)).max(1).astype(np.float32).astype(np.float64)
    state = {"quant_type": form, "blocksize": block, "shape": list(weights.shape), "dtype": "bfloat16"}
    parts = {}
    if nested:
        offset = float(absmax.mean())
        dynamic = np.sort(np.linspace(-1, 1, 256).astype(np.float32).astype(np.float64))
        outer = np.abs(absmax - offset).max(keepdims=True).astype(np.float32).astype(np.float64)
        outer = np.repeat(outer, -(-len(absmax) // 256))
        scaled = (absmax - offset) / np.repeat(outer, 256)[: len(absmax)]
        inner = np.abs(scaled[:, None] - dynamic).argmin(1)
        absmax = dynamic[inner] * np.repeat(outer, 256)[: len(absmax)] + offset
        state |= {"nested_blocksize": 256, "nested_offset": offset, "nested_dtype": "float32"}
        parts = {
            "weight.absmax": torch.from_numpy(inner.astype(np.uint8)),
            "weight.nested_absmax": torch.from_numpy(outer).float(),
            "weight.nested_quant_map": torch.from_numpy(dynamic).float(),
        }
    else:
        parts = {"weight.absmax": torch.from_numpy(absmax).float()}
    scales = np.repeat(absmax, block)[: len(flat)]
    codes = np.abs(flat[:, None] / scales[:, None] - table).argmin(1)
    even = np.concatenate([codes, codes[: len(codes) % 2] * 0])
    return {
        "weight": torch.from_numpy((even[0::2] << 4 | even[1::2]).astype(np.uint8)[:, None]),
        "weight.quant_map": torch.from_numpy(table).float(),
        f"weight.quant_state.bitsandbytes__{form}": torch.frombuffer(
            bytearray(json.dumps(state).encode()), dtype=torch.uint8
        ),
        **parts,
    }, (table[codes] * scales).reshape(weights.shape)


def mxfp4(weights):
    """Experts [E, inputs, outputs], stored transposed; the values are of that shape too."""
    stored = weights.transpose(0, 2, 1)
    blocks = stored.reshape(*stored.shape[:2], -1, 32)
    power = np.ceil(np.log2(np.maximum(np.abs(blocks).max(-1), 1e-30) / 6))
    codes = np.abs(blocks[..., None] / 2.0 ** power[..., None, None] - FP4).argmin(-1)
    values = (FP4[codes] * 2.0 ** power[..., None]).reshape(stored.shape)
    return {
        "blocks": torch.from_numpy((codes[..., 0::2] | codes[..., 1::2] << 4).astype(np.uint8)),
        "scales": torch.from_numpy((power + 127).astype(np.uint8)),
    }, values.transpose(0, 2, 1)


METHODS = {
    "gptq": (gptq, {"quantization_config": {"quant_method": "gptq", "bits": 4, "group_size": GROUP}}),
    "awq": (awq, {"quantization_config": {"quant_method": "awq", "bits": 4, "group_size": GROUP}}),
    "mlx": (mlx, {"quantization": {"bits": 4, "group_size": GROUP}}),
    "compressed-tensors": (integers, {"quantization_config": {"quant_method": "compressed-tensors"}}),
    "int8": (int8, {"quantization_config": {"quant_method": "bitsandbytes", "load_in_8bit": True}}),
    "fp8": (float8, {"quantization_config": {"quant_method": "fp8"}}),
    "nf4": (bitsandbytes, {"quantization_config": {"quant_method": "bitsandbytes", "load_in_4bit": True}}),
}
"""By method, what quantises a linear layer and what the config then says."""
