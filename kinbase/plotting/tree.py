"""A family as a graph from left to right: a column a generation, a merge with all of its parents."""

from typing import Any

import networkx as nx
import numpy as np
from matplotlib.axes import Axes
from matplotlib.patches import PathPatch
from matplotlib.path import Path

from kinbase.errors import KinbaseError, UsageError
from kinbase.plotting.figure import COLOURS, Plot, figure_of, label, put, text_width
from kinbase.plotting.layout import Layout, layered
from kinbase.plotting.marks import FAINT, INK, SOFT, Spot
from kinbase.query import graph as lineage
from kinbase.query.models import families
from kinbase.query.scores import model_scores
from kinbase.store import Store

MOST = 1500
"""Models one drawing takes."""
BOLD = 1.14
"""How much wider a bold name is."""
ROOMY = 60
"""Up to so many models there is room for a second line about each."""
# Marker, colour and name of each relation: told apart by either.
RELATIONS = {
    "base": ("s", INK, "base"),
    "unknown": ("s", "#9aa5b1", "origin not known"),
    "finetune": ("o", COLOURS[0], "finetune"),
    "merge": ("D", COLOURS[1], "merge"),
    "adapter": ("^", COLOURS[2], "adapter"),
    "quantized": ("v", COLOURS[3], "quantized"),
    "other": ("P", COLOURS[6], "made otherwise"),
}

GROUND = {"facecolor": "white", "edgecolor": "none", "pad": 0.4, "alpha": 0.85}
EDGES = {False: "#9dbbd3", True: "#e0a480"}
"""Of edges to a model of one parent, and to a merge."""


def draw(store: Store, model: str, *, depth: int = 1000, nearest: int | None = None) -> Plot:
    """The lineage around `model`, up to `depth` generations away; of a base, its family; of descendants the `nearest`.

    Columns are generations: steps along the longest line from a model made from nothing known. The base
    that a merge's deltas were taken against is no parent. Claims that go in a circle are cut, and told.
    """
    with store.reading() as con:
        if nearest is not None and not 1 <= nearest < MOST:
            raise UsageError(
                f"--nearest is a number from 1 to {MOST - 1:,}, which fit on a drawing, not {nearest}"
            )
        around = lineage.around(con, model, depth=depth, most=MOST if nearest is None else nearest)
        if around.graph["is_part"] and nearest is None:
            raise KinbaseError(
                f"{label(around.graph['focus'], 60)} has more than {MOST:,} descendants, and {MOST:,} models fit on a drawing: "
                f"--nearest {MOST // 10} draws the nearest, --depth takes fewer generations"
            )
        graph = lineage.without_bases(around)
        bases, scores = families(con, list(graph)), model_scores(con, list(graph))
    focus = around.graph["focus"]
    if len(graph) > MOST:
        raise KinbaseError(
            f"{label(model, 60)} has {len(graph) - 1:,} relatives, and {MOST:,} fit on a drawing: take fewer with --depth "
            "or --nearest"
        )
    if len(graph) == 1:
        raise KinbaseError(
            f"nothing is known of what {label(model, 60)} was made from, or of what was made from it"
        )
    kinds = {node: _relation(graph, node, bases) for node in graph}
    return _drawn(graph, layered(graph), focus, kinds, scores)


def _claims(graph: nx.DiGraph, parent: str, child: str, key: str) -> set[Any]:
    return {claim.get(key) for claim in graph.edges[parent, child]["claims"]} - {None}


def _relation(graph: nx.DiGraph, node: str, bases: set[str]) -> str:
    found = {r for p in graph.predecessors(node) for r in _claims(graph, p, node, "relation")} - {"base"}
    if not graph.in_degree(node):
        return "base" if node in bases else "unknown"
    return next((r for r in RELATIONS if r in found), "other" if found else "finetune")


def _how(graph: nx.DiGraph, node: str) -> str:
    """How a model was made, in a few words: `merge slerp`."""
    claims = [claim for p in graph.predecessors(node) for claim in graph.edges[p, node]["claims"]]
    words = dict.fromkeys(
        label(c[key], 16)
        for c in claims
        if c["relation"] != "base"
        for key in ("relation", "method")
        if c.get(key)
    )
    return " ".join(words)


def _weight(graph: nx.DiGraph, parent: str, child: str) -> str:
    weights = sorted(w for w in _claims(graph, parent, child, "weight"))
    return "/".join(f"{weight:g}" for weight in weights)


def _drawn(
    graph: nx.DiGraph, layout: Layout, focus: str, kinds: dict[str, str], scores: dict[str, tuple[float, str]]
) -> Plot:
    roomy = len(graph) <= ROOMY
    size, row = (8.5, 0.44) if roomy else (6.5, 0.165)
    most = 34 if roomy else 30
    texts = {n: _texts(graph, n, most, scores, roomy) for n in graph}
    wide = {n: BOLD ** (n == focus) * text_width(texts[n][0], size) for n in graph}
    widths = [
        0.14 + max((max(wide[n], text_width(texts[n][1], size - 1.5)) for n in nodes), default=0.3)
        for nodes in layout.columns
    ]
    # Edges need room to turn: the more of them between two columns, the more.
    turns = [0.45 + min(0.9, 0.012 * _edges_between(layout, i)) for i in range(len(layout.columns))]
    left, x = 0.35, []
    for width, turn in zip(widths, turns, strict=True):
        x.append(left)
        left += width + turn
    high = (max(layout.height.values()) + 1) * row
    width = max(left - turns[-1] + 0.3, 6.6)
    plot = Plot(width, high + 1.55)
    plot.head(f"Lineage of {label(focus, 60)}", *_notes(graph, scores))
    axes = plot.area(0, 0.4, width, high + 0.15)
    axes.set_xlim(0, width)
    axes.set_ylim(high, -0.15)
    axes.axis("off")
    ends = [left + width for left, width in zip(x, widths, strict=True)]
    for (parent, child), way in layout.ways.items():
        begin = x[way[0][0]] + 0.14 + wide[parent]
        stations = [(x[c], ends[c], (h + 0.5) * row) for c, h in way]
        arriving = sorted(
            graph.predecessors(child),
            key=lambda p: (layout.ways[p, child][-2][1], layout.ways[p, child][0][1]),
        )
        place = arriving.index(parent) - (len(arriving) - 1) / 2
        _edge(plot, axes, graph, (parent, child), begin, stations, 1.3 * place, roomy)
    for node in graph:
        column = next(i for i, nodes in enumerate(layout.columns) if node in nodes)
        _node(
            plot,
            axes,
            graph,
            node,
            x[column],
            (layout.height[node] + 0.5) * row,
            texts[node],
            size,
            node == focus,
            kinds[node],
            scores,
        )
    _legend(plot, set(kinds.values()))
    return plot


def _notes(graph: nx.DiGraph, scores: dict[str, tuple[float, str]]) -> list[str]:
    """What stands under the title: what is drawn, of what the scores are, what was left out."""
    cut = graph.graph.get("cut", [])
    notes = [f"{len(graph)} models, {graph.number_of_edges()} edges; columns are generations"]
    if scores:
        notes.append(f"scores: {label(next(iter(scores.values()))[1], 90)}")
    if cut:
        notes.append(
            "left out, for the claims go in a circle: "
            + ", ".join(f"{label(a, 24)} to {label(b, 24)}" for a, b in cut[:3])
        )
    return notes


def _edges_between(layout: Layout, column: int) -> int:
    return sum(any(c == column for c, _ in way[:-1]) for way in layout.ways.values())


def _texts(
    graph: nx.DiGraph, node: str, most: int, scores: dict[str, tuple[float, str]], roomy: bool
) -> tuple[str, str]:
    """Name, and what stands after it or under it."""
    score = figure_of(scores[node][0], 2 if scores[node][0] > 1 else 3) if node in scores else ""
    name = label(node, most)
    if roomy:
        return name, " · ".join(filter(None, (_how(graph, node), score)))
    return (f"{name}  {score}".rstrip(), "")


def _node(
    plot: Plot, axes: Axes, graph: nx.DiGraph, node: str, x: float, y: float, texts: tuple[str, str], size: float, focus: bool,
    kind: str, scores: dict[str, tuple[float, str]],
) -> None:  # fmt: skip
    marker, colour, _ = RELATIONS[kind]
    axes.plot(
        [x],
        [y],
        marker=marker,
        color=colour,
        markersize=size * 0.72,
        markeredgecolor="white",
        markeredgewidth=0.6,
        zorder=3,
    )
    weight = "bold" if focus else "normal"
    put(
        axes,
        x + 0.09,
        y - (0.075 if texts[1] else 0),
        texts[0],
        size=size,
        va="center",
        zorder=4,
        weight=weight,
    )
    if texts[1]:
        put(axes, x + 0.09, y + 0.085, texts[1], size=size - 1.5, va="center", color=SOFT, zorder=4)
    parents = [
        f"from {label(p, 60)} {_weight(graph, p, node)}".rstrip() for p in sorted(graph.predecessors(node))
    ]
    told = [f"score {figure_of(scores[node][0], 4)}"] if node in scores else []
    children = graph.out_degree(node)
    lines = [
        label(node),
        *filter(None, [_how(graph, node)]),
        *parents[:8],
        *told,
        *([f"{children} made from it"] if children else []),
    ]
    plot.spots.append(Spot(axes, [x], [y], lines, radius=max(size * 0.6, 4.5)))


def _edge(
    plot: Plot, axes: Axes, graph: nx.DiGraph, edge: tuple[str, str], begin: float, stations: list[tuple[float, float, float]],
    place: float, roomy: bool,
) -> None:  # fmt: skip
    """A smooth line from the end of the parent's name, straight through the columns it passes, to the child's marker.

    `stations` are the left and right ends and the height of each column on the way; `place`, of the line
    among those that arrive with it, is 0 in the middle.
    """
    parent, child = edge
    _, end, y = stations[0]
    vertices, codes = [(begin, y), (end, y)], [Path.MOVETO, Path.LINETO]
    for number, (x, right, height) in enumerate(stations[1:], 2):
        last = number == len(stations)
        stop = x - 0.09 if last else x
        middle = (end + stop) / 2
        vertices += [(middle, y), (middle, height), (stop, height)]
        codes += [Path.CURVE4] * 3
        if not last:
            vertices.append((right, height))
            codes.append(Path.LINETO)
        end, y = right, height
    merged = graph.in_degree(child) > 1
    line = Path(vertices, codes)
    axes.add_patch(
        PathPatch(line, fill=False, edgecolor=EDGES[merged], linewidth=0.9 if roomy else 0.6, zorder=1)
    )
    weight = _weight(graph, parent, child)
    if roomy and weight and 1 < graph.in_degree(child) <= 4:
        # From above to below as the lines arrive, so that none stands on another.
        put(
            axes,
            stations[-1][0] - 0.13,
            y + 0.11 * place,
            weight,
            size=6,
            color=SOFT,
            ha="right",
            va="center",
            zorder=2,
            bbox=GROUND,
        )
    said = [
        f"{c['relation']} {c.get('method') or ''} {_figure(c.get('weight'))} · {c['evidence']}"
        for c in graph.edges[parent, child]["claims"]
    ]
    lines = [
        f"{label(parent, 80)} → {label(child, 80)}",
        *dict.fromkeys(label(" ".join(s.split()), 80) for s in said),
    ]
    curve = np.asarray(line.to_polygons(closed_only=False)[0])
    plot.spots.append(Spot(axes, curve[:, 0].tolist(), curve[:, 1].tolist(), lines, radius=6))


def _figure(weight: float | None) -> str:
    return "" if weight is None else f"{weight:g}"


def _legend(plot: Plot, there: set[str]) -> None:
    """What the markers mean, in one line at the foot."""
    width = float(plot.get_size_inches()[0])
    axes = plot.area(0, 0.08, width, 0.25)
    axes.set_xlim(0, width)
    axes.set_ylim(0, 1)
    axes.axis("off")
    x = 0.35
    for relation, (marker, colour, name) in RELATIONS.items():
        if relation in there:
            axes.plot([x], [0.5], marker=marker, color=colour, markersize=6)
            put(axes, x + 0.1, 0.47, name, size=8, va="center", color=SOFT)
            x += 0.35 + text_width(name, 8)
    axes.axhline(1.0, color=FAINT, linewidth=0.6)
