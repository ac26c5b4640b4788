"""Adapters merged into their models: PEFT's W + (B @ A) * (lora_alpha / r), to the bit."""

import json

import pytest
import torch
from families import CONFIG, write_safetensors
from merges import merged, weights

import kinbase
from kinbase import merging
from kinbase.errors import KinbaseError

SHAPES = {
    "model.layers.0.self_attn.q_proj": (24, 40),
    "model.layers.0.mlp.up_proj": (64, 40),
    "lm_head": (48, 40),
}


@pytest.fixture(params=[torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
def models(tmp_path, request):
    """(base, adapter, what merging has to give) as folders and tensors; lm_head has no adapter."""
    torch.manual_seed(1)
    base = {f"{name}.weight": torch.randn(shape).to(request.param) for name, shape in SHAPES.items()}
    write_safetensors(tmp_path / "base" / "model.safetensors", base)
    (tmp_path / "base" / "config.json").write_text(json.dumps(CONFIG))
    (tmp_path / "base" / "tokenizer.json").write_text("{}")
    factors, expected = {}, dict(base)
    for name in list(SHAPES)[:2]:
        rows, columns = SHAPES[name]
        a, b = torch.randn(4, columns), torch.randn(rows, 4)
        factors[f"base_model.model.{name}.lora_A.weight"] = a
        factors[f"base_model.model.{name}.lora_B.weight"] = b
        expected[f"{name}.weight"] = base[f"{name}.weight"].clone().add_((b @ a) * (6 / 4))
    write_adapter(tmp_path / "lora", factors)
    return tmp_path / "base", tmp_path / "lora", expected


def write_adapter(folder, factors, **more):
    write_safetensors(folder / "adapter_model.safetensors", factors)
    config = {"peft_type": "LORA", "r": 4, "lora_alpha": 6, "base_model_name_or_path": "base"}
    (folder / "adapter_config.json").write_text(json.dumps(config | more))


def assert_same_bits(found, expected):
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert found[name].dtype == tensor.dtype
        assert torch.equal(found[name].view(torch.uint8), tensor.view(torch.uint8)), name


def test_a_model_with_its_adapter_by_name(models, tmp_path):
    base, lora, expected = models
    db = kinbase.open(tmp_path / "kin.duckdb")
    db.import_([base, lora], base="base")
    (row,) = db.merge("base+lora", tmp_path / "whole").to_dicts()
    assert row["status"] == "imported"
    assert_same_bits(weights(tmp_path / "whole"), expected)
    assert (tmp_path / "whole" / "tokenizer.json").exists()
    parents = db.sql("select distinct parent from lineage where child = 'whole'")["parent"].to_list()
    assert {"base", "lora"} <= set(parents)
    again = merging.load(tmp_path / "whole" / "mergekit_config.yml")
    assert again.models == (str(base), str(lora))  # good from anywhere


def test_adapters_in_a_configuration(models, tmp_path):
    base, lora, expected = models
    config = {
        "merge_method": "linear",
        "models": [
            {"model": f"{base}+{lora}", "parameters": {"weight": 1.0}},
            {"model": str(base), "parameters": {"weight": 3.0}},
        ],
        "dtype": "float32",
    }
    found = merged(config, tmp_path / "quarter")
    name = "model.layers.0.mlp.up_proj.weight"
    plain = weights(base)[name].double()
    want = (expected[name].double() + 3 * plain) / 4
    # Three float32 roundings of sums of at most twenty.
    assert torch.allclose(found[name].double(), want, rtol=0, atol=3 * 20 * 2**-24)


def test_stored_the_other_way_round(tmp_path):
    torch.manual_seed(2)
    weight, a, b = torch.randn(40, 24), torch.randn(4, 40), torch.randn(24, 4)
    write_safetensors(tmp_path / "gpt" / "model.safetensors", {"h.0.c_attn.weight": weight})
    module = "base_model.model.h.0.c_attn"
    write_adapter(
        tmp_path / "lora",
        {f"{module}.lora_A.weight": a, f"{module}.lora_B.weight": b},
        fan_in_fan_out=True,
        use_rslora=True,
    )
    config = {
        "merge_method": "linear",
        "models": [{"model": f"{tmp_path}/gpt+{tmp_path}/lora", "parameters": {"weight": 1}}],
    }
    found = merged(config, tmp_path / "out")
    assert torch.equal(found["h.0.c_attn.weight"], weight + (b @ a).T * (6 / 4**0.5))


def embeddings(tmp_path, dtype):
    """A base with an embedding and a head, in a folder; its tensors."""
    torch.manual_seed(3)
    shapes = {"model.embed_tokens": (48, 40), "model.layers.0.mlp.up_proj": (64, 40), "lm_head": (48, 40)}
    base = {f"{name}.weight": torch.randn(shape).to(dtype) for name, shape in shapes.items()}
    write_safetensors(tmp_path / "base" / "model.safetensors", base)
    (tmp_path / "base" / "config.json").write_text(json.dumps(CONFIG))
    return base


def merge_onto(tmp_path, adapter):
    config = {
        "merge_method": "linear",
        "models": [{"model": f"{tmp_path / 'base'}+{adapter}", "parameters": {"weight": 1}}],
    }
    return merged(config, tmp_path / f"{adapter.name}-out")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_layers_and_tokens_that_were_trained_whole(tmp_path, dtype):
    """What PEFT 0.21.2 makes of modules_to_save, trainable_token_indices and adapters of embeddings, to the bit."""
    base = embeddings(tmp_path, dtype)
    head, rows, mlp = torch.randn(48, 40), torch.randn(3, 40), "base_model.model.model.layers.0.mlp.up_proj"
    a, b = torch.randn(4, 40), torch.randn(64, 4)
    factors = {f"{mlp}.lora_A.weight": a, f"{mlp}.lora_B.weight": b}
    expected = base | {
        "model.layers.0.mlp.up_proj.weight": base["model.layers.0.mlp.up_proj.weight"]
        .clone()
        .add_((b @ a) * (6 / 4))
    }
    write_adapter(
        tmp_path / "saved", factors | {"base_model.model.lm_head.weight": head}, modules_to_save=["lm_head"]
    )
    assert_same_bits(merge_onto(tmp_path, tmp_path / "saved"), expected | {"lm_head.weight": head.to(dtype)})

    key = "base_model.model.model.embed_tokens.token_adapter.trainable_tokens_delta"
    replaced = base["model.embed_tokens.weight"].clone()
    replaced[[7, 0, 47]] = rows.to(dtype)
    for number, told in enumerate(([7, 0, 47], {"embed_tokens": [7, 0, 47]})):
        write_adapter(tmp_path / f"tokens{number}", factors | {key: rows}, trainable_token_indices=told)
        found = merge_onto(tmp_path, tmp_path / f"tokens{number}")
        assert_same_bits(found, expected | {"model.embed_tokens.weight": replaced})

    embed, own = "base_model.model.model.embed_tokens", torch.randn(48, 40).to(dtype)
    a, b = torch.randn(4, 48), torch.randn(40, 4)
    table = {
        f"{embed}.lora_embedding_A": a,
        f"{embed}.lora_embedding_B": b,
        f"{embed}.base_layer.weight": own,
    }
    write_adapter(tmp_path / "embedding", factors | table)
    summed = own.clone().add_(((b @ a).T * (6 / 4)).to(dtype))
    assert_same_bits(
        merge_onto(tmp_path, tmp_path / "embedding"), expected | {"model.embed_tokens.weight": summed}
    )


def test_whole_layers_that_fit_nothing_are_refused(tmp_path):
    embeddings(tmp_path, torch.float32)
    mlp = "base_model.model.model.layers.0.mlp.up_proj"
    factors = {f"{mlp}.lora_A.weight": torch.ones(4, 40), f"{mlp}.lora_B.weight": torch.ones(64, 4)}
    key = "base_model.model.model.embed_tokens.token_adapter.trainable_tokens_delta"
    for name, more, config, words in (
        ("score", {"base_model.model.score.weight": torch.ones(2, 40)}, {}, "takes the place of none"),
        (
            "longer",
            {"base_model.model.lm_head.weight": torch.ones(50, 40)},
            {},
            "resize the model's vocabulary",
        ),
        (
            "beyond",
            {key: torch.ones(1, 40)},
            {"trainable_token_indices": [48]},
            "1 trained tokens .* do not fit",
        ),
        (
            "fewer",
            {key: torch.ones(2, 40)},
            {"trainable_token_indices": [4]},
            "2 trained tokens .* do not fit",
        ),
        ("odd", {key: torch.ones(1, 40)}, {"trainable_token_indices": ["x"]}, "does not say of which rows"),
        ("silent", {key: torch.ones(1, 40)}, {}, "does not say of which rows"),
    ):
        write_adapter(tmp_path / name, factors | more, **config)
        with pytest.raises(KinbaseError, match=words):
            merge_onto(tmp_path, tmp_path / name)
        assert not (tmp_path / f"{name}-out").exists()


def test_what_cannot_be_merged_is_refused(models, tmp_path):
    base, lora, _ = models

    def refused(words, adapter=lora, model=base):
        config = {
            "merge_method": "linear",
            "models": [{"model": f"{model}+{adapter}", "parameters": {"weight": 1}}],
        }
        with pytest.raises(KinbaseError, match=words):
            merging.merge(merging.parse(config), tmp_path / "out")
        assert not (tmp_path / "out").exists() and not (tmp_path / "out.part").exists()

    refused("is no adapter", adapter=base)
    refused("is an adapter: say BASE", model=lora)
    module = "base_model.model.model.layers.7.mlp.up_proj"
    write_adapter(
        tmp_path / "deep",
        {f"{module}.lora_A.weight": torch.ones(4, 40), f"{module}.lora_B.weight": torch.ones(64, 4)},
    )
    refused("adapter of another model", adapter=tmp_path / "deep")
    module = "base_model.model.model.layers.0.mlp.up_proj"
    write_adapter(
        tmp_path / "wide",
        {f"{module}.lora_A.weight": torch.ones(4, 41), f"{module}.lora_B.weight": torch.ones(64, 4)},
    )
    refused("another model|shape", adapter=tmp_path / "wide")
    factors = {f"{module}.lora_A.weight": torch.ones(4, 40), f"{module}.lora_B.weight": torch.ones(64, 4)}
    write_adapter(tmp_path / "more", {**factors, "base_model.model.score.weight": torch.ones(48, 40)})
    refused("no low-rank change", adapter=tmp_path / "more")
