"""One setting on one line: arrows or a click step through its values."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from textual.app import RenderResult
from textual.binding import Binding, BindingType
from textual.content import Content
from textual.events import Click
from textual.message import Message
from textual.reactive import reactive
from textual.widget import Widget


class Choice(Widget, can_focus=True):
    """`label ◂ value ▸`."""

    HELP = "A setting. **Left** and **right**, or a click on an arrow, step through its values."
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("left", "step(-1)", "Previous", show=False),
        Binding("right,space,enter", "step(1)", "Next", show=False),
    ]

    value: reactive[str] = reactive("", layout=True, init=False)

    @dataclass
    class Changed(Message):
        """Another value was chosen."""

        choice: "Choice"
        value: str

    def __init__(self, label: str, values: Sequence[str], *, id: str, value: str = "") -> None:
        super().__init__(id=id)
        self.label = label
        self.values = list(values)
        self.set_reactive(Choice.value, value or self.values[0])

    def get_content_width(self, *_: object) -> int:
        return len(self.label) + 5 + max(map(len, self.values))

    def get_content_height(self, *_: object) -> int:
        return 1

    def render(self) -> RenderResult:
        return Content.assemble(
            (self.label + " ", "$foreground 65%"), ("◂ ", "$accent"), (self.value, "bold"), (" ▸", "$accent")
        )

    def watch_value(self, value: str) -> None:
        self.post_message(self.Changed(self, value))

    def offer(self, values: Sequence[str]) -> None:
        """Other values to choose from; the present one stays if it is among them."""
        self.values = list(values)
        if self.value not in self.values:
            self.value = self.values[0]

    def action_step(self, by: int) -> None:
        self.value = self.values[(self.values.index(self.value) + by) % len(self.values)]

    def on_click(self, event: Click) -> None:
        self.action_step(-1 if event.x <= len(self.label) + 2 else 1)
