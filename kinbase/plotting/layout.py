"""A layered drawing of a graph without circles: who stands in which column, and at which height.

The plan of Sugiyama, Tagawa and Toda (IEEE Trans. SMC 11, 1981): columns by longest path, invisible nodes
where an edge passes a column, crossings reduced by weighing each node among its neighbours, and heights
nearest to those of the neighbours that keep order and distance.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import networkx as nx
import numpy as np

SWEEPS = 24
"""Passes over the columns, half of them each way; crossings hardly change after a dozen."""
PASSING = 0.35
"""Room of an edge that passes a column, as a part of a model's."""


@dataclass(frozen=True)
class Passing:
    """Where the edge from `parent` to `child` passes `column`."""

    parent: str
    child: str
    column: int


Node = str | Passing


@dataclass
class Layout:
    """Columns of nodes from the left, their heights (0 at the top, 1 apart), and the way of each edge by (column, height)."""

    columns: list[list[str]]
    height: dict[str, float]
    ways: dict[tuple[str, str], list[tuple[int, float]]]
    crossings: int


def columns_of(graph: nx.DiGraph) -> dict[str, int]:
    """The column of each node: its generation, steps along the longest line from a node without parents.

    A node without parents stands just before the first of its children: nobody knows its generation.
    """
    column: dict[str, int] = {}
    for number, generation in enumerate(nx.topological_generations(graph)):
        column |= dict.fromkeys(generation, number)
    for node in graph:
        if not graph.in_degree(node) and graph.out_degree(node):
            column[node] = min(column[child] for child in graph.successors(node)) - 1
    return column


def layered(graph: nx.DiGraph) -> Layout:
    """The layout of `graph`, a graph of names; among equals their order decides, so that it comes out alike each time."""
    column = columns_of(graph)
    columns: list[list[Node]] = [[] for _ in range(max(column.values(), default=0) + 1)]
    for node in sorted(graph):
        columns[column[node]].append(node)
    up: dict[Node, list[Node]] = {node: [] for node in graph}
    down: dict[Node, list[Node]] = {node: [] for node in graph}
    chains: dict[tuple[str, str], list[Node]] = {}
    for parent, child in sorted(graph.edges):
        chain: list[Node] = [parent]
        for between in range(column[parent] + 1, column[child]):
            passing = Passing(parent, child, between)
            columns[between].append(passing)
            up[passing], down[passing] = [], []
            chain.append(passing)
        chain.append(child)
        for one, other in pairwise(chain):
            down[one].append(other)
            up[other].append(one)
        chains[parent, child] = chain
    columns, crossings = _untangled(_grown(columns, down), up, down)
    height = _heights(columns, up, down)
    at = {node: number for number, nodes in enumerate(columns) for node in nodes}
    ways = {edge: [(at[node], height[node]) for node in chain] for edge, chain in chains.items()}
    real = [[node for node in nodes if not isinstance(node, Passing)] for nodes in columns]
    return Layout(real, {node: height[node] for node in graph}, ways, crossings)


def _grown(columns: list[list[Node]], down: dict[Node, list[Node]]) -> list[list[Node]]:
    """A first order: each column as a walk along the lines of descent meets its nodes, so that trees stay untangled."""
    met: dict[Node, int] = {}
    for nodes in columns:
        for root in nodes:
            todo = [root]
            while todo:
                node = todo.pop()
                if node not in met:
                    met[node] = len(met)
                    todo += reversed(down[node])
    return [sorted(nodes, key=met.__getitem__) for nodes in columns]


def _untangled(
    columns: list[list[Node]], up: dict[Node, list[Node]], down: dict[Node, list[Node]]
) -> tuple[list[list[Node]], int]:
    best, fewest = columns, _crossings(columns, down)
    for sweep in range(SWEEPS):
        if not fewest:
            break
        columns = [list(nodes) for nodes in columns]
        forth = sweep % 2 == 0
        numbers = range(1, len(columns)) if forth else range(len(columns) - 2, -1, -1)
        for number in numbers:
            fixed = {node: i for i, node in enumerate(columns[number - 1 if forth else number + 1])}
            beside = up if forth else down
            own = {node: float(i) for i, node in enumerate(columns[number])}
            weight = {
                node: float(np.mean([fixed[other] for other in beside[node]])) if beside[node] else None
                for node in columns[number]
            }
            columns[number] = _sorted_among(columns[number], weight, own)
        crossings = _crossings(columns, down)
        if crossings < fewest:
            best, fewest = columns, crossings
    return best, fewest


def _sorted_among(nodes: list[Node], weight: dict[Node, float | None], own: dict[Node, float]) -> list[Node]:
    """`nodes` by their weight; those without one keep their places."""
    moving = iter(sorted((n for n in nodes if weight[n] is not None), key=lambda n: (weight[n], own[n])))
    return [node if weight[node] is None else next(moving) for node in nodes]


def _crossings(columns: list[list[Node]], down: dict[Node, list[Node]]) -> int:
    """Pairs of edges that cross between neighbouring columns: inversions, counted in a Fenwick tree."""
    crossings = 0
    for left, right in pairwise(columns):
        place = {node: i for i, node in enumerate(right)}
        seen, tree = 0, [0] * (len(right) + 1)
        for node in left:
            ends = sorted(place[other] for other in down[node])
            for end in ends:
                i, before = end + 1, 0
                while i:
                    before, i = before + tree[i], i & (i - 1)
                crossings += seen - before
            for end in ends:
                i = end + 1
                while i < len(tree):
                    tree[i] += 1
                    i += i & -i
            seen += len(ends)
    return crossings


def _heights(
    columns: list[list[Node]], up: dict[Node, list[Node]], down: dict[Node, list[Node]]
) -> dict[Node, float]:
    height: dict[Node, float] = {}
    gaps = [_gaps(nodes) for nodes in columns]
    for nodes, steps in zip(columns, gaps, strict=True):
        height |= dict(zip(nodes, steps - steps[-1] / 2, strict=True)) if nodes else {}
    for sweep in range(SWEEPS):
        forth = sweep % 2 == 0
        for number in range(len(columns)) if forth else range(len(columns) - 1, -1, -1):
            nodes = columns[number]
            if not nodes:
                continue
            beside, behind = (up, down) if forth else (down, up)
            wanted = np.array(
                [np.mean([height[o] for o in beside[n] or behind[n]] or [height[n]]) for n in nodes]
            )
            # Edges that pass are drawn straight before models are drawn near.
            weights = np.array([4.0 if isinstance(n, Passing) else 1.0 for n in nodes])
            height |= dict(zip(nodes, gaps[number] + _rising(wanted - gaps[number], weights), strict=True))
    low = min(height.values(), default=0.0)
    return {node: float(at - low) for node, at in height.items()}


def _gaps(nodes: Sequence[Node]) -> np.ndarray:
    """The least height of each node over the first of its column."""
    rooms = [PASSING if isinstance(node, Passing) else 1.0 for node in nodes]
    steps = [0.0] + [(a + b) / 2 for a, b in pairwise(rooms)]
    return np.cumsum(steps)


def _rising(wanted: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """The rising sequence nearest to `wanted` in least squares: neighbours that would fall share their mean."""
    blocks: list[list[float]] = []  # mean, weight, length
    for value, weight in zip(wanted, weights, strict=True):
        blocks.append([float(value), float(weight), 1])
        while len(blocks) > 1 and blocks[-2][0] > blocks[-1][0]:
            mean, mass, length = blocks.pop()
            before = blocks[-1]
            before[0] = (before[0] * before[1] + mean * mass) / (before[1] + mass)
            before[1] += mass
            before[2] += length
    return np.concatenate([np.full(int(length), mean) for mean, _, length in blocks])
