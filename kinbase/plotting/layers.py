"""The kinship of two models layer by layer: where in the network they changed alike."""

from typing import Any

from matplotlib.axes import Axes

from kinbase.errors import KinbaseError, UsageError
from kinbase.plotting.figure import COLOURS, MARKERS, Plot, figure_of, label, legend_beside, plain_axes
from kinbase.plotting.heatmap import METRICS
from kinbase.plotting.marks import FAINT, SOFT, Spot
from kinbase.query.kinship import by_layer, of_pair
from kinbase.store import Store
from kinbase.store.names import resolve

ORDER = ("attn", "mlp", "norm", "other", "embed", "head")
WORDS = {"attn": "attention", "norm": "norms", "embed": "embedding"}


def draw(store: Store, model_a: str, model_b: str, *, metric: str = "pcc") -> Plot:
    """A line a block (attention, mlp, norms) over the layers of `model_a` and `model_b`, beside the blocks outside of them.

    The value of each point is of the sums over its tensors; the dashed line is that of all tensors. Raises
    KinbaseError when the pair has no kinship by tensor: it is measured from weights, not reported.
    """
    if metric not in METRICS:
        raise UsageError(f"there is no metric {metric!r}: choose of {', '.join(METRICS)}")
    with store.reading() as con:
        names = [resolve(con, model) for model in (model_a, model_b)]
        if names[0] == names[1]:
            raise UsageError(f"{label(names[0], 60)} is one model: a layer profile is of two")
        rows, whole = by_layer(con, *names), of_pair(con, *names)
    if not rows:
        raise KinbaseError(
            f"no kinship by layer is known of {label(names[0], 60)} and {label(names[1], 60)}: `kinbase kin` measures it "
            "where their files are still there"
        )
    layers = sorted({row["layer"] for row in rows if row["layer"] is not None})
    plot = Plot(max(7.0, min(3.4 + 0.24 * len(layers), 16.0)), 4.4)
    width = plot.get_size_inches()[0]
    plot.head(
        f"{label(names[0], 36)} and {label(names[1], 36)}, layer by layer",
        f"{METRICS[metric]} from {label(rows[0]['base'], 60)}",
    )
    axes = plot.area(0.75, 0.6, width - 2.5, 2.95)
    _lines(plot, axes, rows, layers, metric)
    _outside(plot, axes, rows, layers, metric)
    value = whole.value(metric) if whole else None
    if value is not None:
        axes.axhline(
            value,
            color=SOFT,
            linewidth=1,
            linestyle=(0, (5, 3)),
            zorder=1,
            label=f"all tensors  {figure_of(value)}",
        )
    plain_axes(axes)
    axes.set_ylabel(metric, fontsize=10)
    axes.set_xlabel("layer" if layers else "block", fontsize=10)
    values = [row[metric] for row in rows if row[metric] is not None]
    if metric == "ed":
        axes.set_ylim(0, max([*values, value or 0.0]) * 1.06 or 1.0)
    elif values:
        low, high = min([*values, 0.0]), max([*values, 0.0])
        axes.set_ylim(low - 0.04 if low < 0 else 0.0, min(high + 0.08, 1.02))
    legend_beside(axes, 9)
    return plot


def _lines(plot: Plot, axes: Axes, rows: list[dict[str, Any]], layers: list[int], metric: str) -> None:
    for number, block in enumerate(ORDER):
        points = [
            (r["layer"], r[metric], r["numel"])
            for r in rows
            if r["block"] == block and r["layer"] is not None
        ]
        shown = [(layer, value) for layer, value, _ in points if value is not None]
        if not shown:
            continue
        axes.plot(
            [layer for layer, _ in shown], [value for _, value in shown], color=COLOURS[number], marker=MARKERS[number],
            markersize=4.5 if len(layers) <= 40 else 2.5, linewidth=1.4, label=WORDS.get(block, block), zorder=3,
        )  # fmt: skip
        for layer, value, numel in points:
            if value is not None:
                plot.spots.append(
                    Spot(
                        axes,
                        [layer],
                        [value],
                        [
                            f"layer {layer}, {WORDS.get(block, block)}",
                            f"{metric} {figure_of(value, 4)}",
                            f"{numel:,} weights",
                        ],
                    )
                )
    if layers:
        axes.set_xlim(layers[0] - 0.5, layers[-1] + 0.5)
        step = max(1, round(len(layers) / 16))
        axes.set_xticks(layers[::step])


def _outside(plot: Plot, axes: Axes, rows: list[dict[str, Any]], layers: list[int], metric: str) -> None:
    """The blocks that are in no layer: the embedding before the first, the others after the last."""
    outside = {r["block"]: r for r in rows if r["layer"] is None and r[metric] is not None}
    if not outside:
        return
    first, last = (layers[0], layers[-1]) if layers else (0, -1)
    gap = max(0.7, 0.045 * len(layers))
    places = {"embed": first - 1.4 * gap} if "embed" in outside and layers else {}
    after = [b for b in ORDER if b in outside and b not in places]
    places |= {
        block: last + (1.4 + number) * gap * (1.0 if layers else 1 / 1.4)
        for number, block in enumerate(after)
    }
    for block, x in places.items():
        number, row = ORDER.index(block), outside[block]
        value = row[metric]
        axes.plot(
            [x], [value], color=COLOURS[number], marker=MARKERS[number], markersize=7, linestyle="none", zorder=3
        )  # fmt: skip
        plot.spots.append(
            Spot(
                axes,
                [x],
                [value],
                [WORDS.get(block, block), f"{metric} {figure_of(value, 4)}", f"{row['numel']:,} weights"],
            )
        )
    low, high = min([*places.values(), first - 0.5]), max([*places.values(), last + 0.5])
    axes.set_xlim(low - 0.7 * gap, high + 0.7 * gap)
    if layers:
        for edge in ([first - 0.7 * gap] if "embed" in places else []) + (
            [last + 0.7 * gap] if after else []
        ):
            axes.axvline(edge, color=FAINT, linewidth=0.8)
    ticks = [] if not layers else [int(tick) for tick in axes.get_xticks()]
    axes.set_xticks(
        [*ticks, *places.values()], [*map(str, ticks), *(WORDS.get(block, block) for block in places)]
    )
