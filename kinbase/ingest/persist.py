"""What was read and measured, to rows: models, names, sums, pairs and claims, in short transactions.

The models' rows come first, and with them their ids by the names that the sources have for them; the sums next,
then what the sources say besides weights.
"""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

from kinbase.checkpoint import (
    Alias,
    Edge,
    Facts,
    ReportedKinship,
    Score,
    Table,
    Task,
    Training,
)
from kinbase.errors import DatabaseError, DiskError, KinbaseError
from kinbase.ingest.said import store_claims, store_facts, store_names, store_sizes
from kinbase.ingest.steps import FamilySample, Measured, Outcome, Placed, Row, Sampled, Todo
from kinbase.ingest.stored_sums import (
    SLICE_BYTES,
    Ids,
    StoredSums,
    pair_bytes,
    store_pairs,
    store_sample,
    store_sums,
)
from kinbase.store import Connection, Store, journal, models
from kinbase.store import kinship as sums
from kinbase.store import names as naming

Also = Callable[[Connection, Sequence[Outcome]], None]
"""What writes more of an import in its transaction."""


def store_sources(
    store: Store, done: Measured | Sampled, *, has_kinship: bool, also: Also | None = None
) -> list[Outcome]:
    """Store what sources say and what passes or samples found, and what `also` writes, in one transaction.

    The pairs of a large family follow in transactions of their own, each well under a second, unless `also` is to
    see them. Returns what became of each source; what could not be stored of it is among its notes.
    """
    try:
        try:
            return _store_all(store, done, has_kinship=has_kinship, also=also)
        except (DatabaseError, DiskError):
            raise
        except Exception as error:
            bad = _refused(store, done.sources)
            if not bad:
                raise
            reason = f"what it says cannot be stored: {' '.join(str(error).split())[:200]}"
            sources = tuple(s.failed(reason) if i in bad else s for i, s in enumerate(done.sources))
            return _store_all(store, replace(done, sources=sources), has_kinship=has_kinship, also=also)
    finally:
        for family in done.families:
            if not isinstance(family, FamilySample):
                family.dots.close()


def _store_all(
    store: Store, done: Measured | Sampled, *, has_kinship: bool, also: Also | None
) -> list[Outcome]:
    if all(source.todo in (Todo.FAIL, Todo.NOTHING) for source in done.sources):
        outcomes = [_outcome(source, _status(source, done)) for source in done.sources]
        if also is not None:
            with store.writing() as con:
                also(con, outcomes)
        return outcomes
    is_large = also is None and sum(pair_bytes(family) for family in done.families) > SLICE_BYTES
    with store.writing() as con:
        rows, families = _store(con, done, has_kinship=has_kinship and not is_large, is_large=is_large)
        if also is not None:
            also(con, [row.outcome for row in rows])
        told = [row.outcome.source for row in rows if not row.outcome.is_failed]
        journal.put_import(con, told, has_weights=bool(done.families))
    if is_large:
        rows = _store_large(store, rows, families, done, has_kinship=has_kinship)
    return [row.outcome for row in rows]


def _refused(store: Store, sources: Sequence[Placed]) -> set[int]:
    """Which sources say something that cannot be stored, tried without their weights and taken back."""
    bad: set[int] = set()
    parts = [list(range(len(sources)))]
    while parts:
        part = parts.pop()
        if _is_storable(store, [sources[i] for i in part]):
            continue
        if len(part) == 1:
            bad |= set(part)
        else:
            parts += [part[: len(part) // 2], part[len(part) // 2 :]]
    return bad


class _TakenBack(Exception):
    """Ends a transaction that was a trial."""


def _is_storable(store: Store, sources: Sequence[Placed]) -> bool:
    light = Measured(tuple(source.without_reading() for source in sources))
    try:
        with store.writing() as con:
            _store(con, light, has_kinship=False, is_large=False)
            raise _TakenBack
    except _TakenBack:
        return True
    except (DatabaseError, DiskError):
        raise
    except Exception:
        return False


def _store(
    con: Connection, done: Measured | Sampled, *, has_kinship: bool, is_large: bool
) -> tuple[list[Row], list[StoredSums]]:
    """All of an import but, of a large one, the pairs of its families and what is estimated beside them."""
    rows = _store_models(con, done)
    ids = _ids(con, rows, done)
    _store_bases(con, rows, ids)
    families: list[StoredSums] = []
    if isinstance(done, Sampled):
        for sample in done.families:
            store_sample(con, sample, ids)
    else:
        # A base before those that do not fit it.
        for family in sorted(done.families, key=lambda family: bool(family.changes)):
            stored = store_sums(con, family, ids)
            families += [stored] if stored else []
    for stored in families:
        if is_large:
            sums.put_unfinished(con, stored.new)
        else:
            stored.put_pairs(con)
    rows = rows if is_large else _meet(con, rows, done, has_kinship)
    rows = store_names(con, rows)
    store_facts(con, rows)
    rows = store_claims(con, rows)
    store_sizes(con, rows)
    return rows, families


def _store_large(
    store: Store,
    rows: list[Row],
    families: Sequence[StoredSums],
    done: Measured | Sampled,
    *,
    has_kinship: bool,
) -> list[Row]:
    """The pairs of families, a slice at a time with room for others in between, and what is estimated beside them."""
    store_pairs(store, families)
    with store.writing() as con:
        for family in families:
            sums.drop_unfinished(con, family.new)
        return _meet(con, rows, done, has_kinship)


# Models.


def _store_models(con: Connection, done: Measured | Sampled) -> list[Row]:
    """Every source with its model's row."""
    statuses = [_status(source, done) for source in done.sources]
    light = ("metadata", "sampled", "unchanged", "refused")
    named = naming.named_all(
        con,
        [str(s.name) for s, status in zip(done.sources, statuses, strict=True) if status in light and s.name],
    )
    digests = done.digests
    read = [
        models.Read(
            str(s.name), digests[str(s.name)], s.opened.checkpoint.source, s.opened.checkpoint.files, _own(s)
        )
        for s, status in zip(done.sources, statuses, strict=True)
        if status == "imported" and s.opened.checkpoint
    ]
    stored = models.put_models(con, read)
    places = models.places(con, [put.model_id for put in stored.values() if isinstance(put, models.Put)])
    rows = []
    for source, status in zip(done.sources, statuses, strict=True):
        if status == "imported":
            rows.append(_weighed(source, stored[str(source.name)], places))
        else:
            model_id = named[str(source.name)] if status in light else None
            rows.append(Row(source, _outcome(source, status), model_id))
    return rows


def _status(source: Placed, done: Measured | Sampled) -> str:
    """What becomes of a source, as far as it does not depend on what is stored."""
    match source.todo:
        case Todo.FAIL:
            return "failed"
        case Todo.NOTHING | Todo.KEEP:
            return "unchanged"
        case Todo.MEASURE | Todo.READ | Todo.REREAD:
            return "sampled" if isinstance(done, Sampled) else "imported"
    if source.opened.refused is not None and source.name is not None:
        return "refused"
    is_model = source.opened.checkpoint or source.opened.commit
    return "metadata" if source.name is not None and is_model else "records"


COUNTED = {
    Edge: ("claim of a parent", "claims of parents"), Score: ("score", "scores"), ReportedKinship: ("kinship", "kinships"),
    Facts: ("model's facts", "models' facts"), Alias: ("other name", "other names"), Task: ("task", "tasks"),
    Training: ("training", "trainings"),
}  # fmt: skip
"""What a source of records says, one of it and several."""


def _outcome(source: Placed, status: str) -> Outcome:
    notes = source.notes
    if status == "records":
        found = Counter[type]()
        for _, record in source.opened.records:
            if isinstance(record, Table):
                found[record.kind] += len(record)
            else:
                found[type(record)] += 1
        counts = [
            f"{n:,} {one if n == 1 else many}" for kind, (one, many) in COUNTED.items() if (n := found[kind])
        ]
        notes = (*notes, ", ".join(counts)) if counts else notes
    return Outcome(source.opened.source, source.name, status, source.base, notes)


def _own(source: Placed) -> list[Edge | Facts]:
    """What a source says of its own model's parents and facts."""
    edges = [edge for _, edge in source.opened.said(Edge) if edge.child in (None, source.name)]
    return [*edges, *(facts for _, facts in source.opened.said(Facts) if facts.model in (None, source.name))]


def _weighed(source: Placed, stored: models.Put | KinbaseError, places: Mapping[int, str | None]) -> Row:
    """What became of a source whose weights were read: it fails when its name is taken."""
    outcome = _outcome(source, "imported")
    if isinstance(stored, KinbaseError):
        return Row(source.failed(stored), replace(outcome.noted(str(stored)), status="failed"))
    model_id, name = stored.model_id, stored.name
    if stored.same_as:
        outcome = replace(outcome, status="copy", same_as=stored.same_as)
        return Row(
            source, outcome.noted(f"the same weights as {stored.same_as}, with a card of its own"), model_id
        )
    if stored.note:
        outcome = outcome.noted(stored.note)
    if name != source.name:
        outcome = replace(outcome, name=name, status="alias").noted(
            f"the same weights as {name}: {source.name} is another name of it now"
        )
    checkpoint = source.opened.checkpoint
    kept = places[model_id]
    if checkpoint and kept not in (None, checkpoint.source):
        outcome = outcome.noted(f"read from {kept} before, where they still are: that stays their place")
    return Row(source, outcome, model_id)


def _ids(con: Connection, rows: Sequence[Row], done: Measured | Sampled) -> Ids:
    """The ids of all models that the import speaks of: its sources, their bases, and the members beside them."""
    ids: dict[str, int | None] = {}
    for row in rows:
        if row.outcome.is_failed:
            if row.placed.opened.checkpoint:
                ids.setdefault(str(row.placed.name), None)  # a pass may have met it, but it is not stored
        elif row.placed.name:
            ids[row.placed.name] = row.model_id
    # Anew: weights that came in under the name of a row without any have taken that row's place.
    ids |= naming.ids(con, [name for name, model_id in ids.items() if model_id is not None])
    others = {str(row.placed.base) for row in rows if row.placed.base}
    for family in done.families:
        if isinstance(family, FamilySample):
            others |= {family.base, *family.members}
        else:
            others |= {family.base.name, *(member.name for member in family.members)}
    return ids | naming.ids(con, others - ids.keys())


def _store_bases(con: Connection, rows: Sequence[Row], ids: Ids) -> None:
    """Which family each new model belongs to."""
    bases = {}
    for row in rows:
        base_id = ids.get(str(row.placed.base))
        is_member = row.outcome.status == "imported" and row.placed.base not in (None, row.placed.name)
        # The weights of the base under another name are no member of their own family.
        if is_member and row.model_id is not None and base_id is not None and base_id != row.model_id:
            bases[row.model_id] = base_id
    models.put_bases(con, bases)


# Kinship.


def _meet(con: Connection, rows: list[Row], done: Measured | Sampled, has_kinship: bool) -> list[Row]:
    """Estimate by sketches new members' kinship with those they were not measured with; say whom others resemble."""
    new = {
        row.placed.name
        for row in rows
        if row.outcome.status == "imported" and row.placed.todo is not Todo.REREAD
    }
    if not new:
        return rows
    from kinbase.ingest import estimate as meeting

    ids = [row.model_id for row in rows if row.placed.name in new and row.model_id is not None]
    measured = {family.base.name for family in done.families if not isinstance(family, FamilySample)}
    for base_id, members in naming.by_base(con, ids).items() if has_kinship else ():
        meeting.meet(con, base_id, members)
        is_measured = isinstance(done, Measured) and naming.name_of(con, base_id) in measured
        line = meeting.meanwhile(con, base_id, [*done.known, *members]) if is_measured else None
        rows = [row.noted(line) if line and row.model_id in members else row for row in rows]
    bases = {row.placed.base for row in rows}
    for i, row in enumerate(rows):
        is_lonely = row.placed.base is None and row.placed.name not in bases
        if row.placed.name in new and row.model_id is not None and is_lonely:
            line = meeting.suggestion(con, row.model_id)
            rows[i] = row.noted(line) if line else row
    return rows
