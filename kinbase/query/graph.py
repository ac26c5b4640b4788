"""The lineage graph around a model, as NetworkX has it: what SQL says badly of a graph.

Closures are SQL's (macros `ancestors`, `descendants`); a graph in hand is networkx's own business.
"""

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


def graph(
    con: Connection, model: str, *, up: bool = True, down: bool = True, depth: int = 1000
) -> nx.DiGraph:
    """Ancestors (`up`) and descendants (`down`) of `model` within `depth` generations.

    Edges go from parent to child; their attribute `claims` lists relation, method, weight and evidence of
    every claim. A cycle of claims, which only wrong cards make, is cut at the edge that closes it, and
    the graph's attribute `cut` lists what was cut. Raises KinbaseError for an unknown model.
    """
    name = resolve(con, model)
    result = nx.DiGraph(cut=[])
    result.add_node(name)
    for parent, child, claims in con.execute(EDGES, [name, up, down, depth]).fetchall():
        result.add_edge(parent, child, claims=claims)
    while not nx.is_directed_acyclic_graph(result):
        parent, child = nx.find_cycle(result)[-1][:2]
        result.graph["cut"].append((parent, child))
        result.remove_edge(parent, child)
    return result
