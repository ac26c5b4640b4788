"""How a query is computed, as DuckDB draws it, in a window."""

from typing import ClassVar

from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import ScrollableContainer
from textual.screen import ModalScreen
from textual.widgets import Static

from kinbase.tui.showing import plain


class PlanWindow(ModalScreen[None]):
    """A plan; Escape closes it."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("escape,q,enter", "dismiss(None)", "Close"),
        Binding("y", "copy", "Copy", tooltip="Copy the plan"),
    ]

    def __init__(self, plan: str) -> None:
        super().__init__()
        self.plan = "\n".join(map(plain, plan.splitlines()))

    def compose(self) -> ComposeResult:
        with ScrollableContainer() as box:
            box.border_title = "How it is computed"
            box.border_subtitle = "Escape closes"
            yield Static(self.plan, markup=False)

    def on_mount(self) -> None:
        self.query_one(ScrollableContainer).focus()

    def action_copy(self) -> None:
        self.app.copy_to_clipboard(self.plan)
        self.notify("copied", timeout=2)
