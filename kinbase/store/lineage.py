"""Edges of lineage to rows: what files, people and the weights say of who was made from whom.

All functions take a connection of `Store.writing()` and are part of its one transaction.
"""

import json
from collections.abc import Sequence

from kinbase.checkpoint import Edge
from kinbase.errors import KinbaseError
from kinbase.store import Connection
from kinbase.store.names import name_of, named, named_all


def put_edges(con: Connection, subject: str | None, source: str, edges: Sequence[Edge]) -> None:
    """Store claims in place of what the same source claimed before."""
    put_claims(con, [(subject, source, edges)])


def put_claims(
    con: Connection, said: Sequence[tuple[str | None, str, Sequence[Edge]]]
) -> list[tuple[str, str]]:
    """Store the claims of several sources, (subject, source, edges), in place of what each claimed before.

    Returns (source, model) of the claims that a model is its own parent, which are left out.
    """
    if not said:
        return []
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
        if ids[child] != ids[edge.parent]
    ]  # fmt: skip
    _replace(con, [source for _, source, _ in said], rows)
    return list(
        dict.fromkeys((source, child) for child, edge, source in claims if ids[child] == ids[edge.parent])
    )


CLAIM = ("child_id", "parent_id", "relation", "method", "weight", "evidence", "detail", "source")


def _replace(con: Connection, sources: Sequence[str], rows: Sequence[tuple[object, ...]]) -> None:
    """Let `rows`, each of CLAIM, be all that `sources` claim; what they said before stays, with the time it was first said."""
    columns = ", ".join(CLAIM)
    con.execute(f"create or replace temp table said as select {columns} from raw.claim limit 0")
    if rows:
        con.execute(
            """
            insert into said select unnest($1::integer[]), unnest($2::integer[]), unnest($3::varchar[]), unnest($4::varchar[]),
                unnest($5::double[]), unnest($6::varchar[]), unnest($7::json[]), unnest($8::varchar[])
            """,
            [list(column) for column in zip(*rows, strict=True)],
        )
    theirs = "raw.claim where list_contains($1::varchar[], source)"
    if con.execute(f"select 1 from {theirs} limit 1", [sources]).fetchall():
        same = " and ".join(f"old.{name} is not distinct from new.{name}" for name in CLAIM)
        numbered = f"select rowid as number, *, row_number() over (partition by {columns} order by rowid) as copy from"
        con.execute(
            f"""
            create or replace temp table again as select old.number as old, new.number as new
            from ({numbered} {theirs}) old join ({numbered} said) new on old.copy = new.copy and {same}
            """,
            [sources],
        )
        con.execute(f"delete from {theirs} and rowid not in (select old from again)", [sources])
        con.execute("delete from said where rowid in (select new from again)")
        con.execute("drop table again")
    con.execute(f"insert into raw.claim ({columns}) select {columns} from said")
    con.execute("drop table said")


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
