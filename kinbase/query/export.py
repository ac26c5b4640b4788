"""The lineage as a file for another program.

GraphML (NetworkX, Gephi), DOT (Graphviz), Mermaid (GitHub), JSON (NetworkX's node-link data).
"""

import json
from pathlib import Path
from typing import Any

import networkx as nx

from kinbase.errors import KinbaseError, UsageError
from kinbase.text import dot, mermaid, safe, written

GRAPHS = (".graphml", ".dot", ".gv", ".mmd", ".mermaid", ".md", ".json")


def write_graph(lineage: nx.DiGraph, path: str) -> None:
    """Write a graph of `kinbase.query.graph` as the ending of `path` says; raises UsageError for another ending."""
    ending = Path(path).suffix.lower()
    if ending not in GRAPHS:
        raise UsageError(
            f"{path} does not say what to write: a graph ends in {', '.join(GRAPHS)}, the whole database in .kinbase"
        )
    try:
        with written(path) as out:
            if ending == ".graphml":
                out.writelines(
                    line + "\n" for line in nx.generate_graphml(_flat(lineage), named_key_ids=True)
                )
            elif ending == ".json":
                json.dump(_node_link(lineage), out, ensure_ascii=False, indent=1)
            elif ending in (".dot", ".gv"):
                out.writelines(line + "\n" for line in dot(lineage))
            else:
                lines = list(mermaid(lineage))
                fence = ["```mermaid", *lines, "```"] if ending == ".md" else lines
                out.writelines(line + "\n" for line in fence)
    except OSError as error:
        raise KinbaseError(f"{path} cannot be written: {error.strerror or error}") from error


def _node_link(lineage: nx.DiGraph) -> dict[str, Any]:
    """What nx.node_link_graph(edges="edges") reads; written out because its argument changed its name with NetworkX 3.4."""
    edges = [{"source": a, "target": b, **facts} for a, b, facts in lineage.edges(data=True)]
    nodes = [{"id": name, **facts} for name, facts in lineage.nodes(data=True)]
    return {"directed": True, "multigraph": False, "graph": {}, "nodes": nodes, "edges": edges}


def _flat(lineage: nx.DiGraph) -> nx.DiGraph:
    """The graph as GraphML can hold it: names that XML can, and one text for what the claims of an edge say."""
    names: dict[str, str] = {}
    taken: set[str] = set()
    for name in lineage:
        names[name] = _xml(name)
        while names[name] in taken:
            names[name] += "'"
        taken.add(names[name])
    result = nx.DiGraph()
    for name, facts in lineage.nodes(data=True):
        result.add_node(names[name], label=names[name], **{k: _xml_value(v) for k, v in facts.items()})
    for parent, child, facts in lineage.edges(data=True):
        flat = {"pcc": facts["pcc"]} if "pcc" in facts else {}
        for key in ("relation", "method", "weight", "evidence"):
            values = dict.fromkeys(str(claim[key]) for claim in facts["claims"] if key in claim)
            if values:
                flat[key] = _xml(", ".join(values))
        result.add_edge(names[parent], names[child], **flat)
    return result


def _xml_value(value: Any) -> Any:
    return _xml(value) if isinstance(value, str) else value


def _xml(text: str) -> str:
    """`text` without the characters that XML 1.0 cannot hold."""
    return safe(text).replace("\ufffe", "\\ufffe").replace("\uffff", "\\uffff")
