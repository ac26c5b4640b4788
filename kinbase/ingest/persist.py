"""What was read and measured, to rows: models, names, sums, pairs and claims, in one short transaction.

The models' rows come first, and with them their ids by the names that the sources have for them; the sums next,
then what the sources say besides weights.
"""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from kinbase.checkpoint import (
    FLOAT_DTYPES,
    Alias,
    Edge,
    Facts,
    Record,
    ReportedKinship,
    Score,
    Task,
    Training,
)
from kinbase.errors import KinbaseError
from kinbase.ingest.steps import FamilySample, Measured, Outcome, Placed, Sampled, Todo
from kinbase.store import Connection, Store, models, sketches
from kinbase.store import kinship as sums
from kinbase.store import names as naming
from kinbase.store.estimates import drop_reported, put_reported, put_sampled
from kinbase.store.lineage import put_claims
from kinbase.store.scores import put_scores, put_tasks, put_trainings

if TYPE_CHECKING:  # the pass costs half a second of imports, which records alone need not pay
    from kinbase.kinship.sums import FamilySums

Also = Callable[[Connection, Sequence[Outcome]], None]
"""What writes more of an import in its transaction."""

Kind = TypeVar("Kind")

Ids = Mapping[str, int | None]
"""The rows of models by the names that the sources of an import have for them; None for one without a row."""


@dataclass(frozen=True, slots=True)
class Row:
    """A source with what became of it, and the id of its model's row, if it has one."""

    placed: Placed
    outcome: Outcome
    model_id: int | None = None

    @property
    def is_told(self) -> bool:
        """Whether anything that it says is to be stored."""
        return not self.outcome.is_failed and self.placed.todo is not Todo.NOTHING

    def noted(self, *lines: str) -> "Row":
        """The row with more to say of its source."""
        return replace(self, outcome=self.outcome.noted(*lines))


def store_sources(
    store: Store, done: Measured | Sampled, *, has_kinship: bool, also: Also | None = None
) -> list[Outcome]:
    """Store what sources say and what passes or samples found, and what `also` writes, in one transaction.

    Returns what became of each source; what could not be stored of it is among its notes.
    """
    has_nothing = all(source.todo in (Todo.FAIL, Todo.NOTHING) for source in done.sources)
    if has_nothing and also is None:
        return [_outcome(source, _status(source, done)) for source in done.sources]
    with store.writing() as con:
        if has_nothing:
            outcomes = [_outcome(source, _status(source, done)) for source in done.sources]
        else:
            outcomes = [row.outcome for row in _store(con, done, has_kinship)]
        if also is not None:
            also(con, outcomes)
    return outcomes


def _store(con: Connection, done: Measured | Sampled, has_kinship: bool) -> list[Row]:
    rows = _store_models(con, done)
    ids = _ids(con, rows, done)
    _store_bases(con, rows, ids)
    if isinstance(done, Sampled):
        for sample in done.families:
            store_sample(con, sample, ids)
    else:
        # A base before those that do not fit it.
        for family in sorted(done.families, key=lambda family: bool(family.changes)):
            store_family(con, family, ids)
    rows = _meet(con, rows, has_kinship)
    rows = _store_names(con, rows)
    told = _told_ids(con, rows)  # again: an alias may have made two rows one
    _store_facts(con, rows, told)
    rows = _store_claims(con, rows)
    _store_sizes(con, rows, told)
    return rows


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
    rows = []
    for source, status in zip(done.sources, statuses, strict=True):
        if status == "imported":
            rows.append(_store_weights(con, source, digests[str(source.name)]))
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


def _outcome(source: Placed, status: str) -> Outcome:
    return Outcome(source.opened.source, source.name, status, source.base, source.notes)


def _store_weights(con: Connection, source: Placed, digest: str) -> Row:
    """The row of a model whose weights were read, and its names; it fails when its name is taken."""
    checkpoint = source.opened.checkpoint
    assert checkpoint and source.name
    outcome = _outcome(source, "imported")
    said = [record for _, record in source.opened.records if isinstance(record, Edge | Facts)]
    own = [r for r in said if (r.child if isinstance(r, Edge) else r.model) in (None, source.name)]
    try:
        put = models.put_model(con, source.name, digest, checkpoint.source, checkpoint.files, own)
    except KinbaseError as error:
        return Row(source.failed(error), replace(outcome.noted(str(error)), status="failed"))
    if put.same_as:
        outcome = replace(outcome, status="copy", same_as=put.same_as)
        return Row(
            source, outcome.noted(f"the same weights as {put.same_as}, with a card of its own"), put.model_id
        )
    if put.note:
        outcome = outcome.noted(put.note)
    model_id, name = put.model_id, put.name
    if name != source.name:
        outcome = replace(outcome, name=name, status="alias").noted(
            f"the same weights as {name}: {source.name} is another name of it now"
        )
    if (kept := models.place(con, model_id)) not in (None, checkpoint.source):
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
    others = {str(row.placed.base) for row in rows if row.placed.base}
    for family in done.families:
        if isinstance(family, FamilySample):
            others |= {family.base, *family.members}
        else:
            others |= {family.base.name, *(member.name for member in family.members)}
    return ids | naming.ids(con, others - ids.keys())


def _store_bases(con: Connection, rows: Sequence[Row], ids: Ids) -> None:
    """Which family each new model belongs to."""
    for row in rows:
        base_id = ids.get(str(row.placed.base))
        is_member = row.outcome.status == "imported" and row.placed.base not in (None, row.placed.name)
        if is_member and row.model_id is not None and base_id is not None:
            models.put_base(con, row.model_id, base_id)


# Kinship.


def store_family(con: Connection, family: "FamilySums", ids: Ids) -> None:
    """The sums one pass found, for the members that have a row."""
    members = [ids.get(member.name) for member in family.members]
    base_id = ids.get(family.base.name)
    sums.drop_kept(con, family.key)
    sketches.put_own(con, family, ids)
    if base_id is None or not members:
        return
    are_others = sums.put_tensors(
        con, base_id, [name for name, _ in family.tensors], [numel for _, numel in family.tensors]
    )
    for i in reversed(range(len(members))):
        # Weights met twice are one model: the first of them is measured.
        if members[i] == base_id or members[i] in members[:i]:
            members[i] = None
    for i, model_id in enumerate(members if are_others else members[: family.new]):
        if model_id is None:
            continue
        models.put_base(con, model_id, base_id)
        sums.put_deltas(con, model_id, base_id, family.statistics(i))
        sums.put_skipped(con, model_id, {**family.skipped[i], **family.members[i].skipped})
    sums.put_pairs(con, base_id, family.pairs(members))


def store_sample(con: Connection, family: FamilySample, ids: Ids) -> None:
    """The estimates of one family, for the members that have a row."""
    members = [ids.get(name) for name in family.members]
    base_id = ids.get(family.base)
    if base_id is None:
        return
    for model_id in members[: family.new]:
        if model_id is not None and model_id != base_id:
            models.put_base(con, model_id, base_id)
    sample = family.sample
    read = f"{sample.run_bytes} bytes a run, {sample.nbytes} bytes in all"
    put_sampled(
        con,
        base_id,
        [
            (members[e.i], members[e.j], e.pcc, e.cs, e.ed, e.stderr, e.coverage, f"{e.runs} runs of {read}")
            for e in sample.estimates
            if None not in (members[e.i], members[e.j]) and members[e.i] != members[e.j]
        ],
    )


def _meet(con: Connection, rows: list[Row], has_kinship: bool) -> list[Row]:
    """Estimate by sketches new members' kinship with those they were not measured with; say whom others resemble."""
    new = {
        row.placed.name
        for row in rows
        if row.outcome.status == "imported" and row.placed.todo is not Todo.REREAD
    }
    if not new:
        return rows
    from kinbase.ingest import estimate as meeting

    groups: dict[int, list[int]] = {}
    for row in rows:
        if row.placed.name in new and row.model_id is not None and has_kinship:
            base_id = naming.base_id(con, row.model_id)
            if base_id is not None:
                groups.setdefault(base_id, []).append(row.model_id)
    for base_id, members in groups.items():
        meeting.meet(con, base_id, members)
    bases = {row.placed.base for row in rows}
    for i, row in enumerate(rows):
        is_lonely = row.placed.base is None and row.placed.name not in bases
        if row.placed.name in new and row.model_id is not None and is_lonely:
            line = meeting.suggestion(con, row.model_id)
            rows[i] = row.noted(line) if line else row
    return rows


# What sources say.


def _records(row: Row) -> list[tuple[str, Record]]:
    """What a source says, and first where it lies."""
    opened = row.placed.opened
    records = list(opened.records)
    if row.outcome.status == "records":
        return records
    place = opened.source if opened.importer else str(Path(opened.source).resolve())
    speaker = records[0][0] if opened.importer and records else opened.source
    return [(speaker, Alias(place, kind="path")), *records]


def _store_names(con: Connection, rows: list[Row]) -> list[Row]:
    """Names of models. One that is taken costs a note, not the rest."""
    said = [
        (i, record)
        for i, row in enumerate(rows)
        if row.is_told
        for _, record in _records(row)
        if isinstance(record, Alias)
    ]
    ids = _told_ids(con, rows)
    speaker = {id(record): i for i, record in said}
    aliases = [(ids[r.model or str(rows[i].outcome.name)], r) for i, r in said]
    for model_id, alias in models.put_new_aliases(con, aliases):
        try:
            models.put_alias(con, model_id, alias)
        except KinbaseError as error:
            i = speaker[id(alias)]
            rows[i] = rows[i].noted(str(error))
    return rows


def _told_ids(con: Connection, rows: Sequence[Row]) -> dict[str, int]:
    """The ids of the models of which something is said."""
    labels = [str(row.outcome.name) for row in rows if row.outcome.name and row.outcome.status in SIZED]
    for row in rows:
        if row.is_told:
            said = [record for _, record in row.placed.opened.records if isinstance(record, Facts | Alias)]
            labels += [record.model or str(row.outcome.name) for record in said]
    return naming.named_all(con, labels)


def _store_facts(con: Connection, rows: Sequence[Row], ids: Mapping[str, int]) -> None:
    said = [
        (ids[facts.model or str(row.outcome.name)], facts, row.outcome.status == "alias")
        for row in rows
        if row.is_told
        for _, facts in row.placed.opened.said(Facts)
    ]
    # What a copy says of itself does not change what the original says.
    models.put_many_facts(con, [(i, facts) for i, facts, of_copy in said if of_copy], is_new_only=True)
    models.put_many_facts(con, [(i, facts) for i, facts, of_copy in said if not of_copy])


def _store_claims(con: Connection, rows: Sequence[Row]) -> list[Row]:
    """Edges, scores, trainings, reported kinship and tasks, file by file; a loop is said."""
    told = [row for row in rows if row.is_told]
    claims: list[tuple[str | None, str, list[Edge]]] = []
    for row in told:
        name, opened = row.outcome.name, row.placed.opened
        edges, scores = _by_file(opened.said(Edge)), _by_file(opened.said(Score))
        for file in dict.fromkeys(file for file, _ in _records(row)):
            claims.append((name, file, edges.get(file, [])))
            put_scores(con, name, scores.get(file, []))
        put_trainings(con, name, [training for _, training in opened.said(Training)])
    loops: dict[str, list[str]] = {}
    for file, model in put_claims(con, claims):
        loops.setdefault(file, []).append(model)
    if claims:
        drop_reported(con, [file for _, file, _ in claims])
    for row in told:
        for file, pairs in _by_file(row.placed.opened.said(ReportedKinship)).items():
            put_reported(con, file, pairs)
    put_tasks(con, [task for row in told for _, task in row.placed.opened.said(Task)])
    return [row.noted(*_loops_of(row, loops)) if loops and row.is_told else row for row in rows]


def _loops_of(row: Row, loops: Mapping[str, Sequence[str]]) -> list[str]:
    """One line for each file of a source that says of a model that it is its own parent."""
    lines = []
    for file in dict.fromkeys(file for file, _ in _records(row)):
        if named := loops.get(file):
            more = f" and {len(named) - 1} more" if len(named) > 1 else ""
            lines.append(f"{Path(file).name}: left out: {named[0]}{more} as a parent of its own")
    return lines


def _by_file(said: Sequence[tuple[str, Kind]]) -> dict[str, list[Kind]]:
    files: dict[str, list[Kind]] = {}
    for file, record in said:
        files.setdefault(file, []).append(record)
    return files


SIZED = ("imported", "copy", "metadata", "sampled", "unchanged", "refused")
"""What becomes of sources that are models of their own name."""


def _store_sizes(con: Connection, rows: Sequence[Row], ids: Mapping[str, int]) -> None:
    """What the tensors say of models' sizes, whatever their files claim; an adapter's are its delta, not itself.

    And where models without weights are found.
    """
    told = [row for row in rows if row.outcome.status in SIZED and row.outcome.name]
    sizes = []
    for row in told:
        checkpoint = row.placed.opened.checkpoint
        if checkpoint is None or checkpoint.delta_of is not None:
            continue
        dtypes = Counter[str]()
        for tensor in checkpoint.tensors:
            dtypes[tensor.form] += tensor.numel if tensor.dtype in FLOAT_DTYPES else 0
        dtype = max(dtypes, key=dtypes.__getitem__, default=None)
        sizes.append((ids[str(row.outcome.name)], dtypes.total(), dtype, checkpoint.nbytes))
    models.put_sizes(con, sizes)
    places = {}
    for row in told:
        if row.outcome.status in ("metadata", "sampled", "refused"):
            opened = row.placed.opened
            places[ids[str(row.outcome.name)]] = (
                opened.checkpoint.source if opened.checkpoint else opened.source
            )
    models.put_first_sources(con, places)
