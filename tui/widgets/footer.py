"""The last line of each screen: the keys that matter most, whole ones."""

from rich.cells import cell_len
from textual.app import ComposeResult
from textual.events import Resize
from textual.widgets import Footer
from textual.widgets._footer import FooterKey


class KeysFooter(Footer):
    """A footer without half keys: where there is no room the last are left out, and never the one that lists them all."""

    def compose(self) -> ComposeResult:
        keys = [key for key in super().compose() if isinstance(key, FooterKey)]
        helps = [key for key in keys if "help" in key.action]
        keys = [key for key in keys if key not in helps[:-1]]  # one that lists them all is enough
        used = sum(map(_width, keys))
        for key in [
            key for key in reversed(keys) if key not in helps and not key.has_class("-command-palette")
        ]:
            if used <= self.app.size.width:
                break
            keys.remove(key)
            used -= _width(key)
        yield from keys

    def on_resize(self, event: Resize) -> None:
        self.refresh(recompose=True)


def _width(key: FooterKey) -> int:
    """The cells a key takes: itself with a blank at each side, and what it does with one behind it."""
    return cell_len(key.key_display) + cell_len(key.description) + 3
