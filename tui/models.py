"""Models as the tree, the search and the detail pane show them.

By model_id and over the tables, not the public views: each of these answers within a tenth of a second
among a million models, which a view that joins names and ranks methods for all of them does not.
"""

from dataclasses import dataclass
from typing import Any

from kinbase.store import Connection

from .filtering import Filter
from .standing import Standing

PAGE = 200
"""Children shown at a time."""

SORTS = {
    "largest": "beneath desc, m.name",
    "name": "m.name",
    "newest": "coalesce(m.created_at, m.imported_at) desc, m.name",
    "parameters": "m.parameters desc nulls last, m.name",
    "score": "score desc nulls last, m.name",
}


@dataclass(frozen=True)
class Model:
    """One model in a list."""

    id: int
    name: str


@dataclass(frozen=True)
class Entry(Model):
    """One model in the tree; `beneath` counts its family if it is a base, else what was made from it."""

    relation: str | None = None
    parameters: int | None = None
    has_weights: bool = True
    beneath: int = 0
    score: float | None = None


# Who is made from $1: everyone who says so, and who is measured against it and names no parent. A merge's
# base is no parent of it, so that a merge stands under those it was merged of.
CHILDREN = """
select child_id as id from raw.claim where parent_id = $1 and relation <> 'base'
union
select model_id from raw.model m
where (base_id = $1 or model_id in (select child_id from raw.claim where parent_id = $1))
    and not exists (select 1 from raw.claim k where k.child_id = m.model_id and k.relation <> 'base')
"""

# The few without a base first: looking for their claims is then quick.
ROOTS = """
with alone as materialized (select model_id as id from raw.model where base_id is null)
select id from alone where id not in (select child_id from raw.claim where child_id in (from alone))
"""

# The page is found by id, name and what it is sorted by; the rest is read of its rows alone.
PAGE_OF = """
with wanted as materialized ({wanted}),
page as (
    select m.model_id as id, m.name{extra}
    from {source} {join}
    order by {order} limit {limit} offset {offset}
)
select id, m.name, m.relation, m.parameters, m.digest is not null{columns}
from page join raw.model m on m.model_id = page.id
"""


def roots(con: Connection, sort: str, offset: int = 0) -> list[Entry]:
    """Models made from nothing known: the bases, and those whose past nobody tells."""
    return _page(con, ROOTS, [], sort, offset)


def children(con: Connection, parent: int, sort: str, offset: int = 0) -> list[Entry]:
    """A page of what was made from `parent`."""
    return _page(con, CHILDREN, [parent], sort, offset)


def matching(
    con: Connection, wanted: Filter, sort: str, offset: int = 0, known: Standing | None = None
) -> list[Entry]:
    """A page of the models a filter lets through; sooner when it is known where all models stand."""
    inner = f"select model_id as id from raw.model m where {wanted.where}"
    values = wanted.values(con, known.steps if known else None)
    if known is not None and sort == "largest":
        few = known.candidates(con.execute(inner, values).fetchnumpy()["id"], offset + PAGE)
        if few is not None:
            return _page(con, "select unnest($1::integer[]) as id", [few.tolist()], sort, offset)
    return _page(con, inner, values, sort, offset)


def count_roots(con: Connection) -> tuple[int, int]:
    """How many roots and how many models there are."""
    return _count(con, f"select count(*) from ({ROOTS})", []), _count(
        con, "select count(*) from raw.model", []
    )


def count_children(con: Connection, parent: int) -> int:
    """How many were made from `parent`."""
    return _count(con, f"select count(*) from ({CHILDREN})", [parent])


def count_matching(con: Connection, wanted: Filter, known: Standing | None = None) -> int:
    """How many models a filter lets through."""
    values = wanted.values(con, known.steps if known else None)
    return _count(con, f"select count(*) from raw.model m where {wanted.where}", values)


def search(con: Connection, typed: str, limit: int = 30) -> list[Model]:
    """Models whose name or other name contains what was typed; those that start with it first."""
    found = con.execute(
        """
        with hit as (
            select model_id, name, name as shown from raw.model where contains(lower(name), lower($1))
            union all
            select a.model_id, m.name, a.alias from raw.alias a join raw.model m using (model_id)
            where contains(lower(alias), lower($1))
        )
        select model_id, any_value(name) as name from hit group by model_id
        order by not bool_or(starts_with(lower(shown), lower($1))), length(any_value(name)), any_value(name) limit $2
        """
        if typed
        else "select model_id, name from raw.model where $1 = '' order by imported_at desc, name limit $2",
        [typed, limit],
    )
    return [Model(*row) for row in found.fetchall()]


def _count(con: Connection, query: str, parameters: list[Any]) -> int:
    (number,) = con.execute(query, parameters).fetchall()[0]
    return int(number)


def _page(con: Connection, wanted: str, parameters: list[Any], sort: str, offset: int) -> list[Entry]:
    """A page of the models whose ids `wanted` selects."""
    # Sorting by what lies beneath or by score needs that of all; else that of the page's rows is enough.
    extra, join, columns = "", "", ", 0, null"
    if sort == "largest":
        extra = ", greatest(coalesce(claimed.n, 0), coalesce(measured.n, 0)) as beneath"
        join = """
            left join (select parent_id, count(*) as n from raw.claim where relation <> 'base'
                and parent_id in (from wanted) group by parent_id) claimed on claimed.parent_id = m.model_id
            left join (select base_id, count(*) as n from raw.model where base_id in (from wanted)
                group by base_id) measured on measured.base_id = m.model_id"""
        columns = ", beneath, null"
    elif sort == "score":
        extra = ", s.score"
        join = (
            "left join (select model_id, avg(value) as score from raw.score where model_id in (from wanted) "
            "group by model_id) s on s.model_id = m.model_id"
        )
        columns = ", 0, score"
    query = PAGE_OF.format(
        wanted=wanted,
        source="(from raw.model where model_id in (from wanted)) m",
        extra=extra,
        join=join,
        columns=columns,
        order=SORTS[sort],
        limit=PAGE,
        offset=offset,
    )
    query += f" order by {SORTS[sort]}"
    rows = con.execute(query, parameters).fetchall()
    beneath = {} if sort == "largest" else _beneath(con, [row[0] for row in rows])
    return [
        Entry(id_, name, relation, parameters, weights, beneath.get(id_, under), score)
        for id_, name, relation, parameters, weights, under, score in rows
    ]


def _beneath(con: Connection, ids: list[int]) -> dict[int, int]:
    if not ids:
        return {}
    listed = ", ".join(map(str, ids))
    rows = con.execute(
        f"""
        select id, max(n) from (
            select parent_id as id, count(*) as n from raw.claim where relation <> 'base' and parent_id in ({listed}) group by 1
            union all
            select base_id, count(*) from raw.model where base_id in ({listed}) group by 1
        ) group by id
        """
    ).fetchall()
    return dict(rows)
