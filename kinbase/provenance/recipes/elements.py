"""Elements of a child and of the models it may be made of, and which of them are made of parents that are in or out.

A merge of selected elements (TIES, DARE, and whatever leaves elements out) is no combination of its parents, but each of
its elements is one: where only parent i was kept the change is a_i d_i with the same a_i everywhere, where several
were it is their sum, or their mean (TIES). `Made` is such a reading, `Changes` tells which elements it makes up to their own
rounding, and which numbers beside them it would make by chance.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import combinations

import numpy as np
from numpy.typing import NDArray

from kinbase.provenance.recipes.least_squares import BITS, FloatArray
from kinbase.provenance.recipes.rounding import spacing

Mask = NDArray[np.bool_]

SUBNORMAL = 2.0**-24
"""The unit in the last place of float16 numbers below 2^-14, as many weights are."""

BESIDE = 4
"""Roundings beside an element, where a number is made by chance only."""


@dataclass(frozen=True, slots=True)
class Elements:
    """K sampled elements: of the child, the base and, by name, of candidates [K], float64.

    `bits` [K] are the child's significant bits; `group` [K] numbers the tensors they are from.
    """

    child: FloatArray
    base: FloatArray
    models: dict[str, FloatArray]
    bits: NDArray[np.int64]
    group: NDArray[np.int64]

    def at(self, chosen: "Mask | slice") -> "Elements":
        """Some of them."""
        models = {name: values[chosen] for name, values in self.models.items()}
        return Elements(self.child[chosen], self.base[chosen], models, self.bits[chosen], self.group[chosen])

    def about(self, count: int) -> "Elements":
        """About so many of them, evenly spread."""
        return self.at(slice(None, None, max(1, len(self.child) // count)))


Sampler = Callable[[Sequence[str]], Elements | None]
"""The sampled elements of a child and of candidates by name; None where their files cannot be read."""


@dataclass(frozen=True, slots=True)
class Made:
    """Parents and what each counts alone, everywhere or by element [K]; what kept ones weigh in their mean, None: their sum."""

    counts: dict[str, "float | FloatArray"]
    weights: dict[str, float] | None

    def beside(self, name: str, count: float) -> "Made":
        """The same with one more parent."""
        weights = None if self.weights is None else self.weights | {name: 1.0}
        return Made(self.counts | {name: count}, weights)

    def without(self, name: str) -> "Made":
        """The same with one parent less."""
        weights = None if self.weights is None else {n: w for n, w in self.weights.items() if n != name}
        return Made({n: c for n, c in self.counts.items() if n != name}, weights)


@dataclass(frozen=True, slots=True)
class Changes:
    """K elements that differ from the base's, `moved` of all: the child's changes, what rounding leaves room for,
    candidates' changes, and the tensors they are from."""

    moved: Mask
    change: FloatArray
    room: FloatArray
    deltas: dict[str, FloatArray]
    group: NDArray[np.int64]

    @classmethod
    def of(cls, elements: Elements) -> "Changes":
        """The elements that differ by more than rounding."""
        change = elements.child - elements.base
        # Half a unit for the last rounding; changes are rounded on the way, relative to their own size.
        room = 0.505 * units(elements) + np.ldexp(2.0, -elements.bits) * np.abs(change)
        moved = np.abs(change) > room
        deltas = {name: (w - elements.base)[moved] for name, w in elements.models.items()}
        return cls(moved, change[moved], room[moved], deltas, elements.group[moved])

    def loosened(self, share: float) -> "Changes":
        """The same with room for counts that are off by a share."""
        return replace(self, room=self.room + share * np.abs(self.change))

    def explained(self, made: Made, *, beside: float = 0.0) -> Mask:
        """Which elements, or numbers `beside` them by so many roundings, the parents make that are in or out."""
        hit = np.zeros(len(self.change), bool)
        wanted = self.change + beside * self.room
        for _, value in self.values(made):
            hit |= np.abs(wanted - value) <= self.room
        return hit

    def shares(self, made: Made) -> tuple[float, float]:
        """The share of the elements that parents make, and of numbers beside them."""
        at, below, above = (
            float(self.explained(made, beside=beside).mean()) for beside in (0, -BESIDE, BESIDE)
        )
        return at, (below + above) / 2

    def values(self, made: Made) -> list[tuple[list[int], FloatArray]]:
        """Of all sets of parents that may be kept: the parents by place, and what the elements are then [K]."""
        names = list(made.counts)
        weight = [1.0 if made.weights is None else made.weights[name] for name in names]
        parts = [w * made.counts[name] * self.deltas[name] for w, name in zip(weight, names, strict=True)]
        found = []
        for size in range(1, len(names) + 1):
            for some in combinations(range(len(names)), size):
                total = np.sum([parts[i] for i in some], axis=0)
                if made.weights is not None:
                    total = total / sum(weight[i] for i in some)
                found.append((list(some), np.asarray(total)))
        return found


def units(elements: Elements) -> FloatArray:
    """Units in the last place of the child's elements [K], of float16's subnormal numbers the one that they all have."""
    unit = spacing(np.where(elements.child == 0, 1e-300, elements.child), elements.bits)
    return np.where(elements.bits == BITS["F16"], np.maximum(unit, SUBNORMAL), unit)


def most_common(centre: FloatArray, half: FloatArray) -> float:
    """The number in most of the intervals centre +- half: the middle of where the most of them meet."""
    first, last = np.sort(centre - half), np.sort(centre + half)
    ended = np.searchsorted(last, first, "left")
    at = int((np.arange(len(first)) - ended).argmax())  # as many have begun and not ended there as anywhere
    until = min(last[ended[at]], first[at + 1] if at + 1 < len(first) else np.inf)
    found = float(first[at] + until) / 2
    for _ in range(
        3
    ):  # the deepest place is ragged: the mean of the intervals that hold it, by how narrow they are
        holding = np.abs(centre - found) <= half
        if not holding.any():
            break
        weight = half[holding] ** -2
        found = float(weight @ centre[holding] / weight.sum())
    return found
