"""An adapter merged once, twice, in half of the layers, or not at all, is told from the weights."""

import json

import pytest
import torch
from families import llama_shapes, write_safetensors

import kinbase

TARGETS = ("q_proj", "down_proj")


@pytest.fixture(scope="module")
def checked(tmp_path_factory):
    """What `check` says of children that all claim to be the base with the adapter in it: {name: (verdict, detail)}."""
    home = tmp_path_factory.mktemp("adapters")
    generator = torch.Generator().manual_seed(0)
    base = {
        name: ((1.0 if len(shape) == 1 else 0.0) + 0.05 * torch.randn(shape, generator=generator)).bfloat16()
        for name, shape in llama_shapes().items()
    }
    factors = {
        name: (torch.randn(4, w.shape[1], generator=generator) / 3, torch.randn(w.shape[0], 4, generator=generator) / 20)
        for name, w in base.items() if any(target in name for target in TARGETS)
    }  # fmt: skip

    def merged(times, only=lambda name: True):
        return {
            name: (w.float() + times * 2 * factors[name][1] @ factors[name][0]).bfloat16()
            if name in factors and only(name) else w.clone()
            for name, w in base.items()
        }  # fmt: skip

    children = {
        "once": merged(1), "twice": merged(2), "half": merged(1, lambda name: "layers.0." in name), "never": merged(0),
    }  # fmt: skip
    for name, weights in {"base": base, **children}.items():
        write_safetensors(home / name / "model.safetensors", weights)
        if name in children:
            (home / name / "README.md").write_text("---\nbase_model: [base, lora]\ntags: [merge]\n---\n")
    write_safetensors(
        home / "lora" / "adapter_model.safetensors",
        {
            f"base_model.model.{name.removesuffix('.weight')}.lora_{part}.weight": tensor.contiguous()
            for name, pair in factors.items() for part, tensor in zip("AB", pair, strict=True)
        },
    )  # fmt: skip
    settings = {
        "peft_type": "LORA", "task_type": "CAUSAL_LM", "base_model_name_or_path": "base", "r": 4, "lora_alpha": 8,
        "target_modules": list(TARGETS), "bias": "none",
    }  # fmt: skip
    (home / "lora" / "adapter_config.json").write_text(json.dumps(settings))
    db = kinbase.open(home / "kin.duckdb")
    db.import_([home / "base"])
    db.import_([home / "lora", *(home / name for name in children)], base="base")
    rows = db.check(list(children)).rows()
    assert {row[0] for row in rows} == set(children)
    return {
        subject: (verdict, detail) for subject, claim, verdict, detail in rows if claim.startswith("merge of")
    }


def test_once_is_as_it_should_be(checked):
    verdict, detail = checked["once"]
    assert verdict == "supported"
    assert detail.startswith("adapter merged at scale 1.0")


def test_twice_is_another_scale(checked):
    verdict, detail = checked["twice"]
    assert verdict == "contradicted"
    assert "at scale 2.0" in detail or "at scale 1.99" in detail


def test_the_tensors_without_it_are_named(checked):
    verdict, detail = checked["half"]
    assert verdict == "contradicted"
    assert "layers.1." in detail
    assert "layers.0." not in detail.split(";")[0]


def test_a_copy_of_the_base_that_claims_it(checked):
    assert checked["never"] == ("contradicted", "nothing was applied: its weights are those of base")
