"""Merges of which elements were left out: TIES keeps the largest, DARE drops at random and scales up the rest.

No combination of the parents makes such a child. Where files can be read a sample of elements tells its parents
(kinbase.provenance.recipes.selected_elements). By sums alone the share of weights that are the base's own tells of it, and for
elements dropped at random it also foretells how long the child is; the parents are rougher.
"""

from collections.abc import Sequence
from dataclasses import replace
from itertools import combinations

import numpy as np

from kinbase.provenance.recipes.elements import Sampler
from kinbase.provenance.recipes.intervals import (
    MERGE,
    SELECTED,
    UNDECIDABLE,
    Finding,
    Parent,
    fitted,
    is_negative,
)
from kinbase.provenance.recipes.least_squares import FloatArray, Grams, Normal
from kinbase.provenance.recipes.partial_merges import SPARSE, left_out
from kinbase.provenance.recipes.selected_elements import Selection, selected

LOOSE = 0.4
"""Squared residual up to which selected elements are believed without the share that their number foretells."""

NEARLY = 0.12
"""How far, as a logarithm, the squared length of a child may be from what its share of dropped elements foretells."""

WITHOUT = 1.4
"""Squared residual of a few parents of selected elements, over that of all that have a share, up to which they are enough."""

SHARE = 0.05
"""Least coefficient of a parent of which elements were selected."""

ROUGHLY = 0.005
"""Relative error of a weight of selected elements: arithmetic of 16 bits on the way."""


MOST_READ = 24
"""Candidates of which elements are read: the nearest."""

LIKE = 0.1
"""Least cosine of a candidate of which elements are read: of one parent, a hundredth of its elements kept."""

NOTHING = 0.98
"""Residual from which a model has nothing of others that would be worth reading elements for."""

SURE = 1.96
"""Standard errors of half a 95% interval."""


def by_elements(grams: Grams, zeros: FloatArray | None, plain: Finding, sampler: Sampler) -> Finding | None:
    """The finding on a model whose sampled elements are made of others', each in or out; None where they are not.

    Nothing is read of a model that is a merge already, or that has nothing of others. What sums alone take for selected elements
    is undecided where the elements are not all made of models that are here.
    """
    if plain.verdict == MERGE and not is_negative(plain):
        return None
    left_alone = zeros is not None and _own(grams, zeros) > SPARSE + _own(
        grams, zeros, range(len(grams.names))
    )
    if (plain.residual is None or plain.residual > NOTHING) and not left_alone:
        return None
    length = np.einsum("tii->i", grams.gram)[:-1]
    cosine = np.abs(grams.cross.sum(axis=0)[:-1]) / np.sqrt(np.maximum(length * grams.sumsq.sum(), 1e-300))
    near = [int(i) for i in np.argsort(-cosine)[:MOST_READ] if cosine[i] >= LIKE]
    names = [grams.names[i] for i in near if grams.names[i] not in grams.adapters]
    elements = sampler(names) if names else None
    found = selected(elements) if elements is not None else None
    if found is not None and found.is_whole:
        return _told(plain, found)
    if plain.verdict != SELECTED or elements is None:
        return None
    parents = _parents(found) if found is not None else plain.parents
    part = (
        f"{found.explained:.0%} of its sampled elements are made of theirs"
        if found is not None
        else "they do not make it"
    )
    why = f"elements of {', '.join(p.parent for p in parents)} were selected, but {part}: another parent is not here"
    return replace(plain, verdict=UNDECIDABLE, reason=why, nearest=parents, parents=[])


def _own(grams: Grams, zeros: FloatArray, candidates: Sequence[int] = (-1,)) -> float:
    """The share of weights that are the base's own in the child, or in the candidate that has the fewest of them."""
    return float((grams.numel @ zeros[:, list(candidates)]).min(initial=np.inf) / grams.numel.sum())


def _told(plain: Finding, found: Selection) -> Finding:
    """A selection as a finding: coefficients are the weights that a configuration of its method has."""
    method = {
        (True, True): "ties", (True, False): "dare_ties", (False, True): "breadcrumbs", (False, False): "dare_linear",
    }  # fmt: skip
    kept = ", ".join(f"{share:.0%} of {name}" for name, share in zip(found.parents, found.kept, strict=True))
    how = "the largest" if found.largest else "at random"
    reason = (
        f"{found.explained:.1%} of its sampled elements are made of theirs, each in or out, and {found.chance:.0%} of "
        f"numbers beside them would be; kept were, {how}, {kept}"
    )
    return replace(
        plain, verdict=SELECTED, reason=reason, parents=_parents(found), nearest=[], alternatives={}, gradient=None,
        method=method[found.weights is not None or found.elected, found.largest], explained=found.explained,
        ratio=None, expected=None, notes=[],
    )  # fmt: skip


def _parents(found: Selection) -> list[Parent]:
    """The parents with the weights that a configuration of their method has."""
    parents = []
    # A mean tells what weights are to each other: the largest is taken for 1 and the rest of what it counts for a scale of all.
    relative = (
        [1.0] * len(found.parents)
        if found.weights is None
        else [w / max(found.weights) for w in found.weights]
    )
    for name, count, error, kept, weight in zip(
        found.parents, found.counts, found.errors, found.kept, relative, strict=True
    ):
        # What is dropped at random is scaled up by as much: the weight is what is left of it on average.
        scale = weight if found.weights is not None or found.largest else kept
        chance = 0.0 if scale == weight else abs(count) * float(np.sqrt(kept * (1 - kept) / found.elements))
        half = SURE * float(np.hypot(error * scale, chance)) + ROUGHLY * abs(count) * scale
        parents.append(Parent(name, count * scale, count * scale - half, count * scale + half))
    return parents


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
