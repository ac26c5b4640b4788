"""The fourth screen: queries over the views, guarded as `kinbase sql` is, and their results."""

import re
import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

from textual import on, work
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.screen import Screen
from textual.widgets import Footer, Static
from textual.worker import Worker

from kinbase.errors import KinbaseError
from kinbase.store import Connection
from kinbase.tui.context import Context, context
from kinbase.tui.screens.save import SaveWindow, saver
from kinbase.tui.showing import content, plural
from kinbase.tui.widgets.completion import words
from kinbase.tui.widgets.editor import Completions, Editor
from kinbase.tui.widgets.paged_table import WINDOW, PagedTable
from kinbase.tui.widgets.top_bar import TopBar


@dataclass
class Result:
    """The first rows of a query; `complete`: there are no others."""

    columns: list[str]
    rows: list[tuple[Any, ...]]
    complete: bool


def first_rows(query: str, con: Connection) -> Result:
    """Run `query` and read one window of its rows."""
    result = con.execute(query)
    if not result:  # nothing but a comment
        return Result([], [], True)
    columns = [column[0] for column in result.description or []]
    rows = result.fetchmany(WINDOW + 1) if columns else []
    return Result(columns, rows[:WINDOW], len(rows) <= WINDOW)


def window(query: str, offset: int, con: Connection) -> list[tuple[Any, ...]]:
    """The rows from `offset` on. The file was closed since: the query runs again, up to there."""
    return con.sql(_bare(query)).limit(WINDOW, offset).fetchall()


def how_many(query: str, con: Connection) -> int:
    """All rows of `query`."""
    ((number,),) = con.sql(_bare(query)).count("*").fetchall()
    return int(number)


def _bare(query: str) -> str:
    """The query without a last semicolon and what is said after it: it becomes a part of another one."""
    return re.sub(r";(?:\s|--[^\n]*|/\*.*?\*/)*\Z", "", query, flags=re.DOTALL)


class SqlScreen(Screen[None]):
    """An editor above, the result below."""

    AUTO_FOCUS = "Editor"
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("escape", "stop", "Stop", id="sql.stop"),
        Binding("ctrl+s", "save", "Save", id="sql.save"),
        Binding("ctrl+r", "reload", "Run again", show=False, id="sql.reload"),
    ]

    def __init__(self) -> None:
        super().__init__()
        self.query_shown = ""
        self._query: Worker[None] | None = None

    @property
    def _app(self) -> Context:
        return context(self)

    def compose(self) -> ComposeResult:
        yield TopBar("sql")
        yield Editor()
        yield Static(id="outcome", markup=False)
        yield PagedTable()
        yield Completions()
        yield Footer()

    def on_mount(self) -> None:
        editor = self.query_one(Editor)
        editor.text = "select name, family, parameters from models limit 1000"
        editor.move_cursor(editor.document.end)
        self._say("^j runs the query. It reads the database and nothing else.")
        self.query_one(PagedTable).border_title = "Result"
        self._learn()

    @work(group="words")
    async def _learn(self) -> None:
        try:
            self.query_one(Editor).words = await self._app.ask(words)
        except KinbaseError as error:
            self._say(str(error), "$error")

    def _say(self, what: str, style: str = "$foreground 65%") -> None:
        self.query_one("#outcome", Static).update(content(what, style))

    @property
    def running(self) -> bool:
        return self._query is not None and self._query.is_running

    # Running.

    @on(Editor.Run)
    def _run(self, event: Editor.Run) -> None:
        self._query = self._answer(event.query)

    @work(exclusive=True, group="query")
    async def _answer(self, query: str) -> None:
        table = self.query_one(PagedTable)
        self._say("running… Escape stops it")
        began = time.monotonic()
        try:
            result = await self._app.ask(partial(first_rows, query))
        except KinbaseError as error:
            self._say(str(error), "$error")
            return
        took = f"{time.monotonic() - began:.2f} s"
        self.query_shown = query
        table.show(result.columns, result.rows, len(result.rows))
        if not result.columns:
            self._say(f"done in {took}")
        elif result.complete:
            self._say(f"{plural(len(result.rows), 'row')} in {took}")
        else:
            self._say(f"the first {WINDOW} rows in {took}, counting the others…")
            try:
                number = await self._app.ask(partial(how_many, query))
            except KinbaseError as error:
                self._say(f"the first {WINDOW} rows in {took}; the others cannot be shown: {error}")
                return
            table.grow(number)
            self._say(f"{plural(number, 'row')}, the first in {took}")

    @on(PagedTable.Wanted)
    def _wanted(self, event: PagedTable.Wanted) -> None:
        # Rows scrolled past are no longer wanted.
        self._window(event.offset)

    @work(exclusive=True, group="window")
    async def _window(self, offset: int) -> None:
        table = self.query_one(PagedTable)
        try:
            table.give(offset, await self._app.ask(partial(window, self.query_shown, offset)))
        except KinbaseError as error:
            self._say(str(error), "$error")
        finally:
            table.forget(offset)

    def action_stop(self) -> None:
        if self._query is not None and self._query.is_running:
            self._query.cancel()
            self._say("stopped")
        else:
            self.query_one(Editor).focus()

    def action_reload(self) -> None:
        self.query_one(Editor).action_run()

    # Saving.

    def action_save(self) -> None:
        query = self.query_shown
        if not query:
            self._say("there is no result to save yet")
            return

        def named(path: Path | None) -> None:
            if path is not None:
                self._query = self._save(query, path)

        self.app.push_screen(SaveWindow(), named)

    @work(exclusive=True, group="query")
    async def _save(self, query: str, path: Path) -> None:
        self._say(f"saving {path}… Escape stops it")
        try:
            await self._app.ask(saver(query, path))
        except KinbaseError as error:
            self._say(str(error), "$error")
        else:
            self._say(f"saved {path}", "$success")
