"""Which model a quantised one was made from: the nearest of its family that is finer, if no other is as near by chance.

Rounding to a grid adds noise e of squared length N, a twelfth of the grid's squared steps. From its source a
quantised model lies |e|^2 = N, from a sibling of the source at distance s it lies N + s^2 + 2 <e, s>, of which the
last has standard deviation 2 s sqrt(N / n) over n elements. So if one lies nearer than another by D, the logarithm of
the odds that it is the source is D n / 2 N, and siblings are told apart far below the noise. Siblings quantised
to the same grid are no candidates: weights that hardly differ round alike, so they lie nearer than the source.
"""

import numpy as np

from kinbase.provenance.recipes.intervals import COPY, UNDECIDABLE, Finding, Parent
from kinbase.provenance.recipes.least_squares import BITS, LIMIT, FloatArray, Grams

PLAIN = ("F64", "F32", "F16", "BF16", "F8_E4M3", "F8_E5M2")
"""The dtypes of models that are not quantised."""

ODDS = 5.0
"""Logarithm of the odds by which the nearest must be the source rather than any other candidate."""

TWIN = 1e-3
"""Squared distance of two candidates, over their squared delta, up to which they are one model for this purpose."""


def quantised_from(grams: Grams) -> Finding | None:
    """The source of a quantised child; None for any other child, and where no finer candidate is within its noise."""
    if not grams.dtypes or grams.dtypes[-1] in PLAIN:
        return None
    child = grams.dtypes[-1]
    finer = [i for i in range(len(grams.names)) if BITS.get(grams.dtypes[i], 0) > BITS.get(child, 0)]
    gram, cross, sumsq = grams.gram.sum(axis=0), grams.cross.sum(axis=0), float(grams.sumsq.sum())
    noise, numel = float(grams.noise.sum()), float(grams.numel.sum())
    apart = np.array([max(sumsq - 2 * cross[i] + gram[i, i], 0.0) for i in finer])
    if not len(apart) or apart.min() > LIMIT**2 * noise or sumsq <= apart.min():
        return None
    best = finer[int(apart.argmin())]
    residual = float(np.sqrt(apart.min() / sumsq))
    found = Finding(
        COPY, f"{grams.names[best]} rounded from {grams.dtypes[best]} to {child}", residual, grams.floor,
        [Parent(grams.names[best], 1.0, 1.0, 1.0)], None, residual / grams.floor, grams.floor, residual / grams.floor, 1.0,
    )  # fmt: skip
    # The base is a rival like any other: its delta is zero.
    rivals = [
        (grams.names[i], far, _between(gram, best, i))
        for i, far in zip(finer, apart, strict=True)
        if i != best
    ]
    for name, far, between in [*rivals, ("the base", sumsq, float(gram[best, best]))]:
        if far - apart.min() >= 2 * ODDS * noise / max(numel, 1):
            continue
        if between <= TWIN * gram[best, best]:
            found.alternatives.setdefault(grams.names[best], []).append(name)
            continue
        found.verdict, found.nearest, found.parents = UNDECIDABLE, found.parents, []
        found.reason = f"its rounding to {child} hides whether it was {grams.names[best]} or {name}"
        return found
    return found


def _between(gram: FloatArray, one: int, other: int) -> float:
    return float(max(gram[one, one] + gram[other, other] - 2 * gram[one, other], 0.0))
