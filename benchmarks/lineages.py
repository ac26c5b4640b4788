"""Families of real fine-tunes whose history is known, for benchmarks/inferring.py: the demo's model, trained here.

A family is a base trained from scratch, three to five fine-tunes of it on different exercises and a twin of the
first, their children and grandchildren, four merges (one of a merge), fine-tunes of two merges, and two rounded
copies: 18 to 22 models of 84,288 parameters in bf16. Fine-tunes are full, low-rank folded into the weights, or of
attention or MLP alone, with learning rates from 3e-4 to 2e-3 and 30 to 120 steps. The same seed gives the same family.
"""

import json
import random
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from kinbase.demo.model import TASKS, Config, LoraLinear, Transformer, add_lora, train

CONFIG = Config(hidden_size=64, intermediate_size=128, layers=2)
LINEAR = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")

Weights = dict[str, Tensor]
Edge = tuple[str, str, str]


class Lineage:
    """A family while it grows: weights by name, and edges of parent, child and relation."""

    def __init__(self, seed: int) -> None:
        self.rng = random.Random(seed)
        self.models: dict[str, Weights] = {}
        self.mixes: dict[str, dict[str, float]] = {}
        self.edges: list[Edge] = []

    def add(self, name: str, weights: Weights, relation: str, *parents: str) -> None:
        self.models[name] = weights
        self.edges += [(parent, name, relation) for parent in parents]

    def tune(self, name: str, parent: str, way: str = "full", mix: dict[str, float] | None = None) -> None:
        """Train a child on one task and a little of the others."""
        rng = self.rng
        model = Transformer(CONFIG)
        model.load_state_dict({n: w.float() for n, w in self.models[parent].items()})
        seed = rng.randrange(1 << 30)
        task = rng.choice(list(TASKS))
        self.mixes[name] = mix or {t: 0.9 if t == task else 0.1 / 4 for t in TASKS}
        lr, steps = rng.choice((3e-4, 6e-4, 1e-3, 2e-3)), rng.choice((30, 50, 80, 120))
        if way == "lora":
            add_lora(model, LINEAR, 4, 8, seed)
            lr *= 4
        elif way == "frozen":
            part = rng.choice(("self_attn", "mlp"))
            for tensor, weight in model.named_parameters():
                weight.requires_grad_(part in tensor)
        train(model, self.mixes[name], steps, lr, seed)
        for module in model.modules():
            if isinstance(module, LoraLinear):
                with torch.no_grad():
                    module.base_layer.weight += module.scaling * module.lora_B.weight @ module.lora_A.weight
        state = {n.replace(".base_layer", ""): w for n, w in model.state_dict().items() if ".lora_" not in n}
        self.add(name, stored(state), "finetune", parent)


def stored(weights: Weights, dtype: torch.dtype = torch.bfloat16) -> Weights:
    return {name: weight.detach().to(dtype).contiguous() for name, weight in weights.items()}


def grow(seed: int) -> Lineage:
    """Train and merge one family."""
    family = Lineage(seed)
    rng, models = family.rng, family.models
    torch.set_num_threads(1)
    base = Transformer(CONFIG, seed)
    train(base, dict.fromkeys(TASKS, 1.0), rng.choice((120, 200, 300)), 3e-3, seed)
    models["base"] = stored(base.state_dict())
    for i in range(rng.choice((3, 4, 5))):
        family.tune(f"a{i}", "base", ("full", "lora", "full", "frozen", "full")[i])
    family.tune("twin", "base", "full", family.mixes["a0"])
    firsts = [m for m in models if m != "base"]
    for i, parent in enumerate(rng.sample(firsts, 3)):
        for j in range(rng.choice((1, 2))):
            family.tune(f"b{i}{j}", parent, rng.choice(("full", "full", "lora", "frozen")))
    seconds = [m for m in models if m.startswith("b") and m != "base"]
    for i, parent in enumerate(rng.sample(seconds, 2)):
        family.tune(f"c{i}", parent, rng.choice(("full", "lora", "frozen")))
    pool = [m for m in models if m != "base"]
    x, y = rng.sample(pool, 2)
    family.add("linear", linear(models[x], models[y], rng.choice((0.3, 0.4, 0.5))), "merge", x, y)
    x, y = rng.sample(pool, 2)
    family.add("slerp", slerp(models[x], models[y], rng.choice((0.3, 0.5))), "merge", x, y)
    x, y = rng.sample(firsts, 2)
    scales = rng.choice((0.5, 0.8, 1.0)), rng.choice((0.5, 0.8, 1.0))
    family.add("arith", task_arithmetic(models["base"], (models[x], models[y]), scales), "merge", x, y)
    x = rng.choice(pool)
    family.add("merge2", linear(models["linear"], models[x], 0.5), "merge", "linear", x)
    family.tune("d0", rng.choice(("linear", "slerp", "arith")))
    family.tune("d1", "merge2")
    x = rng.choice(pool)
    family.add("q8", stored(models[x], torch.float8_e4m3fn), "quantized", x)
    x = rng.choice(list(models)[:-1])
    family.add("half", stored(models[x], torch.float16), "quantized", x)
    return family


# Merges as mergekit does them: in float32, rounded once.


def linear(first: Weights, second: Weights, t: float) -> Weights:
    return stored({n: (1 - t) * first[n].float() + t * second[n].float() for n in first})


def slerp(first: Weights, second: Weights, t: float) -> Weights:
    child = {}
    for name in first:
        a, b = first[name].float(), second[name].float()
        cosine = (a / a.norm() * (b / b.norm())).sum()
        if cosine.abs() > 0.9995:
            child[name] = (1 - t) * a + t * b
        else:
            angle = cosine.acos()
            child[name] = (torch.sin((1 - t) * angle) * a + torch.sin(t * angle) * b) / angle.sin()
    return stored(child)


def task_arithmetic(base: Weights, tuned: tuple[Weights, ...], scales: tuple[float, ...]) -> Weights:
    child = {}
    for name, start in base.items():
        child[name] = start.float() + sum(
            s * (w[name].float() - start.float()) for s, w in zip(scales, tuned, strict=True)
        )
    return stored(child)


# On disk, under names that tell nothing.


def family(folder: Path, seed: int) -> tuple[list[Path], list[Edge]]:
    """The model folders of one family, in an order that tells nothing, and its edges; made where they are not there."""
    place = folder / str(seed)
    truth = place / "truth.json"
    if not truth.exists():
        grown = grow(seed)
        numbers = list(range(len(grown.models)))
        random.Random(f"names {seed}").shuffle(numbers)
        named = {name: f"{seed}-{number:02d}" for name, number in zip(grown.models, numbers, strict=True)}
        for name, weights in grown.models.items():
            (place / named[name]).mkdir(parents=True, exist_ok=True)
            save_file(weights, place / named[name] / "model.safetensors")
        edges = [(named[p], named[c], relation) for p, c, relation in grown.edges]
        truth.write_text(json.dumps({"edges": edges, "names": named}))
    edges = [tuple(edge) for edge in json.loads(truth.read_text())["edges"]]
    return sorted(path for path in place.iterdir() if path.is_dir()), edges
