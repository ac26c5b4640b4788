"""Families with the troubles that real ones have."""

import pytest
import torch
from safetensors.torch import load_file, save_file


@pytest.fixture
def members(family, tmp_path):
    """The family, members of a longer vocabulary and of shorter ones, and one that lacks a tensor."""
    sources = dict(family)
    for name, more in {"longer": 3, "shorter": -3, "shortest": -5, "lacking": 0}.items():
        tensors = load_file(family["ft_a"] / "model.safetensors")
        embed = tensors["model.embed_tokens.weight"]
        longer = torch.cat([embed, embed[: max(more, 0)]])
        tensors["model.embed_tokens.weight"] = longer[: len(embed) + more].contiguous()
        if name == "lacking":
            del tensors["model.layers.0.mlp.up_proj.weight"]
        tensors["model.norm.weight"] += 0.25 * more + 2
        sources[name] = tmp_path / name
        sources[name].mkdir()
        (sources[name] / "config.json").write_text((family["ft_a"] / "config.json").read_text())
        save_file(tensors, sources[name] / "model.safetensors", metadata={"format": "pt"})
    return list(sources.values())
