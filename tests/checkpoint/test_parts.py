"""A model that is a part of another one: a tower, an encoder, what a wrapper holds."""

import pytest

from kinbase.checkpoint import Tensor
from kinbase.checkpoint.alignment import MISSING, NOT_IN_THE_BASE, align


def model(shapes):
    return [Tensor(name, "F32", shape, lambda start, out: None) for name, shape in shapes.items()]


def layers(stack, *, key_rows=8):
    """Two layers of attention under `stack`."""
    parts = {"self_attn.q_proj": (8, 8), "self_attn.k_proj": (key_rows, 8), "layer_norm": (8,)}
    return {f"{stack}{n}.{part}.weight": shape for n in (0, 1) for part, shape in parts.items()}


PICTURES = {"embeddings.patch_embedding.weight": (8, 3, 4, 4)} | layers("encoder.layers.")
TEXT = {"embed_tokens.weight": (16, 8)} | layers("layers.", key_rows=4)
BOTH = {f"vision_tower.vision_model.{name}": shape for name, shape in PICTURES.items()} | {
    f"language_model.model.{name}": shape for name, shape in TEXT.items()
}


def met(base, member):
    aligned, skipped = align(model(base), model(member))
    return {name: match.name for name, match in zip(base, aligned, strict=True) if match}, skipped


def test_a_picture_tower_alone_meets_that_of_a_multimodal_model_and_none_of_its_language_model():
    found, skipped = met(BOTH, PICTURES)
    assert found == {f"vision_tower.vision_model.{name}": name for name in PICTURES}
    assert set(skipped.values()) == {MISSING} and all(name.startswith("language_model") for name in skipped)


def test_a_multimodal_model_is_compared_with_the_picture_tower_that_it_was_made_from():
    found, skipped = met(PICTURES, BOTH)
    assert found == {name: f"vision_tower.vision_model.{name}" for name in PICTURES}
    assert set(skipped.values()) == {NOT_IN_THE_BASE} and len(skipped) == len(TEXT)


def test_a_language_model_meets_that_of_a_multimodal_one():
    assert met(BOTH, TEXT)[0] == {f"language_model.model.{name}": name for name in TEXT}
    assert met(TEXT, BOTH)[0] == {name: f"language_model.model.{name}" for name in TEXT}


def test_a_class_prefix_that_speaks_of_pictures_keeps_no_tensor_of_them_apart():
    whole = {f"data2vec_vision_like.{name}": shape for name, shape in PICTURES.items()}
    assert len(met(whole, PICTURES)[0]) == len(met(PICTURES, whole)[0]) == len(PICTURES)


def test_an_encoder_alone_is_no_decoder_which_has_more():
    encoder, decoder = layers("layers."), layers("layers.")
    whole = {f"model.encoder.{name}": shape for name, shape in encoder.items()} | {
        f"model.decoder.{name}": shape for name, shape in decoder.items()
    }
    cross = {f"model.decoder.layers.{n}.encoder_attn.q_proj.weight": (8, 8) for n in (0, 1)}
    found, _ = met(whole | cross, encoder)
    assert set(found) == {f"model.encoder.{name}" for name in encoder}
    found, skipped = met(whole, encoder)  # nothing tells which of the two it is
    assert not found and "several tensors could be it" in skipped.values()


def test_of_two_models_in_one_file_the_one_that_has_all_of_the_base_is_it():
    base = TEXT | {"lm_head.weight": (16, 8)}
    policy = {f"policy.{name}": shape for name, shape in base.items()}
    critic = {f"critic.{name}": shape for name, shape in TEXT.items()}
    assert met(base, policy | critic)[0] == {name: f"policy.{name}" for name in base}
    critic["critic.lm_head.weight"] = (16, 8)
    assert not met(base, policy | critic)[0]


@pytest.mark.parametrize("wrapper", ["0.", "models.3.", "agent.net."])
def test_a_wrapped_model_keeps_its_head_outside_the_wrapper(wrapper):
    base = TEXT | {"lm_head.weight": (16, 8)}
    member = {f"{wrapper}{name}": shape for name, shape in TEXT.items()} | {"lm_head.weight": (16, 8)}
    found, skipped = met(base, member)
    assert len(found) == len(base) and skipped == {}


def test_the_norm_of_a_layer_is_not_the_norm_of_the_model():
    base = {f"net.encoder.{n}": s for n, s in layers("stages.").items()} | {"net.layer_norm.weight": (8,)}
    found, skipped = met(base, layers("stages."))
    assert "net.layer_norm.weight" not in found and skipped["net.layer_norm.weight"] == MISSING


@pytest.mark.parametrize(
    ("before", "since"),
    [
        ("vit.encoder.layer.0.attention.attention.query.weight", "vit.layers.0.attention.q_proj.weight"),
        ("vit.encoder.layer.0.attention.output.dense.weight", "vit.layers.0.attention.o_proj.weight"),
        ("vit.encoder.layer.0.intermediate.dense.bias", "vit.layers.0.mlp.fc1.bias"),
        ("vit.encoder.layer.0.output.dense.weight", "vit.layers.0.mlp.fc2.weight"),
        (
            "model.layers.0.block_sparse_moe.router.layer.weight",
            "model.layers.0.block_sparse_moe.router.weight",
        ),
        (
            "model.layers.0.mlp.moe_statics.e_score_correction_bias",
            "model.layers.0.mlp.gate.e_score_correction_bias",
        ),
        ("embed_out.weight", "lm_head.weight"),
    ],
)
def test_names_of_transformers_5_meet_those_that_it_saves(before, since):
    other = {"embed.weight": (40, 8)}
    found, skipped = met(other | {before: (8, 8)}, other | {since: (8, 8)})
    assert found[before].endswith(since.rpartition(".")[2]) and skipped == {}
