"""Whether two networks were trained independently of each other: a p-value from the order of their hidden units.

Zhu, Ahmed, Kuditipudi, Liang 2025, "Independence tests for language models" (arXiv 2502.12292), the unconstrained
setting. In a gated MLP the units of two models are matched once by the rows of their gates and once by the rows of
their ups. Nothing but a common origin lets the two matchings agree: of independent models any relabelling of the
units of one is as likely as any other, so Spearman's correlation of the two matchings is that of random permutations.
One p-value a layer, combined by Fisher's method. In an MLP without gates the rows of the first matrix and the columns
of the second take their place.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

from kinbase.matching.assignment import Matrix, paired

FEWEST = 8
"""Units below which Spearman's distribution is not near enough to Student's."""
RELATED = 1e-3
"""p below which two models are called related; of independent ones one pair in a thousand is, by chance."""


@dataclass(frozen=True, slots=True)
class Independence:
    """The outcome of a test over layers: p, how many layers were tested, and Spearman's mean correlation."""

    p: float | None
    layers: int
    rho: float | None

    @property
    def is_related(self) -> bool:
        """Whether the two are not independent."""
        return self.p is not None and self.p < RELATED


def layer_test(first: Matrix, second: Matrix) -> tuple[float, float] | None:
    """(log p, rho) of one layer; None where there is nothing to match.

    `first` and `second` are cosines [m, m] of each unit of one model with each of the other: by gate and by up. Units
    that are zero in either are left out. p is one-sided, and never below 1 / n!, the share of one matching of n units.
    """
    rows = np.flatnonzero(first.any(1) & second.any(1))
    columns = np.flatnonzero(first.any(0) & second.any(0))
    found = []
    for cosines in (first, second):
        are_all = (len(rows), len(columns)) == cosines.shape
        at, to = paired(np.abs(cosines if are_all else cosines[np.ix_(rows, columns)]))
        found.append(dict(zip(at.tolist(), to.tolist(), strict=True)))
    both = sorted(found[0].keys() & found[1].keys())
    return spearman([found[0][i] for i in both], [found[1][i] for i in both])


def same_order(n: int) -> tuple[float, float] | None:
    """What `layer_test` says of n units whose matchings are one."""
    return (-math.lgamma(n + 1), 1.0) if n >= FEWEST else None


def spearman(x: Sequence[int], y: Sequence[int]) -> tuple[float, float] | None:
    """(log p, rho) of the one-sided test that two matchings are independent; None for too few units.

    p by Student's t with n - 2 degrees of freedom (Kendall and Stuart, 31.19).
    """
    n = len(x)
    if n < FEWEST:
        return None
    rho = float(stats.spearmanr(x, y).statistic)
    if rho >= 1:
        return same_order(n)
    t = rho * math.sqrt((n - 2) / (1 - rho * rho))
    return max(float(stats.t.logsf(t, n - 2)), -math.lgamma(n + 1)), rho


def combined(layers: Sequence[tuple[float, float]]) -> Independence:
    """Fisher's method over the layers' (log p, rho): -2 sum log p is chi squared with 2 L degrees of freedom."""
    if not layers:
        return Independence(None, 0, None)
    statistic = -2 * sum(log_p for log_p, _ in layers)
    return Independence(
        float(stats.chi2.sf(statistic, 2 * len(layers))),
        len(layers),
        float(np.mean([rho for _, rho in layers])),
    )
