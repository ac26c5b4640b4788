"""One combination fitted to a child: coefficients with intervals, and whether rounding is all it leaves.

Coefficients are weighted least squares, each tensor trusted by its own rounding noise, freed of what rounding bends
(kinbase.provenance.recipes.rounding). A 95% interval is 1.96 standard errors of rounding noise, and a part of the correction.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from kinbase.provenance.recipes import by_depth as gradients
from kinbase.provenance.recipes.arithmetic import in_steps
from kinbase.provenance.recipes.by_depth import Gradient
from kinbase.provenance.recipes.element_fit import ElementFit
from kinbase.provenance.recipes.least_squares import (
    EXACT,
    LIMIT,
    FloatArray,
    Grams,
    Normal,
    inverse,
    residuals,
    solve,
)
from kinbase.provenance.recipes.partial_merges import WHOLE
from kinbase.provenance.recipes.rounding import DRAWS, Population, bends, drawn, straightened

MERGE, ADAPTER, COPY = "merge", "adapter merged", "copy"
TRAINED, ONWARD, NONE = "fine-tune", "continued training of a merge", "fine-tune of the base"
SELECTED, UNRELATED, UNDECIDABLE = "TIES/DARE-like merge", "unrelated", "undecidable"

MERGES = (MERGE, ADAPTER)
"""What a combination that leaves what rounding leaves is called."""

LEAST = 0.8
"""Smallest residual of a merge over what rounding is expected to leave: training can leave less, rounding not."""

UNEVEN = 0.2
"""Largest spread over the tensors of the logarithm of that ratio: 0.02 to 0.08 in merges of generated families."""

HIDDEN = 0.9
"""Rounding over the child's delta from which on nothing is decided: small parents would be missed, and others found."""

TIMES = 3.0
"""Residuals that are so many tolerances from what rounding leaves are not what rounding left."""

STRICT = 1.25
"""LIMIT where rounding is more than half of that."""

CLEAR = 10.0
"""Residual over the rounding floor of what is no merge, whatever rounding one would leave: half a unit of an element is
1.73 floors. Rounding is not simulated then."""

NEGLIGIBLE = 0.03
"""Squared residuals, in squared floors, that do not count."""

FEW = 50.0
"""Moved elements from which on a tensor's residual says anything of rounding."""

HARDLY = 0.02
"""A share that is none beside a whole parent: training on is as well explained by it as by nothing."""

BLUR = 0.75
"""How much of a correction for rounding may be wrong: fine-tunes are not as Gaussian as its model."""

SINGLE = 2.0**-22
"""Relative error of a coefficient that was written down in decimals and applied in float32."""


@dataclass(frozen=True, slots=True)
class Parent:
    """A parent and its coefficient, with the ends of a 95% interval."""

    parent: str
    coefficient: float
    low: float
    high: float


@dataclass(slots=True)
class Finding:
    """The verdict on one child.

    `residual`, `floor` and `expected` are over the length of the child's delta: what is left over, the rounding
    floor sqrt(sum ulp^2 / 12), and what rounding this recipe would leave; `rho` is residual / floor, `ratio` is
    residual / expected. `condition` is the condition number of the parents' Gram matrix, columns scaled to one
    length. `base` is the base's weight in the sum of raw weights. `nearest` is the best combination found where
    it is not a recipe. `gradient` has the coefficients by depth. `opposed` is the lowest cosine between two parents'
    changes: fine-tunes of one base are hardly ever opposed. `explained` is the share of sampled elements that the parents'
    changes make, each in or out, where that was looked at. `is_in_steps` tells that it takes rounding at every step to explain
    what is left.
    """

    verdict: str
    reason: str
    residual: float | None = None
    floor: float | None = None
    parents: list[Parent] = field(default_factory=list)
    method: str | None = None
    rho: float | None = None
    expected: float | None = None
    ratio: float | None = None
    condition: float | None = None
    base: float | None = None
    nearest: list[Parent] = field(default_factory=list)
    alternatives: dict[str, list[str]] = field(default_factory=dict)
    gradient: Gradient | None = None
    errors: FloatArray | None = None
    opposed: float | None = None
    explained: float | None = None
    is_in_steps: bool = False
    notes: list[str] = field(default_factory=list)


def tolerance(grams: Grams) -> float:
    """How far the logarithm of residual over expected may be from 0 for a set of parents to explain the child.

    The simulated rounding is exact to its draws where deltas are many units in the last place; where they are one or less, it
    hangs on the shape of the deltas, which is taken as Gaussian.
    """
    moved = np.diagonal(grams.gram, axis1=1, axis2=2)[:, :-1].mean(axis=1) if grams.names else grams.sumsq
    unit = 12 * grams.noise / np.maximum(grams.numel, 1)
    share = grams.noise / max(float(grams.noise.sum()), 1e-300)
    units = float(share @ np.minimum(moved / np.maximum(grams.numel, 1) / np.maximum(unit, 1e-300), 1e6))
    drawing = 3 * np.sqrt(0.5 / max(float(grams.numel.sum()), 1)) + (0.008 if bends(grams) else 0.0)
    return float(0.012 + drawing + 0.03 / max(units, 0.5))


def is_negative(found: Finding) -> bool:
    """Whether a parent counts against the others."""
    return any(p.coefficient < 0 for p in found.parents)


def off(found: Finding) -> float:
    """How far the residual is from what rounding leaves, as a logarithm."""
    return abs(float(np.log(max(found.ratio or 1e-9, 1e-9))))


def fitted(
    grams: Grams, chosen: Sequence[int], population: Population | None = None, *, is_made: bool = False
) -> Finding:
    """One coefficient a parent in all tensors: the fit, its intervals, and whether rounding is all it leaves.

    `population` is drawn to `grams`, for many fits among the same candidates. `is_made` tells that they are known to make each
    sampled element to half a unit: what is left is then not asked.
    """
    sub = grams.of(chosen)
    count = len(chosen)
    normal = Normal.of(sub, base=True)
    ends, trust = list(range(count + 1)), sub.trust
    # How an adapter lies to the base's weights is not known, so no share of those is fitted beside it.
    adapted = not sub.adapters.isdisjoint(sub.names)
    based = sub.based and not adapted and _has_of_base(normal, count)
    rows = ends if based else ends[:-1]

    def estimate(sums: Grams) -> tuple[FloatArray, FloatArray]:
        values = np.zeros(count + 1)
        gram = np.einsum("t,tij->ij", trust, sums.gram[:, rows][:, :, rows])
        values[rows] = solve(gram, trust @ sums.cross[:, rows])
        return values, residuals(sums, ends, np.broadcast_to(values, (len(sums.tensors), count + 1)))

    fit, left = estimate(sub)
    # An adapter's product lies on no grid: what is laid on the base with it is rounded at random, and nothing else is.
    if (adapted and count == 1) or float(trust @ left) > CLEAR**2 * normal.floor:
        straight, bend, expected = fit, np.zeros_like(fit), sub.rounded
    else:
        some = population.of(chosen) if population is not None else None
        straight, bend, expected = straightened(sub, estimate, lambda values: values, population=some)
    covariance = _covariance(sub, rows, left, trust)
    if np.all(np.abs(bend[rows]) <= 2.5 * np.sqrt(np.diagonal(covariance))):
        straight, bend = fit, bend / BLUR  # a correction that its own draws explain is none, but may be there
    residual = float(np.sqrt(float(left.sum()) / float(sub.sumsq.sum())))
    crowded = condition(normal.gram[:-1, :-1])
    inner = normal.gram[:-1, :-1]
    crowding = np.sqrt(np.diagonal(inverse(inner)) * np.diagonal(inner))
    blur = BLUR * float(np.abs(bend).max()) * np.maximum(1.0, crowding / 2)
    blur = blur + 1e-13 * crowded + SINGLE * np.abs(straight[:count])
    half = np.hypot(1.96 * np.sqrt(np.diagonal(covariance)[:count]), blur)
    parents = _parents(sub.names, straight[:count], half)
    total = float(straight[:count].sum())
    unsure = float(np.hypot(1.96 * np.sqrt(covariance[:count, :count].sum()), np.linalg.norm(blur)))
    rest = float(1 + straight[-1] - total)
    adding_up = abs(rest) <= (1e-4 if based else max(unsure, 1e-3))
    finding = Finding(
        MERGE, "", residual, sub.floor, parents, "linear" if adding_up else "task_arithmetic", residual / sub.floor,
        condition=crowded, base=0.0 if adding_up else rest, opposed=_lowest_cosine(inner),
    )  # fmt: skip
    each = np.broadcast_to(straight, (len(left), count + 1))
    found = held(replace(finding), left, expected, sub, each, is_made=is_made)
    if adapted or is_made or not _leaves_more(found, sub):
        return found
    drawn_to = population.of(chosen) if population is not None else Population(sub)
    for unbent, by_tensor in in_steps(drawn_to, estimate, straight[:count], 0.0 if adding_up else rest, half):
        parents = _parents(sub.names, unbent, half)
        found = _nearer(found, held(replace(finding, parents=parents), left, by_tensor, sub, each), sub)
    return found


def _has_of_base(normal: Normal, count: int) -> bool:
    """Whether a share of the base's own weights, the last column, explains more than chance beside `count` parents."""
    if normal.gram[-1, -1] <= 0:
        return False
    with_base, without = normal.solve(list(range(count + 1)))[1], normal.solve(list(range(count)))[1]
    return bool(without - with_base > normal.matters(with_base))


def _parents(names: Sequence[str], coefficients: FloatArray, half: FloatArray) -> list[Parent]:
    """Parents with their intervals, the largest share first."""
    return [
        Parent(
            names[i],
            float(coefficients[i]),
            float(coefficients[i] - half[i]),
            float(coefficients[i] + half[i]),
        )
        for i in sorted(range(len(names)), key=lambda i: -abs(coefficients[i]))
    ]


def _leaves_more(found: Finding, grams: Grams) -> bool:
    """Whether more is left than rounding once leaves, but no more than a few roundings."""
    ratio = found.ratio or 0.0
    return float(np.log(max(ratio, 1e-9))) > tolerance(grams) and (found.rho or 0.0) <= 2 * LIMIT


def _nearer(once: Finding, steps: Finding, grams: Grams) -> Finding:
    """The merge computed step by step in its own dtype where that leaves what is left, else as it was rounded once."""
    if steps.verdict not in MERGES or off(steps) >= min(off(once), _times(steps) * tolerance(grams)):
        return once
    return replace(steps, reason=f"{steps.reason} if every step of it is rounded", is_in_steps=True)


def _covariance(grams: Grams, rows: Sequence[int], left: FloatArray, trust: FloatArray) -> FloatArray:
    """Of weighted least squares coefficients: G^-1 (sum_t w_t^2 v_t G_t) G^-1 with G = sum_t w_t G_t.

    v_t is the residual's variance in tensor t and w_t what it is trusted.

    Rounding noise is independent from element to element and as large as the element's last place, which grows
    with the delta too: E[theta^2 d^2] is (1 + 3 q) / (1 + q) times E[theta^2] E[d^2] for Gaussians, q the ratio
    of the variances. What the simulation of rounding drew adds its own variance.
    """
    gram = grams.gram[:, rows][:, :, rows]
    back = inverse(np.einsum("t,tij->ij", trust, gram))
    variance = trust**2 * left / np.maximum(grams.numel, 1)
    if grams.based:
        ratio = grams.sumsq / np.maximum(grams.gram[:, -1, -1], 1e-300)
        variance = variance * (1 + 3 * ratio) / (1 + ratio)
    if bends(grams):
        variance = variance * (1 + grams.numel / drawn(grams))
    return np.asarray(back @ np.einsum("t,tij->ij", variance, gram) @ back)


@dataclass(frozen=True, slots=True)
class _Remainder:
    """What is left of a reading, in units of what rounding leaves; what rounding adds to the whole change; how far and how
    unevenly what is left may be off.
    """

    ratio: float
    hidden: float
    room: float
    spread: float
    uneven: float


def held(
    finding: Finding,
    left: FloatArray,
    expected: FloatArray,
    grams: Grams,
    each: FloatArray,
    *,
    is_made: bool = False,
) -> Finding:
    """Keep the verdict merge only if the residual is what rounding leaves, in all and in each tensor, unless it `is_made`.

    `each` are the coefficients by tensor: where one is 1 and the others 0, the tensor is a copy, and nothing
    was rounded. Tensors in which hardly an element moved have no say either.
    """
    remainder = _weighed(finding, left, expected, grams, each)
    first, *rest = finding.parents
    one = abs(first.coefficient - 1) <= WHOLE and all(abs(p.coefficient) < HARDLY for p in rest)
    parents = f"{len(finding.parents)} parents" if rest else "one parent and the base"
    if remainder.ratio <= LIMIT and remainder.hidden >= HIDDEN:
        finding.verdict = UNDECIDABLE
        finding.reason = f"its whole change is {1 / remainder.hidden:.2g} times what rounding adds"
    elif is_made and not one:
        finding.reason = f"{parents} make each sampled element to half a unit in its last place"
    elif remainder.ratio > (LIMIT if remainder.hidden < HIDDEN / 2 else STRICT):
        finding.verdict, finding.reason = UNDECIDABLE, "it leaves more than rounding such a merge would"
    elif remainder.ratio > np.exp(remainder.room):
        finding.verdict = UNDECIDABLE
        finding.reason = (
            f"it leaves {remainder.ratio:.2f} of what rounding such a merge would: "
            "a parent is not here, or merges of it alone are"
        )
    elif remainder.ratio < LEAST or remainder.spread > remainder.uneven:
        finding.verdict = UNDECIDABLE
        finding.reason = (
            "what is left is below the rounding floor, but is not what rounding such a merge leaves "
            f"(ratio {remainder.ratio:.2f}, spread {remainder.spread:.2f} over the tensors)"
        )
    elif not rest and first.parent in grams.adapters:
        finding.verdict, finding.method = ADAPTER, None
        finding.reason = f"the adapter at scale {first.coefficient:.4g} leaves {remainder.ratio:.2f} of what rounding would"
    elif one:
        finding.verdict, finding.method = UNDECIDABLE, None
        finding.reason = "what sets it apart from its nearest kin is as small as rounding"
    else:
        finding.reason = f"{parents} leave {remainder.ratio:.2f} of what rounding would"
    if finding.verdict not in MERGES:
        finding.nearest, finding.parents = finding.parents, []
    return finding


def _weighed(
    finding: Finding, left: FloatArray, expected: FloatArray, grams: Grams, each: FloatArray
) -> _Remainder:
    """Hold what is left by tensor [T] against what rounding is expected to leave there; sets the finding's ratio."""
    copied = (
        np.abs(np.sort(np.abs(each[:, :-1]), axis=1) - np.eye(1, each.shape[1] - 1, each.shape[1] - 2)).max(
            axis=1
        )
        < 0.01
    )
    silent = copied & (len(finding.parents) > 1) | (_steps(grams) < FEW)
    if not silent.all():
        left, expected = np.where(silent, 0, left), np.where(silent, 0, expected)
    # Whole coefficients hardly need rounding: the little they leave is not compared to the last digit.
    unresolved = EXACT * (grams.sumsq + grams.sumsq.mean())
    least = unresolved + NEGLIGIBLE * grams.rounded
    left, expected = left + least, expected + least
    share = np.where(silent, 0.0, grams.numel) if not silent.all() else grams.numel
    share = share / share.sum()
    logs = np.log(left / expected)
    spread = float(np.sqrt((share * (logs - (share * logs).sum()) ** 2).sum()))
    # A tensor of n elements gives its variance to within sqrt(2 / n) by chance.
    chance = float(np.sqrt((share * 2 / np.maximum(grams.numel, 1)).sum()))
    # Element by element, each in units of what rounding is expected to leave there.
    heard = np.where(silent, 0.0, grams.numel)
    finding.ratio = float(np.sqrt((heard @ (left / expected)) / heard.sum())) if heard.any() else 1.0
    finding.expected = (finding.residual or 0.0) / finding.ratio
    # Sums of whole deltas are rounded where they cross a power of two, and there alone: more or less by tensor.
    trust = grams.trust
    share_rounded = float(
        np.clip(np.sqrt(trust @ expected / max(float(trust @ grams.rounded), 1e-300)), 0.25, 1)
    )
    # What float64 sums do not resolve may be left or not.
    unsure = float(trust @ np.where(silent, 0, unresolved)) / max(float(trust @ expected), 1e-300)
    room = _times(finding) * tolerance(grams) / share_rounded + unsure / 2
    hidden = float(np.sqrt(grams.rounded.sum() / max(float(grams.sumsq.sum()), 1e-300)))
    return _Remainder(finding.ratio, hidden, room, spread, UNEVEN / share_rounded + 3 * chance)


def _times(finding: Finding) -> float:
    """Tolerances that a reading may be off: with signs, or with coefficients by depth, more sets fit by chance."""
    return 1.0 if is_negative(finding) else 1.5 if finding.gradient is not None else TIMES


def _steps(grams: Grams) -> FloatArray:
    """About how many elements of a parent moved by a unit in the last place, at least, in each tensor [T]."""
    unit = 12 * grams.noise / np.maximum(grams.numel, 1)
    moved = np.diagonal(grams.gram, axis1=1, axis2=2)[:, :-1].mean(axis=1)
    return np.asarray(moved / np.maximum(unit, 1e-300))


def _lowest_cosine(gram: FloatArray) -> float | None:
    """The lowest cosine between two different columns; None of one."""
    if len(gram) < 2:
        return None
    length = np.sqrt(np.maximum(np.diagonal(gram), 1e-300))
    return float((gram / np.outer(length, length) + 2 * np.eye(len(gram))).min())


def condition(gram: FloatArray) -> float:
    """The condition number of a Gram matrix, columns scaled to one length."""
    scale = 1 / np.sqrt(np.maximum(np.diagonal(gram), 1e-300))
    return float(np.linalg.cond(gram * np.outer(scale, scale)))


def graded(grams: Grams, fit: ElementFit | None = None, also: Sequence[int] = ()) -> Finding | None:
    """A merge whose coefficients change by depth and block, and that makes the sampled elements where those can be read.

    `also` are candidates to try beside those that explain most tensor by tensor.
    """

    def is_made(chosen: Sequence[int]) -> bool | None:
        return None if fit is None else fit.is_made([grams.names[i] for i in chosen], by_tensor=True)

    found = gradients.recover(grams, is_made, also)
    if found is None:
        return None
    sub = grams.of(found.parents)
    inside = replace(found, parents=list(range(len(found.parents))))

    def estimate(sums: Grams) -> tuple[FloatArray, FloatArray]:
        again = gradients.fit(sums, inside)
        return again.values, again.rss

    def spread(values: FloatArray) -> FloatArray:
        return gradients.coefficients(sub, inside, values)

    straight, bend, expected = straightened(sub, estimate, spread, draws=2 * DRAWS)
    left = found.rss
    rss, sumsq = float(left.sum()), float(sub.sumsq.sum())
    more = sub.numel.mean() / drawn(sub, 2 * DRAWS) if bends(sub) else 0.0
    chance = gradients.spread_of(inside, sub, left) * np.sqrt(1 + more)
    errors = np.hypot(1.96 * chance, np.abs(bend) + BLUR * np.median(np.abs(bend)) + SINGLE)
    result = gradients.told(sub, replace(inside, values=straight), errors)
    weight = sub.numel / sub.numel.sum()
    mean = weight @ result.each[:, :-1]
    half = weight @ gradients.errors_by_tensor(result, errors)
    normal = Normal.of(sub)
    parents = [
        Parent(name, float(mean[i]), float(mean[i] - half[i]), float(mean[i] + half[i]))
        for i, name in enumerate(sub.names)
    ]
    finding = Finding(
        MERGE, "", float(np.sqrt(rss / sumsq)), sub.floor, parents, found.method,
        float(np.sqrt(rss / sumsq)) / sub.floor, condition=condition(normal.gram),
        base=float(1 - mean.sum()) if found.method == "task_arithmetic" else 0.0,
        gradient=result, errors=errors,
    )  # fmt: skip
    once = held(replace(finding), left, expected, sub, found.each)
    if found.method != "task_arithmetic" and _leaves_more(once, sub):
        shares = spread(straight)
        shares[:, -1] = 0  # neither SLERP nor a linear merge has a share of the base's own
        steps = estimate(Population(sub, draws=2 * DRAWS).merged_in_steps(shares))[1]
        once = _nearer(once, held(replace(finding), left, steps, sub, found.each), sub)
    finding = once
    if not finding.is_in_steps and is_made(found.parents) is False:
        return None  # what rounding once leaves in all, but not element by element: another model stands for a parent
    if finding.verdict == MERGE and (len(parents) == 2 or not is_negative(finding)):
        finding.reason = (
            f"{found.method} by depth and block leaves {finding.ratio:.2f} of what rounding would"
        )
        return finding
    return None
