"""A message where something else would have been."""

from textual.content import Content
from textual.widget import Widget
from textual.widgets import Static

from kinbase.tui.showing import content


class Notice(Static, can_focus=True):
    """Hidden until there is something to tell; then it stands in the place of the widget it is about."""

    HELP = "What went wrong, or what is missing. **r** tries again."

    def __init__(self) -> None:
        super().__init__("", markup=False)
        self.display = False
        self.told = ""

    def tell(self, what: str, then: str, instead: Widget) -> None:
        """Show what happened and what to do, and take the focus of `instead` if it has it."""
        self.told = what
        self.update(Content.assemble((content(what).plain, "bold"), "\n\n", (then, "$foreground 70%")))
        self.display = True
        if instead.has_focus:
            self.focus()
        instead.display = False

    def clear(self, instead: Widget) -> None:
        """Give `instead` its place back."""
        self.told = ""
        instead.display = True
        if self.has_focus:
            instead.focus()
        self.display = False
