"""Saving a whole result, however long, as CSV or Parquet."""

from collections.abc import Callable
from pathlib import Path
from typing import ClassVar

from textual import on
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Vertical
from textual.screen import ModalScreen
from textual.widgets import Input, Static

from kinbase.errors import KinbaseError
from kinbase.store import Connection, Store
from kinbase.text import write_rows
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
        complaint = _complaint(path)
        if not complaint and path.exists() and self._confirmed != event.value:
            self._confirmed = event.value
            complaint = f"{path.name} is there already: Enter again replaces it."
        if complaint:
            self.query_one("#complaint", Static).update(content(complaint))
        else:
            self.dismiss(path)


def _complaint(path: Path) -> str:
    if path.suffix.lower() not in (".csv", ".parquet"):
        return "Name a file that ends in .csv or .parquet."
    if not path.parent.is_dir():
        return f"There is no folder {path.parent}."
    if path.is_dir():
        return f"{path} is a folder."
    return ""


def saver(query: str, path: Path) -> Callable[[Connection], None]:
    """Work that runs `query` and writes its rows to `path`; no half file is left behind."""

    def save(con: Connection) -> None:
        part = path.with_name(path.name + ".part")
        try:
            if path.suffix.lower() == ".parquet":
                Store.write_parquet(con, query, str(path))
                return
            result = con.execute(query)
            with part.open("w", encoding="utf-8", newline="") as out:
                write_rows([c[0] for c in result.description or []], Store.stream(result), "csv", out)
            part.replace(path)
        except OSError as error:
            raise KinbaseError(f"{path} could not be written: {error.strerror}") from error
        finally:
            part.unlink(missing_ok=True)

    return save
