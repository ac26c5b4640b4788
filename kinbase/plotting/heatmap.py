"""Kinship of every pair as a square of colours, clustered, with its dendrogram."""

from typing import TYPE_CHECKING

import numpy as np
from matplotlib.colors import Colormap, Normalize
from matplotlib.patches import Rectangle
from scipy.cluster.hierarchy import dendrogram, linkage
from scipy.spatial.distance import squareform

from kinbase.errors import KinbaseError, UsageError
from kinbase.plotting.figure import DIVERGING, FAINT, INK, SOFT, Grid, Plot, figure_of, label, put, text_width

if TYPE_CHECKING:
    from kinbase.database import Kinbase

METRICS = {
    "pcc": "Pearson correlation of the deltas",
    "cs": "Cosine of the deltas",
    "ed": "Euclidean distance of the deltas",
}
BLOCKS = ("all", "attn", "mlp", "norm", "embed", "head", "other")
MOST = 600
"""Models one figure takes: more would be neither read nor drawn."""
NUMBERED = 60
"""Models whose columns carry the numbers of the rows; of more they would run into each other."""
NEAREST = 39
"""Kin drawn with a model that is named alone."""

Known = dict[tuple[str, str], tuple[float | None, str, float | None]]
"""Value, method and standard error of the pairs of names, each once, the lower name first."""

# The values of a part of the tensors, from the sums over them: a mean of ratios would be something else.
PARTS = """
select model_a, model_b, case $2
        when 'pcc' then pearson(sum(numel), sum(sum_a), sum(sum_b), sum(sumsq_a), sum(sumsq_b), sum(dot))
        when 'cs' then cosine(sum(sumsq_a), sum(sumsq_b), sum(dot))
        else euclidean(sum(sumsq_a), sum(sumsq_b), sum(dot)) end,
    'exact', 0.0
from kinship_by_tensor
where model_a < model_b and list_contains($1, model_a) and list_contains($1, model_b)
    and ($3 = 'all' or tensor_block(tensor) = $3) and ($4 is null or tensor_layer(tensor) = $4)
group by model_a, model_b
"""


def draw(
    db: "Kinbase", *models: str, metric: str = "pcc", block: str = "all", layer: int | None = None
) -> Plot:
    """The square of `models`: of one, with its nearest kin, or its family if it is a base; of none, of all that have kinship.

    `metric` is pcc, cs or ed; `block` and `layer` take the tensors of one kind and of one layer. Rows are
    ordered by average linkage of 1 - pcc (1 - cs, ed), leaves turned so that neighbours are alike. A pair
    that is not measured is hatched, and counts as unrelated in the clustering. Raises KinbaseError when
    no pair is known.
    """
    if metric not in METRICS:
        raise UsageError(f"there is no metric {metric!r}: choose of {', '.join(METRICS)}")
    if block not in BLOCKS:
        raise UsageError(f"there is no block {block!r}: choose of {', '.join(BLOCKS)}")
    names, known = read(db, models, metric, block, layer)
    what = (
        [METRICS[metric]]
        + ([f"{block} tensors"] if block != "all" else [])
        + ([f"layer {layer}"] if layer is not None else [])
    )
    return _drawn(names, known, metric, ", ".join(what))


def read(
    db: "Kinbase", models: tuple[str, ...], metric: str, block: str, layer: int | None
) -> tuple[list[str], Known]:
    """The names to draw, in no order yet, and what is known of their pairs."""
    names = db.resolved(models)
    if len(names) == 1:
        names = _around(db, names[0])
    pairs = db.kinship(names)
    known: Known = {
        (a, b): (value, method, stderr)
        for a, b, value, method, stderr in pairs.select(
            "model_a", "model_b", metric, "method", "stderr"
        ).iter_rows()
    }
    names = names or sorted({name for pair in known for name in pair})
    if len(names) > MOST:
        raise KinbaseError(
            f"{len(names)} models have kinship, and {MOST} fit on a heatmap: name those to draw"
        )
    if block != "all" or layer is not None:
        rows = db.sql(PARTS, [names, metric, block, layer]).rows()
        known = {(a, b): (value, method, stderr) for a, b, value, method, stderr in rows}
    if not any(value is not None for value, _, _ in known.values()):
        raise KinbaseError(
            "no kinship is known among these models: `kinbase kin` measures it where their files are still there"
        )
    return names, known


def _around(db: "Kinbase", model: str) -> list[str]:
    members = db.sql(
        "select name from models where base = ? and name in (select model_a from kinship) order by name",
        [model],
    )["name"].to_list()
    return members or [model, *db.nearest_kin(model, NEAREST)["model"].to_list()]


def clustered(square: np.ndarray, metric: str) -> tuple[list[int], np.ndarray | None]:
    """An order of the rows of a square (N x N, NaN where nothing is known), and scipy's linkage of it."""
    number = len(square)
    if number < 3:
        return list(range(number)), None
    known = square[~np.isnan(square)]
    if metric == "ed":
        far = np.where(np.isnan(square), known.max() if known.size else 1.0, square)
    else:
        far = 1.0 - np.nan_to_num(square, nan=0.0)
    far = np.clip((far + far.T) / 2, 0.0, None)
    np.fill_diagonal(far, 0.0)
    links = linkage(squareform(far, checks=False), method="average", optimal_ordering=True)
    return [int(i) for i in dendrogram(links, no_plot=True)["leaves"]], links


def _drawn(names: list[str], known: Known, metric: str, what: str) -> Plot:
    place = {name: i for i, name in enumerate(names)}
    square = np.full((len(names), len(names)), np.nan)
    for (a, b), (value, _, _) in known.items():
        square[place[a], place[b]] = square[place[b], place[a]] = np.nan if value is None else value
    order, links = clustered(square, metric)
    names, square = [names[i] for i in order], square[np.ix_(order, order)]
    number = len(names)
    side = min(max(9.0 / number, 0.105), 0.62)
    size = min(max(side * 72 * 0.62, 5.5), 10.0)
    digits = len(str(number))
    shown = [f"{i:>{digits}}  {label(name, 44)}" for i, name in enumerate(names, 1)]
    room = max(text_width(text, size) for text in shown) + 0.15
    tree = 0.0 if links is None else min(1.6, 0.5 + number * side * 0.12)
    columns = 0.2 if number <= NUMBERED else 0.0
    left, width = 0.3 + tree, number * side
    total = max(left + width + room + 1.5, 6.2)
    plot = Plot(total, width + columns + 1.25)
    pairs, possible = len([v for v, _, _ in known.values() if v is not None]), number * (number - 1) // 2
    plot.head(f"Kinship of {number} models", what, _methods(known, pairs, possible))
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
    if links is not None:
        _dendrogram(plot, links, (left - tree - 0.05, columns + 0.25, tree, width))
    _bar(plot, left + width + room + 0.25, columns + 0.25 + width, colours, norm, metric, pairs < possible)
    texts = {}
    for (a, b), (value, method, stderr) in known.items():
        i, j = order.index(place[a]), order.index(place[b])
        if value is not None:
            error = f" ± {stderr:.4f}" if stderr else ""
            texts[min(i, j), max(i, j)] = f"{metric} {figure_of(value, 4)}{error} ({label(method)})"
    plot.grid = Grid(axes, [label(name) for name in names], texts)
    return plot


def _hatched(corner: tuple[float, float], side: float) -> Rectangle:
    """The ground on which nothing is known; the square lies over it, and lets it through where it has no value."""
    return Rectangle(
        corner, side, side, facecolor="#f6f7f9", edgecolor="#dfe4ea", hatch="///", linewidth=0, zorder=-1
    )


def _methods(known: Known, pairs: int, possible: int) -> str:
    """How many pairs are known, and how."""
    methods: dict[str, int] = {}
    for value, method, _ in known.values():
        if value is not None:
            methods[method] = methods.get(method, 0) + 1
    how = ", ".join(
        f"{label(method)} {n}" if len(methods) > 1 else label(method) for method, n in sorted(methods.items())
    )
    unrelated = ", unknown pairs taken as unrelated" if pairs < possible else ""
    return f"{pairs} of {possible} pairs known ({how}); ordered by average linkage{unrelated}"


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
    drawn = dendrogram(links, no_plot=True)
    for y, x in zip(drawn["icoord"], drawn["dcoord"], strict=True):
        axes.plot(x, [(at - 5) / 10 for at in y], color=SOFT, linewidth=0.8, solid_joinstyle="miter")
    axes.set_ylim(len(links) + 0.5, -0.5)
    axes.set_xlim(max(float(links[:, 2].max()) * 1.03, 1e-9), 0)
    axes.axis("off")


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
