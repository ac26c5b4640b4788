"""The fourth screen: queries over the views, guarded as `kinbase sql` is, and their results."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from io import StringIO
from pathlib import Path
from shutil import rmtree
from tempfile import mkdtemp
from threading import Event
from typing import Any, ClassVar, TypeVar

from textual import on, work
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.screen import Screen
from textual.widgets import Static
from textual.worker import Worker

from kinbase.errors import KinbaseError, QueryError
from kinbase.query.catalogue import Catalogue, catalogue
from kinbase.query.models import named
from kinbase.store import Connection
from kinbase.store.worker import Worker as Apart
from kinbase.tui.context import Context, context
from kinbase.tui.screens.catalogue import CatalogueWindow
from kinbase.tui.screens.copy import offer_copies
from kinbase.tui.screens.plan import PlanWindow
from kinbase.tui.screens.save import SaveWindow
from kinbase.tui.showing import content, plural
from kinbase.tui.widgets.completion import words
from kinbase.tui.widgets.editor import Completions, Editor
from kinbase.tui.widgets.footer import KeysFooter
from kinbase.tui.widgets.paged_table import WINDOW, PagedTable
from kinbase.tui.widgets.top_bar import TopBar

Answer = TypeVar("Answer")


@dataclass
class Result:
    """The first rows of a query; `complete`: there are no others."""

    columns: list[str]
    rows: list[tuple[Any, ...]]
    complete: bool


class Asked:
    """Questions to the worker that answers for the screen, each of which can be stopped while it is computed.

    The guarded connection that a question comes with is only held: it tells that nobody writes.
    """

    def __init__(self, path: Path) -> None:
        self.worker = Apart(path, wait=2.0)

    def first_rows(self, query: str, stop: Event, con: Connection) -> Result:
        """Run `query` and read one window of its rows."""
        columns, _, rows = self.worker.ask(query, part=(WINDOW + 1, 0), stop=stop)
        return Result(columns, rows[:WINDOW], len(rows) <= WINDOW)

    def window(self, query: str, offset: int, stop: Event, con: Connection) -> list[tuple[Any, ...]]:
        """The rows from `offset` on."""
        return self.worker.ask(query, part=(WINDOW, offset), stop=stop)[2][:WINDOW]

    def how_many(self, query: str, stop: Event, con: Connection) -> int:
        """All rows of `query`."""
        return int(self.worker.ask(query, part="count", stop=stop)[2][0][0])

    def save(self, query: str, path: Path, stop: Event, con: Connection) -> None:
        """Write the rows of `query` to `path`."""
        self.worker.ask(query, part=path, stop=stop)


class SqlScreen(Screen[None]):
    """An editor above, the result below."""

    AUTO_FOCUS = "Editor"
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("f1", "app.help", "Keys", show=True, priority=True, tooltip="The keys of this screen"),
        Binding("escape", "stop", "Stop", id="sql.stop"),
        Binding("ctrl+s", "save", "Save", id="sql.save"),
        Binding(
            "f7",
            "catalogue",
            "Names",
            priority=True,
            tooltip="Views, columns and macros, with what they mean",
            id="sql.catalogue",
        ),
        Binding(
            "f8",
            "open",
            "Open",
            show=False,
            priority=True,
            tooltip="Open the model of the row under the cursor",
            id="sql.open",
        ),
        Binding(
            "ctrl+y",
            "copy",
            "Copy",
            show=False,
            priority=True,
            tooltip="Copy the row, the query or the page of the result",
            id="sql.copy",
        ),
        Binding(
            "ctrl+l",
            "explain",
            "Explain",
            show=False,
            priority=True,
            tooltip="How the query is computed",
            id="sql.explain",
        ),
        Binding("ctrl+r", "reload", "Run again", show=False, id="sql.reload"),
    ]

    def __init__(self) -> None:
        super().__init__()
        self.query_shown = ""
        self.catalogue = Catalogue()
        self._query: Worker[None] | None = None
        self._asked: Asked | None = None

    @property
    def _app(self) -> Context:
        return context(self)

    def compose(self) -> ComposeResult:
        yield TopBar("sql")
        yield Editor()
        yield Static(id="outcome", markup=False)
        yield PagedTable()
        yield Completions()
        yield KeysFooter()

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
            self.catalogue = await self._app.ask(catalogue)
            self.query_one(Editor).words = words(self.catalogue)
        except KinbaseError as error:
            self._say(str(error), "$error")

    async def _ask(self, question: Callable[..., Answer], *about: Any) -> Answer:
        """What the worker answers; whoever stops waiting stops it."""
        if self._asked is None:
            self._asked = Asked(self._app.path)
        stop = Event()
        try:
            return await self._app.ask(partial(question, self._asked, *about, stop))
        finally:
            stop.set()

    def on_unmount(self) -> None:
        if self._asked is not None:
            self._asked.worker.close()

    def _say(self, what: str, style: str = "$foreground 65%") -> None:
        self.query_one("#outcome", Static).update(content(what, style))

    @property
    def running(self) -> bool:
        return self._query is not None and self._query.is_running

    # Running.

    @on(Editor.Run)
    def _run(self, event: Editor.Run) -> None:
        self._query = self._answer(event.query, event.origin)

    @work(exclusive=True, group="query")
    async def _answer(self, query: str, origin: tuple[int, int] = (0, 0)) -> None:
        table = self.query_one(PagedTable)
        self._say("running… Escape stops it")
        began = time.monotonic()
        try:
            result = await self._ask(Asked.first_rows, query)
        except KinbaseError as error:
            self._tell_wrong(error, origin)
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
                number = await self._ask(Asked.how_many, query)
            except KinbaseError as error:
                self._say(f"the first {WINDOW} rows in {took}; the others cannot be shown: {error}")
                return
            table.grow(number)
            self._say(f"{plural(number, 'row')}, the first in {took}")

    def _tell_wrong(self, error: KinbaseError, origin: tuple[int, int]) -> None:
        """What is wrong with a query, and the cursor where it is."""
        where = ""
        if isinstance(error, QueryError):
            where = f"line {origin[0] + error.line}: "
            self.query_one(Editor).show_error(error, origin)
        self._say(f"{where}{error}", "$error")

    def action_explain(self) -> None:
        """How the query in the editor, or what is selected of it, is computed."""
        editor = self.query_one(Editor)
        query = editor.selected_text.strip() or editor.text.strip()
        if query:
            self._query = self._explain(query, editor.place_of(query))

    @work(exclusive=True, group="query")
    async def _explain(self, query: str, origin: tuple[int, int]) -> None:
        self._say("asking how it is computed… Escape stops it")
        head = "explain "
        try:
            result = await self._ask(Asked.first_rows, head + query)
        except KinbaseError as error:
            if isinstance(error, QueryError) and error.line == 1 and error.text.startswith(head):
                error = QueryError(str(error), 1, error.text[len(head) :], max(0, error.at - len(head)))
            self._tell_wrong(error, origin)
            return
        self._say("")
        plan = "\n".join(str(row[-1]) for row in result.rows)
        self.app.push_screen(PlanWindow(plan))

    @on(PagedTable.Wanted)
    def _wanted(self, event: PagedTable.Wanted) -> None:
        # Rows scrolled past are no longer wanted.
        self._window(event.offset)

    @work(exclusive=True, group="window")
    async def _window(self, offset: int) -> None:
        table = self.query_one(PagedTable)
        try:
            table.give(offset, await self._ask(Asked.window, self.query_shown, offset))
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

    # Names, models, copies.

    def action_catalogue(self) -> None:
        editor = self.query_one(Editor)

        def taken(name: str | None) -> None:
            editor.focus()
            if name:
                editor.insert(name)

        self.app.push_screen(CatalogueWindow(self.catalogue), taken)

    def action_open(self) -> None:
        """The first value of the row under the cursor that is a model's name."""
        row = self.query_one(PagedTable).row_under_cursor()
        self._open_first([value for value in row if value])

    @work(exclusive=True, group="open")
    async def _open_first(self, values: list[str]) -> None:
        try:
            found = await self._app.ask(partial(named, labels=values))
        except KinbaseError as error:
            self._say(str(error), "$error")
            return
        if found is None:
            self._say("no value of this row is the name of a model", "$error")
        else:
            self._app.open_model(found)

    def action_copy(self) -> None:
        table, editor = self.query_one(PagedTable), self.query_one(Editor)
        row = table.row_under_cursor()
        rows = [value or "" for value in row]
        offers = [("query", editor.selected_text or editor.text)]
        if rows:
            offers += [
                ("row", "\t".join(rows)),
                *((f"{name}", value) for name, value in zip(table.columns, rows, strict=False) if value),
            ]
        offer_copies(self, offers[:9])

    # Saving.

    def action_save(self) -> None:
        query = self.query_shown
        if not query:
            self._say("there is no result to save yet")
            return
        if self.app.is_web:
            self._query = self._deliver(query)
            return

        def named(path: Path | None) -> None:
            if path is not None:
                self._query = self._save(query, path)

        self.app.push_screen(SaveWindow(), named)

    @work(exclusive=True, group="query")
    async def _deliver(self, query: str) -> None:
        """To the browser, as a download: whoever looks on from elsewhere names no place on this machine."""
        self._say("preparing the download… Escape stops it")
        folder = Path(mkdtemp(prefix="kinbase-"))
        try:
            await self._ask(Asked.save, query, folder / "result.csv")
            text = (folder / "result.csv").read_text(encoding="utf-8")
        except (KinbaseError, OSError) as error:
            self._say(str(error), "$error")
            return
        finally:
            rmtree(folder, ignore_errors=True)
        self.app.deliver_text(StringIO(text), save_filename="result.csv", mime_type="text/csv")
        self._say("result.csv is on its way", "$success")

    @work(exclusive=True, group="query")
    async def _save(self, query: str, path: Path) -> None:
        self._say(f"saving {path}… Escape stops it")
        try:
            await self._ask(Asked.save, query, path)
        except KinbaseError as error:
            self._say(str(error), "$error")
        else:
            self._say(f"saved {path}", "$success")


def _cells(columns: list[str], row: list[str]) -> list[tuple[str, str]]:
    return [(name, value) for name, value in zip(columns, row, strict=False) if value]
