"""Which set of candidates a merge is of, where several fit: the smallest that makes it as rounding leaves it.

Merges of the same models make each other up to rounding, so many sets of them fit a child's sums. Where elements can be read, its
parents are those that make each of them (kinbase.provenance.recipes.element_fit); by sums alone, those that leave what rounding
them would leave.
"""

from collections.abc import Sequence
from dataclasses import replace
from itertools import combinations, islice

import numpy as np
from numpy.typing import NDArray

from kinbase.provenance.recipes.arithmetic import written
from kinbase.provenance.recipes.element_fit import ElementFit
from kinbase.provenance.recipes.intervals import (
    MERGES,
    UNDECIDABLE,
    Finding,
    fitted,
    is_negative,
    off,
    tolerance,
)
from kinbase.provenance.recipes.least_squares import (
    LIMIT,
    MOST,
    FloatArray,
    Grams,
    Normal,
    find_parents,
    inverse,
    solve,
)
from kinbase.provenance.recipes.rounding import Population, bends

MADE = 9.0
"""Squared residual, in squared floors, below which a candidate is made of others: it divides by its share."""

SMALL = 0.1
"""The same over the candidate's own squared length."""

NARROW, NEXT = 0.012, 0.001
"""Width of an interval in which a multiple of 0.05 is no chance, and how near to one a coefficient is the same in any case."""

BY_WAY = 0.25
"""Most elements that a merge leaves outside that was made by way of a merge that is not here: a quarter of that one's share."""

FEWER = 1.5
"""How many times as many elements fewer models must leave outside for one more to be told."""

PLAINLY = 0.025
"""By how much nearer to what rounding leaves one more parent must bring the logarithm of the residual."""

MOST_SETS = 2000
MOST_FITS = 4
MOST_TESTED = 12
MOST_PARENTS = 6
"""Sets of candidates of one size that are looked at; of those that fit, how many are held against rounding, and against sampled
elements; and the largest."""


def made_of(grams: Grams, normal: Normal, chosen: list[int], fit: ElementFit) -> list[int] | None:
    """The fewest candidates that make each sampled element, of those found and of those that these and others make.

    None where no few of them do. Sets of one size that all do differ in what rounding hides: the nearest wins.
    """
    pool = [*chosen, *_making(normal, chosen)]
    for size in range(1, min(len(pool), MOST_PARENTS) + 1):
        for some in _near_sets(normal, pool, size)[:MOST_TESTED]:
            if fit.is_made([grams.names[i] for i in some]):
                return some
    return None


def _near_sets(normal: Normal, pool: Sequence[int], size: int) -> list[list[int]]:
    """The sets of so many of the candidates in a pool that leave no more than rounding may, the nearest first."""
    sets = np.array(list(islice(combinations(pool, size), MOST_SETS)), dtype=np.intp)
    left = _left_by_each(normal, sets)
    return [sets[i].tolist() for i in np.argsort(left, kind="stable") if left[i] <= LIMIT**2 * normal.floor]


def unless_missed(
    whole: Finding, grams: Grams, normal: Normal, chosen: list[int], fit: ElementFit
) -> Finding:
    """A merge by its sums that does not make its sampled elements: rounded at each step, by way of a merge that is not here, or
    a doubt.

    Steps are run again, or, where people's weights do not tell them, believed while no other models fit. A merge that is not
    here brings its own rounding, a quarter of its share in elements that are not made; another merge in a parent's place
    brings more. So the models that leave by far the fewest are its parents.
    """
    names = [p.parent for p in whole.parents]
    if fit.is_made(names) is not False:
        return whole
    coefficients = np.array([p.coefficient for p in whole.parents])
    half = np.array([p.high - p.coefficient for p in whole.parents])
    if fit.is_made_in_steps(names, written(coefficients, whole.base or 0.0, half)):
        return replace(whole, reason=f"{whole.reason}, and make its sampled elements")
    missed = f"{fit.outside(names) or 0.0:.0%} of its sampled elements are not made by {' + '.join(names)} to half a unit"
    if is_negative(whole):
        return _doubted(whole, f"a difference leaves what rounding would, but {missed}")
    pool = [*chosen, *_making(normal, chosen)]
    best, rival = _fewest_outside(grams, normal, pool, fit)
    if rival is None and whole.is_in_steps:
        return whole
    least = 1.0 if best is None else fit.outside([grams.names[i] for i in best]) or 0.0
    told = fitted(grams, best) if best is not None and rival is None and least <= BY_WAY else None
    if told is None or told.verdict not in MERGES or is_negative(told):
        others = f", and {' + '.join(grams.names[i] for i in rival)} comes as near" if rival else ""
        return _doubted(whole, f"{missed}{others}: another parent is not here")
    told.notes.append(
        f"{least:.0%} of its sampled elements are not made by them: it was merged by way of a model not here"
    )
    return told


def _fewest_outside(
    grams: Grams, normal: Normal, pool: Sequence[int], fit: ElementFit
) -> tuple[list[int] | None, list[int] | None]:
    """The set of candidates that leaves the fewest elements outside, and one of its size that may as well be the parents."""
    best: list[int] | None = None
    rival: list[int] | None = None
    least = 1.0

    def named(some: Sequence[int]) -> list[str]:
        return [grams.names[i] for i in some]

    for size in range(1, min(len(pool), MOST_PARENTS) + 1):
        found = []
        for some in _near_sets(normal, pool, size)[:MOST_TESTED]:
            outside = fit.outside(named(some))
            if outside is not None:
                found.append((outside, some))
        found.sort()
        if found and found[0][0] < least / FEWER:
            least, best = found[0]
            rival = next((some for _, some in found[1:] if not fit.is_nearer(named(best), named(some))), None)
    return best, rival


def _doubted(whole: Finding, reason: str) -> Finding:
    return replace(whole, verdict=UNDECIDABLE, reason=reason, nearest=whole.parents, parents=[])


def simplest(grams: Grams, normal: Normal, chosen: list[int], whole: Finding) -> tuple[list[int], Finding]:
    """The fewest parents that leave what rounding leaves, of those found and of those that these and others make.

    Merges of the same models make each other up to rounding, so many sets of them fit. Another merge in a
    parent's place brings its own rounding with it; beside the parents it explains some of the child's, because merges of
    the same models are rounded alike. So what is left must be what rounding the very set would leave, and
    of the sets of which it is, the smallest wins: the positive ones, then the nearest.
    """
    pool = [*chosen, *_making(normal, chosen)]
    if len(pool) == len(chosen) and len(chosen) < 3 and whole.verdict in MERGES:
        return chosen, whole
    population = Population(grams.of(pool)) if bends(grams) else None
    inner = grams.of(pool)
    enough = tolerance(inner)
    best: list[tuple[list[int], Finding]] = []
    plain: tuple[list[int], Finding] | None = None
    for size in range(1, min(len(chosen) + 2, len(pool) + 1, MOST_PARENTS + 1)):
        sets = np.array(list(islice(combinations(range(len(pool)), size), MOST_SETS)), dtype=np.intp)
        left = _left_by_each(normal, np.asarray(pool, np.intp)[sets])
        order = [i for i in np.argsort(left, kind="stable")[:MOST_FITS] if left[i] <= LIMIT**2 * normal.floor]
        fits = [(float(left[i]), sets[i].tolist()) for i in order]
        found = [(some, fitted(inner, some, population)) for _, some in fits]
        merges = [pair for pair in found if pair[1].verdict in MERGES]
        best += merges
        good = [pair for pair in merges if off(pair[1]) <= enough and not _needless(pair[1])]
        if good:
            # Rounding at every step leaves more, as another merge in a parent's place does: it is the second guess.
            better = min(good, key=_second_guesses)
            if plain is None or (off(better[1]) + PLAINLY < off(plain[1]) and not is_negative(better[1])):
                plain = better
        if plain is not None and not (good and off(plain[1]) > PLAINLY):
            return [pool[i] for i in plain[0]], plain[1]
    if plain is not None:
        return [pool[i] for i in plain[0]], plain[1]
    if not best:
        return chosen, whole
    some, finding = min(best, key=lambda pair: (_needless(pair[1]), is_negative(pair[1]), off(pair[1])))
    return [pool[i] for i in some], finding


def _second_guesses(pair: tuple[list[int], Finding]) -> tuple[bool, bool, bool, float]:
    return is_negative(pair[1]), not is_human(pair[1]), pair[1].is_in_steps, off(pair[1])


def _left_by_each(normal: Normal, sets: NDArray[np.intp]) -> FloatArray:
    """Squared residuals [S] of least squares on S sets of as many columns [S, P]."""
    gram = normal.gram[sets[:, :, None], sets[:, None, :]]
    cross = normal.cross[sets]
    values = solve(gram, cross)
    rss = normal.sumsq - 2 * (cross * values).sum(axis=1) + np.einsum("sp,spq,sq->s", values, gram, values)
    return np.asarray(np.maximum(rss, 0.0))


def _making(normal: Normal, chosen: Sequence[int]) -> list[int]:
    """Candidates that the chosen ones make but for rounding, and candidates that make one of the chosen ones."""
    others = [j for j in range(len(normal.cross)) if j not in chosen and normal.gram[j, j] > 0]
    lengths = np.diagonal(normal.gram)
    # A change that is hardly longer than rounding is not made.
    bound = np.minimum(MADE * normal.floor, SMALL * lengths)
    room = {j: float(lengths[j]) - _along(normal, chosen, j) for j in others}
    found = sorted((j for j in others if room[j] <= bound[j]), key=lambda j: room[j])[:MOST]
    for i in chosen[:MOST_PARENTS]:
        rest = [j for j in (*others, *chosen) if j != i]
        target = Normal(
            normal.gram[np.ix_(rest, rest)],
            normal.gram[rest, i],
            float(lengths[i]),
            normal.floor,
            normal.numel,
        )
        parents = find_parents(target)
        if parents and target.solve(parents)[1] <= bound[i]:
            found += [rest[j] for j in parents]
    return [j for j in dict.fromkeys(found) if j not in chosen][:MOST]


def _needless(found: Finding) -> int:
    return sum(p.low <= 0 <= p.high for p in found.parents)


def is_human(found: Finding) -> bool:
    """Whether all coefficients are multiples of 0.05, as people write them, as narrowly as they are known."""
    return all(
        p.high - p.low < NARROW
        and abs(p.coefficient - round(20 * p.coefficient) / 20) <= max(NEXT, p.high - p.low)
        for p in found.parents
    )


def _along(normal: Normal, chosen: Sequence[int], column: int) -> float:
    """The squared length of what of a column the chosen ones make."""
    rows = list(chosen)
    cross = normal.gram[rows, column]
    return float(cross @ inverse(normal.gram[np.ix_(rows, rows)]) @ cross)
