"""Talk and progress, on stderr: stdout is for data."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from kinbase.text import safe


@contextmanager
def progress(description: str, *, unit: str = "bytes") -> Iterator[Callable[..., None]]:
    """A bar on stderr with rate (of bytes) and time left; nothing when stderr is not a terminal.

    Yields `report(done, total, what)`; `what`, where it is said, is shown in place of the description.
    """
    if not sys.stderr.isatty():
        yield lambda done, total, what=None: None
        return
    from rich.console import Console
    from rich.markup import escape
    from rich.progress import (
        BarColumn,
        DownloadColumn,
        Progress,
        TaskProgressColumn,
        TextColumn,
        TimeRemainingColumn,
        TransferSpeedColumn,
    )

    amount = (DownloadColumn(), TransferSpeedColumn()) if unit == "bytes" else (TaskProgressColumn(),)
    columns = (TextColumn("{task.description}"), BarColumn(), *amount, TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(description, total=None)

        def report(done: int, total: int, what: str | None = None) -> None:
            bar.update(task, description=escape(safe(what or description)))
            if total:
                bar.update(task, completed=done, total=total)

        yield report


def say(message: str) -> None:
    """One line of talk to the person."""
    sys.stderr.write(safe(message) + "\n")
