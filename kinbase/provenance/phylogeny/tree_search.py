"""The likeliest tree of models, from squared distances between their weights alone.

What weights keep of their history is geometry. A child's change is laid on top of its parent's, nearly at
right angles to it: in a chain g -> p -> c the cosine of c - p and p - g is near 0, and in every tensor. Two
children of one parent have learned something in common: the cosine of their changes is hardly ever
negative. A sibling taken for a parent fails the first, a wrong root turns siblings into chains and fails the
second. So a tree is judged by the lengths of its increments and by the cosines between them; networkx's
minimum arborescence gives the tree to begin with, and branches move while that raises the score. The
figures of `Model` were fitted to families of real fine-tunes (benchmarks/inferring.py --fit).
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import networkx as nx
import numpy as np
from numpy.typing import NDArray

FloatArray = NDArray[np.float64]
Parents = NDArray[np.intp]

SIBLING, CHAIN, OTHER = 0, 1, 2

CIRCULAR = 50.0
"""Taken from the score for each model too many in a circle: a search may begin in one, and leaves it first."""


LARGE, NEAREST = 96, 24
"""Models from which on a child's parent is looked for among so many nearest ones, and the one nearest to all."""

RIVALS = 3
"""Other parents of a child that are tried for a circle when the margin of its edge is taken."""

TRACE = 0.0005
"""Density that is left everywhere: one strange pair does not decide a tree."""

Shape = tuple[float, float, float, float]


@dataclass(frozen=True)
class Model:
    """What increments of real fine-tunes look like: the figures that trees are judged by.

    `sibling`, `chain` and `other` are asymmetric Laplace densities (mode, scale below it, scale above it, share
    of far larger ones) of the cosine between two increments: of one parent's children, of a child's and its parent's, of any
    others; `other_weight` discounts the last, which are many and not independent. `length` weighs the
    log-length of an increment, `spread` the deviation of a chain's cosine from tensor to tensor beyond
    `typical`, `growth` the growth of the weights' length along an edge, `hub` the log of the number of
    the root's children (a base is what most start from), `late` a parent younger than its child.
    """

    length: float = 5.5
    sibling: Shape = (0.0, 0.007, 0.09, 0.18)
    chain: Shape = (-0.025, 0.033, 0.07, 0.03)
    other: Shape = (0.004, 0.021, 0.064, 0.1)
    other_weight: float = 0.38
    spread: float = 1.0
    typical: float = 0.06
    growth: float = 0.44
    hub: float = 2.0
    late: float = 3.0


MODEL = Model()


def log_density(cosine: FloatArray, shape: Shape) -> FloatArray:
    """Log of an asymmetric Laplace density, with a uniform share above the mode and a trace of one below."""
    mode, below, above, share = shape
    exponent = np.where(cosine < mode, (cosine - mode) / below, (mode - cosine) / above)
    uniform = np.where(cosine < mode, 0.0, share) + TRACE
    result: FloatArray = np.log((1 - share) * np.exp(exponent) / (below + above) + uniform)
    return result


class Tree:
    """A tree over N models: `parents` [N] with -1 at the root, and what it takes to judge and change it.

    `squared` [T, N, N] are squared distances by tensor, `total` [N, N] over all tensors (of which `squared` may be
    the large ones), `growth` [N, N] the growth of the weights' length from
    row to column in -1..1, `merges` {child: its parents}, which stay as they are, `late` [N, N] whether a
    parent (row) is younger than a child (column). `root` fixes the root.
    """

    def __init__(
        self,
        squared: FloatArray,
        growth: FloatArray,
        merges: Mapping[int, list[int]],
        *,
        total: FloatArray | None = None,
        late: NDArray[np.bool_] | None = None,
        root: int | None = None,
        model: Model = MODEL,
    ) -> None:
        self.squared = squared
        self.total = squared.sum(axis=0) if total is None else total
        self.size = len(self.total)
        self.merges = merges
        self.fixed = root
        self.model = model
        self.free = np.array([c not in merges for c in range(self.size)])
        self.bonus = model.growth * growth - model.late * (
            late if late is not None else np.zeros_like(growth)
        )
        self.allowed = ~np.eye(self.size, dtype=bool)
        for child, parents in merges.items():
            self.allowed[:, child] = False
            self.allowed[parents[0], child] = True
            self.allowed[child, parents] = False
        if root is not None:
            self.allowed[:, root] = False
        # Of a large family only the nearest can be parents, and whoever may be the root.
        self.near = np.ones_like(self.allowed)
        if self.size > LARGE:
            order = np.argsort(np.argsort(self.total, axis=0), axis=0)
            middle = root if root is not None else int(np.median(self.total, axis=1).argmin())
            self.near = order <= NEAREST
            self.near[middle] = True
        self._spreads: dict[tuple[int, int], FloatArray] = {}
        self.parents = self._start()

    @property
    def root(self) -> int:
        """The model without a parent."""
        return int(np.flatnonzero(self.parents < 0)[0])

    def _start(self) -> Parents:
        """The minimum arborescence by log-distance from the fixed root, or from the model nearest to all others."""
        roots = [i for i in range(self.size) if self.free[i]]
        root = (
            self.fixed
            if self.fixed is not None
            else min(roots, key=lambda i: float(np.median(self.total[i])))
        )
        tiny = np.finfo(float).tiny
        cost = np.log(np.maximum(self.total, tiny)) - np.log(tiny)
        graph = nx.DiGraph()
        graph.add_weighted_edges_from(
            (p, c, float(cost[p, c])) for p, c in np.argwhere(self.allowed).tolist() if c != root
        )
        parents = np.full(self.size, -1, np.intp)
        for parent, child in nx.minimum_spanning_arborescence(graph).edges:
            parents[child] = parent
        return parents

    # The score.

    def score(self, parents: Parents) -> float:
        """The log-likelihood of a tree but for a constant, with discounts for what is not independent."""
        rows = np.flatnonzero((parents >= 0) & self.free)
        above = parents[rows]
        length = np.maximum(self.total[rows, above], 1e-280)
        products = self._products(rows, above)
        cosines = products / np.outer(np.sqrt(length), np.sqrt(length))
        kinds = self._kinds(rows, above)
        upper = np.triu_indices(len(rows), 1)
        value = self._densities(cosines[upper], kinds[upper]).sum()
        value -= 0.5 * self.model.length * np.log(length).sum()
        value += self.bonus[above, rows].sum()
        value += self.model.hub * np.log(max(int((above == np.flatnonzero(parents < 0)[0]).sum()), 1))
        for child, parent in zip(rows, above, strict=True):
            if parents[parent] >= 0 and self.free[parent]:
                value += self._spread(int(parents[parent]), int(parent))[child]
        return float(value)

    def _products(self, rows: Parents, above: Parents) -> FloatArray:
        """Inner products of the increments from `above` to `rows`."""
        d = self.total
        result: FloatArray = (
            d[np.ix_(rows, above)] + d[np.ix_(above, rows)] - d[np.ix_(rows, rows)] - d[np.ix_(above, above)]
        ) / 2
        return result

    @staticmethod
    def _kinds(rows: Parents, above: Parents) -> NDArray[np.intp]:
        chain = (above[:, None] == rows[None]) | (rows[:, None] == above[None])
        return np.where(above[:, None] == above[None], SIBLING, np.where(chain, CHAIN, OTHER))

    def _densities(self, cosines: FloatArray, kinds: NDArray[np.intp]) -> FloatArray:
        cosines = np.clip(cosines, -1, 1)
        model = self.model
        other = model.other_weight * log_density(cosines, model.other) + (1 - model.other_weight) * 0.7
        return np.where(
            kinds == SIBLING, log_density(cosines, model.sibling),
            np.where(kinds == CHAIN, log_density(cosines, model.chain), other),
        )  # fmt: skip

    def _spread(self, grand: int, parent: int) -> FloatArray:
        """What the deviation by tensor of the cosine of grand -> parent -> child takes from the score, by child [N]."""
        known = self._spreads.get((grand, parent))
        if known is None:
            d = self.squared
            with np.errstate(invalid="ignore", divide="ignore"):
                cosines = (d[:, grand, :] - d[:, grand, parent, None] - d[:, parent, :]) / (
                    2 * np.sqrt(d[:, grand, parent, None] * d[:, parent, :])
                )
            there = np.isfinite(cosines)
            count = there.sum(axis=0)
            mean = np.where(there, cosines, 0).sum(axis=0) / np.maximum(count, 1)
            square = np.where(there, (cosines - mean) ** 2, 0).sum(axis=0) / np.maximum(count, 1)
            excess = (np.sqrt(square) - self.model.typical) / self.model.typical
            known = np.where(count >= 3, -self.model.spread * np.clip(excess, -0.5, 3), 0.0)
            self._spreads[grand, parent] = known
        return known

    # Moves.

    def search(self) -> None:
        """Climb to a tree that no single move betters: a branch moved, two neighbours swapped, another root."""
        best = self.score(self.parents) - self._circular(self.parents)
        while True:
            found = self._best_branch(best) or self._best_turn(best)
            if found is None:
                return
            best, self.parents = found

    def _best_branch(self, best: float) -> tuple[float, Parents] | None:
        """The best tree above `best` that one branch moved makes, and its score."""
        gains = self._branches(self.parents)
        score = self.score(self.parents)
        order = np.argsort(-gains, axis=None, kind="stable")
        for parent, child in zip(*np.unravel_index(order, gains.shape), strict=True):
            if score + gains[parent, child] <= best + 1e-9:
                return None
            trial = _with(self.parents, {int(child): int(parent)})
            value = score + float(gains[parent, child]) - self._circular(trial)
            if value > best + 1e-9:
                return value, trial
        return None

    def _best_turn(self, best: float) -> tuple[float, Parents] | None:
        """The same of neighbours swapped and of other roots."""
        trials = [(self.score(trial), trial) for trial in self._turns(self.parents)]
        for score, trial in sorted(trials, key=lambda pair: -pair[0]):
            if score <= best + 1e-9:
                return None
            value = score - self._circular(trial)
            if value > best + 1e-9:
                return value, trial
        return None

    def _branches(self, parents: Parents) -> FloatArray:
        """What the score gains by giving a child (column) another parent (row), [N, N]; -inf where it may not have it.

        Only what the move changes is scored: the child's own increment against all others, and its edges.
        """
        gains = np.full((self.size, self.size), -np.inf)
        rows = np.flatnonzero((parents >= 0) & self.free)
        if not len(rows):
            return gains
        above = parents[rows]
        root = int(np.flatnonzero(parents < 0)[0])
        hanging = int((above == root).sum())
        length = np.sqrt(np.maximum(self.total[rows, above], 1e-280))
        children: dict[int, list[int]] = {}
        for child, parent in zip(rows.tolist(), above.tolist(), strict=True):
            children.setdefault(parent, []).append(child)
        for child in rows.tolist():
            now = int(parents[child])
            open_ = self.allowed[:, child] & ~self._below(parents, child) & self.near[:, child]
            trial = np.union1d(np.flatnonzero(open_), [now])
            terms = self._edge_terms(parents, child, trial, rows, above, length)
            terms += self.model.hub * np.log(np.maximum(hanging - (now == root) + (trial == root), 1))
            for below in children.get(child, []):
                terms += np.array([self._spread(int(p), child)[below] for p in trial])
            gains[trial, child] = terms - terms[trial == now]
            gains[now, child] = -np.inf
        return gains

    def _edge_terms(
        self, parents: Parents, child: int, trial: Parents, rows: Parents, above: Parents, length: FloatArray
    ) -> FloatArray:
        """What the edges from each of the parents on `trial` to a child bring to the score, but for hub and children."""
        d = self.total
        others = rows != child
        j, up = rows[others], above[others]
        own = np.maximum(d[child, trial], 1e-280)
        products = (d[child, up] + d[np.ix_(trial, j)] - d[child, j] - d[np.ix_(trial, up)]) / 2
        cosines = products / (np.sqrt(own)[:, None] * length[others])
        chain = (trial[:, None] == j) | (up == child)
        kinds = np.where(trial[:, None] == up, SIBLING, np.where(chain, CHAIN, OTHER))
        terms = self._densities(cosines, kinds).sum(axis=1) - 0.5 * self.model.length * np.log(own)
        terms += self.bonus[trial, child]
        grand = [
            self._spread(int(parents[p]), int(p))[child] if parents[p] >= 0 and self.free[p] else 0.0
            for p in trial
        ]
        return np.asarray(terms + grand)

    def roots(self) -> list[int]:
        """Other roots by the likelihood of the tree's branches hung from them, best first."""
        if self.fixed is not None:
            return []
        trials = {int(i): hung(self.parents, int(i)) for i in np.flatnonzero(self.free & (self.parents >= 0))}
        scores = {i: self.score(trial) for i, trial in trials.items() if self._is_allowed(trial)}
        return sorted(scores, key=lambda i: -scores[i])

    def margins(self) -> dict[int, tuple[float, int | None]]:
        """Of each child, how much better the tree is than the best one in reach where it has another parent, and which.

        -1 is no parent: the child as the root. Infinite where there is no other.
        """
        found: dict[int, tuple[float, int | None]] = {}
        score, gains = self.score(self.parents), self._branches(self.parents)
        best = score - self._circular(self.parents)
        turns = [(self.score(trial) - self._circular(trial), trial) for trial in self._turns(self.parents)]
        for child in np.flatnonzero(self.free & (self.parents >= 0)).tolist():
            margin, rival = np.inf, None
            for parent in np.argsort(-gains[:, child])[:RIVALS].tolist():
                if np.isfinite(gains[parent, child]):
                    trial = _with(self.parents, {child: parent})
                    less = best - score - float(gains[parent, child]) + self._circular(trial)
                    if less < margin:
                        margin, rival = less, parent
            for value, trial in turns:
                if trial[child] != self.parents[child] and best - value < margin:
                    margin, rival = best - value, int(trial[child])
            found[child] = float(margin), rival
        return found

    def cosine(self, child: int) -> float | None:
        """The cosine of a child's change and its parent's; None where the parent is the root or a merge."""
        parent = int(self.parents[child])
        if self.parents[parent] < 0 or not self.free[parent]:
            return None
        rows = np.array([child, parent], np.intp)
        above = self.parents[rows]
        lengths = np.sqrt(self.total[rows, above])
        return float(self._products(rows, above)[0, 1] / max(float(lengths.prod()), 1e-300))

    def _turns(self, parents: Parents) -> Iterator[Parents]:
        for child in np.flatnonzero(self.free & (parents >= 0)):
            yield from self._swaps(parents, int(child))
        if self.fixed is None:
            for root in np.flatnonzero(self.free & (parents >= 0)):
                trial = hung(parents, int(root))
                if self._is_allowed(trial):
                    yield trial

    def _swaps(self, parents: Parents, child: int) -> Iterator[Parents]:
        """The child takes its parent's place: alone, or with all of its siblings."""
        parent = int(parents[child])
        if not self.free[parent] or parent == self.fixed:
            return
        change = {child: int(parents[parent]), parent: child}
        siblings = np.flatnonzero((parents == parent) & self.free)
        for trial in (
            _with(parents, change),
            _with(parents, {**dict.fromkeys(siblings.tolist(), child), **change}),
        ):
            if self._is_allowed(trial):
                yield trial

    def _is_allowed(self, parents: Parents) -> bool:
        rows = np.flatnonzero(parents >= 0)
        return bool(self.allowed[parents[rows], rows].all())

    @staticmethod
    def _below(parents: Parents, top: int) -> NDArray[np.bool_]:
        below = np.zeros(len(parents), bool)
        below[top] = True
        while True:
            grown = below | ((parents >= 0) & below[parents])
            if (grown == below).all():
                return below
            below = grown

    def _circular(self, parents: Parents) -> float:
        """What is taken from the score where merges descend from themselves by way of their other parents."""
        if not self.merges:
            return 0.0
        edges = [(int(p), c) for c, p in enumerate(parents) if p >= 0]
        edges += [(p, c) for c, several in self.merges.items() for p in several]
        groups = nx.strongly_connected_components(nx.DiGraph(edges))
        return CIRCULAR * sum(len(group) - 1 for group in groups)


def _with(parents: Parents, change: Mapping[int, int]) -> Parents:
    trial = parents.copy()
    for child, parent in change.items():
        trial[child] = parent
    return trial


def hung(parents: Parents, root: int) -> Parents:
    """The same branches hanging from another root."""
    trial = parents.copy()
    child, parent = root, int(parents[root])
    while parent >= 0:
        trial[parent], child, parent = child, parent, int(parents[parent])
    trial[root] = -1
    return trial
