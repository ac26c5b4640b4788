"""The third screen: where a model comes from and what came of it, drawn as lines of descent."""

from functools import partial
from typing import ClassVar

from textual import on, work
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import VerticalScroll
from textual.content import Content
from textual.screen import Screen
from textual.widgets import OptionList, Static
from textual.widgets.option_list import Option

from kinbase.errors import KinbaseError
from kinbase.query.models import Model, roots
from kinbase.query.pedigree import Pedigree, around, common, draw
from kinbase.store import Connection
from kinbase.tui.context import Context, context
from kinbase.tui.screens.model_picker import ModelPicker
from kinbase.tui.screens.plot import KEY, offer_plot
from kinbase.tui.showing import content, plain, plural
from kinbase.tui.widgets.choice import Choice
from kinbase.tui.widgets.footer import KeysFooter
from kinbase.tui.widgets.notice import Notice
from kinbase.tui.widgets.top_bar import TopBar


class LineView(OptionList):
    """Models from the oldest down, with the lines that join parents and children."""

    HELP = """\
Lines of descent: the oldest first, each model under its parents, with its generation counted from the one in focus.

- **Enter** puts a model into the focus, **Backspace** goes back, **o** opens it in Families
- **c** looks for the ancestors it shares with another model; **Escape** leaves that
- **+** and **-** show more or fewer generations below
"""


class LineageScreen(Screen[None]):
    """Ancestors and descendants of the current model; common ancestors of two."""

    AUTO_FOCUS = "LineView, Notice"
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("o", "open", "Open", id="lineage.open"),
        Binding("c", "common", "Common ancestors", id="lineage.common"),
        Binding("plus,equals_sign", "step(1)", "Deeper", key_display="+", show=False, id="lineage.deeper"),
        Binding("minus", "step(-1)", "Less deep", show=False, id="lineage.shallower"),
        Binding("k", "kinship", "Kinship", show=False, id="lineage.kinship"),
        Binding("backspace", "back", "Back", id="lineage.back"),
        Binding("escape", "leave", "Leave", show=False, id="lineage.leave"),
        Binding("r", "reload", "Reload", show=False, id="lineage.reload"),
        KEY,
    ]

    def __init__(self) -> None:
        super().__init__()
        self.focus_id: int | None = None
        self.other: Model | None = None
        self.line: Pedigree | None = None
        self.rows: list[int] = []
        self.trail: list[Model] = []

    @property
    def _app(self) -> Context:
        return context(self)

    def compose(self) -> ComposeResult:
        yield TopBar("lineage")
        yield Choice("generations below", ["1", "2", "3", "4", "6", "10"], id="depth", value="3")
        yield LineView(markup=False, compact=True)
        yield Notice()
        with VerticalScroll(id="claims"):
            yield Static(markup=False)
        yield KeysFooter()

    def on_mount(self) -> None:
        self.watch(self._app, "current", self._follow, init=False)

    def on_screen_resume(self) -> None:
        self._follow()

    def _follow(self) -> None:
        current = self._app.current
        if not self.is_current or (current is not None and current.id == self.focus_id):
            return
        self.other = None
        self.focus_id = current.id if current else None
        if current is not None:
            self.trail.append(current)
            del self.trail[:-50]
        self.action_reload()

    def action_plot(self) -> None:
        if self.line is not None and self._app.current is not None:
            offer_plot(
                self, "tree", [self._app.current.name], "--depth", self.query_one("#depth", Choice).value
            )

    def action_reload(self) -> None:
        self._read()

    @work(exclusive=True, group="line")
    async def _read(self) -> None:
        notice, view = self.query_one(Notice), self.query_one(LineView)
        depth = int(self.query_one("#depth", Choice).value)
        at = self.under_cursor
        try:
            line = await self._app.ask(partial(_line, self.focus_id, self.other, depth))
        except KinbaseError as error:
            line = None
            notice.tell(str(error), "r tries again.", view)
        else:
            if line is None:
                notice.tell("The database is empty.", "`kinbase import` brings models in.", view)
            else:
                notice.clear(view)
        self.line = line
        self.query_one("#claims").display = line is not None
        if line is not None:
            self._draw(line, at if self.other or self.focus_id is None else None)

    def on_resize(self) -> None:
        if self.line is not None:
            self._draw(self.line, self.under_cursor)

    def _draw(self, line: Pedigree, at: int | None) -> None:
        view = self.query_one(LineView)
        drawn = draw(line)
        self.rows = [row.id for row in drawn]
        view.clear_options()
        # A wide drawing would push the names out of sight: they start at half of the width at most.
        rails = max(view.size.width // 2, 20)
        view.add_options(
            [Option(self._label(line, row.id, row.rails.rstrip()[:rails], view.size.width)) for row in drawn]
        )
        wanted = at if at in self.rows else line.focus[0]
        if wanted in self.rows:
            view.highlighted = self.rows.index(wanted)
            self.call_after_refresh(view.scroll_to_highlight)
        above, below = (
            sum(g < 0 for g in line.generation.values()),
            sum(g > 0 for g in line.generation.values()),
        )
        if self.other is not None:
            view.border_title = "Common ancestors"
            near = ", ".join(plain(line.names[id_], 30) for id_ in sorted(line.nearest)[:3])
            view.border_subtitle = (
                f"{plural(len(line.common), 'ancestor')} shared, nearest: {near}"
                if line.common
                else "no ancestor is shared"
            )
        else:
            view.border_title = Content.assemble(
                "Lineage of ", content(line.names.get(line.focus[0], ""), width=40)
            )
            more = "+" if line.more_down else ""
            view.border_subtitle = (
                f"{plural(above, 'ancestor')}{'+' if line.more_up else ''}, {below}{more} below"
            )

    def _label(self, line: Pedigree, id_: int, rails: str, width: int) -> Content:
        generation = line.generation[id_]
        style = "bold $accent" if id_ in line.focus else "bold $primary" if id_ in line.nearest else ""
        if id_ in line.common:
            steps = line.common[id_]
            mark, number = ("◆" if id_ in line.nearest else "◇"), f"-{steps[0]}/-{steps[1]}"
        else:
            mark, number = "", f"{generation:+d}" if generation else "0"
        claims = [c for c in line.claims.get(id_, []) if c.relation != "base"]
        how = " ".join(
            dict.fromkeys(plain(word, 16) for c in claims for word in (c.relation, c.method) if word)
        )
        parents = line.parents(id_)
        if len(parents) > 1:
            how += " of " + " + ".join(plain(line.names[p].rpartition("/")[2], 24) for p in parents[:4])
        room = max(width - len(rails) - 10, 20)
        name = content(f"{line.names[id_]}{' ' + mark if mark else ''}", style, min(room, 60))
        return Content.assemble(
            (f"{number:>6} ", "$foreground 65%"),
            (rails.replace("●", "◉") if id_ in line.focus else rails, "$primary 80%"),
            " ",
            name,
            (f"  {how}" if how else "", "$foreground 60%"),
        )

    @property
    def under_cursor(self) -> int | None:
        highlighted = self.query_one(LineView).highlighted
        return self.rows[highlighted] if highlighted is not None and highlighted < len(self.rows) else None

    @on(OptionList.OptionHighlighted)
    def _tell(self) -> None:
        """Who says what the model under the cursor was made from."""
        id_, line = self.under_cursor, self.line
        if id_ is None or line is None:
            return
        lines = [content(line.names[id_], "bold $primary")]
        for claim in line.claims.get(id_, []):
            how = " ".join(plain(w, 20) for w in (claim.relation, claim.method) if w)
            weight = f" {claim.weight:g}" if claim.weight is not None else ""
            word = (
                "measured from the weights"
                if claim.evidence == "weights"
                else f"claimed by its {plain(claim.evidence)}"
            )
            word = (
                "measured against it, no parent is claimed"
                if claim.relation == "base" and claim.evidence == "user"
                else word
            )
            lines.append(
                Content.assemble(
                    "  from ",
                    content(claim.parent.name, width=60),
                    (f"  {how}{weight} · {word}", "$foreground 65%"),
                )
            )
        if len(lines) == 1:
            lines.append(Content.styled("  made from nothing known here", "$foreground 65%"))
        self.query_one("#claims Static", Static).update(Content("\n").join(lines))

    @on(OptionList.OptionSelected)
    def _focus_on(self) -> None:
        id_ = self.under_cursor
        if id_ is not None and self.line is not None:
            self._app.current = self.line.model(id_)
            if self.other is not None:
                self.focus_id = None
                self._follow()

    @on(Choice.Changed)
    def _depth_changed(self) -> None:
        self.action_reload()

    # Keys.

    def action_step(self, by: int) -> None:
        choice = self.query_one("#depth", Choice)
        at = choice.values.index(choice.value) + by
        choice.value = choice.values[max(0, min(len(choice.values) - 1, at))]

    def action_open(self) -> None:
        id_ = self.under_cursor
        if id_ is not None and self.line is not None:
            self._app.open_model(self.line.model(id_))

    def action_kinship(self) -> None:
        self._app.action_show("kinship")

    def action_common(self) -> None:
        id_ = self.under_cursor
        if id_ is None or self.line is None:
            return
        one = self.line.model(id_)

        def found(model: Model | None) -> None:
            if model is not None:
                self.focus_id, self.other = one.id, model
                self.action_reload()

        self.app.push_screen(ModelPicker(f"Common ancestors of {plain(one.name, 30)} and …"), found)

    def action_leave(self) -> None:
        if self.other is not None:
            self.other = None
            self.action_reload()

    def action_back(self) -> None:
        if len(self.trail) > 1:
            self.trail.pop()
            self._app.current = self.trail.pop()


def _line(focus: int | None, other: Model | None, depth: int, con: Connection) -> Pedigree | None:
    if focus is None:
        first = roots(con, "largest").entries[:1]
        if not first:
            return None
        focus = first[0].id
    return common(con, focus, other.id) if other is not None else around(con, focus, depth)
