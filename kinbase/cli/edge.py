"""The edge: what a command raises becomes one line on stderr and an exit code, caught here and nowhere else."""

import contextlib
import os
import sys
from collections.abc import Callable

import click

from kinbase.errors import KinbaseError, QueryError


def finish(call: Callable[[], object]) -> int:
    """Call, tell in a line what went wrong, and return the exit code."""
    try:
        try:
            call()
            sys.stdout.flush()
        except KinbaseError as error:
            from kinbase.text import safe

            sys.stdout.flush()
            sys.stderr.write(f"kinbase: {safe(error)}\n" + _place(error))
            return error.exit_code
    except click.ClickException as error:
        error.show()
        return error.exit_code
    except (KeyboardInterrupt, click.Abort):
        sys.stderr.write("kinbase: interrupted\n")
        return 130
    except BrokenPipeError:
        # The reader of a pipe has seen enough.
        _abandon_output()
        return 0
    except OSError as error:
        from kinbase.text import safe

        where = (
            f"{error.filename} cannot be read or written"
            if error.filename
            else "the output cannot be written"
        )
        sys.stderr.write(f"kinbase: {safe(where)}: {(error.strerror or str(error)).lower()}\n")
        _abandon_output()
        return 1
    return 0


def _place(error: KinbaseError) -> str:
    """The line of a query that an error speaks of, and a caret under the place."""
    if not isinstance(error, QueryError):
        return ""
    from kinbase.text import safe, text_width

    head = f"line {error.line}: "
    before = text_width(safe(error.text[: error.at]))
    return f"  {head}{safe(error.text)}\n  {' ' * (len(head) + before)}^\n"


def _abandon_output() -> None:
    """Keep Python from flushing once more, at exit, into what takes nothing."""
    with contextlib.suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
