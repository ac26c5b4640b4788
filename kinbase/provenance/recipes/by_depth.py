"""Merges whose coefficients change with depth and block: found tensor by tensor, told as mergekit writes them.

mergekit interpolates a list of values over the layers (position l / (L - 1); tensors outside the layers take
the first value), for the tensors whose name contains a filter such as `self_attn` or `mlp`. SLERP
works on each tensor's raw weights, s0 A + s1 B with s0 = sin((1 - t) w) / sin w, s1 = sin(t w) / sin w and w the
angle between them, and turns into (1 - t) A + t B where their cosine is above 0.9995; so every tensor of such a
merge is a linear combination of its parents, and its t follows from Grams.
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import combinations

import numpy as np

from kinbase.provenance.recipes.least_squares import (
    BITS,
    LIMIT,
    FloatArray,
    Grams,
    Normal,
    inverse,
    residuals,
    solve,
)

LAYER = re.compile(r"(?:^|\.)(?:layers?|h|blocks?)\.(\d+)\.")
FILTERS = (("self_attn", "attention", "attn"), ("mlp", "feed_forward", "ffn"))
"""What mergekit filters select by, for attention and for the rest of a block; the first that occurs is used."""

STRAIGHT = 0.9995
"""Cosine from which SLERP is linear interpolation (mergekit's threshold)."""

WORTH = 0.05
"""What a parent must take from the squared residual, in squared floors: with a coefficient a tensor, it bends to rounding."""

LUCK = 6.0
"""Variances of one element that each tensor may give to a useless candidate before that one counts."""

SINGLE = 2.0**-20
"""How far SLERP's coefficients may be from exact ones where dot products and sines are taken in float32."""

PAIRS = 1.4
"""Squared residual of two parents over that of more from which on the two are not enough."""

UNKNOWN = 0.25
"""Standard error of a share that nothing is known of: 0 to 1 is two of them either way."""

MOST = 4
"""Parents looked for tensor by tensor: each costs one degree of freedom in every tensor."""


@dataclass(slots=True)
class Place:
    """Tensors that share coefficients: a block's tensors in one layer, or outside the layers (layer None)."""

    block: str
    layer: int | None
    position: float
    tensors: list[int]


@dataclass(slots=True)
class Gradient:
    """A merge by depth: parents by index, `each` [T, P + 1] coefficients by tensor, the base's last.

    `values` by place: t (slerp, one each) or a coefficient a parent; `lists` the mergekit lists by block, [K, 1 or P].
    `rss` the squared residual by tensor.
    `angle` [T] (slerp) between the parents' raw weights, 0 where they are interpolated straight.
    """

    parents: list[int]
    method: str
    places: list[Place]
    values: FloatArray
    lists: dict[str, FloatArray]
    each: FloatArray
    rss: FloatArray
    angle: FloatArray | None = None


def places(tensors: Sequence[str]) -> list[Place]:
    """The tensors grouped as mergekit's filters and gradients can tell them apart."""
    words = [next((w for w in group if any(w in name for name in tensors)), group[0]) for group in FILTERS]
    layers = [int(found[1]) if (found := LAYER.search(name)) else None for name in tensors]
    last = max((layer for layer in layers if layer is not None), default=0)
    groups: dict[tuple[str, int | None], Place] = {}
    for index, (name, layer) in enumerate(zip(tensors, layers, strict=True)):
        block = next((word for word in words if word in name), "rest")
        position = 0.0 if layer is None else layer / last if last else 1.0
        groups.setdefault((block, layer), Place(block, layer, position, [])).tensors.append(index)
    return [groups[key] for key in sorted(groups, key=lambda k: (k[0], -1 if k[1] is None else k[1]))]


def find_parents_by_tensor(grams: Grams, *, most: int = MOST) -> list[int]:
    """Forward selection with a coefficient a tensor, the base's weights always in; then what matters little goes."""
    normal, trust = Normal.of(grams), grams.trust
    count = len(grams.names)
    chosen: list[int] = []

    def enough(rss: FloatArray) -> float:
        # One more coefficient takes the variance of one element from each tensor by chance.
        return WORTH * normal.floor + LUCK * float((trust * rss / np.maximum(grams.numel, 1)).sum())

    while len(chosen) < min(most, count):
        gains, rss = _gains(grams, chosen)
        best = int(gains.argmax())
        if gains[best] <= enough(rss):
            break
        chosen.append(best)
    while len(chosen) > 1:
        lost = [trust @ _residual(grams, [j for j in chosen if j != i]) for i in chosen]
        whole = _residual(grams, chosen)
        least = int(np.argmin(lost))
        if lost[least] - trust @ whole > enough(whole):
            break
        del chosen[least]
    return chosen


def _columns(grams: Grams, chosen: Sequence[int]) -> list[int]:
    return [*chosen, len(grams.names)] if grams.based else list(chosen)


def by_tensor(grams: Grams, rows: Sequence[int]) -> tuple[FloatArray, FloatArray]:
    """Least squares in each tensor by itself: coefficients [T, P], squared residuals [T]."""
    rows = list(rows)
    gram, cross = grams.gram[:, rows][:, :, rows], grams.cross[:, rows]
    each = solve(gram, cross)
    return each, residuals(grams, rows, each)


def _residual(grams: Grams, chosen: Sequence[int]) -> FloatArray:
    return by_tensor(grams, _columns(grams, chosen))[1]


def _gains(grams: Grams, chosen: Sequence[int]) -> tuple[FloatArray, FloatArray]:
    """By how much each candidate lowers the summed squared residual, [M]; and what it is now by tensor."""
    count = len(grams.names)
    rows = _columns(grams, chosen)
    diagonal = np.diagonal(grams.gram, axis1=1, axis2=2)[:, :count]
    each, rss = by_tensor(grams, rows)
    between = grams.gram[:, :count][:, :, rows]
    inner = grams.gram[:, rows][:, :, rows]
    room = diagonal - (between * solve(inner[:, None], between)).sum(axis=-1)
    slope = grams.cross[:, :count] - np.einsum("tmp,tp->tm", between, each)
    usable = room > 1e-9 * diagonal
    gains = grams.trust @ np.where(usable, slope**2 / np.where(usable, room, 1.0), 0.0)
    gains[list(chosen)] = 0.0
    return gains, rss


def recover(
    grams: Grams,
    is_made: Callable[[Sequence[int]], bool | None] = lambda chosen: None,
    also: Sequence[int] = (),
) -> Gradient | None:
    """The merge by depth that leaves no more than rounding does, or None. Needs two parents.

    Of more parents than two, pairs are tried first: an earlier merge of the same two, with a coefficient a tensor, explains
    some of the rounding. `is_made` tells whether candidates make the child's sampled elements, None where that is not known; then
    pairs of those that make most of the child with one coefficient each, `also`, are tried too.
    """
    chosen = find_parents_by_tensor(grams)
    trust, room = grams.trust, LIMIT**2 * Normal.of(grams).floor
    whole = float(trust @ _residual(grams, chosen)) if len(chosen) > 1 else 0.0
    pairs = [
        (float(trust @ _residual(grams, pair)), pair)
        for pair in combinations(dict.fromkeys([*chosen, *also[:MOST]]), 2)
    ]
    for left, pair in sorted(pairs) if len(pairs) > 1 or also else []:
        if left > room:
            break
        # What makes each element is the pair, whatever more of them explain beside it.
        made = is_made(pair)
        near = left <= PAIRS * whole and len(chosen) > 2 if made is None else made
        if near and (found := _told_by_depth(grams, list(pair), room)) is not None:
            return found
    return _told_by_depth(grams, chosen, room) if len(chosen) > 1 and whole <= room else None


def _told_by_depth(grams: Grams, chosen: list[int], room: float) -> Gradient | None:
    """The best merge by depth of these, SLERP where two fit it as well; None beyond the `room` that rounding leaves."""
    where, trust = places(grams.tensors), grams.trust
    found = _linear(grams, chosen, where)
    if len(chosen) == 2 and grams.based:
        curved = _computed(grams, _slerp(grams, chosen, where, angles(grams, chosen)))
        if float(trust @ curved.rss) <= max(float(trust @ found.rss), room):
            found = curved
    return found if float(trust @ found.rss) <= room else None


def fit(grams: Grams, like: Gradient) -> Gradient:
    """The best merge by depth of the same parents, of the same kind, between the same angles."""
    if like.angle is not None:
        return _computed(grams, _slerp(grams, like.parents, like.places, like.angle))
    return _linear(grams, like.parents, like.places)


def told(grams: Grams, gradient: Gradient, errors: FloatArray) -> Gradient:
    """The same with `lists`, as short as `errors` [G, P], half intervals of its values, allow."""
    lists, fitted = _lists(gradient.places, gradient.values, _weights(grams, gradient), errors)
    return replace(gradient, lists=lists, each=coefficients(grams, gradient, fitted))


def valued(grams: Grams, gradient: Gradient, values: FloatArray) -> Gradient:
    """The same with other `values`: coefficients and residuals follow."""
    each = coefficients(grams, gradient, values)
    rows = [*gradient.parents, len(grams.names)]
    return replace(gradient, values=values, each=each, rss=residuals(grams, rows, each))


def coefficients(grams: Grams, gradient: Gradient, values: FloatArray) -> FloatArray:
    """Coefficients by tensor [T, P + 1] from values by place."""
    each = np.zeros((len(grams.tensors), len(gradient.parents) + 1))
    if gradient.method == "slerp":
        t = np.empty(len(grams.tensors))
        for place, value in zip(gradient.places, values[:, 0], strict=True):
            t[place.tensors] = value
        assert gradient.angle is not None
        return slerp_coefficients(t, gradient.angle)
    for place, value in zip(gradient.places, values, strict=True):
        each[place.tensors, :-1] = value
    return each


def errors_by_tensor(gradient: Gradient, errors: FloatArray) -> FloatArray:
    """Half intervals of each parent's coefficient by tensor [T, P] from those of the values by place."""
    result = np.empty((len(gradient.each), len(gradient.parents)))
    for place, error in zip(gradient.places, errors, strict=True):
        result[place.tensors] = error
    return result


def _weights(grams: Grams, gradient: Gradient) -> FloatArray:
    """What turns an error of the values into squared residual [G, P, P]."""
    rows = gradient.parents
    gram = np.array([grams.gram[p.tensors][:, rows][:, :, rows].sum(axis=0) for p in gradient.places])
    if gradient.method != "slerp":
        return gram
    apart = gram[:, 0, 0] + gram[:, 1, 1] - 2 * gram[:, 0, 1]
    return np.asarray(apart[:, None, None])


def _linear(grams: Grams, chosen: list[int], where: list[Place]) -> Gradient:
    """Coefficients by place, no base."""
    gram = grams.gram[:, chosen][:, :, chosen]
    inner = np.array([gram[p.tensors].sum(axis=0) for p in where])
    values = solve(inner, np.array([grams.cross[p.tensors][:, chosen].sum(axis=0) for p in where]))
    straight = bool(np.all(np.abs(values.sum(axis=1) - 1) < 0.05))
    method = "linear" if straight else "task_arithmetic"
    return valued(grams, Gradient(chosen, method, where, values, {}, np.empty(0), np.empty(0)), values)


def _slerp(grams: Grams, chosen: list[int], where: list[Place], angle: FloatArray) -> Gradient:
    """One t a place; the first parent is the t = 0 end."""
    columns = grams.of(chosen)
    place = np.empty(len(grams.tensors), dtype=np.intp)
    for index, tensors in enumerate(where):
        place[tensors.tensors] = index
    pooling = (place[:, None] == np.arange(len(where))).astype(float)

    def left(t: FloatArray) -> FloatArray:
        squares = residuals(columns, range(3), slerp_coefficients(t[..., place], angle))
        return np.asarray(squares @ pooling)

    values = _lowest(left, len(where))
    found = Gradient(chosen, "slerp", where, values[:, None], {}, np.empty(0), np.empty(0), angle)
    return valued(grams, found, found.values)


def _computed(grams: Grams, slerp: Gradient) -> Gradient:
    """SLERP with the coefficients that a computation in float32 had: its sums of products miss the angle by a little.

    In each tensor both coefficients of raw weights may be off by as much as float32 leaves, which 24 bits resolve and fewer
    do not.
    """
    fine = (grams.significant[:, -1] >= BITS["F32"]) & (np.diagonal(grams.gram, axis1=1, axis2=2)[:, -1] > 0)
    if not fine.any():
        return slerp
    rows = [*slerp.parents, len(grams.names)]
    gram = grams.gram[:, rows][:, :, rows]
    onto = np.array([[1.0, 0.0, 1.0], [0.0, 1.0, 1.0]])  # raw weights: a change and the base's own
    missed = onto @ (grams.cross[:, rows] - (gram @ slerp.each[:, :, None])[:, :, 0])[:, :, None]
    found = solve(onto @ gram @ onto.T, missed[:, :, 0])
    off = np.where((fine & (np.abs(found).max(axis=1) <= SINGLE))[:, None], found, 0.0)
    each = slerp.each + off @ onto
    return replace(slerp, each=each, rss=residuals(grams, rows, each))


def angles(grams: Grams, pair: Sequence[int]) -> FloatArray:
    """The angle between two candidates' raw weights in each tensor [T], 0 where it is too small for SLERP."""
    a, b = pair
    base = grams.gram[:, -1, -1]
    to_a, to_b = grams.gram[:, a, -1], grams.gram[:, b, -1]
    dot = grams.gram[:, a, b] + to_a + to_b + base
    squares = (grams.gram[:, a, a] + 2 * to_a + base) * (grams.gram[:, b, b] + 2 * to_b + base)
    cosine = np.clip(dot / np.sqrt(np.maximum(squares, 1e-300)), -1, 1)
    return np.where(np.abs(cosine) > STRAIGHT, 0.0, np.arccos(cosine))


def slerp_coefficients(t: FloatArray, angle: FloatArray) -> FloatArray:
    """Coefficients [..., T, 3] of two deltas and the base's weights, of t [..., T]: s0, s1, s0 + s1 - 1."""
    straight = angle == 0
    sine = np.where(straight, 1.0, np.sin(angle))
    first = np.where(straight, 1 - t, np.sin((1 - t) * angle) / sine)
    second = np.where(straight, t, np.sin(t * angle) / sine)
    return np.stack([first, second, first + second - 1], axis=-1)


def _lowest(square: Callable[[FloatArray], FloatArray], count: int) -> FloatArray:
    """Where in -0.5..1.5 each of `count` independent functions of t is lowest: a grid, then ever finer ones.

    `square` takes t [..., count] and gives as many values.
    """
    best, width = np.full(count, 0.5), 1.0
    for _ in range(6):
        grid = np.linspace(-width, width, 21)
        found = square(best + grid[:, None])
        middle = found[len(grid) // 2]
        best = best + np.where(found.min(axis=0) < middle * (1 - 1e-15), grid[found.argmin(axis=0)], 0.0)
        width /= 10
    # The last step by the parabola through three points: the sums resolve t no finer.
    step = 1e-3
    low, mid, high = square(best - step), square(best), square(best + step)
    curve = low + high - 2 * mid
    shift = np.where(curve > 0, (low - high) * step / 2 / np.where(curve > 0, curve, 1.0), 0.0)
    return np.asarray(best + np.clip(shift, -step, step))


def _lists(
    where: Sequence[Place], values: FloatArray, weight: FloatArray, errors: FloatArray
) -> tuple[dict[str, FloatArray], FloatArray]:
    """The shortest list a block that interpolates to the values [G, P], and what it gives at each place.

    `weight` [G, P, P] turns an error of the values into squared residual.
    """
    lists: dict[str, FloatArray] = {}
    fitted = values.copy()
    for block in dict.fromkeys(place.block for place in where):
        rows = [i for i, place in enumerate(where) if place.block == block]
        at = np.array([where[i].position for i in rows])
        room = float(np.einsum("gp,gpp,gp->", errors[rows], weight[rows], errors[rows]))
        for length in range(1, max(2, len(set(at)) + 1)):
            spread = _interpolation(at, length)
            inner = np.einsum("gk,gpq,gl->kplq", spread, weight[rows], spread)
            cross = np.einsum("gk,gpq,gq->kp", spread, weight[rows], values[rows])
            size = inner.shape[0] * inner.shape[1]
            knots = solve(inner.reshape(size, size), cross.reshape(size)).reshape(cross.shape)
            if not weight[rows].any():
                knots = values[rows].mean(axis=0, keepdims=True)
            missed = spread @ knots - values[rows]
            if float(np.einsum("gp,gpq,gq->", missed, weight[rows], missed)) <= room:
                break
        lists[block], fitted[rows] = knots, spread @ knots
    return lists, fitted


def _interpolation(at: FloatArray, length: int) -> FloatArray:
    """Rows of weights [G, K] that interpolate a list of K values, spread evenly over 0..1, at each position."""
    scaled = at * (length - 1)
    low = np.minimum(scaled.astype(int), length - 1)
    high = np.minimum(low + 1, length - 1)
    share = scaled - low
    weights = np.zeros((len(at), length))
    weights[np.arange(len(at)), low] += 1 - share
    weights[np.arange(len(at)), high] += share
    return weights


def spread_of(gradient: Gradient, grams: Grams, left: FloatArray) -> FloatArray:
    """Standard errors of `values`, [G, P], from the variance of the residual `left` [T] in each place."""
    weights = _weights(grams, gradient)
    variance = [left[p.tensors].sum() / max(grams.numel[p.tensors].sum(), 1) for p in gradient.places]
    errors = [
        np.sqrt(np.maximum(v * np.diagonal(inverse(w)), 0)) for v, w in zip(variance, weights, strict=True)
    ]
    # Where no parent moved, nothing is known of their shares.
    blind = np.diagonal(weights, axis1=1, axis2=2) <= 0
    return np.minimum(np.where(blind, np.inf, errors), UNKNOWN)
