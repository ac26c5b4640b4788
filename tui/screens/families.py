"""The first screen: bases, what was made from them, and everything about one of them."""

from typing import ClassVar

from textual import on
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Horizontal, Vertical
from textual.screen import Screen
from textual.widgets import Footer, Input

from kinbase.query import filters as filtering
from kinbase.query.models import SORTS, Model
from kinbase.tui.context import Context, context
from kinbase.tui.widgets.details import DetailsPane
from kinbase.tui.widgets.model_tree import ModelTree
from kinbase.tui.widgets.notice import Notice
from kinbase.tui.widgets.top_bar import TopBar


class FilterInput(Input):
    """What the tree is filtered by, as it is typed."""

    HELP = f"Filter the models as you type. {filtering.HELP}"
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("escape", "leave", "Back to the tree", show=False),
        Binding("down", "to_tree", "To the tree", show=False),
    ]

    def action_leave(self) -> None:
        self.value = ""
        self.screen.query_one(ModelTree).focus()

    def action_to_tree(self) -> None:
        self.screen.query_one(ModelTree).focus()


class FamiliesScreen(Screen[None]):
    """A lazily loaded tree with a filter, and the details of the model under the cursor."""

    AUTO_FOCUS = "ModelTree, Notice"
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("slash", "filter", "Filter", key_display="/"),
        Binding("s", "sort", "Sort"),
        Binding("k", "kinship", "Kinship", tooltip="The marked models, or the model's kin, as a heatmap"),
        Binding("l", "lineage", "Lineage"),
        Binding("u", "unmark", "Unmark all", show=False, tooltip="Take all marks away; again: put them back"),
        Binding("backspace", "back", "Back", show=False),
        Binding("r", "reload", "Reload", show=False),
    ]

    def __init__(self) -> None:
        super().__init__()
        self.trail: list[Model] = []

    @property
    def _app(self) -> Context:
        return context(self)

    def compose(self) -> ComposeResult:
        yield TopBar("families")
        with Horizontal():
            with Vertical(id="left"):
                yield FilterInput(placeholder="filter: name, license:mit, mmlu>0.6, gen=2", compact=True)
                yield ModelTree()
                yield Notice()
            yield DetailsPane()
        yield Footer()

    def on_mount(self) -> None:
        self.watch(self._app, "current", self._show_current, init=False)

    # The tree and its filter.

    @on(Input.Changed)
    def _typed(self, event: Input.Changed) -> None:
        wanted = filtering.parse(event.value)
        event.input.set_class(bool(wanted.complaint), "-wrong")
        event.input.border_subtitle = wanted.complaint
        self.query_one(ModelTree).narrow(wanted if event.value.strip() else None)

    @on(Input.Submitted)
    def _submitted(self) -> None:
        tree = self.query_one(ModelTree)
        tree.focus()
        tree.open_first()

    @on(ModelTree.Filled)
    def _filled(self, event: ModelTree.Filled) -> None:
        notice, tree = self.query_one(Notice), self.query_one(ModelTree)
        if event.trouble:
            notice.tell(event.trouble, "r tries again.", tree)
        elif not event.number and self.query_one(FilterInput).value.strip():
            notice.tell("No model is like that.", "Escape clears the filter.", tree)
        elif not event.number:
            notice.tell("The database is empty.", "`kinbase import` brings models in; r looks again.", tree)
        else:
            notice.clear(tree)
        self._app.read_anew()

    def _show_current(self) -> None:
        model = self._app.current
        if model is not None and self.is_attached:
            if not self.trail or self.trail[-1].id != model.id:
                self.trail.append(model)
                del self.trail[:-50]
            self.query_one(DetailsPane).show(model)
            self._reveal(model)

    def on_screen_resume(self) -> None:
        """The tree is where the pane is: models are opened, and marked, on other screens too."""
        self.query_one(ModelTree).redraw()
        if self._app.current is not None:
            self._reveal(self._app.current)

    def _reveal(self, model: Model) -> None:
        """Put the tree's cursor on a model; a filter that hides it is taken away."""
        tree, typed = self.query_one(ModelTree), self.query_one(FilterInput)
        if tree.wanted is None:
            tree.reveal(model)
        elif tree.settled and not tree.go_to(model):
            typed.value = ""  # the tree is read again, and reveals the current model

    # Keys.

    def action_filter(self) -> None:
        self.query_one(FilterInput).focus()

    def action_sort(self) -> None:
        sorts = list(SORTS)
        tree = self.query_one(ModelTree)
        tree.sort_by(sorts[(sorts.index(tree.sort) + 1) % len(sorts)])

    def action_mark(self) -> None:
        tree = self.query_one(ModelTree)
        entry = tree.under_cursor
        if entry is not None:
            self._app.choose(entry)
            tree.redraw()
            tree.action_cursor_down()

    def action_unmark(self) -> None:
        number = self._app.unmark()
        self.query_one(ModelTree).redraw()
        self.notify(
            f"{number} marked" if number else "no model is marked: u again marks them again", timeout=3
        )

    def action_kinship(self) -> None:
        self._app.action_show("kinship")

    def action_lineage(self) -> None:
        entry = self.query_one(ModelTree).under_cursor
        if entry is not None:
            self._app.open_model(entry, "lineage")

    def action_back(self) -> None:
        """To the details before this one."""
        if len(self.trail) > 1:
            self.trail.pop()
            self._app.current = self.trail.pop()

    def action_reload(self) -> None:
        self.query_one(ModelTree).reload()
        self.query_one(DetailsPane).reload()
