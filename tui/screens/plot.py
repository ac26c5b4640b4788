"""Plotting what is on the screen, into a file or a browser, by `kinbase plot` in a process of its own."""

import asyncio
import atexit
import sys
from pathlib import Path
from shutil import rmtree
from tempfile import mkdtemp
from typing import Any, ClassVar

from textual import on, work
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Vertical
from textual.screen import ModalScreen, Screen
from textual.widgets import Input, Static

from kinbase.tui.context import context
from kinbase.tui.screens.save import complaint_about
from kinbase.tui.showing import content

ENDINGS = (".svg", ".png", ".html")
KEY = Binding(
    "P", "plot", "Plot", show=False, tooltip="Plot what is on the screen: a file, or the browser", id="plot"
)


class PlotWindow(ModalScreen[None]):
    """Asks for a file; Enter draws it, Ctrl+O draws a page and opens it in a browser. Escape stops and closes.

    In a browser the file is a download, and nothing is written on the server.
    """

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("escape", "dismiss(None)", "Close"),
        Binding("ctrl+o", "browse", "In a browser", priority=True),
    ]

    def __init__(self, path: Path, kind: str, names: list[str], options: list[str]) -> None:
        super().__init__()
        self.path, self.kind, self.names, self.options = path, kind, names, options
        self._confirmed = ""

    def compose(self) -> ComposeResult:
        with Vertical() as box:
            box.border_title = f"Plot: {self.kind}"
            yield Input(f"{self.kind}.svg", compact=True)
            also = "" if self.app.is_web else " Ctrl+O opens it in a browser instead."
            yield Static(
                f"The ending says the format: .svg, .png or .html.{also}", id="complaint", markup=False
            )

    def _tell(self, what: str) -> None:
        self.query_one("#complaint", Static).update(content(what))

    @on(Input.Submitted)
    def _submitted(self, event: Input.Submitted) -> None:
        path = Path(event.value.strip()).expanduser()
        if self.app.is_web:
            path = Path(self._folder(), path.name)
        complaint = complaint_about(path, ENDINGS)
        if not complaint and path.exists() and self._confirmed != event.value:
            self._confirmed = event.value
            complaint = f"{path.name} is there already: Enter again replaces it."
        if complaint:
            self._tell(complaint)
        else:
            self._draw(path, is_opened=False)

    def action_browse(self) -> None:
        if not self.app.is_web:
            self._draw(Path(self._folder(), f"{self.kind}.html"), is_opened=True)

    @staticmethod
    def _folder() -> str:
        """A folder that goes with the application: a browser may read the page later than it was opened."""
        folder = mkdtemp(prefix="kinbase-")
        atexit.register(rmtree, folder, ignore_errors=True)
        return folder

    @work(exclusive=True)
    async def _draw(self, path: Path, is_opened: bool) -> None:
        self._tell("drawing… Escape stops it")
        command = [
            "--db",
            str(self.path),
            "plot",
            self.kind,
            *self.options,
            "-o",
            str(path),
            "--",
            *self.names,
        ]
        started = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "kinbase", *command,
            stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.DEVNULL, stderr=asyncio.subprocess.PIPE,
        )  # fmt: skip
        try:
            _, said = await started.communicate()
        except asyncio.CancelledError:
            if started.returncode is None:
                started.terminate()
            raise
        if started.returncode:
            lines = said.decode(errors="replace").splitlines() or ["it could not be drawn"]
            self._tell(lines[-1].removeprefix("kinbase: "))
            return
        if is_opened:
            self.app.open_url(path.as_uri())
        elif self.app.is_web:
            self.app.deliver_binary(path, save_filename=path.name)
        self.app.notify(f"opened {path.name}" if is_opened else f"wrote {path.name}", markup=False, timeout=3)
        self.dismiss(None)


def offer_plot(screen: Screen[Any], kind: str, names: list[str], *options: str) -> None:
    """Ask where a plot goes: `kinbase plot KIND [OPTIONS] NAMES`."""
    screen.app.push_screen(PlotWindow(context(screen).path, kind, names, list(options)))
