"""Lineage as NetworkX has it: around a model, or of all. What SQL says badly of a graph is said here.

Closures are SQL's (macros `ancestors`, `descendants`); a graph in hand is networkx's own business.
"""

import json
from collections.abc import Sequence
from typing import Any

import networkx as nx

from kinbase.store import Connection
from kinbase.store.names import resolve

EDGES = """
with near as (
    select $1::varchar as model
    union select model from ancestors($1) where $2 and generation <= $4
    union select model from descendants($1) where $3 and generation <= $4
)
select parent, child, list({'relation': relation, 'method': method, 'weight': weight, 'evidence': evidence} order by evidence)
from lineage
where parent in (from near) and child in (from near)
group by parent, child order by parent, child
"""


def around(
    con: Connection, model: str, *, up: bool = True, down: bool = True, depth: int = 1000
) -> nx.DiGraph:
    """Ancestors (`up`) and descendants (`down`) of `model` within `depth` generations.

    Edges go from parent to child; their attribute `claims` lists relation, method, weight and evidence of
    every claim. A cycle of claims, which only wrong cards make, is cut at the edge that closes it, and
    the graph's attribute `cut` lists what was cut; `focus` is the model's name. Raises KinbaseError for an unknown model.
    """
    name = resolve(con, model)
    result = nx.DiGraph(cut=[], focus=name)
    result.add_node(name)
    for parent, child, claims in con.execute(EDGES, [name, up, down, depth]).fetchall():
        result.add_edge(parent, child, claims=claims)
    while not nx.is_directed_acyclic_graph(result):
        parent, child = nx.find_cycle(result)[-1][:2]
        result.graph["cut"].append((parent, child))
        result.remove_edge(parent, child)
    return result


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
from models
where len($1) = 0 or name in (
    select unnest($1)
    union select a.model from unnest($1) t(m), ancestors(t.m) a
    union select d.model from unnest($1) t(m), descendants(t.m) d
)
order by name
"""

CLAIMED = """
select parent, child, any_value(pcc), list({
        'relation': relation, 'method': method, 'weight': weight, 'evidence': evidence, 'detail': detail, 'source': source
    } order by evidence, relation, source)
from lineage left join (select model_a, model_b, pcc from kinship) on model_a = parent and model_b = child
group by parent, child order by parent, child
"""


def whole(con: Connection, models: Sequence[str] = ()) -> nx.DiGraph:
    """The lineage of `models` (their ancestors and descendants), or of all: nodes are names.

    A node has the facts of `models`; an edge, from parent to child, its `claims` and, where it is known,
    the `pcc` of the two. Claims that go in a circle stay.
    """
    names = [resolve(con, model) for model in models]
    result = nx.DiGraph()
    described = con.execute(NODES, [names])
    columns = [column[0] for column in described.description or []]
    for name, *facts in described.fetchall():
        known = zip(columns[1:], facts, strict=True)
        result.add_node(name, **{key: value for key, value in known if value is not None})
    for parent, child, pcc, claims in con.execute(CLAIMED).fetchall():
        if parent in result and child in result:
            kinship = {} if pcc is None else {"pcc": pcc}
            result.add_edge(parent, child, claims=[_said(claim) for claim in claims], **kinship)
    return result


def _said(claim: dict[str, Any]) -> dict[str, Any]:
    said = {key: value for key, value in claim.items() if value is not None}
    if "detail" in said:
        said["detail"] = json.loads(said["detail"])
    return said
