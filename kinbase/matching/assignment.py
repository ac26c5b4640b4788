"""Units of two models paired so that they are as alike as can be: the linear assignment problem on their similarities.

After Git Re-Basin's weight matching (Ainsworth, Hayase, Srinivasa 2022, arXiv 2209.04836, algorithm 1).
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment

from kinbase.matching.symmetry import Indices

Matrix = NDArray[np.float32]

IN_PLACE = 0.9
"""Cosine from which a unit is that of its own place, and no other is looked at."""
LIKING = 1e-5
"""What a unit's own place is preferred by, so that equal and dead units stay where they are."""


def unit_rows(rows: Matrix) -> Matrix:
    """Rows [n, features] of length 1; what is zero or not finite is zero."""
    length = np.sqrt(np.einsum("ij,ij->i", rows, rows, dtype=np.float64))
    with np.errstate(divide="ignore", invalid="ignore"):
        scale = np.where((length > 0) & np.isfinite(length), 1 / length, 0).astype(np.float32)
    with np.errstate(invalid="ignore"):
        units = rows * scale[:, None]
    return np.asarray(np.nan_to_num(units, copy=False, nan=0.0, posinf=0.0, neginf=0.0))


def assign(similarity: NDArray[Any]) -> Indices:
    """For each row of similarities [n, n] the column that is paired with it, so that their sum is the largest.

    Where every row's best is another's column, that is the answer; else it is found as Crouse 2016 does (scipy). LIKING is
    added to the diagonal of `similarity` itself: it may be a large part of what memory there is.
    """
    n = len(similarity)
    similarity.flat[:: n + 1] += LIKING
    best = similarity.argmax(axis=1)
    if len(np.unique(best)) == n:
        return np.asarray(best, np.int64)
    return paired(similarity)[1]


def paired(similarity: NDArray[Any]) -> tuple[Indices, Indices]:
    """Rows and columns of the pairs that give the largest sum, of similarities [rows, columns].

    scipy copies them once more to look for the largest sum than for the smallest.
    """
    rows, columns = linear_sum_assignment(-similarity)
    return np.asarray(rows, np.int64), np.asarray(columns, np.int64)


def along_diagonal(a: Matrix, b: Matrix) -> NDArray[np.float32]:
    """Cosine [n] of each row of `a` with the row of `b` of its place."""
    return np.asarray(np.einsum("ij,ij->i", unit_rows(a), unit_rows(b)), np.float32)
