"""The fifth screen: runs of evolution, how the scores and the kinship of the best went, and every child with its reason.

A run that goes on in another process is followed: the file is read again when it changed, and is open only
while it is asked.
"""

from functools import partial
from typing import TYPE_CHECKING, ClassVar, cast

from textual import on, work
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Horizontal, Vertical
from textual.content import Content
from textual.screen import Screen
from textual.widgets import Footer, OptionList
from textual.widgets.option_list import Option

from kinbase.errors import KinbaseError
from kinbase.query.models import Model
from kinbase.query.runs import COLUMNS, Run, Story, best, offspring, runs, story
from kinbase.tui.showing import content, plain, plural
from kinbase.tui.widgets.curve import Curve, Line
from kinbase.tui.widgets.notice import Notice
from kinbase.tui.widgets.paged_table import WINDOW, PagedTable
from kinbase.tui.widgets.top_bar import TopBar

if TYPE_CHECKING:
    from kinbase.tui.app import KinbaseApp

POLL = 1.0
"""Seconds between two looks at whether the file changed."""
MARKS = {"running": "▶", "finished": "■", "interrupted": "‖", "failed": "✗"}


class RunList(OptionList):
    """The runs; the chart and the table are of the highlighted one."""

    HELP = """\
Runs of evolution, those that go on first. **Up** and **down** choose one; a run that goes on is followed by itself.

- **Tab** goes to its children, **Enter** there opens one
- **k** shows the k best of the run as a heatmap, **r** reads again
"""


class Offspring(PagedTable):
    """The children of a run, the newest generation first."""

    HELP = """\
Every child of the run: its role (a pair of the best, or explored), parents and their kinship, its score, whether it was
kept, and why it was made. **Enter** opens it in Families.
"""
    MISSING: ClassVar[str] = "-"


class EvolutionScreen(Screen[None]):
    """Runs, their curves and their children."""

    AUTO_FOCUS = "RunList, Notice"
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("enter", "open", "Open", tooltip="The child under the cursor, in Families"),
        Binding("k", "kinship", "Kinship of the best"),
        Binding("r", "reload", "Reload"),
    ]

    def __init__(self) -> None:
        super().__init__()
        self.runs: list[Run] = []
        self.story: Story | None = None
        self.models: dict[int, Model | None] = {}
        """What the children became, by row of the table."""
        self._stamp: tuple[int, int] | None = None
        self._asked = False
        self._shown: str | None = None

    @property
    def _app(self) -> "KinbaseApp":
        return cast("KinbaseApp", self.app)

    def compose(self) -> ComposeResult:
        yield TopBar("evolution")
        with Vertical(id="evolution"):
            with Horizontal(id="course"):
                yield RunList(markup=False, compact=True)
                yield Curve()
            yield Offspring()
        yield Notice()
        yield Footer()

    def on_mount(self) -> None:
        self.query_one(RunList).border_title = "Runs"
        self.query_one(Curve).border_title = "Score and kinship by generation"
        self.query_one(Offspring).border_title = "Offspring"
        self.set_interval(POLL, self._follow)

    def on_screen_resume(self) -> None:
        self._follow()

    def _follow(self) -> None:
        """Read again when the file is not as it was read."""
        now = self._app.stamped()
        if self.is_current and (now != self._stamp or not self._asked):
            self.action_reload()

    def action_reload(self) -> None:
        self._stamp, self._asked = self._app.stamped(), True
        self._read()

    @property
    def run(self) -> Run | None:
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
    async def _read_story(self, run: Run) -> None:
        try:
            found = await self._app.ask(partial(story, run=run.name, page=WINDOW))
        except KinbaseError as error:
            self._app.complain(error)
            return
        self.story = found
        self._draw(run, found)

    def _draw(self, run: Run, found: Story) -> None:
        generations = found.generations
        lines = [
            Line(
                "best so far",
                "●",
                "$primary",
                [(g.number, g.best) for g in generations if g.best is not None],
            ),
            Line(
                "mean",
                "○",
                "$foreground 75%",
                [(g.number, g.mean) for g in generations if g.mean is not None],
                gaps=True,
            ),
        ]
        kinship = Line(
            "kinship of the best",
            "◆",
            "$accent",
            [(g.number, g.kinship) for g in generations if g.kinship is not None],
        )
        curve = self.query_one(Curve)
        curve.show([(lines, None), ([kinship], (0.0, 1.0))], "No generation is finished yet.")
        curve.border_subtitle = _outcome(run)
        table = self.query_one(Offspring)
        same = self._shown == run.name
        at = table.cursor if same else 0
        if same and table.number and found.number > table.number:
            at += (
                found.number - table.number if at else 0
            )  # the cursor stays on its child; at the top, on the newest
        self._shown = run.name
        table.show(COLUMNS, found.rows, found.number)
        table.border_subtitle = plural(found.number, "child").replace("childs", "children")
        self.models = dict(enumerate(found.models))
        if found.number:
            table.go(at)

    @on(PagedTable.Wanted)
    def _wanted(self, event: PagedTable.Wanted) -> None:
        run = self.run
        if run is not None:
            self._page(run, event.offset)

    @work(exclusive=True, group="page")
    async def _page(self, run: Run, offset: int) -> None:
        table = self.query_one(Offspring)
        try:
            rows, models = await self._app.ask(partial(offspring, run=run.name, limit=WINDOW, offset=offset))
        except KinbaseError as error:
            self._app.complain(error)
        else:
            table.give(offset, rows)
            self.models |= {offset + i: model for i, model in enumerate(models)}
        finally:
            table.forget(offset)

    # Keys.

    def on_option_list_option_selected(self, event: OptionList.OptionSelected) -> None:
        event.stop()
        self.query_one(Offspring).focus()

    def action_open(self) -> None:
        table = self.query_one(Offspring)
        if not table.number:
            return
        model = self.models.get(table.cursor)
        if model is not None:
            self._app.open_model(model)
        else:
            self._app.complain("this child is no model yet")

    def action_kinship(self) -> None:
        run = self.run
        if run is not None:
            self._choose_best(run)

    @work(exclusive=True, group="best")
    async def _choose_best(self, run: Run) -> None:
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


def _label(run: Run) -> Content:
    """Name, how it stands, how far it came."""
    done = f"{run.generations} gen" if run.generations is not None else "begun"
    score = f" · {run.best_score:.4g}" if run.best_score is not None else ""
    style = "bold $accent" if run.status == "running" else "bold" if run.status == "finished" else ""
    return Content.assemble(
        (f"{MARKS.get(run.status, '?')} ", "$accent" if run.status == "running" else "$foreground 65%"),
        content(run.name, style, 40),
        (f"\n  {plain(run.status)} · {done}{score}", "$foreground 65%"),
    )


def _outcome(run: Run) -> Content:
    """Strategy, and why it ended or what is best."""
    known = f"best {plain(run.best, 40)}" if run.best else ""
    why = plain(run.reason, 80) if run.reason and run.status != "running" else ""
    return content(" · ".join(filter(None, (run.strategy, why, known))))
