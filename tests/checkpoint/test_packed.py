"""What holds codes and not weights is told by shape, dtype, neighbours and configuration."""

import pytest

from kinbase.checkpoint import Tensor
from kinbase.checkpoint.packed import packed, why


def tensors(**described):
    """Tensors by name ("__" for a dot) from (dtype, extents...), never read."""

    def read(start, out):
        raise AssertionError("a rule by headers reads nothing")

    return [
        Tensor(name.replace("__", "."), dtype, tuple(shape), read)
        for name, (dtype, *shape) in described.items()
    ]


def linear(name, **described):
    return {f"model__layers__0__mlp__{name}__{key}": value for key, value in described.items()}


PLAIN = {"model__embed__weight": ("BF16", 512, 64), "model__norm__weight": ("F32", 64)}

CODES = {
    "GPTQ": linear("up", qweight=("I32", 8, 96), qzeros=("I32", 2, 12), scales=("F16", 2, 96), g_idx=("I32", 64)),
    "no zero points": linear("up", qweight=("I32", 8, 96), scales=("F16", 2, 96)),
    "bytes in a vector": linear("up", weight=("U8", 3072), weight__absmax=("F32", 96), weight__quant_map=("F32", 16)),
    "bytes in a column": linear("up", weight=("U8", 3072, 1), weight__absmax=("U8", 96)),
    "int8 with row scales": linear("up", weight=("I8", 96, 64), SCB=("F32", 96)),
    "int8 with another name for them": linear("up", weight=("I8", 96, 64), weight_scales=("F16", 96)),
    "int8 alone": linear("up", weight=("I8", 96, 64)),
    "trellis": linear("up", trellis=("I16", 4, 6, 48), suh=("F16", 64), svh=("F16", 96)),
    "lattice in 64 bits": linear("up", Qidxs=("I64", 96, 800), SU=("F16", 64), SV=("F16", 96)),
    "a lattice that is a small part of the file": linear("up", Qidxs=("I64", 96, 8), SU=("F16", 64), SV=("F16", 96)),
    "codebook of the layer": linear("up", codes=("I8", 96, 8, 2), codebooks=("F16", 2, 256, 1, 8), scales=("F16", 96)),
    "groups in 32 bits": linear("up", weight=("U32", 96, 8), scales=("F16", 96, 2), biases=("F16", 96, 2)),
    "signs with one length": linear("up", weight=("BOOL", 96, 64), weight_alpha=("F32", 1)),
    "indices in a weight's place": linear("up", weight=("I64", 96, 64)),
    "a tensor's own tensors": linear("up", weight___data___data=("U8", 96, 32), weight___scale=("F32", 192, 1)),
    "8-bit floats with exponents": linear("up", scale=("F8_E8M0", 1, 1), weight=("F8_E4M3", 96, 64)),
    "stacked blocks": {
        "model__layers__0__mlp__experts__up_proj_blocks": ("U8", 4, 96, 2, 16),
        "model__layers__0__mlp__experts__up_proj_scales": ("U8", 4, 96, 2),
        "model__layers__0__mlp__experts__up_proj_bias": ("BF16", 4, 96),
        "model__layers__0__mlp__experts__inner__weight": ("BF16", 8, 8),
    },
    "8-bit floats of a tensor": linear("up", weight=("F8_E4M3", 96, 64), weight_scale=("F32",)),
    "8-bit floats, scale first": linear("up", weight=("F8_E4M3", 96, 64), scale_weight=("F32", 1)),
    "8-bit floats in blocks": linear("up", weight=("F8_E4M3", 256, 128), weight_scale_inv=("F32", 2, 1)),
    "8-bit floats and exponents": linear("up", weight=("F8_E5M2", 96, 64), weight_scale=("F8_E8M0", 96, 2)),
    "stacked 8-bit floats": {
        "model__layers__0__mlp__experts__up_proj": ("F8_E4M3", 4, 64, 96),
        "model__layers__0__mlp__experts__up_proj_scale": ("F32", 4, 1, 96),
        "model__layers__0__mlp__experts__down_proj": ("BF16", 4, 96, 64),
    },
    "a scale beside the module": {
        "model__layers__0__mlp__up__weight": ("F8_E4M3", 96, 64),
        "model__layers__0__mlp__up_scale": ("F32", 96, 1),
    },
}  # fmt: skip


@pytest.mark.parametrize("kind", CODES)
def test_codes_are_told_without_a_configuration(kind):
    found = packed(tensors(**PLAIN, **CODES[kind]))
    assert len(found) >= 1 and all(".0.mlp." in name for name in found)
    assert why(found).startswith("quantised weights: 'model.layers.0.mlp.")


WEIGHTS = {
    "positions with a table beside them": {
        "model__layers__0__bias__relative_position_index": ("I64", 96, 96),
        "model__layers__0__bias__relative_position_bias_table": ("F32", 732, 12),
    },
    "floats": linear("up", weight=("F16", 96, 64), bias=("F16", 96)),
    "a plain cast": linear("up", weight=("F8_E4M3", 96, 64), bias=("BF16", 96)),
    "a plain cast of norms": linear("norm", weight=("F8_E4M3", 96), bias=("BF16", 96), gain=("F32",)),
    "positions": {"model__embeddings__position_ids": ("I64", 1, 512)},
    "a mask beside its constant": {
        "h__0__attn__bias": ("U8", 1, 1, 1024, 1024),
        "h__0__attn__masked_bias": ("F32",),
        "h__0__attn__c_attn__weight": ("F32", 64, 192),
    },
    "windows": {
        "layers__0__attn__relative_position_index": ("I64", 49, 49),
        "layers__0__attn__relative_position_bias_table": ("F32", 169, 3),
    },
    "a table beside a router": {
        "layers__0__gate__weight": ("BF16", 8, 64),
        "layers__0__gate__expert_of_token": ("I32", 512, 6),
    },
    "counters": linear("norm", weight=("F32", 64), num_batches_tracked=("I64",), running_mean=("F32", 64)),
    "a generator's state": {"rng_state": ("U8", 5056), "step": ("I64",)},
    "stacked halves of a cast": {
        "model__layers__0__mlp__experts__up_proj": ("F8_E4M3", 4, 64, 96),
        "model__layers__0__mlp__experts__up_proj_bias": ("BF16", 4, 96),
    },
}


@pytest.mark.parametrize("kind", WEIGHTS)
def test_weights_and_buffers_are_no_codes(kind):
    assert packed(tensors(**PLAIN, **WEIGHTS[kind])) == {}


@pytest.mark.parametrize(
    "config",
    [
        {"quantization_config": {"quant_method": "mine"}},
        {"quantization": {"bits": 4}},
        {"text_config": {"quantization_config": {}}},
    ],
)
def test_a_configuration_that_says_so_makes_every_integer_matrix_codes(config):
    matrix = tensors(**PLAIN, odd=("I8", 96, 64), odd_ids=("I64", 96, 64), vector=("I8", 96))
    assert packed(matrix) == {}
    assert list(packed(matrix, config)) == ["odd"]


def test_most_of_a_file_cannot_be_buffers():
    small = {"a__w": ("I16", 64, 64), "b__weight": ("F32", 64, 64)}
    assert packed(tensors(**small)) == {}
    assert list(packed(tensors(**small, c__w=("I16", 128, 64)))) == ["a.w", "c.w"]


def test_what_is_narrower_than_a_byte_is_codes_where_scales_lie_beside_it():
    plain = tensors(**PLAIN, **linear("up", weight_scale=("F8_E4M3", 96, 4)))
    assert list(packed(plain, unread=["model.layers.0.mlp.up.weight", "other.weight"])) == [
        "model.layers.0.mlp.up.weight"
    ]


def test_thousands_of_modules_are_told_in_one_go():
    many = {}
    for i in range(3000):
        many |= {f"experts__{i}__qweight": ("I32", 8, 96), f"experts__{i}__scales": ("F16", 2, 96)}
    assert len(packed(tensors(**many))) == 3000
