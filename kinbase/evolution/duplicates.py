"""Children that would be near twins of a model there is: told from stored sums, before any merging.

A linear child's delta is the weighted sum of its parents' deltas, so its inner product with any measured model
follows from theirs, and so does their cosine. A spherical child is one to second order in the angle. What TIES
and DARE select cannot be told, and such children are never skipped.
"""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from kinbase.query.kinship import measured_sums

if TYPE_CHECKING:
    from kinbase.store import Connection

FloatArray = NDArray[np.float64]

LINEAR = ("linear", "task_arithmetic", "slerp")


def gram(con: "Connection", models: Sequence[str]) -> FloatArray:
    """Inner products of the deltas of `models` [N, N]; NaN where a pair is not measured."""
    at = {model: i for i, model in enumerate(models)}
    result = np.full((len(models), len(models)), np.nan)
    for a, b, _, _, dot, _, _, aa, bb in measured_sums(con, models):
        i, j = at[a], at[b]
        result[i, j] = result[j, i] = dot
        result[i, i], result[j, j] = aa, bb
    return result


def weights(made: Mapping[str, Any]) -> list[float] | None:
    """The coefficient of each parent's delta in a merge configuration; None when it is not one number, or not linear."""
    method, parameters = made["merge_method"], made.get("parameters", {})
    if method == "slerp":
        t = parameters.get("t")
        return [1.0 - t, float(t)] if isinstance(t, int | float) and len(made["models"]) == 2 else None
    found = [model.get("parameters", {}).get("weight", 1.0) for model in made["models"]]
    scale = parameters.get("lambda", 1.0) if method == "task_arithmetic" else 1.0
    normalize = parameters.get("normalize", method == "linear")
    numbers = all(isinstance(number, int | float) for number in (*found, scale, normalize))
    if method not in LINEAR or not numbers:
        return None
    if normalize:
        scale /= sum(found) or 1.0
    return [float(scale * w) for w in found]


def nearest(
    products: FloatArray, parents: Sequence[int], coefficients: Sequence[float]
) -> tuple[int, float] | None:
    """The model most akin to the child of `parents` (rows of `products` [N, N]) and their cosine; None: not known."""
    c = np.asarray(coefficients)
    with np.errstate(invalid="ignore", divide="ignore"):
        dots = c @ products[list(parents)]
        length = np.sqrt(c @ products[np.ix_(list(parents), list(parents))] @ c)
        cosines = dots / length / np.sqrt(np.diag(products))
    if not np.isfinite(cosines).any():
        return None
    best = int(np.nanargmax(cosines))
    return best, float(cosines[best])
