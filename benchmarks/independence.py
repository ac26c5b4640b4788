"""p-values of models that are not related: `python benchmarks/independence.py [--models N] [--steps N] [--folder DIR]`.

Models of one architecture are trained from scratch, each from its own seed on the same exercises, and every two are
tested (kinbase.matching.match.independence). Their p-values should be uniform: the share below each level is printed beside
the level, with the Kolmogorov-Smirnov test against the uniform distribution. Beside them stand fine-tunes, and
fine-tunes whose MLP units and channels were permuted.
"""

import argparse
import tempfile
import time
from itertools import combinations
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from scipy import stats

from kinbase.checkpoint.open import read
from kinbase.demo.model import TASKS, Config, Transformer, load, save, train
from kinbase.kinship.sketch import compare
from kinbase.matching.architecture import Architecture, architecture, config_of
from kinbase.matching.match import independence
from kinbase.provenance.identity.look import look, vectors, without

CONFIG = Config(hidden_size=48, intermediate_size=128, layers=3, heads=4)
LEVELS = (0.1, 0.05, 0.01, 0.001)


def opened(folder: Path) -> Architecture:
    checkpoint = read(str(folder)).checkpoint
    assert checkpoint is not None
    return architecture(checkpoint.tensors, config_of(checkpoint), folder.name)


def permuted(folder: Path, out: Path, seed: int) -> Path:
    """A copy with its MLP units and channels in another order."""
    generator = torch.Generator().manual_seed(seed)
    tensors = load_file(folder / "model.safetensors")
    channels = torch.randperm(CONFIG.hidden_size, generator=generator)
    for layer in range(CONFIG.layers):
        units = torch.randperm(CONFIG.intermediate_size, generator=generator)
        part = f"model.layers.{layer}.mlp."
        for name in ("gate_proj", "up_proj"):
            tensors[f"{part}{name}.weight"] = tensors[f"{part}{name}.weight"][units]
        tensors[f"{part}down_proj.weight"] = tensors[f"{part}down_proj.weight"][:, units]
    for name, weight in tensors.items():
        is_out = weight.ndim == 1 or name.endswith(("o_proj.weight", "down_proj.weight"))
        tensors[name] = (weight[channels] if is_out else weight[:, channels]).contiguous()
    out.mkdir(parents=True)
    save_file(tensors, out / "model.safetensors")
    (out / "config.json").write_text((folder / "config.json").read_text())
    return out


def _sketched(place: Path, models: int) -> None:
    """The cosines of the weights of independent models as sketches tell them, with and without the means of vectors."""
    looks, common = [], None
    for seed in range(models):
        checkpoint = read(str(place / f"model-{seed}")).checkpoint
        assert checkpoint is not None
        looks.append(look(checkpoint, lambda done, total: None).sums)
        common = vectors(checkpoint.tensors) if common is None else common
    for words, sums in (("whole", looks), ("less the means of vectors", [without(s, common) for s in looks])):
        cosines = np.concatenate([compare(sums[i], np.stack(sums[i + 1 :]))[0] for i in range(models - 1)])
        print(f"  cosine of the weights by sketches, {words}: {cosines.min():.3f} to {cosines.max():.3f}")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--models", type=int, default=33, help="trained from scratch; 33 make 528 pairs")
    parser.add_argument("--steps", type=int, default=300, help="of training; a fine-tune takes a quarter")
    parser.add_argument("--folder", type=Path, default=None, help="keeps the models")
    options = parser.parse_args()
    place = options.folder or Path(tempfile.mkdtemp())
    mix = dict.fromkeys(TASKS, 1.0)
    for seed in range(options.models):
        if not (place / f"model-{seed}").exists():
            model = Transformer(CONFIG, seed)
            train(model, mix, options.steps, 3e-3, seed)
            save(model, place / f"model-{seed}")
    models = [opened(place / f"model-{seed}") for seed in range(options.models)]
    started = time.perf_counter()
    values = [independence(a, b).p for a, b in combinations(models, 2)]
    each = (time.perf_counter() - started) / len(values)
    print(f"{len(values)} pairs of {len(models)} models trained independently, {each:.3f} s a pair")
    for level in LEVELS:
        print(f"  p < {level:<6} {sum(p < level for p in values) / len(values):.4f} of them")
    print(
        f"  smallest p {min(values):.5f}; Kolmogorov-Smirnov against uniform: p = {stats.kstest(values, 'uniform').pvalue:.3f}"
    )
    _sketched(place, options.models)
    worst = {"fine-tune": 0.0, "permuted fine-tune": 0.0}
    for seed in range(min(options.models, 8)):
        tuned = place / f"tuned-{seed}"
        if not tuned.exists():
            model = load(place / f"model-{seed}")
            train(model, {next(iter(TASKS)): 1.0}, options.steps // 4, 1e-3, 1000 + seed)
            save(model, tuned)
            permuted(tuned, place / f"permuted-{seed}", seed)
        for kind, folder in (("fine-tune", tuned), ("permuted fine-tune", place / f"permuted-{seed}")):
            worst[kind] = max(worst[kind], independence(models[seed], opened(folder)).p)
    for kind, p in worst.items():
        print(f"{kind}: largest p of {min(options.models, 8)} is {p:.1e}")


if __name__ == "__main__":
    main()
