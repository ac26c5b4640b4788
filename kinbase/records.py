"""Records to rows: what importers and people say of models, written to the tables.

All functions take a connection of `Store.writing()` and are part of its one transaction.
"""

import json
import re
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime

from kinbase.checkpoint import Alias, Edge, Facts, FileStamp, ReportedKinship, Score, Task, Training
from kinbase.errors import KinbaseError
from kinbase.naming import find, name_of, named
from kinbase.store import Connection


def _utc(moment: datetime | None) -> datetime | None:
    """A time as the tables keep it: UTC, without a zone."""
    return moment.astimezone(UTC).replace(tzinfo=None) if moment and moment.tzinfo else moment


# Models.


def put_model(
    con: Connection, name: str, digest: str, source: str, files: Iterable[FileStamp]
) -> tuple[int, str]:
    """Store a model's identity; its model_id and name.

    A row known only by name becomes whole. Weights that are stored already only gain a name.
    Raises KinbaseError when the name stands for other weights.
    """
    known = con.execute("select model_id, name from raw.model where digest = ?", [digest]).fetchone()
    holder = find(con, name)
    row = con.execute("select name, digest from raw.model where model_id = ?", [holder]).fetchone()
    if row is not None and row[1] is not None and row[1] != digest:
        raise KinbaseError(
            f"{name!r} is the name of other weights already ({row[1][:12]}): give this one another with --name"
        )
    if known is not None:
        put_alias(con, known[0], Alias(name))
        model_id, name = known
    else:
        model_id = named(con, name)
        con.execute("update raw.model set digest = ? where model_id = ?", [digest, model_id])
    put_source(con, model_id, source)
    put_files(con, model_id, files)
    return model_id, name


def put_source(con: Connection, model_id: int, source: str) -> None:
    """Remember where an importer finds the model again."""
    con.execute("update raw.model set source = ? where model_id = ?", [source, model_id])


def put_files(con: Connection, model_id: int, files: Iterable[FileStamp]) -> None:
    """Remember what a model's weights were read from, in place of what was known."""
    con.execute("delete from raw.file where model_id = ?", [model_id])
    rows = [[model_id, file.path, file.size, file.mtime_ns] for file in files]
    if rows:
        con.executemany("insert into raw.file values (?, ?, ?, ?)", rows)


def put_facts(con: Connection, model_id: int, facts: Facts) -> None:
    """Fill in what a source says of a model; what it does not say stays as it was."""
    con.execute(
        """
        update raw.model set
            architecture = coalesce($2, architecture), license = coalesce($3, license),
            revision = coalesce($4, revision), relation = coalesce($5, relation),
            parameters = coalesce($6, parameters), dtype = coalesce($7, dtype), created_at = coalesce($8, created_at)
        where model_id = $1
        """,
        [
            model_id, facts.architecture, facts.license, facts.revision, facts.relation,
            facts.parameters, facts.dtype, _utc(facts.created_at),
        ],
    )  # fmt: skip


def put_size(con: Connection, model_id: int, parameters: int, dtype: str | None, nbytes: int) -> None:
    """Store what the tensors themselves say of a model's size."""
    con.execute(
        "update raw.model set parameters = ?, dtype = ?, bytes = ? where model_id = ?",
        [parameters, dtype, nbytes, model_id],
    )


def put_base(con: Connection, model_id: int, base_id: int) -> None:
    """Make a model a member of the family measured against `base_id`; what was measured against another goes."""
    con.execute("update raw.model set base_id = ? where model_id = ?", [base_id, model_id])
    con.execute("delete from raw.delta where model_id = ? and base_id <> ?", [model_id, base_id])
    for table in ("pair", "pair_part"):
        con.execute(f"delete from raw.{table} where ? in (a_id, b_id) and base_id <> ?", [model_id, base_id])


def put_alias(con: Connection, model_id: int, alias: Alias) -> None:
    """Add a name for a model. A row known only by that name becomes one with the model."""
    known = find(con, alias.alias)
    if known == model_id:
        return
    if known is not None:
        row = con.execute("select name, digest from raw.model where model_id = ?", [known]).fetchone()
        assert row
        if row[1] is not None or row[0] != alias.alias:
            # A path moves to whatever lies there now; any other name stays with whom it was given to.
            if alias.kind == "path" and row[0] != alias.alias:
                con.execute("update raw.alias set model_id = ? where alias = ?", [model_id, alias.alias])
                return
            raise KinbaseError(
                f"{alias.alias!r} is a name of {row[0]!r} already: it cannot be another model's too"
            )
        _join(con, known, model_id)
    con.execute("insert into raw.alias values (?, ?, ?)", [alias.alias, model_id, alias.kind])


def _join(con: Connection, old: int, new: int) -> None:
    """Give all that was said of a row without weights to another model, and drop the row."""
    for table, column in (
        ("alias", "model_id"),
        ("score", "model_id"),
        ("training", "model_id"),
        ("claim", "child_id"),
        ("claim", "parent_id"),
    ):
        con.execute(f"update raw.{table} set {column} = ? where {column} = ?", [new, old])
    con.execute(
        """
        create or replace temp table joined as
        select if(a_id = $1, $2, a_id) as x, if(b_id = $1, $2, b_id) as y, * exclude (a_id, b_id)
        from raw.estimate where $1 in (a_id, b_id)
        """,
        [old, new],
    )
    con.execute("delete from raw.estimate where ? in (a_id, b_id)", [old])
    con.execute(
        "insert into raw.estimate select least(x, y), greatest(x, y), * exclude (x, y) from joined where x <> y"
    )
    con.execute("update raw.estimate set base_id = ? where base_id = ?", [new, old])
    con.execute("update raw.model set base_id = ? where base_id = ?", [new, old])
    con.execute("delete from raw.model where model_id = ?", [old])


# What is said.


def put_edges(con: Connection, subject: str | None, source: str, edges: Sequence[Edge]) -> None:
    """Store claims in place of what the same source claimed before."""
    con.execute("delete from raw.claim where source = ?", [source])
    for edge in edges:
        child = edge.child or subject
        if child is None:
            raise KinbaseError(
                f"{source} names parents but not the child: say which model it speaks of with --name"
            )
        child_id, parent_id = named(con, child), named(con, edge.parent)
        if child_id == parent_id:
            continue  # a card that names itself
        detail = json.dumps(edge.detail, default=str) if edge.detail else None
        con.execute(
            """
            insert into raw.claim (child_id, parent_id, relation, method, weight, evidence, detail, source)
            values (?, ?, ?, ?, ?, ?, ?, ?)
            """,
            [child_id, parent_id, edge.relation, edge.method, edge.weight, edge.evidence, detail, source],
        )


def put_link(
    con: Connection, child: str, parent: str, relation: str, method: str | None, weight: float | None
) -> None:
    """Store what the user says of one edge, in place of what the user said of it before.

    Both are names; a parent not met before becomes a row without weights.
    Raises KinbaseError when the child would become its own ancestor.
    """
    child_id, parent_id = named(con, child), named(con, parent)
    if child_id == parent_id:
        raise KinbaseError(f"{child} is {parent}: a model is no parent of its own")
    if con.execute("select 1 from ancestors(?) where model = ?", [parent, child]).fetchone():
        raise KinbaseError(f"{parent} descends from {child} already: the claims would go in a circle")
    con.execute(
        "delete from raw.claim where child_id = ? and parent_id = ? and evidence = 'user'",
        [child_id, parent_id],
    )
    con.execute(
        "insert into raw.claim (child_id, parent_id, relation, method, weight, evidence) values (?, ?, ?, ?, ?, 'user')",
        [child_id, parent_id, relation, method, weight],
    )


def drop_links(con: Connection, child: str, parents: Sequence[str]) -> list[str]:
    """Forget what the user said of a child's parents (of none given: of all); the parents' names."""
    rows = con.execute(
        """
        delete from raw.claim
        where evidence = 'user' and child_id = (select model_id from raw.model where name = $1)
            and (len($2) = 0 or parent_id in (select model_id from raw.model where list_contains($2, name)))
        returning parent_id
        """,
        [child, list(parents)],
    ).fetchall()
    return sorted(name_of(con, parent_id) for (parent_id,) in rows)


def put_scores(con: Connection, subject: str | None, scores: Sequence[Score]) -> None:
    """Add benchmark results; one that is stored already is not stored twice."""
    ids: dict[str, int] = {}  # a leaderboard has a dozen scores a model and thousands of models
    rows = []
    for score in scores:
        model = score.model or subject
        if model is None:
            raise KinbaseError("the results do not say of which model they are: name it with --name")
        if model not in ids:
            ids[model] = named(con, model)
        rows.append([
            ids[model], score.benchmark, score.metric, score.value, score.stderr,
            score.n_shot, score.split, score.source, _utc(score.evaluated_at),
        ])  # fmt: skip
    if not rows:
        return
    con.execute(
        """
        insert into raw.score (model_id, benchmark, metric, value, stderr, n_shot, split, source, evaluated_at)
        select distinct on (model_id, benchmark, metric, value, n_shot, split, source, evaluated_at) *
        from (
            select unnest($1::integer[]) as model_id, unnest($2::varchar[]) as benchmark, unnest($3::varchar[]) as metric,
                unnest($4::double[]) as value, unnest($5::double[]) as stderr, unnest($6::integer[]) as n_shot,
                unnest($7::varchar[]) as split, unnest($8::varchar[]) as source, unnest($9::timestamp[]) as evaluated_at
        ) new
        where not exists (
            select 1 from raw.score old
            where old.model_id = new.model_id and old.benchmark = new.benchmark and old.metric = new.metric
                and old.value = new.value and old.n_shot is not distinct from new.n_shot
                and old.split is not distinct from new.split and old.source is not distinct from new.source
                and old.evaluated_at is not distinct from new.evaluated_at
        )
        """,
        [list(column) for column in zip(*rows, strict=True)],
    )


def put_reported(con: Connection, source: str, pairs: Sequence[ReportedKinship]) -> None:
    """Store kinship that somebody else measured, in place of what the same source reported before."""
    con.execute("delete from raw.estimate where source = ? and method = 'reported'", [source])
    for pair in pairs:
        ids = sorted((named(con, pair.model_a), named(con, pair.model_b)))
        base_id = named(con, pair.base) if pair.base else None
        con.execute(
            "delete from raw.estimate where a_id = ? and b_id = ? and source = ? and method = 'reported'",
            [*ids, pair.source],
        )
        con.execute(
            """
            insert into raw.estimate (a_id, b_id, base_id, method, pcc, cs, ed, source)
            values (?, ?, ?, 'reported', ?, ?, ?, ?)
            """,
            [*ids, base_id, pair.pcc, pair.cs, pair.ed, pair.source or source],
        )


def put_tasks(con: Connection, tasks: Sequence[Task]) -> None:
    """Store what benchmarks are about; the last word on each counts."""
    for task in tasks:
        con.execute("insert or replace into raw.task values (?, ?)", [task.benchmark, task.category])


def put_trainings(con: Connection, subject: str | None, trainings: Sequence[Training]) -> None:
    """Add the benchmarks models were trained for; one that is stored already is not stored twice."""
    for training in trainings:
        model = training.model or subject
        if model is None:
            raise KinbaseError("the table does not say which model was trained: name it with --name")
        con.execute(
            """
            insert into raw.training select $1, $2
            where not exists (select 1 from raw.training where model_id = $1 and benchmark = $2)
            """,
            [named(con, model), training.benchmark],
        )


# All there is.


def tables(con: Connection) -> list[str]:
    """The tables, but for the journal of migrations."""
    rows = con.execute(
        "select table_name from duckdb_tables() where schema_name = 'raw' and table_name <> 'migration' order by 1"
    )
    return [str(name) for (name,) in rows.fetchall()]


def put_tables(con: Connection, folder: str) -> dict[str, int]:
    """Fill an empty database with the tables that `kinbase.exporting.write_all` wrote; rows by table.

    Raises KinbaseError when the database has models already.
    """
    if con.execute("select 1 from raw.model limit 1").fetchone():
        raise KinbaseError(
            f"the database has models already, and {folder} is a whole one: import it into a new file (--db)"
        )
    rows = {}
    for table in tables(con):
        # The folder's own name is neither a pattern nor a partition.
        file = re.sub(r"([*?\[])", r"[\1]", folder) + f"/{table}.parquet"
        con.execute(
            f"insert into raw.{table} by name from read_parquet($1, hive_partitioning = false)", [file]
        )
        ((rows[table],),) = con.execute(f"select count(*) from raw.{table}").fetchall()
    ((lowest, highest),) = con.execute(
        "select coalesce(min(model_id), 1), coalesce(max(model_id), 0) from raw.model"
    ).fetchall()
    if lowest < 1 or highest > 10_000_000:
        raise KinbaseError(f"{folder} numbers its models from {lowest} to {highest}: it is damaged")
    con.execute("select max(nextval('raw.model_ids')) from range(?)", [highest]).fetchall()
    return rows
