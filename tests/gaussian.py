"""Families of normal weights in memory, a pass over them, and their sums by definition in float64."""

import itertools

import families
import torch

from kinbase.checkpoint import Checkpoint, Tensor
from kinbase.kinship.stream import Plan, run

CODES = {dtype: code for code, dtype in families.TORCH_DTYPES.items()} | {
    torch.int64: "I64",
    torch.bool: "BOOL",
}
TOLERANCE = 1e-9


def checkpoint(tensors, name="model", delta_of=None):
    """A Checkpoint in memory of {name: torch.Tensor}."""

    def reader(data):
        def read(start, out):
            assert start + len(out) <= len(data)
            out[:] = data[start : start + len(out)]

        return read

    return Checkpoint(
        name,
        "memory",
        [
            Tensor(
                key,
                CODES[t.dtype],
                tuple(t.shape),
                reader(t.contiguous().flatten().view(torch.uint8).numpy().tobytes()),
            )
            for key, t in tensors.items()
        ],
        delta_of=delta_of,
    )


def gaussian_family(shapes, count, dtypes=("BF16",), seed=0, scale=2e-3, mean=0.0):
    """A base and `count` members {name: torch.Tensor}; dtypes are dealt out in turn, the base first."""
    g = torch.Generator().manual_seed(seed)
    deal = itertools.cycle(families.TORCH_DTYPES[d] for d in dtypes)
    base = {
        name: 0.02 * torch.randn(shape, generator=g, dtype=torch.float64) for name, shape in shapes.items()
    }
    shared = {name: torch.randn(shape, generator=g, dtype=torch.float64) for name, shape in shapes.items()}
    stored = {name: t.to(dtype) for dtype in [next(deal)] for name, t in base.items()}
    members = []
    for _ in range(count):
        dtype = next(deal)
        members.append(
            {
                name: (base[name] + scale * (mean + 0.5 * shared[name] + torch.randn(shape, generator=g))).to(
                    dtype
                )
                for name, shape in shapes.items()
            }
        )
    return stored, members


def passed(base, members, **options):
    plan = Plan(checkpoint(base), [checkpoint(m) for m in members])
    return list(run(plan, **options))


ARRAYS = ("numel", "sum", "sumsq", "max_abs", "zeros", "nonfinite", "dot", "exceptions")


def bits(results):
    """Everything a run gives, comparable to the bit."""
    return [
        (r.position, r.name, r.digests, *(getattr(r, field).tobytes() for field in ARRAYS)) for r in results
    ]


def vocabulary_family():
    """Tensors of several pieces, some small, one cut short, one outside the base, one of integers."""
    base, members = gaussian_family(
        {"e": (1500, 1001), "n": (17,), "w": (800, 801), "m": (5,)}, 4, ("BF16", "F32")
    )
    members[1]["e"] = members[1]["e"][:1400].clone()
    members[2]["extra"] = torch.ones(300_001)
    members[2]["steps"] = torch.arange(7)
    return checkpoint(base, "base"), [checkpoint(m, f"m{i}") for i, m in enumerate(members)]
