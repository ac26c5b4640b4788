"""The tree of models: bases first, what was made from each beneath it, read as it is opened.

A model made of several stands under each of its parents. Under a filter the matching models come as a
list, each with its own tree beneath.
"""

from dataclasses import dataclass
from functools import partial
from typing import ClassVar

from rich.style import Style
from rich.text import Text, TextType
from textual import work
from textual.binding import Binding, BindingType
from textual.message import Message
from textual.timer import Timer
from textual.widgets import Tree
from textual.widgets.tree import TreeNode

from kinbase.errors import KinbaseError
from kinbase.query import models
from kinbase.query.filters import Filter
from kinbase.query.models import Entry, Model
from kinbase.store import Connection
from kinbase.text import count, text_width
from kinbase.tui.context import Context, context
from kinbase.tui.showing import plain, plural, text

MANY = 50_000
"""Models from which on it pays to know where all of them stand."""
WIDTH = 60
"""Characters of a name before it is cut; the details has it whole."""
REST = 0.08
"""Seconds the cursor rests on a model before its details is read."""


@dataclass(frozen=True)
class More:
    """The line that stands for the next page."""

    offset: int


Line = Entry | More


class ModelTree(Tree[Line]):
    """Bases and models, a page at a time."""

    HELP = """\
The models: foundation models first, then what was made from each. A merge stands under every one of its parents.

- **Enter** shows a model and opens or closes what is beneath it, **space** marks it for the heatmap
- **/** filters, **s** sorts: largest, name, newest, parameters, score
- **l** lineage, **k** kinship, **r** reads the database again
"""
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding(
            "space",
            "screen.mark",
            "Mark",
            tooltip="Choose the model for the heatmap, or take it out",
            id="tree.screen_mark",
        ),
        Binding("right", "open", "Open", show=False, id="tree.open"),
        Binding("left", "close", "Close", show=False, id="tree.close"),
    ]

    @dataclass
    class Filled(Message):
        """The first level was read, or could not be."""

        number: int
        trouble: str = ""

    def __init__(self) -> None:
        super().__init__("models")
        self.show_root = False
        self.auto_expand = False
        self.guide_depth = 2
        self.sort = "largest"
        self.wanted: Filter | None = None
        self.settled = False
        """Whether the first level shows what was last asked for."""
        self._many = False
        """Whether it pays to know where all models stand."""
        self._rest: Timer | None = None
        self._open: set[int] = set()
        self._bound: int | None = None
        """The model the cursor is to be put on once it is here: what it passes on the way is not told."""
        self._pages: dict[int, int] = {}
        """How many children of each node were read, by its id in the tree."""
        self.border_title = "Families"

    @property
    def _app(self) -> Context:
        return context(self)

    @property
    def under_cursor(self) -> Entry | None:
        node = self.cursor_node
        return node.data if node is not None and isinstance(node.data, Entry) else None

    def on_mount(self) -> None:
        self.reload()

    # Reading.

    def reload(self) -> None:
        """Read the first level again; what was open opens again, the cursor stays on its model."""
        self._open = {
            n.data.id for n in self._beneath(self.root) if n.is_expanded and isinstance(n.data, Entry)
        }
        at = self.under_cursor or self._app.current
        self._refill(self._bound or (at.id if at else None))

    def narrow(self, wanted: Filter | None) -> None:
        """Show what a filter lets through; None: everything."""
        self.wanted = wanted
        self._open = set()
        current = self._app.current
        self._refill(current.id if wanted is None and current is not None else None)

    def _refill(self, at: int | None) -> None:
        self.settled = False
        self._bound = at
        self._fill_root(at)

    def sort_by(self, sort: str) -> None:
        self.sort = sort
        self.reload()

    def _page(self, parent: Entry | None, offset: int, con: Connection) -> models.Page:
        known = self._app.orders
        if parent is not None:
            return models.children(con, parent.id, self.sort, offset, known)
        if self.wanted is not None:
            return models.matching(con, self.wanted, self.sort, offset, known)
        return models.roots(con, self.sort, offset, known)

    def _count(self, con: Connection) -> int:
        return models.count_all(con) if self.wanted is None else models.count_matching(con, self.wanted)

    @work(exclusive=True, group="tree")
    async def _fill_root(self, at: int | None) -> None:
        self.border_subtitle = "reading…"
        try:
            page = await self._app.ask(partial(self._page, None, 0))
        except KinbaseError as error:
            self.clear()
            self._bound = None
            self.border_subtitle = ""
            self.post_message(self.Filled(0, str(error)))
            return
        entries = page.entries
        self.clear()
        self._pages.clear()
        self._add(self.root, entries, 0)
        self.root.expand()
        found = next((n for n in self.root.children if isinstance(n.data, Entry) and n.data.id == at), None)
        if at is not None and found is None and self.wanted is None:
            self.reveal(Model(at, ""))
        elif found is not None or entries:
            self._bound = None
            at_node = found or self.root.children[0]
            self._put_cursor(at_node)
            # The cursor's line is the same as before, so that nothing else tells of the new model on it.
            self._rest_on(at_node)
        self.settled = True
        self.post_message(self.Filled(len(entries)))
        self.border_subtitle = self.sort
        number = page.number if self.wanted is not None else None
        if number is None:
            try:
                async with self._app.turn:
                    number = await self._app.ask(self._count)
            except KinbaseError:
                return  # whoever asks next tells it
        told = plural(number, "model") if self.wanted is None else f"{number:,} found"
        self.border_subtitle = f"{told} · {self.sort}"
        if self.wanted is None:
            self._many = number > MANY
        if self._many:
            self._learn()

    @work(exclusive=True, group="orders")
    async def _learn(self) -> None:
        """In the background, and not of those that take turns: nobody waits for it."""
        await self._app.learn_orders(self.sort)
        await self._app.learn_scores()

    @work(exclusive=True, group="reveal")
    async def reveal(self, model: Model) -> None:
        """Put the cursor on a model that was opened elsewhere: open what it stands under, as far as that is needed.

        A model on a page that was not read yet comes first beneath its parent until its page is.
        """
        at = self.under_cursor
        if at is not None and at.id == model.id:
            self._bound = None
            return
        self._bound = model.id
        try:
            path = await self._app.ask(partial(models.path_to, model=model.id))
        except KinbaseError:
            self._bound = None
            return  # the pane beside tells it
        node = self.root
        for number, entry in enumerate(path):
            if node is not self.root and node.id not in self._pages:
                try:
                    page = await self._app.ask(partial(self._page, path[number - 1], 0))
                except KinbaseError:
                    self._bound = None
                    return
                if node.id not in self._pages:
                    self._add(node, page.entries, 0)
            node.expand()
            found = next(
                (n for n in node.children if isinstance(n.data, Entry) and n.data.id == entry.id), None
            )
            node = found or node.add(self._label(entry), entry, before=0, allow_expand=entry.beneath > 0)
        self._bound = None
        if path:
            self._put_cursor(node)
            self._rest_on(node)

    def go_to(self, model: Model) -> bool:
        """Put the cursor on a model of the first level, as under a filter; whether it is there."""
        at = self.under_cursor
        if at is not None and at.id == model.id:
            return True
        node = next(
            (n for n in self.root.children if isinstance(n.data, Entry) and n.data.id == model.id), None
        )
        if node is not None:
            self._put_cursor(node)
        return node is not None

    def _put_cursor(self, node: TreeNode[Line]) -> None:
        """Move the cursor to a node that may just have been added."""
        _ = self.last_line  # nodes have lines once these are counted
        self.move_cursor(node)
        self.scroll_to_node(node, animate=False)

    @work(group="branch")
    async def _fill(self, node: TreeNode[Line], offset: int) -> None:
        parent = node.data
        if parent is not None and not isinstance(parent, Entry):
            return
        try:
            async with self._app.turn:
                page = await self._app.ask(partial(self._page, parent, offset))
        except KinbaseError as error:
            self._app.complain(error)
            node.collapse()
            return
        more = node.children[-1] if node.children else None
        if offset != self._pages.get(node.id, 0):
            return  # asked for twice, and here already
        if more is not None and isinstance(more.data, More):
            more.remove()
        self._add(node, page.entries, offset)
        if offset and more is not None and page.entries:
            first = next((n for n in node.children if n.data == page.entries[0]), None)
            if first is not None:
                self._put_cursor(first)

    def _add(self, node: TreeNode[Line], entries: list[Entry], offset: int) -> None:
        there = {n.data.id for n in node.children if isinstance(n.data, Entry)}
        for entry in entries:
            if entry.id in there:  # it was revealed before its page came
                continue
            child = node.add(self._label(entry), entry, allow_expand=entry.beneath > 0)
            if entry.id in self._open:
                self._open.discard(entry.id)
                child.expand()
        self._pages[node.id] = offset + models.PAGE
        if len(entries) == models.PAGE:
            node.add_leaf(
                Text(f"… more after {offset + models.PAGE:,}", style="italic"), More(offset + models.PAGE)
            )

    # Showing.

    def _label(self, entry: Entry, width: int = WIDTH) -> Text:
        marked = entry.id in self._app.chosen
        label = Text("◆ ", "bold") if marked else Text()
        label.append_text(
            text(entry.name, "bold" if marked else "" if entry.has_weights else "italic", max(width, 1))
        )
        return label

    def _about(self, entry: Entry) -> list[str]:
        """What stands at the right: how it was made, its size, its score, how many are beneath; the last matters most."""
        return [
            plain(entry.relation, 12) if entry.relation and entry.relation != "finetune" else "",
            f"{count(entry.parameters):>6}" if entry.parameters else "",
            f"{entry.score:.3f}" if entry.score is not None else "",
            f"{entry.beneath:>6,}" if entry.beneath else " " * 6,
        ]

    def redraw(self) -> None:
        """Labels anew, after marks changed."""
        marked = len(self._app.chosen)
        self.border_title = f"Families · {marked} marked" if marked else "Families"
        for node in self._beneath(self.root):
            if isinstance(node.data, Entry):
                node.set_label(self._label(node.data))

    def _beneath(self, node: TreeNode[Line]) -> list[TreeNode[Line]]:
        found = list(node.children)
        for child in node.children:
            found += self._beneath(child)
        return found

    def process_label(self, label: TextType) -> Text:
        return label if isinstance(label, Text) else Text(label)

    def get_label_width(self, node: TreeNode[Line]) -> int:
        """As wide as the tree, whatever it says: of hundreds of lines only those in sight are drawn."""
        return self._room(node)

    def _room(self, node: TreeNode[Line]) -> int:
        depth, above = 0, node.parent
        while above is not None and above is not self.root:
            depth, above = depth + 1, above.parent
        return max(self.scrollable_content_region.width - depth * self.guide_depth, 20)

    def render_label(self, node: TreeNode[Line], base_style: Style, style: Style) -> Text:
        arrow = ("▾ " if node.is_expanded else "▸ ") if node.allow_expand else "  "
        label = node.label.copy() if isinstance(node.label, Text) else Text(str(node.label))
        label.stylize_before(style)
        shown = Text.assemble((arrow, base_style), label)
        if isinstance(node.data, Entry):
            room = self._room(node)
            parts = self._about(node.data)
            # What does not fit goes before the name does; the number beneath stays.
            while len(parts) > 1 and shown.cell_len + 1 + len(" ".join(filter(None, parts))) > room:
                parts.pop(0)
            about = " ".join(filter(None, parts))
            if not about.strip() and shown.cell_len + 1 + len(about) > room:
                about = ""
            over = shown.cell_len - (room - len(about) - 1)
            if over > 0:
                cut = self._label(node.data, min(text_width(plain(node.data.name)), WIDTH) - over)
                cut.stylize_before(style)
                shown = Text.assemble((arrow, base_style), cut)
            shown.append(" " * max(room - shown.cell_len - len(about), 1), style)
            shown.append(about, Style.combine([style, Style(dim=True, bold=False)]))
        return shown

    # What the person does.

    def on_tree_node_expanded(self, event: Tree.NodeExpanded[Line]) -> None:
        event.stop()
        node = event.node
        if node is not self.root and node.id not in self._pages:
            self._fill(node, 0)

    def on_tree_node_highlighted(self, event: Tree.NodeHighlighted[Line]) -> None:
        event.stop()
        data = event.node.data
        if self._bound is None or (isinstance(data, Entry) and data.id == self._bound):
            self._rest_on(event.node)

    def _rest_on(self, node: TreeNode[Line]) -> None:
        if self._rest is not None:
            self._rest.stop()
        if isinstance(node.data, Entry):
            self._rest = self.set_timer(REST, partial(self._tell, node.data))

    def on_tree_node_selected(self, event: Tree.NodeSelected[Line]) -> None:
        event.stop()
        node = event.node
        if isinstance(node.data, More):
            parent = node.parent
            if parent is not None:
                self._fill(parent, node.data.offset)
        elif isinstance(node.data, Entry):
            self._tell(node.data)
            if node.allow_expand:
                node.toggle()  # its details is asked for already

    def _tell(self, entry: Entry) -> None:
        if self._rest is not None:
            self._rest.stop()
        current = self._app.current
        if current is None or current.id != entry.id:
            self._app.current = entry

    def open_first(self) -> None:
        """Tell of the first model, as after a filter was typed."""
        if self.root.children and isinstance(self.root.children[0].data, Entry):
            self._put_cursor(self.root.children[0])
            self._tell(self.root.children[0].data)

    def action_open(self) -> None:
        node = self.cursor_node
        if node is not None and node.allow_expand:
            if node.is_expanded:
                self.action_cursor_down()
            else:
                node.expand()

    def action_close(self) -> None:
        node = self.cursor_node
        if node is None:
            return
        if node.is_expanded and node.allow_expand:
            node.collapse()
        elif node.parent is not None and node.parent is not self.root:
            self.move_cursor(node.parent)
