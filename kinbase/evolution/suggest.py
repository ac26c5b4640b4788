"""`kinbase suggest`: which merges are worth making next, and whether to go on. Heuristics, with their evidence.

What is exact: the child of two measured models, half of each, has the delta (d_a + d_b) / 2, so its inner product
with every measured model, its length and its kinship follow from stored Gram matrices. What is not: that a child
unlike what there is, of parents good at different things, is worth evaluating. Kinship says how much a merge
may change, not in which direction (the paper's own figures say so: docs/inferring.md). The rules that stop a run
are replayed on stored runs by `kinbase.evolution.replay`.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import networkx as nx
import numpy as np
from numpy.typing import NDArray

from kinbase.errors import KinbaseError
from kinbase.query import graph, merges
from kinbase.query.kinship import in_family, measured_sums
from kinbase.query.models import families, families_with_members
from kinbase.query.scores import model_scores, readings
from kinbase.store import Connection
from kinbase.store import names as naming

FloatArray = NDArray[np.float64]

SAME = 1e-7
"""Distance over length below which two members are one model twice, under two names or in two layouts."""

TWIN = 0.99
"""Predicted kinship above which a child would be a near twin of a model there is."""

PAIRS_LOOKED_AT = 2000
"""Pairs of the best mean score that are looked at: the advice is about good parents, and pairs grow as the square."""

COLUMNS = (
    "parent_a", "parent_b", "score_a", "score_b", "kinship", "nearest", "predicted_kinship", "norm", "to_best", "ceiling",
    "estimate", "error", "basis", "reason",
)  # fmt: skip

LONG = 5.0
"""Length of a member's change, in medians of its family's, from which it is no fine-tune of the base but a stranger."""

ENOUGH = 5
"""Scored merges from which on what they gained over their best parents corrects an estimate."""


@dataclass(frozen=True)
class Population:
    """N models of one family: what kinship and scores are known of them.

    `gram` [N, N] holds inner products of deltas and `centred` those after taking out their means, NaN where a pair
    is not measured, or by less than half of the base (those are `weak`); `history` [M, 2] is what the family's scored merges
    gained over their best parent and over the mean of them, in percent; `kinship` [N, N] the PCC by the best method,
    NaN where unknown; `scores` [N] those of the view `model_scores` and `by_benchmark` [N, B] those of the benchmarks that most
    share, both in percent, NaN where unknown.
    """

    base: str
    names: list[str]
    gram: FloatArray
    centred: FloatArray
    kinship: FloatArray
    scores: FloatArray
    by_benchmark: FloatArray
    made: frozenset[frozenset[str]]
    generation: NDArray[np.intp]
    weak: frozenset[frozenset[str]] = frozenset()
    history: FloatArray = field(default_factory=lambda: np.empty((0, 2)))

    @property
    def correction(self) -> float:
        """What merges so far gained over their best parents, on average; 0 while they are few."""
        return float(self.history[:, 0].mean()) if len(self.history) >= ENOUGH else 0.0

    @property
    def error(self) -> float | None:
        """The mean absolute error of the estimate on the merges so far, each foretold from the others."""
        over = self.history[:, 0]
        if len(over) < 2:
            return None
        if len(over) < ENOUGH:
            return float(np.abs(over).mean())
        return float(np.abs(over - (over.sum() - over) / (len(over) - 1)).mean())

    def evidence(self) -> str:
        """A line: how far the estimate is to be believed, beside the best parent alone and the mean of the parents."""
        if self.error is None:
            return "estimate: the score of the better parent; no scored merges of this family say how far it errs"
        over, gain = self.history.T
        how = f"the better parent {self.correction:+.2f}" if self.correction else "the better parent"
        return (
            f"estimate: {how}; on {len(over)} stored merges it errs by {self.error:.2f} (mean absolute), the better parent alone "
            f"by {np.abs(over).mean():.2f}, the mean of the parents by {np.abs(gain).mean():.2f}"
        )

    def is_hopeless(self) -> bool:
        """Whether merges so far say that no child beats its better parent: their mean and its standard error are below 0."""
        over = self.history[:, 0]
        return len(over) >= ENOUGH and float(over.mean() + over.std(ddof=1) / np.sqrt(len(over))) <= 0


@dataclass(frozen=True, slots=True)
class Step:
    """The population up to one generation: the `top` k, best first, and their mean kinship (None: not all known)."""

    generation: int
    models: int
    best: str
    best_score: float
    top: tuple[str, ...]
    top_kinship: float | None


def load(con: Connection, family: str | None) -> Population:
    """The models of a family (of any member's; None: of the only one), the base left out.

    Raises KinbaseError for an unknown family, or when it has to be chosen.
    """
    base = _base(con, family)
    names = merges.mergeable(con, base)
    if len(names) < 2:
        raise KinbaseError(
            f"{base} has no two members to merge: `kinbase import MODEL --base {base}` adds some"
        )
    at = {name: i for i, name in enumerate(names)}
    gram, centred, kinship = (np.full((len(names), len(names)), np.nan) for _ in range(3))
    base_id = naming.find(con, base)
    for a, b, against, numel, dot, sum_a, sum_b, sumsq_a, sumsq_b in measured_sums(con, names):
        if against != base_id:
            continue
        i, j = at[a], at[b]
        gram[i, j] = gram[j, i] = dot
        centred[i, j] = centred[j, i] = dot - sum_a * sum_b / numel
        gram[i, i], gram[j, j] = sumsq_a, sumsq_b
        centred[i, i], centred[j, j] = sumsq_a - sum_a**2 / numel, sumsq_b - sum_b**2 / numel
    weak: set[frozenset[str]] = set()
    for a, b, pcc, is_enough in in_family(con, base):
        if a in at and b in at and not is_enough:
            weak.add(frozenset((a, b)))
            gram[at[a], at[b]] = centred[at[a], at[b]] = np.nan
        elif a in at and b in at:
            kinship[at[a], at[b]] = pcc
    np.fill_diagonal(kinship, 1.0)
    by_benchmark = _scores(con, at)
    edges = [(parent, child, relation) for parent, child, relation in graph.edges(con) if relation != "base"]
    merged: dict[str, set[str]] = {}
    for parent, child, relation in edges:
        if relation == "merge":
            merged.setdefault(child, set()).add(parent)
    made = {frozenset(pair) for pair in merged.values()} | {frozenset(edge[:2]) for edge in edges}
    made |= {frozenset((a, b)) for parents in merged.values() for a in parents for b in parents if a < b}
    return Population(
        base, names, gram, centred, kinship, _model_scores(con, at), by_benchmark, frozenset(made), _generations(names, merged),
        frozenset(weak),
        np.array(merges.gains(con, base), float).reshape(-1, 2),
    )  # fmt: skip


def _base(con: Connection, family: str | None) -> str:
    if family is not None:
        name = naming.resolve(con, family)
        found = families(con, [name])
        if not found:
            raise KinbaseError(f"{name} has no base, so no family: import it again with --base")
        return found.pop()
    bases = families_with_members(con)
    if not bases:
        raise KinbaseError(
            "there is no family of two models yet: `kinbase import MODEL... --base BASE` makes one"
        )
    if len(bases) > 1:
        raise KinbaseError(f"there are {len(bases)} families: name one of {', '.join(bases[:5])}")
    return bases[0]


def _model_scores(con: Connection, at: dict[str, int]) -> FloatArray:
    """What the models' scores are [N], as everywhere, in percent."""
    values = np.full(len(at), np.nan)
    for model, (score, _) in model_scores(con, list(at)).items():
        values[at[model]] = score
    return values * (100.0 if np.nanmax(np.abs(values), initial=0.0) <= 1 else 1.0)


def _scores(con: Connection, at: dict[str, int]) -> FloatArray:
    """Scores in percent [N, B] of the benchmarks that most models share, or of the printed average."""
    table: dict[str, dict[int, float]] = {}
    for model, benchmark, value in readings(con, list(at)):
        table.setdefault(benchmark, {})[at[model]] = value
    printed = table.pop("average", {})
    scored = {i for values in table.values() for i in values}
    shared = sorted(b for b, values in table.items() if 2 * len(values) > len(scored))
    whole = {i for i in scored if all(i in table[b] for b in shared)}
    columns = [table[b] for b in shared] if len(whole) >= len(printed) else [printed]
    values = np.array([[column.get(i, np.nan) for column in columns] for i in range(len(at))]).reshape(
        len(at), -1
    )
    with np.errstate(invalid="ignore"):
        return values * (100.0 if values.size and np.nanmax(np.abs(values), initial=0.0) <= 1 else 1.0)


def _generations(names: Sequence[str], merged: dict[str, set[str]]) -> NDArray[np.intp]:
    """Each model's generation: merges on the longest way down to it."""
    lineage = nx.DiGraph([(p, c) for c, parents in merged.items() for p in parents])
    while lineage and not nx.is_directed_acyclic_graph(lineage):
        lineage.remove_edge(*nx.find_cycle(lineage)[-1][:2])
    depth: dict[str, int] = {}
    for node in nx.topological_sort(lineage):
        depth[node] = max((depth[p] + 1 for p in lineage.predecessors(node)), default=0)
    return np.array([depth.get(name, 0) for name in names], np.intp)


def predict(gram: FloatArray, centred: FloatArray, a: int, b: int) -> tuple[float, FloatArray]:
    """Of the child of models a and b, half of each: the length of its delta, and its PCC with every model [N]."""
    squared = (gram[a, a] + gram[b, b] + 2 * gram[a, b]) / 4
    own = (centred[a, a] + centred[b, b] + 2 * centred[a, b]) / 4
    along = (centred[a] + centred[b]) / 2
    with np.errstate(invalid="ignore", divide="ignore"):
        kinship = along / np.sqrt(own * np.diagonal(centred))
    return float(np.sqrt(max(squared, 0.0))), np.clip(kinship, -1, 1)


def predict_from_kinship(kinship: FloatArray, a: int, b: int) -> FloatArray:
    """The same from correlations alone, as if all deltas were of one length."""
    result: FloatArray = (kinship[a] + kinship[b]) / np.sqrt(2 * (1 + kinship[a, b]))
    return np.clip(result, -1, 1)


def suggest(population: Population, k: int = 10) -> list[tuple[object, ...]]:
    """The k unmade pairs most worth making, as rows of COLUMNS, near twins left out while there are others.

    `predicted_kinship` is the child's with its `nearest` model and `to_best` its kinship with the best one; `norm`
    is the length of its delta; `ceiling` what the best of both parents on each benchmark would gain over the better
    parent; `estimate` the better parent's score and what merges of the family gained over theirs so far, `error` how far
    that was off. Ordered by the estimate, then by what of the ceiling is new, or without scores by the least kinship.
    """
    names, scores = population.names, population.scores
    scored = np.flatnonzero(np.isfinite(scores))
    best = int(scored[np.argmax(scores[scored])]) if len(scored) else None
    usable = _usable(population)
    pairs = np.argwhere(np.triu(np.isfinite(population.kinship) & usable[:, None] & usable, 1))
    means = np.nan_to_num(scores[pairs].mean(axis=1), nan=-np.inf)
    found = []
    for a, b in pairs[np.argsort(-means, kind="stable")].tolist():
        if frozenset((names[a], names[b])) not in population.made:
            found.append(_row(population, a, b, best))
        if len(found) == PAIRS_LOOKED_AT:
            break
    found.sort(key=lambda item: item[0])
    return [row for _, row in found[:k]]


def _usable(population: Population) -> NDArray[np.bool_]:
    """Members [N] that are no copy of one before them, and no strangers to the base by the length of their change."""
    length = np.sqrt(np.diagonal(population.gram))
    known = np.isfinite(length)
    usable = np.ones(len(population.names), bool)
    if known.any():
        usable = ~(known & (length > LONG * np.median(length[known])))
    with np.errstate(invalid="ignore"):
        apart = length[:, None] ** 2 + length**2 - 2 * population.gram
        same = apart <= SAME**2 * np.minimum(length[:, None], length) ** 2
    copies = np.triu(same & usable[:, None], 1).any(axis=0)
    return np.asarray(usable & ~copies)


def _row(
    population: Population, a: int, b: int, best: int | None
) -> tuple[tuple[bool, float, float], tuple[object, ...]]:
    names, scores = population.names, population.scores
    if np.isfinite(population.gram[a, b]):
        norm, kinship = predict(population.gram, population.centred, a, b)
        basis = "exact Gram"
    else:
        norm, kinship = np.nan, predict_from_kinship(population.kinship, a, b)
        basis = "kinship alone, equal lengths assumed"
    nearest = int(np.nanargmax(kinship))
    ceiling = np.nan
    both = population.by_benchmark[[a, b]]
    if both.shape[1] > 1 and np.isfinite(both).all():
        ceiling = float(both.max(axis=0).mean() - both.mean(axis=1).max())
    twin = bool(kinship[nearest] > TWIN)
    novelty = 1 - max(float(kinship[nearest]), 0.0)
    known = np.isfinite(scores[[a, b]]).all()
    estimate = float(scores[[a, b]].max()) + population.correction if known else None
    worth = (
        (estimate, novelty * float(np.nan_to_num(ceiling)))
        if estimate is not None
        else (-np.inf, -float(population.kinship[a, b]))
    )
    if twin:
        reason = f"not worth making: a near twin of {names[nearest]}"
    elif known:
        room = (
            f"room for {ceiling:.1f} points over the better parent"
            if ceiling > 0
            else "the better parent is as good everywhere"
            if ceiling <= 0
            else "no benchmarks in common by which to tell the room"
        )
        close = population.kinship[a, b]
        reason = f"{room}, " + (
            "little akin" if close < 0.3 else "akin" if close < 0.7 else "close kin: expect little change"
        )
    else:
        reason = "no scores here: by kinship alone"
    to_best = float(kinship[best]) if best is not None else np.nan
    numbers = [float(population.kinship[a, b]), float(kinship[nearest]), norm, to_best, ceiling]
    kin, predicted, length, best_kin, most = (None if np.isnan(x) else x for x in numbers)
    first, second = (None if np.isnan(x) else float(x) for x in scores[[a, b]])
    figures = (first, second, kin, names[nearest], predicted, length, best_kin, most)
    error = population.error if estimate is not None else None
    return (twin, -worth[0], -worth[1]), (names[a], names[b], *figures, estimate, error, basis, reason)


# Saturation.


def trend(population: Population, k: int = 3) -> list[Step]:
    """The best k of the population after each generation of merges, and how akin they are."""
    steps = []
    scored = np.isfinite(population.scores)
    for generation in range(int(population.generation[scored].max(initial=0)) + 1):
        there = np.flatnonzero(scored & (population.generation <= generation))
        if len(there) < k:
            continue
        top = there[np.argsort(-population.scores[there], kind="stable")][:k]
        pairs = population.kinship[np.ix_(top, top)][np.triu_indices(k, 1)]
        mean = float(pairs.mean()) if k > 1 and np.isfinite(pairs).all() else None
        names = tuple(population.names[i] for i in top)
        steps.append(Step(generation, len(there), names[0], float(population.scores[top[0]]), names, mean))
    return steps


def saturation(steps: Sequence[Step], threshold: float = 0.9, patience: int = 2) -> str:
    """One line: whether the best k have become one another's kin, for how long, and what that advises."""
    if not steps:
        return "saturation: too few scored models to tell"
    last = steps[-1]
    k = len(last.top)
    if last.top_kinship is None:
        return f"saturation: the kinship of the {k} best ({', '.join(last.top)}) is not wholly known, so nothing follows from it"
    above = 0
    for step in reversed(steps):
        if step.top_kinship is None or step.top_kinship <= threshold:
            break
        above += 1
    figure = f"mean kinship of the {k} best is {last.top_kinship:.3f}"
    if above >= patience:
        return f"saturation: {figure}, above {threshold:g} for {above} generations: merging them changes little (stop)"
    if above:
        return f"saturation: {figure}, above {threshold:g} for {above} of {patience} generations: one more tells (go on)"
    return f"saturation: {figure}, not above {threshold:g}: the best still differ (go on)"
