"""Records as an importer yields them, picked by kind."""

from pathlib import Path

from kinbase.checkpoint import Edge, Problem, Table, tables

DATA = Path(__file__).parent / "data"


def read(importer, path):
    assert importer.recognises(str(path))
    return plain(importer.open(str(path)))


def plain(records):
    """Records, those of tables one by one."""
    return [one for r in records for one in (tables.records(r) if isinstance(r, Table) else [r])]


def only(kind, records):
    return [record for record in records if isinstance(record, kind)]


def parents(records, relation="merge"):
    return {edge.parent: edge for edge in only(Edge, records) if edge.relation == relation}


def problem(records):
    """The text of the one problem there is, which is one line."""
    (found,) = only(Problem, records)
    assert "\n" not in found.message
    return found.message
