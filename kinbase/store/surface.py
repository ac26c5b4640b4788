"""Whether the views and macros of a file are those that this program lays, and the tables those it makes.

What a query answers is decided by views that live in the file. A file from elsewhere may hold others under the same
names, or macros and types under the names of DuckDB's own, which then stand before them; its journal of scripts may
say whatever it likes. So what a file defines is compared with what the scripts define in an empty database.
"""

import contextlib
import hashlib
import json
import os
from functools import cache
from pathlib import Path

import duckdb

from kinbase.schema import scripts

Definitions = dict[str, str]
"""What is defined, by kind, schema and name."""

DEFINED = """
select 'view ' || schema_name || '.' || view_name, sql
from duckdb_views() where not internal and database_name = current_database()
union all
select 'macro ' || schema_name || '.' || function_name,
    string_agg(
        concat_ws(' ', function_type, parameters::varchar, macro_definition), chr(10)
        order by concat_ws(' ', function_type, parameters::varchar, macro_definition)
    )
from duckdb_functions() where not internal and database_name = current_database() group by schema_name, function_name
union all
select 'type ' || schema_name || '.' || type_name, type_category
from duckdb_types() where not internal and database_name = current_database()
union all
select 'table ' || c.schema_name || '.' || c.table_name,
    string_agg(c.column_name || ' ' || c.data_type, ', ' order by c.column_name)
from duckdb_columns() c
join duckdb_tables() t using (database_name, schema_name, table_name)
where not c.internal and c.database_name = current_database() group by c.schema_name, c.table_name
union all
select 'trigger ' || schema_name || '.' || trigger_name || ' of ' || table_name, sql
from duckdb_triggers() where database_name = current_database()
"""


JOURNAL = """
create table if not exists raw.migration (
    name varchar primary key, checksum varchar not null, applied_at timestamp not null default (now() at time zone 'UTC')
)
"""


def differences(con: duckdb.DuckDBPyConnection) -> tuple[list[str], list[str]]:
    """What a file defines otherwise than this program: tables, which cannot be made anew, and all else, which can."""
    found, wanted = _defined(con), expected()
    tables = [key for key in wanted if key.startswith("table ") and found.get(key) != wanted[key]]
    others = [key for key in wanted if not key.startswith("table ") and found.get(key) != wanted[key]]
    # A table in the place of a view cannot be told from the user's own data, so nobody drops it.
    tables += [key for key in found if key.startswith("table ") and f"view {key[6:]}" in wanted]
    # Kinbase has none: one would write into our tables whatever it likes at every import.
    others += [key for key in found if key.startswith("trigger ")]
    extra = [key for key in found if key not in wanted and key.startswith(("macro ", "type "))]
    if extra:
        taken = _builtin(con)
        others += [key for key in extra if key.rpartition(".")[2].lower() in taken]
    return tables, others


def lay(con: duckdb.DuckDBPyConnection, others: list[str]) -> None:
    """Make anew what `differences` told, inside a transaction of the caller's."""
    for key in others:
        _drop(con, key)
    drop(con)
    for _, text, _ in scripts("views"):
        con.execute(text)


def drop(con: duckdb.DuckDBPyConnection) -> None:
    """Drop every view and macro of the schemas that Kinbase's lie in under one of its names, and all in raw."""
    wanted = expected()
    for key in _defined(con):
        is_ours = key in wanted or key.startswith(("view raw.", "macro raw."))
        if is_ours and not key.startswith("table "):
            _drop(con, key)


def _drop(con: duckdb.DuckDBPyConnection, key: str) -> None:
    kind, _, name = key.partition(" ")
    schema, _, label = name.partition(".")
    quoted = f"{_quoted(schema)}.{_quoted(label)}"
    if kind == "trigger":
        name, _, table = label.rpartition(" of ")
        con.execute(f"drop trigger {_quoted(name)} on {_quoted(schema)}.{_quoted(table)}")
    elif kind == "macro":  # of which there are two kinds, and dropping one as the other is an error
        rows = con.execute(
            "select distinct function_type from duckdb_functions() "
            "where schema_name = ? and function_name = ? and not internal and database_name = current_database()",
            [schema, label],
        ).fetchall()
        for (made,) in rows:
            con.execute(f"drop macro {'table ' if made == 'table_macro' else ''}if exists {quoted}")
    else:
        con.execute(f"drop {kind} if exists {quoted} cascade")


def _quoted(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'


def _defined(con: duckdb.DuckDBPyConnection) -> Definitions:
    return dict(con.execute(DEFINED).fetchall())


def _builtin(con: duckdb.DuckDBPyConnection) -> set[str]:
    rows = con.execute(
        "select function_name from duckdb_functions() where internal union select type_name from duckdb_types() where internal"
    )
    return {str(name).lower() for (name,) in rows.fetchall()}


@cache
def expected() -> Definitions:
    """What the scripts define. A tenth of a second, so it is kept beside what this machine remembers."""
    place = kept("definitions", "json")
    with contextlib.suppress(OSError, ValueError):
        read = json.loads(place.read_text())
        if isinstance(read, dict) and all(isinstance(value, str) for value in read.values()):
            return read
    con = duckdb.connect()
    try:
        con.execute("create schema raw")
        con.execute(JOURNAL)
        for text in _texts():
            con.execute(text)
        made = _defined(con)
    finally:
        con.close()
    keep(place, json.dumps(made).encode())
    return made


def _texts() -> list[str]:
    return [text for kind in ("migrations", "views") for _, text, _ in scripts(kind)]


def kept(what: str, suffix: str) -> Path:
    """Where this machine keeps something made from the scripts: named by a digest of them and of DuckDB's version."""
    key = hashlib.sha256("\0".join([duckdb.__version__, DEFINED, *_texts()]).encode()).hexdigest()
    return _home() / f"{what}-{key[:32]}.{suffix}"


def keep(place: Path, data: bytes) -> None:
    """Put bytes at a place, whole or not at all; where there is no room they are made again the next time."""
    part = place.with_name(f"{place.name}.{os.getpid()}")
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        part.write_bytes(data)
        part.replace(place)
    except OSError:
        with contextlib.suppress(OSError):
            part.unlink()


def _home() -> Path:
    """Where this machine remembers things; a folder that cannot be when there is no home."""
    state = os.environ.get("XDG_STATE_HOME", "")
    if Path(state).is_absolute():
        return Path(state) / "kinbase"
    with contextlib.suppress(RuntimeError):
        return Path.home() / ".local" / "state" / "kinbase"
    return Path(os.devnull, "kinbase")
