"""Models taken out of the database: their rows, never their files.

Those that others speak of keep a row with their name and nothing else. All functions take a connection of the store
and are part of its unit of work.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

from kinbase.store import Connection
from kinbase.store.journal import references, referring

OWN = ("model_id", "a_id", "b_id", "child_id")
"""Columns that make a row one of a model's own; the others make it another model's, which speaks of it."""

NAME = ("model_id", "name", "imported_at", "removed_digest")
"""What stays of the row of a model that others speak of."""


@dataclass(frozen=True, slots=True)
class Standing:
    """What the rest of the database has to do with a model that is to be removed."""

    name: str
    children: int
    """Models that are said to be made from it."""
    members: int
    """Models that are measured against it."""
    copies: tuple[str, ...]
    """Models of the same weights, which are read under its row."""


@dataclass(slots=True)
class Removed:
    """What became of the rows: gone whole, kept as names without weights, and names that nothing spoke of any more."""

    gone: list[str] = field(default_factory=list)
    kept: list[str] = field(default_factory=list)
    orphans: list[str] = field(default_factory=list)


def standings(con: Connection, names: Sequence[str]) -> list[Standing]:
    """What hangs on models, those that are named beside them apart."""
    rows = con.execute(
        """
        with out as (select model_id, name from raw.model where list_contains($1, name))
        select name,
            (select count(distinct child_id) from raw.claim
                where parent_id = out.model_id and relation <> 'base' and child_id not in (select model_id from out)),
            (select count(*) from raw.model where base_id = out.model_id and model_id not in (select model_id from out)),
            (select list(m.name order by m.name) from raw.model m
                where m.same_id = out.model_id and m.model_id not in (select model_id from out))
        from out order by list_position($1, name)
        """,
        [list(names)],
    ).fetchall()
    return [
        Standing(name, children, members, tuple(copies or ())) for name, children, members, copies in rows
    ]


def remove(con: Connection, names: Sequence[str]) -> Removed:
    """Take out the rows of models by their names.

    What was measured of a base's members against it stays true, and stays; the base's digest is remembered, so that no
    other weights come under its name.
    """
    ids = {
        int(model_id): str(name)
        for model_id, name in con.execute(
            "select model_id, name from raw.model where list_contains($1, name)", [list(names)]
        ).fetchall()
    }
    beside = _named_beside(con, ids)
    for table, column, is_list in references(con):
        if is_list or column not in OWN:
            continue
        if table == "offspring":
            con.execute(
                f"update raw.offspring set {column} = null where list_contains($1, {column})", [list(ids)]
            )
        elif table == "alias":
            # Names of what others speak of lead to it still; the rest goes with it, below.
            con.execute(
                "delete from raw.alias where list_contains($1, model_id) and kind not in ('name', 'redirect')",
                [list(ids)],
            )
        else:
            con.execute(f"delete from raw.{table} where list_contains($1, {column})", [list(ids)])
    con.execute(
        "update raw.model set same_id = null, same_how = null where list_contains($1, same_id)", [list(ids)]
    )
    con.execute("update raw.model set base_id = null where list_contains($1, model_id)", [list(ids)])
    return _drop_rows(con, ids, beside)


def _drop_rows(con: Connection, ids: dict[int, str], beside: Sequence[int]) -> Removed:
    """Rows of `ids` that nothing speaks of go, the others become names; then those of `beside` that are only names."""
    removed = Removed()
    spoken_of = _spoken_of(con, list(ids))
    bare = [column for column, _ in _columns(con) if column not in NAME]
    for model_id, name in ids.items():
        if model_id in spoken_of:
            cleared = ", ".join(f"{column} = null" for column in bare)
            con.execute(
                f"""
                update raw.model set {cleared}, removed_digest = if(
                    exists (select 1 from raw.delta where base_id = $1), coalesce(digest, removed_digest), null)
                where model_id = $1
                """,
                [model_id],
            )
            removed.kept.append(name)
        else:
            removed.gone.append(name)
    gone = [model_id for model_id in ids if model_id not in spoken_of]
    orphans = _only_names(con, beside)
    removed.orphans = sorted(orphans.values())
    for table in ("alias", "tensor"):
        column = "model_id" if table == "alias" else "base_id"
        con.execute(f"delete from raw.{table} where list_contains($1::integer[], {column})", [gone])
    con.execute("delete from raw.model where list_contains($1::integer[], model_id)", [[*gone, *orphans]])
    return removed


def _columns(con: Connection) -> list[tuple[str, bool]]:
    return con.execute(
        """
        select column_name, is_nullable from duckdb_columns() where schema_name = 'raw' and table_name = 'model'
        order by column_index
        """
    ).fetchall()


def _named_beside(con: Connection, ids: dict[int, str]) -> list[int]:
    """The models without weights that the rows of `ids` speak of."""
    rows = con.execute(
        """
        select distinct model_id from raw.model
        where digest is null and not list_contains($1::integer[], model_id) and (
            model_id in (select parent_id from raw.claim where list_contains($1::integer[], child_id))
            or model_id in (select base_id from raw.model where list_contains($1::integer[], model_id)))
        """,
        [list(ids)],
    ).fetchall()
    return [model_id for (model_id,) in rows]


def _spoken_of(con: Connection, ids: Sequence[int]) -> set[int]:
    """Of `ids`, those that rows other than their own names, and the list of their tensors, speak of."""
    found = set()
    for table, column, is_list in references(con):
        if table in ("alias", "tensor"):
            continue
        value = f"unnest({column})" if is_list else column
        rows = con.execute(
            f"select distinct id from (select {value} as id from raw.{table}) where list_contains($1::integer[], id)",
            [list(ids)],
        ).fetchall()
        found |= {model_id for (model_id,) in rows}
    return found


def _only_names(con: Connection, ids: Sequence[int]) -> dict[int, str]:
    """Of `ids`, those of which nothing is known but a name, and that nothing speaks of."""
    unused = set(ids) - set(referring(con, ids)) if ids else set()
    facts = " and ".join(
        f"{column} is null" for column, _ in _columns(con) if column not in NAME and column != "to_reread"
    )
    rows = con.execute(
        f"select model_id, name from raw.model where list_contains($1::integer[], model_id) and {facts}",
        [list(unused)],
    ).fetchall()
    return dict(rows)
