"""A figure that knows what lies where on it, and saves itself as .svg, .png or one .html page.

Lengths are inches, text sizes points. Names come from files nobody vouches for: every text here is drawn
without matplotlib's `$` mathematics, and `label` makes a name safe and short.
"""

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any
from unicodedata import east_asian_width
from warnings import catch_warnings, filterwarnings

import matplotlib
import numpy as np
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties, fontManager
from matplotlib.legend import Legend
from matplotlib.text import Text
from matplotlib.textpath import text_to_path

from kinbase.errors import KinbaseError, UsageError
from kinbase.plotting.marks import FAINT, INK, SOFT, Grid, Spot
from kinbase.plotting.page import page, svg
from kinbase.text import made_whole, safe, written

ENDINGS = (".svg", ".png", ".html")
DPI = 150
"""Of .png, until that would be more than WIDEST pixels."""
WIDEST = 12_000

# Okabe and Ito's colours, told apart with every kind of colour vision.
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#7a5195", "#000000")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")

# Orange below zero, blue above, lightness for the amount: the scale of the terminal UI's heatmap on white.
DIVERGING = LinearSegmentedColormap.from_list(
    "kinship",
    ("#6e3f00", "#c97f17", "#f0b968", "#fbe3c0", "#ffffff", "#cfe3f5", "#8fbce4", "#3d80bf", "#0b3a6b"),
)

# What else a name may be written in, where the machine has it.
FALLBACKS = (
    "Noto Sans CJK JP", "Noto Sans CJK SC", "Noto Sans", "Noto Sans Arabic", "Noto Sans Hebrew",
    "Noto Sans Devanagari", "PingFang SC", "Hiragino Sans", "Microsoft YaHei", "Yu Gothic", "WenQuanYi Zen Hei",
)  # fmt: skip


class Plot(Figure):
    """A matplotlib figure of `width` by `height` inches, with the spots a page shows more of."""

    def __init__(self, width: float, height: float) -> None:
        super().__init__(figsize=(width, height), facecolor="white")
        self.spots: list[Spot] = []
        self.grid: Grid | None = None
        self.title = ""

    def area(self, left: float, bottom: float, width: float, height: float, **kwargs: Any) -> Axes:
        """Axes at a place in inches from the lower left corner."""
        wide, high = self.get_size_inches()
        return self.add_axes((left / wide, bottom / high, width / wide, height / high), **kwargs)

    def head(self, title: str, *lines: str, left: float = 0.2) -> None:
        """The title at the top left, and what is to be known of the figure under it."""
        self.title = title
        wide, high = self.get_size_inches()
        put(self, left / wide, 1 - 0.18 / high, title, size=13, weight="bold", va="top")
        for number, line in enumerate(lines):
            put(self, left / wide, 1 - (0.46 + 0.19 * number) / high, line, size=9, color=SOFT, va="top")

    def save(self, path: str | Path) -> None:
        """Write the figure as the ending of `path` says; nothing is left of a file that could not be written.

        .svg keeps names as text, .png has 150 dots an inch, .html is one page that needs nothing else.
        Raises UsageError for another ending and KinbaseError when the file cannot be written.
        """
        path = str(path)
        ending = Path(path).suffix.lower()
        check_ending(path)
        try:
            with quiet():
                if ending == ".png":
                    self._save_png(Path(path))
                    return
                with written(path) as out:
                    out.write(
                        page(self, self.title, self.spots, self.grid) if ending == ".html" else svg(self)
                    )
        except OSError as error:
            raise KinbaseError(f"{path} cannot be written: {error.strerror or error}") from error

    def _save_png(self, path: Path) -> None:
        dpi = min(DPI, WIDEST / max(self.get_size_inches()))
        with made_whole(path) as part:
            self.savefig(part, format="png", dpi=dpi, metadata={"Software": None})


def check_ending(path: str) -> None:
    """Raises UsageError for a file that no plot can be written to."""
    if Path(path).suffix.lower() not in ENDINGS:
        raise UsageError(f"{path} does not say what to write: a plot ends in {', '.join(ENDINGS)}")


def put(on: Axes | Figure, x: float, y: float, text: str, **kwargs: Any) -> Text:
    """A text, `$` and all, in data coordinates of axes or in parts of a figure."""
    kwargs = {"color": INK, "fontfamily": families()} | kwargs
    return on.text(x, y, text, parse_math=False, **kwargs)


def plain_axes(axes: Axes) -> None:
    """Thin lines on two sides, a light grid behind what is drawn."""
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(SOFT)
    axes.tick_params(colors=SOFT, labelcolor=INK, labelsize=9)
    axes.grid(color=FAINT, linewidth=0.6, alpha=0.7)
    axes.set_axisbelow(True)


def legend_beside(axes: Axes, size: float, handles: Sequence[Artist] = ()) -> Legend:
    """The legend at the right of the axes, of `handles` or of what is labelled on them; names in it stay what they are."""
    drawn, names = (
        (list(handles), [str(h.get_label()) for h in handles])
        if handles
        else axes.get_legend_handles_labels()
    )
    legend = axes.legend(
        drawn,
        names,
        loc="upper left",
        bbox_to_anchor=(1.02, 1.02),
        frameon=False,
        fontsize=size,
        borderaxespad=0,
    )
    for text in legend.get_texts():
        text.set_parse_math(False)
        text.set_fontfamily(families())
    return legend


def entry(name: str) -> str:
    """A name as a legend's label: matplotlib leaves out those that begin with an underscore."""
    return f" {name}" if name.startswith("_") else name


def label(name: str, most: int = 300) -> str:
    """A name as XML, a terminal and a reader can take it, cut in the middle to `most` characters."""
    shown = re.sub("[\ufffe\uffff]", "\ufffd", safe(name))
    if len(shown) <= most:
        return shown
    tail = most * 2 // 5
    return f"{shown[: most - tail - 1]}…{shown[-tail:]}"


def text_width(text: str, size: float) -> float:
    """Inches that `text` takes at `size` points."""
    wide = sum(east_asian_width(character) in "WF" for character in text)
    narrow = "".join(c for c in text if east_asian_width(c) not in "WF")
    with quiet():
        points = text_to_path.get_text_width_height_descent(narrow, _font(size), False)[0] if narrow else 0.0
    return (float(points) + wide * size) / 72


@cache
def _font(size: float) -> FontProperties:
    return FontProperties(family=families(), size=size)


@cache
def families() -> tuple[str, ...]:
    """The font, and those of this machine for what it lacks."""
    there = set(fontManager.get_font_names())
    return ("DejaVu Sans", *(name for name in FALLBACKS if name in there))


@contextmanager
def quiet() -> Iterator[None]:
    """Without matplotlib's word on each character no font has, and with figures that come out alike each time."""
    with catch_warnings(), matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "kinbase"}):
        filterwarnings("ignore", message="Glyph|Matplotlib currently does not support")
        yield


def figure_of(value: float | None, digits: int = 3) -> str:
    """A number as a label: nothing for what is not known."""
    if value is None or np.isnan(value):
        return ""
    return f"{value:.{digits}f}" if abs(value) < 1000 else f"{value:.4g}"
