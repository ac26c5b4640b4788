"""The SQL editor: highlighting, completion, history."""

import contextlib
from dataclasses import dataclass
from typing import ClassVar

from rich.style import Style
from textual import on
from textual.binding import Binding, BindingType
from textual.content import Content
from textual.events import Key
from textual.geometry import Offset
from textual.message import Message
from textual.widgets import OptionList, TextArea
from textual.widgets.option_list import Option
from textual.widgets.text_area import Selection, TextAreaTheme

from kinbase.errors import KinbaseError, QueryError
from kinbase.tui import settings
from kinbase.tui.widgets.completion import Words, at_cursor, completions

# Textual's own of these are light grey and light green, which nobody reads on a light ground.
DARKER = {
    **dict.fromkeys(("type", "type.class", "heading.marker", "list.marker"), Style(color="#7a4d00")),
    **dict.fromkeys(("type.builtin", "boolean", "constant.builtin"), Style(color="#2f6b52")),
    **dict.fromkeys(("keyword", "number", "float"), Style(color="#b3261e")),
    "variable": Style(color="#963800"),
}


class Completions(OptionList):
    """Candidates under the word being typed. The editor keeps the focus."""

    can_focus = False

    def __init__(self) -> None:
        super().__init__(compact=True, markup=False)
        self.names: list[str] = []
        self.display = False

    def offer(self, found: list[tuple[str, str]]) -> None:
        self.names = [name for name, _ in found]
        self.clear_options()
        width = max((len(name) for name in self.names), default=0)
        self.add_options(
            [
                Option(Content.assemble(f"{name:<{width}}", (f"  {kind}", "$foreground 50%")))
                for name, kind in found
            ]
        )
        self.display = bool(found)
        if found:
            self.highlighted = 0


class Editor(TextArea):
    """One query."""

    HELP = """\
SQL over the views `models`, `lineage`, `kinship`, `scores`, ... It only reads, and sees the database and nothing else.

- **Ctrl+J** or **F9** runs it, **Escape** stops it
- **Tab** takes a completion, **Ctrl+Space** lists all
- **Ctrl+Up** and **Ctrl+Down** go through the queries run before, in earlier sessions too
- **Ctrl+O** goes to the next of several queries, and behind the last to a new one; an empty one goes by itself
- **Ctrl+L** explains how the query is computed
- **Ctrl+S** saves the result
"""
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("ctrl+j,ctrl+enter,f9", "run", "Run", key_display="^j", priority=True),
        Binding("ctrl+up", "history(-1)", "Earlier query", show=False, priority=True),
        Binding("ctrl+down", "history(1)", "Later query", show=False, priority=True),
        Binding(
            "ctrl+o",
            "next_query",
            "Other query",
            show=False,
            priority=True,
            tooltip="The next of several queries; behind the last, a new one",
            id="sql.other",
        ),
        Binding("ctrl+@,ctrl+space", "complete", "Complete", show=False, priority=True),
    ]

    @dataclass
    class Run(Message):
        """The query is to be run."""

        query: str
        origin: tuple[int, int] = (0, 0)
        """Where it begins in the editor: line and column, from 0."""

    def __init__(self) -> None:
        super().__init__(
            soft_wrap=False, tab_behavior="focus", show_line_numbers=False, highlight_cursor_line=False
        )
        self.words = Words()
        self.past: list[str] = settings.past_queries()
        self._at = len(self.past)
        self._taken = ""
        self._others: list[tuple[str, tuple[int, int]]] = [("", (0, 0))]
        """The queries that stand beside each other, with their cursors; what is typed now is kept at `_shown`."""
        self._shown = 0
        self.border_title = "SQL"

    def on_mount(self) -> None:
        try:
            import tree_sitter_sql  # noqa: F401  # the grammar the highlighting needs
        except ImportError:
            pass
        else:
            self.language = "sql"
        self._dress()
        self.app.theme_changed_signal.subscribe(self, lambda _: self._dress())

    def _dress(self) -> None:
        """The colours of the words, on the ground of the application's theme."""
        ours, builtin = ("dark", "vscode_dark") if self.app.current_theme.dark else ("light", "github_light")
        words = TextAreaTheme.get_builtin_theme(builtin)
        styles = dict(words.syntax_styles) if words else {}
        if ours == "light":
            styles |= DARKER
        self.register_theme(TextAreaTheme(f"kinbase-{ours}", syntax_styles=styles))
        self.theme = f"kinbase-{ours}"

    @property
    def popup(self) -> Completions:
        return self.screen.query_one(Completions)

    # Completion.

    @on(TextArea.Changed)
    def _changed(self) -> None:
        row, column = self.cursor_location
        word, owner = at_cursor(self.document.get_line(row)[:column])
        if self.text == self._taken or not (word or owner) or word.isdigit():
            self.popup.display = False
            return
        self._offer(word, owner)

    def _offer(self, word: str, owner: str) -> None:
        found = completions(self.words, self.text, word, owner)
        popup = self.popup
        popup.offer([] if [name for name, _ in found] == [word] else found)
        if popup.display:
            at = self.cursor_screen_offset
            wide = min(max(len(n) for n, _ in found) + max(len(k) for _, k in found) + 7, 60)
            tall = min(len(popup.names), 8) + 2
            below = at.y + 1 + tall <= self.screen.size.height - 1
            popup.styles.width, popup.styles.height = wide, tall
            popup.styles.offset = Offset(
                max(0, min(at.x - len(word), self.screen.size.width - wide)),
                at.y + 1 if below else max(at.y - tall, 0),
            )

    def action_complete(self) -> None:
        row, column = self.cursor_location
        self._offer(*at_cursor(self.document.get_line(row)[:column]))

    def _take(self) -> None:
        popup = self.popup
        if popup.highlighted is None:
            return
        name = popup.names[popup.highlighted]
        row, column = self.cursor_location
        word, _ = at_cursor(self.document.get_line(row)[:column])
        popup.display = False
        self.replace(name, (row, column - len(word)), (row, column))
        self._taken = self.text

    async def _on_key(self, event: Key) -> None:
        popup = self.popup
        if popup.display and event.key in ("up", "down", "tab", "escape"):
            event.stop()
            event.prevent_default()
            if event.key == "up":
                popup.action_cursor_up()
            elif event.key == "down":
                popup.action_cursor_down()
            elif event.key == "tab":
                self._take()
            else:
                popup.display = False
            return
        await super()._on_key(event)

    def on_blur(self) -> None:
        self.popup.display = False

    # Running.

    def action_run(self) -> None:
        self.popup.display = False
        chosen = self.selected_text.strip()
        query = chosen or self.text.strip()
        if not query:
            return
        if not self.past or self.past[-1] != self.text:
            self.past.append(self.text)
            with contextlib.suppress(KinbaseError):  # a full disk costs the history, not the query
                settings.keep_queries(self.past)
        self._at = len(self.past)
        self.post_message(self.Run(query, self.place_of(query, self.selection if chosen else None)))

    def place_of(self, query: str, selection: Selection | None = None) -> tuple[int, int]:
        """Where a query begins in the text, or in what is selected of it."""
        start = min(selection) if selection else (0, 0)
        begin = sum(len(line) + 1 for line in self.text.split("\n")[: start[0]]) + start[1]
        at = max(self.text.find(query, begin), 0)
        before = self.text[:at].split("\n")
        return len(before) - 1, len(before[-1])

    def show_error(self, error: QueryError, origin: tuple[int, int]) -> None:
        """Put the cursor where a query that began at `origin` is wrong."""
        line = origin[0] + error.line - 1
        column = origin[1] if error.line == 1 else 0
        if line >= self.document.line_count:
            return
        # Of a long line only a part is told, between dots.
        cut = 3 * error.text.startswith("...")
        part = error.text[cut:].removesuffix("...").rstrip("\n")
        found = self.document.get_line(line).find(part, 0)
        at = error.at - cut + (found if found >= 0 and part else column)
        self.move_cursor((line, min(at, len(self.document.get_line(line)))))

    def action_next_query(self) -> None:
        """The next of the queries that stand beside each other: behind the last a new one, behind that the first."""
        self._others[self._shown] = self.text, self.cursor_location
        if not self.text.strip() and len(self._others) > 1:
            del self._others[self._shown]
            self._shown -= 1
            at = self._shown + 1 if self._shown + 1 < len(self._others) else 0
        else:
            at = self._shown + 1
            if at == len(self._others):
                self._others.append(("", (0, 0)))
        self._shown = at
        text, cursor = self._others[at]
        self._taken = text
        self.load_text(text)
        self.move_cursor(cursor)
        number = len(self._others)
        self.border_title = "SQL" if number == 1 else f"SQL {at + 1} of {number}"

    def action_history(self, by: int) -> None:
        at = self._at + by
        if 0 <= at < len(self.past) and self.past[at] == self.text:
            at += by  # it is what stands there
        if 0 <= at < len(self.past):
            self._at = at
            self._set(self.past[at])
        elif at == len(self.past):
            self._at = at
            self._set("")

    def _set(self, text: str) -> None:
        self._taken = text
        self.load_text(text)
        self.move_cursor(self.document.end)
