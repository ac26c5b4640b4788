"""What a child's sums say it was made of: one verdict, with coefficients, intervals and what they rest on.

    merge                      a fixed combination of the parents leaves what rounding leaves: no more, no less
    copy                       one parent, rounded to fewer bits, or to the last bit the same
    one parent plus training   the parent's whole delta, and something new beside it
    TIES/DARE-like             the parents' deltas, with elements of them left out
    none of these              no combination comes near
    undecidable                rounding hides too much, or the equation can be read in two directions

A residual is held against what rounding the very merge found would leave (kinbase.provenance.recipes.rounding), in total and
tensor by tensor. That is what tells merges from siblings: a training run leaves some other amount, another in
every tensor. A residual alone, or one over the formula's floor, does not.
"""

from collections.abc import Sequence
from dataclasses import replace
from itertools import combinations, islice

import numpy as np

from kinbase.provenance.recipes.intervals import (
    COPY,
    LEAST,
    MERGE,
    NONE,
    SELECTED,
    TRAINED,
    UNDECIDABLE,
    Finding,
    Parent,
    fitted,
    graded,
)
from kinbase.provenance.recipes.least_squares import (
    BITS,
    EXACT,
    LIMIT,
    MOST,
    FloatArray,
    Grams,
    Normal,
    find_parents,
    inverse,
)
from kinbase.provenance.recipes.partial_merges import left_out, trained_from

__all__ = [
    "COPY", "MERGE", "NONE", "SELECTED", "TRAINED", "UNDECIDABLE", "Finding", "Parent", "fitted", "graded", "judge",
]  # fmt: skip

MADE = 9.0
"""Squared residual, in squared floors, below which a candidate is made of others: it divides by its share."""

SMALL = 0.1
"""The same over the candidate's own squared length."""

ALIKE = 0.05
"""Logarithms of ratios to what rounding leaves that differ by no more than this do not tell sets of parents apart."""

MOST_SETS = 300
MOST_FITS = 30
"""Sets of candidates that are looked at, the small ones first, and of those that fit, the ones held against each other."""


def judge(grams: Grams, zeros: FloatArray | None = None) -> Finding:
    """The verdict on a child from its sums and its candidates'.

    `zeros` [T, M + 1] is the share of elements equal to the base's, of each candidate and, last, of the child.
    """
    sumsq = float(grams.sumsq.sum())
    if sumsq == 0:
        return Finding(COPY, "not a weight differs from the base's", 0.0, None)
    usable = [i for i in range(len(grams.names)) if float(grams.gram[:, i, i].sum()) > 0]
    notes: list[str] = []
    while usable:
        finding = _judge(grams.of(usable), None if zeros is None else zeros[:, [*usable, -1]])
        turned = _turned(finding, grams.of(usable))
        if turned is None:
            finding.notes = notes + finding.notes
            return finding
        child, convex = turned
        line = f"{child} is a merge of this model and others, or the other way round"
        if not convex:
            return replace(
                finding, verdict=UNDECIDABLE, parents=[], nearest=finding.parents, notes=notes,
                reason=f"the equation reads as well with {child} as the child: dates or lineage would decide",
            )  # fmt: skip
        notes.append(line.replace(", or the other way round", ", not one of its parents"))
        usable = [i for i in usable if grams.names[i] != child]
    return Finding(NONE, "there is nothing to make it of", 1.0, grams.floor, rho=1 / grams.floor, notes=notes)


def _judge(grams: Grams, zeros: FloatArray | None) -> Finding:
    normal = Normal.beside_base(grams) if grams.based else Normal.of(grams)
    one = _single(grams)
    if one is not None:
        return one
    chosen = find_parents(normal)
    whole = fitted(grams, chosen) if chosen else None
    if whole is not None and whole.verdict == MERGE:
        chosen, whole = _told_apart(grams, normal, chosen, whole)
    by_depth = None
    if whole is not None and whole.verdict == MERGE:
        if not _nearly_linear(whole):
            return _with_alternatives(whole, grams, normal, chosen)
        by_depth = graded(grams.of(chosen))
        if by_depth is None or _off(by_depth) > _off(whole):
            return _with_alternatives(whole, grams, normal, chosen)
    by_depth = by_depth or graded(grams)
    if by_depth is not None:
        return by_depth
    if whole is not None and (whole.residual or 0.0) ** 2 * normal.sumsq <= LIMIT**2 * normal.floor:
        return whole
    return _unmerged(grams, zeros, chosen, whole)


def _told_apart(grams: Grams, normal: Normal, chosen: list[int], whole: Finding) -> tuple[list[int], Finding]:
    """The parents, where candidates make each other up to rounding, as merges of the same models do.

    Many sets of such candidates then fit within rounding. The child's parents are those that leave just what rounding
    leaves: another merge in their place brings its own rounding with it, and beside them it explains some of
    the child's, because merges of the same models are rounded alike.
    """
    others = [j for j in range(len(grams.names)) if j not in chosen]
    lengths = np.diagonal(normal.gram)
    bound = np.minimum(
        MADE * normal.floor, SMALL * lengths
    )  # a change that is hardly longer than rounding is not made
    room = {j: float(lengths[j]) - _along(normal, chosen, j) for j in others}
    spanned = sorted((j for j in others if room[j] <= bound[j]), key=lambda j: room[j])[:MOST]
    made = 1 / np.diagonal(inverse(normal.gram[np.ix_(chosen, chosen)])) <= bound[chosen]
    if not spanned and not made.any():
        return chosen, whole
    pool = [*chosen, *spanned]
    sets = (list(some) for size in range(1, len(chosen) + 1) for some in combinations(pool, size))
    fits = (some for some in islice(sets, MOST_SETS) if normal.solve(some)[1] <= LIMIT**2 * normal.floor)
    fitting = list(islice(fits, MOST_FITS))
    found = [(some, fitted(grams, some)) for some in fitting if some != chosen]
    merges = [(chosen, whole), *(pair for pair in found if pair[1].verdict == MERGE)]
    fewest = min(_needless(merge) for _, merge in merges)
    nearest = min(_off(merge) for _, merge in merges if _needless(merge) == fewest)
    plain = [pair for pair in merges if _needless(pair[1]) == fewest and _off(pair[1]) <= nearest + ALIKE]
    # Of those that are as good, the first: the chosen ones, unless a set has fewer negative ones, or fewer at all.
    return min(
        plain, key=lambda pair: (sum(p.coefficient < 0 for p in pair[1].parents), len(pair[1].parents))
    )


def _needless(found: Finding) -> int:
    return sum(p.low <= 0 <= p.high for p in found.parents)


def _along(normal: Normal, chosen: Sequence[int], column: int) -> float:
    """The squared length of what of a column the chosen ones make."""
    rows = list(chosen)
    cross = normal.gram[rows, column]
    return float(cross @ inverse(normal.gram[np.ix_(rows, rows)]) @ cross)


def _off(found: Finding) -> float:
    """How far the residual is from what rounding leaves."""
    return abs(float(np.log(found.ratio or 1e-9)))


def _nearly_linear(found: Finding) -> bool:
    """Two parents that add up to a little more or less than 1: SLERP, unless it fits no better."""
    return len(found.parents) == 2 and found.method == "task_arithmetic" and abs(found.base or 0.0) < 0.05


def _single(grams: Grams) -> Finding | None:
    """A copy of one candidate, or one so near to it that nothing else can be told."""
    gram = grams.gram.sum(axis=0)
    cross, sumsq = grams.cross.sum(axis=0), float(grams.sumsq.sum())
    count = len(grams.names)
    apart = np.array([max(sumsq - 2 * cross[i] + gram[i, i], 0.0) for i in range(count)])
    best = int(apart.argmin())
    noise, name = float(grams.noise.sum()), grams.names[best]
    residual = float(np.sqrt(apart[best] / sumsq))
    facts = Finding(
        COPY, "", residual, grams.floor, [Parent(name, 1.0, 1.0, 1.0)], None,
        residual / grams.floor, grams.floor, residual / grams.floor, 1.0,
    )  # fmt: skip
    if apart[best] <= EXACT * sumsq:
        return replace(facts, reason=f"the same weights as {name}, as far as sums can tell", expected=None)
    if not grams.dtypes:
        return None
    parent, child = grams.dtypes[best], grams.dtypes[-1]
    if BITS[child] < BITS[parent] and apart[best] <= LIMIT**2 * noise:
        return replace(facts, reason=f"{name} rounded from {parent} to {child}")
    return None


def _with_alternatives(finding: Finding, grams: Grams, normal: Normal, chosen: Sequence[int]) -> Finding:
    """Name the candidates that could stand for a parent: the fit is as good with them."""
    rss = normal.solve(chosen)[1]
    for at, i in enumerate(chosen):
        rest = [j for j in range(len(grams.names)) if j not in chosen]
        swaps = [(j, normal.solve([*chosen[:at], j, *chosen[at + 1 :]])[1]) for j in rest]
        same = [grams.names[j] for j, left in swaps if left - rss <= normal.matters(rss)]
        if same:
            finding.alternatives[grams.names[i]] = same
            finding.notes.append(f"{grams.names[i]} could as well be {', '.join(same)}")
    return finding


def _turned(finding: Finding, grams: Grams) -> tuple[str, bool] | None:
    """The parent that may be the child instead, and whether that reading is a plain average (then it is).

    With d = sum a_i d_i + e, parent j is (d - sum over the others - e) / a_j: its residual is 1 / |a_j| times
    as long. Only an equation with a negative coefficient can be read the other way with none.
    """
    if finding.verdict != MERGE or finding.ratio is None or finding.gradient is not None:
        return None
    shares = {parent.parent: parent.coefficient for parent in finding.parents}
    if all(share > 0 for share in shares.values()):
        return None
    for name, share in shares.items():
        if share <= 0:
            continue
        others = [-a / share for other, a in shares.items() if other != name]
        if any(a <= 0 for a in others):
            continue
        convex = share > 1 and abs(sum(others) + 1 / share - 1) < 0.02
        same_bits = not grams.dtypes or BITS[grams.dtypes[grams.names.index(name)]] <= BITS[grams.dtypes[-1]]
        if same_bits and (convex or LEAST <= finding.ratio / share <= 1 / LEAST):
            return name, convex
    return None


def _unmerged(
    grams: Grams, zeros: FloatArray | None, chosen: Sequence[int], whole: Finding | None
) -> Finding:
    """What it is when no merge: selected elements of several, one parent trained on, or nothing known."""
    floor = grams.floor
    nearest = (whole.nearest or whole.parents) if whole else []
    residual = whole.residual if whole else 1.0
    plain = Finding(
        NONE, "", residual, floor, rho=(residual or 0.0) / floor, nearest=nearest,
        expected=whole.expected if whole else None, ratio=whole.ratio if whole else None,
        condition=whole.condition if whole else None,
    )  # fmt: skip
    selected = left_out(grams, zeros, chosen)
    if selected is not None and nearest:
        return replace(plain, verdict=SELECTED, reason=selected, parents=nearest, nearest=[])
    trained = trained_from(grams)
    if trained is not None:
        name, slope, half, left = trained
        rho = left / floor
        return replace(
            plain, verdict=TRAINED, residual=left, rho=rho, expected=None, ratio=None, condition=1.0,
            parents=[Parent(name, slope, slope - half, slope + half)], nearest=[],
            reason=f"the whole change of {name}, and as much as {rho:.1f} times rounding that is new",
        )  # fmt: skip
    if floor >= 1 / LIMIT and (whole is None or whole.ratio is None or whole.ratio <= LIMIT):
        return replace(
            plain, verdict=UNDECIDABLE, reason="its whole change is hardly longer than rounding alone"
        )
    if nearest and residual is not None and residual < 0.5:
        said = " + ".join(f"{p.coefficient:.3g} {p.parent}" for p in nearest)
        reason = (
            f"nearest is {said}, but that leaves {residual / floor:.1f} times rounding: "
            "trained on after a merge, or a parent is not here"
        )
    else:
        reason = f"the best combination leaves {residual or 0:.0%} of its change, {(residual or 0) / floor:.1f} times rounding"
    return replace(plain, reason=reason)
