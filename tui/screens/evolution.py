"""The fifth screen: runs of evolution, how the scores and the kinship of the best went, and every child with its reason.

A run that goes on in another process is followed: the file is read again when it changed, and is open only
while it is asked.
"""

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import ClassVar

from textual import on, work
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Horizontal, Vertical
from textual.content import Content
from textual.screen import Screen
from textual.widgets import OptionList, Static
from textual.widgets.option_list import Option

from kinbase.errors import KinbaseError
from kinbase.query.models import Model
from kinbase.query.runs import (
    FinishedGeneration,
    Offspring,
    Progress,
    RunSummary,
    best,
    count_offspring,
    generations,
    offspring,
    progress,
    runs,
)
from kinbase.store import Connection
from kinbase.tui.context import Context, context
from kinbase.tui.screens.plot import KEY, offer_plot
from kinbase.tui.showing import content, plain, plural, span
from kinbase.tui.widgets.curve import Curve, Series
from kinbase.tui.widgets.footer import KeysFooter
from kinbase.tui.widgets.notice import Notice
from kinbase.tui.widgets.paged_table import WINDOW, PagedTable
from kinbase.tui.widgets.top_bar import TopBar

POLL = 1.0
"""Seconds between two looks at whether the file changed."""
MARKS = {"running": "▶", "finished": "■", "interrupted": "‖", "failed": "✗"}


COLUMNS = ("gen", "child", "score", "kept", "role", "kinship", "reason", "parents", "status")


@dataclass
class Story:
    """What is shown of one run: its generations, how many children it has, and the first of them."""

    generations: list[FinishedGeneration]
    number: int
    page: list[Offspring]
    progress: Progress | None


class RunList(OptionList):
    """The runs; the chart and the table are of the highlighted one."""

    HELP = """\
Runs of evolution, those that go on first. **Up** and **down** choose one; a run that goes on is followed by itself.

- **Tab** goes to its children, **Enter** there opens one
- **k** shows the k best of the run as a heatmap, **r** reads again
"""


class OffspringTable(PagedTable):
    """The children of a run, the newest generation first."""

    HELP = """\
Every child of the run: its role (a pair of the best, or explored), parents and their kinship, its score, whether it was
kept, and why it was made. **Enter** opens it in Families.
"""
    MISSING: ClassVar[str] = "-"


class EvolutionScreen(Screen[None]):
    """Runs, their curves and their children."""

    FOLLOWS = True
    """It reads again by itself when the file changes."""
    AUTO_FOCUS = "RunList, Notice"
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding(
            "enter", "open", "Open", tooltip="The child under the cursor, in Families", id="evolution.open"
        ),
        Binding("k", "kinship", "Kinship of the best", id="evolution.kinship"),
        Binding("r", "reload", "Reload", id="evolution.reload"),
        KEY,
    ]

    def __init__(self) -> None:
        super().__init__()
        self.runs: list[RunSummary] = []
        self.models: dict[int, Model | None] = {}
        """What the children became, by row of the table."""
        self._stamp: tuple[int, int] | None = None
        self._asked = False
        self._shown: str | None = None
        self._progress: tuple[RunSummary, Progress | None] | None = None

    @property
    def _app(self) -> Context:
        return context(self)

    def compose(self) -> ComposeResult:
        yield TopBar("evolution")
        with Vertical(id="evolution"):
            with Horizontal(id="course"):
                yield RunList(markup=False, compact=True)
                yield Curve()
            yield OffspringTable()
            yield Static(id="reason", markup=False)
        yield Notice()
        yield KeysFooter()

    def on_mount(self) -> None:
        self.query_one(RunList).border_title = "Runs"
        self.query_one(Curve).border_title = "Score and kinship by generation"
        self.query_one(OffspringTable).border_title = "Offspring"
        self.set_interval(POLL, self._follow)

    def on_screen_resume(self) -> None:
        self._follow()

    def _follow(self) -> None:
        """Read again when the file is not as it was read."""
        self._tell_course()
        now = self._app.stamped()
        if self.is_current and (now != self._stamp or not self._asked):
            self.action_reload()

    def action_reload(self) -> None:
        self._stamp, self._asked = self._app.stamped(), True
        self._read()

    @property
    def run(self) -> RunSummary | None:
        """The highlighted one."""
        at = self.query_one(RunList).highlighted
        return self.runs[at] if at is not None and at < len(self.runs) else None

    # Reading.

    @work(exclusive=True, group="runs")
    async def _read(self) -> None:
        notice, whole = self.query_one(Notice), self.query_one("#evolution")
        try:
            found = await self._app.ask(runs)
        except KinbaseError as error:
            notice.tell(str(error), "r tries again.", whole)
            notice.focus()
            return
        if not found:
            self.runs = []
            notice.tell(
                "There is no run of evolution yet.",
                "`kinbase evolve` makes one, and is followed here.",
                whole,
            )
            notice.focus()
            return
        hidden = not whole.display
        notice.clear(whole)
        chosen = self.run.name if self.run else None
        self.runs = found
        view = self.query_one(RunList)
        if hidden:
            view.focus()
        with self.prevent(OptionList.OptionHighlighted):
            view.clear_options()
            view.add_options([Option(_label(run)) for run in found])
            view.highlighted = next((i for i, run in enumerate(found) if run.name == chosen), 0)
        self._tell()

    @on(OptionList.OptionHighlighted)
    def _highlighted(self) -> None:
        self._tell()

    def _tell(self) -> None:
        run = self.run
        if run is not None:
            self._read_story(run)

    @work(exclusive=True, group="story")
    async def _read_story(self, run: RunSummary) -> None:
        try:
            story = await self._app.ask(partial(_story, run.name))
        except KinbaseError as error:
            self._app.complain(error)
            return
        self._draw(run, story)

    def _draw(self, run: RunSummary, story: "Story") -> None:
        done = story.generations
        best_so_far = [(g.generation, g.best_so_far) for g in done if g.best_so_far is not None]
        mean = [(g.generation, g.mean_score) for g in done if g.mean_score is not None]
        akin = [(g.generation, g.top_kinship) for g in done if g.top_kinship is not None]
        lines = [
            Series("best so far", "●", "$primary", best_so_far),
            Series("mean", "○", "$foreground 75%", mean, gaps=True),
        ]
        kinship = Series("kinship of the best", "◆", "$accent", akin)
        curve = self.query_one(Curve)
        curve.show([(lines, None), ([kinship], (0.0, 1.0))], "No generation is finished yet.")
        curve.border_subtitle = _outcome(run)
        table = self.query_one(OffspringTable)
        same = self._shown == run.name
        at = table.cursor if same else 0
        if same and table.number and story.number > table.number:
            at += (
                story.number - table.number if at else 0
            )  # the cursor stays on its child; at the top, on the newest
        self._shown = run.name
        table.show(COLUMNS, [_row(child) for child in story.page], story.number)
        self._progress = run, story.progress
        self._tell_course()
        table.border_subtitle = plural(story.number, "child").replace("childs", "children")
        self.models = {i: child.model for i, child in enumerate(story.page)}
        if story.number:
            table.go(at)

    def _tell_course(self) -> None:
        """Where the run is, above its children: the time goes on between two looks at the file."""
        if self._progress is not None:
            told = _course(*self._progress, datetime.now(UTC).replace(tzinfo=None))
            self.query_one(OffspringTable).border_title = f"Offspring · {told}" if told else "Offspring"

    @on(PagedTable.Wanted)
    def _wanted(self, event: PagedTable.Wanted) -> None:
        run = self.run
        if run is not None:
            self._page(run, event.offset)

    @work(exclusive=True, group="page")
    async def _page(self, run: RunSummary, offset: int) -> None:
        table = self.query_one(OffspringTable)
        try:
            page = await self._app.ask(partial(offspring, run=run.name, limit=WINDOW, offset=offset))
        except KinbaseError as error:
            self._app.complain(error)
        else:
            table.give(offset, [_row(child) for child in page])
            self.models |= {offset + i: child.model for i, child in enumerate(page)}
        finally:
            table.forget(offset)

    @on(PagedTable.Moved)
    def _moved(self, event: PagedTable.Moved) -> None:
        """All of what the columns may have cut of the child under the cursor."""
        row = self.query_one(OffspringTable).row_under_cursor()
        if not row:
            return
        told = dict(zip(COLUMNS, row, strict=True))
        lines = [
            Content.assemble((told["child"] or "", "bold"), f"  {told['parents'] or ''}"),
            content(told["reason"] or "no reason is told", "$foreground 75%"),
        ]
        self.query_one("#reason", Static).update(Content("\n").join(lines))

    # Keys.

    def on_option_list_option_selected(self, event: OptionList.OptionSelected) -> None:
        event.stop()
        self.query_one(OffspringTable).focus()

    def action_open(self) -> None:
        table = self.query_one(OffspringTable)
        if not table.number:
            return
        model = self.models.get(table.cursor)
        if model is not None:
            self._app.open_model(model)
        else:
            self._app.complain("this child is no model yet")

    def action_plot(self) -> None:
        if self.run is not None:
            offer_plot(self, "evolution", [self.run.name])

    def action_kinship(self) -> None:
        run = self.run
        if run is not None:
            self._choose_best(run)

    @work(exclusive=True, group="best")
    async def _choose_best(self, run: RunSummary) -> None:
        try:
            models = await self._app.ask(partial(best, run=run.name))
        except KinbaseError as error:
            self._app.complain(error)
            return
        if models:
            self._app.chosen = {model.id: model for model in models}
            self._app.action_show("kinship")
        else:
            self._app.complain("no generation of this run is finished yet")


def _label(run: RunSummary) -> Content:
    """Name, how it stands, how far it came."""
    done = f"{run.generations} gen" if run.generations is not None else "begun"
    score = f" · {run.best_score:.4g}" if run.best_score is not None else ""
    style = "bold $accent" if run.status == "running" else "bold" if run.status == "finished" else ""
    return Content.assemble(
        (f"{MARKS.get(run.status, '?')} ", "$accent" if run.status == "running" else "$foreground 65%"),
        content(run.name, style, 40),
        (f"\n  {plain(run.status)} · {done}{score}", "$foreground 65%"),
    )


def _outcome(run: RunSummary) -> Content:
    """Strategy, and why it ended or what is best."""
    known = f"best {plain(run.best, 40)}" if run.best else ""
    why = plain(run.reason, 80) if run.reason and run.status != "running" else ""
    return content(" · ".join(filter(None, (run.strategy, why, known))))


def _story(run: str, con: Connection) -> Story:
    return Story(
        generations(con, run), count_offspring(con, run), offspring(con, run, WINDOW), progress(con, run)
    )


def _course(run: RunSummary, progress: Progress | None, now: datetime) -> str:
    """How far a run is, how long it has taken, and how long its generation will yet."""
    took = span(((run.ended_at if run.status != "running" else None) or now) - run.started_at)
    if run.status != "running":
        return f"took {took}" if run.ended_at else ""
    if progress is None:
        return f"choosing who is merged · {took} so far"
    left = span(timedelta(seconds=progress.left)) if progress.left else ""
    told = (
        f"generation {progress.generation}: {progress.done} of {progress.children} children · {took} so far"
    )
    return f"{told} · about {left} left of it" if left else told


def _row(child: Offspring) -> tuple[object, ...]:
    """One child in COLUMNS."""
    return (
        child.generation, child.child, child.score, "kept" if child.kept else "", child.role, child.kinship,
        "; ".join(filter(None, (child.reason, child.problem))), " + ".join(child.parents or []), child.status,
    )  # fmt: skip
