"""A command of Kinbase about the current model, run beside the application and shown where one is: recipe, check, suggest.

It is the command line's own page, made by a process of its own, so that no tensor library comes into this one.
"""

import asyncio
import sys
from pathlib import Path
from typing import ClassVar

from textual import work
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import VerticalScroll
from textual.screen import ModalScreen
from textual.widgets import Static

from kinbase.tui.showing import content, plain

FRAME = 10
"""Columns of the terminal that are not the answer's: borders, blanks, a scrollbar, and what shows of the screen behind."""
LONGEST = 400_000
"""Characters of an answer that are shown."""


class CommandWindow(ModalScreen[None]):
    """`kinbase --db FILE COMMAND...` and what it says; Escape stops it and closes the window."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("escape,q", "dismiss(None)", "Close"),
        Binding("y", "copy", "Copy", tooltip="Copy what it says"),
    ]

    def __init__(self, path: Path, *command: str) -> None:
        super().__init__()
        self.path, self.command = path, command
        self.told = ""
        self.code: int | None = None

    def compose(self) -> ComposeResult:
        with VerticalScroll() as box:
            box.border_title = content(f"kinbase {' '.join(self.command)}", width=70)
            box.border_subtitle = "Escape closes"
            yield Static("working…", markup=False)

    def on_mount(self) -> None:
        self.query_one(VerticalScroll).focus()
        self._run(self.app.size.width - FRAME)

    @work(exclusive=True)
    async def _run(self, width: int) -> None:
        started = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "kinbase", "--db", str(self.path), "--width", str(max(width, 40)), *self.command,
            stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
        )  # fmt: skip
        try:
            out, said = await started.communicate()
        except asyncio.CancelledError:
            if started.returncode is None:
                started.terminate()
            raise
        self.code = started.returncode
        lines = [
            *said.decode(errors="replace").splitlines(),
            *out.decode(errors="replace")[:LONGEST].splitlines(),
        ]
        self.told = "\n".join(map(plain, lines)) or "nothing to tell"
        self.query_one(Static).update(self.told)

    def action_copy(self) -> None:
        self.app.copy_to_clipboard(self.told)
        self.notify("copied", timeout=2)
