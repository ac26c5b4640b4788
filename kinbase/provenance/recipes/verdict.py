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

import numpy as np

from kinbase.provenance.recipes.element_fit import ElementFit
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
    FloatArray,
    Grams,
    Normal,
    find_parents,
)
from kinbase.provenance.recipes.model_stock import model_stock
from kinbase.provenance.recipes.parent_sets import is_human, made_of, simplest, unless_missed
from kinbase.provenance.recipes.partial_merges import trained_from, trained_from_merge
from kinbase.provenance.recipes.quantised_copy import quantised_from
from kinbase.provenance.recipes.selection import by_elements, selection
from kinbase.provenance.recipes.stacks import STACK, grown_from, stacked, undecided

__all__ = [
    "ADAPTER", "COPY", "MERGE", "MERGES", "NONE", "ONWARD", "SELECTED", "TRAINED", "UNDECIDABLE", "UNRELATED",
    "Finding", "Parent", "fitted", "graded", "is_negative", "judge", "off", "tolerance",
]  # fmt: skip

UNRELATED_BELOW = 0.3
"""Correlation with the base's weights below which a model is no fine-tune of it: trainings lie above 0.8, strangers near 0."""

OPPOSED = -0.05
"""Cosine below which two models are no parents of a sum: fine-tunes of one base are hardly ever opposed."""

WIDE = 0.05
"""Half the interval of a share in a merge that was trained on: what training adds blurs it."""

HALF = 0.5
"""Residual of positive parents below which they are more than siblings: something of them is in it."""


def judge(grams: Grams, zeros: FloatArray | None = None, sampler: Sampler | None = None) -> Finding:
    """The verdict on a child from its sums and its candidates', and from sampled elements: whether a merge makes each of them,
    and, where no combination does, whether they were selected.

    `zeros` [T, M + 1] is the share of elements equal to the base's, of each candidate and, last, of the child.
    """
    finding = _judge_by_sums(grams, zeros, None if sampler is None else ElementFit(sampler))
    if sampler is None or finding.verdict in (COPY, ADAPTER, UNRELATED) or finding.method == STACK:
        return finding
    return by_elements(grams, zeros, finding, sampler) or finding


def _judge_by_sums(grams: Grams, zeros: FloatArray | None, fit: ElementFit | None) -> Finding:
    sumsq = float(grams.sumsq.sum())
    if sumsq == 0:
        return Finding(COPY, "not a weight differs from the base's", 0.0, None)
    usable = [i for i in range(len(grams.names)) if float(grams.gram[:, i, i].sum()) > 0]
    quantised = quantised_from(grams.of(usable))
    if quantised is not None:
        return quantised
    notes: list[str] = []
    while usable:
        finding = _judge_as_computed(
            grams.of(usable), None if zeros is None else zeros[:, [*usable, -1]], fit
        )
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


def _judge_as_computed(grams: Grams, zeros: FloatArray | None, fit: ElementFit | None) -> Finding:
    """The verdict, also of a merge that was computed in fewer bits, its parents' or the base's, than it is stored in."""
    finding = _judge(grams, zeros, fit)
    own, fewer = grams.significant[:, -1], grams.significant[:, :-1].min(axis=1)
    if finding.verdict in (*MERGES, COPY) or (fewer >= own).all():
        return finding
    coarser = None if fit is None else fit.computed_in(int(fewer.min()))
    again = _judge(grams.rounded_to(fewer), zeros, coarser)
    if again.verdict not in MERGES:
        return finding
    reason = f"{again.reason}, computed in {int(fewer.min())} significant bits, though it is stored in {int(own.max())}"
    return replace(again, reason=reason)


def _judge(grams: Grams, zeros: FloatArray | None, fit: ElementFit | None) -> Finding:
    normal = Normal.beside_base(grams) if grams.based else Normal.of(grams)
    one = _single(grams, fit)
    if one is None:
        one = stacked(grams)
    if one is not None:
        return one
    chosen = find_parents(normal)
    is_near = bool(chosen) and normal.solve(chosen)[1] <= LIMIT**2 * normal.floor
    made = made_of(grams, normal, chosen, fit) if is_near and fit is not None else None
    if made:
        proved = fitted(grams, made, is_made=True)
        if proved.verdict in MERGES:
            return _with_alternatives(proved, grams, normal, made)
    whole = fitted(grams, chosen) if chosen else None
    if whole is not None and is_near:
        chosen, whole = simplest(grams, normal, chosen, whole)
        if fit is not None and whole.verdict in MERGES:
            whole = unless_missed(whole, grams, normal, chosen, fit)
    # Coefficients that nobody writes, and that follow from the parents' cosines.
    human = whole is not None and whole.verdict in MERGES and is_human(whole)
    if not human and (stock := model_stock(grams, chosen)) is not None:
        return stock
    if whole is not None and whole.verdict in MERGES and not _may_be_graded(whole):
        return _with_alternatives(whole, grams, normal, chosen)
    by_depth = graded(grams, fit, chosen)
    if (
        whole is not None
        and whole.verdict in MERGES
        and (by_depth is None or not _is_plainer(by_depth, whole))
    ):
        return _with_alternatives(whole, grams, normal, chosen)
    if by_depth is not None:
        return by_depth
    if whole is not None and is_near:
        return whole
    return _unmerged(grams, zeros, chosen, whole)


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


def _nearly_linear(found: Finding) -> bool:
    """Two parents that add up to a little more or less than 1: SLERP, unless it fits no better."""
    return len(found.parents) == 2 and found.method == "task_arithmetic" and abs(found.base or 0.0) < 0.05


def _single(grams: Grams, fit: ElementFit | None) -> Finding | None:
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
        if apart[best] <= EXACT * sumsq and (fit is None or fit.is_equal(name) is not False):
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
