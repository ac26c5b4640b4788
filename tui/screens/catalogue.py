"""The views, columns and macros that a query can name, with what they mean, in a window over the SQL screen."""

from typing import ClassVar

from textual import on
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Vertical
from textual.content import Content
from textual.screen import ModalScreen
from textual.widgets import Input, OptionList, Static
from textual.widgets.option_list import Option

from kinbase.query.catalogue import Catalogue


class CatalogueWindow(ModalScreen[str | None]):
    """Type a part of a name or of a description; Enter puts the name into the query."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("escape", "dismiss(None)", "Close"),
        Binding("down", "move(1)", "Next", show=False, priority=True),
        Binding("up", "move(-1)", "Previous", show=False, priority=True),
    ]

    def __init__(self, known: Catalogue) -> None:
        super().__init__()
        self.lines: list[tuple[str, str, Content]] = []
        """What Enter inserts, what is searched, what is shown."""
        for view in known.views:
            self._add(view.name, view.name, "", view.says, "bold $primary")
            for column in view.columns:
                self._add(column.name, f"  {column.name}", column.type, column.says, "")
        for macro in known.macros:
            call = f"{macro.name}({', '.join(macro.parameters)})"
            self._add(call, call, "", macro.says.partition(": ")[2] or macro.says, "bold $accent")
        self.names: list[str] = []
        self.meanings: list[Content] = []

    def _add(self, name: str, shown: str, kind: str, says: str, style: str) -> None:
        about = "  ".join(filter(None, (kind, says)))
        line = Content.assemble((shown, style), (f"  {about}" if about else "", "$foreground 65%"))
        self.lines.append((name, f"{shown} {says}".lower(), line))

    def compose(self) -> ComposeResult:
        with Vertical() as box:
            box.border_title = "Views, columns and macros"
            box.border_subtitle = "Enter inserts the name"
            yield Input(placeholder="part of a name or of what it means", compact=True)
            yield OptionList(compact=True, markup=False)
            yield Static(id="meaning", markup=False)

    def on_mount(self) -> None:
        self._fill("")

    @on(Input.Changed)
    def _typed(self, event: Input.Changed) -> None:
        self._fill(event.value)

    def _fill(self, typed: str) -> None:
        words = typed.lower().split()
        found = [line for line in self.lines if all(word in line[1] for word in words)]
        self.names = [name for name, _, _ in found]
        self.meanings = [shown for _, _, shown in found]
        options = self.query_one(OptionList)
        options.clear_options()
        options.add_options([Option(shown) for _, _, shown in found])
        if found:
            options.highlighted = 0

    def action_move(self, by: int) -> None:
        options = self.query_one(OptionList)
        if self.names:
            options.highlighted = max(0, min(len(self.names) - 1, (options.highlighted or 0) + by))

    @on(OptionList.OptionHighlighted)
    def _tell(self, event: OptionList.OptionHighlighted) -> None:
        """The line under the cursor, whole."""
        self.query_one("#meaning", Static).update(self.meanings[event.option_index])

    @on(Input.Submitted)
    @on(OptionList.OptionSelected)
    def _taken(self) -> None:
        at = self.query_one(OptionList).highlighted
        if at is not None and at < len(self.names):
            self.dismiss(self.names[at])
