"""What a tensor is called without wrappers, and which tensors meet by an unknown prefix."""

import pytest

from kinbase.checkpoint import Tensor
from kinbase.checkpoint.alignment import align, is_vocabulary
from kinbase.checkpoint.names import bare, layer_of


def tensors(*names, shape=(3, 4)):
    return [Tensor(name, "F32", shape, lambda start, out: None) for name in names]


def met(base, member):
    aligned, skipped = align(base, member)
    return [t and t.name for t in aligned], skipped


@pytest.mark.parametrize(
    ("name", "short"),
    [
        ("model.layers.0._orig_mod.mlp.up_proj.weight", "layers.0.mlp.up_proj.weight"),
        ("layers.3._checkpoint_wrapped_module.attn.q.weight", "layers.3.attn.q.weight"),
        ("_fsdp_wrapped_module.model.layers.0._fsdp_wrapped_module.w", "layers.0.w"),
        (
            "base_model.model.model.layers.0.self_attn.q_proj.base_layer.weight",
            "layers.0.self_attn.q_proj.weight",
        ),
        ("pretrained_model.model.layers.0.w", "layers.0.w"),
        ("module.module.bert.encoder.layer.0.w", "encoder.layer.0.w"),
        ("0.auto_model.embeddings.word_embeddings.weight", "embeddings.word_embeddings.weight"),
        ("encoder.layer.0.output.LayerNorm.gamma", "encoder.layer.0.output.LayerNorm.weight"),
        ("h.0.ln_1.beta", "h.0.ln_1.bias"),
        ("stages.0.layers.0.gamma", "stages.0.layers.0.gamma"),  # a layer scale, no norm
        ("lm_head.modules_to_save.default.weight", "lm_head.weight"),
        ("lm_head.original_module.weight", "lm_head.original_module.weight"),
        ("layers.0.parametrizations.weight.original", "layers.0.weight"),
        ("model", "model"),
    ],
)
def test_what_is_added_to_a_name_is_taken_off(name, short):
    assert bare(name) == short and bare(short) == short


def test_an_unknown_prefix_on_either_side_is_found_by_what_most_weights_have():
    plain = tensors("layers.0.w", "layers.1.w", "embed_tokens.weight", "lm_head.weight")
    wrapped = tensors("agent.net.layers.0.w", "agent.net.layers.1.w", "agent.net.embed_tokens.weight",
                      "agent.lm_head.weight")  # fmt: skip
    names = [t.name for t in wrapped]
    assert met(plain, wrapped) == (names, {})
    assert met(wrapped, plain) == ([t.name for t in plain], {})


def test_two_towers_of_one_build_decide_nothing():
    base = tensors("encoder.0.w", "encoder.1.w")
    twins = tensors("query.encoder.0.w", "query.encoder.1.w", "document.encoder.0.w", "document.encoder.1.w")
    found, skipped = met(base, twins)
    assert found == [None, None]
    assert skipped["encoder.0.w"] == "several tensors could be it"


def test_a_picture_tower_is_not_the_text_model():
    found, skipped = met(tensors("encoder.0.w"), tensors("vision_model.encoder.0.w"))
    assert found == [None] and skipped == {
        "encoder.0.w": "missing",
        "vision_model.encoder.0.w": "not in the base",
    }


def test_a_short_end_of_another_layers_name_is_no_match():
    base, member = tensors("norm.weight", shape=(4,)), tensors("a.norm.weight", "b.norm.weight", shape=(4,))
    assert met(base, member)[0] == [None]


@pytest.mark.parametrize(
    ("name", "answer"),
    [
        ("model.embed_tokens.weight", True),
        ("bert.embeddings.word_embeddings.weight", True),
        ("cls.predictions.bias", True),
        ("output.weight", True),
        ("transformer.wpe.weight", False),
        ("embeddings.position_embeddings.weight", False),
        ("encoder.layer.0.output.dense.weight", False),
        ("classifier.weight", False),
        ("model.layers.0.mlp.up_proj.weight", False),
    ],
)
def test_only_a_vocabulary_has_common_rows(name, answer):
    assert is_vocabulary(name) is answer
    longer, base = tensors(name, shape=(7, 4)), tensors(name, shape=(5, 4))
    aligned, skipped = align(base, longer)
    assert (aligned[0] is not None) is answer and (skipped == {}) is answer


def test_an_empty_tensor_is_said_to_be_empty():
    found, skipped = met(tensors("embed_tokens.weight"), tensors("embed_tokens.weight", shape=(0, 4)))
    assert found == [None] and skipped["embed_tokens.weight"].startswith("empty where the base has (3, 4)")


def test_layers_are_parted_from_their_stack():
    assert layer_of("model.layers.12.mlp.up_proj.weight") == ("model.layers", 12, "mlp.up_proj.weight")
    assert layer_of("norm.weight") is None
