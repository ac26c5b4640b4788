"""How names and numbers reach the screen. Names come from files nobody vouches for.

The one way: `plain` makes a name harmless to a terminal, `text` and `content` hold it where Rich and
Textual look for no markup.
"""

from datetime import timedelta

from rich.text import Text
from textual.content import Content

from kinbase.text import middle, safe, text_width


def plain(name: object, width: int = 0) -> str:
    """`name` on one line without control or direction characters, cut in the middle to `width` cells if given."""
    shown = safe(name)
    return middle(shown, width) if width else shown


def padded(text: str, width: int, *, is_right: bool = False) -> str:
    """`text` in a column of `width` cells, at its right side or at its left."""
    blanks = " " * (width - text_width(text))
    return blanks + text if is_right else text + blanks


def text(name: object, style: str = "", width: int = 0) -> Text:
    """`name` for a Tree or a line of Rich."""
    return Text(plain(name, width), style=style, no_wrap=True)


def content(name: object, style: str = "", width: int = 0) -> Content:
    """`name` for everything else."""
    return Content.styled(plain(name, width), style) if style else Content(plain(name, width))


def figure(value: float | None, places: int = 4) -> str:
    """A kinship or a score: so many digits after a small number, a dash for none."""
    if value is None:
        return "-"
    return f"{value:.{places}f}" if abs(value) < 1000 else f"{value:.4g}"


def gain(value: float | None) -> str:
    """A difference, with its sign."""
    return "" if value is None else f"{value:+.4f}" if abs(value) < 1000 else f"{value:+.4g}"


def plural(number: int, noun: str) -> str:
    """`1 model`, `2,000 models`."""
    return f"{number:,} {noun if number == 1 else noun + 's'}"


def title(mode: str) -> str:
    """What a screen is called: `Families`, `SQL`."""
    return mode.upper() if mode == "sql" else mode.capitalize()


def span(time: timedelta) -> str:
    """A stretch of time in its two largest units: 2 h 5 min, 3 min 20 s."""
    seconds = max(0, round(time.total_seconds()))
    units = (("d", 86400), ("h", 3600), ("min", 60), ("s", 1))
    parts = []
    for unit, size in units:
        number, seconds = divmod(seconds, size)
        parts.append((number, unit))
    first = next((i for i, (number, _) in enumerate(parts) if number), len(parts) - 1)
    return " ".join(f"{number} {unit}" for number, unit in parts[first : first + 2] if number) or "0 s"
