"""Plots of what a database holds, for a report or a browser: each a matplotlib figure that also saves itself as a page.

    import kinbase

    db = kinbase.open("kinbase.duckdb")
    plot = db.plot("heatmap", metric="cs")
    plot.save("kinship.html")

Every figure is drawn with an explicit layout in inches, so that five models and two hundred both stay readable.
"""

from collections.abc import Callable
from typing import Any

from kinbase.errors import UsageError
from kinbase.plotting import evolution, gains, heatmap, layers, tree
from kinbase.plotting.figure import Plot
from kinbase.store import Store

KINDS: dict[str, Callable[..., Plot]] = {
    "heatmap": heatmap.draw,
    "tree": tree.draw,
    "layers": layers.draw,
    "evolution": evolution.draw,
    "gains": gains.draw,
}


def draw(store: Store, kind: str, *names: str, **options: Any) -> Plot:
    """The figure of one of KINDS; `names` and `options` are those of its module's `draw`."""
    if kind not in KINDS:
        raise UsageError(f"there is no plot {kind!r}: choose of {', '.join(KINDS)}")
    return KINDS[kind](store, *names, **options)
