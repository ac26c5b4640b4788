"""The application: five screens over one database file."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

from textual.app import App
from textual.binding import Binding, BindingType
from textual.screen import ModalScreen, Screen

from kinbase.query.models import Model
from kinbase.tui.context import Context
from kinbase.tui.screens.families import FamiliesScreen
from kinbase.tui.screens.keys import KeysWindow, keys_of
from kinbase.tui.screens.model_picker import ModelCommands, ModelPicker
from kinbase.tui.showing import title
from kinbase.tui.themes import DARK, LIGHT
from kinbase.tui.widgets.model_list import OpenModel
from kinbase.tui.widgets.model_table import ModelTable
from kinbase.tui.widgets.model_tree import ModelTree
from kinbase.tui.widgets.top_bar import TopBar


def screen_of(mode: str) -> type[Screen[Any]]:
    """The screen of a mode. All but the first one are imported when they are asked for: it comes up sooner."""
    if mode == "kinship":
        from kinbase.tui.screens.kinship import KinshipScreen

        return KinshipScreen
    if mode == "lineage":
        from kinbase.tui.screens.lineage import LineageScreen

        return LineageScreen
    if mode == "sql":
        from kinbase.tui.screens.sql import SqlScreen

        return SqlScreen
    if mode == "evolution":
        from kinbase.tui.screens.evolution import EvolutionScreen

        return EvolutionScreen
    return FamiliesScreen


def _new(mode: str) -> Screen[Any]:
    return screen_of(mode)()


def actions_with_keys() -> list[tuple[str, str, str]]:
    """The actions that can have other keys: name, keys by default, what it does."""
    from kinbase.tui.widgets.editor import Editor
    from kinbase.tui.widgets.heatmap import Heatmap

    found = []
    for where in (KinbaseApp, *map(screen_of, KinbaseApp.MODES), ModelTree, ModelTable, Heatmap, Editor):
        for binding in Binding.make_bindings(getattr(where, "BINDINGS", ())):
            if binding.id:
                found.append((binding.id, binding.key, binding.tooltip or binding.description))
    merged: dict[str, tuple[str, str, str]] = {}
    for name, key, what in found:
        before = merged.get(name)
        merged[name] = (
            name,
            f"{before[1]},{key}" if before and key not in before[1].split(",") else key,
            what,
        )
    return list(merged.values())


class KinbaseApp(Context):
    """The terminal UI over the database at `db_path`."""

    TITLE = "Kinbase"
    CSS_PATH = "kinbase.tcss"
    MODES: ClassVar[dict[str, str | Callable[[], Screen[Any]]]] = {
        mode: partial(_new, mode) for mode in ("families", "kinship", "lineage", "sql", "evolution")
    }
    DEFAULT_MODE = "families"
    COMMANDS = App.COMMANDS | {ModelCommands}
    BINDINGS: ClassVar[list[BindingType]] = [
        *(
            Binding(f"{number}", f"show('{mode}')", title(mode), show=False)
            for number, mode in enumerate(MODES, 1)
        ),
        # From everywhere: an editor takes digits, and some of the F keys too.
        *(
            Binding(f"f{number + 1}", f"show('{mode}')", title(mode), show=False, priority=True)
            for number, mode in enumerate(MODES, 1)
        ),
        Binding(
            "ctrl+f",
            "find",
            "Find a model",
            show=False,
            tooltip="Find a model by name, wherever you are",
            id="find",
        ),
        Binding("ctrl+t", "theme", "Light or dark", show=False, id="theme"),
        Binding(
            "question_mark", "help", "Keys", key_display="?", tooltip="The keys of this screen", id="help"
        ),
        Binding(
            "f1", "help", "Keys", show=False, priority=True, tooltip="The keys of this screen", id="help"
        ),
    ]

    def __init__(self, db_path: str | Path) -> None:
        super().__init__(db_path)
        self.register_theme(DARK)
        self.register_theme(LIGHT)
        self.theme = self.settings.theme
        if self.settings.keys:
            names = {name for name, _, _ in actions_with_keys()}
            if wrong := sorted(self.settings.keys.keys() - names):
                self.wrong_settings = (
                    f"config.toml: no action is called {', '.join(wrong)}: `kinbase config keys` lists them"
                )
            self.set_keymap(dict(self.settings.keys))

    def on_top_bar_chosen(self, message: TopBar.Chosen) -> None:
        self.action_show(message.mode)

    def on_open_model(self, message: OpenModel) -> None:
        self.open_model(message.model, message.mode)

    def action_find(self) -> None:
        def found(model: Model | None) -> None:
            if model is not None:
                self.open_model(model)

        if not isinstance(self.screen, ModalScreen):
            self.push_screen(ModelPicker("Find a model"), found)

    def action_theme(self) -> None:
        self.theme = LIGHT.name if self.current_theme.dark else DARK.name
        self.remember(theme=self.theme)

    def action_help(self) -> None:
        if isinstance(self.screen, KeysWindow):
            self.screen.dismiss(None)
        elif not isinstance(self.screen, ModalScreen):
            self.push_screen(KeysWindow(keys_of(self.screen)))
