"""Recipes recovered from generated families whose truth is known.

    python benchmarks/recipes.py                   # about ten minutes on one core
    python benchmarks/recipes.py --trials 20       # a tenth of it

Four tables. Merges: linear and task-arithmetic merges (some with negative weights) of 2 to 8 parents among 50
candidates: fine-tunes, some sharing a direction, LoRA-like ones, continued fine-tunes and near-duplicates. SLERP by
depth with the lists of the Model Kinship paper. Models that are no merges. And merges written to disk, imported
and asked for by the command's own path. The Gram matrices of the first three are taken in memory; weights are
rounded by torch, parents and children.
"""

import argparse
import importlib
import tempfile
import time
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from kinbase.provenance.recipes.by_depth import slerp_coefficients
from kinbase.provenance.recipes.least_squares import Grams
from kinbase.provenance.recipes.rounding import BITS
from kinbase.provenance.recipes.verdict import MERGE, SELECTED, TRAINED, UNDECIDABLE, Finding, judge

LAYERS = 8
PARTS = {"self_attn.q_proj": 8000, "mlp.up_proj": 12000, "input_layernorm": 64}
SELF_ATTN, MLP = [0, 0.5, 0.3, 0.7, 1], [1, 0.5, 0.7, 0.3, 0]
TORCH = {"F32": torch.float32, "BF16": torch.bfloat16}

Array = NDArray[np.float64]
Weights = list[Array]


def stored(values: Array, dtype: str) -> Array:
    """Values as a file of that dtype holds them."""
    return torch.from_numpy(values).to(torch.float32).to(TORCH[dtype]).double().numpy()


@dataclass
class Family:
    """A base and its members, tensor by tensor; `kinds` says what each is, `gram` [T, M + 1, M + 1] with the base last."""

    rng: np.random.Generator
    dtype: str
    size: float
    shape: str = "gaussian"
    base: Weights = field(default_factory=list)
    members: list[Weights] = field(default_factory=list)
    kinds: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.names = [f"model.layers.{i}.{part}.weight" for i in range(LAYERS) for part in PARTS]
        self.numels = [n for _ in range(LAYERS) for n in PARTS.values()]
        for name, n in zip(self.names, self.numels, strict=True):
            centre, width = (1.0, 0.05) if "norm" in name else (0.0, 0.02 * self.rng.uniform(0.5, 2))
            self.base.append(stored(centre + width * self.rng.standard_normal(n), self.dtype))
        self.scales = [self.size * b.std() * 2 ** self.rng.uniform(-0.7, 0.7) for b in self.base]
        self.direction = [self.rng.standard_normal(n) for n in self.numels]

    def noise(self, n: int) -> Array:
        """Unit variance, of the family's shape."""
        if self.shape == "laplace":
            return self.rng.laplace(size=n) / np.sqrt(2)
        if self.shape == "sparse":
            return self.rng.standard_normal(n) * (self.rng.random(n) < 0.1) * np.sqrt(10)
        return self.rng.standard_normal(n)

    def add(self, weights: Weights, kind: str) -> None:
        """One more member, rounded to the family's dtype."""
        self.members.append([stored(w, self.dtype) for w in weights])
        self.kinds.append(kind)

    def tuned(self, shared: float = 0.0, length: float = 1.0) -> Weights:
        """A fine-tune that has a share of the family's common direction; tensors are moved by different amounts."""
        return [
            b + length * 2 ** self.rng.uniform(-0.3, 0.3) * s
            * (np.sqrt(shared) * d + np.sqrt(1 - shared) * self.noise(len(b)))
            for b, s, d in zip(self.base, self.scales, self.direction, strict=True)
        ]  # fmt: skip

    def onward(self, parent: int, amount: float) -> Weights:
        """A fine-tune of a member."""
        return [
            w + amount * 2 ** self.rng.uniform(-0.3, 0.3) * s * self.noise(len(w))
            for w, s in zip(self.members[parent], self.scales, strict=True)
        ]

    def low_rank(self, rank: int = 4) -> Weights:
        """A LoRA-like fine-tune: tensors of rank 4, norms as they were."""
        result = []
        for b, s in zip(self.base, self.scales, strict=True):
            rows = int(np.sqrt(len(b)))
            left, right = (
                self.rng.standard_normal((rows, rank)),
                self.rng.standard_normal((rank, len(b) // rows)),
            )
            change = np.zeros(len(b))
            if len(b) > 1000:
                change[: rows * (len(b) // rows)] = (left @ right).ravel() / np.sqrt(rank)
            result.append(b + s * change)
        return result

    def fill(self, count: int = 50) -> "Family":
        """Fine-tunes, one in seven continued, one in ten LoRA-like, one in twenty a near-duplicate."""
        while len(self.members) < count:
            draw, older = self.rng.random(), len(self.members)
            if older >= 4 and draw < 0.15:
                self.add(self.onward(int(self.rng.integers(older)), self.rng.uniform(0.2, 0.6)), "continued")
            elif older >= 4 and draw < 0.25:
                self.add(self.low_rank(), "LoRA")
            elif older >= 4 and draw < 0.30:
                self.add(self.onward(int(self.rng.integers(older)), 0.03), "duplicate")
            else:
                self.add(self.tuned(self.rng.choice([0, 0, 0.3, 0.6]), 2 ** self.rng.uniform(-0.5, 0.5)), "tuned")  # fmt: skip
        self.measure()
        return self

    def measure(self) -> None:
        """All inner products."""
        self.columns = [
            np.array([*(m[t] - self.base[t] for m in self.members), self.base[t]])
            for t in range(len(self.base))
        ]
        self.gram = np.array([c @ c.T for c in self.columns])

    def combined(self, shares: dict[int, float] | dict[int, Array], base: Array | float = 0.0) -> Weights:
        """base + sum of shares of deltas (one each, or one a tensor), rounded once."""
        each = {i: np.broadcast_to(a, len(self.base)) for i, a in shares.items()}
        more = np.broadcast_to(base, len(self.base))
        return [
            stored(b + more[t] * b + sum(a[t] * self.columns[t][i] for i, a in each.items()), self.dtype)
            for t, b in enumerate(self.base)
        ]

    def judge(self, child: Weights, without: set[int] = frozenset()) -> Finding:  # type: ignore[assignment]
        """The verdict on a child with all members but some as candidates."""
        delta = [c - b for c, b in zip(child, self.base, strict=True)]
        units = [np.ldexp(1.0, np.frexp(c)[1] - BITS[self.dtype]) for c in child]
        grams = Grams(
            [str(i) for i in range(len(self.members))], self.names, np.array(self.numels, float), self.gram,
            np.array([c @ d for c, d in zip(self.columns, delta, strict=True)]),
            np.array([d @ d for d in delta]), np.array([(u**2).sum() / 12 for u in units]), True,
            [self.dtype] * (len(self.members) + 2), np.array([b.mean() for b in self.base]),
        )  # fmt: skip
        zeros = np.array(
            [
                [*((c[:-1] == 0).mean(axis=1)), (d == 0).mean()]
                for c, d in zip(self.columns, delta, strict=True)
            ]
        )
        kept = [i for i in range(len(self.members)) if i not in without]
        return judge(grams.of(kept), zeros[:, [*kept, -1]])


def merges(seed: int, dtype: str, size: float, trials: int, shape: str = "gaussian") -> list[object]:
    """One row: F1 of parents, coverage of intervals, errors, over linear and task-arithmetic merges."""
    rng = np.random.default_rng(seed)
    right = wrong = missed = covered = told = 0
    errors, widths, ratios, verdicts = [], [], [], Counter[str]()
    for trial in range(trials):
        if trial % 20 == 0:
            family = Family(rng, dtype, size, shape).fill()
        count = int(rng.integers(2, 9))
        parents = [int(i) for i in rng.choice(50, count, replace=False)]
        if trial % 2:
            weights = rng.dirichlet(np.full(count, 4.0))
        else:
            weights = rng.uniform(0.2, 1.0, count) * rng.choice([1, 1, 1, -1], count)
        truth = dict(zip(parents, weights, strict=True))
        found = family.judge(family.combined(truth))
        verdicts[found.verdict] += 1
        if found.verdict != MERGE:
            continue
        got = {int(p.parent): p for p in found.parents}
        right += len(got.keys() & truth.keys())
        wrong += len(got.keys() - truth.keys())
        missed += len(truth.keys() - got.keys())
        ratios.append(found.ratio or 0.0)
        for i, p in got.items():
            if i in truth:
                told += 1
                covered += p.low <= truth[i] <= p.high
                errors.append(abs(p.coefficient - truth[i]))
                widths.append(p.high - p.low)
    return [
        dtype, f"{size:.1%}", shape, trials, verdicts[MERGE], f"{2 * right / (2 * right + wrong + missed):.4f}", wrong,
        f"{covered / told:.3f}", f"{np.median(errors):.1e}", f"{np.median(widths):.1e}",
        f"{min(ratios):.2f}-{max(ratios):.2f}",
    ]  # fmt: skip


def interpolated(values: list[float]) -> Array:
    """A mergekit list over the layers."""
    return np.interp(np.arange(LAYERS) / (LAYERS - 1), np.linspace(0, 1, len(values)), values)


def slerps(seed: int, dtype: str, size: float, trials: int) -> list[object]:
    """One row: SLERP with lists for self_attn and mlp; errors of t in each tensor of these."""
    rng = np.random.default_rng(seed)
    errors, covered, found_parents = [], [], 0
    for trial in range(trials):
        if trial % 10 == 0:
            family = Family(rng, dtype, size).fill()
        a, b = (
            int(i)
            for i in rng.choice([i for i, k in enumerate(family.kinds) if k == "tuned"], 2, replace=False)
        )
        lists = {"self_attn": interpolated(SELF_ATTN), "mlp": interpolated(MLP), "norm": np.full(LAYERS, 0.5)}
        t = np.array(
            [
                next(v for k, v in lists.items() if k in name)[i // len(PARTS)]
                for i, name in enumerate(family.names)
            ]
        )
        angle = []
        for w in range(len(family.base)):
            x, y = family.members[a][w], family.members[b][w]
            cosine = x @ y / np.sqrt((x @ x) * (y @ y))
            angle.append(0.0 if cosine > 0.9995 else np.arccos(cosine))
        s = slerp_coefficients(t, np.array(angle))
        found = family.judge(family.combined({a: s[:, 0], b: s[:, 1]}, s[:, 2]))
        if (
            found.verdict != MERGE
            or found.gradient is None
            or {int(p.parent) for p in found.parents} != {a, b}
        ):
            continue
        found_parents += 1
        turned = int(found.parents[0].parent) != a
        for place, value, error in zip(
            found.gradient.places, found.gradient.values, found.errors, strict=True
        ):  # type: ignore[arg-type]
            if place.block != "rest":
                truth = 1 - t[place.tensors[0]] if turned else t[place.tensors[0]]
                errors.append(abs(float(value[0]) - truth))
                covered.append(abs(float(value[0]) - truth) <= float(error[0]))
    middle = (
        [f"{np.median(errors):.1e}", f"{max(errors):.1e}", f"{np.mean(covered):.3f}"] if errors else ["-"] * 3
    )
    return [dtype, f"{size:.1%}", trials, found_parents, *middle]


def strangers(seed: int, dtype: str, size: float, trials: int) -> list[object]:
    """One row: models that are no merge; how many were given parents nobody gave them."""
    rng = np.random.default_rng(seed)
    verdicts, false_merge, false_parent = Counter[str](), 0, 0
    for trial in range(trials):
        if trial % 40 == 0:
            family = Family(rng, dtype, size).fill()
        kind = trial % 5
        parent = int(rng.integers(50))
        made_of: set[int] = set()
        if kind == 0:
            child = family.tuned(0.0)
        elif kind == 1:
            child = family.tuned(float(rng.choice([0.3, 0.6, 0.8])), 2 ** rng.uniform(-0.5, 0.5))
        elif kind == 2:
            child = family.onward(parent, rng.uniform(0.1, 1.0))
            made_of = {parent}
        elif kind == 3:  # a merge, trained on
            pair = rng.choice(50, 2, replace=False)
            made_of = {int(i) for i in pair}
            family.members.append(family.combined({int(i): 0.5 for i in pair}))
            child = family.onward(len(family.members) - 1, rng.uniform(0.3, 1.0))
            family.members.pop()
        else:  # a merge with somebody who is not here
            hidden = family.tuned(0.0)
            made_of = {parent}
            child = [0.6 * w + 0.4 * h for w, h in zip(family.members[parent], hidden, strict=True)]
        found = family.judge([stored(c, family.dtype) for c in child])
        verdicts[found.verdict] += 1
        wrong = {int(p.parent) for p in found.parents} - _relatives(family, made_of)
        false_merge += found.verdict in (MERGE, SELECTED) and bool(wrong)
        false_parent += found.verdict not in (MERGE, SELECTED) and bool(wrong)
    return [
        dtype, f"{size:.1%}", trials, false_merge, false_parent, verdicts[MERGE], verdicts[TRAINED], verdicts[UNDECIDABLE],
    ]  # fmt: skip


def _relatives(family: Family, members: set[int]) -> set[int]:
    """Members, those they go on from, and near-duplicates: what has their whole change or is in it."""
    gram = family.gram.sum(axis=0)[:-1, :-1]
    length = np.sqrt(np.diagonal(gram))
    found = set(members)
    for i in members:
        found |= {int(j) for j in np.flatnonzero(gram[i] > 0.85 * length[i] * length)}
    return found


def selected(seed: int, method: str, density: float, trials: int) -> list[object]:
    """One row: TIES or DARE merges in bf16 at 2%; how many are seen for what they are."""
    rng = np.random.default_rng(seed)
    verdicts, right = Counter[str](), 0
    for trial in range(trials):
        if trial % 20 == 0:
            family = Family(rng, "BF16", 0.02).fill(20)
        parents = sorted(int(i) for i in rng.choice(20, int(rng.integers(2, 4)), replace=False))
        child = []
        for t, b in enumerate(family.base):
            deltas = family.columns[t][parents]
            if method == "DARE":
                kept = rng.random(deltas.shape) < density
                change = (0.5 * deltas * kept / density).sum(axis=0)
            else:
                cut = np.quantile(np.abs(deltas), 1 - density, axis=1, keepdims=True)
                trimmed = np.where(np.abs(deltas) >= cut, deltas, 0)
                agree = np.sign(trimmed) == np.sign(trimmed.sum(axis=0))
                change = (trimmed * agree).sum(axis=0) / np.maximum((agree & (trimmed != 0)).sum(axis=0), 1)
            child.append(stored(b + change, "BF16"))
        found = family.judge(child)
        verdicts[found.verdict] += 1
        right += found.verdict == SELECTED and {int(p.parent) for p in found.parents} == set(parents)
    return [method, density, trials, verdicts[SELECTED], right, verdicts[MERGE]]


def on_disk(parameters: float) -> list[list[object]]:
    """Rows: the merges of benchmarks/pass.py's family, through import and recipe."""
    import kinbase

    write_family = importlib.import_module("pass").write_family
    rows: list[list[object]] = []
    with tempfile.TemporaryDirectory() as folder:
        write_family(Path(folder), parameters)
        db = kinbase.open(Path(folder) / "kin.duckdb")
        members = sorted(p for p in Path(folder).iterdir() if p.is_dir())
        db.import_(members, base="base")
        for name in ("merge_ab", "merge_cd", "ft_a", "twin_a"):
            started = time.perf_counter()
            found = db.recipe(name).row(0, named=True)
            took = time.perf_counter() - started
            said = " + ".join(f"{p['coefficient']:.4f} {p['parent']}" for p in found["parents"])
            rows.append(
                [f"{parameters:.0e}", name, found["verdict"], said, f"{found['floor']:.3f}", f"{took:.2f}"]
            )
    return rows


def table(title: str, columns: list[str], rows: Iterable[list[object]]) -> None:
    """One table in Markdown, printed row by row."""
    print(f"\n{title}\n\n| {' | '.join(columns)} |\n|{'---|' * len(columns)}", flush=True)
    for row in rows:
        print(f"| {' | '.join(map(str, row))} |", flush=True)


def main() -> None:
    """Run and print everything."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--trials", type=int, default=200, help="merges a row; five times as many non-merges in all"
    )
    parser.add_argument("--parameters", type=float, default=30e6, help="of the family on disk")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", default="merges,slerp,none,selected,disk", help="tables, with commas")
    given = parser.parse_args()
    trials, seed, wanted = given.trials, given.seed, given.only.split(",")
    every = [(dtype, size) for dtype in TORCH for size in (0.003, 0.005, 0.01, 0.02, 0.05)]
    if "merges" in wanted:
        table(
            "Merges of 2 to 8 parents among 50",
            ["dtype", "delta", "shape", "merges", "decided", "F1 of parents", "false parents", "covered by 95% intervals",
             "error", "width", "residual / expected"],
            (merges(seed + k, *case) for k, case in enumerate(
                [(*case, trials) for case in every] + [("BF16", 0.005, trials // 2, shape) for shape in ("laplace", "sparse")]
            )),
        )  # fmt: skip
    if "slerp" in wanted:
        table(
            "SLERP by depth",
            ["dtype", "delta", "merges", "recovered", "error of t, median", "largest", "covered"],
            (slerps(seed + 40 + k, *case, max(4, trials // 10)) for k, case in enumerate(every)),
        )
    some = [("BF16", 0.003), ("BF16", 0.01), ("BF16", 0.05), ("F32", 0.01), ("F32", 0.05)]
    if "none" in wanted:
        table(
            "No merges",
            ["dtype", "delta", "models", "false parents: merge", "one parent", "verdict merge", "fine-tune of one",
             "undecidable"],
            (strangers(seed + 60 + k, *case, trials) for k, case in enumerate(some)),
        )  # fmt: skip
    methods = [("TIES", 0.2), ("TIES", 0.5), ("DARE", 0.5), ("DARE", 0.2)]
    if "selected" in wanted:
        table(
            "TIES and DARE",
            [
                "method",
                "density",
                "merges",
                "TIES/DARE-like merge",
                "of them with the right parents",
                "taken for merges",
            ],
            (selected(seed + 80 + k, *case, max(4, trials // 5)) for k, case in enumerate(methods)),
        )
    if "disk" in wanted:
        table(
            "On disk", ["parameters", "model", "verdict", "recipe", "floor", "s"], on_disk(given.parameters)
        )


if __name__ == "__main__":
    main()
