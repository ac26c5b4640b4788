"""What all screens share: the way to ask the database, the current model, and the models chosen for the heatmap.

The application is a Context; screens and widgets know it as that, and never as the application that shows them.
"""

import asyncio
import contextlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any, TypeVar, cast

from textual.app import App
from textual.message_pump import MessagePump
from textual.reactive import reactive
from textual.screen import ModalScreen

from kinbase.errors import KinbaseError
from kinbase.query import models
from kinbase.query.models import Model
from kinbase.query.orders import Orders
from kinbase.store import Connection
from kinbase.tui import settings
from kinbase.tui.question import Question
from kinbase.tui.showing import content

Answer = TypeVar("Answer")


class Context(App[None]):
    """An application over the database at `db_path`."""

    status: reactive[str] = reactive("", init=False)
    """What the database is being asked, when that takes long enough to tell."""

    current: reactive[Model | None] = reactive(None, init=False)
    """The model the screens are about."""

    def __init__(self, db_path: str | Path) -> None:
        super().__init__()
        self.path = Path(db_path)
        self.chosen: dict[int, Model] = {}
        self._unmarked: dict[int, Model] = {}
        self._orders: tuple[tuple[int, int] | None, Orders] | None = None
        self.turn = asyncio.Lock()
        """Held by what the Families screen asks: two such questions at once would both be late."""
        self._threads = ThreadPoolExecutor(max_workers=4, thread_name_prefix="question")
        self._questions: set[Question[Any]] = set()
        self._stamp = self.stamped()
        self.wrong_settings = ""
        """What is wrong with the file of settings, until it was told."""
        try:
            self.settings = settings.load()
        except KinbaseError as error:
            self.settings, self.wrong_settings = settings.Settings(), str(error)

    def on_mount(self) -> None:
        self.set_interval(0.2, self._tick)
        if self.wrong_settings:
            self.complain(self.wrong_settings)

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
    def orders(self) -> Orders | None:
        """Where all models stand, if that is known of the file as it is now."""
        return self._orders[1] if self._orders and self._orders[0] == self.stamped() else None

    async def learn_orders(self, sort: str) -> None:
        """Read where all models stand and their order by `sort`, so that lists of them need not."""
        known, stamp = self.orders, self.stamped()
        if known is None or sort not in known.places:
            with contextlib.suppress(KinbaseError):  # whoever asks next tells it
                self._orders = (
                    stamp,
                    await self.ask(partial(models.ordered, sort=sort, known=known), quiet=True),
                )

    def _tick(self) -> None:
        """Tell of long questions, drop finished ones, stop again what was cancelled as it began."""
        if not self.screen_stack:  # it is being closed
            return
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
        if not slow and self._stamp != self.stamped() and not getattr(self.screen, "FOLLOWS", False):
            slow = "the database changed: r reads it again"
        self.status = slow

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

    async def learn_scores(self) -> None:
        """Read the scores of all models, beside where they stand."""
        known = self.orders
        if known is not None:
            with contextlib.suppress(KinbaseError):
                await self.ask(partial(models.scored, known=known), quiet=True)

    # Going places.

    def action_show(self, mode: str) -> None:
        if self.current_mode != mode and not isinstance(self.screen, ModalScreen):
            self.switch_mode(mode)

    def open_model(self, model: Model, mode: str = "families") -> None:
        """Make `model` the current one and show it in `mode`: the screens watch `current`."""
        self.current = model
        if self.current_mode != mode:
            self.switch_mode(mode)

    def remember(self, **changed: object) -> None:
        """Keep a setting for the next time; a file that is wrong is not written over."""
        for key, value in changed.items():
            setattr(self.settings, key, value)
        if self.wrong_settings:
            return
        try:
            settings.save(self.settings)
        except KinbaseError as error:
            self.complain(error)

    def unmark(self) -> int:
        """Take all models out of the heatmap's selection; when none is in, put back those that were. How many are in now."""
        self.chosen, self._unmarked = ({}, self.chosen) if self.chosen else (self._unmarked, {})
        return len(self.chosen)

    def choose(self, model: Model) -> bool:
        """Put a model into the heatmap's selection or take it out; whether it is in now."""
        if model.id in self.chosen:
            del self.chosen[model.id]
            return False
        self.chosen[model.id] = model
        return True


def context(node: MessagePump) -> Context:
    """What a screen or a widget shares with the others."""
    return cast(Context, node.app)
