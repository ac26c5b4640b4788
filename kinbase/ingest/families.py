"""The families of one import, opened one after the other: what measured and sampled imports have in common.

for family in families(store, standing, first=placement.first):
    result, sources = attempt(store, family, work)      # a source that cannot be read fails alone
    settle(standing, sources)
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import TypeVar

from kinbase.checkpoint import Checkpoint
from kinbase.errors import CheckpointError
from kinbase.ingest.bases import bases_of, reading
from kinbase.ingest.steps import Placed, Todo
from kinbase.ingest.stored import StoredFamily, open_stored, stored_family, whole
from kinbase.store import Store

Result = TypeVar("Result")


@dataclass(frozen=True, slots=True)
class Family:
    """One family of an import, opened: its base, the sources that arrive in it, the stored members beside them.

    `base` is None when it is neither here nor on its way; `gone` are stored members that could not be opened.
    """

    base_name: str
    base: Checkpoint | None
    is_base_new: bool
    sources: tuple[Placed, ...]
    others: tuple[Checkpoint, ...]
    gone: tuple[str, ...]
    stored: StoredFamily


def families(
    store: Store,
    standing: list[Placed],
    *,
    first: StoredFamily | None,
    depth: str,
    base_depth: str,
    is_closed: bool = False,
) -> Iterator[Family]:
    """Each family that sources arrive in, its files open until the next is asked for.

    `standing` are the sources as they stand when a family's turn comes, which may be hours after the first: one that
    failed meanwhile is no base of others. `first` is what is stored of the first family, read already. `depth` and
    `base_depth` are how stored members, and a base, are opened that are not on this machine. Of a family that
    `is_closed` no stored members are opened but the base.
    """
    for base_name in bases_of(standing):
        sources = tuple(s for s in standing if s.todo is Todo.MEASURE and s.base == base_name)
        if not sources:
            continue
        arriving = next((s.opened for s in standing if s.is_to_read and s.name == base_name), None)
        stored, first = first or _stored(store, base_name), None
        own = {source.name for source in sources}
        beside = [m for m in stored.members if m.name not in own and (m.name == base_name or not is_closed)]
        opened, gone = open_stored(beside, depth=depth)
        if base_name in gone and arriving is None and base_depth != depth:
            opened |= open_stored([m for m in stored.members if m.name == base_name], depth=base_depth)[0]
        try:
            yield Family(
                base_name=base_name,
                base=arriving.checkpoint if arriving else opened.get(base_name),
                is_base_new=arriving is not None,
                sources=sources,
                others=tuple(checkpoint for name, checkpoint in opened.items() if name != base_name),
                gone=tuple(gone),
                stored=stored,
            )
        finally:
            for checkpoint in opened.values():
                checkpoint.close()


def _stored(store: Store, base_name: str) -> StoredFamily:
    with reading(store) as con:
        return stored_family(con, base_name)


def attempt(
    store: Store, family: Family, work: Callable[[list[Checkpoint], tuple[Placed, ...]], Result]
) -> tuple[Result | None, tuple[Placed, ...]]:
    """Do `work` on the members of a family, the new ones first, and again without those that cannot be read.

    Returns what it found, None when no source is left, and the family's sources, some of them failed.
    """
    left, failed = family.sources, tuple[Placed, ...]()
    while left:
        new = [source.opened.checkpoint for source in left if source.opened.checkpoint]
        try:
            members = whole(store, [*new, *family.others], family.base_name)
            return work(members, left), (*left, *failed)
        except (CheckpointError, OSError) as error:
            unreadable = {s.name for s in left if _is_unreadable(s, error)} or {s.name for s in left}
            failed += tuple(source.failed(error) for source in left if source.name in unreadable)
            left = tuple(source for source in left if source.name not in unreadable)
    return None, failed


def _is_unreadable(source: Placed, error: Exception) -> bool:
    """Whether a source's files changed, or could not be read: an error of none of them is of all."""
    files = source.opened.checkpoint.files if source.opened.checkpoint else []
    return not all(f.as_it_was and not (f.elsewhere and f.path in str(error)) for f in files)


def settle(standing: list[Placed], sources: Iterable[Placed]) -> None:
    """Put sources in their places as they are now: arriving checkpoints have names of their own."""
    now = {source.name: source for source in sources}
    for i, source in enumerate(standing):
        if source.is_to_read and source.name in now:
            standing[i] = now[source.name]
