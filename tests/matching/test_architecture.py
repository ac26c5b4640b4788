"""What the tensors of an architecture do: fused, transposed and other layouts relabelled as one would by hand."""

import json

import disguises
import numpy as np
import pytest
import torch
from checkpoints import data
from families import write_safetensors

from kinbase.checkpoint.open import read
from kinbase.errors import KinbaseError
from kinbase.matching.architecture import architecture, config_of
from kinbase.matching.match import match
from kinbase.matching.relabelled import relabelled

D, M, H, L, V = 24, 64, 4, 2, 100


def folder(place, tensors, **config):
    write_safetensors(place / "model.safetensors", {n: torch.from_numpy(w) for n, w in tensors.items()})
    (place / "config.json").write_text(json.dumps({"num_attention_heads": H, **config}))
    return place


def opened(place):
    checkpoint = read(str(place)).checkpoint
    return checkpoint, architecture(checkpoint.tensors, config_of(checkpoint), place.name)


def gpt2(seed):
    """A GPT-2, whose matrices are stored [in, out], with biases everywhere."""
    rng = np.random.default_rng(seed)
    shapes = {"wte.weight": (V, D), "wpe.weight": (32, D)}
    for layer in range(L):
        shapes |= {
            f"h.{layer}.ln_1.weight": (D,), f"h.{layer}.ln_1.bias": (D,), f"h.{layer}.attn.c_attn.weight": (D, 3 * D),
            f"h.{layer}.attn.c_attn.bias": (3 * D,), f"h.{layer}.attn.c_proj.weight": (D, D),
            f"h.{layer}.attn.c_proj.bias": (D,), f"h.{layer}.ln_2.weight": (D,), f"h.{layer}.ln_2.bias": (D,),
            f"h.{layer}.mlp.c_fc.weight": (D, M), f"h.{layer}.mlp.c_fc.bias": (M,),
            f"h.{layer}.mlp.c_proj.weight": (M, D), f"h.{layer}.mlp.c_proj.bias": (D,),
        }  # fmt: skip
    shapes |= {"ln_f.weight": (D,), "ln_f.bias": (D,)}
    return {name: rng.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}


def permuted_gpt2(model, seed):
    rng = np.random.default_rng(seed)
    new, channels = dict(model), rng.permutation(D)
    for name, weight in model.items():
        if name.startswith("w"):
            new[name] = weight[:, channels]
        elif "ln_" in name or name.endswith("c_proj.bias"):
            new[name] = weight[channels]
    size = D // H
    for layer in range(L):
        at = f"h.{layer}."
        heads, units = rng.permutation(H), rng.permutation(M)
        rows = np.concatenate([head * size + rng.permutation(size) for head in heads])
        values = np.concatenate([head * size + rng.permutation(size) for head in heads])
        fused = np.concatenate([rows, D + rows, 2 * D + values])
        new[f"{at}attn.c_attn.weight"] = model[f"{at}attn.c_attn.weight"][channels][:, fused]
        new[f"{at}attn.c_attn.bias"] = model[f"{at}attn.c_attn.bias"][fused]
        new[f"{at}attn.c_proj.weight"] = model[f"{at}attn.c_proj.weight"][values][:, channels]
        new[f"{at}mlp.c_fc.weight"] = model[f"{at}mlp.c_fc.weight"][channels][:, units]
        new[f"{at}mlp.c_fc.bias"] = model[f"{at}mlp.c_fc.bias"][units]
        new[f"{at}mlp.c_proj.weight"] = model[f"{at}mlp.c_proj.weight"][units][:, channels]
    return {name: np.ascontiguousarray(w) for name, w in new.items()}


def test_gpt2_comes_back_to_the_bit(tmp_path):
    model = gpt2(1)
    one, first = opened(folder(tmp_path / "a", model, model_type="gpt2"))
    other, second = opened(folder(tmp_path / "b", permuted_gpt2(model, 2), model_type="gpt2"))
    found = match(first, second)
    assert found.test.p < 1e-50
    tensors = relabelled({t.name: t for t in other.tensors}, second, found.symmetry)
    for tensor in one.tensors:
        assert data(tensors[tensor.name]) == data(tensor), tensor.name


def fused(model, layers=disguises.LAYERS):
    """A Llama in the layout of Phi-3."""
    new = dict(model)
    for layer in range(layers):
        at = f"model.layers.{layer}."
        new[f"{at}self_attn.qkv_proj.weight"] = np.concatenate(
            [new.pop(f"{at}self_attn.{x}_proj.weight") for x in "qkv"]
        )
        parts = [new.pop(f"{at}mlp.{x}_proj.weight") for x in ("gate", "up")]
        new[f"{at}mlp.gate_up_proj.weight"] = np.concatenate(parts)
    return new


def test_fused_projections_are_relabelled_part_by_part(tmp_path):
    model = disguises.llama(3, 2)
    masked = disguises.disguised(model, 4, "units", "heads", "values", "channels", "signs", groups=2)
    one, first = opened(disguises.save(tmp_path / "a", fused(model), groups=2))
    other, second = opened(disguises.save(tmp_path / "b", fused(masked), groups=2))
    found = match(first, second)
    tensors = relabelled({t.name: t for t in other.tensors}, second, found.symmetry)
    for tensor in one.tensors:
        assert data(tensors[tensor.name]) == data(tensor), tensor.name


def test_a_fused_model_is_matched_with_one_that_is_not(tmp_path):
    model = disguises.llama(5)
    masked = disguises.disguised(model, 6, "units", "heads", "channels")
    _, first = opened(disguises.save(tmp_path / "a", model))
    other, second = opened(disguises.save(tmp_path / "b", fused(masked)))
    found = match(first, second)
    tensors = relabelled({t.name: t for t in other.tensors}, second, found.symmetry)
    for name, weight in fused(model).items():
        assert data(tensors[name]) == weight.tobytes(), name


def test_reading_anywhere_gives_the_same_bytes(tmp_path):
    model = disguises.llama(7)
    _, first = opened(disguises.save(tmp_path / "a", model))
    other, second = opened(
        disguises.save(tmp_path / "b", disguises.disguised(model, 8, "units", "channels", "up"))
    )
    tensors = relabelled({t.name: t for t in other.tensors}, second, match(first, second).symmetry)
    rng = np.random.default_rng(0)
    for tensor in tensors.values():
        whole = data(tensor)
        for _ in range(20):
            start, stop = sorted(4 * rng.integers(0, tensor.numel + 1, 2))
            assert data(tensor, int(start), int(stop - start)) == whole[start:stop]


@pytest.mark.parametrize(
    ("config", "has_signs"), [({}, True), ({"layer_norm_eps": 1e-5, "rms_norm_eps": None}, True)]
)
def test_channels_change_signs_under_rms_norm_alone(config, has_signs):
    assert disguises.roles(disguises.llama(1), **config).has_signs is has_signs


def test_a_layer_norm_without_bias_allows_no_signs():
    tensors = list(disguises.roles(disguises.llama(1)).every())
    model = architecture([piece.tensor for piece in tensors], {"layer_norm_eps": 1e-5}, "cohere")
    assert not model.has_signs


def test_without_a_config_heads_stay_and_that_is_said(tmp_path):
    model = disguises.llama(9)
    for name, weights in {"a": model, "b": disguises.disguised(model, 1, "units", "heads")}.items():
        disguises.save(tmp_path / name, weights)
        (tmp_path / name / "config.json").unlink()
    found = match(opened(tmp_path / "a")[1], opened(tmp_path / "b")[1])
    assert found.symmetry.counts()["heads"] == 0 < found.symmetry.counts()["units"]
    assert found.notes[0] == "a: no config.json tells its heads: attention heads are left as they are"


@pytest.mark.parametrize(
    ("change", "config", "why"),
    [
        (
            {"model.layers.0.mlp.experts.0.w9.weight": (4, D)},
            {},
            "the role of 'model.layers.0.mlp.experts.0.w9.weight' is",
        ),
        ({"model.layers.0.mlp.down_proj.weight": (disguises.HIDDEN, 7)}, {}, "units where others have"),
        ({"model.layers.3.input_layernorm.weight": (disguises.HIDDEN,)}, {}, "no layers numbered one by one"),
        ({}, {"model_type": "bloom"}, "it is of type 'bloom'"),
    ],
)
def test_what_is_not_supported_is_refused_in_a_line(tmp_path, change, config, why):
    model = disguises.llama(1) | {name: np.ones(shape, np.float32) for name, shape in change.items()}
    place = disguises.save(tmp_path / "odd", model, **config)
    with pytest.raises(KinbaseError) as caught:
        opened(place)
    message = str(caught.value)
    assert why in message and message.endswith("are supported") and "\n" not in message
