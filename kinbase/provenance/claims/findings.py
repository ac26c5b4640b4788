"""Claims against what they follow from. SQL recomputes (the macro `findings`); a graph finds the circles; weights decide."""

from collections.abc import Sequence

import networkx as nx

from kinbase.ingest.steps import OnProgress as Report
from kinbase.query import graph
from kinbase.query.merges import recomputed
from kinbase.store import Connection
from kinbase.store.extract import extract, with_kin

Finding = tuple[str, str, str, str]


def findings(
    con: Connection, tolerance: float, names: Sequence[str] = (), report: Report = lambda done, total: None
) -> list[Finding]:
    """Rows of subject, claim, verdict and detail, what is wrong first; of the models named, or of all.

    A verdict is contradicted, undecidable (what it would follow from is not here) or supported. `report` is told
    how many of how many models were held against their weights.
    """
    from kinbase.provenance.claims import against_weights as holding

    if names:
        with extract(con, with_kin(con, names)) as part:
            rows, circles = recomputed(part, tolerance), _circles(part)
    else:
        rows, circles = recomputed(con, tolerance), _circles(con)
    rows += holding.findings(con, names, report)
    order = {"contradicted": 0, "undecidable": 1, "supported": 2}
    rows = [*circles, *sorted(rows, key=lambda row: (order[row[2]], row))]
    return [row for row in rows if not names or row[0] in names]


def _circles(con: Connection) -> list[Finding]:
    """One finding for each set of models that descend from themselves."""
    edges = nx.DiGraph([(parent, child) for parent, child, _ in graph.edges(con)])
    circles = sorted(sorted(nodes) for nodes in nx.strongly_connected_components(edges) if len(nodes) > 1)
    found: list[Finding] = []
    for nodes in circles:
        circle = nx.find_cycle(edges.subgraph(nodes), nodes[0])
        path = " -> ".join([*(parent for parent, _ in circle), circle[0][0]])
        found.append((nodes[0], "ancestor of itself", "contradicted", f"the claims go in a circle: {path}"))
    return found
