"""Merges of which elements were left out: TIES keeps the largest, DARE drops at random and scales up the rest.

No combination of the parents makes such a child, but the share of weights that are the base's own tells of it, and for
elements dropped at random it also foretells how long the child is.
"""

from collections.abc import Sequence
from dataclasses import replace
from itertools import combinations

import numpy as np

from kinbase.provenance.recipes.intervals import SELECTED, UNDECIDABLE, Finding, fitted
from kinbase.provenance.recipes.least_squares import FloatArray, Grams, Normal
from kinbase.provenance.recipes.partial_merges import left_out

LOOSE = 0.4
"""Squared residual up to which selected elements are believed without the share that their number foretells."""

NEARLY = 0.12
"""How far, as a logarithm, the squared length of a child may be from what its share of dropped elements foretells."""

WITHOUT = 1.4
"""Squared residual of a few parents of selected elements, over that of all that have a share, up to which they are enough."""

SHARE = 0.05
"""Least coefficient of a parent of which elements were selected."""


def selection(
    grams: Grams, zeros: FloatArray | None, chosen: Sequence[int], plain: Finding
) -> Finding | None:
    """A merge of selected elements: the fewest parents that dropping at random foretells, else those that explain most."""
    why = left_out(grams, zeros, chosen)
    if why is None or zeros is None or not all(p.coefficient >= SHARE for p in plain.nearest):
        return None
    normal = Normal.of(grams)
    left = normal.solve(chosen)[1]
    for size in range(1, len(chosen) + 1):
        sets = [(normal.solve(some)[1], list(some)) for some in combinations(chosen, size)]
        for rss, some in sorted(sets):
            if rss <= WITHOUT * left and _is_dropped(grams, zeros, some):
                few = fitted(grams, some)
                parents = few.parents or few.nearest
                if all(p.coefficient >= SHARE for p in parents):
                    return replace(
                        plain,
                        verdict=SELECTED,
                        reason=why,
                        parents=parents,
                        nearest=[],
                        residual=few.residual,
                    )
    if (plain.residual or 1.0) ** 2 <= LOOSE and plain.nearest:
        return replace(plain, verdict=SELECTED, reason=why, parents=plain.nearest, nearest=[])
    return replace(
        plain, verdict=UNDECIDABLE, reason=f"{why}; but these are not all of its parents, or another merge stands for one"
    )  # fmt: skip


def _is_dropped(grams: Grams, zeros: FloatArray, chosen: Sequence[int]) -> bool:
    """Whether the child is as long as dropping elements of these at random and scaling up the rest makes it (DARE).

    Of n parents all drop an element with probability (1 - p)^n, which is the share of the base's own; kept ones are
    divided by p, so squares are 1 / p of what the mean coefficients give, and products of two parents are not.
    """
    moved = zeros[:, -1] < 0.995
    weight = np.where(moved, grams.numel, 0.0)
    own = float(weight @ zeros[:, -1] / weight.sum())
    plain = float(weight @ zeros[:, list(chosen)].min(axis=1) / weight.sum())
    share = max(own - plain, 0.0) / max(1 - plain, 1e-9)
    kept = 1 - share ** (1 / len(chosen))
    normal = Normal.of(grams.of(chosen))
    values = normal.solve(range(len(chosen)))[0]
    products = np.outer(values, values) * normal.gram
    squares = float(np.trace(products))
    foretold = squares / max(kept, 1e-9) + float(products.sum()) - squares
    return abs(float(np.log(max(foretold, 1e-300) / normal.sumsq))) <= NEARLY
