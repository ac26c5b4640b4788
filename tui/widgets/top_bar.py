"""The first line of each screen: where one is, where one can go, the file, and what takes long."""

from dataclasses import dataclass

from textual.app import RenderResult
from textual.content import Content
from textual.events import Click
from textual.message import Message
from textual.reactive import reactive
from textual.widget import Widget

from kinbase.tui.context import Context, context
from kinbase.tui.showing import content, title

NAME = " kinbase "


class TopBar(Widget):
    """Tabs on the left, file and status on the right."""

    status: reactive[str] = reactive("")

    @dataclass
    class Chosen(Message):
        """A tab was clicked."""

        mode: str

    def __init__(self, mode: str) -> None:
        super().__init__()
        self.mode = mode

    @property
    def _app(self) -> Context:
        return context(self)

    def on_mount(self) -> None:
        self.watch(self._app, "status", self._show_status)

    def _show_status(self, status: str) -> None:
        self.status = status

    def _tabs(self) -> list[tuple[str, str]]:
        every = sum(len(title(mode)) + 4 for mode in self._app.MODES) + len(NAME)
        # What the database is doing matters more than the names of the other screens.
        narrow = self.size.width < every + max(len(self.status), 4) + 1
        return [
            (
                mode,
                f" {number} " if narrow and mode != self.mode else f" {number} {title(mode)} ",
            )
            for number, mode in enumerate(self._app.MODES, 1)
        ]

    def render(self) -> RenderResult:
        tabs = Content.assemble(
            (NAME, "bold $accent"),
            *(
                (label, "bold reverse $primary" if mode == self.mode else "$foreground 80%")
                for mode, label in self._tabs()
            ),
        )
        room = self.size.width - tabs.cell_length - 2
        right = (
            Content.styled(self.status, "bold $warning")
            if self.status
            else content(self._app.path.name, "$foreground 60%")
        )
        if right.cell_length > room:
            right = right.truncate(max(room, 0), ellipsis=True)
        return Content.assemble(tabs, " " * (room - right.cell_length + 1), right)

    def on_click(self, event: Click) -> None:
        x = len(NAME)
        for mode, label in self._tabs():
            if x <= event.x < x + len(label):
                self.post_message(self.Chosen(mode))
            x += len(label)
