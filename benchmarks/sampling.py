"""Does the interval of sampled kinship hold? Seeds and pairs of a synthetic bf16 family, against exact sums.

    python benchmarks/sampling.py [--layers 24] [--seeds 40] [--keep FOLDER]

The family is shaped like a model of half a billion parameters: delta scales differ 13 times from tensor to tensor,
and by half a natural logarithm from row to row and a third from column to column (standard deviations), how alike
two fine-tunes are differs from tensor to tensor, and bfloat16 rounding swallows a part of every delta. The
exact values are float64 sums over the stored numbers, taken while the family is written. Coverage is the share of
(seed, pair) whose interval, estimate +- 1.96 stderr, holds the exact pcc.
"""

import argparse
import json
import tempfile
import time
from itertools import combinations
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file

from kinbase.checkpoint import Checkpoint
from kinbase.importers import folder
from kinbase.kinship import sampling

HIDDEN, INNER, VOCAB, KV = 896, 4864, 151_936, 128
MEMBERS = ("ft_a", "ft_b", "ft_a2", "lora", "linear")


def shapes(layers: int) -> dict[str, tuple[int, ...]]:
    """{name: shape} of a Qwen2-like model with a tied head."""
    found = {"model.embed_tokens.weight": (VOCAB, HIDDEN), "model.norm.weight": (HIDDEN,)}
    for layer in range(layers):
        for name, shape in {
            "self_attn.q_proj": (HIDDEN, HIDDEN), "self_attn.k_proj": (KV, HIDDEN), "self_attn.v_proj": (KV, HIDDEN),
            "self_attn.o_proj": (HIDDEN, HIDDEN), "mlp.gate_proj": (INNER, HIDDEN), "mlp.up_proj": (INNER, HIDDEN),
            "mlp.down_proj": (HIDDEN, INNER), "input_layernorm": (HIDDEN,),
        }.items():  # fmt: skip
            found[f"model.layers.{layer}.{name}.weight"] = shape
    return found


def make(target: Path, layers: int, seed: int = 0) -> dict[tuple[str, str], float]:
    """Write the family; {(a, b): exact pcc}."""
    generator = torch.Generator().manual_seed(seed)
    parts = {name: {} for name in ("base", *MEMBERS)}
    n = 0
    sums = dict.fromkeys(MEMBERS, 0.0)
    products = dict.fromkeys([(a, a) for a in MEMBERS] + list(combinations(MEMBERS, 2)), 0.0)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator)

    for name, shape in shapes(layers).items():
        base = ((1.0 if "norm" in name else 0.0) + 0.02 * normal(*shape)).bfloat16()
        scale = 2e-4 * 13 ** float(torch.rand((), generator=generator))
        if len(shape) == 2:
            rows, columns = torch.exp(0.5 * normal(shape[0])), torch.exp(0.33 * normal(shape[1]))
            spread = scale * rows[:, None] * columns[None, :]
        else:
            spread = torch.full(shape, scale)
        a, b, alike = normal(*shape), normal(*shape), 0.6 * float(torch.rand((), generator=generator)) - 0.2
        deltas = {"ft_a": spread * a, "ft_b": spread * (alike * a + (1 - alike**2) ** 0.5 * b)}
        deltas["ft_a2"] = deltas["ft_a"] + 0.7 * spread * normal(*shape)
        if "_proj" in name:
            deltas["lora"] = scale * normal(shape[0], 16) @ normal(16, shape[1]) / 4
        else:
            deltas["lora"] = torch.zeros(shape)
        stored = {m: (base.float() + d).bfloat16() for m, d in deltas.items()}
        stored["linear"] = (0.6 * stored["ft_a"].float() + 0.4 * stored["ft_b"].float()).bfloat16()
        exact = {m: (stored[m].float() - base.float()).double().reshape(-1) for m in MEMBERS}
        n += base.numel()
        for m, d in exact.items():
            sums[m] += float(d.sum())
        for x, y in products:
            products[x, y] += float(exact[x] @ exact[y])
        parts["base"][name] = base
        for m in MEMBERS:
            parts[m][name] = stored[m]
    for model, tensors in parts.items():
        (target / model).mkdir(parents=True)
        save_file(tensors, target / model / "model.safetensors")
        (target / model / "config.json").write_text(json.dumps({"tie_word_embeddings": True}))

    def pearson(x: str, y: str) -> float:
        var = [products[m, m] - sums[m] ** 2 / n for m in (x, y)]
        return (products[x, y] - sums[x] * sums[y] / n) / np.sqrt(var[0] * var[1])

    return {pair: float(pearson(*pair)) for pair in combinations(MEMBERS, 2)}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--layers", type=int, default=24)
    parser.add_argument("--seeds", type=int, default=40)
    parser.add_argument("--keep", type=Path, help="make the family there once, and use it again")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as temporary:
        target = arguments.keep or Path(temporary)
        truth = target / "truth.json"
        if not truth.exists():
            exact = make(target, arguments.layers)
            truth.write_text(json.dumps([[*pair, value] for pair, value in exact.items()]))
        exact = {(a, b): value for a, b, value in json.loads(truth.read_text())}
        opened = {m: folder.checkpoint(str(target / m)) for m in ("base", *MEMBERS)}
        size = opened["base"].nbytes
        print(f"{size / 1e9:.2f} GB a model, {len(exact)} pairs, {arguments.seeds} seeds; pcc of each pair:")
        print("  " + ", ".join(f"{a} x {b} {value:.3f}" for (a, b), value in exact.items()))
        print(f"{'share':>6} {'runs':>6} {'bytes a run':>11} {'MB read':>8} {'rms error':>10} {'largest':>8}"
              f" {'half-width':>10} {'widest':>7} {'coverage':>8} {'stated':>7} {'s':>6}")  # fmt: skip
        for share in (0.001, 0.003, 0.01):
            report(share, arguments.seeds, opened, exact)


def report(
    share: float, seeds: int, opened: dict[str, Checkpoint], exact: dict[tuple[str, str], float]
) -> None:
    errors, halves, stated = [], [], 0
    started = time.perf_counter()
    for seed in range(seeds):
        found = sampling.estimate(opened["base"], [opened[m] for m in MEMBERS], share, seed=seed)
        stated += len(found.estimates)
        for e in found.estimates:
            errors.append(e.pcc - exact[MEMBERS[e.i], MEMBERS[e.j]])
            halves.append(1.96 * e.stderr)
    seconds = (time.perf_counter() - started) / seeds
    errors, halves = np.array(errors), np.array(halves)
    print(
        f"{share:6.1%} {found.runs:6} {found.run_bytes:11} {found.nbytes / 1e6:8.1f} {np.sqrt(np.mean(errors**2)):10.4f}"
        f" {np.abs(errors).max():8.4f} {np.median(halves):10.4f} {halves.max():7.4f}"
        f" {np.mean(np.abs(errors) <= halves):8.3f} {stated / (seeds * len(exact)):7.1%} {seconds:6.2f}"
    )


if __name__ == "__main__":
    main()
