"""Average linkage, with the leaves turned so that the alike stand side by side: the order of every heatmap and matrix."""

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Clustering:
    """An order of n rows, and how they were joined.

    `links` float64[n - 1, 4] is as SciPy has a linkage: the two clusters, their distance and the size of the new
    one, of which the first stands before the second in `order`. Empty of fewer than three rows.
    """

    order: list[int]
    links: np.ndarray


def cluster(similar: np.ndarray) -> Clustering:
    """Cluster by average linkage of 1 - similarity; `similar` float64[n, n], NaN where nothing is known.

    Unknown pairs count as unrelated, a similarity of 0. Of equally near clusters the first are joined first, so the
    same rows in the same order give the same answer.
    """
    number = len(similar)
    if number < 3:
        return Clustering(list(range(number)), np.zeros((0, 4)))
    near = np.nan_to_num((similar + similar.T) / 2, nan=0.0)
    between = near.copy()
    np.fill_diagonal(between, -np.inf)
    leaves: dict[int, list[int]] = {i: [i] for i in range(number)}
    label = list(range(number))
    joined = []
    while len(leaves) > 1:
        i, j = divmod(int(np.argmax(between)), number)
        i, j = min(i, j), max(i, j)
        left, right = leaves[i], leaves.pop(j)
        # Of the four ways to join them, the one whose ends are most alike.
        ways = [(a, b) for a in (left, left[::-1]) for b in (right, right[::-1])]
        first, second = max(ways, key=lambda way: near[way[0][-1], way[1][0]])
        leaves[i] = first + second
        joined.append((label[i], label[j], 1.0 - between[i, j], len(leaves[i])))
        label[i] = number + len(joined) - 1
        merged = (len(left) * between[i] + len(right) * between[j]) / len(leaves[i])
        between[i, :] = between[:, i] = merged
        between[j, :] = between[:, j] = -np.inf
        between[i, [k for k in range(number) if k not in leaves or k == i]] = -np.inf
        between[:, i] = between[i, :]
    order = next(iter(leaves.values()))
    return Clustering(order, _turned(joined, order))


def _turned(joined: list[tuple[int, int, float, int]], order: list[int]) -> np.ndarray:
    """The links with the cluster that stands first in `order` first; a cluster turned as a whole stays whole."""
    place = {leaf: i for i, leaf in enumerate(order)}
    links = np.zeros((len(joined), 4))
    for row, (a, b, distance, size) in enumerate(joined):
        a, b = sorted((a, b), key=lambda one: place[one])
        place[len(order) + row] = place[a]
        links[row] = a, b, max(distance, 0.0), size
    return links
