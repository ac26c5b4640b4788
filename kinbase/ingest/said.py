"""What sources say besides weights, to rows: names, facts, claims, scores and sizes.

The functions take a connection of `Store.writing()` and are part of its transaction.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

from kinbase.checkpoint import (
    FLOAT_DTYPES,
    Alias,
    Edge,
    Facts,
    Record,
    ReportedKinship,
    Score,
    Table,
    Task,
    Training,
    tables,
)
from kinbase.ingest.steps import Row
from kinbase.store import Connection, models
from kinbase.store import names as naming
from kinbase.store.aliases import put_alias_table, put_aliases, put_speakers
from kinbase.store.estimates import drop_reported, put_reported
from kinbase.store.lineage import put_claims
from kinbase.store.scores import put_scores, put_tasks, put_trainings


def _records(row: Row) -> list[tuple[str, Record]]:
    """What a source says, and first where it lies."""
    opened = row.placed.opened
    records = list(opened.records)
    if row.outcome.status == "records":
        return records
    place = opened.source if opened.importer else str(Path(opened.source).resolve())
    speaker = records[0][0] if opened.importer and records else opened.source
    return [(speaker, Alias(place, kind="path")), *records]


def store_names(con: Connection, rows: list[Row]) -> list[Row]:
    """Names of models. One that is taken costs a note, not the rest."""
    said: list[tuple[int, Alias]] = []
    speakers: list[tuple[str, str]] = []
    for i, row in enumerate(rows):
        for file, record in _records(row) if row.is_told else ():
            if isinstance(record, Table) and record.kind is Alias:
                _store_said_names(con, rows, said)
                said = [(i, alias) for alias in put_alias_table(con, record, file)]
            elif isinstance(record, Alias):
                said.append((i, record))
                if record.kind != "path":  # a place says itself
                    speakers.append((record.alias, file))
    put_speakers(con, speakers)
    _store_said_names(con, rows, said)
    return rows


def _store_said_names(con: Connection, rows: list[Row], said: Sequence[tuple[int, Alias]]) -> None:
    speaker = {id(record): i for i, record in said}
    aliases = [(r.model or _name(rows[i]), r) for i, r in said]
    for alias, problem in put_aliases(con, aliases):
        i = speaker[id(alias)]
        rows[i] = rows[i].noted(problem)


def store_facts(con: Connection, rows: Sequence[Row]) -> None:
    """Facts of models; what a copy says of itself does not change what the original says."""
    for is_new_only in (True, False):
        frames = [
            tables.named(table, _name(row))
            for row in rows
            if row.is_told and (row.outcome.status == "alias") is is_new_only
            for table in row.placed.opened.told(Facts).values()
        ]
        if frames:
            models.put_many_facts(con, Table(Facts, tables.joined(Facts, frames)), is_new_only=is_new_only)


def _name(row: Row) -> str:
    return str(row.outcome.name)


def store_claims(con: Connection, rows: Sequence[Row]) -> list[Row]:
    """Edges, scores, trainings, reported kinship and tasks, file by file; a loop is said."""
    told = [row for row in rows if row.is_told]
    claims: list[tuple[str | None, str, Sequence[Edge] | Table]] = []
    for row in told:
        name, opened = row.outcome.name, row.placed.opened
        edges, scores = opened.told(Edge), opened.told(Score)
        for file in dict.fromkeys(file for file, _ in _records(row)):
            claims.append((name, file, edges.get(file, ())))
            if file in scores:
                put_scores(con, name, scores[file])
        for trainings in opened.told(Training).values():
            put_trainings(con, name, trainings)
    loops: dict[str, list[str]] = {}
    for file, model in put_claims(con, claims):
        loops.setdefault(file, []).append(model)
    if claims:
        drop_reported(con, [file for _, file, _ in claims])
    for row in told:
        for file, pairs in row.placed.opened.told(ReportedKinship).items():
            put_reported(con, file, pairs)
    tasks = [table.rows for row in told for table in row.placed.opened.told(Task).values()]
    if tasks:
        put_tasks(con, Table(Task, tables.joined(Task, tasks)))
    return [row.noted(*_loops_of(row, loops)) if loops and row.is_told else row for row in rows]


def _loops_of(row: Row, loops: Mapping[str, Sequence[str]]) -> list[str]:
    """One line for each file of a source that says of a model that it is its own parent."""
    lines = []
    for file in dict.fromkeys(file for file, _ in _records(row)):
        if named := loops.get(file):
            more = f" and {len(named) - 1} more" if len(named) > 1 else ""
            lines.append(f"{Path(file).name}: left out: {named[0]}{more} as a parent of its own")
    return lines


SIZED = ("imported", "copy", "metadata", "sampled", "unchanged", "refused")
"""What becomes of sources that are models of their own name."""


def store_sizes(con: Connection, rows: Sequence[Row]) -> None:
    """What the tensors say of models' sizes, whatever their files claim; an adapter's are its delta, not itself.

    And where models without weights are found.
    """
    told = [row for row in rows if row.outcome.status in SIZED and row.outcome.name]
    ids = naming.named_all(con, [_name(row) for row in told])
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
