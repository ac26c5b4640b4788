"""The second screen: kinship of any selection of models, ordered by clustering."""

from functools import partial
from typing import ClassVar

from textual import on, work
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Horizontal
from textual.content import Content
from textual.screen import Screen
from textual.widgets import Footer, Static

from kinbase.errors import KinbaseError
from kinbase.query import kinship
from kinbase.query.models import Model
from kinbase.store import Connection
from kinbase.tui.context import Context, context
from kinbase.tui.screens.model_picker import ModelPicker
from kinbase.tui.showing import content, figure, plural
from kinbase.tui.widgets.choice import Choice
from kinbase.tui.widgets.heatmap import Heatmap
from kinbase.tui.widgets.notice import Notice
from kinbase.tui.widgets.top_bar import TopBar

MOST = 200
"""Models one heatmap takes."""
FEW = 40
"""Models shown when nobody chose any."""


class KinshipScreen(Screen[None]):
    """The heatmap of the marked models, or of the current model and its nearest kin."""

    AUTO_FOCUS = "Heatmap, Notice"
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("m", "step('metric', 1)", "Metric", id="kinship.metric"),
        Binding("b", "step('block', 1)", "Block", id="kinship.block"),
        Binding("left_square_bracket", "step('layer', -1)", "Layer -", show=False, id="kinship.layer_before"),
        Binding(
            "right_square_bracket", "step('layer', 1)", "Layer", key_display="[ ]", id="kinship.layer_after"
        ),
        Binding("a", "add", "Add", id="kinship.add"),
        Binding("x", "remove", "Remove", id="kinship.remove"),
        Binding("enter", "open(0)", "Open", id="kinship.open_row"),
        Binding("c", "open(1)", "Column's model", show=False, id="kinship.open_column"),
        Binding("l", "lineage", "Lineage", show=False, id="kinship.lineage"),
        Binding("r", "reload", "Reload", show=False, id="kinship.reload"),
    ]

    def __init__(self) -> None:
        super().__init__()
        self.models: list[Model] = []
        self._shown_for: tuple[object, ...] = ()

    @property
    def _app(self) -> Context:
        return context(self)

    def compose(self) -> ComposeResult:
        yield TopBar("kinship")
        with Horizontal(id="choices"):
            yield Choice("metric", kinship.METRICS, id="metric")
            yield Choice("block", kinship.BLOCKS, id="block")
            yield Choice("layer", ["all"], id="layer")
        yield Heatmap()
        yield Notice()
        yield Static(id="pair", markup=False)
        yield Footer()

    def on_screen_resume(self) -> None:
        """Follow what was marked or chosen elsewhere since."""
        now = tuple(self._app.chosen) or ("kin of", self._app.current.id if self._app.current else None)
        if now != self._shown_for:
            self._shown_for = now
            self.action_reload(anew=True)

    def action_reload(self, anew: bool = False) -> None:
        if anew:
            self.models = list(self._app.chosen.values())
        self._read()

    @work(exclusive=True, group="heatmap")
    async def _read(self) -> None:
        notice, heatmap = self.query_one(Notice), self.query_one(Heatmap)
        block = self.query_one("#block", Choice).value
        layer = self.query_one("#layer", Choice).value
        current = self._app.current
        told = self.query_one("#pair", Static)
        told.update(Content.styled("reading…", "$foreground 65%"))
        try:
            table = await self._app.ask(
                partial(_matrix, self.models, current, block, int(layer) if layer != "all" else None)
            )
        except KinbaseError as error:
            told.update("")
            notice.tell(str(error), "r tries again.", heatmap)
            return
        self.models = table.models
        told.update("")  # the heatmap tells of the pair under its cursor
        if not table.models:
            notice.tell(
                "No kinship to show here.",
                "Mark models in Families with space, or add them here with a. "
                "Kinship is measured by `kinbase import --base` and `kinbase kin`.",
                heatmap,
            )
        elif len(table.models) == 1:
            notice.tell("One model alone has no kinship to show.", "Add another with a.", heatmap)
        else:
            notice.clear(heatmap)
        self.query_one("#layer", Choice).offer(["all", *map(str, range(table.layers))])
        heatmap.show(table, self.query_one("#metric", Choice).value)
        self._title(heatmap)

    def _title(self, heatmap: Heatmap) -> None:
        table = heatmap.table
        known, number = len(table.pairs), len(table.models)
        missing = number * (number - 1) // 2 - known
        heatmap.border_title = f"Kinship of {plural(number, 'model')}"
        heatmap.border_subtitle = (
            f"{plural(missing, 'pair')} not measured: `kinbase kin`" if missing else "ordered by clustering"
        )

    @on(Choice.Changed)
    def _switched(self, event: Choice.Changed) -> None:
        if event.choice.id == "metric":
            heatmap = self.query_one(Heatmap)
            heatmap.show(heatmap.table, event.value)
        elif self.models:
            self.action_reload()

    @on(Heatmap.Moved)
    def _moved(self) -> None:
        heatmap = self.query_one(Heatmap)
        models = heatmap.models
        if models is None:
            return
        pair = heatmap.table.pair(heatmap.row, heatmap.column)
        names = Content.assemble(
            content(models[0].name, "bold", 200), (" and ", "$accent"), content(models[1].name, "bold", 200)
        )
        if heatmap.row == heatmap.column:
            told = Content("the same model")
        elif pair is None:
            told = Content("not measured: `kinbase kin` with both names does, if their files are still there")
        else:
            error = f" ± {pair.stderr:.4f}" if pair.stderr else "" if pair.method == "exact" else " ± unknown"
            part = f" · covers {100 * pair.coverage:.1f}%" if pair.coverage is not None else ""
            part += ": says little of the two" if pair.is_doubtful else ""
            told = Content.assemble(
                *(
                    (f"{m} {figure(pair.value(m))}   ", "bold $primary" if m == heatmap.metric else "")
                    for m in kinship.METRICS
                ),
                (content(f"{pair.method}{error}{part}").plain, "$foreground 70%"),
            )
        self.query_one("#pair", Static).update(Content("\n").join([names, told]))

    # Keys.

    def action_step(self, choice: str, by: int) -> None:
        self.query_one(f"#{choice}", Choice).action_step(by)

    def action_open(self, which: int) -> None:
        models = self.query_one(Heatmap).models
        if models is not None:
            self._app.open_model(models[which])

    def action_lineage(self) -> None:
        models = self.query_one(Heatmap).models
        if models is not None:
            self._app.open_model(models[0], "lineage")

    def action_add(self) -> None:
        def found(model: Model | None) -> None:
            if model is not None and model.id not in {m.id for m in self.models}:
                self._set([*self.models, Model(model.id, model.name)])

        self.app.push_screen(ModelPicker("Add to the heatmap"), found)

    def action_remove(self) -> None:
        models = self.query_one(Heatmap).models
        if models is not None:
            self._set([model for model in self.models if model.id != models[0].id])

    def _set(self, models: list[Model]) -> None:
        """A selection made here is the one marked in Families, too, where anything is marked."""
        if self._app.chosen or len(models) > len(self.models):
            self._app.chosen = {model.id: model for model in models}
            self._shown_for = tuple(self._app.chosen)
        self.models = models
        self.action_reload()


def _matrix(
    models: list[Model], current: Model | None, block: str, layer: int | None, con: Connection
) -> kinship.KinshipMatrix:
    """Of several chosen models; of one, or of the current one, with its nearest kin; of nobody, the best measured family."""
    if len(models) < 2:
        one = models[0] if models else current
        models = kinship.relatives(con, one.id, FEW) if one else []
        models = models or kinship.best_measured(con, FEW)
    return kinship.matrix(con, models[:MOST], block, layer)
