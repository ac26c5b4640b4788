"""A square of kinship as coloured cells, with a cursor."""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from rich.segment import Segment
from rich.style import Style
from textual.binding import Binding, BindingType
from textual.events import Click, MouseMove
from textual.geometry import Size
from textual.message import Message
from textual.reactive import reactive
from textual.scroll_view import ScrollView
from textual.strip import Strip

from kinbase.query.kinship import KinshipMatrix
from kinbase.query.models import Model
from kinbase.text import text_width
from kinbase.tui.showing import padded, plain
from kinbase.tui.widgets.scale import colour, ink, shade

HEADER = 1


class Heatmap(ScrollView, can_focus=True):
    """Rows carry the names, columns their numbers. Cells show hundredths, so it reads without colour."""

    HELP = """\
Kinship of every pair: hundredths of the value in each cell, blue for positive, orange for negative.
For ed, the distance, cells show hundredths of the largest, and near is light.

- **arrows** move, **Home**/**End** to the first or last column; **Enter** opens the row's model, **c** the column's
- **m** metric, **b** block, **[** and **]** layer, **z** small or large cells
- **a** adds a model, **x** removes the row's
"""
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("up", "move(-1, 0)", "Up", show=False),
        Binding("down", "move(1, 0)", "Down", show=False),
        Binding("left", "move(0, -1)", "Left", show=False),
        Binding("right", "move(0, 1)", "Right", show=False),
        Binding("pageup", "move(-10, 0)", "Up", show=False),
        Binding("pagedown", "move(10, 0)", "Down", show=False),
        Binding("home", "move(0, -1000)", "First", show=False),
        Binding("end", "move(0, 1000)", "Last", show=False),
        Binding("z", "zoom", "Zoom", show=False),
    ]

    COMPONENT_CLASSES: ClassVar[set[str]] = {"heatmap--label", "heatmap--lit", "heatmap--unknown"}
    wide: reactive[bool] = reactive(True)

    @dataclass
    class Moved(Message):
        """The cursor is on a pair."""

        row: int
        column: int

    def __init__(self) -> None:
        super().__init__()
        self.table = KinshipMatrix([], {})
        self.metric = "pcc"
        self.row = self.column = 0
        self._parts = np.zeros((0, 0))
        self._values = np.zeros((0, 0))

    @property
    def cell(self) -> int:
        return 4 if self.wide else 2

    @property
    def margin_left(self) -> int:
        """Columns before the cells: a number and a name."""
        longest = max((text_width(plain(m.name)) for m in self.table.models), default=0)
        digits = len(str(len(self.table.models)))
        return digits + 2 + max(min(longest, max(self.size.width // 3, 12)), 4)

    def show(self, table: KinshipMatrix, metric: str) -> None:
        """Draw `table`; the cursor stays on its pair of models if they are still in it."""
        at = {m.id: i for i, m in enumerate(table.models)}
        old = self.table.models
        self.row, self.column = (at.get(old[i].id, 0) if i < len(old) else 0 for i in (self.row, self.column))
        if self.row == self.column and len(table.models) > 1:
            self.column = 1 if self.row == 0 else 0
        self.table, self.metric = table, metric
        self._values = table.values(metric)
        known = np.abs(self._values[~np.isnan(self._values)])
        largest = float(known.max()) if known.size else 0.0
        self._parts = self._values if metric != "ed" else self._values / (largest or 1.0)
        self._measure()
        self.refresh()
        if table.models:
            self.post_message(self.Moved(self.row, self.column))

    def _measure(self) -> None:
        number = len(self.table.models)
        self.virtual_size = Size(self.margin_left + number * self.cell, number + HEADER)

    def watch_wide(self) -> None:
        self._measure()
        self.refresh()

    def on_resize(self) -> None:
        self._measure()

    def render_line(self, y: int) -> Strip:
        scroll_x, scroll_y = self.scroll_offset
        number = len(self.table.models)
        width = self.size.width
        ground = self.rich_style
        label, lit = (
            self.get_component_rich_style("heatmap--label"),
            self.get_component_rich_style("heatmap--lit"),
        )
        if not number:
            return Strip.blank(width, ground)
        digits = len(str(number))
        margin_left = self.margin_left
        # The names and the numbers stay where they are while the cells scroll beneath.
        row = y - HEADER + scroll_y
        if y and row >= number:
            return Strip.blank(width, ground)
        first = scroll_x // self.cell
        last = min(number, first + (width - margin_left) // self.cell + 1)
        if y < HEADER:
            segments = [Segment(f"{self.metric:<{margin_left}}"[:margin_left], label)]
            if self.wide:
                segments += [
                    Segment(f"{i + 1:>{self.cell}}", lit if i == self.column else label)
                    for i in range(first, last)
                ]
        else:
            name = plain(self.table.models[row].name, margin_left - digits - 2)
            style = lit if row == self.row else label
            segments = [Segment(f"{row + 1:>{digits}} {padded(name, margin_left - digits - 1)}", style)]
            segments += [self._cell(row, column, ground) for column in range(first, last)]
        return Strip(segments).adjust_cell_length(width, ground)

    def _cell(self, row: int, column: int, ground: Style) -> Segment:
        here = (row, column) == (self.row, self.column)
        if row == column:
            text, style = "·", ground
        elif np.isnan(self._values[row, column]):
            text, style = "?", self.get_component_rich_style("heatmap--unknown")
        else:
            part = float(self._parts[row, column])
            # Near is what the eye is after: a small distance is as light as a high correlation.
            strength = 1 - part if self.metric == "ed" else part
            back = colour(strength, self.app.current_theme.dark)
            style = Style(color=ink(back).rich_color, bgcolor=back.rich_color)
            shown = f"{round(100 * part)}"  # not -0
            text = shown if self.wide else ""
            if self.app.no_color and not self.wide:
                # The ink that reads on a light cell would make the strongest the darkest.
                text, style = shade(strength) * 2, ground
        if not self.wide:
            return Segment(("▐▌" if here else text.ljust(2)[:2]), style + Style(bold=here))
        room = self.cell - 2
        marked = f"[{text:^{room}}]" if len(text) <= room else f"▸{text}"[-self.cell :]
        return Segment(marked if here else f"{text:>{self.cell - 1}} ", style + Style(bold=here))

    # Moving.

    def action_move(self, rows: int, columns: int) -> None:
        self.go(self.row + rows, self.column + columns)

    def go(self, row: int, column: int) -> None:
        """Put the cursor there, or as near as there is a cell."""
        number = len(self.table.models)
        if not number:
            return
        self.row, self.column = max(0, min(number - 1, row)), max(0, min(number - 1, column))
        # The pinned names and numbers cover the first part of what is visible.
        left = self.column * self.cell
        room = max(self.size.width - self.margin_left - self.cell, 0)
        x = left if left < self.scroll_offset.x else max(self.scroll_offset.x, left - room)
        y = min(self.scroll_offset.y, self.row)
        y = max(y, self.row - (self.size.height - HEADER - 1))
        self.scroll_to(x - x % self.cell if x == left else x + (-x) % self.cell, y, animate=False)
        self.refresh()
        self.post_message(self.Moved(self.row, self.column))

    def action_zoom(self) -> None:
        self.wide = not self.wide

    def _under(self, x: int, y: int) -> tuple[int, int] | None:
        row = y - HEADER + self.scroll_offset.y
        column = (x - self.margin_left) // self.cell + self.scroll_offset.x // self.cell
        number = len(self.table.models)
        return (
            (row, column)
            if y >= HEADER and 0 <= row < number and x >= self.margin_left and column < number
            else None
        )

    def on_click(self, event: Click) -> None:
        at = event.get_content_offset(self)
        found = self._under(at.x, at.y) if at else None
        if found:
            self.go(*found)

    def on_mouse_move(self, event: MouseMove) -> None:
        at = event.get_content_offset(self)
        found = self._under(at.x, at.y) if at else None
        if found and event.button:
            self.go(*found)

    @property
    def models(self) -> tuple[Model, Model] | None:
        """Those of the row and of the column under the cursor."""
        if not self.table.models:
            return None
        return self.table.models[self.row], self.table.models[self.column]
