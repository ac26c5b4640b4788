"""How runs of evolution went: score and kinship of the best, generation by generation."""

from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from kinbase.errors import KinbaseError
from kinbase.plotting.figure import (
    COLOURS,
    MARKERS,
    Plot,
    entry,
    figure_of,
    label,
    legend_beside,
    plain_axes,
    text_width,
)
from kinbase.plotting.marks import SOFT, Spot
from kinbase.query.runs import FinishedGeneration, Offspring, generations, offspring, runs
from kinbase.store import Store

DOTS = 400
"""Children of one run that are drawn; of more, the lines tell."""


def draw(store: Store, *names: str) -> Plot:
    """Above, each run's best score so far, its generations' mean and its children; below, the kinship among its k best.

    Of the runs `names`, or of all that have a finished generation. Raises KinbaseError for an unknown run, and when
    there is no such generation.
    """
    with store.reading() as con:
        known = {run.name: run for run in sorted(runs(con), key=lambda run: (run.started_at, run.name))}
        if not known:
            raise KinbaseError("there is no run of evolution in this database: `kinbase evolve` makes one")
        for name in names:
            if name not in known:
                raise KinbaseError(
                    f"there is no run {label(name, 60)}: there are {', '.join(label(name, 40) for name in list(known)[:8])}"
                )
        begun = [name for name, run in known.items() if run.generations is not None]
        chosen = list(dict.fromkeys(names)) or begun or list(known)[: len(COLOURS)]
        if len(chosen) > len(COLOURS):
            raise KinbaseError(f"{len(chosen)} runs are too many for one figure: name up to {len(COLOURS)}")
        rows = {name: generations(con, name) for name in chosen}
        if not any(rows.values()):
            raise KinbaseError(f"no generation of {', '.join(label(n, 40) for n in chosen)} is finished yet")
        children = {
            name: [child for child in reversed(offspring(con, name)) if child.score is not None]
            for name in chosen
        }
    return _drawn(chosen, rows, children)


def _drawn(
    names: list[str], rows: dict[str, list[FinishedGeneration]], children: dict[str, list[Offspring]]
) -> Plot:
    legend = (
        max(text_width(text, 9) for text in [*(label(name, 30) for name in names), "mean of the generation"])
        + 0.6
    )
    last = max(row.generation for story in rows.values() for row in story)
    wide = min(max(4.6, 0.3 * last), 11.0)
    plot = Plot(0.8 + wide + 0.25 + legend, 5.9)
    words = [_told(label(name, 40), rows[name]) for name in names[:2]]
    plot.head(
        "Evolution" + (f" of {label(names[0], 50)}" if len(names) == 1 else f": {len(names)} runs"),
        *(words if len(names) <= 2 else []),
    )
    scores = plot.area(0.8, 2.6, wide, 2.3)
    kinship = plot.area(0.8, 0.6, wide, 1.6, sharex=scores)
    for number, name in enumerate(names):
        # Side by side, for runs often make the same children.
        aside = 0.12 * (number - (len(names) - 1) / 2)
        _run(plot, scores, kinship, name, rows[name], children[name], number, aside)
    for axes in (scores, kinship):
        plain_axes(axes)
    scores.set_ylabel("score", fontsize=10)
    scores.tick_params(labelbottom=False)
    kinship.set_ylabel("kinship of the k best", fontsize=10)
    kinship.set_xlabel("generation", fontsize=10)
    kinship.set_xlim(-0.4, last + 0.4)
    kinship.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    known = [row.top_kinship for story in rows.values() for row in story if row.top_kinship is not None]
    kinship.set_ylim(min([0.0, *known]) - 0.03, 1.03)
    _legend(plot, scores, names, any(children.values()))
    return plot


def _told(name: str, rows: list[FinishedGeneration]) -> str:
    """One line on a run: its best model and where it ended."""
    best = max(
        (row for row in rows if row.best_score is not None),
        key=lambda row: row.best_score or 0.0,
        default=None,
    )
    if best is None:
        return f"{name}: nothing scored yet"
    reached = f"in generation {best.generation} of {rows[-1].generation}"
    return f"{name}: best {label(best.best or '', 40)} with {figure_of(best.best_score)} {reached}"


def _run(
    plot: Plot, scores: Axes, kinship: Axes, name: str, rows: list[FinishedGeneration], children: list[Offspring], number: int,
    aside: float,
) -> None:  # fmt: skip
    colour, marker = COLOURS[number], MARKERS[number]
    shown = label(name, 60)
    if len(children) <= DOTS:
        for kept in (False, True):
            dots = [c for c in children if c.kept == kept]
            scores.plot(
                [c.generation + aside for c in dots], [c.score or 0.0 for c in dots], linestyle="none", marker=marker,
                markersize=4.5, color=colour, markerfacecolor=colour if kept else "white", alpha=0.85,
                markeredgewidth=0.9, zorder=3,
            )  # fmt: skip
        for child in children:
            parents = " + ".join(label(parent, 60) for parent in child.parents or [])
            lines = [
                label(child.child),
                parents,
                f"{shown}, generation {child.generation}, {label(child.role)}, score {figure_of(child.score, 4)}",
            ]
            if child.kinship is not None:
                lines.append(f"kinship of the parents {figure_of(child.kinship)}")
            plot.spots.append(
                Spot(
                    scores,
                    [child.generation + aside],
                    [child.score or 0.0],
                    [*lines, label(child.reason or "")],
                    radius=5,
                )
            )
    for axes, key, style in (
        (scores, "best_so_far", "-"),
        (scores, "mean_score", ":"),
        (kinship, "top_kinship", "-"),
    ):
        points = [(row.generation, getattr(row, key), row) for row in rows if getattr(row, key) is not None]
        axes.plot(
            [x for x, _, _ in points], [y for _, y, _ in points], linestyle=style, color=colour, linewidth=1.7,
            marker=marker if axes is kinship else None, markersize=4.5, zorder=2,
            drawstyle="steps-post" if key == "best_so_far" else "default",
        )  # fmt: skip
        for x, y, row in points:
            if key == "top_kinship":
                top = ", ".join(label(model, 40) for model in (row.top or [])[:6])
                plot.spots.append(
                    Spot(
                        kinship,
                        [x],
                        [y],
                        [
                            f"{shown}, generation {x}",
                            f"kinship {figure_of(y, 4)} of {top}",
                            label(row.reason or ""),
                        ],
                    )
                )


def _legend(plot: Plot, axes: Axes, names: list[str], children: bool) -> None:
    handles = [
        Line2D([], [], color=COLOURS[i], marker=MARKERS[i], markersize=4.5, label=entry(label(name, 30)))
        for i, name in enumerate(names)
    ]
    handles += [
        Line2D([], [], color=SOFT, label="best so far"),
        Line2D([], [], color=SOFT, linestyle=":", label="mean of the generation"),
    ]
    if children:
        handles += [
            Line2D([], [], color=SOFT, marker="o", linestyle="none", markersize=4.5, label="child, kept"),
            Line2D(
                [],
                [],
                color=SOFT,
                marker="o",
                linestyle="none",
                markersize=4.5,
                markerfacecolor="white",
                label="child, dropped",
            ),
        ]
    legend_beside(axes, 9, handles)
