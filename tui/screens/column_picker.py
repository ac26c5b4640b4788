"""Choosing the columns of the table of models."""

from typing import ClassVar

from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Vertical
from textual.screen import ModalScreen
from textual.strip import Strip
from textual.widgets import SelectionList
from textual.widgets._toggle_button import ToggleButton
from textual.widgets.selection_list import Selection

from kinbase.tui.showing import content


class Checks(SelectionList[str]):
    """A list whose marks can be told apart without colours."""

    def render_line(self, y: int) -> Strip:
        line = super().render_line(y)
        at = self.scroll_offset.y + y
        if at >= self.option_count or self.get_option_at_index(at).value in self.selected:
            return line
        inner = ToggleButton.BUTTON_INNER
        return Strip([s._replace(text=" ") if s.text == inner else s for s in line], line.cell_length)


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
            yield Checks(
                *(Selection(content(name, width=50), name, name in self.chosen) for name in self.columns),
                compact=True,
            )

    def action_done(self) -> None:
        taken = set(self.query_one(Checks).selected)
        self.dismiss([name for name in self.columns if name in taken])
