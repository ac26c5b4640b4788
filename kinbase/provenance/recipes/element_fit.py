"""Whether a combination of models makes a child's sampled elements, each to half a unit in the child's last place.

Rounding moves an element by half a unit at most. So the parents of a merge that was rounded once make all of its
elements, while another merge in a parent's place brings its own rounding along: of numbers with an error uniform in half a unit,
and a share a of another such error, a / 4 lie farther off than half a unit. Sums over whole tensors tell such sets of models
apart only by how much is left of all elements together; 32,768 elements tell them by whether there is one too many. The
coefficients are those that leave the fewest elements outside: parameters from bounded errors (Milanese and Vicino 1991).
"""

from collections.abc import Iterable, Sequence
from dataclasses import replace
from itertools import islice, permutations

import numpy as np

from kinbase.provenance.recipes.arithmetic import Written
from kinbase.provenance.recipes.elements import Elements, Sampler, units
from kinbase.provenance.recipes.least_squares import BITS, FloatArray
from kinbase.provenance.recipes.rounding import added_in_steps, summed_in_steps

SLACK = 0.01
"""How far beyond half a unit, as a share of it, an element may be: what float64 and coefficients leave."""

STRAY = 0.003
"""Share of the changed elements that a combination that makes the child may miss: 0 but for numbers rounded twice, where another
merge in a parent's place at a share of 0.05 misses 0.0125."""

ROUGH, CLEARLY = 6144, 0.02
"""About how many elements are looked at first, and the share of them that none which make the child miss."""

ORDERS = 24
"""Orders of parents that are tried where sums were rounded at each step."""

CHANCE, PLAINLY = 4.0, 10.0
"""Variances of one element that a useless model takes away at most, and how many times as much is plainly more."""

STEPS = 30
"""Steps towards the coefficients that leave no element outside."""

HALVINGS = 6
"""How often a step is halved that does not help."""

CANCELLED = 8.0
"""How many times as long as an element a change may be: what nearly cancels has units so fine that a few such would decide."""

FEW = 400
"""Elements that must differ from the base's for anything to be told from them."""


class ElementFit:
    """How well combinations of models make the sampled elements of one child, read by a `sampler` when they are asked for.

    `bits` are the significant bits that the child was computed in, None: those that it is stored in.
    """

    def __init__(self, sampler: Sampler, bits: int | None = None) -> None:
        self._sampler, self._bits = sampler, bits
        self._known: dict[tuple[tuple[str, ...], bool], float | None] = {}

    def computed_in(self, bits: int) -> "ElementFit":
        """The same of a child that was computed in so many significant bits."""
        return ElementFit(self._sampler, bits)

    def outside(self, names: Sequence[str], *, by_tensor: bool = False) -> float | None:
        """The share of the child's changed elements that the best combination of models does not make.

        Coefficients are the same everywhere, or each tensor's own; the base's own weights are one more column. None where
        elements of a model cannot be read, too few differ from the base's, or the child's numbers are no floating-point ones.
        """
        key = tuple(sorted(names)), by_tensor
        if key not in self._known:
            self._known[key] = self._outside(names, by_tensor)
        return self._known[key]

    def is_nearer(self, some: Sequence[str], others: Sequence[str]) -> bool:
        """Whether of two sets of models the one leaves what both together leave, and the other plainly more.

        Another model in a parent's place brings its own rounding along, and the parent beside it takes that away; of as many
        elements each column takes about one of their variances by chance.
        """
        both = list(dict.fromkeys([*some, *others]))
        left = [self._squares(names) for names in (some, others, both)]
        if any(one is None for one in left):
            return False
        (ours, _), (theirs, _), (least, count) = (one or (0.0, 1) for one in left)
        chance = CHANCE * least / count
        return theirs - least > PLAINLY * max(ours - least, chance)

    def _squares(self, names: Sequence[str]) -> tuple[float, int] | None:
        """What the least squares of a combination leave, in half units, and of how many elements."""
        elements = self._clear(names)
        if elements is None:
            return None
        columns, target = _in_half_units(elements, names)
        off = target - columns @ np.linalg.lstsq(columns, target, rcond=None)[0]
        return float(off @ off), len(off)

    def is_made(self, names: Sequence[str], *, by_tensor: bool = False) -> bool | None:
        """Whether models make all elements but for a stray one; None where that is not known."""
        outside = self.outside(names, by_tensor=by_tensor)
        return None if outside is None else outside <= STRAY

    def is_made_in_steps(self, names: Sequence[str], recipes: Iterable[Written]) -> bool:
        """Whether one of the recipes, its every step rounded and its models in some order, makes all elements but a few."""
        elements = self._read(names)
        if elements is None:
            return False
        moved = max(int((elements.child != elements.base).sum()), 1)
        for recipe in recipes:
            for order in islice(permutations(range(len(names))), ORDERS):
                models, weights = [elements.models[names[i]] for i in order], recipe.weights[list(order)]
                if recipe.is_added:
                    changes = [model - elements.base for model in models]
                    made = added_in_steps(elements.base, changes, weights, elements.bits)
                else:
                    every = np.append(weights, recipe.base)
                    made = summed_in_steps([*models, elements.base], every, elements.bits, recipe.total)
                if (made != elements.child).sum() <= STRAY * moved:
                    return True
        return False

    def is_equal(self, name: str) -> bool | None:
        """Whether the child's sampled elements are a model's; None where that is not known."""
        elements = self._sampler([name])
        if elements is None or name not in elements.models:
            return None
        return bool((elements.models[name] == elements.child).all())

    def _read(self, names: Sequence[str]) -> Elements | None:
        elements = self._sampler(list(names))
        if elements is None or any(name not in elements.models for name in names):
            return None
        if elements.bits.min() < BITS["BF16"]:
            return None
        return (
            elements if self._bits is None else replace(elements, bits=np.minimum(elements.bits, self._bits))
        )

    def _clear(self, names: Sequence[str]) -> Elements | None:
        """The elements of the child and of models that do not nearly cancel."""
        elements = self._read(names)
        if elements is None:
            return None
        longest = np.max([np.abs(elements.models[name] - elements.base) for name in names], axis=0)
        return elements.at(np.abs(elements.child) > longest / CANCELLED)

    def _outside(self, names: Sequence[str], by_tensor: bool) -> float | None:
        elements = self._clear(names)
        if elements is None:
            return None
        rough = _outside(elements.about(ROUGH), names, by_tensor)
        return rough if rough is None or rough > CLEARLY else _outside(elements, names, by_tensor)


def _outside(elements: Elements, names: Sequence[str], by_tensor: bool) -> float | None:
    """The share of changed elements that the best combination of models does not make; None where hardly one changed."""
    moved = int((elements.child != elements.base).sum())
    if moved < FEW:
        return None
    columns, target = _in_half_units(elements, names)
    group = elements.group if by_tensor else np.zeros(len(target), np.int64)
    missed = sum(_missed(columns[rows], target[rows]) for rows in (group == g for g in np.unique(group)))
    return missed / moved


def _in_half_units(elements: Elements, names: Sequence[str]) -> tuple[FloatArray, FloatArray]:
    """Changes of models and, last, the base's weights [K, P + 1], and the child's changes [K], in half units of its elements."""
    half = units(elements) / 2
    columns = np.stack([*(elements.models[name] - elements.base for name in names), elements.base]) / half
    return columns.T, (elements.child - elements.base) / half


def _missed(columns: FloatArray, target: FloatArray) -> int:
    """Elements of a target [K] that the best combination of columns [K, P] misses by more than 1.

    Least squares first, then Gauss-Newton steps on the squares of what lies outside: that is convex, and 0 where all lie inside.
    """
    values = np.linalg.lstsq(columns, target, rcond=None)[0]
    off = target - columns @ values
    best = int((np.abs(off) > 1 + SLACK).sum())
    loss = _loss(off)
    for _ in range(STEPS):
        outside = np.abs(off) > 1
        if not best:
            break
        step = np.linalg.lstsq(columns[outside], off[outside] - np.sign(off[outside]), rcond=1e-12)[0]
        for _ in range(HALVINGS):
            trial = target - columns @ (values + step)
            if (less := _loss(trial)) < loss:
                break
            step /= 2
        else:
            break
        is_slow = less > 0.99 * loss
        values, off, loss = values + step, trial, less
        best = min(best, int((np.abs(off) > 1 + SLACK).sum()))
        if is_slow:
            break
    return best


def _loss(off: FloatArray) -> float:
    return float((np.maximum(np.abs(off) - 1, 0) ** 2).sum())
