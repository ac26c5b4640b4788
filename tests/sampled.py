"""A base and two models whose tensors differ in scale, row by row and tensor by tensor, as real ones do."""

import math

import torch

SHAPES = {"model.embed_tokens.weight": (1500, 128), "model.norm.weight": (128,)} | {
    f"model.layers.{i}.{name}.weight": shape
    for i in range(4)
    for name, shape in {"self_attn.q_proj": (128, 128), "mlp.up_proj": (512, 128), "mlp.down_proj": (128, 512),
                        "input_layernorm": (128,)}.items()
}  # fmt: skip
"""786,000 elements; 1.6 MB in bfloat16, 1,500 runs of a kilobyte."""


def normal(generator, shape):
    return torch.randn(shape, generator=generator)


def weights(seed=0):
    """{model: {tensor: bfloat16}} of a base, a and b (correlated differently in each tensor), and the exact deltas.

    Scales differ ten times from tensor to tensor, and a few times from row to row.
    """
    generator = torch.Generator().manual_seed(seed)
    made = {"base": {}, "a": {}, "b": {}}
    for name, shape in SHAPES.items():
        base = 0.02 * normal(generator, shape)
        scale = 1e-3 * 10 ** torch.rand((), generator=generator)
        if len(shape) == 2:
            scale = scale * torch.exp(0.5 * normal(generator, (shape[0], 1)))
        shared = float(torch.rand((), generator=generator))
        a, b = normal(generator, shape), normal(generator, shape)
        made["base"][name] = base.bfloat16()
        made["a"][name] = (base.bfloat16() + scale * a).bfloat16()
        made["b"][name] = (base.bfloat16() + scale * (shared * a + math.sqrt(1 - shared**2) * b)).bfloat16()
    return made
