"""Families of a base and fine-tunes as sums: drawn with numpy, rounded by torch, summed in float64, without a file."""

import families
import numpy as np
import torch

from kinbase.provenance.recipes.least_squares import BITS, Grams
from kinbase.provenance.recipes.verdict import judge

LAYERS = 5
PARTS = {"self_attn.q_proj": 6000, "mlp.up_proj": 9000, "input_layernorm": 64}
NAMES = [f"model.layers.{i}.{part}.weight" for i in range(LAYERS) for part in PARTS]
NUMELS = [n for _ in range(LAYERS) for n in PARTS.values()]


def stored(values, dtype):
    return torch.from_numpy(np.asarray(values)).to(families.TORCH_DTYPES[dtype]).double().numpy()


class Family:
    """A base and fine-tunes of it: `size` is the deltas' length over the weights'."""

    def __init__(self, dtype="BF16", size=0.02, count=8, seed=0):
        self.rng = np.random.default_rng(seed)
        self.dtype = dtype
        self.base = [
            stored(
                (1.0 if n == 64 else 0.0) + (0.05 if n == 64 else 0.02) * self.rng.standard_normal(n), dtype
            )
            for n in NUMELS
        ]
        self.scale = [size * b.std() * 2 ** self.rng.uniform(-0.5, 0.5) for b in self.base]
        self.shared = [self.rng.standard_normal(n) for n in NUMELS]
        self.models = [self.rounded(self.tune(0.3 * (i % 2))) for i in range(count)]

    def tune(self, shared=0.0, start=None, amount=1.0):
        return [
            b + amount * 2 ** self.rng.uniform(-0.3, 0.3) * s
            * (np.sqrt(shared) * d + np.sqrt(1 - shared) * self.rng.standard_normal(len(b)))
            for b, s, d in zip(start or self.base, self.scale, self.shared, strict=True)
        ]  # fmt: skip

    def rounded(self, weights):
        return [stored(w, self.dtype) for w in weights]

    def mix(self, shares):
        """base + sum of shares of deltas, rounded once."""
        return self.rounded(
            [b + sum(a * (self.models[i][t] - b) for i, a in shares.items()) for t, b in enumerate(self.base)]
        )

    def grams(self, child, models=None, dtype=None):
        models = self.models if models is None else models
        dtype = dtype or self.dtype
        columns = [np.array([*(m[t] - b for m in models), b]) for t, b in enumerate(self.base)]
        delta = [c - b for c, b in zip(child, self.base, strict=True)]
        units = [np.ldexp(1.0, np.frexp(c)[1] - BITS[dtype]) for c in child]
        sums = Grams(
            [str(i) for i in range(len(models))], NAMES, np.array(NUMELS, float),
            np.array([c @ c.T for c in columns]),
            np.array([c @ d for c, d in zip(columns, delta, strict=True)]),
            np.array([d @ d for d in delta]), np.array([(u**2).sum() / 12 for u in units]), True,
            [self.dtype] * (len(models) + 1) + [dtype], np.array([b.mean() for b in self.base]),
        )  # fmt: skip
        zeros = np.array(
            [[*(c[:-1] == 0).mean(axis=1), (d == 0).mean()] for c, d in zip(columns, delta, strict=True)]
        )
        return sums, zeros

    def judge(self, child, models=None, dtype=None):
        return judge(*self.grams(child, models, dtype))
