"""Model Stock: a mean of fine-tunes drawn to their base by as much as they disagree (Jang, Yun, Han 2024, arXiv 2403.19522).

In each tensor N changes with mean pairwise cosine c count t / N each, t = N c / (1 + (N - 1) c): coefficients that no depth or
block explains, but the parents' inner products do, so there is nothing to fit.
"""

from collections.abc import Sequence
from itertools import combinations

import numpy as np

from kinbase.provenance.recipes.intervals import (
    MERGE,
    MERGES,
    SINGLE,
    Finding,
    Parent,
    condition,
    held,
)
from kinbase.provenance.recipes.least_squares import FloatArray, Grams, Normal, residuals
from kinbase.provenance.recipes.rounding import Population, bends

NEAR = 0.05
"""How far, as a share, the parents' coefficients over all tensors may be apart: they are one but for what rounding bends."""


def model_stock(grams: Grams, chosen: Sequence[int]) -> Finding | None:
    """The finding on a Model Stock merge of some candidates; None where they do not make the child so."""
    if len(chosen) < 2:
        return None
    sub = grams.of(chosen)
    normal = Normal.of(sub)
    values, _ = normal.solve(range(len(chosen)))
    if values.min() <= 0 or values.max() > (1 + NEAR) * values.min() + NEAR * values.mean():
        return None
    share = coefficients(sub.gram[:, :-1, :-1])
    each = np.zeros((len(share), len(chosen) + 1))
    each[:, :-1] = share[:, None]
    rows = range(len(chosen) + 1)
    left = residuals(sub, rows, each)
    expected = residuals(Population(sub).merged(each), rows, each) if bends(sub) else sub.rounded
    mean = float(sub.numel @ share / sub.numel.sum())
    half = SINGLE + float(np.abs(left.sum() - expected.sum())) / max(float(sub.sumsq.sum()), 1e-300)
    parents = [Parent(name, mean, mean - half, mean + half) for name in sub.names]
    residual = float(np.sqrt(left.sum() / sub.sumsq.sum()))
    finding = Finding(
        MERGE, "", residual, sub.floor, parents, "model_stock", residual / sub.floor,
        condition=condition(normal.gram), base=1 - mean * len(chosen),
    )  # fmt: skip
    finding = held(finding, left, expected, sub, each)
    if finding.verdict not in MERGES:
        return None
    finding.reason = (
        f"Model Stock of {len(chosen)}, by their cosines, leaves {finding.ratio:.2f} of what rounding would"
    )
    return finding


def coefficients(gram: FloatArray) -> FloatArray:
    """What each of P changes counts in each tensor [T], from their inner products [T, P, P]."""
    count = gram.shape[1]
    length = np.sqrt(np.maximum(np.diagonal(gram, axis1=1, axis2=2), 1e-300))
    cosine = np.mean(
        [gram[:, i, j] / length[:, i] / length[:, j] for i, j in combinations(range(count), 2)], axis=0
    )
    spread = 1 + (count - 1) * cosine  # 0 where the changes cancel
    return np.where(spread > 1e-9, cosine / np.maximum(spread, 1e-9), 0.0)
