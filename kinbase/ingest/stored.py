"""Families that are stored: what the database has of them, and their checkpoints opened again."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass

from kinbase.checkpoint import Checkpoint
from kinbase.checkpoint.open import read
from kinbase.store import Connection, Store, sketches
from kinbase.store import kinship as sums
from kinbase.store import names as naming


@dataclass(frozen=True, slots=True)
class StoredFamily:
    """What the database has of one family: its base and members, those of them without a sketch, passes begun."""

    members: Sequence[naming.Member]
    unsketched: frozenset[str]
    begun: frozenset[str]


def stored_family(con: Connection | None, base: str) -> StoredFamily:
    """What is stored of a base's family."""
    if con is None:
        return StoredFamily((), frozenset({base}), frozenset())
    members = members_of(con, base)
    names = {base, *(m.name for m in members)}
    return StoredFamily(
        members, frozenset(names - sketches.any_of(con, names)), frozenset(sums.kept_keys(con))
    )


def members_of(con: Connection, base: str) -> list[naming.Member]:
    """A stored base, if it has weights, and the models with weights that are measured against it."""
    base_id = naming.find(con, base)
    return [m for m in naming.members(con) if base_id is not None and base_id in (m.model_id, m.base_id)]


def open_members(
    store: Store, base: str, *, only: Collection[str] | None = None
) -> tuple[dict[str, Checkpoint], list[str]]:
    """`open_stored` of a stored base and its members, or `only` some of them."""
    if not store.path.exists():
        return {}, []
    with store.reading() as con:
        members = members_of(con, base)
    return open_stored([m for m in members if only is None or m.name in only])


def open_stored(
    members: Sequence[naming.Member], *, depth: str = "kept"
) -> tuple[dict[str, Checkpoint], list[str]]:
    """Open the weights of stored models again.

    Returns the checkpoints by name, and the names of those whose files are not what they were, or are not on
    this machine: those are opened where they lie if `depth` (as of `checkpoint.open.read`) is stream or sample.
    """
    opened: dict[str, Checkpoint] = {}
    gone = []
    for member in members:
        is_away = any(file.elsewhere for file in member.files)
        is_there = depth != "kept" if is_away else all(file.as_it_was for file in member.files)
        source = read(member.source, member.name, depth=depth if is_away else "kept") if is_there else None
        if source and source.checkpoint and frozenset(source.checkpoint.files) == member.files:
            opened[member.name] = source.checkpoint
        else:
            gone.append(member.name)
            if source:
                source.close()
    return opened, gone


def whole(store: Store | None, members: Sequence[Checkpoint], base: str) -> list[Checkpoint]:
    """`members` with each adapter of a fine-tune among them read together with that fine-tune's weights.

    An adapter of the base is its own delta; so is one of a model nobody here knows, on the word of
    whoever chose the base.
    """
    from kinbase.checkpoint.adapters import applied

    by_name = {member.name: member for member in members}
    result = []
    for member in members:
        onto = member.delta_of
        if onto is not None and onto not in by_name and store is not None and store.path.exists():
            with store.reading() as con:
                known = naming.find(con, onto)
                onto = naming.name_of(con, known) if known is not None else None
        tuned = by_name.get(onto) if onto is not None and onto != base else None
        result.append(member if tuned is None or tuned is member else applied(member, tuned))
    return result
