"""What there is to ask: the public views with their columns, and the macros, as the database itself describes them."""

from dataclasses import dataclass, field

from kinbase.store import Connection

COLUMNS = """
select c.table_name, v.comment, c.column_name, c.data_type, c.comment
from duckdb_columns() c join duckdb_views() v on v.view_name = c.table_name and v.schema_name = c.schema_name
where c.schema_name = 'main' and not v.internal order by c.table_name, c.column_index
"""

MACROS = """
select function_name, any_value(parameters), any_value(comment) from duckdb_functions()
where schema_name = 'main' and not internal group by function_name order by function_name
"""


@dataclass(frozen=True)
class Column:
    """A column of a view; `says` is its description, empty where the name says it."""

    name: str
    type: str
    says: str


@dataclass(frozen=True)
class View:
    """A public view."""

    name: str
    says: str
    columns: list[Column]


@dataclass(frozen=True)
class Macro:
    """A public macro with the names of its parameters."""

    name: str
    parameters: list[str]
    says: str


@dataclass
class Catalogue:
    """Everything that a query can name."""

    views: list[View] = field(default_factory=list)
    macros: list[Macro] = field(default_factory=list)


def catalogue(con: Connection) -> Catalogue:
    """Read it from the open database."""
    views: dict[str, View] = {}
    for view, says, column, kind, about in con.execute(COLUMNS).fetchall():
        known = views.setdefault(view, View(view, says or "", []))
        known.columns.append(Column(column, kind.lower(), about or ""))
    macros = [
        Macro(name, parameters or [], says or "") for name, parameters, says in con.execute(MACROS).fetchall()
    ]
    return Catalogue(list(views.values()), macros)
