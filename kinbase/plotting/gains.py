"""Kinship of the parents against what merging gained, with the straight line through it and how little it may mean."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from scipy import stats

from kinbase.errors import KinbaseError, UsageError
from kinbase.plotting.figure import (
    COLOURS,
    MARKERS,
    Plot,
    entry,
    figure_of,
    label,
    legend_beside,
    plain_axes,
    put,
    text_width,
)
from kinbase.plotting.marks import INK, SOFT, Spot
from kinbase.query.scores import gains_and_kinship
from kinbase.store import Store

AXES = {
    "pcc": "mean PCC of the parents",
    "cs": "mean cosine of the parents",
    "ed": "mean distance of the parents",
}
NAMED = 30
"""Merges whose names are written beside them, where they fit."""


@dataclass(frozen=True)
class Fit:
    """A straight line through n points by least squares, and Pearson's r with its two-sided p.

    `least` and `most` bound r when any one point is left out; None of fewer than four.
    """

    slope: float
    intercept: float
    r: float
    p: float
    n: int
    least: float | None
    most: float | None


def fit(x: np.ndarray, y: np.ndarray) -> Fit | None:
    """The line through (x, y), both float64[n]; None of fewer than three points or where one of the two does not vary."""
    if len(x) < 3 or np.ptp(x) == 0 or np.ptp(y) == 0:
        return None
    line = stats.linregress(x, y)
    without = [np.delete(np.arange(len(x)), i) for i in range(len(x))] if len(x) > 3 else []
    rs = [float(np.corrcoef(x[k], y[k])[0, 1]) for k in without if np.ptp(x[k]) and np.ptp(y[k])]
    return Fit(
        float(line.slope), float(line.intercept), float(line.rvalue), float(line.pvalue), len(x),
        min(rs, default=None), max(rs, default=None),
    )  # fmt: skip


def draw(
    store: Store,
    family: str | None = None,
    *,
    metric: str = "pcc",
    benchmark: str = "average",
    source: str | None = None,
) -> Plot:
    """A point a merge: the mean kinship of its parents' pairs, and its score less its parents' mean on `benchmark`.

    Of the merges of `family`, or of all; `source` takes those whose gain that source printed, and its figures.
    A gain that does not follow from stored scores is the printed one, and drawn hollow. Raises KinbaseError
    when no merge has both.
    """
    if metric not in AXES:
        raise UsageError(f"there is no metric {metric!r}: choose of {', '.join(AXES)}")
    with store.reading() as con:
        base, rows = gains_and_kinship(con, family, metric, benchmark, source)
    if not rows:
        raise KinbaseError(
            f"no merge here has the kinship of its parents and a gain on {label(benchmark, 40)}: both need the parents named, "
            "scores of merge and parents (`from merge_gains`), and the parents measured"
        )
    legend = max(text_width(name, 8.5) for name in ["95% band of the line", *(_kind(row) for row in rows)])
    plot = Plot(max(7.2 + legend, 8.2), 5.4)
    of = f", {label(base, 50)}" if base else ""
    plot.head(
        f"Kinship and merge gain of {len(rows)} {'merge' if len(rows) == 1 else 'merges'}{of}",
        *filter(None, [f"Source: {label(source, 80)}" if source else "", _told(_fit_of(rows))]),
    )  # fmt: skip
    axes = plot.area(0.75, 0.6, 5.6, 3.75)
    _points(plot, axes, rows, metric)
    _line(axes, rows)
    plain_axes(axes)
    axes.axhline(0, color=SOFT, linewidth=0.8, zorder=1)
    axes.set_xlabel(AXES[metric], fontsize=10)
    axes.set_ylabel(_gain_axis(benchmark), fontsize=10, parse_math=False)
    _names(plot, axes, rows)
    legend_beside(axes, 8.5)
    return plot


def _gain_axis(benchmark: str) -> str:
    return f"gain over the parents' mean ({label(benchmark, 40)})"


def _fit_of(rows: list[dict[str, Any]]) -> Fit | None:
    return fit(
        np.array([r["kinship"] for r in rows], dtype=float), np.array([r["value"] for r in rows], dtype=float)
    )


def _told(found: Fit | None) -> str:
    """The fit in words a reader can hold against it."""
    if found is None:
        return "too few merges, or too alike, for a correlation"
    p = "p < 0.001" if found.p < 0.001 else f"p = {found.p:.3f}"
    apart = (
        f"; r from {found.least:.2f} to {found.most:.2f} with any one left out"
        if found.least is not None
        else ""
    )
    return f"r = {found.r:.3f}, n = {found.n}, {p} (two-sided, as if the merges were independent){apart}"


def _points(plot: Plot, axes: Axes, rows: list[dict[str, Any]], metric: str) -> None:
    methods = sorted({row["method"] or "" for row in rows})
    for number, method in enumerate(methods):
        for printed in (False, True):
            some = [r for r in rows if (r["method"] or "") == method and r["as_printed"] == printed]
            if not some:
                continue
            colour = COLOURS[number % len(COLOURS)]
            axes.plot(
                [r["kinship"] for r in some], [r["value"] for r in some], linestyle="none", marker=MARKERS[number % len(MARKERS)],
                markersize=6.5, color=colour, markerfacecolor="white" if printed else colour, markeredgewidth=1.3,
                label=entry(_kind(some[0])), zorder=3,
            )  # fmt: skip
    for row in rows:
        parents = " + ".join(label(parent, 60) for parent in row["parents"])
        how = "as printed" if row["as_printed"] else "from the scores"
        plot.spots.append(
            Spot(
                axes, [row["kinship"]], [row["value"]],
                [label(row["child"]), parents, f"{metric} {figure_of(row['kinship'], 4)}", f"gain {row['value']:+.4g} {how}"],
                radius=6,
            )
        )  # fmt: skip


def _kind(row: dict[str, Any]) -> str:
    """What the legend calls the merges like this one."""
    name = label(str(row["method"]), 24) if row["method"] else "method not told"
    return f"{name}, gain as printed" if row["as_printed"] else name


def _line(axes: Axes, rows: list[dict[str, Any]]) -> None:
    """The fit with the band in which the true line lies with 95% confidence, if the points are independent."""
    x = np.array([r["kinship"] for r in rows], dtype=float)
    y = np.array([r["value"] for r in rows], dtype=float)
    found = fit(x, y)
    if found is None:
        return
    at = np.linspace(x.min(), x.max(), 100)
    line = found.intercept + found.slope * at
    axes.plot(at, line, color=INK, linewidth=1.2, label="least squares", zorder=2)
    spread = np.sqrt(((y - found.intercept - found.slope * x) ** 2).sum() / (found.n - 2))
    error = spread * np.sqrt(1 / found.n + (at - x.mean()) ** 2 / ((x - x.mean()) ** 2).sum())
    half = stats.t.ppf(0.975, found.n - 2) * error
    axes.fill_between(
        at,
        line - half,
        line + half,
        color=SOFT,
        alpha=0.13,
        linewidth=0,
        label="95% band of the line",
        zorder=1,
    )
    room = 0.06 * (y.max() - y.min() or 1.0)
    # The band of a few points may be far wider than they are: the points decide what is seen.
    axes.set_ylim(min(y.min(), 0.0) - 2 * room, max(y.max(), 0.0) + 2 * room)


def _names(plot: Plot, axes: Axes, rows: list[dict[str, Any]]) -> None:
    """The merges' names where there is room: right of a point, left, above or below, or not at all."""
    if len(rows) > NAMED:
        return
    plot.draw_without_rendering()
    points = axes.transData.transform([(r["kinship"], r["value"]) for r in rows]) / plot.dpi
    box = axes.get_window_extent()
    left, bottom, right, top = (float(v) / plot.dpi for v in (box.x0, box.y0, box.x1, box.y1))
    taken = [(x - 0.06, y - 0.06, x + 0.06, y + 0.06) for x, y in points]
    for (x, y), row in zip(points, rows, strict=True):
        text = label(row["child"].rpartition("/")[2] or row["child"], 26)
        wide, high = text_width(text, 6.5), 0.1
        for dx, dy in ((0.09, -0.05), (-0.15 - wide, -0.05), (-wide / 2, 0.08), (-wide / 2, -0.18)):
            spot = (x + dx, y + dy, x + dx + wide, y + dy + high)
            inside = spot[0] > left and spot[2] < right and spot[1] > bottom and spot[3] < top
            if inside and not any(_meet(spot, other) for other in taken):
                taken.append(spot)
                at = axes.transData.inverted().transform((spot[0] * plot.dpi, (spot[1] + 0.015) * plot.dpi))
                put(axes, float(at[0]), float(at[1]), text, size=6.5, color=SOFT, va="bottom", zorder=4)
                break


def _meet(a: tuple[float, float, float, float], b: tuple[float, float, float, float]) -> bool:
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]
