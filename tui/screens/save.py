"""Saving a whole result, however long, as CSV or Parquet."""

from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar

from textual import on
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Vertical
from textual.screen import ModalScreen
from textual.widgets import Input, Static

from kinbase.tui.showing import content


class SaveWindow(ModalScreen[Path | None]):
    """Asks for a file name; its ending says the format."""

    BINDINGS: ClassVar[list[BindingType]] = [Binding("escape", "dismiss(None)", "Close")]

    def __init__(self) -> None:
        super().__init__()
        self._confirmed = ""

    def compose(self) -> ComposeResult:
        with Vertical() as box:
            box.border_title = "Save the result"
            yield Input("result.csv", compact=True)
            yield Static(
                "The ending says the format: .csv or .parquet. All rows are saved.",
                id="complaint",
                markup=False,
            )

    @on(Input.Submitted)
    def _submitted(self, event: Input.Submitted) -> None:
        path = Path(event.value.strip()).expanduser()
        complaint = complaint_about(path, (".csv", ".parquet"))
        if not complaint and path.exists() and self._confirmed != event.value:
            self._confirmed = event.value
            complaint = f"{path.name} is there already: Enter again replaces it."
        if complaint:
            self.query_one("#complaint", Static).update(content(complaint))
        else:
            self.dismiss(path)


def complaint_about(path: Path, endings: Sequence[str]) -> str:
    """Why nothing can be written to `path`, which has one of `endings`; nothing where it can."""
    if path.suffix.lower() not in endings:
        return f"Name a file that ends in {', '.join(endings[:-1])} or {endings[-1]}."
    if not path.parent.is_dir():
        return f"There is no folder {path.parent}."
    if path.is_dir():
        return f"{path} is a folder."
    return ""
