"""Two models side by side: kinship by layer and block as a strip of cells, their facts and their scores."""

from typing import Any, ClassVar

from textual import work
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import VerticalScroll
from textual.content import Content
from textual.screen import ModalScreen
from textual.widgets import Static

from kinbase.errors import KinbaseError
from kinbase.query.details import Details, details
from kinbase.query.kinship import Kinship, by_layer, of_pair
from kinbase.query.models import Model
from kinbase.store import Connection
from kinbase.text import count, decimals
from kinbase.tui.context import context
from kinbase.tui.screens.command import CommandWindow
from kinbase.tui.screens.plot import KEY, offer_plot
from kinbase.tui.showing import content, figure, padded, plain
from kinbase.tui.widgets.scale import colour, ink

METRICS = ("pcc", "cs", "ed")
ORDER = ("attn", "mlp", "norm", "other", "embed", "head")
Answer = tuple[Details, Details, Kinship | None, list[dict[str, Any]]]


class CompareScreen(ModalScreen[None]):
    """What two models have in common, and where they differ."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("escape,q", "dismiss(None)", "Close"),
        Binding("m", "metric", "Metric"),
        Binding("p", "recipe", "Recipe", tooltip="The recipe of the first by the second"),
        KEY,
    ]

    def __init__(self, one: Model, other: Model) -> None:
        super().__init__()
        self.pair = (one, other)
        self.metric = "pcc"
        self.answer: Answer | None = None

    def compose(self) -> ComposeResult:
        with VerticalScroll() as box:
            box.border_title = Content.assemble(
                content(self.pair[0].name, width=34), " and ", content(self.pair[1].name, width=34)
            )
            box.border_subtitle = "m metric · p recipe · P plot · Escape closes"
            yield Static("reading…", markup=False)

    def on_mount(self) -> None:
        self.query_one(VerticalScroll).focus()
        self._read()

    @work(exclusive=True)
    async def _read(self) -> None:
        try:
            self.answer = await context(self).ask(self._ask)
        except KinbaseError as error:
            self.query_one(Static).update(content(error))
            return
        self._draw()

    def action_plot(self) -> None:
        offer_plot(self, "layers", [model.name for model in self.pair], "--metric", self.metric)

    def _ask(self, con: Connection) -> Answer:
        one, other = self.pair
        both = details(con, one.id), details(con, other.id)
        return *both, of_pair(con, one.name, other.name), by_layer(con, one.name, other.name)

    def on_resize(self) -> None:
        self._draw()

    def _draw(self) -> None:
        if self.answer is None:
            return
        one, other, whole, rows = self.answer
        width = max(self.query_one(VerticalScroll).scrollable_content_region.width - 1, 40)
        lines = [*self._whole(whole), Content(""), *self._strips(rows, width), Content("")]
        lines += [*_facts(one, other, width), Content(""), *_scores(one, other, width)]
        self.query_one(Static).update(Content("\n").join(lines))

    def _whole(self, whole: Kinship | None) -> list[Content]:
        if whole is None:
            return [
                Content(
                    "their kinship is not known: `kinbase kin` measures it, if their files are still there"
                )
            ]
        error = f" ± {whole.stderr:.4f}" if whole.stderr else ""
        part = f", over {100 * whole.coverage:.1f}% of the base" if whole.coverage is not None else ""
        values = [
            (f"{m} {figure(whole.value(m))}   ", "bold $primary" if m == self.metric else "") for m in METRICS
        ]
        return [Content.assemble(*values, (f"{whole.method}{error}{part}", "$foreground 65%"))]

    def _strips(self, rows: list[dict[str, Any]], width: int) -> list[Content]:
        """A line a block: a cell a layer, hundredths of the value where there is room, and the blocks outside of the layers."""
        if not rows:
            return [
                Content.styled(
                    "by layer nothing is known: this kinship was not measured tensor by tensor",
                    "$foreground 65%",
                )
            ]
        values = [row[self.metric] for row in rows if row[self.metric] is not None]
        most = max(map(abs, values), default=1.0) or 1.0
        layers = sorted({row["layer"] for row in rows if row["layer"] is not None})
        cell = 4 if len(layers) * 4 + 18 <= width else 2 if len(layers) * 2 + 18 <= width else 1
        each = -(
            -len(layers) * cell // max(width - 18, 8)
        )  # layers of one cell, where even one column each is too much
        at = {(row["block"], row["layer"]): row[self.metric] for row in rows}
        lines = []
        for block in ORDER:
            inside = [at.get((block, layer)) for layer in layers]
            outside = at.get((block, None))
            if all(value is None for value in [*inside, outside]):
                continue
            parts: list[Content | tuple[str, str]] = [(f"{block:<6}", "bold")]
            for start in range(0, len(inside), each) if any(value is not None for value in inside) else ():
                some = [value for value in inside[start : start + each] if value is not None]
                parts.append(self._cell(min(some, key=abs) if some else None, most, cell))
            if outside is not None:
                parts += [
                    (" " if layers else "", ""),
                    self._cell(outside, most, 4),
                    (" outside the layers", "$foreground 65%"),
                ]
            lines.append(Content.assemble(*parts))
        if layers:
            told = f"{'layer':<6}{layers[0]} to {layers[-1]}" + (
                f", the weakest of each {each}" if each > 1 else ""
            )
            lines.append(Content.styled(told, "$foreground 65%"))
        return lines

    def _cell(self, value: float | None, most: float, width: int) -> Content | tuple[str, str]:
        if value is None:
            return (f"{'?':>{width}}", "$foreground 40%")
        part = value / most if self.metric == "ed" else value
        back = colour(1 - part if self.metric == "ed" else part, self.app.current_theme.dark)
        shown = f"{round(100 * part)}" if width > 2 else ""
        return (f"{shown:>{width}}", f"{ink(back).hex} on {back.hex}")

    def action_metric(self) -> None:
        self.metric = METRICS[(METRICS.index(self.metric) + 1) % len(METRICS)]
        self._draw()

    def action_recipe(self) -> None:
        one, other = self.pair
        self.app.push_screen(CommandWindow(context(self).path, "recipe", one.name, "--among", other.name))


def _facts(one: Details, other: Details, width: int) -> list[Content]:
    room = max((width - 16) // 2, 12)
    said = [
        ("base", one.base and one.base.name, other.base and other.base.name),
        ("relation", one.relation, other.relation),
        ("made from", _parents(one), _parents(other)),
        ("parameters", count(one.parameters), count(other.parameters)),
        ("dtype", one.dtype, other.dtype),
        ("license", one.license, other.license),
        (
            "created",
            one.created_at and f"{one.created_at:%Y-%m-%d}",
            other.created_at and f"{other.created_at:%Y-%m-%d}",
        ),
        ("digest", one.digest, other.digest),
    ]
    lines = []
    for what, first, second in said:
        if first or second:
            mark, style = ("=", "$foreground 65%") if first == second else ("≠", "$accent")
            left, right = plain(first or "-", room), plain(second or "-", room)
            lines.append(
                Content.assemble(
                    (f"{what:<11}", "$foreground 65%"), (f"{mark} ", style), f"{padded(left, room)}  {right}"
                )
            )
    return lines


def _parents(found: Details) -> str:
    return " + ".join(dict.fromkeys(claim.parent.name for claim in found.parents if claim.relation != "base"))


def _scores(one: Details, other: Details, width: int) -> list[Content]:
    first = {(s.benchmark, s.metric, s.n_shot): s.value for s in one.scores}
    second = {(s.benchmark, s.metric, s.n_shot): s.value for s in other.scores}
    room = max(min(width - 36, 40), 12)
    lines = []
    places = decimals([value for value in (*first.values(), *second.values()) if value is not None])
    for key in sorted(first.keys() | second.keys(), key=str):
        benchmark, metric, shots = key
        name = plain(f"{benchmark} {metric}{f' {shots}-shot' if shots is not None else ''}", room)
        a, b = first.get(key), second.get(key)
        apart = f"{a - b:+.4f}" if a is not None and b is not None else ""
        lines.append(
            Content.assemble(
                f"{padded(name, room)}{figure(a, places):>10}{figure(b, places):>10}",
                (f"{apart:>11}", "$accent"),
            )
        )
    return lines
