"""Who mates with whom: plain functions of what a run knows, each giving the matings of the next generation.

After Top-k Greedy Merging with Model Kinship (arXiv 2410.12613, algorithm 1). Its versions differ, and the
published run follows neither; the options are the variants (docs/evolution.md). The population is a graph of
model names: nodes carry `generation` (0: the run starts from it), edges go from parent to child and carry
`method` and `seed`. A child that came to nothing is a node too, so that it is not tried again.
"""

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

import networkx as nx

from kinbase.evolution.config import Config

Kinship = Mapping[frozenset[str], float]
Scores = Mapping[str, float]


@dataclass(frozen=True, slots=True)
class Mating:
    """Parents, the better first, and why they were chosen. `kinship` is their mean over pairs, where all are known."""

    parents: tuple[str, ...]
    role: str
    method: str
    seed: int
    reason: str
    kinship: float | None


Plan = tuple[list[Mating], list[str]]
"""The matings of a generation, in order, and what was left out and why."""


def greedy(graph: nx.DiGraph, kin: Kinship, scores: Scores, config: Config) -> Plan:
    """The pairs of the k best models: all of them, or the k with the best parents.

    A pair that has a child already is left out: the same merge gives the same model.
    """
    top = top_k(scores, config.k)
    pairs = list(combinations(top, 2))
    fresh = [pair for pair in pairs if not children(graph, pair, config.merge.method)]
    left_out = [f"{len(pairs) - len(fresh)} of the {len(pairs)} pairs of the best were merged before"] * (
        len(fresh) < len(pairs)
    )
    if config.pairs == "best_k" and len(fresh) > config.k:
        fresh = sorted(fresh, key=lambda pair: (-sum(scores[p] for p in pair), pair))[: config.k]
        left_out.append(f"the pairs after the {config.k} best")
    matings = []
    for a, b in fresh:
        reason = f"numbers {top.index(a) + 1} and {top.index(b) + 1} of the best: {scores[a]:.4g} and {scores[b]:.4g}"
        matings.append(_mating((a, b), "pair", reason, kin, config))
    return matings, left_out


def kinship(graph: nx.DiGraph, kin: Kinship, scores: Scores, config: Config) -> Plan:
    """`greedy`, and exploration: the best model with its least akin partner.

    The partner is of the pool: all models of the run (and `explore.also`), the k best, or the previous
    generation's children. Whose kinship with the best is not known cannot be chosen, and is counted.
    """
    matings, left_out = greedy(graph, kin, scores, config)
    top = top_k(scores, config.k)
    best, pool = top[0], _pool(graph, scores, top, config)
    planned = {frozenset(mating.parents) for mating in matings}
    free = [
        m
        for m in pool
        if frozenset((best, m)) not in planned and not children(graph, (best, m), config.merge.method)
    ]
    known = {m: kin[frozenset((best, m))] for m in free if frozenset((best, m)) in kin}
    unknown = (
        f"; with {len(free) - len(known)} others its kinship is not known" if len(known) < len(free) else ""
    )
    if not known:
        left_out.append(f"no exploration: {best} has no partner of known kinship left in the pool{unknown}")
        return matings, left_out
    # A distance is the less akin the larger it is.
    sign = (1 if config.explore.partner == "lowest" else -1) * (-1 if config.metric == "ed" else 1)
    partner = min(known, key=lambda m: (sign * known[m], m))
    which = "least" if config.explore.partner == "lowest" else "most"
    reason = (
        f"the best, {best}, with the {which} akin to it: {config.metric} {known[partner]:.3g}, "
        f"of {len(known)} of the pool {config.explore.pool}{unknown}"
    )
    return [*matings, _mating((best, partner), "explore", reason, kin, config)], left_out


def grid(graph: nx.DiGraph, kin: Kinship, scores: Scores, config: Config) -> Plan:
    """Every method with every number of experts and every seed, in one generation (after arXiv 2410.03617).

    A seed chooses the experts, the same for all methods, and is the merge's own where that draws anything.
    """
    if any(graph.in_degree(node) for node in graph):
        return [], ["the grid is done"]
    models = list(config.models)
    matings: list[Mating] = []
    seen: dict[tuple[str, frozenset[str], int | None], str] = {}
    twice = 0
    for count in config.grid.experts:
        for seed in config.grid.seeds:
            chosen = random.Random(f"{config.seed}/{seed}/{count}").sample(models, count)
            chosen.sort(key=models.index)
            for method in config.grid.methods:
                key = (method, frozenset(chosen), seed if draws(method) else None)
                if key in seen:
                    twice += 1
                    continue
                seen[key] = method
                reason = f"{method} of {count} of {len(models)} experts, seed {seed}"
                matings.append(_mating(tuple(chosen), "grid", reason, kin, config, method, seed))
    return matings, [f"{twice} cells of the grid are merges it has already"] * bool(twice)


STRATEGIES: dict[str, Callable[[nx.DiGraph, Kinship, Scores, Config], Plan]] = {
    "greedy": greedy, "kinship": kinship, "grid": grid,
}  # fmt: skip


def top_k(scores: Scores, k: int) -> list[str]:
    """The k best models, best first; of equal ones the first by name."""
    return sorted(scores, key=lambda m: (-scores[m], m))[:k]


def children(graph: nx.DiGraph, parents: Sequence[str], method: str) -> list[str]:
    """The children in the population that have these parents and no others, by this method."""
    if not all(parent in graph for parent in parents):
        return []
    common = set.intersection(*(set(graph.successors(parent)) for parent in parents))
    return sorted(
        child
        for child in common
        if graph.in_degree(child) == len(parents) and graph.edges[parents[0], child]["method"] == method
    )


def mean_kinship(kin: Kinship, models: Sequence[str]) -> tuple[float | None, int, int]:
    """Mean over all pairs of `models` (None unless all are known), how many are known, how many there are."""
    pairs = [frozenset(pair) for pair in combinations(models, 2)]
    known = [kin[pair] for pair in pairs if pair in kin]
    return (sum(known) / len(known) if pairs and len(known) == len(pairs) else None), len(known), len(pairs)


def draws(method: str) -> bool:
    """Whether a merge method draws random numbers."""
    return method.startswith(("dare", "della"))


def _pool(graph: nx.DiGraph, scores: Scores, top: list[str], config: Config) -> list[str]:
    also = [model for model in config.explore.also if model not in scores]
    if config.explore.pool == "top_k":
        chosen = top
    elif config.explore.pool == "previous":
        latest = max(graph.nodes[model]["generation"] for model in scores)
        chosen = [model for model in scores if graph.nodes[model]["generation"] == latest]
    else:
        chosen = list(scores)
    return [model for model in [*sorted(chosen), *also] if model != top[0]]


def _mating(
    parents: tuple[str, ...], role: str, reason: str, kin: Kinship, config: Config,
    method: str | None = None, seed: int | None = None,
) -> Mating:  # fmt: skip
    mean, _, _ = mean_kinship(kin, parents)
    return Mating(
        parents, role, method or config.merge.method, config.seed if seed is None else seed, reason, mean
    )
