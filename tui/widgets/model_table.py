"""The models of a family, or of a filter, as a table: sorted by any column, fitted to the width of the terminal."""

from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

from textual import work
from textual.binding import Binding, BindingType
from textual.events import Click
from textual.geometry import Size
from textual.message import Message
from textual.timer import Timer

from kinbase.errors import KinbaseError
from kinbase.query import table as tables
from kinbase.query.filters import Filter
from kinbase.query.models import Model
from kinbase.text import count, decimals, text_width
from kinbase.tui.context import Context, context
from kinbase.tui.showing import figure, gain, plain, plural
from kinbase.tui.widgets.paged_table import WIDEST, WINDOW, PagedTable

REST = 0.08
"""Seconds the cursor rests on a model before its details are read."""
SHORTEST = {"name": 24, "parents": 16}
"""Columns that are cut where there is no room for all of them, and how much of them is kept."""
ASCENDING = ("name", "relation", "parents", "license")
"""Columns whose first is on top when they are sorted by; of all others the largest is."""


class ModelTable(PagedTable):
    """One row a model; the current model is the one under the cursor."""

    HELP = """\
The family of the current model, or what the filter lets through, as a table. **t** goes back to the tree.

- **s** sorts by the next column, **S** by the one before, **v** turns the order around; a click on a heading does both
- **o** chooses the columns: any benchmark, the gain, the kin to the marked models
- **space** marks a model, **Enter** opens it in the tree
"""
    MISSING: ClassVar[str] = "-"
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding(
            "space",
            "screen.mark",
            "Mark",
            tooltip="Choose the model for the heatmap, or take it out",
            id="table.screen_mark",
        ),
        Binding("v", "reverse", "Reverse", tooltip="Turn the order around", id="table.reverse"),
        Binding("S", "sort(-1)", "Sort by the column before", show=False, id="table.sort_before"),
    ]

    @dataclass
    class Filled(Message):
        """The rows were read, or could not be."""

        number: int
        trouble: str = ""

    def __init__(self) -> None:
        super().__init__()
        self.found = tables.ModelTable("")
        self.chosen_columns: list[str] = ["name", "score"]
        self.sorted_by, self.reversed = "score", False
        self._order: list[int] = []
        self._shown: list[int] = []
        """The columns of `found` that are on the screen."""
        self._texts: dict[int, list[str]] = {}
        """The cells of each column on the screen, whole, in the order of `found`."""
        self._kin_to = ""
        """Whom the column of kinship is about."""
        self._rest: Timer | None = None
        self._bound: int | None = None
        self.border_title = "Models"

    @property
    def _app(self) -> Context:
        return context(self)

    # Reading.

    def read(self, wanted: Filter | None) -> None:
        """Read the table of a filter, or of the current model's family."""
        current = self._app.current
        self._bound = current.id if current else None
        self._read(wanted, current)

    @work(exclusive=True, group="table")
    async def _read(self, wanted: Filter | None, current: Model | None) -> None:
        self.border_subtitle = "reading…"
        app = self._app
        if app.chosen:
            self._kin_to = f" · kin to {len(app.chosen)} marked"
        else:
            self._kin_to = f" · kin to {plain(current.name, 30)}" if current is not None else ""
        try:
            self.found = await app.ask(
                partial(
                    tables.model_table,
                    current=current,
                    wanted=wanted,
                    marked=list(app.chosen),
                    known=app.orders,
                )
            )
        except KinbaseError as error:
            self.post_message(self.Filled(0, str(error)))
            return
        if self.sorted_by not in self.found.columns:
            self.sorted_by = "name"
        self.put_in_order()
        self.post_message(self.Filled(len(self.found.rows)))

    def put_in_order(self) -> None:
        """Put the rows in order, those without a value last, and the cursor on the current model."""
        column = self.found.columns.index(self.sorted_by)
        rows = self.found.rows
        known = [i for i, row in enumerate(rows) if row[column] is not None]
        descending = (self.sorted_by not in ASCENDING) != self.reversed
        known.sort(key=lambda i: self._key(rows[i][column]), reverse=descending)
        self._order = known + [i for i, row in enumerate(rows) if row[column] is None]
        at = self._bound if self._bound is not None else (self._app.current.id if self._app.current else None)
        self.refit()
        place = next((n for n, i in enumerate(self._order) if self.found.models[i].id == at), 0)
        if self._order:
            self.go(place)
        self._bound = None
        more = f"{tables.MOST:,} of more" if self.found.more else plural(len(rows), "model")
        kin_to = self._kin_to if any(self.found.columns[c] == "kin" for c in self._shown) else ""
        self.border_title = f"Models · {plain(self.found.title, 40)}{kin_to}"
        self.border_subtitle = f"{more} · by {self.sorted_by}"

    @staticmethod
    def _key(value: Any) -> Any:
        return value.lower() if isinstance(value, str) else value

    def refit(self) -> None:
        """Choose the columns that fit beside a name worth reading: whole ones, and always that which is sorted by."""
        columns, wanted = self.found.columns, self._wanted()
        texts = {c: self._cells(columns[c], [row[c] for row in self.found.rows]) for c in wanted}
        marked = self._app.chosen
        texts[wanted[0]] = [
            f"◆ {name}" if model.id in marked else name
            for model, name in zip(self.found.models, texts[wanted[0]], strict=True)
        ]
        heads = {c: self._head(columns[c]) for c in wanted}
        widths = self._fitted({c: min(max(map(text_width, [heads[c], *texts[c]])), WIDEST) for c in wanted})
        shown = list(widths)
        self._shown, self._texts = shown, texts
        at = self.cursor
        self.columns = [heads[c] for c in shown]
        self._right = [columns[c] not in ("name", "relation", "parents", "license") for c in shown]
        self._widths = [widths[c] for c in shown]
        rows: list[list[str | None]] = [
            [plain(texts[c][i] or self.MISSING, widths[c]) for c in shown] for i in self._order
        ]
        self.number = len(rows)
        self.windows = {start: rows[start : start + WINDOW] for start in range(0, max(len(rows), 1), WINDOW)}
        self.cursor = min(at, max(self.number - 1, 0))
        self._measure()

    def _wanted(self) -> list[int]:
        """The name, the columns chosen in which anything is known, and the one sorted by, by their places."""
        columns = self.found.columns
        chosen = dict.fromkeys(["name", *self.chosen_columns, self.sorted_by])
        return [
            c
            for c in (columns.index(name) for name in chosen if name in columns)
            if c == 0 or columns[c] == self.sorted_by or any(row[c] is not None for row in self.found.rows)
        ]

    def _fitted(self, widths: dict[int, int]) -> dict[int, int]:
        """The columns that have room, with their widths: the parents give way before the name does."""
        columns = self.found.columns
        room = max(self.scrollable_content_region.width, 20) - len(str(len(self.found.rows))) - 2
        least = {c: min(width, SHORTEST.get(columns[c], width)) for c, width in widths.items()}
        shown = list(widths)
        while len(shown) > 2 and sum(least[c] + 2 for c in shown) > room:
            shown.remove(next(c for c in reversed(shown) if columns[c] != self.sorted_by))
        fitted = {c: widths[c] for c in shown}
        for c in reversed(shown):
            over = sum(fitted.values()) + 2 * len(shown) - room
            fitted[c] = max(least[c], fitted[c] - max(over, 0))
        rest = sum(fitted[c] + 2 for c in shown[1:])
        fitted[shown[0]] = max(min(fitted[shown[0]], room - rest - 2), 8)
        return fitted

    def _head(self, column: str) -> str:
        if column != self.sorted_by:
            return plain(column, 24)
        return plain(column, 24) + ("▼" if (column not in ASCENDING) != self.reversed else "▲")

    @staticmethod
    def _cells(column: str, values: list[Any]) -> list[str]:
        """The texts of a column; nothing for what is not known."""
        known = [value for value in values if isinstance(value, float)]
        places = decimals(known) if known and column != "kin" else 4

        def text(value: Any) -> str:
            if value is None:
                return ""
            if column == "gain":
                return gain(value)
            if column == "parameters":
                return count(value)
            if column == "coverage":
                return f"{100 * value:.1f}%"
            return figure(value, places) if isinstance(value, float) else plain(value)

        return [text(value) for value in values]

    def row_whole(self) -> list[str]:
        """The texts of the row under the cursor, none of them cut."""
        if self.cursor >= len(self._order):
            return []
        return [self._texts[c][self._order[self.cursor]].removeprefix("◆ ") for c in self._shown]

    def _measure(self) -> None:
        self.virtual_size = Size(0, self.number + 1)
        self.refresh()

    def on_resize(self) -> None:
        if self.found.rows:
            self.refit()

    # What the person does.

    @property
    def under_cursor(self) -> Model | None:
        return self.found.models[self._order[self.cursor]] if self.cursor < len(self._order) else None

    def go_to(self, model: Model) -> bool:
        """Put the cursor on a model; whether it is in the table."""
        at = self.under_cursor
        if at is not None and at.id == model.id:
            return True
        place = next((n for n, i in enumerate(self._order) if self.found.models[i].id == model.id), None)
        if place is not None:
            self.go(place)
        return place is not None

    def on_paged_table_moved(self, event: PagedTable.Moved) -> None:
        event.stop()
        if self._rest is not None:
            self._rest.stop()
        model = self.under_cursor
        if model is not None and self.display:
            self._rest = self.set_timer(REST, partial(self._tell, model))

    def _tell(self, model: Model) -> None:
        current = self._app.current
        if current is None or current.id != model.id:
            self._app.current = model

    def action_sort(self, by: int) -> None:
        columns = [self.found.columns[c] for c in self._shown]
        at = columns.index(self.sorted_by) if self.sorted_by in columns else 0
        self.sort_by(columns[(at + by) % len(columns)])

    def sort_by(self, column: str) -> None:
        """Sort by a column; by the one it is sorted by already: the other way round."""
        self.reversed = not self.reversed if column == self.sorted_by else False
        self.sorted_by = column
        self.put_in_order()

    def action_reverse(self) -> None:
        self.sort_by(self.sorted_by)

    def on_click(self, event: Click) -> None:
        at = event.get_content_offset(self)
        if at is None or at.y > 0:
            super().on_click(event)
            return
        x = len(str(self.number)) + 2
        for width, column in zip(self._widths, self._shown, strict=True):
            if x <= at.x < x + width + 2:
                self.sort_by(self.found.columns[column])
                return
            x += width + 2
