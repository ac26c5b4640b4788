"""The application: five screens over one database file, and what they share.

Shared are the current model, the models chosen for the heatmap, and the way to ask the database.
"""

import asyncio
import contextlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, TypeVar

from textual.app import App
from textual.binding import Binding, BindingType
from textual.reactive import reactive
from textual.screen import Screen

from kinbase.errors import KinbaseError
from kinbase.query import models
from kinbase.query.models import Model
from kinbase.query.standing import Standing
from kinbase.store import Connection
from kinbase.tui.question import Question
from kinbase.tui.screens.evolution import EvolutionScreen
from kinbase.tui.screens.families import FamiliesScreen
from kinbase.tui.screens.kinship import KinshipScreen
from kinbase.tui.screens.lineage import LineageScreen
from kinbase.tui.screens.model_picker import ModelCommands, ModelPicker
from kinbase.tui.screens.sql import SqlScreen
from kinbase.tui.showing import content, title
from kinbase.tui.themes import DARK, LIGHT
from kinbase.tui.widgets.model_list import OpenModel
from kinbase.tui.widgets.top_bar import TopBar

Answer = TypeVar("Answer")


class KinbaseApp(App[None]):
    """The terminal UI over the database at `db_path`."""

    TITLE = "Kinbase"
    CSS_PATH = "kinbase.tcss"
    MODES: ClassVar[dict[str, str | Callable[[], Screen[Any]]]] = {
        "families": FamiliesScreen,
        "kinship": KinshipScreen,
        "lineage": LineageScreen,
        "sql": SqlScreen,
        "evolution": EvolutionScreen,
    }
    DEFAULT_MODE = "families"
    COMMANDS = App.COMMANDS | {ModelCommands}
    BINDINGS: ClassVar[list[BindingType]] = [
        *(
            Binding(f"{number},f{number + 1}", f"show('{mode}')", title(mode), show=False, priority=False)
            for number, mode in enumerate(MODES, 1)
        ),
        Binding(
            "ctrl+f", "find", "Find a model", show=False, tooltip="Find a model by name, wherever you are"
        ),
        Binding("ctrl+t", "theme", "Light or dark", show=False),
        Binding("f1", "help", "Help", tooltip="What the focused part does, and its keys"),
    ]

    status: reactive[str] = reactive("", init=False)
    """What the database is being asked, when that takes long enough to tell."""

    current: reactive[Model | None] = reactive(None, init=False)
    """The model the screens are about."""

    def __init__(self, db_path: str | Path) -> None:
        super().__init__()
        self.path = Path(db_path)
        self.chosen: dict[int, Model] = {}
        self._standing: tuple[tuple[int, int] | None, Standing] | None = None
        self.turn = asyncio.Lock()
        """Held by what the Families screen asks: two such questions at once would both be late."""
        self._threads = ThreadPoolExecutor(max_workers=4, thread_name_prefix="question")
        self._questions: set[Question[Any]] = set()
        self._stamp = self.stamped()
        self.register_theme(DARK)
        self.register_theme(LIGHT)
        self.theme = DARK.name

    def on_mount(self) -> None:
        self.set_interval(0.2, self._tick)

    def on_unmount(self) -> None:
        for question in self._questions:
            question.cancel()
        self._threads.shutdown(wait=False, cancel_futures=True)

    # Asking.

    async def ask(self, work: Callable[[Connection], Answer], quiet: bool = False) -> Answer:
        """What `work` returns, from a thread of its own; cancelled with the task that awaits it.

        Raises KinbaseError. Whoever asks shows the message where the answer would have been.
        """
        question = Question(self.path, work, quiet)
        self._questions.add(question)
        answer = await question.answer(self._threads)
        self._questions.discard(question)
        return answer

    @property
    def standing(self) -> Standing | None:
        """Where all models stand, if that is known of the file as it is now."""
        return self._standing[1] if self._standing and self._standing[0] == self.stamped() else None

    async def learn_standing(self, sort: str) -> None:
        """Read where all models stand and their order by `sort`, so that lists of them need not."""
        known, stamp = self.standing, self.stamped()
        if known is None or sort not in known.places:
            with contextlib.suppress(KinbaseError):  # whoever asks next tells it
                self._standing = (
                    stamp,
                    await self.ask(partial(models.learn, sort=sort, known=known), quiet=True),
                )

    def _tick(self) -> None:
        """Tell of long questions, drop finished ones, stop again what was cancelled as it began."""
        slow = ""
        for question in list(self._questions):
            if question.done:
                self._questions.discard(question)
            elif question.cancelled:
                question.cancel()
            elif question.quiet:
                continue
            elif question.waiting:
                slow = f"waiting for another process to finish writing ({question.seconds:.0f} s)"
            elif question.seconds > 0.4 and not slow:
                slow = f"working ({question.seconds:.0f} s)"
        if not slow and self._stamp != self.stamped() and not isinstance(self.screen, EvolutionScreen):
            slow = "the database changed: r reads it again"
        self.status = slow

    def watch_status(self, status: str) -> None:
        for bar in self.screen.query(TopBar):
            bar.status = status

    def read_anew(self) -> None:
        """What is shown from now on is of the file as it is now."""
        self._stamp = self.stamped()

    def stamped(self) -> tuple[int, int] | None:
        """What changes when another process writes the file; None when there is none."""
        try:
            about = self.path.stat()
        except OSError:
            return None
        return about.st_mtime_ns, about.st_size

    def complain(self, error: BaseException | str) -> None:
        """A message nobody has a better place for."""
        self.notify(str(content(error)), severity="error", markup=False, timeout=8)

    # Going places.

    def action_show(self, mode: str) -> None:
        if self.current_mode != mode and not isinstance(self.screen, ModelPicker):
            self.switch_mode(mode)

    def on_top_bar_chosen(self, message: TopBar.Chosen) -> None:
        self.action_show(message.mode)

    def on_open_model(self, message: OpenModel) -> None:
        self.open_model(message.model, message.mode)

    def open_model(self, model: Model, mode: str = "families") -> None:
        """Make `model` the current one and show it in `mode`: the screens watch `current`."""
        self.current = model
        if self.current_mode != mode:
            self.switch_mode(mode)

    def choose(self, model: Model) -> bool:
        """Put a model into the heatmap's selection or take it out; whether it is in now."""
        if model.id in self.chosen:
            del self.chosen[model.id]
            return False
        self.chosen[model.id] = model
        return True

    def action_find(self) -> None:
        def found(model: Model | None) -> None:
            if model is not None:
                self.open_model(model)

        if not isinstance(self.screen, ModelPicker):
            self.push_screen(ModelPicker("Find a model"), found)

    def action_theme(self) -> None:
        self.theme = LIGHT.name if self.current_theme.dark else DARK.name

    def action_help(self) -> None:
        if self.screen.query("HelpPanel"):
            self.action_hide_help_panel()
        else:
            self.action_show_help_panel()
