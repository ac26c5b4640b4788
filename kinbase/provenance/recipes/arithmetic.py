"""How a merge may have been computed: rounded once, or product by product and sum by sum in its own dtype.

A merge that was computed in a wider dtype is rounded once. In a loop over tensors of the child's dtype (float32 models are
merged in float32 nearly always) each product and each partial sum is rounded as well, and so is the division by the
weights' total: that leaves up to half as much again. How much follows from the weights, so it is simulated as rounding
once is (kinbase.provenance.recipes.rounding), for the weights that people write.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from kinbase.provenance.recipes.least_squares import FloatArray, Grams
from kinbase.provenance.recipes.rounding import Estimate, Population

MOST_PARENTS = 8
"""Parents of a merge whose steps are simulated."""

HUMAN = 0.004
"""How far a coefficient may be from a multiple of 0.05 that people write."""

NEXT = 0.024
"""The same where rounding blurs it: nearer than halfway to the next."""

LARGEST = 4
"""The largest whole weight: of three models 1, 1 and 1, or 2, 1 and 1."""

WHOLE = 0.002
"""How far a share of whole weights may be from a coefficient."""

TURNS = 3
"""How often the written weights are guessed again from what their steps bend."""

ABSENT = 1e-3
"""A share of the base's weights that is none."""


def in_steps(
    population: Population, estimate: Estimate, coefficients: FloatArray, base: float, half: FloatArray
) -> Iterator[tuple[FloatArray, FloatArray]]:
    """What merges whose every step is rounded would be fitted as, by the ways to compute one.

    `coefficients` [P], as for one rounding, are known to within `half` [P]; `base` is the share of the base's raw weights;
    `estimate` fits sums. Gives coefficients freed of what the steps bend, and the expected squared residual by tensor.
    """
    fit, _ = estimate(population.grams)
    for way in ways(base):
        unbent = coefficients
        for _ in range(TURNS):
            found = way(unbent, base, half)
            if found is None:
                break
            shares = found.coefficients
            again, left = estimate(found.sums(population))
            unbent = fit[: len(shares)] - again[: len(shares)] + shares
            if (np.abs(unbent - shares) <= np.maximum(half, HUMAN)).all():
                yield unbent, left
                break


@dataclass(frozen=True, slots=True)
class Written:
    """Weights [P] that people write for a merge, the base's own as `base`: raw weights summed up and divided by `total`, or
    changes that are added to the base (`is_added`)."""

    weights: FloatArray
    base: float = 0.0
    total: float = 1.0
    is_added: bool = False

    @property
    def coefficients(self) -> FloatArray:
        """What each parent's change counts [P]."""
        return self.weights / self.total

    def sums(self, population: Population) -> Grams:
        """The sums of a merge with these weights, every step of it rounded."""
        if self.is_added:
            return population.added_in_steps(self.weights)
        return population.merged_in_steps(np.append(self.weights, self.base), self.total)


def written(coefficients: FloatArray, base: float, half: FloatArray) -> Iterator[Written]:
    """Weights that people write near coefficients [P] that are known to within `half`, `base` the share of the base's weights."""
    for way in ways(base):
        found = way(coefficients, base, half)
        if found is not None:
            yield found


Way = Callable[[FloatArray, float, FloatArray], "Written | None"]


def ways(base: float) -> list[Way]:
    """The ways to compute a merge that has so much of the base's weights."""
    summed: list[Way] = [_summed, _averaged] if abs(base) < ABSENT or base > 0 else []
    return [*summed, *([_added] if abs(base) >= ABSENT else [])]


def _summed(coefficients: FloatArray, base: float, half: FloatArray) -> Written | None:
    """Products of raw weights, added up; of SLERP, whose coefficients are sines, the share of the second is what is written."""
    shares = np.append(coefficients, 0.0 if abs(base) < ABSENT else base)
    if shares.min() < 0 or len(coefficients) > MOST_PARENTS:
        return None
    rounded, total = np.round(20 * shares) / 20, float(shares.sum())
    if _near(shares, rounded, np.append(half, half.sum())) and abs(rounded.sum() - 1) < 1e-9:
        weights = rounded.astype(np.float32).astype(float)  # written in decimals and applied in float32
    elif (
        len(shares) == 3
        and shares[2] == 0
        and _near(shares[1:2] / total, np.round(20 * shares[1:2] / total) / 20, 0.0)
    ):
        weights = shares / total if abs(total - 1) < HUMAN / 40 else shares
    else:
        return None
    return Written(weights[:-1], float(weights[-1]))


def _averaged(coefficients: FloatArray, base: float, half: FloatArray) -> Written | None:
    """Raw weights times small whole numbers, added up and divided by the numbers' sum."""
    shares = np.append(coefficients, 0.0 if abs(base) < ABSENT else base)
    if shares.min() < 0 or len(coefficients) > MOST_PARENTS or abs(shares.sum() - 1) > HUMAN:
        return None
    for least in range(1, LARGEST + 1):
        whole = np.round(shares * least / shares[shares > 0].min())
        if whole.max() <= LARGEST and (np.abs(shares - whole / whole.sum()) <= WHOLE).all():
            return Written(whole[:-1], float(whole[-1]), float(whole.sum()))
    return None


def _added(coefficients: FloatArray, base: float, half: FloatArray) -> Written | None:
    """Changes times their weights, added up and then to the base."""
    rounded = np.round(20 * coefficients) / 20
    return Written(rounded, is_added=True) if _near(coefficients, rounded, half) else None


def _near(shares: FloatArray, rounded: FloatArray, half: FloatArray | float) -> bool:
    return bool((np.abs(shares - rounded) <= np.clip(1.5 * np.asarray(half), HUMAN, NEXT)).all())
