"""Lines over generations as text: braille dots for the way, a mark for each value, so that it reads without colour."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from textual.app import RenderResult
from textual.content import Content
from textual.widget import Widget

from kinbase.tui.showing import figure

DOTS = ((0x01, 0x02, 0x04, 0x40), (0x08, 0x10, 0x20, 0x80))
"""Of a braille cell: left and right column, from above."""
LABELS = 9
"""Columns of the numbers at the left."""


@dataclass(frozen=True)
class Series:
    """Values by generation; `mark` stands for each, `gaps` makes the way between them dotted."""

    name: str
    mark: str
    style: str
    points: Sequence[tuple[int, float]]
    gaps: bool = False


class Curve(Widget):
    """Two panels, one above the other, over the same generations."""

    def __init__(self) -> None:
        super().__init__()
        self.panels: list[tuple[list[Series], tuple[float, float] | None]] = []
        self.told = ""

    def show(self, panels: list[tuple[list[Series], tuple[float, float] | None]], told: str = "") -> None:
        """Draw `panels`: lines, and the range that is shown whatever they hold; `told` stands there when there are none."""
        self.panels, self.told = panels, told
        self.refresh()

    def render(self) -> RenderResult:
        width, height = self.size.width, self.size.height
        points = [point for lines, _ in self.panels for line in lines for point in line.points]
        if not points:
            return Content.styled(self.told, "$foreground 65%")
        first, last = min(g for g, _ in points), max(g for g, _ in points)
        key = Content("  ").join(
            Content.assemble((line.mark, line.style), f" {line.name}")
            for lines, _ in self.panels
            for line in lines
        )
        room = max(height - 2, 2)
        upper = room - max(room * 2 // 5, 1)
        drawn = [key.truncate(width, ellipsis=True)]
        for (lines, least), tall in zip(self.panels, (upper, room - upper), strict=True):
            drawn += panel(lines, least, max(width - LABELS, 8), tall, first, last)
        drawn.append(axis(first, last, max(width - LABELS, 8)))
        return Content("\n").join(drawn)


def panel(
    lines: Sequence[Series], least: tuple[float, float] | None, width: int, height: int, first: int, last: int
) -> list[Content]:
    """`height` rows: numbers at the left of the highest and the lowest, the lines at their right."""
    values = [value for line in lines for _, value in line.points]
    low, high = min(values, default=0.0), max(values, default=1.0)
    if least is not None:
        low, high = min(low, least[0]), max(high, least[1])
    if low == high:
        low, high = low - 0.5, high + 0.5
    bits = [[0] * width for _ in range(height)]
    styles = [[""] * width for _ in range(height)]
    marks: dict[tuple[int, int], tuple[str, str]] = {}

    def at(point: tuple[int, float]) -> tuple[int, int]:
        x = round((point[0] - first) / max(last - first, 1) * (2 * width - 1))
        return x, round((high - point[1]) / (high - low) * (4 * height - 1))

    for line in reversed(lines):  # the first is drawn last, over the others
        places = [at(point) for point in line.points]
        for (x0, y0), (x1, y1) in pairwise(places):
            steps = max(abs(x1 - x0), abs(y1 - y0), 1)
            for step in range(steps + 1):
                if line.gaps and step % 4 > 1:
                    continue
                x, y = x0 + (x1 - x0) * step // steps, y0 + (y1 - y0) * step // steps
                bits[y // 4][x // 2] |= DOTS[x % 2][y % 4]
                styles[y // 4][x // 2] = line.style
        if len(places) * 2 <= width:
            for x, y in places:
                there = marks.get((y // 4, x // 2))
                marks[y // 4, x // 2] = (line.mark if there is None else "◉", line.style)
    rows = []
    for y in range(height):
        number = figure(high) if y == 0 else figure(low) if y == height - 1 else ""
        cells = [
            marks.get((y, x), (chr(0x2800 + bits[y][x]) if bits[y][x] else " ", styles[y][x]))
            for x in range(width)
        ]
        edge = "┤" if number else "│"
        rows.append(Content.assemble((f"{number:>{LABELS - 2}} {edge}", "$foreground 65%"), *cells))
    return rows


def axis(first: int, last: int, width: int) -> Content:
    """The generations' numbers, as many as there is room for."""
    digits = len(str(last)) + 2
    most = max(width // digits, 2)
    step = max(1, -(-(last - first) // most)) if last > first else 1
    row = [" "] * (width + LABELS)
    for number in range(first, last + 1, step):
        x = LABELS + round((number - first) / max(last - first, 1) * (2 * width - 1)) // 2
        text = str(number)
        x = min(x, len(row) - len(text))
        row[x : x + len(text)] = text
    row[: LABELS - 1] = f"{'gen':>{LABELS - 2}} "
    return Content.styled("".join(row), "$foreground 65%")
