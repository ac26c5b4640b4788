"""What a child's sums show where no combination makes it: elements left out, or the whole of parents inside it."""

from collections.abc import Sequence

import numpy as np

from kinbase.provenance.recipes.least_squares import FloatArray, Grams, Normal, solve
from kinbase.provenance.recipes.rounding import Population, bends

WHOLE = 0.03
"""How far from 1 the coefficient of a parent that was trained on may be; more where it explains nine tenths."""

ONWARD = 0.2
"""Then: training that goes on in the same direction lengthens the parent's change."""

EVEN = 0.08
"""Largest distance between the quartiles of that coefficient over the tensors: 0.01 to 0.05 in trained families."""

ALIKE = 0.65
"""Least cosine of a child and the parent it was trained from."""

SPARSE = 0.05
"""Share of weights that must be the base's own, beyond what a merge's rounding explains, to speak of selection."""


def left_out(grams: Grams, zeros: FloatArray | None, chosen: Sequence[int]) -> str | None:
    """Why it looks like TIES or DARE: weights are the base's own where a plain merge's would have moved."""
    if zeros is None or not chosen:
        return None
    sub = grams.of(chosen)
    moved = zeros[:, -1] < 0.995  # a tensor left as it was says nothing of how the others were merged
    if not moved.any():
        return None
    weight = np.where(moved, grams.numel, 0) / grams.numel[moved].sum()
    own = float(weight @ zeros[:, -1])
    plain = zeros[:, list(chosen)].min(axis=1)
    if own - float(weight @ plain) < SPARSE:  # what rounding leaves as it was only adds to it
        return None
    values = np.append(Normal.of(sub).solve(range(len(chosen)))[0], 0.0)
    if bends(sub):
        plain = np.maximum(plain, Population(sub).unmoved(values))
    expected = float(weight @ plain)
    if own - expected < SPARSE:
        return None
    return (
        f"{own:.0%} of its weights are the base's own, where a plain merge of these would leave {expected:.0%}: "
        "elements were left out, so the coefficients are only rough"
    )


def trained_from(grams: Grams) -> tuple[str, float, float, float] | None:
    """The parent whose whole delta the child has: its name, coefficient, half the interval, and the residual.

    Training on from a parent adds something nearly orthogonal, so the child's regression on it is 1, in every
    tensor; on a sibling's delta it is their cosine times the ratio of lengths. Of several such candidates one that
    itself goes on from another must be in the child with all it added. A sibling trained alike, longer by just
    one over the cosine, cannot be told from a parent.
    """
    own = np.diagonal(grams.gram, axis1=1, axis2=2)[:, :-1]
    gram, cross = grams.gram.sum(axis=0)[:-1, :-1], grams.cross.sum(axis=0)[:-1]
    sumsq = float(grams.sumsq.sum())
    length = np.maximum(np.diagonal(gram), 1e-300)
    cosine = cross / np.sqrt(length * sumsq)
    passing = [
        int(i)
        for i in np.argsort(-cosine)
        if cosine[i] >= ALIKE
        and length[i] <= sumsq
        and _is_whole(cross[i] / length[i], cosine[i])
        and _even(grams.cross[:, i], own[:, i])
    ]
    for i in passing:
        if all(_carried(gram, cross, i, j) for j in passing if j != i):
            slope = float(cross[i] / length[i])
            left = float(np.sqrt(max(1 - cosine[i] ** 2, 0.0)))
            half = 1.96 * left * float(np.sqrt(sumsq / length[i] / grams.numel.sum()))
            return grams.names[i], slope, half, left
    return None


def _is_whole(slope: float, cosine: float) -> bool:
    return -WHOLE <= slope - 1 <= (ONWARD if cosine > 0.9 else WHOLE)


def _even(cross: FloatArray, own: FloatArray) -> bool:
    """Whether the coefficient is about the same in all the tensors that matter."""
    large = own > 0.2 * own.mean()
    slopes = cross[large] / own[large]
    return float(np.subtract(*np.percentile(slopes, [75, 25]))) <= EVEN


def _carried(gram: FloatArray, cross: FloatArray, late: int, early: int) -> bool:
    """Whether the child has all that candidate `late` added to candidate `early`, if it goes on from that at all."""
    if not _is_whole(gram[late, early] / gram[early, early], 1.0) or gram[late, late] < gram[early, early]:
        return True
    added = gram[late, late] + gram[early, early] - 2 * gram[late, early]
    shared = cross[late] - cross[early] - gram[late, early] + gram[early, early]
    return bool(added <= 0 or abs(shared / added - 1) <= 2 * ONWARD)


def trained_from_merge(grams: Grams, chosen: Sequence[int]) -> tuple[list[tuple[int, float]], float] | None:
    """Parents and shares of a merge that was trained on, and what is new; None where the sums do not say so.

    What training adds lies about at right angles to all that was there, so the regression on a merge's parents gives
    its shares, which sum to 1, in every tensor. Siblings that share a direction give less, unless they are many
    or twins: so of two or three parents only.
    """
    if not 2 <= len(chosen) <= 3:
        return None
    sub = grams.of(chosen)
    normal = Normal.of(sub)
    shares, rss = normal.solve(range(len(chosen)))
    explained = float(np.sqrt(max(1 - rss / normal.sumsq, 0.0)))
    if shares.min() < 2 * WHOLE or abs(shares.sum() - 1) > WHOLE / 2 or explained < ALIKE:
        return None
    own = np.einsum("p,tpq,q->t", shares, sub.gram[:, :-1, :-1], shares)
    if not _even(sub.cross[:, :-1] @ shares, own):
        return None
    large = np.flatnonzero(own > 0.2 * own.mean())
    each = solve(sub.gram[large][:, :-1, :-1], sub.cross[large][:, :-1])
    if (np.subtract(*np.percentile(each, [75, 25], axis=0)) > 2 * EVEN).any():
        return None
    order = sorted(range(len(chosen)), key=lambda i: -shares[i])
    return [(chosen[i], float(shares[i])) for i in order], float(np.sqrt(rss / normal.sumsq))
