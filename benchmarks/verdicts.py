"""Verdicts in random families as they grow: right parents, false accusations, intervals.

    python benchmarks/verdicts.py [--families 40] [--seed 0]

Each family has a base, fine-tunes (some sharing a direction, some of another fine-tune, some of low rank), and what people
make of them: linear and task-arithmetic merges, merges of merges, SLERP by depth, TIES, DARE, casts. A fifth of the
models is then missing. All are rounded to bfloat16, float16 or float32. The judgement is that of `kinbase recipe`, `check` and
`infer`; it sees distances, lengths and shares of untouched elements, and no words. Truth:

- a merge whose parents are all here, or whose missing parents are told by others, is decided or not; decided, its parents are
  right or wrong;
- a fine-tune that is called a merge or a copy is falsely accused;
- a coefficient that was mixed lies in its interval or not.
"""

import argparse
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from kinbase.provenance.phylogeny.distances import Points
from kinbase.provenance.phylogeny.merges import find_copies, judged
from kinbase.provenance.recipes import verdict as verdicts
from kinbase.provenance.recipes.by_depth import slerp_coefficients
from kinbase.provenance.recipes.elements import Elements
from kinbase.provenance.recipes.least_squares import BITS
from kinbase.provenance.recipes.rounding import spacing, to_dtype

LAYERS = 4
PARTS = {
    "self_attn.q_proj": (48, 64),
    "self_attn.o_proj": (64, 48),
    "mlp.up_proj": (96, 64),
    "input_layernorm": (64,),
}
SHAPES = {
    "model.embed_tokens.weight": (120, 64),
    **{f"model.layers.{i}.{part}.weight": shape for i in range(LAYERS) for part, shape in PARTS.items()},
}
MERGES = (*verdicts.MERGES, verdicts.SELECTED)
BF16_FAMILIES = 0.6
SMALL_COEFFICIENT = 0.02


@dataclass
class Model:
    """A model's weights by tensor, what it was made of ({parent: coefficient}, or None), and how."""

    weights: list[np.ndarray]
    kind: str
    parents: dict[str, float] | None = None
    depth: bool = False


@dataclass
class Family:
    """A random family in one dtype; `models` by name, the base first."""

    rng: np.random.Generator
    dtype: str
    size: float
    models: dict[str, Model] = field(default_factory=dict)
    has_files: bool = True

    def rounded(self, weights: list[np.ndarray]) -> list[np.ndarray]:
        """Weights as stored."""
        return [to_dtype(w, self.dtype) for w in weights]

    def base(self) -> None:
        """Weights like a trained model's: matrices about 0, scales of norms about 1."""
        drawn = [self.rng.standard_normal(shape) for shape in SHAPES.values()]
        self.models["base"] = Model(
            self.rounded([0.02 * w if w.ndim == 2 else 1 + 0.05 * w for w in drawn]), "base"
        )
        self.shared = [self.rng.standard_normal(shape) for shape in SHAPES.values()]
        self.scales = [self.size * 2 ** self.rng.uniform(-0.5, 0.5) for _ in SHAPES]

    def tune(self, name: str, start: str = "base") -> None:
        """A fine-tune: as long in each tensor as others more or less, in part along the shared direction, or of rank 4."""
        mix, rank = self.rng.choice([0.0, 0.3, 0.7]), self.rng.random() < 0.15
        weights = []
        for w, s, scale in zip(self.models[start].weights, self.shared, self.scales, strict=True):
            own = self.rng.standard_normal(w.shape)
            if rank and w.ndim == 2:
                own = (
                    self.rng.standard_normal((w.shape[0], 4)) @ self.rng.standard_normal((4, w.shape[1])) / 2
                )
            step = mix * s + np.sqrt(1 - mix**2) * own
            weights.append(w + scale * w.std() * 2 ** self.rng.uniform(-0.3, 0.3) * step)
        self.models[name] = Model(self.rounded(weights), "fine-tune", {start: 1.0})

    def mix(self, name: str, shares: dict[str, float], kind: str) -> None:
        """base + sum of shares of deltas, rounded once."""
        base = self.models["base"].weights
        weights = [
            b + sum(a * (self.models[p].weights[t] - b) for p, a in shares.items())
            for t, b in enumerate(base)
        ]
        self.models[name] = Model(self.rounded(weights), kind, shares)

    def slerp(self, name: str, a: str, b: str) -> None:
        """SLERP with another t for attention, mlp and the rest by depth."""
        ends = self.rng.choice([[0.0, 1.0], [0.2, 0.8], [0.5, 0.5]])
        weights, ts = [], []
        for t, tensor in enumerate(SHAPES):
            x, y = self.models[a].weights[t], self.models[b].weights[t]
            at = int(tensor.split(".")[2]) / (LAYERS - 1) if "layers" in tensor else 0.0
            share = 0.5
            if "self_attn" in tensor:
                share = ends[0] + (ends[1] - ends[0]) * at
            elif "mlp" in tensor:
                share = ends[1] + (ends[0] - ends[1]) * at
            cosine = float((x * y).sum() / np.sqrt((x**2).sum() * (y**2).sum()))
            angle = 0.0 if abs(cosine) > 0.9995 else np.arccos(np.clip(cosine, -1, 1))
            first, second, _ = slerp_coefficients(np.array([share]), np.array([angle]))[0]
            weights.append(first * x + second * y)
            ts.append(share)
        self.models[name] = Model(self.rounded(weights), "slerp", {a: 0.5, b: 0.5}, depth=True)

    def select(self, name: str, parents: list[str], method: str) -> None:
        """TIES (largest half of each, elected signs) or DARE (half dropped, the rest doubled)."""
        base = self.models["base"].weights
        weights = []
        for t, b in enumerate(base):
            deltas = [self.models[p].weights[t] - b for p in parents]
            if method == "dare":
                kept = [d * (self.rng.random(d.shape) < 0.5) * 2 for d in deltas]
                weights.append(b + sum(kept) / len(parents))
                continue
            kept = [d * (np.abs(d) >= np.median(np.abs(d))) for d in deltas]
            sign = np.sign(sum(kept))
            agree = [d * (np.sign(d) == sign) for d in kept]
            count = np.maximum(sum((np.sign(d) == sign) & (d != 0) for d in kept), 1)
            weights.append(b + sum(agree) / count)
        self.models[name] = Model(self.rounded(weights), method, dict.fromkeys(parents, 1.0))


def grown(seed: int) -> tuple[Family, set[str]]:
    """A random family, and the names of those of its models that are missing."""
    rng = np.random.default_rng(seed)
    dtype = str(rng.choice(["BF16", "F16", "F32"], p=[BF16_FAMILIES, 0.2, 0.2]))
    family = Family(rng, dtype, float(rng.choice([0.01, 0.03, 0.1])))
    family.base()
    for i in range(int(rng.integers(3, 9))):
        family.tune(f"t{i}")
    for i in range(int(rng.integers(0, 3))):
        family.tune(f"c{i}", str(rng.choice([n for n in family.models if n != "base"])))
    for i in range(int(rng.integers(1, 16))):
        pool = [n for n in family.models if n != "base"]
        count = int(rng.choice([2, 2, 2, 3, 4]))
        parents = [str(p) for p in rng.choice(pool, min(count, len(pool)), replace=False)]
        kind = rng.choice(["linear", "linear", "task", "slerp", "ties", "dare"])
        if kind == "linear":
            shares = rng.dirichlet(np.full(len(parents), 3.0))
            shares = np.round(np.maximum(shares, 0.1) * 20) / 20
            family.mix(f"m{i}", dict(zip(parents, (shares / shares.sum()).tolist(), strict=True)), "linear")
        elif kind == "task":
            shares = np.round(rng.uniform(0.3, 1.0, len(parents)) * 10) / 10
            family.mix(f"m{i}", dict(zip(parents, shares.tolist(), strict=True)), "task")
        elif kind == "slerp":
            family.slerp(f"m{i}", *parents[:2])
        else:
            family.select(f"m{i}", parents[:3], str(kind))
    names = [n for n in family.models if n != "base"]
    return family, {n for n in names if rng.random() < 0.2}


def points_of(family: Family, names: list[str]) -> Points:
    """What a pass stores of some models of a family."""
    weights = [[np.ravel(w) for w in family.models[n].weights] for n in names]
    count = len(SHAPES)
    squared = np.zeros((count, len(names), len(names)))
    for t in range(count):
        flat = np.stack([w[t] for w in weights])
        for i in range(len(names)):
            squared[t, i] = ((flat - flat[i]) ** 2).sum(axis=1)
    sums = np.array([[(w[t] ** 2).sum() for w in weights] for t in range(count)])
    noise = np.array([[(spacing(w[t], family.dtype) ** 2).sum() / 12 for w in weights] for t in range(count)])
    zeros = np.array([[(w[t] == weights[0][t]).mean() for w in weights] for t in range(count)])
    numel = np.array([w.size for w in weights[0]], float)
    group = np.repeat(np.arange(count), numel.astype(int))
    whole = {n: np.concatenate(w) for n, w in zip(names, weights, strict=True)}

    def sampled(child: str, base: str, candidates: Sequence[str]) -> Elements:
        bits = np.full(len(whole[child]), BITS[family.dtype])
        return Elements(whole[child], whole[base], {n: whole[n] for n in candidates}, bits, group)

    return Points(
        names, squared, sums, noise, numel, [family.dtype] * len(names), [None] * len(names), zeros=zeros, reference=0,
        tensors=list(SHAPES), sampler=sampled if family.has_files else None,
    )  # fmt: skip


def told_by_those_here(family: Family, name: str, missing: set[str]) -> dict[str, float] | None:
    """A model's parents, those that are missing put as their own parents where a sum tells them; None where one is not told."""
    model = family.models[name]
    told: dict[str, float] = {}
    for parent, share in (model.parents or {}).items():
        above = {parent: 1.0}
        if parent in missing:
            is_sum = model.kind != "fine-tune" and family.models[parent].kind in ("linear", "task", "slerp")
            # What drops elements of a model that was made by dropping elements of others has elements of those.
            if not is_sum and not model.kind == family.models[parent].kind == "dare":
                return None
            expressed = told_by_those_here(family, parent, missing)
            if expressed is None:
                return None
            above = expressed
        for other, part in above.items():
            told[other] = told.get(other, 0.0) + share * part
    return {parent: share for parent, share in told.items() if abs(share) > SMALL_COEFFICIENT}


def examined(seed: int, counts: Counter, *, talk: bool = False) -> None:
    """Judge a family and count what is right."""
    family, missing = grown(seed)
    names = [n for n in family.models if n not in missing]
    points = points_of(family, names)
    copies = find_copies(points, 0)
    same = {names[copy]: names[original] for copy, original in copies.items()}
    for gone in missing:  # a recipe that was drawn twice makes the same weights
        lost = family.models[gone].weights
        equal = [n for n in names if all(map(np.array_equal, family.models[n].weights, lost))]
        if equal:
            same[gone] = same.get(equal[0], equal[0])
    judgement = judged(points, 0)
    for i, name in enumerate(names[1:], 1):
        model, finding = family.models[name], judgement.of(i)
        if finding is None or i in copies:
            continue
        told = {same.get(p.parent, p.parent): p for p in finding.parents}
        truth = told_by_those_here(family, name, missing) or model.parents or {}
        truth = {same.get(parent, parent): share for parent, share in truth.items()}
        here = set(truth) <= set(names)
        decided = finding.verdict in MERGES
        if model.kind == "fine-tune":
            counts["fine-tunes"] += 1
            counts["accused"] += decided or finding.verdict == verdicts.COPY
            trained = finding.verdict in (verdicts.TRAINED, verdicts.ONWARD)
            counts["trained on another"] += trained and set(told) != set(truth)
            if talk and (decided or (trained and set(told) != set(truth))):
                print(
                    seed,
                    family.dtype,
                    family.size,
                    name,
                    "fine-tune of",
                    truth,
                    "->",
                    finding.verdict,
                    list(told),
                    finding.reason,
                )
            continue
        right = set(told) == set(truth)
        counts[f"{model.kind} here" if here else "parents missing"] += 1
        if decided:
            counts["decided"] += 1
            counts["decided right"] += right
            counts[f"{model.kind} right"] += right
            if talk and not right:
                print(seed, family.dtype, family.size, name, model.kind, truth, "here" if here else "missing", "->",
                      finding.verdict, {n: round(p.coefficient, 3) for n, p in told.items()}, finding.reason)  # fmt: skip
            if (
                right
                and finding.verdict in verdicts.MERGES
                and not model.depth
                and finding.gradient is None
                and model.parents == truth
            ):
                for parent, share in truth.items():
                    counts["coefficients"] += 1
                    counts["covered"] += told[parent].low - 1e-9 <= share <= told[parent].high + 1e-9
        elif here:
            counts["undecided"] += 1
            if talk:
                print(
                    seed,
                    family.dtype,
                    family.size,
                    name,
                    model.kind,
                    truth,
                    "->",
                    finding.verdict,
                    finding.reason,
                )


def main() -> None:
    """Print the counts over random families."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--families", type=int, default=40)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--talk", action="store_true")
    options = parser.parse_args()
    counts: Counter = Counter()
    start = time.process_time()
    for seed in range(options.seed, options.seed + options.families):
        examined(seed, counts, talk=options.talk)
    for name, count in sorted(counts.items()):
        print(f"{name:24} {count}")
    print(f"CPU seconds {time.process_time() - start:.1f}")


if __name__ == "__main__":
    main()
