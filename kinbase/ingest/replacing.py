"""New weights under an old name: the model that had it is set aside as NAME@DATE, with its edges and scores.

It is set aside before the import, so that the two are told apart by name on the way in, and gets its name back when
the import fails or when its weights turn out to be the same. An import that is broken off in between goes on when it is
run again.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from kinbase.checkpoint.open import elsewhere, read
from kinbase.errors import UsageError
from kinbase.ingest.pipeline import import_sources
from kinbase.ingest.steps import ImportOptions, Outcome
from kinbase.ingest.trajectories import legs
from kinbase.store import Connection, Store, corrections, journal
from kinbase.store import names as naming


def import_replacing(store: Store, sources: Sequence[str], options: ImportOptions) -> list[Outcome]:
    """`import_sources`, with the names of stored models given to what the sources hold under them.

    Raises like that, and UsageError for a source that is not on this machine: its versions have names of their own.
    """
    moved = set_aside(store, sources, options.name)
    try:
        outcomes = import_sources(store, sources, options)
    except BaseException:
        for model in moved:
            restore(store, model)
        raise
    return settle(store, moved, outcomes)


@dataclass(frozen=True, slots=True)
class SetAside:
    """A model whose name is to go to new weights, and what it is called until it is known whether they are new."""

    name: str
    former: str


def set_aside(store: Store, sources: Sequence[str], name: str | None) -> list[SetAside]:
    """Rename the stored models whose names the sources have and whose files they are not."""
    if not store.path.exists():
        return []
    away = next(filter(elsewhere, sources), None)
    if away:
        raise UsageError(
            f"--replace is for folders and files here: versions of {away} are models of their own"
        )
    moved = []
    for leg in legs(sources, name):
        opened = read(leg.source, leg.name)
        try:
            if opened.checkpoint is None or opened.name is None:
                continue
            files = frozenset(opened.checkpoint.files)
        finally:
            opened.close()
        with store.writing() as con:
            member = next((m for m in naming.members(con) if m.name == opened.name), None)
            if member is None or member.files == files:
                continue
            former = _free(con, member.name, corrections.day_of(con, member.name))
            with journal.act(con, "rename", f"{member.name} {former}"):
                corrections.rename(con, member.name, former, forget=True)
        moved.append(SetAside(member.name, former))
    return moved


def settle(store: Store, moved: Sequence[SetAside], outcomes: Sequence[Outcome]) -> list[Outcome]:
    """Give models their names back whose weights did not change or were not replaced; say of the others what they are."""
    settled = list(outcomes)
    back = []
    for model in moved:
        at = next((i for i, o in enumerate(settled) if o.name in (model.name, model.former)), None)
        if at is None or settled[at].is_failed:
            back.append(model)
        elif settled[at].name == model.former:
            back.append(model)
            settled[at] = Outcome(settled[at].source, model.name, "unchanged", settled[at].base)
        else:
            settled[at] = settled[at].noted(f"the weights that were called so are {model.former} now")
    for model in back:
        restore(store, model)
    return settled


def restore(store: Store, model: SetAside) -> None:
    """Give a model its name back, unless it has gone to others."""
    with store.writing() as con:
        holder, own = naming.find(con, model.name), naming.find(con, model.former)
        if own is not None and holder in (None, own):
            with journal.act(con, "rename", f"{model.former} {model.name}"):
                corrections.rename(con, model.former, model.name, forget=True)


def _free(con: Connection, name: str, day: str) -> str:
    """NAME@DAY, or the first of NAME@DAY.2, NAME@DAY.3 that is not a name yet."""
    former, number = f"{name}@{day}", 1
    while naming.find(con, former) is not None:
        number += 1
        former = f"{name}@{day}.{number}"
    return former
