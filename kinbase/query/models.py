"""Models: which there are, in a tree, under a filter, by a part of a name.

By model_id and over the tables, not the public views: each of these answers within a tenth of a second
among a million models, which a view that joins names and ranks methods for all of them does not.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from kinbase.query import orders
from kinbase.query.filters import Filter
from kinbase.query.orders import Orders
from kinbase.store import Connection, names

if TYPE_CHECKING:  # Polars is slow to import, and the terminal UI does without
    import polars as pl

PAGE = 200
"""Children shown at a time."""

SORTS = {
    "largest": "beneath desc, m.name",
    "name": "m.name",
    "newest": "coalesce(m.created_at, m.imported_at) desc, m.name",
    "parameters": "m.parameters desc nulls last, m.name",
    "score": "score desc nulls last, m.name",
}

# What a sort needs besides the model's own row: a value, and where it comes from.
JOINED = {
    "largest": (
        "greatest(coalesce(claimed.n, 0), coalesce(measured.n, 0)) as beneath",
        """
        left join (select parent_id, count(distinct child_id) as n from raw.claim
            where relation <> 'base' and parent_id {among} group by 1) claimed on claimed.parent_id = m.model_id
        left join (select base_id, count(*) as n from raw.model
            where base_id {among} group by 1) measured on measured.base_id = m.model_id
        """,
    ),
    "score": (
        "s.score",
        "left join raw.model_score s on s.model_id = m.model_id",
    ),
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


@dataclass(frozen=True)
class Page:
    """Some of a list, and how many are in all of it; `number` is None where that was not counted."""

    entries: list[Entry]
    number: int | None = None


# Who is made from $1: everyone who says so, and who is measured against it and names no parent. A merge's
# base is no parent of it, so that a merge stands under those it was merged of.
CHILDREN = """
with said as materialized (select child_id, relation <> 'base' as told from raw.claim where parent_id = $1),
measured as materialized (
    select model_id from raw.model where base_id = $1 union select child_id from said where not told
)
select child_id as id from said where told
union
select model_id from measured
where model_id not in (select child_id from raw.claim where relation <> 'base' and child_id in (from measured))
"""

# The few without a base first: looking for their claims is then quick.
ROOTS = """
with alone as materialized (select model_id as id from raw.model where base_id is null)
select id from alone where id not in (select child_id from raw.claim where child_id in (from alone))
"""

# The list is put in order by id, name and what it is sorted by; the rest is read of a page's rows alone.
ORDERED = """
with wanted as materialized ({wanted})
select m.model_id as id, {value} from (from raw.model where model_id in (from wanted)) m {joined}
order by {order} limit {limit} offset {offset}
"""

ROWS = """
select m.model_id, m.name, m.relation, m.parameters, m.digest is not null
from (select unnest($1::integer[]) as id, generate_subscripts($1::integer[], 1) as place)
join raw.model m on m.model_id = id order by place
"""


def roots(con: Connection, sort: str, offset: int = 0, known: Orders | None = None) -> Page:
    """Models made from nothing known: the bases, and those whose past nobody tells."""
    if known is not None and sort in known.places:
        return _known(con, known.roots, sort, offset, known)
    return _asked(con, ROOTS, [], sort, offset)


def children(con: Connection, parent: int, sort: str, offset: int = 0, known: Orders | None = None) -> Page:
    """A page of what was made from `parent`."""
    if known is not None and sort in known.places:
        return _known(con, known.children(parent), sort, offset, known)
    return _asked(con, CHILDREN, [parent], sort, offset)


def matching(
    con: Connection, wanted: Filter, sort: str, offset: int = 0, known: Orders | None = None
) -> Page:
    """A page of the models a filter lets through."""
    query = f"select model_id as id from raw.model m where {wanted.where}"
    values = wanted.values(con, known)
    if known is not None and sort in known.places:
        return _known(con, con.execute(query, values).fetchnumpy()["id"], sort, offset, known)
    return _asked(con, query, values, sort, offset)


def ordered(con: Connection, sort: str, known: Orders | None) -> Orders:
    """Where all models stand, and their order by `sort`: with both, a page of any list comes soonest."""
    found = orders.read(con) if known is None else known
    if sort not in found.places:
        # How many are beneath and the scores are known by now: by name, and then by that.
        order = SORTS["name" if sort in ("largest", "score") else sort]
        ids = con.execute(f"select m.model_id as id from raw.model m order by {order}").fetchnumpy()["id"]
        if sort == "largest":
            ids = ids[np.argsort(-found.beneath[ids], kind="stable")]
        elif sort == "score":
            ids = ids[np.argsort(-scored(con, found).scores["score"][ids], kind="stable")]
        found.place(sort, ids)
    return found


def scored(con: Connection, known: Orders) -> Orders:
    """`known` with the scores of all models, which take longest to read."""
    if "score" not in known.scores:
        known.scores["score"] = orders.read_scores(con, len(known.steps))
    return known


def count_all(con: Connection) -> int:
    """How many models there are."""
    return _count(con, "select count(*) from raw.model", [])


def count_matching(con: Connection, wanted: Filter) -> int:
    """How many models a filter lets through."""
    return _count(con, f"select count(*) from raw.model m where {wanted.where}", wanted.values(con))


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


def _known(con: Connection, ids: np.ndarray, sort: str, offset: int, known: Orders) -> Page:
    """A page of the models `ids`, in an order that is known."""
    page = known.page(ids, sort, offset, PAGE).tolist()
    scores = _scores(con, page, known) if sort == "score" else {}
    return Page(_entries(con, page, {id_: int(known.beneath[id_]) for id_ in page}, scores), len(ids))


def _asked(con: Connection, wanted: str, parameters: list[Any], sort: str, offset: int) -> Page:
    """A page of the models whose ids `wanted` selects, put in order by the database."""
    value, joined = JOINED.get(sort, ("null", ""))
    query = ORDERED.format(
        wanted=wanted,
        value=value,
        joined=joined.format(among="in (from wanted)"),
        order=SORTS[sort],
        limit=PAGE,
        offset=offset,
    )
    found = dict(con.execute(query, parameters).fetchall())
    beneath = found if sort == "largest" else _beneath(con, list(found))
    return Page(_entries(con, list(found), beneath, found if sort == "score" else {}))


def _entries(
    con: Connection, page: list[int], beneath: dict[int, int], scores: dict[int, float | None]
) -> list[Entry]:
    """The rows of a page."""
    rows = con.execute(ROWS, [page]).fetchall() if page else []
    return [
        Entry(id_, name, relation, parameters, weights, beneath.get(id_, 0), scores.get(id_))
        for id_, name, relation, parameters, weights in rows
    ]


def _scores(con: Connection, ids: list[int], known: Orders) -> dict[int, float | None]:
    scores = scored(con, known).scores["score"]
    return {id_: float(scores[id_]) for id_ in ids if not np.isnan(scores[id_])}


def _beneath(con: Connection, ids: list[int]) -> dict[int, int]:
    if not ids:
        return {}
    listed = ", ".join(map(str, ids))
    rows = con.execute(
        f"""
        select id, max(n) from (
            select parent_id as id, count(distinct child_id) as n from raw.claim
            where relation <> 'base' and parent_id in ({listed}) group by 1
            union all
            select base_id, count(*) from raw.model where base_id in ({listed}) group by 1
        ) group by id
        """
    ).fetchall()
    return dict(rows)


# By a model.


PARENT = """
with claimed as materialized (select parent_id, relation <> 'base' as told from raw.claim where child_id = $1)
select min(parent_id) from (
    select parent_id from claimed where told
    union all
    select parent_id from claimed where not exists (from claimed where told)
    union all
    select base_id from raw.model where model_id = $1 and base_id is not null and not exists (from claimed where told)
)
"""


def path_to(con: Connection, model: int) -> list[Entry]:
    """The way down to a model in the tree, from a root to the model itself; a circle of claims is cut.

    Of several parents the one that came first into the database. Empty when the model is gone.
    """
    path = [model]
    while len(path) < 200:
        ((parent,),) = con.execute(PARENT, [path[0]]).fetchall()
        if parent is None or parent in path:
            break
        path.insert(0, parent)
    return _entries(con, path, _beneath(con, path), {})


# By name.


def meant(con: Connection, label: str) -> Model:
    """The model behind a name, an alias or a prefix. Raises KinbaseError for an unknown one."""
    name = names.resolve(con, label)
    id_ = names.find(con, name)
    assert id_ is not None
    return Model(id_, name)


def original(con: Connection, model: Model) -> Model:
    """The model whose weights a copy with a card of its own has, of which kinship is known; any other itself."""
    rows = con.execute(
        """
        select s.model_id, s.name from raw.model m join raw.model s on s.model_id = m.same_id
        where m.model_id = ? and m.digest is null
        """,
        [model.id],
    ).fetchall()
    return Model(*rows[0]) if rows else model


def named(con: Connection, labels: Sequence[str]) -> Model | None:
    """The model behind the first of `labels` that is exactly a name or an alias."""
    for label in labels:
        id_ = names.find(con, label)
        if id_ is not None:
            return Model(id_, names.name_of(con, id_))
    return None


def is_base(con: Connection, model: int) -> bool:
    """Whether others are measured against it."""
    return bool(con.execute("select 1 from raw.model where base_id = ? limit 1", [model]).fetchall())


def families(con: Connection, models: Sequence[str]) -> set[str]:
    """The bases of the families that `models` are of."""
    rows = con.execute(
        "select distinct family from models where list_contains(?, name) and family is not null",
        [list(models)],
    )
    return {family for (family,) in rows.fetchall()}


def families_with_members(con: Connection) -> list[str]:
    """The bases that others than themselves are measured against or claimed to be of, by name."""
    rows = con.execute(
        "select family from models where family is not null and name <> family group by family having count(*) > 1 order by 1"
    )
    return [base for (base,) in rows.fetchall()]


def all_names(con: Connection) -> list[str]:
    """The names of all models."""
    return [name for (name,) in con.execute("select name from raw.model order by name").fetchall()]


def common_base(con: Connection, models: Sequence[str]) -> str | None:
    """The base that all of `models` are measured against; None when they have none in common."""
    rows = con.execute(
        "select distinct base from models where list_contains($1, name)", [list(models)]
    ).fetchall()
    return rows[0][0] if len(rows) == 1 else None


def sources(con: Connection, models: Sequence[str]) -> dict[str, tuple[str | None, int]]:
    """Where each of `models` was read from (None: only its name is known) and its bytes."""
    rows = con.execute(
        "select name, if(digest is null, null, source), coalesce(bytes, 0) from raw.model where list_contains($1, name)",
        [list(models)],
    ).fetchall()
    return {name: (source, size) for name, source, size in rows}


def source_of(con: Connection, model: str) -> str | None:
    """Where a model was read from, or its own copy of weights that another has; None: only its name is known."""
    ((source,),) = con.execute("select source from raw.model where name = ?", [model]).fetchall()
    return source  # type: ignore[no-any-return]


def digests(con: Connection) -> frozenset[str]:
    """The digests of all weights that are known."""
    rows = con.execute("select digest from raw.model where digest is not null").fetchall()
    return frozenset(digest for (digest,) in rows)


def tags(con: Connection, model: str) -> list[str]:
    """A model's tags."""
    found = con.execute("select unnest(tags) from models where name = ?", [model]).fetchall()
    return [tag for (tag,) in found]


# As frames.


def listed(con: Connection, pattern: str) -> "pl.DataFrame":
    """The view `models`, those whose name contains `pattern`, by family."""
    from kinbase.query.frames import frame

    query = (
        "from models where contains(lower(name), lower(?)) order by family nulls last, base nulls first, name"
    )
    return frame(con, query, [pattern])


def row(con: Connection, model: str) -> "pl.DataFrame":
    """A model's row of `models`."""
    return _about(con, model, "from models where name = ?")


def ancestors(con: Connection, model: str) -> "pl.DataFrame":
    """What a model was made from: model, generation (fewest steps up)."""
    return _about(con, model, "from ancestors(?)")


def descendants(con: Connection, model: str) -> "pl.DataFrame":
    """What was made from a model: model, generation (fewest steps down)."""
    return _about(con, model, "from descendants(?)")


def family(con: Connection, model: str) -> "pl.DataFrame":
    """Rows of `models` measured against the same base, the base included."""
    return _about(con, model, "from family(?)")


def parents(con: Connection, model: str) -> "pl.DataFrame":
    """The rows of `lineage` that say what a model was made from."""
    return _about(con, model, "from lineage where child = ? order by parent, evidence")


def _about(con: Connection, model: str, query: str) -> "pl.DataFrame":
    from kinbase.query.frames import frame

    return frame(con, query, [names.resolve(con, model)])
