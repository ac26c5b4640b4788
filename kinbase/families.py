"""Families that are stored: their checkpoints opened again, what is missing measured, sums to rows."""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from kinbase import naming, records, sums
from kinbase.checkpoint import Checkpoint, FileStamp
from kinbase.errors import CheckpointError
from kinbase.sources import read
from kinbase.store import Connection, Store

if TYPE_CHECKING:  # the pass costs half a second of imports, which records alone need not pay
    from kinbase.measuring import Family

Report = Callable[[int, int], None]


def open_members(
    store: Store, base: str, *, without: Sequence[str | None] = ()
) -> tuple[dict[str, Checkpoint], list[str]]:
    """Open a stored base and its members again, the base too, but for those in `without`.

    Returns the checkpoints by name, and the names of those whose files are not what they were.
    """
    if not store.path.exists():
        return {}, []
    with store.reading() as con:
        base_id = naming.find(con, base)
        stored = [
            m for m in naming.members(con) if base_id is not None and base_id in (m.model_id, m.base_id)
        ]
    opened: dict[str, Checkpoint] = {}
    gone = []
    for member in stored:
        if member.name in without:
            continue
        source = (
            read(member.source, member.name) if all(is_as_it_was(file) for file in member.files) else None
        )
        if source and source.checkpoint and frozenset(source.checkpoint.files) == member.files:
            opened[member.name] = source.checkpoint
        else:
            gone.append(member.name)
    return opened, gone


def whole(store: Store, members: Sequence[Checkpoint], base: str) -> list[Checkpoint]:
    """`members` with each adapter of a fine-tune among them read together with that fine-tune's weights.

    An adapter of the base is its own delta; so is one of a model nobody here knows, on the word of
    whoever chose the base.
    """
    from kinbase.adapters import applied

    by_name = {member.name: member for member in members}
    result = []
    for member in members:
        onto = member.delta_of
        if onto is not None and onto not in by_name and store.path.exists():
            with store.reading() as con:
                known = naming.find(con, onto)
                onto = naming.name_of(con, known) if known is not None else None
        tuned = by_name.get(onto) if onto is not None and onto != base else None
        result.append(member if tuned is None or tuned is member else applied(member, tuned))
    return result


def measure_missing(
    store: Store, models: Sequence[str], *, device: str = "auto", report: Report = lambda done, total: None
) -> list[str]:
    """Measure the pairs without exact kinship: among `models`, or of the only one with its whole family.

    Returns a line for each model that could not be measured, and why. Raises KinbaseError for an unknown model.
    """
    with store.reading() as con:
        names = [naming.resolve(con, model) for model in models]
        missing = naming.missing_pairs(con, names)
    notes = []
    for base, pairs in missing.items():
        opened, gone = open_members(store, base)
        try:
            notes += [f"{name}: its files are gone or changed, so what is missing stays so" for name in sorted(gone)
                      if name == base or any(name in pair for pair in pairs)]  # fmt: skip
            pairs = [pair for pair in pairs if set(pair) <= opened.keys()]
            if base not in opened or not pairs:
                continue
            fresh = _cover(pairs)
            others = sorted({name for pair in pairs for name in pair} - set(fresh))
            _measure_known(store, opened, base, fresh, others, device, report)
        except CheckpointError as error:
            notes.append(str(error))
        finally:
            for checkpoint in opened.values():
                checkpoint.close()
    return notes


def _cover(pairs: Sequence[tuple[str, str]]) -> list[str]:
    """A few models such that every pair has one of them: always the one in most of the pairs left."""
    left = set(pairs)
    cover = []
    while left:
        name = max(
            sorted({name for pair in left for name in pair}), key=lambda n: sum(n in pair for pair in left)
        )
        cover.append(name)
        left = {pair for pair in left if name not in pair}
    return cover


def _measure_known(
    store: Store,
    opened: dict[str, Checkpoint],
    base: str,
    fresh: list[str],
    others: list[str],
    device: str,
    report: Report,
) -> None:
    from kinbase.gpu import resolve_device
    from kinbase.measuring import measure

    members = whole(store, list(opened.values()), base)
    at = {member.name: member for member in members}
    members = [at[name] for name in fresh + others]
    family = measure(
        store,
        opened[base],
        members,
        new=len(fresh),
        device=resolve_device(device, len(members)),
        report=report,
    )
    with store.writing() as con:
        stored = {member.name: member for member in naming.members(con)}
        for name, digest in family.digests.items():
            alone = any(member is opened[name] for member in members)
            if alone and (name not in stored or stored[name].digest != digest):
                raise CheckpointError(
                    f"{name} is no longer what was imported: import {opened[name].source} again under another --name"
                )
        store_family(con, family, {})


def is_as_it_was(stamp: FileStamp) -> bool:
    """Whether a file was not touched since it was stamped."""
    try:
        return FileStamp.of(stamp.path) == stamp
    except OSError:
        return False


def store_family(con: Connection, family: "Family", ids: dict[str | None, int | None]) -> None:
    """The sums one pass found, for the members that have a row: `ids` by name, else as stored."""
    members = [ids[c.name] if c.name in ids else naming.find(con, c.name) for c in family.members]
    base_id = ids[family.base.name] if family.base.name in ids else naming.find(con, family.base.name)
    sums.drop_kept(con, family.key)
    if base_id is None or not members:
        return
    sums.put_tensors(
        con, base_id, [name for name, _ in family.tensors], [numel for _, numel in family.tensors]
    )
    for i in reversed(range(len(members))):
        # Weights met twice are one model: the first of them is measured.
        if members[i] == base_id or members[i] in members[:i]:
            members[i] = None
    for i in range(family.new):
        model_id = members[i]
        if model_id is None:
            continue
        records.put_base(con, model_id, base_id)
        sums.put_deltas(con, model_id, base_id, family.statistics(i))
        sums.put_skipped(con, model_id, {**family.members[i].skipped, **family.skipped[i]})
    sums.put_pairs(con, base_id, family.pairs(members))
