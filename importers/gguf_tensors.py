"""The tensors of a GGUF file as those of the model it was converted from: dequantised, named and ordered as there.

llama.cpp gives tensors names of its own (gguf-py's tensor_mapping.py), turns the rows of queries and keys of some
architectures so that rotary pairs lie side by side, stacks experts, and adds 1 to Gemma's norms. All of it is undone
as tensors are read; an architecture that is not listed is kept for lineage.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

from kinbase.checkpoint import Blob, Checkpoint, Tensor
from kinbase.checkpoint.files import WeightsFile, shown
from kinbase.checkpoint.formats import ggml
from kinbase.errors import CheckpointError

TYPES = {
    0: "F32", 1: "F16", 2: "Q4_0", 3: "Q4_1", 6: "Q5_0", 7: "Q5_1", 8: "Q8_0", 10: "Q2_K", 11: "Q3_K", 12: "Q4_K",
    13: "Q5_K", 14: "Q6_K", 28: "F64", 30: "BF16",
}  # fmt: skip
"""ggml's types of tensors by their numbers (ggml.h); others have no open formula here."""

_WIDTHS = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2}

_TURNED = ("llama", "granite", "arcee", "smollm3")
"""Architectures whose queries and keys convert_hf_to_gguf.py permutes."""

_RAISED = ("gemma", "gemma2", "gemma3")
"""Architectures whose norms are stored with 1 added."""

_WHOLE = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}

_LAYER = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
_SANDWICHED = {
    "post_attention_norm": "post_attention_layernorm",
    "ffn_norm": "pre_feedforward_layernorm",
    "post_ffw_norm": "post_feedforward_layernorm",
}
_QWEN_EXPERTS = {
    "ffn_gate_inp": "mlp.gate",
    "ffn_gate_exps": "mlp.experts.{}.gate_proj",
    "ffn_up_exps": "mlp.experts.{}.up_proj",
    "ffn_down_exps": "mlp.experts.{}.down_proj",
    "ffn_gate_inp_shexp": "mlp.shared_expert_gate",
    "ffn_gate_shexp": "mlp.shared_expert.gate_proj",
    "ffn_up_shexp": "mlp.shared_expert.up_proj",
    "ffn_down_shexp": "mlp.shared_expert.down_proj",
}

ARCHITECTURES: dict[str, Mapping[str, str]] = {
    "llama": _LAYER
    | {
        "ffn_gate_inp": "block_sparse_moe.gate",
        "ffn_gate_exps": "block_sparse_moe.experts.{}.w1",
        "ffn_up_exps": "block_sparse_moe.experts.{}.w3",
        "ffn_down_exps": "block_sparse_moe.experts.{}.w2",
    },
    "qwen2moe": _LAYER | _QWEN_EXPERTS,
    "qwen3moe": _LAYER | _QWEN_EXPERTS,
    "gemma2": _LAYER | _SANDWICHED,
    "gemma3": _LAYER | _SANDWICHED,
    "phi3": _LAYER | {"attn_qkv": "self_attn.qkv_proj", "ffn_up": "mlp.gate_up_proj"},
    "starcoder2": _LAYER | {"ffn_up": "mlp.c_fc", "ffn_down": "mlp.c_proj"},
    **dict.fromkeys(("qwen2", "qwen3", "gemma", "granite", "arcee", "smollm3"), _LAYER),
}
"""By architecture, what llama.cpp calls the parts of a layer, and transformers; {} is the number of an expert."""

_NAME = re.compile(r"(?:blk\.(\d{1,6})\.)?([a-z_]+)\.(weight|bias)")
_LARGEST = 2**62


@dataclass(frozen=True, slots=True)
class Entry:
    """One tensor of a header: its name, extents with the fastest first, type and place in the data."""

    name: str
    extents: tuple[int, ...]
    kind: int
    offset: int


@dataclass(frozen=True, slots=True)
class Heads:
    """Heads of queries and of keys; 0 where the header has no one number."""

    queries: int
    keys: int


def checkpoint(
    path: str, architecture: str | None, entries: Sequence[Entry], start: int, heads: Heads
) -> Checkpoint:
    """The tensors of the file at `path`, whose data begins at byte `start`.

    Raises CheckpointError for an architecture or a type that is not read, and for a tensor that lies outside the file.
    """
    if architecture not in ARCHITECTURES:
        raise CheckpointError(f"the names of the architecture {shown(architecture)} are not known")
    file = WeightsFile(path)
    found = Checkpoint("", path, [], files=[file.stamp], close=file.close)
    seen: set[str] = set()
    for entry in entries:
        stored, form = _stored(file, entry, start)
        shape = tuple(reversed(entry.extents))
        if entry.name in seen:
            raise CheckpointError(f"the tensor {shown(entry.name)} is there twice")
        seen.add(entry.name)
        if entry.name.startswith("rope_"):
            found.blobs.append(Blob(entry.name, form, shape, stored.nbytes, stored.read))
            found.skipped[entry.name] = "frequencies, which are no weights"
            continue
        name = _name(entry.name, architecture)
        parts = _parts(name, shape, form, stored)
        # What is not read as it is stored is hashed as that.
        if form in ggml.BLOCKS or len(parts) > 1:
            found.blobs.append(Blob(entry.name, form, shape, stored.nbytes, stored.read))
        count = {"self_attn.q_proj": heads.queries, "self_attn.k_proj": heads.keys}
        turned = count.get(".".join(name.split(".")[-3:-1])) if architecture in _TURNED else None
        if turned is not None:
            parts = [_unpermuted(part, turned) for part in parts]
        if architecture in _RAISED and name.endswith("norm.weight"):
            parts = [_lowered(part) for part in parts]
        found.tensors += parts
    return found


def _name(name: str, architecture: str) -> str:
    """transformers' name of a tensor; its own where none is known, so that it is said not to be in the base."""
    match = _NAME.fullmatch(name)
    if not match:
        return name
    layer, part, kind = match.groups()
    if layer is None:
        return f"{_WHOLE[part]}.{kind}" if part in _WHOLE else name
    told = ARCHITECTURES[architecture].get(part)
    return f"model.layers.{layer}.{told}.{kind}" if told else name


def _stored(file: WeightsFile, entry: Entry, start: int) -> tuple[Tensor, str]:
    """The bytes of a tensor, and its type; raises CheckpointError when they cannot be there."""
    form, what = TYPES.get(entry.kind), shown(entry.name)
    if form is None or (form not in _WIDTHS and form not in ggml.BLOCKS):
        raise CheckpointError(f"{what} is of the ggml type {form or entry.kind}, which is not read")
    numel = 1
    for extent in entry.extents:
        numel *= extent
        if not 0 < numel <= _LARGEST:
            raise CheckpointError(f"{what} has extents {entry.extents}, which no file holds")
    size, width = ggml.BLOCKS.get(form, (1, _WIDTHS.get(form, 0)))
    if entry.extents and entry.extents[0] % size:
        raise CheckpointError(f"{what} has rows of {entry.extents[0]}, not whole blocks of {form}")
    nbytes = numel // size * width
    origin = start + entry.offset
    if origin + nbytes > file.stamp.size:
        raise CheckpointError(
            f"{what} ends at byte {origin + nbytes:,} of {file.stamp.size:,}; download it again"
        )

    def read(at: int, out: memoryview) -> None:
        if at < 0 or at + len(out) > nbytes:
            raise ValueError(f"bytes {at} to {at + len(out)} of a tensor of {nbytes} bytes")
        file.read(origin + at, out)

    return Tensor(entry.name, "U8", (nbytes,), read), form


def _parts(name: str, shape: tuple[int, ...], form: str, stored: Tensor) -> list[Tensor]:
    """The weight of a tensor, or those of the experts that are stacked in it."""
    if "{}" not in name:
        return [_weight(name, shape, form, stored)]
    size = stored.nbytes // shape[0]
    return [
        _weight(
            name.format(e),
            shape[1:],
            form,
            Tensor(stored.name, "U8", (size,), partial(_from, stored, e * size)),
        )
        for e in range(shape[0])
    ]


def _weight(name: str, shape: tuple[int, ...], form: str, stored: Tensor) -> Tensor:
    if form in ggml.BLOCKS:
        return ggml.blocks(name, shape, form, stored)
    return Tensor(name, form, shape, stored.read)


def _from(tensor: Tensor, start: int, at: int, out: memoryview) -> None:
    tensor.read(start + at, out)


def _unpermuted(tensor: Tensor, heads: int) -> Tensor:
    """A tensor with the rows of each head in transformers' order: the first of all pairs, then the second.

    Raises CheckpointError when the rows are not whole pairs of so many heads.
    """
    rows = tensor.shape[0] if tensor.shape else 0
    if not heads or rows % (2 * heads):
        raise CheckpointError(f"{shown(tensor.name)} has {rows} rows, which are not pairs in {heads} heads")
    return replace(tensor, read=partial(_read_unpermuted, tensor, rows // heads // 2))


def _read_unpermuted(tensor: Tensor, half: int, start: int, out: memoryview) -> None:
    """Row h * 2 half + t * half + j is stored as row h * 2 half + 2 j + t."""
    width = tensor.nbytes // tensor.shape[0]
    row, skip = divmod(start, width)
    at = 0
    while at < len(out):
        block, j = divmod(row, half)
        head, t = divmod(block, 2)
        count = min(half - j, -(-(skip + len(out) - at) // width))
        both = bytearray(2 * count * width)
        tensor.read((head * 2 * half + 2 * j) * width, memoryview(both))
        lines = b"".join(bytes(both[(2 * k + t) * width : (2 * k + t + 1) * width]) for k in range(count))
        piece = lines[skip : skip + len(out) - at]
        out[at : at + len(piece)] = piece
        at, row, skip = at + len(piece), row + count, 0


def _lowered(tensor: Tensor) -> Tensor:
    """A norm without the 1 that was added to it, in float32."""
    return Tensor(tensor.name, "F32", tensor.shape, partial(_read_lowered, tensor))


def _read_lowered(tensor: Tensor, start: int, out: memoryview) -> None:
    import numpy as np

    from kinbase.checkpoint.adapters import elements

    first = start // 4
    last = -(-(start + len(out)) // 4)
    values = (elements(tensor, first, last - first) - 1).astype(np.float32).tobytes()
    out[:] = values[start - 4 * first : start - 4 * first + len(out)]


def data_start(end: int, alignment: object) -> int:
    """Where the data begins after a header that ends at byte `end`; raises CheckpointError for an absurd alignment."""
    size = 32 if alignment is None else alignment
    if not isinstance(size, int) or not 0 < size <= 1 << 20:
        raise CheckpointError(f"the alignment {shown(alignment)} is none")
    return -(-end // size) * size
