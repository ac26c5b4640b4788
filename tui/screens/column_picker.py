"""Choosing the columns of the table of models."""

from typing import ClassVar

from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Vertical
from textual.screen import ModalScreen
from textual.widgets import SelectionList
from textual.widgets.selection_list import Selection

from kinbase.tui.showing import content


class ColumnPicker(ModalScreen[list[str] | None]):
    """Space takes a column or leaves it, Enter is done."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("escape", "dismiss(None)", "Close"),
        Binding("enter", "done", "Done", priority=True),
    ]

    def __init__(self, columns: list[str], chosen: list[str]) -> None:
        super().__init__()
        self.columns, self.chosen = columns, chosen

    def compose(self) -> ComposeResult:
        with Vertical() as box:
            box.border_title = "Columns"
            box.border_subtitle = "space takes one, Enter is done"
            yield SelectionList[str](
                *(Selection(content(name, width=50), name, name in self.chosen) for name in self.columns),
                compact=True,
            )

    def action_done(self) -> None:
        taken = set(self.query_one(SelectionList).selected)
        self.dismiss([name for name in self.columns if name in taken])
