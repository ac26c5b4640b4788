"""Where stored models' files are, as the database has it."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from kinbase.checkpoint import FileStamp
from kinbase.store import Connection
from kinbase.store.models import put_files, put_source

MODELS = """
select m.model_id, m.name, m.digest, m.source, m.bytes, coalesce(m.to_reread, false),
    m.base_id is not null and m.model_id not in (select model_id from raw.delta)
        and m.model_id not in (select unnest([a_id, b_id]) from raw.estimate),
    list({'path': f.path, 'size': f.size, 'mtime_ns': f.mtime_ns} order by f.path) filter (f.path is not null)
from raw.model m left join raw.file f on f.model_id = m.model_id
where m.digest is not null group by all order by m.name
"""


@dataclass(frozen=True, slots=True)
class StoredPlace:
    """A model with weights and the files they were read from; `is_unmeasured`: it has a base and no kinship."""

    model_id: int
    name: str
    digest: str
    source: str | None
    nbytes: int | None
    to_reread: bool
    is_unmeasured: bool
    files: tuple[FileStamp, ...]


def stored_places(con: Connection) -> list[StoredPlace]:
    """Every model with weights, by name."""
    rows: list[tuple[Any, ...]] = con.execute(MODELS).fetchall()
    places = []
    for model_id, name, digest, source, nbytes, to_reread, is_unmeasured, files in rows:
        stamps = tuple(FileStamp(**file) for file in files or ())
        places.append(StoredPlace(model_id, name, digest, source, nbytes, to_reread, is_unmeasured, stamps))
    return places


def put_place(con: Connection, model_id: int, source: str, files: Sequence[FileStamp]) -> None:
    """Remember where a model's weights are now; the path leads to it, unless it is another model's name."""
    put_source(con, model_id, source)
    put_files(con, model_id, files)
    con.execute("delete from raw.alias where alias = ? and kind = 'path'", [source])
    if not con.execute("select 1 from raw.model where name = ?", [source]).fetchall():
        con.execute("insert into raw.alias values (?, ?, 'path')", [source, model_id])


@dataclass(frozen=True, slots=True)
class Told:
    """What is said of a model, as text: facts by column, parents and what is said of each, scores by test."""

    facts: dict[str, str] = field(default_factory=dict)
    parents: dict[str, str] = field(default_factory=dict)
    scores: dict[str, str] = field(default_factory=dict)


FACTS = "architecture, license, relation, base, parameters, dtype, created_at, notes, array_to_string(tags, ', ') as tags"


def told_of(con: Connection, name: str) -> Told:
    """What is said of a stored model."""
    result = con.execute(f"select {FACTS} from models where name = ?", [name])
    columns = [column[0] for column in result.description or []]
    (row,) = result.fetchall()
    facts = {key: str(value) for key, value in zip(columns, row, strict=True) if value is not None}
    parents = con.execute(
        """
        select parent || ' (' || relation || ')', string_agg(distinct coalesce(weight::varchar, method, evidence), ', ')
        from lineage where child = ? group by all order by 1
        """,
        [name],
    ).fetchall()
    scores = con.execute(
        """
        select concat_ws(' ', benchmark, metric, n_shot::varchar || '-shot', split, template, 'of ' || source) as test,
            string_agg(format('{:.6g}', value), ', ' order by value)
        from scores where model = ? group by 1 order by 1
        """,
        [name],
    ).fetchall()
    return Told(facts, dict(parents), dict(scores))


def place_named(con: Connection, name: str) -> tuple[str | None, str | None]:
    """Where a model's weights lie, and their digest; both None for one known by name only."""
    rows = con.execute(
        """
        select coalesce(m.source, s.source), coalesce(m.digest, s.digest)
        from raw.model m left join raw.model s on s.model_id = m.same_id where m.name = ?
        """,
        [name],
    ).fetchall()
    source, digest = rows[0]
    return (source, digest) if digest is not None else (None, None)
