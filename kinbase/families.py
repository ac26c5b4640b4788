"""Families that are stored: their checkpoints opened again, what is missing measured, sums to rows."""

from collections.abc import Callable, Collection, Sequence
from typing import TYPE_CHECKING

from kinbase import naming, records, sketches, sums
from kinbase.checkpoint import Checkpoint, Tensor
from kinbase.errors import CheckpointError
from kinbase.sources import Source, read
from kinbase.store import Connection, Store

if TYPE_CHECKING:  # the pass costs half a second of imports, which records alone need not pay
    from kinbase.measuring import Family

Report = Callable[[int, int], None]


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
    from kinbase import meeting

    with store.writing() as con:
        meeting.estimate_named(con, base, pairs)
        return naming.sketched_pairs(con, pairs)


def measure_alone(
    store: Store,
    source: Source,
    base: str | None = None,
    arriving: Checkpoint | None = None,
    *,
    report: Report = lambda done, total: None,
) -> "list[Family]":
    """One reading of a source by itself, for its identity and its sketch, fitted to a stored or `arriving` base.

    A base stored without a sketch is read too. What does not fit one whose files are gone cannot be told: the
    source then has no sketch, and a note. Raises CheckpointError when the source cannot be read, and when it shares
    nothing with its base.
    """
    from kinbase.measuring import measure

    assert source.checkpoint
    own = measure(store, source.checkpoint, hash_base=True, device="cpu", report=report)
    if base is None or source.checkpoint.delta_of is not None:
        return [own]
    opened: dict[str, Checkpoint] = {}
    found = [own]
    try:
        if arriving is None:
            opened = open_members(store, base, only=[base])[0]
            with store.reading() as con:
                base_id = naming.find(con, base)
                sketched = base_id is not None and sketches.has(con, base_id)
                listed = sums.weights(con, base_id) if base_id is not None else []
            if base in opened and not sketched:
                found.insert(0, measure(store, opened[base], hash_base=True, device="cpu", report=report))
        against = arriving or opened.get(base) or _remembered(base, listed, source.checkpoint)
        try:
            own.fit(against, [source.checkpoint])
        except CheckpointError:
            own.changes[source.checkpoint.name] = None
            source.notes.append(
                f"not all its tensors fit {base}, whose files are gone or changed: no sketch of its change"
            )
    finally:
        for checkpoint in opened.values():
            checkpoint.close()
    change = own.changes.get(source.checkpoint.name)
    if change is not None and change.numel == 0:
        raise CheckpointError(
            f"{source.name} shares no tensor with {base}: give the base it was tuned from with --base"
        )
    return found


def _remembered(base: str, listed: Sequence[tuple[str, str, int]], member: Checkpoint) -> Checkpoint:
    """A base whose files are gone, as far as its tensors' names and sizes tell how a member fits it."""

    def gone(start: int, out: memoryview) -> None:
        raise CheckpointError(f"the files of {base} are gone or changed")

    from kinbase.alignment import labels

    ours = {label: name for name, label in labels(member.tensors).items()}
    by_name = {tensor.name: tensor for tensor in member.tensors}
    tensors = []
    for label, dtype, numel in listed:
        match = by_name.get(ours.get(label, ""))
        row = 1
        for extent in match.shape[1:] if match else ():
            row *= extent
        whole = match is not None and len(match.shape) > 0 and row > 0 and numel % row == 0
        shape = (numel // row, *match.shape[1:]) if match and whole else (numel,)
        tensors.append(Tensor(ours.get(label, label), dtype, shape, gone))
    return Checkpoint(base, base, tensors)


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


def without_sketch(con: Connection, names: Sequence[str]) -> set[str]:
    """Those of `names` that have no sketch, whose kinship must be measured or wait."""
    return set(names) - sketches.any_of(con, names)


def gone_notes(gone: Sequence[str], unsketched: Collection[str]) -> list[str]:
    """What to say of members whose files are not there."""
    notes = [f"no kinship with {name}: its files are gone or changed" for name in gone if name in unsketched]
    by_sketch = [name for name in gone if name not in unsketched]
    if by_sketch:
        others = f" and {len(by_sketch) - 3} more" if len(by_sketch) > 3 else ""
        notes.append(
            f"kinship with {', '.join(by_sketch[:3])}{others} is estimated by sketches: their files are gone or changed"
        )
    return notes


def store_family(con: Connection, family: "Family", ids: dict[str | None, int | None]) -> None:
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
        records.put_base(con, model_id, base_id)
        sums.put_deltas(con, model_id, base_id, family.statistics(i))
        sums.put_skipped(con, model_id, {**family.members[i].skipped, **family.skipped[i]})
    sums.put_pairs(con, base_id, family.pairs(members))
