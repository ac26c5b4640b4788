"""Small random Llama-like checkpoints, fine-tunes of them, and the same models with their units in another order.

The relabelling is written here a second time, head by head on whole tensors, and shares nothing with
`kinbase.matching`: each disguise leaves what the model computes as it is.
"""

import json
from pathlib import Path

import numpy as np
import torch
from families import write_safetensors

from kinbase.checkpoint import Tensor
from kinbase.matching.architecture import architecture

HIDDEN, UNITS, VOCAB, LAYERS, HEADS, HEAD = 48, 96, 160, 2, 6, 8


def config(groups=HEADS, **more):
    return {
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": HIDDEN, "intermediate_size": UNITS,
        "vocab_size": VOCAB, "num_hidden_layers": LAYERS, "num_attention_heads": HEADS, "num_key_value_heads": groups,
        "head_dim": HEAD, "hidden_act": "silu", "rms_norm_eps": 1e-5, "rope_theta": 10000.0, **more,
    }  # fmt: skip


def llama(seed, groups=HEADS):
    """{name: float32 array} of a model whose weights are random."""
    rng = np.random.default_rng(seed)
    inner, keys = HEADS * HEAD, groups * HEAD
    shapes = {"model.embed_tokens.weight": (VOCAB, HIDDEN)}
    for layer in range(LAYERS):
        part = f"model.layers.{layer}."
        shapes |= {
            f"{part}self_attn.q_proj.weight": (inner, HIDDEN), f"{part}self_attn.k_proj.weight": (keys, HIDDEN),
            f"{part}self_attn.v_proj.weight": (keys, HIDDEN), f"{part}self_attn.o_proj.weight": (HIDDEN, inner),
            f"{part}mlp.gate_proj.weight": (UNITS, HIDDEN), f"{part}mlp.up_proj.weight": (UNITS, HIDDEN),
            f"{part}mlp.down_proj.weight": (HIDDEN, UNITS),
            f"{part}input_layernorm.weight": (HIDDEN,), f"{part}post_attention_layernorm.weight": (HIDDEN,),
        }  # fmt: skip
    shapes |= {"model.norm.weight": (HIDDEN,), "lm_head.weight": (VOCAB, HIDDEN)}
    return {
        name: (rng.standard_normal(shape) * 0.1 + (len(shape) == 1)).astype(np.float32)
        for name, shape in shapes.items()
    }


def tuned(model, seed, size=0.01):
    """A fine-tune: every weight changed a little."""
    rng = np.random.default_rng(seed)
    return {name: (w + size * rng.standard_normal(w.shape)).astype(np.float32) for name, w in model.items()}


def disguised(model, seed, *kinds, groups=HEADS):
    """The same function with its units relabelled: of kinds units, heads, values, channels, signs, up, keys, gains."""
    rng = np.random.default_rng(seed)
    new = {name: w.copy() for name, w in model.items()}
    for layer in range(LAYERS):
        part = f"model.layers.{layer}."
        q, k, v, o = (f"{part}self_attn.{x}_proj.weight" for x in "qkvo")
        gate, up, down = (f"{part}mlp.{x}_proj.weight" for x in ("gate", "up", "down"))
        if "units" in kinds:
            order = rng.permutation(UNITS)
            new[gate], new[up], new[down] = new[gate][order], new[up][order], new[down][:, order]
        if "up" in kinds:
            scale = (2.0 ** rng.uniform(-2, 2, UNITS) * rng.choice([-1, 1], UNITS)).astype(np.float32)
            new[up], new[down] = new[up] * scale[:, None], new[down] / scale
        if "heads" in kinds:
            _permute_heads(new, rng, q, k, v, o, groups)
        if "values" in kinds:
            _relabel_values(new, rng, v, o, groups)
        if "keys" in kinds:
            _scale_keys(new, rng, q, k, groups)
        if "gains" in kinds:
            for norm, readers in (("input_layernorm", (q, k, v)), ("post_attention_layernorm", (gate, up))):
                scale = (2.0 ** rng.uniform(-2, 2, HIDDEN)).astype(np.float32)
                new[f"{part}{norm}.weight"] *= scale
                for reader in readers:
                    new[reader] = new[reader] / scale
    if "gains" in kinds:
        scale = (2.0 ** rng.uniform(-2, 2, HIDDEN)).astype(np.float32)
        new["model.norm.weight"] *= scale
        new["lm_head.weight"] = new["lm_head.weight"] / scale
    if "channels" in kinds or "signs" in kinds:
        _relabel_channels(new, rng, "channels" in kinds, "signs" in kinds)
    return {name: np.ascontiguousarray(w) for name, w in new.items()}


def _permute_heads(new, rng, q, k, v, o, groups):
    """Groups among each other, then the query heads inside each."""
    each = HEADS // groups
    order = rng.permutation(groups)
    heads = [g * each + j for g in order for j in rng.permutation(each)]
    rows = np.concatenate([np.arange(h * HEAD, (h + 1) * HEAD) for h in heads])
    keys = np.concatenate([np.arange(g * HEAD, (g + 1) * HEAD) for g in order])
    new[q], new[o] = new[q][rows], new[o][:, rows]
    new[k], new[v] = new[k][keys], new[v][keys]


def _relabel_values(new, rng, v, o, groups):
    each = HEADS // groups
    for group in range(groups):
        order, sign = rng.permutation(HEAD), rng.choice([-1.0, 1.0], HEAD).astype(np.float32)
        rows = group * HEAD + order
        new[v][group * HEAD : (group + 1) * HEAD] = new[v][rows] * sign[:, None]
        for head in range(group * each, (group + 1) * each):
            new[o][:, head * HEAD : (head + 1) * HEAD] = new[o][:, head * HEAD + order] * sign


def _scale_keys(new, rng, q, k, groups):
    """One factor for each rotary pair of a key-value head."""
    each = HEADS // groups
    for group in range(groups):
        scale = np.tile(2.0 ** rng.uniform(-2, 2, HEAD // 2), 2).astype(np.float32)
        new[k][group * HEAD : (group + 1) * HEAD] /= scale[:, None]
        for head in range(group * each, (group + 1) * each):
            new[q][head * HEAD : (head + 1) * HEAD] *= scale[:, None]


def _relabel_channels(new, rng, is_permuted, is_flipped):
    order = rng.permutation(HIDDEN) if is_permuted else np.arange(HIDDEN)
    sign = rng.choice([-1.0, 1.0], HIDDEN).astype(np.float32) if is_flipped else np.ones(HIDDEN, np.float32)
    for name, weight in new.items():
        if name.endswith(("o_proj.weight", "down_proj.weight")):
            new[name] = weight[order] * sign[:, None]
        elif weight.ndim == 2:
            new[name] = weight[:, order] * sign
        else:
            new[name] = weight[order]


def save(folder, model, *, dtype=torch.float32, **settings):
    """A checkpoint folder with the weights of a model and its config.json."""
    folder = Path(folder)
    write_safetensors(
        folder / "model.safetensors", {n: torch.from_numpy(w).to(dtype) for n, w in model.items()}
    )
    (folder / "config.json").write_text(json.dumps(config(**settings)))
    return folder


def pearson(a, b, base=None):
    """Pearson's correlation of all weights of two models, or of what they changed in a base, in float64."""
    flat = [
        np.concatenate([w.astype(np.float64).ravel() - (0 if base is None else base[n].astype(np.float64).ravel())
                        for n, w in model.items()])
        for model in (a, b)
    ]  # fmt: skip
    return float(np.corrcoef(*flat)[0, 1])


def roles(model, name="model", **settings):
    """The architecture of a model in memory."""
    tensors = []
    for key, weight in model.items():
        raw = memoryview(np.ascontiguousarray(weight).reshape(-1).view(np.uint8))

        def read(start, out, raw=raw):
            out[:] = raw[start : start + len(out)]

        tensors.append(Tensor(key, "F32", weight.shape, read))
    return architecture(tensors, config(**settings), name)
