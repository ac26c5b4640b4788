"""A merge of quantised parents is of their weights, never of their codes."""

import json

import numpy as np
import pytest
import quantising
import torch
from safetensors.torch import load_file, save_file

NAME = "model.layers.0.mlp.up_proj.weight"


def folder(path, tensors, config=None):
    path.mkdir()
    save_file({key: t.contiguous() for key, t in tensors.items()}, path / "model.safetensors")
    (path / "config.json").write_text(json.dumps({"architectures": ["M"], **(config or {})}))


@pytest.fixture
def weights():
    return 0.02 * np.random.default_rng(0).standard_normal((2, 64, 96))


@pytest.mark.parametrize("method", quantising.METHODS)
def test_a_merge_dequantises_its_parents(cli, tmp_path, weights, method):
    quantise, said = quantising.METHODS[method]
    parts, exact = quantise(weights[1])
    folder(tmp_path / "packed", {NAME.removesuffix("weight") + key: t for key, t in parts.items()}, said)
    folder(tmp_path / "plain", {NAME: torch.from_numpy(weights[0]).float()})
    models = "".join(f"- model: {name}\n  parameters: {{weight: 0.5}}\n" for name in ("packed", "plain"))
    (tmp_path / "mix.yml").write_text(f"merge_method: linear\nmodels:\n{models}dtype: float32\n")
    done = cli("merge", "mix.yml", "out", "--no-import")
    assert done.returncode == 0, done.stderr
    merged = load_file(tmp_path / "out" / "model.safetensors")
    assert list(merged) == [NAME]
    expected = (weights[0].astype(np.float32) + exact) / 2
    # Roundings to float32 of values of at most 0.1.
    assert np.abs(merged[NAME].numpy() - expected).max() < 1e-7
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config == {"architectures": ["M"], "torch_dtype": "float32"}


def test_codes_that_are_not_read_are_not_merged(cli, tmp_path, weights):
    folder(
        tmp_path / "packed",
        {NAME: torch.ones(64, 96, dtype=torch.int8)},
        {"quantization_config": {"quant_method": "x"}},
    )
    folder(tmp_path / "plain", {NAME: torch.from_numpy(weights[0]).float()})
    models = "".join(f"- model: {name}\n  parameters: {{weight: 0.5}}\n" for name in ("packed", "plain"))
    (tmp_path / "mix.yml").write_text(f"merge_method: linear\nmodels:\n{models}")
    done = cli("merge", "mix.yml", "out", "--no-import")
    assert done.returncode == 1 and not (tmp_path / "out").exists()
    assert "holds packed I8" in done.stderr and len(done.stderr.strip().splitlines()) == 1
