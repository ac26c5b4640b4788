"""What is shown to a person on a terminal: as wide as it is, with a count of rows, in a pager where it is longer."""

import os
import shlex
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterable, Sequence
from io import StringIO
from itertools import islice
from typing import Any

import click

from kinbase.text import write_rows

MOST = 100_000
"""Rows that are shown; of more, a file takes all."""


UNBOUNDED = 1 << 30
"""The width of a table that is asked for whole."""


def width() -> int | None:
    """The columns of the terminal that rows are shown on; None where they go elsewhere, or are asked for whole."""
    context = click.get_current_context(silent=True)
    if not sys.stdout.isatty() or (context and context.meta.get("wide")):
        return None
    return shutil.get_terminal_size().columns


def table(columns: Sequence[str], rows: Iterable[Any]) -> str:
    """A table as a terminal shows it, with the number of its rows under it."""
    stream = iter(rows)
    held = list(islice(stream, MOST))
    is_cut = len(held) == MOST and next(stream, None) is not None
    out = StringIO()
    write_rows(columns, held, "table", out, fit=width() or UNBOUNDED)
    number = f"{len(held):,} row{'s' * (len(held) != 1)}"
    out.write(f"(the first {number}: -o FILE takes all)\n" if is_cut else f"({number})\n")
    return out.getvalue()


def show(text: str) -> None:
    """Write `text` to stdout, through $PAGER, or less, where it is longer than the terminal."""
    pager = _pager() if text.count("\n") >= shutil.get_terminal_size().lines else None
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
