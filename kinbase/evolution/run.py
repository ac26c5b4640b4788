"""The loop of a run: go on from whatever its rows say, a generation at a time.

Each step leaves a row behind in a short transaction, and each looks at the rows before it does anything. So a run
that was killed goes on where it was: a finished merge is a folder of the child's name, a finished evaluation is
scores, a closed generation is a row. What is decided at once shares a transaction: the last score, the judgement
of the generation and the plan of the next.
"""

import fcntl
import os
from collections.abc import Iterator
from contextlib import closing as closed_after
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from kinbase.errors import DiskError, KinbaseError
from kinbase.evolution import generation as making
from kinbase.evolution import journal, planning, recorded, trust
from kinbase.evolution import selection as closing
from kinbase.evolution.generation import Report, Tell
from kinbase.evolution.subprocesses import Caller
from kinbase.ingest.missing import measure_missing
from kinbase.store import runs

if TYPE_CHECKING:
    from kinbase.evolution.journal import Run
    from kinbase.evolution.planning import Open
    from kinbase.evolution.selection import Closed, Generation
    from kinbase.store import Store


def evolve(
    store: "Store", name: str, *, trusted: bool = False, tell: Tell = lambda line: None,
    report: Report = lambda done, total: None,
) -> "Iterator[Generation]":  # fmt: skip
    """Go on with the run called `name` from whatever its rows say; each generation as it is closed.

    Raises KinbaseError, after which the run can be resumed, when a merge or an evaluation fails, and for an
    unknown run; and for one that was not begun on this machine, unless it is `trusted`: what it names is run.
    KeyboardInterrupt, or closing the generator, leaves the run interrupted.
    """
    run = _read(store, name)
    if run.status == "finished":
        if trusted or trust.is_known(run.config, store.path):
            closing.sweep(run)  # which a kill after its end may have prevented
        tell(f"the run {name} is finished: {run.reason}")
        return
    if trusted:
        trust.remember(run.config, store.path)
    else:
        trust.refuse_stranger(run.config, store.path)
    with _alone(run), closed_after(Caller(run.config.folder)) as caller:
        with store.writing() as con:
            runs.resume(con, name)
        try:
            yield from _generations(store, name, caller, tell, report)
            if run.config.keep != "all":
                closing.sweep(_read(store, name))
        except KinbaseError as error:
            with store.writing() as con:
                runs.end(con, name, "failed", str(error))
            raise type(error)(f"{error}; then `kinbase evolve --resume {name}` goes on") from error
        except (KeyboardInterrupt, GeneratorExit):
            with store.writing() as con:
                runs.end(con, name, "interrupted", "interrupted")
            raise


def _generations(
    store: "Store", name: str, caller: Caller, tell: Tell, report: Report
) -> "Iterator[Generation]":
    here: Open | None = None
    while True:
        if here is None:
            with store.writing() as con:
                here = planning.open_next(con, name)
            if here is None:
                return
        generation, here = _live(store, here, caller, tell, report)
        tell(closing.line(generation))
        yield generation
        if generation.last:
            return


def _live(store: "Store", here: "Open", caller: Caller, tell: Tell, report: Report) -> "Closed":
    """Make and judge one generation."""
    run = here.run
    if run.config.evaluate.by == "recorded":
        with store.writing() as con:
            for line in recorded.look_up(con, run):
                tell(line)
            return closing.close(con, run.config.name)
    if run.generation:
        closing.sweep(run)
    else:  # the models it starts from, which are planned from the beginning
        for note in measure_missing(store, run.config.models, on_progress=report):
            tell(note)
    closed = making.make(store, here, caller, tell, report)
    if closed is None:
        with store.writing() as con:
            closed = closing.close(con, run.config.name)
    return closed


def _read(store: "Store", name: str) -> "Run":
    with store.reading() as con:
        return journal.read(con, name)


@contextmanager
def _alone(run: "Run") -> Iterator[None]:
    """Hold the folder of the children, so that a run goes on in one process only."""
    if run.config.evaluate.by == "recorded":
        yield
        return
    folder = Path(run.config.out)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        held = os.open(folder, os.O_RDONLY)
    except OSError as error:
        raise DiskError(f"the folder {folder} of the children cannot be made: {error.strerror}") from None
    try:
        try:
            fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise KinbaseError(
                f"another process is at work in {folder}: is the run {run.config.name} going on already?"
            ) from None
        yield
    finally:
        os.close(held)
