"""Copying to the terminal's clipboard (OSC 52): a window that offers what there is to copy."""

from typing import Any, ClassVar

from textual import on
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Vertical
from textual.content import Content
from textual.screen import ModalScreen, Screen
from textual.widgets import OptionList
from textual.widgets.option_list import Option

from kinbase.tui.showing import plain


class CopyWindow(ModalScreen[str | None]):
    """Enter, or a digit, copies one of `offers`: what it is, and its text."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("escape", "dismiss(None)", "Close"),
        *(Binding(str(number), f"take({number - 1})", show=False) for number in range(1, 10)),
    ]

    def __init__(self, offers: list[tuple[str, str]]) -> None:
        super().__init__()
        self.offers = offers

    def compose(self) -> ComposeResult:
        with Vertical() as box:
            box.border_title = "Copy"
            wide = max(len(what) for what, _ in self.offers)
            yield OptionList(
                *(
                    Option(
                        Content.assemble(
                            (f"{i} {what:<{wide}}", "bold"),
                            (f"  {plain(' '.join(text.split()), 46)}", "$foreground 65%"),
                        )
                    )
                    for i, (what, text) in enumerate(self.offers, 1)
                ),
                compact=True,
                markup=False,
            )

    @on(OptionList.OptionSelected)
    def _selected(self, event: OptionList.OptionSelected) -> None:
        self.action_take(event.option_index)

    def action_take(self, at: int) -> None:
        if at < len(self.offers):
            self.dismiss(self.offers[at][1])


def offer_copies(screen: Screen[Any], offers: list[tuple[str, str]]) -> None:
    """Let one of several texts be chosen for the terminal's clipboard."""

    def taken(text: str | None) -> None:
        if text is not None:
            screen.app.copy_to_clipboard(text)
            screen.notify("copied", timeout=2)

    if offers:
        screen.app.push_screen(CopyWindow(offers), taken)
