"""What a child's sums say it was made of: one verdict, with coefficients, intervals and what they rest on.

    merge                          a fixed combination of the parents leaves what rounding leaves: no more, no less
    adapter merged                 the same of an adapter, laid on the base (or on a parent) at some scale
    copy                           one parent, rounded to fewer bits, or to the last bit the same
    TIES/DARE-like merge           the parents' deltas, with elements of them left out
    fine-tune                      a parent's whole delta, and something new beside it that is more than rounding
    continued training of a merge  the whole of a combination of parents, and something new beside it
    fine-tune of the base          no other of the family is in it
    unrelated                      its weights do not even correlate with the base's
    undecidable                    rounding hides too much, or the equation can be read in two directions

A residual is held against what rounding the very merge found would leave (kinbase.provenance.recipes.rounding), in total and
tensor by tensor. That is what tells merges from siblings: a training run leaves some other amount, another in
every tensor. A residual alone, or one over the formula's floor, does not. Which of the models of one equation is the
child, and who descends from whom, is the family's to say: kinbase.provenance.recipes.judgement.
"""

from collections.abc import Sequence
from dataclasses import replace
from itertools import combinations, islice

import numpy as np
from numpy.typing import NDArray

from kinbase.provenance.recipes.elements import Sampler
from kinbase.provenance.recipes.intervals import (
    ADAPTER,
    COPY,
    LEAST,
    MERGE,
    MERGES,
    NONE,
    ONWARD,
    SELECTED,
    TRAINED,
    UNDECIDABLE,
    UNRELATED,
    Finding,
    Parent,
    fitted,
    graded,
    is_negative,
    off,
    tolerance,
)
from kinbase.provenance.recipes.least_squares import (
    EXACT,
    LIMIT,
    MOST,
    FloatArray,
    Grams,
    Normal,
    find_parents,
    inverse,
    solve,
)
from kinbase.provenance.recipes.model_stock import model_stock
from kinbase.provenance.recipes.partial_merges import trained_from, trained_from_merge
from kinbase.provenance.recipes.quantised_copy import quantised_from
from kinbase.provenance.recipes.rounding import Population, bends
from kinbase.provenance.recipes.selection import by_elements, selection
from kinbase.provenance.recipes.stacks import STACK, grown_from, stacked, undecided

__all__ = [
    "ADAPTER", "COPY", "MERGE", "MERGES", "NONE", "ONWARD", "SELECTED", "TRAINED", "UNDECIDABLE", "UNRELATED",
    "Finding", "Parent", "fitted", "graded", "is_negative", "judge", "off", "tolerance",
]  # fmt: skip

MADE = 9.0
"""Squared residual, in squared floors, below which a candidate is made of others: it divides by its share."""

SMALL = 0.1
"""The same over the candidate's own squared length."""

NARROW, NEXT = 0.012, 0.001
"""Width of an interval in which a multiple of 0.05 is no chance, and how near to one a coefficient is the same in any case."""

PLAINLY = 0.025
"""By how much nearer to what rounding leaves one more parent must bring the logarithm of the residual."""

MOST_SETS = 400
MOST_FITS = 4
MOST_PARENTS = 6
"""Sets of candidates of one size that are looked at; of those that fit, how many are held against rounding; and the
largest."""

UNRELATED_BELOW = 0.3
"""Correlation with the base's weights below which a model is no fine-tune of it: trainings lie above 0.8, strangers near 0."""

OPPOSED = -0.05
"""Cosine below which two models are no parents of a sum: fine-tunes of one base are hardly ever opposed."""

WIDE = 0.05
"""Half the interval of a share in a merge that was trained on: what training adds blurs it."""

HALF = 0.5
"""Residual of positive parents below which they are more than siblings: something of them is in it."""


def judge(grams: Grams, zeros: FloatArray | None = None, sampler: Sampler | None = None) -> Finding:
    """The verdict on a child from its sums and its candidates', and from sampled elements where sums do not make it a merge.

    `zeros` [T, M + 1] is the share of elements equal to the base's, of each candidate and, last, of the child.
    """
    finding = _judge_by_sums(grams, zeros)
    if sampler is None or finding.verdict in (COPY, ADAPTER, UNRELATED) or finding.method == STACK:
        return finding
    return by_elements(grams, zeros, finding, sampler) or finding


def _judge_by_sums(grams: Grams, zeros: FloatArray | None) -> Finding:
    sumsq = float(grams.sumsq.sum())
    if sumsq == 0:
        return Finding(COPY, "not a weight differs from the base's", 0.0, None)
    usable = [i for i in range(len(grams.names)) if float(grams.gram[:, i, i].sum()) > 0]
    quantised = quantised_from(grams.of(usable))
    if quantised is not None:
        return quantised
    notes: list[str] = []
    while usable:
        finding = _judge_as_computed(grams.of(usable), None if zeros is None else zeros[:, [*usable, -1]])
        turned = _turned(finding, grams.of(usable))
        grown = grown_from(grams.of(usable), finding)
        if grown:
            return replace(undecided(finding, grown), notes=notes)
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
    return replace(_alone(grams, Finding(NONE, "", 1.0, grams.floor, rho=1 / grams.floor)), notes=notes)


def _judge_as_computed(grams: Grams, zeros: FloatArray | None) -> Finding:
    """The verdict, also of a merge that was computed in fewer bits, its parents' or the base's, than it is stored in."""
    finding = _judge(grams, zeros)
    own, fewer = grams.significant[:, -1], grams.significant[:, :-1].min(axis=1)
    if finding.verdict in (*MERGES, COPY) or (fewer >= own).all():
        return finding
    again = _judge(grams.rounded_to(fewer), zeros)
    if again.verdict not in MERGES:
        return finding
    reason = f"{again.reason}, computed in {int(fewer.min())} significant bits, though it is stored in {int(own.max())}"
    return replace(again, reason=reason)


def _judge(grams: Grams, zeros: FloatArray | None) -> Finding:
    normal = Normal.beside_base(grams) if grams.based else Normal.of(grams)
    one = _single(grams)
    if one is None:
        one = stacked(grams)
    if one is not None:
        return one
    chosen = find_parents(normal)
    whole = fitted(grams, chosen) if chosen else None
    if whole is not None and normal.solve(chosen)[1] <= LIMIT**2 * normal.floor:
        chosen, whole = _simplest(grams, normal, chosen, whole)
    # Coefficients that nobody writes, and that follow from the parents' cosines.
    human = whole is not None and whole.verdict in MERGES and _is_human(whole)
    if not human and (stock := model_stock(grams, chosen)) is not None:
        return stock
    if whole is not None and whole.verdict in MERGES and not _may_be_graded(whole):
        return _with_alternatives(whole, grams, normal, chosen)
    by_depth = graded(grams)
    if (
        whole is not None
        and whole.verdict in MERGES
        and (by_depth is None or not _is_plainer(by_depth, whole))
    ):
        return _with_alternatives(whole, grams, normal, chosen)
    if by_depth is not None:
        return by_depth
    if whole is not None and normal.solve(chosen)[1] <= LIMIT**2 * normal.floor:
        return whole
    return _unmerged(grams, zeros, chosen, whole)


def _simplest(grams: Grams, normal: Normal, chosen: list[int], whole: Finding) -> tuple[list[int], Finding]:
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
    return is_negative(pair[1]), not _is_human(pair[1]), pair[1].is_in_steps, off(pair[1])


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


def _is_human(found: Finding) -> bool:
    """Whether all coefficients are multiples of 0.05, as people write them, as narrowly as they are known."""
    return all(
        p.high - p.low < NARROW
        and abs(p.coefficient - round(20 * p.coefficient) / 20) <= max(NEXT, p.high - p.low)
        for p in found.parents
    )


def _may_be_graded(whole: Finding) -> bool:
    """Whether a merge of constant coefficients may be one of fewer parents by depth, or SLERP."""
    return _nearly_linear(whole) or len(whole.parents) > 2 or is_negative(whole)


def _is_plainer(by_depth: Finding, whole: Finding) -> bool:
    """Whether a merge by depth says more with less than constant coefficients: fewer parents, or a better fit of two."""
    if len(by_depth.parents) != len(whole.parents):
        return len(by_depth.parents) < len(whole.parents) and not (
            is_negative(by_depth) and not is_negative(whole)
        )
    return _nearly_linear(whole) and off(by_depth) <= off(whole)


def _along(normal: Normal, chosen: Sequence[int], column: int) -> float:
    """The squared length of what of a column the chosen ones make."""
    rows = list(chosen)
    cross = normal.gram[rows, column]
    return float(cross @ inverse(normal.gram[np.ix_(rows, rows)]) @ cross)


def _nearly_linear(found: Finding) -> bool:
    """Two parents that add up to a little more or less than 1: SLERP, unless it fits no better."""
    return len(found.parents) == 2 and found.method == "task_arithmetic" and abs(found.base or 0.0) < 0.05


def _single(grams: Grams) -> Finding | None:
    """A copy of one candidate or of the base, or one so near to it that nothing else can be told."""
    gram = grams.gram.sum(axis=0)
    cross, sumsq = grams.cross.sum(axis=0), float(grams.sumsq.sum())
    noise, bits = float(grams.noise.sum()), grams.significant
    codes = grams.dtypes or ["F32"] * (len(grams.names) + 2)
    if (bits[:, -1] < bits[:, -2]).any() and sumsq <= LIMIT**2 * noise:
        rho = float(np.sqrt(sumsq / noise))
        reason = f"the base rounded from {codes[-2]} to {codes[-1]}"
        return Finding(
            COPY, reason, 1.0, grams.floor, rho=rho, expected=grams.floor, ratio=rho, condition=1.0
        )
    whole = [i for i, name in enumerate(grams.names) if name not in grams.adapters]
    apart = {i: max(sumsq - 2 * cross[i] + gram[i, i], 0.0) for i in whole}
    for best in sorted(whole, key=lambda i: apart[i])[:2]:
        name, residual = grams.names[best], float(np.sqrt(apart[best] / sumsq))
        facts = Finding(
            COPY, "", residual, grams.floor, [Parent(name, 1.0, 1.0, 1.0)], None,
            residual / grams.floor, grams.floor, residual / grams.floor, 1.0,
        )  # fmt: skip
        finer = (bits[:, best] > bits[:, -1]).any()
        if apart[best] <= EXACT * sumsq:
            how = f" ({codes[-1]} for {codes[best]})" if codes[best] != codes[-1] else ""
            return replace(
                facts, reason=f"the same weights as {name}{how}, as far as sums can tell", expected=None
            )
        if finer and apart[best] <= LIMIT**2 * noise:
            return replace(facts, reason=f"{name} rounded from {codes[best]} to {codes[-1]}")
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
    fits = finding.verdict == MERGE or (finding.verdict == UNDECIDABLE and (finding.ratio or LIMIT) < LIMIT)
    if not fits or finding.ratio is None or finding.gradient is not None:
        return None
    shares = {parent.parent: parent.coefficient for parent in finding.parents or finding.nearest}
    if all(share > 0 for share in shares.values()):
        return None
    for name, share in shares.items():
        if share <= 0:
            continue
        others = [-a / share for other, a in shares.items() if other != name]
        if any(a <= 0 for a in others) or _is_opposed(grams, [other for other in shares if other != name]):
            continue
        convex = share > 1 and abs(sum(others) + 1 / share - 1) < 0.02
        bits = grams.significant
        same_bits = bool((bits[:, grams.names.index(name)] <= bits[:, -1]).all())
        if same_bits and (convex or LEAST <= finding.ratio / share <= 1 / LEAST):
            return name, convex
    return None


def _is_opposed(grams: Grams, others: Sequence[str]) -> bool:
    """Whether the model's change points away from one of the others', as parents' changes do not."""
    rows = [grams.names.index(name) for name in others]
    cross = grams.cross.sum(axis=0)[rows]
    lengths = np.sqrt(grams.sumsq.sum() * grams.gram[:, rows, rows].sum(axis=0))
    return bool((cross < OPPOSED * lengths).any())


def _unmerged(
    grams: Grams, zeros: FloatArray | None, chosen: Sequence[int], whole: Finding | None
) -> Finding:
    """What it is when no merge: selected elements of several, parents trained on, a fine-tune, or a stranger."""
    floor = grams.floor
    nearest = (whole.nearest or whole.parents) if whole else []
    residual = whole.residual if whole else 1.0
    plain = Finding(
        NONE, "", residual, floor, rho=(residual or 0.0) / floor, nearest=nearest,
        expected=whole.expected if whole else None, ratio=whole.ratio if whole else None,
        condition=whole.condition if whole else None,
    )  # fmt: skip
    selected = selection(grams, zeros, chosen, plain)
    if selected is not None:
        return selected
    trained = trained_from(grams)
    if trained is not None:
        name, slope, half, left = trained
        return replace(
            plain, verdict=TRAINED, residual=left, rho=left / floor, expected=None, ratio=None, condition=1.0,
            parents=[Parent(name, slope, slope - half, slope + half)], nearest=[],
            reason=f"the whole change of {name}, and {left:.0%} of its own that is new: {left / floor:.1f} times rounding",
        )  # fmt: skip
    onward = trained_from_merge(grams, chosen)
    if onward is not None:
        parents, left = onward
        said = " + ".join(f"{a:.3g} {grams.names[i]}" for i, a in parents)
        return replace(
            plain, verdict=ONWARD, residual=left, rho=left / floor, expected=None, ratio=None, nearest=[],
            parents=[Parent(grams.names[i], a, a - WIDE, a + WIDE) for i, a in parents],
            reason=f"the whole of {said}, and {left:.0%} of its change that is new",
        )  # fmt: skip
    if floor >= 1 / LIMIT and (whole is None or whole.ratio is None or whole.ratio <= LIMIT):
        return replace(
            plain, verdict=UNDECIDABLE, reason="its whole change is hardly longer than rounding alone"
        )
    if nearest and residual is not None and residual < HALF and all(p.coefficient > 0 for p in nearest):
        said = " + ".join(f"{p.coefficient:.3g} {p.parent}" for p in nearest)
        reason = (
            f"nearest is {said}, but that leaves {residual / floor:.1f} times rounding: "
            "trained on after a merge, or a parent is not here"
        )
        return replace(plain, verdict=UNDECIDABLE, reason=reason)
    return _alone(grams, plain)


def _alone(grams: Grams, plain: Finding) -> Finding:
    """A fine-tune of the base, or, where its weights do not correlate with the base's, a stranger to it."""
    if grams.based and grams.centre is not None:
        base = grams.gram[:, -1, -1]
        spread = base - grams.numel * grams.centre**2
        matrices = spread > 0.5 * base  # scales of norms and the like lie about their mean in all models
        length = base[matrices].sum()
        own = float((base + 2 * grams.cross[:, -1] + grams.sumsq)[matrices].sum())
        along = float((base + grams.cross[:, -1])[matrices].sum())
        if length > 0 and own > 0 and along < UNRELATED_BELOW * np.sqrt(length * own):
            said = along / np.sqrt(length * own)
            return replace(
                plain,
                verdict=UNRELATED,
                nearest=[],
                reason=f"its weights correlate {said:.2f} with the base's",
            )
    left = plain.residual if plain.residual is not None else 1.0
    reason = "no other model of the family is in it"
    if plain.nearest:
        reason += f": the best combination of them leaves {left:.0%} of its change"
    return replace(plain, reason=reason)
