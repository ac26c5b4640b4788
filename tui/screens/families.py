"""The first screen: bases, what was made from them, and everything about one of them."""

from typing import ClassVar

from textual import on
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Horizontal, Vertical
from textual.screen import Screen
from textual.widgets import Input

from kinbase.query import filters as filtering
from kinbase.query.models import SORTS, Model
from kinbase.tui.context import Context, context
from kinbase.tui.screens.column_picker import ColumnPicker
from kinbase.tui.screens.command import CommandWindow
from kinbase.tui.screens.compare import CompareScreen
from kinbase.tui.screens.copy import offer_copies
from kinbase.tui.screens.plot import KEY, offer_plot
from kinbase.tui.widgets.details import DetailsPane
from kinbase.tui.widgets.footer import KeysFooter
from kinbase.tui.widgets.model_table import ModelTable
from kinbase.tui.widgets.model_tree import ModelTree
from kinbase.tui.widgets.notice import Notice
from kinbase.tui.widgets.top_bar import TopBar


class FilterInput(Input):
    """What the tree is filtered by, as it is typed."""

    HELP = f"Filter the models as you type. {filtering.HELP}"
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("escape", "leave", "Back to the tree", show=False, id="leave"),
        Binding("down", "to_tree", "To the tree", show=False, id="to_tree"),
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
        Binding("slash", "filter", "Filter", key_display="/", id="filter"),
        Binding("s", "sort", "Sort", id="sort"),
        Binding("t", "table", "Table", tooltip="The family as a table, or as a tree again", id="table"),
        Binding(
            "o", "columns", "Columns", show=False, tooltip="Choose the columns of the table", id="columns"
        ),
        Binding("enter", "open", "Open", show=False, id="open"),
        Binding(
            "k",
            "kinship",
            "Kinship",
            tooltip="The marked models, or the model's kin, as a heatmap",
            id="kinship",
        ),
        Binding("l", "lineage", "Lineage", id="lineage"),
        Binding(
            "d",
            "compare",
            "Compare",
            show=False,
            tooltip="Two models side by side: the marked ones",
            id="compare",
        ),
        Binding(
            "p",
            "command('recipe')",
            "Recipe",
            show=False,
            tooltip="What it was made of, by its weights",
            id="recipe",
        ),
        Binding(
            "c",
            "command('check')",
            "Check",
            show=False,
            tooltip="What is claimed of it against its weights",
            id="check",
        ),
        Binding(
            "n",
            "command('suggest')",
            "Suggest",
            show=False,
            tooltip="The next merges of its family",
            id="suggest",
        ),
        Binding("y", "copy", "Copy", show=False, tooltip="Copy name, source, digest or row", id="copy"),
        Binding(
            "u",
            "unmark",
            "Unmark all",
            show=False,
            tooltip="Take all marks away; again: put them back",
            id="unmark",
        ),
        Binding("backspace", "back", "Back", show=False, id="back"),
        Binding("r", "reload", "Reload", show=False, id="reload"),
        KEY,
    ]

    def __init__(self) -> None:
        super().__init__()
        self.HORIZONTAL_BREAKPOINTS = [(0, "-one"), (70, "-narrow"), (120, "-wide")]
        self.trail: list[Model] = []
        self.wanted: filtering.Filter | None = None

    @property
    def _app(self) -> Context:
        return context(self)

    def compose(self) -> ComposeResult:
        yield TopBar("families")
        with Horizontal():
            with Vertical(id="left"):
                yield FilterInput(placeholder="filter: name, license:mit, mmlu>0.6, gen=2", compact=True)
                yield ModelTree()
                yield ModelTable()
                yield Notice()
            yield DetailsPane()
        yield KeysFooter()

    def on_mount(self) -> None:
        self.query_one(ModelTable).display = False
        self.query_one(ModelTree).sort = self._app.settings.sort
        self.query_one(ModelTable).chosen_columns = self._app.settings.columns
        self.watch(self._app, "current", self._show_current, init=False)

    @property
    def is_table(self) -> bool:
        """Whether the models are shown as a table."""
        return self.query_one(ModelTable).display

    @property
    def under_cursor(self) -> Model | None:
        """The model that keys act on."""
        return (self.query_one(ModelTable) if self.is_table else self.query_one(ModelTree)).under_cursor

    # The tree and its filter.

    @on(Input.Changed)
    def _typed(self, event: Input.Changed) -> None:
        wanted = filtering.parse(event.value)
        event.input.set_class(bool(wanted.complaint), "-wrong")
        event.input.border_subtitle = wanted.complaint
        self.wanted = wanted if event.value.strip() else None
        self.query_one(ModelTree).narrow(self.wanted)
        if self.is_table:
            self.query_one(ModelTable).read(self.wanted)

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
        table = self.query_one(ModelTable)
        if self.is_table and not table.go_to(model) and self.wanted is None:
            table.read(None)  # it is of another family
        if tree.wanted is None:
            tree.reveal(model)
        elif tree.settled and not tree.go_to(model):
            typed.value = ""  # the tree is read again, and reveals the current model

    # Keys.

    def action_filter(self) -> None:
        self.query_one(FilterInput).focus()

    def action_sort(self) -> None:
        if self.is_table:
            self.query_one(ModelTable).action_sort(1)
            return
        sorts = list(SORTS)
        tree = self.query_one(ModelTree)
        tree.sort_by(sorts[(sorts.index(tree.sort) + 1) % len(sorts)])
        self._app.remember(sort=tree.sort)

    def action_table(self) -> None:
        """The models as a table, or as a tree again."""
        tree, table = self.query_one(ModelTree), self.query_one(ModelTable)
        table.display = not table.display
        tree.display = not table.display
        self.set_class(table.display, "-table")
        (table if table.display else tree).focus()
        if table.display:
            table.read(self.wanted)
        elif self._app.current is not None:
            self._reveal(self._app.current)

    def action_copy(self) -> None:
        found = self.query_one(DetailsPane).details
        if found is None:
            return
        row = [("row", "\t".join(self.query_one(ModelTable).row_whole()))] if self.is_table else []
        base = found.base.name if found.base else None
        offers = [
            ("name", found.model.name),
            ("source", found.source),
            ("digest", found.digest),
            ("base", base),
        ]
        offer_copies(self, [(what, text) for what, text in [*offers, *row] if text])

    def action_command(self, command: str) -> None:
        """What the command line says of the current model, in a window."""
        model = self.under_cursor
        if model is not None:
            self.app.push_screen(CommandWindow(self._app.path, *command.split(), model.name))

    def action_compare(self) -> None:
        """The two that are marked; or the marked one, or the nearest kin, with the current model."""
        marked, model = list(self._app.chosen.values()), self.under_cursor
        details = self.query_one(DetailsPane).details
        if len(marked) == 2:
            one, other = marked
        elif model is not None and len(marked) == 1 and marked[0].id != model.id:
            one, other = model, marked[0]
        elif model is not None and not marked and details is not None and details.kin:
            one, other = model, details.kin[0][0]
        else:
            self._app.complain("mark two models with space, or one and go to the other")
            return
        self.app.push_screen(CompareScreen(one, other))

    def action_columns(self) -> None:
        if not self.is_table:
            self.action_table()
        table = self.query_one(ModelTable)

        def chosen(columns: list[str] | None) -> None:
            if columns:
                table.chosen_columns = columns
                self._app.remember(columns=columns)
                table.put_in_order()

        self.app.push_screen(ColumnPicker(table.found.columns, table.chosen_columns), chosen)

    def action_open(self) -> None:
        if self.is_table:
            self.action_table()

    def action_mark(self) -> None:
        tree, model = self.query_one(ModelTree), self.under_cursor
        if model is None:
            return
        self._app.choose(model)
        tree.redraw()
        if self.is_table:
            self.query_one(ModelTable).action_move(1)
            self.query_one(ModelTable).read(self.wanted)
        else:
            tree.action_cursor_down()

    def action_unmark(self) -> None:
        number = self._app.unmark()
        self.query_one(ModelTree).redraw()
        self.notify(
            f"{number} marked" if number else "no model is marked: u again marks them again", timeout=3
        )

    def action_kinship(self) -> None:
        self._app.action_show("kinship")

    def action_plot(self) -> None:
        model = self.under_cursor
        if model is not None:
            offer_plot(self, "tree", [model.name])

    def action_lineage(self) -> None:
        model = self.under_cursor
        if model is not None:
            self._app.open_model(model, "lineage")

    def action_back(self) -> None:
        """To the details before this one."""
        if len(self.trail) > 1:
            self.trail.pop()
            self._app.current = self.trail.pop()

    def action_reload(self) -> None:
        self.query_one(ModelTree).reload()
        if self.is_table:
            self.query_one(ModelTable).read(self.wanted)
        self.query_one(DetailsPane).reload()
