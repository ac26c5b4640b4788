"""The whole database as a folder that imports again: a Parquet file a table, and `kinbase.json`, which tells the schema."""

import json
import re
import shutil
from pathlib import Path

from kinbase.checkpoint.open import MANIFEST
from kinbase.errors import KinbaseError
from kinbase.schema import scripts
from kinbase.store.connection import Connection, Store

FOLDER = ".kinbase"
"""The ending of such a folder."""


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
