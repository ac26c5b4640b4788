"""A fixture family: a tiny llama-shaped base, fine-tunes and a merge of known coefficients, on disk.

`write_safetensors` and `make_family` write; `open_checkpoint` is a reader of ten lines that shares
nothing with `kinbase.importers`, so that a test of the pass does not hang on the importer.
"""

import json
import os
import struct
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file

from kinbase.checkpoint import Checkpoint, FileStamp, Tensor
from kinbase.errors import CheckpointError

TORCH_DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
}

HIDDEN, INNER, VOCAB, LAYERS, HEADS, KV_HEADS = 32, 64, 96, 2, 4, 2

CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": HIDDEN,
    "intermediate_size": INNER,
    "vocab_size": VOCAB,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": HEADS,
    "num_key_value_heads": KV_HEADS,
    "max_position_embeddings": 128,
    "hidden_act": "silu",
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "tie_word_embeddings": False,
}

MERGE = {"ft_a": 0.6, "ft_b": 0.4}
"""Coefficients of the linear merge `merge_ab`."""


def write_safetensors(path, tensors, metadata=None):
    """Write {name: torch.Tensor | np.ndarray} as one safetensors file; parents are made."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    tensors = {
        name: (t if isinstance(t, torch.Tensor) else torch.from_numpy(np.ascontiguousarray(t))).contiguous()
        for name, t in tensors.items()
    }
    save_file(tensors, path, metadata=metadata)
    return path


def llama_shapes(layers=LAYERS):
    """{name: shape} of the tiny llama, in the order transformers lists it."""
    kv = HIDDEN * KV_HEADS // HEADS
    shapes = {"model.embed_tokens.weight": (VOCAB, HIDDEN)}
    for layer in range(layers):
        for part, shape in {
            "self_attn.q_proj": (HIDDEN, HIDDEN),
            "self_attn.k_proj": (kv, HIDDEN),
            "self_attn.v_proj": (kv, HIDDEN),
            "self_attn.o_proj": (HIDDEN, HIDDEN),
            "mlp.gate_proj": (INNER, HIDDEN),
            "mlp.up_proj": (INNER, HIDDEN),
            "mlp.down_proj": (HIDDEN, INNER),
            "input_layernorm": (HIDDEN,),
            "post_attention_layernorm": (HIDDEN,),
        }.items():
            shapes[f"model.layers.{layer}.{part}.weight"] = shape
    shapes["model.norm.weight"] = (HIDDEN,)
    shapes["lm_head.weight"] = (VOCAB, HIDDEN)
    return shapes


def family_weights(dtype="BF16", seed=0):
    """{model: {tensor: torch.Tensor}} of base, ft_a, ft_b (correlated with ft_a), ft_c and merge_ab.

    Weights are about 0.02 in size and fine-tunes move them by about 2e-3, by a different amount in
    each tensor; the merge is taken of the stored parents in float32 and rounded once.
    """
    generator = torch.Generator().manual_seed(seed)
    stored = TORCH_DTYPES[dtype]

    def normal(shape):
        return torch.randn(shape, generator=generator)

    family = {name: {} for name in ("base", "ft_a", "ft_b", "ft_c", "merge_ab")}
    for name, shape in llama_shapes().items():
        centre = 1.0 if "norm" in name else 0.0
        base = (centre + 0.02 * normal(shape)).to(stored)
        scale = 2e-3 * 4.0 ** torch.rand((), generator=generator)
        shared = normal(shape)
        deltas = {
            "ft_a": 0.6 * shared + 0.8 * normal(shape),
            "ft_b": 0.6 * shared + 0.8 * normal(shape),
            "ft_c": normal(shape),
        }
        family["base"][name] = base
        for child, delta in deltas.items():
            family[child][name] = (base.float() + scale * delta).to(stored)
        merged = sum(weight * family[parent][name].float() for parent, weight in MERGE.items())
        family["merge_ab"][name] = merged.to(stored)
    return family


def make_family(folder, dtype="BF16", seed=0):
    """Write the family under `folder`, one folder (config.json, model.safetensors) a model.

    Returns {"base" | "ft_a" | "ft_b" | "ft_c" | "merge_ab": its folder}.
    """
    torch_name = str(TORCH_DTYPES[dtype]).removeprefix("torch.")
    paths = {}
    for name, tensors in family_weights(dtype, seed).items():
        paths[name] = Path(folder) / name
        write_safetensors(paths[name] / "model.safetensors", tensors, {"format": "pt"})
        config = json.dumps({**CONFIG, "torch_dtype": torch_name}, indent=2)
        (paths[name] / "config.json").write_text(config + "\n")
    return paths


def open_checkpoint(path, name=None, delta_of=None):
    """The Checkpoint of one safetensors file, or of all *.safetensors files of a folder."""
    path = Path(path)
    files = sorted(path.glob("*.safetensors")) if path.is_dir() else [path]
    tensors, descriptors = [], []
    for file in files:
        fd = os.open(file, os.O_RDONLY)
        descriptors.append(fd)
        (length,) = struct.unpack("<Q", os.pread(fd, 8, 0))
        header = json.loads(os.pread(fd, length, 8))
        header.pop("__metadata__", None)
        for key, entry in header.items():
            read = _reader(fd, 8 + length + entry["data_offsets"][0], key)
            tensors.append(Tensor(key, entry["dtype"], tuple(entry["shape"]), read))
    return Checkpoint(
        name or path.stem,
        str(path),
        tensors,
        files=[FileStamp.of(file) for file in files],
        delta_of=delta_of,
        close=lambda: [os.close(fd) for fd in descriptors],
    )


def _reader(fd, origin, name):
    def read(start, out):
        while out:
            got = os.preadv(fd, [out], origin + start)
            if not got:
                raise CheckpointError(f"{name}: the file ends before the tensor does; download it again")
            start, out = start + got, out[got:]

    return read
