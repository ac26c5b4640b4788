"""Finding a model by name: in a window of its own, and in the command palette."""

from collections.abc import Awaitable, Callable
from functools import partial
from typing import ClassVar

from textual import on, work
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.command import DiscoveryHit, Hit, Hits, Provider
from textual.containers import Vertical
from textual.content import Content
from textual.screen import ModalScreen
from textual.widgets import Input, OptionList, Static
from textual.widgets.option_list import Option

from kinbase.errors import KinbaseError
from kinbase.query.models import Model, search
from kinbase.tui.context import Context, context
from kinbase.tui.showing import content


class ModelPicker(ModalScreen[Model | None]):
    """Type a part of a name, take one of the models below."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("escape", "dismiss(None)", "Close"),
        Binding("down", "move(1)", "Next", show=False, priority=True),
        Binding("up", "move(-1)", "Previous", show=False, priority=True),
    ]

    def __init__(self, title: str) -> None:
        super().__init__()
        self.label = title
        self.found: list[Model] = []

    def compose(self) -> ComposeResult:
        with Vertical() as box:
            box.border_title = self.label
            yield Input(placeholder="part of a name", compact=True)
            yield OptionList(compact=True, markup=False)
            yield Static(id="complaint", markup=False)

    def on_mount(self) -> None:
        self._search("")

    @on(Input.Changed)
    def _typed(self, event: Input.Changed) -> None:
        self._search(event.value)

    def _search(self, typed: str) -> None:
        self._fill(typed)

    @work(exclusive=True, group="search")
    async def _fill(self, typed: str) -> None:
        complaint = self.query_one("#complaint", Static)
        try:
            self.found = await context(self).ask(partial(search, typed=typed.strip()))
        except KinbaseError as error:
            self.found = []
            complaint.update(content(error))
        else:
            complaint.update("" if self.found else "no model has this in its name")
        options = self.query_one(OptionList)
        options.clear_options()
        options.add_options([Option(content(model.name, width=200)) for model in self.found])
        if self.found:
            options.highlighted = 0

    def action_move(self, by: int) -> None:
        options = self.query_one(OptionList)
        if self.found:
            options.highlighted = max(0, min(len(self.found) - 1, (options.highlighted or 0) + by))

    @on(Input.Submitted)
    def _submitted(self) -> None:
        highlighted = self.query_one(OptionList).highlighted
        if highlighted is not None and self.found:
            self.dismiss(self.found[highlighted])

    @on(OptionList.OptionSelected)
    def _selected(self, event: OptionList.OptionSelected) -> None:
        self.dismiss(self.found[event.option_index])


class ModelCommands(Provider):
    """Models, and every action of the screen, in the command palette."""

    @property
    def _app(self) -> Context:
        return context(self.screen)

    def _actions(self) -> list[tuple[str, str, Callable[[], Awaitable[object]]]]:
        """What the keys of the screen and of its focused part do: name, key, and the doing of it."""
        found: dict[str, tuple[str, str, Callable[[], Awaitable[object]]]] = {}
        for active in self.screen.active_bindings.values():
            binding = active.binding
            moves = binding.action.startswith(
                ("cursor_", "scroll_", "move(", "page", "app.focus", "screen.focus")
            )
            if active.enabled and binding.description and not moves and binding.action != "command_palette":
                run = partial(self._app.run_action, binding.action, active.node)
                key = self._app.get_key_display(binding)
                found.setdefault(
                    binding.tooltip or binding.description, (binding.tooltip or binding.description, key, run)
                )
        return list(found.values())

    async def discover(self) -> Hits:
        for what, key, run in self._actions():
            yield DiscoveryHit(what, run, help=f"Key {key}")

    async def search(self, query: str) -> Hits:
        matcher = self.matcher(query)
        for what, key, run in self._actions():
            if (score := matcher.match(what)) > 0:
                yield Hit(score, matcher.highlight(what), run, help=f"Key {key}")
        if len(query.strip()) < 2:
            return
        try:
            found = await self._app.ask(partial(search, typed=query.strip(), limit=12))
        except KinbaseError:
            return  # the screen behind tells it
        for number, model in enumerate(found):
            # Not the matcher's highlight: it would look for markup in the name.
            shown = content(model.name, width=100)
            yield Hit(
                0.9 - number / 100,
                Content.assemble(shown),
                partial(self._app.open_model, model),
                text=shown.plain,
                help="Open this model",
            )
