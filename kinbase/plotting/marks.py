"""What lies on a figure for a pointer to find, and the greys it is drawn in."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from matplotlib.axes import Axes

INK, SOFT, FAINT = "#1b2430", "#5b6878", "#c9d1da"


@dataclass(frozen=True)
class Spot:
    """What a pointer finds at (x, y) of `axes` in its data coordinates; `lines` are told, the first of them loud.

    Of one point the spot is a disc of `radius` points; of several it is the line through them, that much wide.
    """

    axes: Axes
    x: Sequence[float]
    y: Sequence[float]
    lines: Sequence[str]
    radius: float = 5.0


@dataclass(frozen=True)
class Grid:
    """A square of cells at the integers of `axes`: names in their order, and a text for each known pair."""

    axes: Axes
    names: Sequence[str]
    texts: dict[tuple[int, int], str] = field(default_factory=dict)
