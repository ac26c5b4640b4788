"""Out of the database: its lineage as a graph file, and the whole of it as Parquet that imports again.

A graph file is for another program: GraphML (NetworkX, Gephi), DOT (Graphviz), Mermaid (GitHub), JSON
(NetworkX's node-link data). A whole export is a folder of one Parquet file a table, and `kinbase.json`,
which tells the schema.
"""

import json
import re
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import networkx as nx

from kinbase.checkpoint.open import MANIFEST
from kinbase.errors import KinbaseError, UsageError
from kinbase.schema import scripts
from kinbase.store import Connection, Store
from kinbase.store import names as naming
from kinbase.text import dot, mermaid, safe, written

GRAPHS = (".graphml", ".dot", ".gv", ".mmd", ".mermaid", ".md", ".json")
FOLDER = ".kinbase"
"""The ending of a whole export's folder."""


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

EDGES = """
select parent, child, any_value(pcc), list({
        'relation': relation, 'method': method, 'weight': weight, 'evidence': evidence, 'detail': detail, 'source': source
    } order by evidence, relation, source)
from lineage left join (select model_a, model_b, pcc from kinship) on model_a = parent and model_b = child
group by parent, child order by parent, child
"""


def graph(con: Connection, models: Sequence[str] = ()) -> nx.DiGraph:
    """The lineage of `models` (their ancestors and descendants), or of all: nodes are names.

    A node has the facts of `models`; an edge, from parent to child, its `claims` and, where it is known,
    the `pcc` of the two. Claims that go in a circle stay.
    """
    names = [naming.resolve(con, model) for model in models]
    result = nx.DiGraph()
    described = con.execute(NODES, [names])
    columns = [column[0] for column in described.description or []]
    for name, *facts in described.fetchall():
        known = zip(columns[1:], facts, strict=True)
        result.add_node(name, **{key: value for key, value in known if value is not None})
    for parent, child, pcc, claims in con.execute(EDGES).fetchall():
        if parent in result and child in result:
            kinship = {} if pcc is None else {"pcc": pcc}
            result.add_edge(parent, child, claims=[_said(claim) for claim in claims], **kinship)
    return result


def _said(claim: dict[str, Any]) -> dict[str, Any]:
    said = {key: value for key, value in claim.items() if value is not None}
    if "detail" in said:
        said["detail"] = json.loads(said["detail"])
    return said


def write_graph(lineage: nx.DiGraph, path: str) -> None:
    """Write `graph`'s result in the format that the ending of `path` says; raises UsageError for another ending."""
    ending = Path(path).suffix.lower()
    if ending not in GRAPHS:
        raise UsageError(
            f"{path} does not say what to write: a graph ends in {', '.join(GRAPHS)}, the whole database in {FOLDER}"
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


# The whole database.


def write_all(store: Store, folder: str) -> dict[str, int]:
    """Write every table to a new `folder`; rows by table. Raises KinbaseError when it exists already."""
    target = Path(folder)
    part = target.with_name(target.name + ".part")
    if target.exists():
        raise KinbaseError(f"{folder} exists already: name a new folder, or remove that one first")
    rows: dict[str, int] = {}
    try:
        with store.reading() as con:
            part.mkdir(parents=True)
            for table in _tables(con):
                store.write_parquet(con, f"from raw.{table}", str(part / f"{table}.parquet"))
                ((rows[table],),) = con.execute(f"select count(*) from raw.{table}").fetchall()
        manifest = {"kinbase": "whole database", "migrations": _migrations(), "rows": rows}
        (part / MANIFEST).write_text(json.dumps(manifest, indent=1) + "\n")
        part.rename(target)
    except OSError as error:
        raise KinbaseError(f"{folder} cannot be written: {error.strerror or error}") from error
    finally:
        shutil.rmtree(part, ignore_errors=True)
    return rows


def read_all(store: Store, folder: str) -> dict[str, int]:
    """Fill an empty database with a whole export; rows by table, all or none of them.

    Raises KinbaseError when the database has models already, or the export is of another schema or damaged.
    """
    try:
        with Path(folder, MANIFEST).open("rb") as file:
            manifest = json.loads(file.read(1 << 20))
        same = manifest["migrations"] == _migrations()
    except (OSError, ValueError, TypeError, KeyError, RecursionError):
        raise KinbaseError(
            f"{Path(folder, MANIFEST)} does not tell the export's schema: export it again"
        ) from None
    if not same:
        raise KinbaseError(
            f"{folder} was exported with another schema: import it with the Kinbase that wrote it, then `kinbase migrate`"
        )
    with store.writing() as con:
        return _put_tables(con, folder)


def _tables(con: Connection) -> list[str]:
    """The tables, but for the journal of migrations."""
    rows = con.execute(
        "select table_name from duckdb_tables() where schema_name = 'raw' and table_name <> 'migration' order by 1"
    )
    return [str(name) for (name,) in rows.fetchall()]


def _put_tables(con: Connection, folder: str) -> dict[str, int]:
    """Fill an empty database with the tables that `write_all` wrote; rows by table.

    Raises KinbaseError when the database has models already.
    """
    if con.execute("select 1 from raw.model limit 1").fetchone():
        raise KinbaseError(
            f"the database has models already, and {folder} is a whole one: import it into a new file (--db)"
        )
    rows = {}
    for table in _tables(con):
        # The folder's own name is neither a pattern nor a partition.
        file = re.sub(r"([*?\[])", r"[\1]", folder) + f"/{table}.parquet"
        con.execute(
            f"insert into raw.{table} by name from read_parquet($1, hive_partitioning = false)", [file]
        )
        ((rows[table],),) = con.execute(f"select count(*) from raw.{table}").fetchall()
    for table in ("model", "run"):
        ((first, last),) = con.execute(
            f"select coalesce(min({table}_id), 1), coalesce(max({table}_id), 0) from raw.{table}"
        ).fetchall()
        if first < 1 or last > 10_000_000:
            raise KinbaseError(f"{folder} numbers its {table}s from {first} to {last}: it is damaged")
        con.execute(f"select max(nextval('raw.{table}_ids')) from range(?)", [last]).fetchall()
    return rows


def _migrations() -> dict[str, str]:
    return {name: checksum for name, _, checksum in scripts("migrations")}
