"""The model that a quantised one was made from is found among its siblings, from weights alone."""

import json

import numpy as np
import pytest
import quantising
import torch
from safetensors.torch import save_file

import kinbase

SHAPES = {"model.embed_tokens.weight": (64, 64)} | {
    f"model.layers.{i}.{name}.weight": (64, 64)
    for i in range(2)
    for name in ("self_attn.q_proj", "mlp.up_proj", "mlp.down_proj")
}
PACKED = [name for name in SHAPES if "layers" in name]
SIBLINGS = [f"ft_{i}" for i in range(6)]


def write(folder, tensors, **config):
    folder.mkdir()
    save_file({n: t.contiguous() for n, t in tensors.items()}, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps({"architectures": ["M"], **config}))


@pytest.fixture
def family(tmp_path):
    """A base and fine-tunes whose changes are a few per cent of its weights, and share half of themselves."""
    rng = np.random.default_rng(0)
    base = {n: rng.standard_normal(s).astype(np.float32) / 8 for n, s in SHAPES.items()}
    common = {n: rng.standard_normal(s) for n, s in SHAPES.items()}
    made = {"base": base}
    for name in SIBLINGS:
        made[name] = {
            n: (w + 0.003 * (common[n] + rng.standard_normal(w.shape))).astype(np.float32)
            for n, w in base.items()
        }
    for name, model in made.items():
        write(tmp_path / name, {n: torch.from_numpy(w) for n, w in model.items()})
    db = kinbase.open(tmp_path / "kin.duckdb")
    db.import_([tmp_path / name for name in made], base="base")
    return db, made


def quantised(model, method):
    quantise, config = quantising.METHODS[method]
    tensors = {n: torch.from_numpy(w) for n, w in model.items()}
    for name in PACKED:
        del tensors[name]
        parts, _ = quantise(model[name].astype(np.float64))
        tensors |= {name.removesuffix("weight") + key: t for key, t in parts.items()}
    return tensors, config


@pytest.mark.parametrize("method", quantising.METHODS)
def test_its_source_is_found(family, tmp_path, method):
    db, made = family
    for name in SIBLINGS[:3]:
        tensors, config = quantised(made[name], method)
        write(tmp_path / f"{name}-q", tensors, **config)
    db.import_([tmp_path / f"{name}-q" for name in SIBLINGS[:3]], base="base")
    for name in SIBLINGS[:3]:
        (found,) = db.recipe(f"{name}-q").to_dicts()
        assert (found["verdict"], [p["parent"] for p in found["parents"]]) == ("copy", [name]), found[
            "reason"
        ]
    edges, _ = db.infer()
    rows = {row["child"]: row for row in edges.to_dicts()}
    for name in SIBLINGS[:3]:
        row = rows[f"{name}-q"]
        assert (row["parent"], row["relation"]) == (name, "quantized")
