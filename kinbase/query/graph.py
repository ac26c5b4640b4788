"""Lineage as NetworkX has it: around a model, or of all. What SQL says badly of a graph is said here.

Closures are SQL's (macros `ancestors`, `descendants`); a graph in hand is networkx's own business.
"""

import json
from collections.abc import Sequence
from typing import Any

import networkx as nx

from kinbase.store import Connection
from kinbase.store.names import resolve

# By id and over the tables: the view would join the names of all models to all claims first. A model of which no
# parent is claimed, but by reports, descends from its base, as the view has it.
EDGES = """
with near as materialized (
    select model_id, name from raw.model where model_id in (select unnest($1::integer[]))
),
edges as (
    select p.name as parent, c.name as child, k.relation, k.method, k.weight, k.evidence
    from raw.claim k join near p on p.model_id = k.parent_id join near c on c.model_id = k.child_id
    union all
    select b.name, c.name, 'base', null, null, 'user'
    from near c join raw.model m using (model_id) join near b on b.model_id = m.base_id
    where c.model_id not in (
        select child_id from raw.claim where evidence <> 'reported' and child_id in (select model_id from near)
    )
)
select parent, child, list({'relation': relation, 'method': method, 'weight': weight, 'evidence': evidence} order by evidence)
from edges group by parent, child order by parent, child
"""

CHILDREN = """
with level as (select unnest($1::integer[]) as model_id)
select child_id from raw.claim where parent_id in (from level)
union
select model_id from raw.model
where base_id in (from level) and not exists (select 1 from raw.claim where child_id = model_id)
order by 1 limit $2
"""

ADAPTER_IN = """
select adapter.parent, onto.parent from lineage adapter
join models m on m.name = adapter.parent and m.relation = 'adapter'
join lineage onto on onto.child = adapter.parent and onto.relation = 'adapter'
where adapter.child = ? and adapter.evidence <> 'weights' order by all limit 1
"""


def edges(con: Connection) -> list[tuple[str, str, str]]:
    """Parent, child and relation of every claim in the lineage."""
    return con.execute("select parent, child, relation from lineage order by all").fetchall()


def descends_from(con: Connection, model: str, ancestor: str) -> bool:
    """Whether claims lead from one model up to another."""
    return bool(con.execute("select 1 from ancestors(?) where model = ?", [model, ancestor]).fetchall())


def adapter_in(con: Connection, model: str) -> tuple[str, str] | None:
    """The adapter that a model is said to have in it, and what that was made for."""
    found = con.execute(ADAPTER_IN, [model]).fetchall()
    return found[0] if found else None


def around(
    con: Connection,
    model: str,
    *,
    up: bool = True,
    down: bool = True,
    depth: int = 1000,
    most: int | None = None,
) -> nx.DiGraph:
    """Ancestors (`up`) and descendants (`down`) of `model` within `depth` generations.

    Edges go from parent to child; their attribute `claims` lists relation, method, weight and evidence of
    every claim. A cycle of claims, which only wrong cards make, is cut at the edge that closes it, and
    the graph's attribute `cut` lists what was cut; `focus` is the model's name. Of more than `most` descendants the
    nearest are there, and the attribute `is_part` says so. Raises KinbaseError for an unknown model.
    """
    name = resolve(con, model)
    ((own,),) = con.execute("select model_id from raw.model where name = ?", [name]).fetchall()
    near, is_part = {own}, False
    if up:
        near.update(_closure(con, "ancestors", name, depth))
    if down and most is None:
        near.update(_closure(con, "descendants", name, depth))
    elif down and most is not None:
        below, is_part = _nearest(con, own, depth, most)
        near.update(below)
    result = nx.DiGraph(cut=[], focus=name, is_part=is_part)
    result.add_node(name)
    for parent, child, claims in con.execute(EDGES, [sorted(near)]).fetchall():
        result.add_edge(parent, child, claims=claims)
    while not nx.is_directed_acyclic_graph(result):
        parent, child = nx.find_cycle(result)[-1][:2]
        result.graph["cut"].append((parent, child))
        result.remove_edge(parent, child)
    return result


def _closure(con: Connection, macro: str, name: str, depth: int) -> list[int]:
    rows = con.execute(
        f"select model_id from raw.model where name in (select model from {macro}($1) where generation <= $2)",
        [name, depth],
    ).fetchall()
    return [model_id for (model_id,) in rows]


def _nearest(con: Connection, model_id: int, depth: int, most: int) -> tuple[set[int], bool]:
    """At most so many descendants, generation by generation and the earliest of each first; whether there are more."""
    found, level = {model_id}, [model_id]
    for _ in range(depth):
        room = most + 1 - len(found)
        rows = con.execute(CHILDREN, [level, len(found) + room + 1]).fetchall()
        new = [child for (child,) in rows if child not in found]
        if len(new) > room:
            return found | set(new[:room]), True
        if not new:
            break
        found.update(new)
        level = new
    return found, False


def without_bases(graph: nx.DiGraph) -> nx.DiGraph:
    """The graph without edges that only say what a merge was measured against, where parents are told."""
    result = graph.copy()
    for node in graph:
        measured = [
            parent
            for parent in graph.predecessors(node)
            if all(claim["relation"] == "base" for claim in graph.edges[parent, node]["claims"])
        ]
        if len(measured) < graph.in_degree(node):
            result.remove_edges_from((parent, node) for parent in measured)
    return result


NODES = """
select name, base, family, architecture, parameters, dtype, license, relation, has_weights, digest
from models where $1 is null or name in (select unnest($1::varchar[])) order by name
"""

CLAIMED = """
with told as (
    select * from lineage
    where $1 is null or (parent in (select unnest($1::varchar[])) and child in (select unnest($1::varchar[])))
)
select parent, child, any_value(pcc), list({
        'relation': relation, 'method': method, 'weight': weight, 'evidence': evidence, 'detail': detail, 'source': source
    } order by evidence, relation, source)
from told left join (
    select model_a, model_b, pcc from kinship
    where $1 is null or (model_a in (select unnest($1::varchar[])) and model_b in (select unnest($1::varchar[])))
) on model_a = parent and model_b = child
group by parent, child order by parent, child
"""


def whole(con: Connection, models: Sequence[str] = ()) -> nx.DiGraph:
    """The lineage of `models` (their ancestors and descendants), or of all: nodes are names.

    A node has the facts of `models`; an edge, from parent to child, its `claims` and, where it is known,
    the `pcc` of the two. Claims that go in a circle stay.
    """
    near: list[str] | None = None
    if models:
        names = [resolve(con, model) for model in models]
        near = list(
            dict.fromkeys([
                *names,
                *(row[0] for name in names for macro in ("ancestors", "descendants")
                  for row in con.execute(f"select model from {macro}($1)", [name]).fetchall()),
            ])
        )  # fmt: skip
    result = nx.DiGraph()
    described = con.execute(NODES, [near])
    columns = [column[0] for column in described.description or []]
    for name, *facts in described.fetchall():
        known = zip(columns[1:], facts, strict=True)
        result.add_node(name, **{key: value for key, value in known if value is not None})
    for parent, child, pcc, claims in con.execute(CLAIMED, [near]).fetchall():
        if parent in result and child in result:
            kinship = {} if pcc is None else {"pcc": pcc}
            result.add_edge(parent, child, claims=[_said(claim) for claim in claims], **kinship)
    return result


def _said(claim: dict[str, Any]) -> dict[str, Any]:
    said = {key: value for key, value in claim.items() if value is not None}
    if "detail" in said:
        said["detail"] = json.loads(said["detail"])
    return said
