"""Small merges: their configuration, their parents and their result as float64 arrays."""

import torch
from safetensors.torch import load_file

from kinbase import merging
from kinbase.checkpoint import Tensor
from kinbase.merging import methods
from kinbase.merging.methods import Stretch
from kinbase.merging.plan import Target


def merged(config, out, **options):
    """Run one merge and read its tensors."""
    merging.merge(merging.parse(config), out, **options)
    return weights(out)


def weights(folder):
    return {name: t for file in sorted(folder.glob("*.safetensors")) for name, t in load_file(file).items()}


def models(family, **weighted):
    """`models` of a configuration: ft_a=0.6, or ft_a=dict(weight=0.6, density=0.5)."""
    return [
        {"model": str(family[name]), "parameters": given if isinstance(given, dict) else {"weight": given}}
        for name, given in weighted.items()
    ]


def delta_config(family, method, density=0.5, **more):
    wanted = {"weight": 0.7, "density": density}, {"weight": 0.4, "density": density}
    return {
        "merge_method": method,
        "base_model": str(family["base"]),
        "models": models(family, ft_a=wanted[0], ft_b=wanted[1]),
        **more,
    }


class Bare:
    """A look at tensors in memory, in stretches of a few elements."""

    def __init__(self, tensors, shared, own, step=3, seed=0):
        dtype = {v: k for k, v in methods.DTYPES.items()}[tensors[0].dtype]
        inputs = tuple(Tensor("w", dtype, tuple(t.shape), lambda start, out: None) for t in tensors)
        self.target = Target(
            "w", tuple(tensors[0].shape), inputs, ("base",) * len(inputs), shared, own, dtype, dtype
        )
        self.seed, self.tensors = seed, tensors
        numel = tensors[0].numel()
        self.stretches = [Stretch(i, s, min(s + step, numel)) for i, s in enumerate(range(0, numel, step))]

    def load(self, stretch):
        return [tensor[stretch.start : stretch.stop].clone() for tensor in self.tensors]

    def over(self, seen):
        return iter([seen(stretch) for stretch in self.stretches])

    def result(self, method, **options):
        whole = method(self, **options)
        return torch.cat([whole(stretch) for stretch in self.stretches])


NORM = "model.norm.weight"
