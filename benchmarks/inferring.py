"""Inferred trees against known ones: `python benchmarks/inferring.py [--folder DIR] [--worlds N]`.

A world is two unrelated families (benchmarks/lineages.py) in one database, imported without a word about bases or
parents, under names that tell nothing. `kinbase infer` is held against the published method and a spanning tree
on the same weights. `--fit` prints what the figures of kinbase.provenance.phylogeny (tree_search, merges) were taken from,
measured on other families than the evaluation's.
"""

import argparse
import math
import tempfile
import time
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path

import lineages
import networkx as nx
import numpy as np
from safetensors.torch import load_file

import kinbase
from kinbase.provenance.phylogeny import infer as inferring
from kinbase.provenance.phylogeny import merges as ancestry
from kinbase.provenance.phylogeny.distances import Points

FIRST_SEED = 25
"""Of the evaluation; smaller seeds are for fitting."""

Edge = tuple[str, str]
Layers = dict[str, np.ndarray]


# The published method (MoTHer, Horwitz, Shul, Hoshen, arXiv 2405.18432), from its description and published code.


def mother(
    models: dict[str, Layers], trees: int, strength: float = 0.3, *, reverse: bool = False
) -> tuple[set[Edge], list[set[str]]]:
    """Ward clusters (their number known), then in each the minimum arborescence over distance + strength * direction.

    Clusters go by the mean absolute difference of square layers; the tree's distance is the largest difference in any
    square layer after scaling by the range over all pairs; direction is against the kurtosis of the
    attention output layers, which falls from parent to child (`reverse`: rises).
    """
    names = sorted(models)
    square = [n for n, w in models[names[0]].items() if w.ndim == 2 and w.shape[0] == w.shape[1]]
    kurtosis = {m: sum(_kurtosis(models[m][n]) for n in square if "o_proj" in n) for m in names}
    apart = np.zeros((len(names), len(names)))
    for n in square:
        layers = np.stack([models[m][n] for m in names])
        for i in range(len(names)):
            apart[i] += np.abs(layers - layers[i]).mean(axis=(1, 2))
    clusters = ward(apart, trees)
    edges: set[Edge] = set()
    for cluster in clusters:
        members = [names[i] for i in cluster]
        edges |= _arborescence({m: models[m] for m in members}, kurtosis, square, strength, reverse)
    return edges, [{names[i] for i in cluster} for cluster in clusters]


def _arborescence(
    models: dict[str, Layers], kurtosis: dict[str, float], square: list[str], strength: float, reverse: bool
) -> set[Edge]:
    names = list(models)
    largest = np.zeros((len(names), len(names)))
    for n in square:
        differences = {
            (i, j): models[names[i]][n] - models[names[j]][n]
            for i in range(len(names))
            for j in range(i + 1, len(names))
        }
        low, high = min(d.min() for d in differences.values()), max(d.max() for d in differences.values())
        for (i, j), difference in differences.items():
            scaled = (difference.max() - low) / (high - low)
            largest[i, j] = largest[j, i] = max(largest[i, j], scaled)
    graph = nx.DiGraph()
    for i, parent in enumerate(names):
        for j, child in enumerate(names):
            if i != j:
                against = (
                    kurtosis[child] > kurtosis[parent] if not reverse else kurtosis[child] < kurtosis[parent]
                )
                graph.add_edge(
                    parent, child, weight=float(largest[i, j] + strength * largest.mean() * against)
                )
    return set(nx.minimum_spanning_arborescence(graph).edges) if len(names) > 1 else set()


def _kurtosis(layer: np.ndarray) -> float:
    centred = layer - layer.mean()
    return float((centred**4).mean() / (centred**2).mean() ** 2 - 3)


def ward(apart: np.ndarray, count: int) -> list[list[int]]:
    """Agglomerative clusters by Ward's criterion on given distances (Lance and Williams 1967), as scipy's linkage."""
    parts = {i: [i] for i in range(len(apart))}
    d = {(i, j): apart[i, j] ** 2 for i in parts for j in parts if i < j}
    while len(parts) > count:
        (i, j) = min(d, key=lambda pair: d[pair])
        a, b, joined = len(parts[i]), len(parts[j]), d[i, j]
        for k in list(parts):
            if k not in (i, j):
                c = len(parts[k])
                far = d.pop((min(i, k), max(i, k))), d.pop((min(j, k), max(j, k)))
                value = ((a + c) * far[0] + (b + c) * far[1] - c * joined) / (a + b + c)
                d[min(i, k), max(i, k)] = value
        del d[i, j]
        parts[i] += parts.pop(j)
    return list(parts.values())


def spanning_tree(models: dict[str, Layers], clusters: Sequence[set[str]]) -> set[Edge]:
    """The minimum spanning tree of Euclidean distances in each cluster, hung from its medoid."""
    edges: set[Edge] = set()
    for cluster in clusters:
        names = sorted(cluster)
        flat = np.stack([np.concatenate([w.ravel() for w in models[m].values()]) for m in names])
        apart = np.sqrt(np.maximum(((flat[:, None] - flat[None]) ** 2).sum(axis=2), 0))
        graph = nx.Graph()
        graph.add_weighted_edges_from(
            (a, b, apart[i, j]) for i, a in enumerate(names) for j, b in enumerate(names[:i])
        )
        root = names[int(apart.sum(axis=0).argmin())]
        edges |= set(nx.bfs_edges(nx.minimum_spanning_tree(graph), root))
    return edges


# Measures.


def adjusted_rand(found: Sequence[set[str]], true: Sequence[set[str]]) -> float:
    """Adjusted Rand index of two partitions (Hubert and Arabie 1985)."""
    table = np.array([[len(a & b) for b in true] for a in found], float)

    def pairs(n: np.ndarray) -> float:
        return float((n * (n - 1) / 2).sum())

    both, a, b = pairs(table), pairs(table.sum(axis=1)), pairs(table.sum(axis=0))
    expected = a * b / pairs(np.array([table.sum()]))
    return (both - expected) / ((a + b) / 2 - expected)


def figures(found: set[Edge], true: set[Edge]) -> np.ndarray:
    """Right edges, edges found, edges there are, and edges found between the right two models in either direction."""
    between = {frozenset(e) for e in found} & {frozenset(e) for e in true}
    return np.array([len(found & true), len(found), len(true), len(between)])


def line(name: str, counts: list[np.ndarray], rand: list[float], seconds: float) -> str:
    right, found, there, between = np.sum(counts, axis=0)
    each = [2 * c[0] / (c[1] + c[2]) for c in counts]
    f1 = 2 * right / (found + there)
    spread = np.std(each, ddof=1) if len(each) > 1 else 0.0
    return (
        f"| {name} | {right / found:.3f} | {right / there:.3f} | {f1:.3f} ± {spread:.3f} "
        f"| {right / max(between, 1):.3f} | {np.mean(rand):.3f} | {seconds:.1f} |"
    )


# The evaluation.


def load(paths: Sequence[Path]) -> dict[str, Layers]:
    return {
        path.name: {n: w.double().numpy() for n, w in load_file(path / "model.safetensors").items()}
        for path in paths
    }


def evaluate(folder: Path, worlds: int) -> None:
    methods = (
        "kinbase infer --blind",
        "published method",
        "the same, direction reversed",
        "spanning tree from medoid",
    )
    counts: dict[str, list[np.ndarray]] = {m: [] for m in methods}
    rand: dict[str, list[float]] = {m: [] for m in methods}
    spent = dict.fromkeys(methods, 0.0)
    by_relation: dict[str, list[bool]] = {}
    sure: list[tuple[float, bool]] = []

    def add(
        method: str,
        work: Callable[[], tuple[set[Edge], list[set[str]]]],
        true: set[Edge],
        parts: list[set[str]],
    ) -> None:
        start = time.perf_counter()
        edges, clusters = work()
        spent[method] += time.perf_counter() - start
        counts[method].append(figures(edges, true))
        rand[method].append(adjusted_rand(clusters, parts))

    for world in range(worlds):
        halves = [lineages.family(folder, FIRST_SEED + 2 * world + half) for half in (0, 1)]
        paths = [path for half in halves for path in half[0]]
        true = {(p, c): relation for half in halves for p, c, relation in half[1]}
        parts = [{path.name for path in half[0]} for half in halves]
        with tempfile.TemporaryDirectory() as scratch:
            db = kinbase.open(Path(scratch) / "world.duckdb")
            db.import_(paths)
            found: list[ancestry.Family] = []

            def infer(
                db: kinbase.Kinbase = db, found: list[ancestry.Family] = found
            ) -> tuple[set[Edge], list[set[str]]]:
                found += inferring.infer(db.store, blind=True)[0]
                return {(e.parent, e.child) for f in found for e in f.edges}, [set(f.members) for f in found]

            add(methods[0], infer, set(true), parts)
        for edge in (e for f in found for e in f.edges):
            right = (edge.parent, edge.child) in true
            by_relation.setdefault(edge.relation, []).append(right)
            sure.append((edge.confidence, right))
        models = load(paths)
        add(methods[1], lambda m=models: mother(m, 2), set(true), parts)
        add(methods[2], lambda m=models: mother(m, 2, reverse=True), set(true), parts)
        add(methods[3], lambda m=models, p=parts: (spanning_tree(m, p), p), set(true), parts)
        print(
            f"world {world + 1}: "
            + ", ".join(f"{m} {2 * c[-1][0] / (c[-1][1] + c[-1][2]):.2f}" for m, c in counts.items()),
            flush=True,
        )
    edges = sum(int(c[2]) for c in counts[methods[0]])
    print(f"\n{worlds} worlds of two families, {edges} edges\n")
    print(
        "| method | precision | recall | F1 ± sd over worlds | direction | ARI | s |\n|---|---|---|---|---|---|---|"
    )
    for method in methods:
        print(line(method, counts[method], rand[method], spent[method]))
    print("\n| inferred relation | edges | right |\n|---|---|---|")
    for relation, right in sorted(by_relation.items()):
        print(f"| {relation} | {len(right)} | {np.mean(right):.3f} |")
    calibration(sure)


def calibration(sure: Sequence[tuple[float, bool]]) -> None:
    print("\n| stated confidence | edges | mean stated | right |\n|---|---|---|---|")
    edges = [0, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 1.001]
    values, right = np.array([c for c, _ in sure]), np.array([r for _, r in sure])
    for low, high in pairwise(edges):
        chosen = (values >= low) & (values < high)
        if chosen.any():
            print(
                f"| {low:.2f} to {min(high, 1):.2f} | {chosen.sum()} | {values[chosen].mean():.3f} | {right[chosen].mean():.3f} |"
            )
    print(f"\nBrier score {np.mean((values - right) ** 2):.3f}")


# Where the figures of the method come from.


def points(paths: Sequence[Path]) -> Points:
    with tempfile.TemporaryDirectory() as scratch:
        db = kinbase.open(Path(scratch) / "family.duckdb")
        db.import_(paths)
        with db.store.reading() as con:
            members = inferring.naming.members(con)
        (measured,) = inferring._read(db.store, members, "cpu", lambda done, total: None, [])
    return measured.points


def fit(folder: Path, families: int) -> None:
    cosines: dict[str, list[float]] = {"sibling": [], "chain": [], "other": []}
    margins: list[tuple[float, bool]] = []
    for seed in range(1, families + 1):
        paths, edges = lineages.family(folder, seed)
        found = points(paths)
        parents = {c: p for p, c, relation in edges if relation == "finetune"}
        increments = _cosines(found, parents)
        for kind, values in increments.items():
            cosines[kind] += values
        true = {(p, c) for p, c, _ in edges}
        for edge in ancestry.infer_family(found).edges:
            if edge.margin is not None and math.isfinite(edge.margin):
                margins.append((edge.margin, (edge.parent, edge.child) in true))
        print(f"family {seed}: {len(margins)} margins", flush=True)
    shares = (0, 0.02, 0.1, 0.25, 0.5, 0.75, 0.9, 0.98, 1)
    print(
        "\n| cosine of two increments | pairs | "
        + " | ".join(f"{s:.0%}" for s in shares)
        + " |\n|---|"
        + "---|" * (len(shares) + 1)
    )
    for kind, values in cosines.items():
        print(
            f"| {kind} | {len(values)} | "
            + " | ".join(f"{q:.3f}" for q in np.quantile(values, shares))
            + " |"
        )
    x, y = np.log1p([max(m, 0) for m, _ in margins]), np.array([r for _, r in margins], float)
    a = b = 0.0
    for _ in range(50):  # Newton's method for two coefficients of a logistic regression
        p = 1 / (1 + np.exp(-(a + b * x)))
        w = p * (1 - p)
        gradient = np.array([(y - p).sum(), ((y - p) * x).sum()])
        hessian = np.array([[w.sum(), (w * x).sum()], [(w * x).sum(), (w * x * x).sum()]]) + 1e-6 * np.eye(2)
        step = np.linalg.solve(hessian, gradient)
        a, b = a + step[0], b + step[1]
    print(
        f"\nconfidence of an edge of the tree: logistic({a:.2f} + {b:.2f} log(1 + margin)), {len(y)} edges, {y.mean():.3f} right"
    )


def _cosines(found: Points, parents: dict[str, str]) -> dict[str, list[float]]:
    at = {name: i for i, name in enumerate(found.names)}
    d = found.squared.sum(axis=0)
    rows = [(at[c], at[p]) for c, p in parents.items()]
    result: dict[str, list[float]] = {"sibling": [], "chain": [], "other": []}
    for k, (c, p) in enumerate(rows):
        for x, q in rows[:k]:
            product = (d[c, q] + d[p, x] - d[c, x] - d[p, q]) / 2
            kind = "sibling" if p == q else "chain" if q == c or x == p else "other"
            result[kind].append(float(product / math.sqrt(d[c, p] * d[x, q])))
    return result


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", type=Path, help="where the families are kept, and found again")
    parser.add_argument("--worlds", type=int, default=4, help="pairs of families (25 s of training a family)")
    parser.add_argument(
        "--fit", type=int, metavar="FAMILIES", help="fit the figures instead, on families of their own"
    )
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        place = options.folder or Path(scratch)
        if options.fit:
            fit(place, options.fit)
        else:
            evaluate(place, options.worlds)
