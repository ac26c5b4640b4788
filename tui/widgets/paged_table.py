"""A table of any length: it holds a few windows of rows and asks for those that come into sight."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any, ClassVar

from rich.segment import Segment
from rich.style import Style
from textual.binding import Binding, BindingType
from textual.events import Click
from textual.geometry import Size
from textual.message import Message
from textual.scroll_view import ScrollView
from textual.strip import Strip

from kinbase.text import cell, fitted, middle, text_width
from kinbase.tui.showing import padded, plain

WINDOW = 500
"""Rows of one window."""
KEPT = 8
"""Windows held at a time."""
WIDEST = 60
"""Cells of one column before its text is cut."""
TALLEST = 50_000_000
"""Rows that can be scrolled to; more than a screen's arithmetic and a person need."""

Row = Sequence[Any]


class PagedTable(ScrollView, can_focus=True):
    """Rows of a result with a cursor line."""

    HELP = """\
The result. **Arrows**, **PgUp**/**PgDn**, **Home**/**End** move through it; further rows are read as they come into sight.
**Ctrl+S** saves all of it as CSV or Parquet.
"""
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("up", "move(-1)", "Up", show=False),
        Binding("down", "move(1)", "Down", show=False),
        Binding("pageup", "page(-1)", "Page up", show=False),
        Binding("pagedown", "page(1)", "Page down", show=False),
        Binding("home", "move(-1000000000)", "First row", show=False),
        Binding("end", "move(1000000000)", "Last row", show=False),
        Binding("left", "sideways(-1)", "Left", show=False),
        Binding("right", "sideways(1)", "Right", show=False),
    ]
    MISSING: ClassVar[str] = "NULL"
    """What stands for no value."""
    COMPONENT_CLASSES: ClassVar[set[str]] = {"table--head", "table--cursor", "table--null", "table--missing"}

    @dataclass
    class Wanted(Message):
        """Rows from `offset` on came into sight and are not here."""

        offset: int

    @dataclass
    class Moved(Message):
        """The cursor is on another row."""

        row: int

    def __init__(self) -> None:
        super().__init__()
        self.columns: list[str] = []
        self.windows: dict[int, list[list[str | None]]] = {}
        self.number = 0
        self.cursor = 0
        self._natural: list[int] = []
        """The cells that each column would take."""
        self._widths: list[int] = []
        self._right: list[bool] = []
        self._asked: set[int] = set()

    def show(self, columns: Sequence[str], rows: Sequence[Row], number: int) -> None:
        """Replace everything: the first rows of `number`."""
        self.columns = [plain(column) for column in columns]
        self.windows, self._asked = {}, set()
        self.number, self.cursor = min(number, TALLEST), 0
        self._right = [
            any(row[i] is not None for row in rows)
            and all(
                row[i] is None or (isinstance(row[i], int | float) and not isinstance(row[i], bool))
                for row in rows
            )
            for i in range(len(columns))
        ]
        shown = self._text(rows)
        self._natural = [min(text_width(name) or 1, WIDEST) for name in self.columns]
        self._widen(shown)
        self.windows[0] = shown
        self.scroll_to(0, 0, animate=False)
        self._measure()

    def grow(self, number: int) -> None:
        """How many rows there are turned out."""
        self.number = min(number, TALLEST)
        self._measure()

    def give(self, offset: int, rows: Sequence[Row]) -> None:
        """The rows that were asked for."""
        self._asked.discard(offset)
        shown = self._text(rows)
        self._widen(shown)
        self.windows[offset] = shown
        far = sorted(self.windows, key=lambda at: abs(at - self.cursor))
        self.windows = {at: self.windows[at] for at in far[:KEPT]}
        self._measure()

    def forget(self, offset: int) -> None:
        """The rows that were asked for do not come; they may be asked for again."""
        self._asked.discard(offset)

    @staticmethod
    def _text(rows: Sequence[Row]) -> list[list[str | None]]:
        return [[None if value is None else _cell(value) for value in row] for row in rows]

    def _widen(self, rows: Sequence[Sequence[str | None]]) -> None:
        for row in rows:
            for i, text in enumerate(row):
                self._natural[i] = max(self._natural[i], min(text_width(text or self.MISSING), WIDEST))

    def _measure(self) -> None:
        """Fit the columns, as far as cutting names goes; what is wider is scrolled to."""
        room = max(
            self.size.width - self.margin_left - 3, 20
        )  # the scrollbar, and the blanks behind the last
        self._widths = fitted(self._natural, self._right, room)
        self.virtual_size = Size(sum(w + 2 for w in self._widths) + self.margin_left, self.number + 1)
        self.refresh()

    def on_resize(self) -> None:
        self._measure()

    @property
    def margin_left(self) -> int:
        """The cells of the rows' numbers."""
        return len(str(self.number)) + 2

    def _places(self) -> list[int]:
        """Where each column begins, and where the last ends."""
        return list(accumulate((w + 2 for w in self._widths), initial=self.margin_left))

    def _whole(self, segments: list[Segment]) -> list[Segment]:
        """Cells of one line, those blank that the sides of the window would cut."""
        left, right = self.scroll_offset.x, self.scroll_offset.x + self.scrollable_content_region.width
        places = self._places()
        return [
            segment
            if (begin >= left or not i) and (end - 2 <= right or end - begin > right - left)
            else Segment(" " * (end - begin), segment.style)
            for i, (segment, begin, end) in enumerate(zip(segments, places, places[1:], strict=False))
        ]

    def render_line(self, y: int) -> Strip:
        scroll_x, scroll_y = self.scroll_offset
        width, ground = self.size.width, self.rich_style
        if not self.columns:
            return Strip.blank(width, ground)
        head = self.get_component_rich_style("table--head")
        digits = len(str(self.number))
        if y == 0:
            names = self._whole([Segment(self._fit(name, i), head) for i, name in enumerate(self.columns)])
            return (
                Strip([Segment(" " * (digits + 2), head), *names])
                .crop(scroll_x, scroll_x + width)
                .adjust_cell_length(width, head)
            )
        number = y - 1 + scroll_y
        if number >= self.number:
            return Strip.blank(width, ground)
        over = self.get_component_rich_style("table--cursor") if number == self.cursor else Style()
        row = self._row(number)
        missing = self.get_component_rich_style("table--missing", partial=True)
        segments = [Segment(f"{number + 1:>{digits}}  ", ground + missing + over)]
        if row is None:
            segments.append(Segment("…", ground + missing + over))
        else:
            null = self.get_component_rich_style("table--null", partial=True)
            segments += self._whole(
                [
                    Segment(
                        self._fit(self.MISSING if text is None else text, i),
                        ground + (null if text is None else Style()) + over,
                    )
                    for i, text in enumerate(row)
                ]
            )
        return Strip(segments).crop(scroll_x, scroll_x + width).adjust_cell_length(width, ground + over)

    def _fit(self, text: str, column: int) -> str:
        width = self._widths[column]
        return padded(middle(text, width), width, is_right=self._right[column]) + "  "

    def _row(self, number: int) -> list[str | None] | None:
        offset = number - number % WINDOW
        window = self.windows.get(offset)
        if window is None:
            if offset not in self._asked:
                self._asked.add(offset)
                self.post_message(self.Wanted(offset))
            return None
        return window[number - offset] if number - offset < len(window) else None

    def row_under_cursor(self) -> list[str | None]:
        """The texts of the row, as they were given; none of an empty table."""
        return (self._row(self.cursor) or []) if self.number else []

    # Moving.

    def action_move(self, by: int) -> None:
        self.go(self.cursor + by)

    def action_page(self, by: int) -> None:
        self.go(self.cursor + by * max(self.size.height - 2, 1))

    def action_sideways(self, by: int) -> None:
        """A column to the right or to the left."""
        stops = [place - self.margin_left for place in self._places()[:-1]]
        at = self.scroll_offset.x
        beyond = [x for x in stops if (x > at if by > 0 else x < at)]
        if beyond:
            self.scroll_to(min(beyond) if by > 0 else max(beyond), animate=False)

    def go(self, row: int) -> None:
        """Put the cursor on `row`, or on the nearest there is."""
        if not self.number:
            return
        self.cursor = max(0, min(self.number - 1, row))
        visible = max(self.size.height - 1, 1)
        top = self.scroll_offset.y
        top = min(top, self.cursor) if self.cursor < top else max(top, self.cursor - visible + 1)
        self.scroll_to(y=top, animate=False)
        self.refresh()
        self.post_message(self.Moved(self.cursor))

    def on_click(self, event: Click) -> None:
        at = event.get_content_offset(self)
        if at is not None and at.y > 0:
            self.go(at.y - 1 + self.scroll_offset.y)


def _cell(value: Any) -> str:
    """One line, however long or odd the value is."""
    if isinstance(value, bytes):
        return value[:32].hex() + ("…" if len(value) > 32 else "")
    if isinstance(value, str):
        value = value[: 4 * WIDEST]
    return plain(cell(value)[: 4 * WIDEST])
