"""The second screen: kinship of any selection of models, ordered by clustering."""

from functools import partial
from typing import ClassVar

from textual import on, work
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Horizontal
from textual.content import Content
from textual.screen import Screen
from textual.widgets import Static

from kinbase.errors import KinbaseError
from kinbase.query import kinship
from kinbase.query.models import Model
from kinbase.store import Connection
from kinbase.tui.context import Context, context
from kinbase.tui.screens.compare import CompareScreen
from kinbase.tui.screens.copy import offer_copies
from kinbase.tui.screens.model_picker import ModelPicker
from kinbase.tui.screens.plot import KEY, offer_plot
from kinbase.tui.showing import content, figure, plural
from kinbase.tui.widgets.choice import Choice
from kinbase.tui.widgets.footer import KeysFooter
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
        Binding(
            "d",
            "compare",
            "Compare",
            tooltip="The pair under the cursor, layer by layer",
            id="kinship.compare",
        ),
        Binding(
            "n", "end(True)", "Nearest", show=False, tooltip="Go to the most akin pair", id="kinship.nearest"
        ),
        Binding(
            "e",
            "end(False)",
            "Least akin",
            show=False,
            tooltip="Go to the least akin pair",
            id="kinship.least",
        ),
        Binding(
            "y",
            "copy",
            "Copy",
            show=False,
            tooltip="Copy names, value or the whole matrix",
            id="kinship.copy",
        ),
        Binding("c", "open(1)", "Column's model", show=False, id="kinship.open_column"),
        Binding("l", "lineage", "Lineage", show=False, id="kinship.lineage"),
        Binding("r", "reload", "Reload", show=False, id="kinship.reload"),
        KEY,
    ]

    def __init__(self) -> None:
        super().__init__()
        self.models: list[Model] = []
        self._shown_for: tuple[object, ...] = ()
        self._anew = False
        """Whether other models are to be shown: the cursor then goes to the current one."""

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
        yield KeysFooter()

    def on_screen_resume(self) -> None:
        """Follow what was marked or chosen elsewhere since."""
        now = tuple(self._app.chosen) or ("kin of", self._app.current.id if self._app.current else None)
        if now != self._shown_for:
            self._shown_for = now
            self.action_reload(anew=True)

    def action_reload(self, anew: bool = False) -> None:
        if anew:
            self.models = list(self._app.chosen.values())
            self._anew = True
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
        if self._anew and current is not None:
            self._anew = False
            row = next((i for i, model in enumerate(table.models) if model.id == current.id), None)
            if row is not None:
                heatmap.go(row, 0 if row else min(1, len(table.models) - 1))
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
        self.query_one("#pair", Static).update(Content("\n").join([names, told, self._group(heatmap)]))

    def _group(self, heatmap: Heatmap) -> Content:
        """The kinship of all shown, and the nearest and the least akin of them."""
        square = heatmap.table
        known = square.known(heatmap.metric)
        if len(square.models) < 3 or not known:
            return Content("")
        values = {place: pair.value(heatmap.metric) or 0.0 for place, pair in known.items()}
        mean = sum(values.values()) / len(values)
        akin = sorted(values, key=lambda place: values[place], reverse=heatmap.metric != "ed")
        ends = f"n nearest {figure(values[akin[0]])} · e least {figure(values[akin[-1]])}"
        pairs = f"{len(values)} of {square.possible} pairs"
        return Content.styled(f"group {heatmap.metric} {figure(mean)} ({pairs}) · {ends}", "$foreground 70%")

    # Keys.

    def action_end(self, nearest: bool) -> None:
        """Go to the pair that is most, or least, akin."""
        heatmap = self.query_one(Heatmap)
        known = heatmap.table.known(heatmap.metric)
        if known:
            best = max if nearest != (heatmap.metric == "ed") else min
            heatmap.go(*best(known, key=lambda place: known[place].value(heatmap.metric) or 0.0))

    def action_compare(self) -> None:
        models = self.query_one(Heatmap).models
        if models is not None and models[0].id != models[1].id:
            self.app.push_screen(CompareScreen(*models))

    def action_copy(self) -> None:
        heatmap = self.query_one(Heatmap)
        models = heatmap.models
        if models is None:
            return
        pair = heatmap.table.pair(heatmap.row, heatmap.column)
        value = pair.value(heatmap.metric) if pair else None
        rows = ["\t".join(["", *heatmap.table.names])]
        for model, row in zip(
            heatmap.table.models, heatmap.table.values(heatmap.metric).tolist(), strict=True
        ):
            rows.append("\t".join([model.name, *("" if v != v else f"{v:.6g}" for v in row)]))
        offers = [
            ("row's model", models[0].name),
            ("column's model", models[1].name),
            ("matrix", "\n".join(rows)),
        ]
        offer_copies(self, offers + ([("value", repr(value))] if value is not None else []))

    def action_plot(self) -> None:
        names = [model.name for model in self.query_one(Heatmap).table.models]
        if len(names) > 1:
            metric, block, layer = (
                self.query_one(f"#{what}", Choice).value for what in ("metric", "block", "layer")
            )
            of_layer = ["--layer", layer] if layer != "all" else []
            offer_plot(self, "heatmap", names, "--metric", metric, "--block", block, *of_layer)

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
