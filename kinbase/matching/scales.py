"""Factors that a model's units were multiplied by on one side and divided by on the other, where they are evident."""

import numpy as np

from kinbase.matching.assignment import Matrix, along_diagonal
from kinbase.matching.symmetry import Factors

SMALLEST = np.log(1.01)
"""The least factor that is undone: training changes lengths by less than a hundredth as readily as by nothing."""
ERRORS = 5.0
"""How many standard errors a factor must stand apart from 1."""
PLAIN = np.log(1.5)
"""A factor that is undone though it stands alone; smaller ones have to be seen in three units, and in FEW of all."""
FEW = 1 / 8


def balanced(
    first: tuple[Matrix, Matrix], second: tuple[Matrix, Matrix], *, has_signs: bool = True
) -> Factors:
    """What to multiply the units of the second model by on the first side, and divide them by on the second: [n].

    `first` and `second` are the rows [n, features] of both models on either side of the units, paired: up and down,
    query and key. A factor that both sides tell, as s and 1/s, is undone; what training did to both sides alike is not.
    Its error is that of the logarithm of a length, sqrt((1 - cos^2) / features). Without `has_signs` all are positive.
    """
    cosines = [along_diagonal(a, b).astype(np.float64) for a, b in (first, second)]
    logs = [_log(_lengths(a), _lengths(b)) for a, b in (first, second)]
    errors = [
        (1 - np.minimum(c**2, 1)) / a.shape[1] for c, (a, _) in zip(cosines, (first, second), strict=True)
    ]
    factor = evident(logs[0], logs[1], np.sqrt(errors[0] + errors[1]))
    negative = (cosines[0] + cosines[1] < 0) if has_signs else np.zeros(len(factor), bool)
    return np.where(negative, -factor, factor)


def evident(first: Factors, second: Factors, error: Factors) -> Factors:
    """The factors [n] that two logarithms, of s and of 1/s, tell; 1 where they do not stand apart from 0, or disagree."""
    half = (first - second) / 2
    is_plain = (np.abs(half) > np.maximum(SMALLEST, ERRORS * error / 2)) & (
        np.abs(first + second) <= np.abs(half)
    )
    if is_plain.sum() < max(3, FEW * len(is_plain)):  # what training does to one unit by chance
        is_plain &= np.abs(half) > PLAIN
    return np.where(is_plain, np.exp(np.where(is_plain, half, 0.0)), 1.0)


def gain_factors(gains: tuple[Matrix, Matrix], columns: tuple[Matrix, Matrix]) -> Factors:
    """What to multiply the second model's gains [d] by, and divide the columns that read them by [d].

    `columns` are those of both models as rows [d, features], the channels paired.
    """
    cosines = along_diagonal(*columns).astype(np.float64)
    is_negative = gains[0] * gains[1] < 0
    logs = _log(np.abs(gains[0]).astype(np.float64), np.abs(gains[1]).astype(np.float64))
    others = _log(_lengths(columns[0]), _lengths(columns[1]))
    error = np.sqrt((1 - np.minimum(cosines**2, 1)) / columns[0].shape[1])
    factor = evident(logs, others, error)
    return np.where(is_negative & (cosines < 0), -factor, factor)


def _lengths(rows: Matrix) -> Factors:
    return np.asarray(np.sqrt(np.einsum("ij,ij->i", rows, rows, dtype=np.float64)))


def _log(a: Factors, b: Factors) -> Factors:
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where((a > 0) & (b > 0), np.log(np.where(b > 0, a / np.where(b > 0, b, 1), 1)), 0.0)
