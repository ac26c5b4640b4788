"""What is shown to a person on a terminal: as wide as it is, with a count of rows, in a pager where it is longer."""

import os
import shlex
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from typing import Any

import click

from kinbase.cli.tables import fitted_table, wrapped
from kinbase.text import text_width

MOST = 100_000
"""Rows that are shown; of more, a file takes all."""


UNBOUNDED = 1 << 30
"""The width of a table that is asked for whole."""


def width() -> int | None:
    """The columns that rows are fitted to, `--width` or the terminal's; None where they go elsewhere, or are asked for whole."""
    context = click.get_current_context(silent=True)
    if context and context.meta.get("wide"):
        return None
    asked = context.find_root().params.get("width") if context else None
    if asked is not None:
        return int(asked)
    return shutil.get_terminal_size().columns if sys.stdout.isatty() else None


def is_read() -> bool:
    """Whether a person reads what is written to stdout, rather than a program."""
    return sys.stdout.isatty() or width() is not None


def table(columns: Sequence[str], rows: Iterable[Any]) -> str:
    """A table as a terminal shows it, with the number of its rows under it."""
    stream = iter(rows)
    held = list(islice(stream, MOST))
    is_cut = len(held) == MOST and next(stream, None) is not None
    lines = list(fitted_table(columns, held, width() or UNBOUNDED))
    number = f"{len(held):,} row{'s' * (len(held) != 1)}"
    lines.append(f"(the first {number}: -o FILE takes all)" if is_cut else f"({number})")
    return "".join(f"{line}\n" for line in lines)


def page(lines: Iterable[str], *, is_drawing: bool = False) -> None:
    """Show lines of text, those wider than the terminal wrapped at blanks; of a drawing they are cut, and end in an ellipsis."""
    fit = width()
    fitted = lines if fit is None else _cut(lines, fit) if is_drawing else _wrapped(lines, fit)
    show("".join(f"{line}\n" for line in fitted))


def _cut(lines: Iterable[str], fit: int) -> Iterator[str]:
    for line in lines:
        while text_width(line) > fit:
            line = line[: fit - 1 if line.isascii() else -2].rstrip("…") + "…"
        yield line


def _wrapped(lines: Iterable[str], fit: int) -> Iterator[str]:
    for line in lines:
        start = line[: len(line) - len(line.lstrip())]
        yield from wrapped(line, fit, "", f"{start}  ") if text_width(line) > fit else (line,)


def show(text: str) -> None:
    """Write `text` to stdout, through $PAGER, or less, where it is longer than the terminal."""
    is_long = sys.stdout.isatty() and text.count("\n") >= shutil.get_terminal_size().lines
    pager = _pager() if is_long else None
    if pager is None:
        sys.stdout.write(text)
        return
    sys.stdout.flush()
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)  # the pager's own key
    try:
        # -R colours as they are, -S long lines by the arrow keys, -X leaves what was read on the screen.
        environment = {"LESS": "-RSX", **os.environ}
        subprocess.run(pager, input=text.encode("utf-8", "replace"), env=environment, check=False)
    except OSError:
        sys.stdout.write(text)
    finally:
        signal.signal(signal.SIGINT, before)


def _pager() -> list[str] | None:
    """The command of the pager; None where there is none, or nobody to use it."""
    if not sys.stdin.isatty() or os.environ.get("TERM", "dumb") == "dumb":
        return None
    chosen = os.environ.get("PAGER")
    if chosen is None:
        return ["less"] if shutil.which("less") else None
    words = shlex.split(chosen)
    return words if words and words != ["cat"] and shutil.which(words[0]) else None
