"""A short list of models, each of which can be opened."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from textual.binding import Binding, BindingType
from textual.content import Content
from textual.message import Message
from textual.widgets import OptionList
from textual.widgets.option_list import Option

from kinbase.query.models import Model


@dataclass
class OpenModel(Message):
    """Make `model` the current one and show it on the screen `mode`."""

    model: Model
    mode: str = "families"


class ModelList(OptionList):
    """Rows of models; Enter or a click opens one."""

    HELP = "Models. **Enter** opens one, **l** shows its lineage."
    BINDINGS: ClassVar[list[BindingType]] = [Binding("l", "lineage", "Lineage", show=False)]

    def __init__(self, *, id: str | None = None) -> None:
        super().__init__(id=id, compact=True, markup=False)
        self.models: list[Model] = []

    def fill(self, rows: Sequence[tuple[Model, Content]]) -> None:
        """Replace what is listed."""
        self.models = [model for model, _ in rows]
        self.clear_options()
        self.add_options([Option(shown) for _, shown in rows])

    def on_option_list_option_selected(self, event: OptionList.OptionSelected) -> None:
        event.stop()
        self.post_message(OpenModel(self.models[event.option_index]))

    def action_lineage(self) -> None:
        if self.highlighted is not None:
            self.post_message(OpenModel(self.models[self.highlighted], "lineage"))
