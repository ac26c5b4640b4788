"""The journal of acts: what each changed, kept so that it can be taken back.

An act is one transaction. Its changes are the differences between the tables as they were committed before and as it
leaves them: rows that it took away are kept whole, rows that it added by a digest. To undo it is to take the added
rows out and put the others back, or nothing at all where a later one built on them. Nothing here knows the verbs, so
none can forget to say what it changed.
"""

import json
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from functools import partial

from kinbase.errors import KinbaseError
from kinbase.store.connection import Connection, as_stream, is_broken_rule

APART = ("migration", "act", "change", "pass")
"""Tables that no act is about."""

MEASURED = ("tensor", "delta", "skipped", "pair", "pair_part", "weight", "direction")
"""Tables that only weights fill."""

WORDS = {
    "model": "models", "alias": "other names", "claim": "claims of parents", "score": "scores", "tag": "tags",
    "estimate": "estimates of kinship", "pair": "measured pairs", "delta": "deltas", "training": "trainings",
    "task": "tasks", "file": "files", "sketch": "sketches", "weight": "tensors' sums", "name_said": "sources of names",
    "run": "runs", "offspring": "children of runs", "generation": "generations", "skipped": "tensors left out",
    "tensor": "tensors", "pair_part": "parts of pairs", "unfinished": "unfinished models", "direction": "directions",
}  # fmt: skip


@contextmanager
def act(con: Connection, verb: str, said: str, *, apart: Collection[str] = ()) -> Iterator[None]:
    """Keep what the block changes, as the act of the command `verb`; an act that changes nothing leaves no trace.

    `con` is of `Store.writing()`, at its beginning; `apart` are tables that the act does not touch.
    """
    yield
    put_act(con, verb, said, apart=apart)


def put_act(con: Connection, verb: str, said: str, *, apart: Collection[str] = ()) -> None:
    """`act`, of all that the transaction did so far."""
    ((act_id,),) = con.execute("select coalesce(max(act_id), 0) + 1 from raw.act").fetchall()
    before = con.cursor()  # a connection of its own, which sees what was committed
    columns: dict[str, list[str]] = {}
    told: list[str] = []
    try:
        types = {table: kinds for table, kinds in _types(con).items() if table not in apart}
        earlier, now = _prints(before, types), _prints(con, types)
        for table in (table for table in types if earlier[table] != now[table]):
            columns[table] = list(types[table])
            is_new = earlier[table][0] == 0
            put = _put_all if is_new else partial(_put_changes, before=before)
            told.append(put(con, act_id=act_id, table=table, types=types[table]))
    finally:
        before.close()
    if columns:
        con.execute(
            "insert into raw.act (act_id, verb, said, changed, columns) values (?, ?, ?, ?, ?)",
            [act_id, verb, said, "; ".join(told), json.dumps(columns)],
        )


def put_skipped_act(con: Connection, verb: str, said: str, changed: str) -> None:
    """An act that is told and cannot be undone."""
    con.execute(
        """
        insert into raw.act (act_id, verb, said, changed)
        select coalesce(max(act_id), 0) + 1, $1, $2, $3 from raw.act
        """,
        [verb, said, changed],
    )


def put_import(con: Connection, sources: Sequence[str], *, has_weights: bool) -> None:
    """The act of an import of `sources`: one of weights is told and cannot be undone."""
    said = ", ".join(sources[:3]) + (f" and {len(sources) - 3} more" if len(sources) > 3 else "")
    if has_weights:
        put_skipped_act(con, "import", said, f"weights: {len(sources)} source{'s' * (len(sources) != 1)}")
    elif sources:
        put_act(con, "import", said, apart=MEASURED)


def undo(con: Connection, number: int = 1) -> list[str]:
    """Take back the last `number` acts that can be, newest first; a line for each, and for each that stays between them.

    Raises KinbaseError, for a transaction to roll back, when there are fewer, or when something was built on one.
    """
    rows = con.execute(
        "select act_id, verb, said, changed, columns from raw.act order by act_id desc"
    ).fetchall()
    can_be = [row for row in rows if row[4] is not None]
    if len(can_be) < number:
        known = (
            f"are only {len(can_be)} acts" if len(can_be) > 1 else "is only 1 act" if can_be else "is nothing"
        )
        others = (
            f"{len(rows) - len(can_be)} others made or measured weights, whose models `kinbase rm` takes out"
        )
        raise KinbaseError(
            f"there {known} to undo: "
            + (others if len(rows) > len(can_be) else "`kinbase log` lists what can be")
        )
    lines = []
    for act_id, verb, said, changed, columns in rows[: rows.index(can_be[number - 1]) + 1]:
        if columns is None:
            lines.append(f"stays: {verb} {said} ({changed}): `kinbase rm` takes models out")
            continue
        _undo(con, act_id, f"{verb} {said}", json.loads(columns))
        lines.append(f"undone: {verb} {said} ({changed})")
    return lines


def references(con: Connection) -> list[tuple[str, str, bool]]:
    """Every (table, column, whether it is a list) that holds ids of models, but the models' own."""
    rows = con.execute(
        """
        select table_name, column_name, data_type like '%[]' from duckdb_columns()
        where schema_name = 'raw' and table_name in (select table_name from duckdb_tables() where schema_name = 'raw')
            and regexp_full_match(column_name, '.*_ids?') and column_name not in ('run_id', 'act_id')
            and not (table_name = 'model' and column_name = 'model_id')
        order by 1, 2
        """
    ).fetchall()
    return [(str(table), str(column), bool(is_list)) for table, column, is_list in rows]


def referring(con: Connection, model_ids: Collection[int]) -> dict[int, str]:
    """Of `model_ids`, those that any table speaks of, and one such table."""
    found: dict[int, str] = {}
    for table, column, is_list in references(con):
        value = f"unnest({column})" if is_list else column
        rows = con.execute(
            f"select distinct id from (select {value} as id from raw.{table}) where list_contains($1::integer[], id)",
            [list(model_ids)],
        ).fetchall()
        for (model_id,) in rows:
            found.setdefault(model_id, table)
    return found


Types = dict[str, str]
"""The type of each column of a table, in their order."""


def _types(con: Connection) -> dict[str, Types]:
    """The columns of every table that acts are about."""
    rows = con.execute(
        """
        select c.table_name, c.column_name, c.data_type
        from duckdb_columns() c join duckdb_tables() t on t.table_oid = c.table_oid
        where c.schema_name = 'raw' order by c.table_name, c.column_index
        """
    ).fetchall()
    types: dict[str, Types] = {}
    for table, name, kind in rows:
        if table not in APART:
            types.setdefault(str(table), {})[str(name)] = str(kind)
    return types


def _prints(con: Connection, types: dict[str, Types]) -> dict[str, tuple[int, ...]]:
    """What differs when a table's rows do: their number and two sums over their hashes, whatever their order.

    Bytes are left out: sketches come and go with their rows, and are too many to read for every act.
    """
    parts = []
    for table, columns in types.items():
        names = ", ".join(name for name, kind in columns.items() if kind != "BLOB")
        parts.append(
            f"select '{table}', count(*), sum(hash({names})::hugeint), sum((hash(1, {names}) >> 1)::hugeint) from raw.{table}"
        )
    query = " union all ".join(parts)
    return {str(table): tuple(sums) for table, *sums in con.execute(query).fetchall()}


def _encoded(types: Types) -> str:
    """SQL of a row as JSON, each column as text that casts back to the same value."""

    def text(name: str, kind: str) -> str:
        if kind == "BLOB":
            return f"to_base64({name})"
        return f"to_json({name})::varchar" if kind == "VARCHAR[]" else f"{name}::varchar"

    pairs = ", ".join(f"'{name}', {text(name, kind)}" for name, kind in types.items())
    return f"json_object({pairs})"


def _decoded(name: str, kind: str) -> str:
    value = f"(was ->> '{name}')"
    if kind == "BLOB":
        return f"from_base64({value})"
    return f"{value}::json::varchar[]" if kind == "VARCHAR[]" else f"{value}::{kind}"


def _put_all(con: Connection, *, act_id: int, table: str, types: Types) -> str:
    """Keep that all rows of a table were added, where there was none; in words."""
    _put_added(con, act_id, table, types, f"raw.{table}")
    ((added,),) = con.execute(f"select count(*) from raw.{table}").fetchall()
    return f"{WORDS.get(table, table)}: {added} added"


def _put_added(con: Connection, act_id: int, table: str, types: Types, rows: str) -> None:
    con.execute(
        f"""
        insert into raw.change
        select $1, $2, {next(iter(types))}::varchar, md5({_encoded(types)}::varchar), null from {rows}
        """,
        [act_id, table],
    )


def _put_changes(con: Connection, *, before: Connection, act_id: int, table: str, types: Types) -> str:
    """Keep how a table differs from what it was; in words."""
    names, row = ", ".join(types), _encoded(types)
    first = next(iter(types))
    try:
        con.register("earlier", as_stream(before.sql(f"select {names} from raw.{table}")))
        con.execute(
            f"create or replace temp table gone as from earlier except all select {names} from raw.{table}"
        )
        con.unregister("earlier")
        con.register("earlier", as_stream(before.sql(f"select {names} from raw.{table}")))
        con.execute(
            f"create or replace temp table added as select {names} from raw.{table} except all from earlier"
        )
    finally:
        con.unregister("earlier")
    con.execute(f"insert into raw.change select $1, $2, null, null, {row} from gone", [act_id, table])
    _put_added(con, act_id, table, types, "added")
    ((gone, added, both),) = con.execute(
        f"""
        select (select count(*) from gone), (select count(*) from added),
            (select count(*) from (select {first} from gone intersect all select {first} from added))
        """
    ).fetchall()
    con.execute("drop table gone; drop table added")
    said = [
        f"{number} {verb}"
        for number, verb in ((added - both, "added"), (both, "changed"), (gone - both, "taken away"))
        if number
    ]
    return f"{WORDS.get(table, table)}: {', '.join(said)}"


def _undo(con: Connection, act_id: int, called: str, columns: dict[str, list[str]]) -> None:
    added_models: set[int] = set()
    known = _types(con)
    for table, names in columns.items():
        types = {name: kind for name, kind in known.get(table, {}).items() if name in names}
        if list(types) != names:
            raise KinbaseError(f"{called!r} was done under an older schema, and cannot be undone any more")
        first = names[0]
        con.execute(
            f"""
            create or replace temp table outgoing as
            select number, {first} as first from (
                select rowid as number, {first}, digest,
                    row_number() over (partition by digest order by rowid desc) as copy
                from (
                    select rowid, {first}, md5({_encoded(types)}::varchar) as digest from raw.{table}
                    where {first}::varchar in (select first from raw.change where act_id = $1 and of_table = $2)
                )
            ) join (
                select digest, count(*) as copies from raw.change
                where act_id = $1 and of_table = $2 and digest is not null group by digest
            ) using (digest) where copy <= copies
            """,
            [act_id, table],
        )
        ((there, wanted),) = con.execute(
            """
            select (select count(*) from outgoing),
                (select count(*) from raw.change where act_id = $1 and of_table = $2 and digest is not null)
            """,
            [act_id, table],
        ).fetchall()
        if there < wanted:
            raise KinbaseError(
                f"{called!r} cannot be undone: {wanted - there} of the {WORDS.get(table, table)} it left were changed since "
                "by what cannot be undone, or by another program; `kinbase log` tells what came after it"
            )
        if table == "model":
            added_models = {model_id for (model_id,) in con.execute("select first from outgoing").fetchall()}
        con.execute(f"delete from raw.{table} where rowid in (select number from outgoing)")
        con.execute("drop table outgoing")
    _put_back(con, act_id, called, columns, known)
    _refuse_dangling(con, added_models, called)
    con.execute("delete from raw.change where act_id = ?", [act_id])
    con.execute("delete from raw.act where act_id = ?", [act_id])


def _put_back(
    con: Connection, act_id: int, called: str, columns: dict[str, list[str]], known: dict[str, Types]
) -> None:
    """The rows that an act took away."""
    for table, names in columns.items():
        types = known[table]
        values = ", ".join(_decoded(name, types[name]) for name in names)
        try:
            con.execute(
                f"""
                insert into raw.{table} ({", ".join(names)})
                select {values} from raw.change where act_id = $1 and of_table = $2 and digest is null
                """,
                [act_id, table],
            )
        except Exception as error:
            if not is_broken_rule(error):
                raise
            raise KinbaseError(
                f"{called!r} cannot be undone: a name or the weights it took away came in anew since then"
            ) from error


def _refuse_dangling(con: Connection, removed: set[int], called: str) -> None:
    """Raise KinbaseError when something still speaks of a model that is no more."""
    rows = con.execute(
        "select model_id from raw.model where list_contains($1::integer[], model_id)", [list(removed)]
    ).fetchall()
    used = referring(con, removed - {model_id for (model_id,) in rows})
    if used:
        tables = ", ".join(sorted({WORDS.get(table, table) for table in used.values()}))
        raise KinbaseError(
            f"{called!r} cannot be undone: {tables} that came later speak of {len(used)} of the models it brought; "
            "`kinbase rm` takes those out first"
        )
