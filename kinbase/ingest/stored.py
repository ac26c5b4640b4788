"""Families that are stored: their checkpoints opened again, what is missing measured, sums to rows."""

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from kinbase.checkpoint import Checkpoint
from kinbase.checkpoint.open import Source, read
from kinbase.errors import CheckpointError
from kinbase.store import Connection, Store, sketches
from kinbase.store import kinship as sums
from kinbase.store import names as naming
from kinbase.store.models import put_base

if TYPE_CHECKING:  # the pass costs half a second of imports, which records alone need not pay
    from kinbase.kinship.sums import FamilySums

Report = Callable[[int, int], None]


@dataclass(frozen=True, slots=True)
class Stored:
    """What the database has of one family: its base and members, those of them without a sketch, passes begun."""

    members: Sequence[naming.Member]
    unsketched: set[str]
    begun: set[str]


def open_members(
    store: Store,
    base: str,
    *,
    without: Sequence[str | None] = (),
    only: Collection[str] | None = None,
    depth: str = "kept",
) -> tuple[dict[str, Checkpoint], list[str]]:
    """Open a stored base and its members again, the base too, but for those in `without`; or `only` some.

    Returns the checkpoints by name, and the names of those whose files are not what they were, or are not on
    this machine: those are opened where they lie if `depth` (as of `sources.read`) is stream or sample.
    """
    if not store.path.exists():
        return {}, []
    with store.reading() as con:
        stored = members_of(con, base)
    return open_stored(stored, without=without, only=only, depth=depth)


def members_of(con: Connection, base: str) -> list[naming.Member]:
    """A stored base, if it has weights, and the models with weights that are measured against it."""
    base_id = naming.find(con, base)
    return [m for m in naming.members(con) if base_id is not None and base_id in (m.model_id, m.base_id)]


def stored_family(con: Connection | None, base: str) -> Stored:
    """What is stored of a base's family."""
    if con is None:
        return Stored([], {base}, set())
    members = members_of(con, base)
    return Stored(members, without_sketch(con, [base, *(m.name for m in members)]), sums.kept_keys(con))


def without_sketch(con: Connection, names: Sequence[str]) -> set[str]:
    """Those of `names` that have no sketch, whose kinship must be measured or wait."""
    return set(names) - sketches.any_of(con, names)


def open_stored(
    stored: Sequence[naming.Member],
    *,
    without: Sequence[str | None] = (),
    only: Collection[str] | None = None,
    depth: str = "kept",
) -> tuple[dict[str, Checkpoint], list[str]]:
    """`open_members` of members that were read from the database already."""
    opened: dict[str, Checkpoint] = {}
    gone = []
    for member in stored:
        if member.name in without or (only is not None and member.name not in only):
            continue
        away = any(file.elsewhere for file in member.files)
        there = depth != "kept" if away else all(file.as_it_was for file in member.files)
        source = read(member.source, member.name, depth=depth if away else "kept") if there else None
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
    from kinbase.checkpoint.adapters import applied

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
    store: Store,
    models: Sequence[str],
    *,
    exact: bool = False,
    device: str = "auto",
    report: Report = lambda done, total: None,
) -> list[str]:
    """Measure the pairs without kinship: among `models`, or of the only one with its whole family.

    A pair estimated by sketches is not missing, unless all is to be `exact`. What has no files any more is
    estimated where there are sketches. Returns a line for each model that could not be measured, and why. Raises
    KinbaseError for an unknown model.
    """
    with store.reading() as con:
        names = [naming.resolve(con, model) for model in models]
        missing = naming.missing_pairs(con, names, exact=exact)
    notes = []
    for base, pairs in missing.items():
        opened, gone = open_members(store, base, only={base, *(name for pair in pairs for name in pair)})
        try:
            left = [pair for pair in pairs if base not in opened or not set(pair) <= opened.keys()]
            estimated = _estimate(store, base, left)
            lost = {name for pair in set(left) - estimated for name in (base, *pair)}
            notes += [
                f"{name}: its files are gone or changed, so what is missing stays so"
                for name in sorted(lost.intersection(gone))
            ]
            if exact:
                notes += [
                    f"{name}: its files are gone or changed, so its kinship stays an estimate"
                    for name in sorted(
                        {name for pair in estimated for name in (base, *pair)}.intersection(gone)
                    )
                ]
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


def _estimate(store: Store, base: str, pairs: Sequence[tuple[str, str]]) -> set[tuple[str, str]]:
    """Estimate pairs by sketches; those that have an estimate."""
    if not pairs:
        return set()
    from kinbase.ingest import estimate as meeting

    with store.writing() as con:
        meeting.estimate_named(con, base, pairs)
        return naming.sketched_pairs(con, pairs)


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
    from kinbase.ingest.family_pass import measure
    from kinbase.kinship.gpu import resolve_device

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
            alone = any(member is opened[name] for member in (opened[base], *members))
            if not alone:
                family.forget(name)
            if alone and (name not in stored or stored[name].digest != digest):
                raise CheckpointError(
                    f"{name} is no longer what was imported: import {opened[name].source} again under another --name"
                )
        store_family(con, family, {})


def without_unreadable(group: list[Source], error: CheckpointError) -> list[Source]:
    """Fail the sources whose files changed or could not be read, or all of them when it was none of theirs."""
    changed = [
        s
        for s in group
        if s.checkpoint
        and not all(f.as_it_was and not (f.elsewhere and f.path in str(error)) for f in s.checkpoint.files)
    ]
    for source in changed or group:
        source.fail(error)
    return [source for source in group if source.arriving]


def store_family(con: Connection, family: "FamilySums", ids: dict[str | None, int | None]) -> None:
    """The sums one pass found, for the members that have a row: `ids` by name, else as stored."""
    members = [ids[c.name] if c.name in ids else naming.find(con, c.name) for c in family.members]
    base_id = ids[family.base.name] if family.base.name in ids else naming.find(con, family.base.name)
    sums.drop_kept(con, family.key)
    sketches.put_own(con, family, ids)
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
        put_base(con, model_id, base_id)
        sums.put_deltas(con, model_id, base_id, family.statistics(i))
        sums.put_skipped(con, model_id, {**family.members[i].skipped, **family.skipped[i]})
    sums.put_pairs(con, base_id, family.pairs(members))
