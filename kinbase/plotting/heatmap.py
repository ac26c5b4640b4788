"""Kinship of every pair as a square of colours, clustered, with its dendrogram."""

import numpy as np
from matplotlib.colors import Colormap, Normalize
from matplotlib.patches import Rectangle

from kinbase.errors import KinbaseError, UsageError
from kinbase.plotting.figure import DIVERGING, Plot, figure_of, label, put, text_width
from kinbase.plotting.marks import FAINT, INK, SOFT, Grid
from kinbase.query import kinship
from kinbase.query.models import Model, is_base, meant
from kinbase.store import Connection, Store

METRICS = {
    "pcc": "Pearson correlation of the deltas",
    "cs": "Cosine of the deltas",
    "ed": "Euclidean distance of the deltas",
}
MOST = 600
"""Models one figure takes: more would be neither read nor drawn."""
NUMBERED = 60
"""Models whose columns carry the numbers of the rows; of more they would run into each other."""
NEAREST = 40
"""Models drawn when one is named: it and its nearest kin."""


def draw(
    store: Store,
    *models: str,
    metric: str = "pcc",
    block: str = "all",
    layer: int | None = None,
    nearest: int | None = None,
) -> Plot:
    """The square of `models`: of one, with its nearest kin, or its family if it is a base; of none, of all that have kinship.

    `nearest`: only so many of one model's kin, or of the members that moved least from their base.
    `metric` is pcc, cs or ed; `block` and `layer` take the tensors of one kind and of one layer. Rows are in the order
    of `kinbase.query.kinship.matrix`: average linkage of the whole models' 1 - PCC, leaves turned so that neighbours are
    alike. A pair that is not measured is hatched, and counts as unrelated in the clustering. Raises KinbaseError when
    no pair is known.
    """
    if metric not in METRICS:
        raise UsageError(f"there is no metric {metric!r}: choose of {', '.join(METRICS)}")
    if block not in kinship.BLOCKS:
        raise UsageError(f"there is no block {block!r}: choose of {', '.join(kinship.BLOCKS)}")
    with store.reading() as con:
        square = kinship.matrix(con, _chosen(con, models, nearest), block, layer)
    if not square.known(metric):
        raise KinbaseError(
            "no kinship is known among these models: `kinbase kin` measures it where their files are still there"
        )
    what = (
        [METRICS[metric]]
        + ([f"{block} tensors"] if block != "all" else [])
        + ([f"layer {layer}"] if layer is not None else [])
    )
    return _drawn(square, metric, ", ".join(what))


def _chosen(con: Connection, models: tuple[str, ...], nearest: int | None) -> list[Model]:
    """The models to draw. Raises KinbaseError when they are too many, before anything is read of them."""
    named = [meant(con, model) for model in models]
    if nearest is not None:
        if len(set(named)) != 1:
            raise UsageError("--nearest is of one model: name it, or a base")
        if not 2 <= nearest <= MOST:
            raise UsageError(f"--nearest is a number from 2 to {MOST}, which fit on a heatmap, not {nearest}")
        own = named[0].id
        if is_base(con, own):
            return kinship.members_nearest(con, own, nearest)
        return kinship.relatives(con, own, nearest + 1)
    if len(set(named)) == 1:
        chosen = kinship.relatives(con, named[0].id, MOST + 1 if is_base(con, named[0].id) else NEAREST)
    else:
        chosen = named or kinship.with_kinship(con, MOST + 1)
    if len(chosen) > MOST:
        raise KinbaseError(
            f"more than {MOST} models have kinship here, and {MOST} fit on a heatmap: name those to draw, or one and "
            f"--nearest {MOST // 3}, which draws its nearest kin (of a base, the members that moved least from it)"
        )
    return chosen


def _drawn(found: kinship.KinshipMatrix, metric: str, what: str) -> Plot:
    names, square, links = found.names, found.values(metric), found.links
    known = found.known(metric)
    number = len(names)
    side = min(max(9.0 / number, 0.105), 0.62)
    size = min(max(side * 72 * 0.62, 5.5), 10.0)
    digits = len(str(number))
    shown = [f"{i:>{digits}}  {label(name, 44)}" for i, name in enumerate(names, 1)]
    room = max(text_width(text, size) for text in shown) + 0.15
    tree = min(1.6, 0.5 + number * side * 0.12) if len(links) else 0.0
    columns = 0.2 if number <= NUMBERED else 0.0
    left, width = 0.3 + tree, number * side
    total = max(left + width + room + 1.5, 6.2)
    plot = Plot(total, width + columns + 1.25)
    plot.head(f"Kinship of {number} models", what, _methods(list(known.values()), found.possible))
    axes = plot.area(left, columns + 0.25, width, width)
    colours, norm = _scale(square, metric)
    filled = square.copy()
    np.fill_diagonal(filled, 0.0 if metric == "ed" else 1.0)
    axes.add_patch(_hatched((-0.5, -0.5), number))
    axes.imshow(np.ma.masked_invalid(filled), cmap=colours, norm=norm, interpolation="none", aspect="auto")
    axes.set_xlim(-0.5, number - 0.5)
    axes.set_ylim(number - 0.5, -0.5)
    axes.set_xticks([])
    axes.set_yticks([])
    axes.spines[:].set_visible(False)
    for i, text in enumerate(shown):
        put(axes, number - 0.5 + 0.06 / side, i, text, size=size, va="center")
        if columns:
            put(axes, i, number - 0.5 + 0.04 / side, str(i + 1), size=size, va="top", ha="center")
    if side >= 0.36:
        _write_values(plot, square, colours, norm, side)
    if len(links):
        _dendrogram(plot, links, (left - tree - 0.05, columns + 0.25, tree, width))
    missing = len(known) < found.possible
    _bar(plot, left + width + room + 0.25, columns + 0.25 + width, colours, norm, metric, missing)
    texts = {}
    for place, pair in known.items():
        error = f" ± {pair.stderr:.4f}" if pair.stderr else ""
        part = f", of {pair.coverage:.1%} of the base" if pair.is_partial else ""
        texts[place] = f"{metric} {figure_of(pair.value(metric), 4)}{error} ({label(pair.method)}{part})"
        if pair.is_doubtful:
            for i, j in (place, place[::-1]):
                axes.add_patch(_crossed(i, j))
    plot.grid = Grid(axes, [label(name) for name in names], texts)
    return plot


def _hatched(corner: tuple[float, float], side: float) -> Rectangle:
    """The ground on which nothing is known; the square lies over it, and lets it through where it has no value."""
    return Rectangle(
        corner, side, side, facecolor="#f6f7f9", edgecolor="#dfe4ea", hatch="///", linewidth=0, zorder=-1
    )


def _crossed(row: int, column: int) -> Rectangle:
    """What lies over the colour of a pair that was compared by too little of the base."""
    return Rectangle(
        (column - 0.5, row - 0.5), 1, 1, facecolor="none", edgecolor=INK, hatch="xx", linewidth=0, alpha=0.5
    )


def _methods(known: list[kinship.Kinship], possible: int) -> str:
    """How many pairs are known, and how."""
    methods: dict[str, int] = {}
    for pair in known:
        methods[pair.method] = methods.get(pair.method, 0) + 1
    how = ", ".join(
        f"{label(method)} {n}" if len(methods) > 1 else label(method) for method, n in sorted(methods.items())
    )
    unrelated = ", unknown pairs taken as unrelated" if len(known) < possible else ""
    partial = [pair for pair in known if pair.is_partial]
    weak = sum(pair.is_doubtful for pair in partial)
    covered = f"; {len(partial)} by a part of the base" if partial else ""
    crossed = f", {weak} by less than half (crossed)" if weak else ""
    return f"{len(known)} of {possible} pairs known ({how}{covered}{crossed}); ordered by average linkage of PCC{unrelated}"


def _scale(square: np.ndarray, metric: str) -> tuple[Colormap, Normalize]:
    """Colours that mean the same in every figure: of a correlation from -1 to 1, of a distance from 0 to the largest."""
    if metric != "ed":
        return DIVERGING, Normalize(-1.0, 1.0)
    from matplotlib import colormaps

    return colormaps["cividis"], Normalize(0.0, float(np.nanmax(square)) or 1.0)


def _write_values(plot: Plot, square: np.ndarray, colours: Colormap, norm: Normalize, side: float) -> None:
    axes = plot.axes[0]
    digits = 2 if np.nanmax(np.abs(square)) < 10 else 1
    for (i, j), value in np.ndenumerate(square):
        if i != j and not np.isnan(value):
            red, green, blue, _ = colours(norm(value))
            dark = 0.299 * red + 0.587 * green + 0.114 * blue < 0.55
            put(
                axes, j, i, figure_of(value, digits), ha="center", va="center", size=min(8.5, side * 19),
                color="white" if dark else INK,
            )  # fmt: skip


def _dendrogram(plot: Plot, links: np.ndarray, place: tuple[float, float, float, float]) -> None:
    """The tree of `links` to the left of the rows: its leaves, from the top, are the rows."""
    axes = plot.area(*place)
    leaves = len(links) + 1
    height, depth = _leaf_places(links), dict.fromkeys(range(leaves), 0.0)
    for row, (a, b, distance, _) in enumerate(links.tolist()):
        new = leaves + row
        height[new], depth[new] = (height[int(a)] + height[int(b)]) / 2, distance
        x = [depth[int(a)], distance, distance, depth[int(b)]]
        y = [height[int(a)], height[int(a)], height[int(b)], height[int(b)]]
        axes.plot(x, y, color=SOFT, linewidth=0.8, solid_joinstyle="miter")
    axes.set_ylim(leaves - 0.5, -0.5)
    axes.set_xlim(max(float(links[:, 2].max()) * 1.03, 1e-9), 0)
    axes.axis("off")


def _leaf_places(links: np.ndarray) -> dict[int, float]:
    """The row of each leaf: from the last cluster down, the first of two stands before the second."""
    leaves = len(links) + 1
    places: dict[int, float] = {}
    todo = [leaves + len(links) - 1]
    while todo:
        node = todo.pop()
        if node < leaves:
            places[node] = float(len(places))
        else:
            first, second = links[node - leaves, :2]
            todo += [int(second), int(first)]
    return places


def _bar(
    plot: Plot, left: float, top: float, colours: Colormap, norm: Normalize, metric: str, missing: bool
) -> None:
    """What the colours mean, and the hatching."""
    high = min(2.2, max(top - 0.9, 1.0))
    axes = plot.area(left, top - high, 0.16, high)
    low = float(norm.vmin or 0.0)
    steps = np.linspace(low, float(norm.vmax or 1.0), 256)
    axes.imshow(
        steps[:, None], cmap=colours, norm=norm, origin="lower", aspect="auto", interpolation="none",
        extent=(0, 1, low, float(norm.vmax or 1.0)),
    )  # fmt: skip
    axes.set_xticks([])
    axes.yaxis.tick_right()
    axes.tick_params(colors=SOFT, labelcolor=INK, labelsize=8, length=2)
    axes.spines[:].set_color(FAINT)
    wide, tall = plot.get_size_inches()
    put(plot, left / wide, (top + 0.07) / tall, metric, size=9, weight="bold", va="bottom")
    if missing:
        box = plot.area(left, top - high - 0.42, 0.16, 0.16)
        box.add_patch(_hatched((0, 0), 1))
        box.axis("off")
        put(plot, (left + 0.24) / wide, (top - high - 0.34) / tall, "not known", size=8, va="center")
