"""Edges of lineage to rows: what files, people and the weights say of who was made from whom.

All functions take a connection of `Store.writing()` and are part of its one transaction.
"""

import json
from collections.abc import Sequence
from typing import TYPE_CHECKING

from kinbase.checkpoint import Edge, Table
from kinbase.errors import KinbaseError
from kinbase.store import Connection
from kinbase.store.columns import SLICE, filled, rows
from kinbase.store.labels import meant, put_fresh
from kinbase.store.names import name_of, named

if TYPE_CHECKING:
    import polars as pl


def put_edges(con: Connection, subject: str | None, source: str, edges: Sequence[Edge]) -> None:
    """Store claims in place of what the same source claimed before."""
    put_claims(con, [(subject, source, edges)])


def put_claims(
    con: Connection, said: Sequence[tuple[str | None, str, Sequence[Edge] | Table]]
) -> list[tuple[str, str]]:
    """Store the claims of several sources, (subject, source, edges), in place of what each claimed before.

    Returns (source, model) of the claims that a model is its own parent, which are left out.
    """
    if not said:
        return []
    sources = [source for _, source, _ in said]
    frames = [_rows_of(*each) for each in said if len(each[2])]
    theirs = "select 1 from raw.claim where list_contains($1::varchar[], source) limit 1"
    is_known = bool(con.execute(theirs, [sources]).fetchall())
    if is_known:
        con.execute(f"create or replace temp table said as select {', '.join(CLAIM)} from raw.claim limit 0")
    loops: list[tuple[str, str]] = []
    if frames:
        import polars as pl

        for part in pl.concat(frames, how="diagonal_relaxed").iter_slices(SLICE):
            loops += _put_slice(con, part, "said" if is_known else "raw.claim")
    if is_known:
        _replace(con, sources)
    return list(dict.fromkeys(loops))


CLAIM = ("child_id", "parent_id", "relation", "method", "weight", "evidence", "detail", "source")


def _replace(con: Connection, sources: Sequence[str]) -> None:
    """Let the table `said` be all that `sources` claim; what they said before stays, with the time it was first said."""
    columns = ", ".join(CLAIM)
    theirs = "raw.claim where list_contains($1::varchar[], source)"
    same = " and ".join(f"old.{name} is not distinct from new.{name}" for name in CLAIM)
    numbered = (
        f"select rowid as number, *, row_number() over (partition by {columns} order by rowid) as copy from"
    )
    con.execute(
        f"""
        create or replace temp table again as select old.number as old, new.number as new
        from ({numbered} {theirs}) old join ({numbered} said) new on old.copy = new.copy and {same}
        """,
        [sources],
    )
    con.execute(f"delete from {theirs} and rowid not in (select old from again)", [sources])
    con.execute("delete from said where rowid in (select new from again)")
    con.execute(f"insert into raw.claim ({columns}) select {columns} from said")
    con.execute("drop table again; drop table said")


def _put_slice(con: Connection, claims: "pl.DataFrame", into: str) -> list[tuple[str, str]]:
    """Store some claims; (source, model) of those that a model is its own parent."""
    import polars as pl

    is_loop = pl.col("child_id") == pl.col("parent_id")
    with meant(con, claims, child="child_id", parent="parent_id") as told:
        put_fresh(con)
        with rows(con, told.remove(is_loop), kind=Edge):
            columns = ", ".join(CLAIM)
            con.execute(f"insert into {into} ({columns}) select {columns} from new_rows")
        return told.filter(is_loop).select("source", "child").rows()


def _rows_of(subject: str | None, source: str, edges: Sequence[Edge] | Table) -> "pl.DataFrame":
    """The claims of one source as columns; raises KinbaseError where the child is not said."""
    import polars as pl

    from kinbase.checkpoint import tables

    table = edges if isinstance(edges, Table) else tables.of(Edge, edges)
    frame = filled(table.rows, child=subject, evidence="reported")
    if frame["child"].has_nulls():
        raise KinbaseError(
            f"{source} names parents but not the child: say which model it speaks of with --name"
        )
    return frame.with_columns(source=pl.lit(source, pl.Categorical))


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


def drop_claims_of(con: Connection, source: str, child_ids: Sequence[int]) -> None:
    """Forget what `source` said of the parents of these children."""
    con.execute(
        "delete from raw.claim where source = ? and list_contains(?, child_id)", [source, list(child_ids)]
    )


def put_weights_claim(
    con: Connection,
    child_id: int,
    parent_id: int,
    relation: str,
    weight: float | None,
    detail: str,
    source: str,
) -> None:
    """Store what the weights say of one parent; `detail` is JSON."""
    con.execute(
        """
        insert into raw.claim (child_id, parent_id, relation, weight, evidence, detail, source)
        values (?, ?, ?, ?, 'weights', ?, ?)
        """,
        [child_id, parent_id, relation, weight, detail, source],
    )
