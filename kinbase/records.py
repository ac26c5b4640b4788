"""Records to rows: what importers and people say of models, written to the tables.

All functions take a connection of `Store.writing()` and are part of its one transaction.
"""

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime

from kinbase.checkpoint import Alias, Edge, Facts, FileStamp, ReportedKinship, Score, Task, Training
from kinbase.errors import KinbaseError
from kinbase.naming import find, name_of, named, named_all
from kinbase.store import Connection


def _utc(moment: datetime | None) -> datetime | None:
    """A time as the tables keep it: UTC, without a zone."""
    return moment.astimezone(UTC).replace(tzinfo=None) if moment and moment.tzinfo else moment


# Models.


def put_model(
    con: Connection, name: str, digest: str, source: str, files: Iterable[FileStamp]
) -> tuple[int, str]:
    """Store a model's identity; its model_id and name.

    A row known only by name becomes whole. Weights that are stored already only gain a name; where they were read
    first stays their place while the files there are as they were, so that a copy may come and go.
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
    if known is None or not _still_there(con, model_id):
        put_source(con, model_id, source)
        put_files(con, model_id, files)
    return model_id, name


def _still_there(con: Connection, model_id: int) -> bool:
    """Whether a model's files lie on this machine as they were read."""
    rows = con.execute("select path, size, mtime_ns from raw.file where model_id = ?", [model_id]).fetchall()
    files = [FileStamp(*row) for row in rows]
    return bool(files) and all(not file.elsewhere and file.as_it_was for file in files)


def place(con: Connection, model_id: int) -> str | None:
    """Where an importer finds a model's weights again."""
    row = con.execute("select source from raw.model where model_id = ?", [model_id]).fetchone()
    return row[0] if row else None


def put_source(con: Connection, model_id: int, source: str) -> None:
    """Remember where an importer finds the model again."""
    con.execute("update raw.model set source = ? where model_id = ?", [source, model_id])


def put_first_sources(con: Connection, sources: Mapping[int, str]) -> None:
    """Remember where models without weights are found; one with weights is found where they were read."""
    if sources:
        con.execute(
            """
            update raw.model set source = new.source
            from (select unnest($1::integer[]) as model_id, unnest($2::varchar[]) as source) new
            where model.model_id = new.model_id and model.digest is null
            """,
            [list(sources), list(sources.values())],
        )


def put_files(con: Connection, model_id: int, files: Iterable[FileStamp]) -> None:
    """Remember what a model's weights were read from, in place of what was known."""
    con.execute("delete from raw.file where model_id = ?", [model_id])
    rows = [[model_id, file.path, file.size, file.mtime_ns] for file in files]
    if rows:
        con.executemany("insert into raw.file values (?, ?, ?, ?)", rows)


def put_facts(con: Connection, model_id: int, facts: Facts) -> None:
    """Fill in what a source says of a model; what it does not say stays as it was."""
    put_many_facts(con, [(model_id, facts)])


def put_many_facts(con: Connection, said: Sequence[tuple[int, Facts]]) -> None:
    """Fill in what is said of models; of several words on one thing the last counts."""
    merged: dict[int, dict[str, object]] = {}
    for model_id, facts in said:
        told = merged.setdefault(model_id, dict.fromkeys(FACTS))
        told |= {name: value for name in FACTS if (value := getattr(facts, name)) is not None}
        told["created_at"] = _utc(facts.created_at) or told["created_at"]
    if merged:
        con.execute(
            f"""
            update raw.model set {", ".join(f"{name} = coalesce(new.{name}, model.{name})" for name in FACTS)}
            from (
                select unnest($1::integer[]) as model_id, unnest($2::varchar[]) as architecture,
                    unnest($3::varchar[]) as license, unnest($4::varchar[]) as revision, unnest($5::varchar[]) as relation,
                    unnest($6::bigint[]) as parameters, unnest($7::varchar[]) as dtype, unnest($8::timestamp[]) as created_at
            ) new
            where model.model_id = new.model_id
            """,
            [list(merged), *([told[name] for told in merged.values()] for name in FACTS)],
        )


FACTS = ("architecture", "license", "revision", "relation", "parameters", "dtype", "created_at")


def put_sizes(con: Connection, rows: Sequence[tuple[int, int, str | None, int]]) -> None:
    """Store what the tensors themselves say of models' sizes: (model_id, parameters, dtype, bytes)."""
    if rows:
        con.execute(
            """
            update raw.model set parameters = new.parameters, dtype = new.dtype, bytes = new.bytes
            from (
                select unnest($1::integer[]) as model_id, unnest($2::bigint[]) as parameters,
                    unnest($3::varchar[]) as dtype, unnest($4::bigint[]) as bytes
            ) new
            where model.model_id = new.model_id
            """,
            [list(column) for column in zip(*{row[0]: row for row in rows}.values(), strict=True)],
        )


def put_base(con: Connection, model_id: int, base_id: int) -> None:
    """Make a model a member of the family measured against `base_id`; what was measured against another goes."""
    con.execute("update raw.model set base_id = ? where model_id = ?", [base_id, model_id])
    for table in ("delta", "direction"):
        con.execute(f"delete from raw.{table} where model_id = ? and base_id <> ?", [model_id, base_id])
    con.execute(
        "delete from raw.estimate where method in ('sampled', 'sketch') and ? in (a_id, b_id) and base_id <> ?",
        [model_id, base_id],
    )
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
            # A path, or a branch, moves to whatever is there now; any other name stays with whom it was given to.
            if alias.kind in ("path", "revision") and row[0] != alias.alias:
                con.execute("update raw.alias set model_id = ? where alias = ?", [model_id, alias.alias])
                return
            raise KinbaseError(
                f"{alias.alias!r} is a name of {row[0]!r} already: it cannot be another model's too"
            )
        _join(con, known, model_id)
    con.execute("insert into raw.alias values (?, ?, ?)", [alias.alias, model_id, alias.kind])


def put_new_aliases(con: Connection, aliases: Sequence[tuple[int, Alias]]) -> list[tuple[int, Alias]]:
    """Add those names that stand for nothing yet; the others, which `put_alias` may have to refuse."""
    labels = [alias.alias for _, alias in aliases]
    rows = con.execute(
        "select name from raw.model where list_contains($1::varchar[], name) "
        "union all select alias from raw.alias where list_contains($1::varchar[], alias)",
        [labels],
    ).fetchall()
    taken = {label for (label,) in rows}
    fresh: dict[str, tuple[int, Alias]] = {}
    rest = []
    for model_id, alias in aliases:
        if alias.alias in taken or alias.alias in fresh:
            rest.append((model_id, alias))
        else:
            fresh[alias.alias] = model_id, alias
    if fresh:
        con.execute(
            "insert into raw.alias select unnest($1::varchar[]), unnest($2::integer[]), unnest($3::varchar[])",
            [
                list(fresh),
                [model_id for model_id, _ in fresh.values()],
                [alias.kind for _, alias in fresh.values()],
            ],
        )
    return rest


def _join(con: Connection, old: int, new: int) -> None:
    """Give all that was said of a row without weights to another model, and drop the row."""
    for table, column in (
        ("alias", "model_id"),
        ("score", "model_id"),
        ("training", "model_id"),
        ("claim", "child_id"),
        ("claim", "parent_id"),
        ("offspring", "child_id"),
        ("sketch", "onto_id"),
    ):
        con.execute(f"update raw.{table} set {column} = ? where {column} = ?", [new, old])
    con.execute(
        "delete from raw.claim where child_id = parent_id and child_id = ?", [new]
    )  # what was said of the two names
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
    for table, column in (("offspring", "parent_ids"), ("generation", "top_ids")):
        con.execute(
            f"""
            update raw.{table} set {column} = list_transform({column}, lambda x: if(x = $1, $2, x))
            where list_contains({column}, $1)
            """,
            [old, new],
        )
    con.execute("delete from raw.model where model_id = ?", [old])


# What is said.


def put_edges(con: Connection, subject: str | None, source: str, edges: Sequence[Edge]) -> None:
    """Store claims in place of what the same source claimed before."""
    put_claims(con, [(subject, source, edges)])


def put_claims(con: Connection, said: Sequence[tuple[str | None, str, Sequence[Edge]]]) -> None:
    """Store the claims of several sources, (subject, source, edges), in place of what each claimed before."""
    if not said:
        return
    con.execute(
        "delete from raw.claim where list_contains($1::varchar[], source)",
        [[source for _, source, _ in said]],
    )
    claims: list[tuple[str, Edge, str]] = []
    for subject, source, edges in said:
        for edge in edges:
            child = edge.child or subject
            if child is None:
                raise KinbaseError(
                    f"{source} names parents but not the child: say which model it speaks of with --name"
                )
            claims.append((child, edge, source))
    ids = named_all(con, [label for child, edge, _ in claims for label in (child, edge.parent)])
    rows = [
        (
            ids[child], ids[edge.parent], edge.relation, edge.method, edge.weight, edge.evidence,
            json.dumps(edge.detail, default=str) if edge.detail else None, source,
        )
        for child, edge, source in claims
        if ids[child] != ids[edge.parent]  # a card that names itself
    ]  # fmt: skip
    if rows:
        con.execute(
            """
            insert into raw.claim (child_id, parent_id, relation, method, weight, evidence, detail, source)
            select unnest($1::integer[]), unnest($2::integer[]), unnest($3::varchar[]), unnest($4::varchar[]),
                unnest($5::double[]), unnest($6::varchar[]), unnest($7::json[]), unnest($8::varchar[])
            """,
            [list(column) for column in zip(*rows, strict=True)],
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


def put_measured(con: Connection, child: str, edges: Sequence[Edge]) -> list[str]:
    """Store what the weights say of a child's parents, in place of what they said before.

    An edge to a model that descends from the child by other evidence is left out; returns those parents' names.
    """
    child_id = named(con, child)
    con.execute("delete from raw.claim where child_id = ? and evidence = 'weights'", [child_id])
    circular = []
    for edge in edges:
        if con.execute("select 1 from ancestors(?) where model = ?", [edge.parent, child]).fetchall():
            circular.append(edge.parent)
            continue
        con.execute(
            """
            insert into raw.claim (child_id, parent_id, relation, method, weight, evidence, detail)
            values (?, ?, ?, ?, ?, 'weights', ?)
            """,
            [
                child_id, named(con, edge.parent), edge.relation, edge.method, edge.weight,
                json.dumps(edge.detail) if edge.detail else None,
            ],
        )  # fmt: skip
    return circular


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
    drop_reported(con, [source])
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


def drop_reported(con: Connection, sources: Sequence[str]) -> None:
    """Forget the kinship that these sources reported."""
    con.execute(
        "delete from raw.estimate where method = 'reported' and list_contains($1::varchar[], source)",
        [list(sources)],
    )


def put_sampled(con: Connection, base_id: int, rows: Iterable[Sequence[object]]) -> None:
    """Store estimates from samples, in place of earlier ones of the same pairs.

    A row is (model, model, pcc, cs, ed, stderr, coverage, what was read), models by their model_id.
    """
    for a, b, *values in rows:
        ids = sorted((int(str(a)), int(str(b))))
        con.execute("delete from raw.estimate where a_id = ? and b_id = ? and method = 'sampled'", ids)
        con.execute(
            """
            insert into raw.estimate (a_id, b_id, base_id, method, pcc, cs, ed, stderr, coverage, source)
            values (?, ?, ?, 'sampled', ?, ?, ?, ?, ?, ?)
            """,
            [*ids, base_id, *values],
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
    ((first, last),) = con.execute(
        "select coalesce(min(run_id), 1), coalesce(max(run_id), 0) from raw.run"
    ).fetchall()
    if first < 1 or last > 10_000_000:
        raise KinbaseError(f"{folder} numbers its runs from {first} to {last}: it is damaged")
    con.execute("select max(nextval('raw.run_ids')) from range(?)", [last]).fetchall()
    return rows
