"""The keys of a screen, in a window over it."""

from textwrap import wrap
from typing import Any, ClassVar

from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import VerticalScroll
from textual.content import Content
from textual.screen import ModalScreen, Screen
from textual.widgets import Static

WIDE = 100
"""Columns of the terminal from which on the keys stand in two columns."""
FRAME = 10
"""Columns of the terminal that are not the text's: borders, blanks, a scrollbar, and what shows of the screen behind."""
SCREENS = ("1 to 5, F2 to F6", "Families, Kinship, Lineage, SQL, Evolution")
OBVIOUS = frozenset(
    ("up", "down", "left", "right", "home", "end", "pageup", "pagedown", "tab", "shift+tab", "ctrl+c", "ctrl+home", "ctrl+end",
     "ctrl+pageup", "ctrl+pagedown", "enter", "shift+up", "shift+down", "shift+left", "shift+right", "shift+space", "super+c")
)  # fmt: skip
"""Keys that need no telling where they move; `enter` is told when it says what it does."""

Key = tuple[str, str]


def keys_of(screen: Screen[Any]) -> list[Key]:
    """Keys and what they do on `screen` as it is focused now: those of the focused part, the screen's, everybody's."""
    told: dict[str, list[str]] = {}
    for key, active in screen.active_bindings.items():
        binding = active.binding
        if not active.enabled or binding.system or not binding.description:
            continue
        if binding.action.startswith("show("):
            told[SCREENS[1]] = [SCREENS[0]]
            continue
        if key in OBVIOUS and not (binding.show or binding.tooltip):
            continue
        shown = screen.app.get_key_display(binding)
        what = binding.tooltip or binding.description
        if shown not in told.setdefault(what, []):
            told[what].append(shown)
    return [(" ".join(keys), what) for what, keys in told.items()]


class KeysWindow(ModalScreen[None]):
    """What each key does here; Escape, or the key that opened it, closes it."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("escape,question_mark,q,enter", "dismiss(None)", "Close")
    ]

    def __init__(self, keys: list[Key]) -> None:
        super().__init__()
        self.told = keys

    def compose(self) -> ComposeResult:
        with VerticalScroll() as box:
            box.border_title = "Keys"
            box.border_subtitle = "Escape closes"
            yield Static(self._lines(), markup=False)

    def on_mount(self) -> None:
        self.query_one(VerticalScroll).focus()

    def on_resize(self) -> None:
        self.query_one(Static).update(self._lines())

    def _lines(self) -> Content:
        longest = max((len(key) for key, _ in self.told), default=0)
        room = max(self.app.size.width - longest - FRAME, 20)
        lines = [
            Content.assemble((f"{key if not number else '':>{longest}}", "bold $accent"), f"  {part}")
            for key, what in self.told
            for number, part in enumerate(wrap(what, room))
        ]
        if self.app.size.width < WIDE:
            return Content("\n").join(lines)
        half = -(-len(lines) // 2)
        width = max((line.cell_length for line in lines[:half]), default=0)
        rows = []
        for i in range(half):
            right = lines[half + i] if half + i < len(lines) else Content("")
            rows.append(Content.assemble(lines[i], " " * (width - lines[i].cell_length + 3), right))
        return Content("\n").join(rows)
