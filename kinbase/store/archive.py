"""The whole database as a folder that imports again: a Parquet file a table, and `kinbase.json`, which tells the schema."""

import json
import os
import re
import shutil
from pathlib import Path

from kinbase.checkpoint.files import inside, open_regular, read_bounded
from kinbase.checkpoint.open import MANIFEST
from kinbase.errors import CheckpointError, DiskError, KinbaseError
from kinbase.schema import scripts
from kinbase.store import surface
from kinbase.store.connection import Connection, Store

FOLDER = ".kinbase"
"""The ending of such a folder."""


def write_all(store: Store, folder: str) -> dict[str, int]:
    """Write every table to a new `folder`; rows by table. Raises KinbaseError when it exists already."""
    target = Path(folder)
    part = target.with_name(target.name + ".part")
    if os.path.lexists(target):
        raise KinbaseError(f"{folder} exists already: name a new folder, or remove that one first")
    _clear(part)
    rows: dict[str, int] = {}
    try:
        with store.reading() as con:
            part.mkdir(parents=True)
            for table in _tables():
                store.write_parquet(con, f"from raw.{table}", str(part / f"{table}.parquet"))
                ((rows[table],),) = con.execute(f"select count(*) from raw.{table}").fetchall()
        manifest = {"kinbase": "whole database", "migrations": _migrations(), "rows": rows}
        (part / MANIFEST).write_text(json.dumps(manifest, indent=1) + "\n")
        part.rename(target)
    except OSError as error:
        raise DiskError(f"{folder} cannot be written: {(error.strerror or str(error)).lower()}") from None
    finally:
        shutil.rmtree(part, ignore_errors=True)
    return rows


def _clear(part: Path) -> None:
    """Take away what an export that was killed left, and nothing else; raises KinbaseError for anything else."""
    if not os.path.lexists(part):
        return
    names = [entry.name for entry in part.iterdir()] if part.is_dir() and not part.is_symlink() else ["?"]
    if not all(re.fullmatch(r"\w+\.parquet(\.part)?|" + re.escape(MANIFEST), name) for name in names):
        raise KinbaseError(f"{part} is in the way: move it, or name another folder")
    shutil.rmtree(part, ignore_errors=True)


def read_all(store: Store, folder: str) -> dict[str, int]:
    """Fill an empty database with a whole export; rows by table, all or none of them.

    Raises KinbaseError when the database has models already, or the export is of another schema or damaged.
    """
    try:
        manifest = json.loads(read_bounded(Path(folder, MANIFEST), 1 << 20))
        same = manifest["migrations"] == _migrations()
    except (CheckpointError, ValueError, TypeError, KeyError, RecursionError):
        raise KinbaseError(
            f"{Path(folder, MANIFEST)} does not tell the export's schema: export it again"
        ) from None
    if not same:
        raise KinbaseError(
            f"{folder} was exported with another schema: import it with the Kinbase that wrote it, then `kinbase migrate`"
        )
    folder = os.path.realpath(folder)
    # DuckDB asks whether it may read before it takes the pattern for a name: both have to be allowed.
    with store.writing(reads=[folder, _as_pattern(folder)]) as con:
        return _put_tables(con, folder)


def _as_pattern(folder: str) -> str:
    """The folder's own name as a pattern that means it and nothing else."""
    return re.sub(r"([*?\[])", r"[\1]", folder)


def _tables() -> list[str]:
    """The tables that the scripts make, but for their journal: a file may hold others, which are its own affair."""
    ours = (key.removeprefix("table raw.") for key in surface.expected() if key.startswith("table raw."))
    return sorted(name for name in ours if name != "migration")


def _put_tables(con: Connection, folder: str) -> dict[str, int]:
    """Fill an empty database with the tables that `write_all` wrote; rows by table.

    Raises KinbaseError when the database has models already.
    """
    if con.execute("select 1 from raw.model limit 1").fetchone():
        raise KinbaseError(
            f"the database has models already, and {folder} is a whole one: import it into a new file (--db)"
        )
    rows = {}
    for table in _tables():
        os.close(open_regular(inside(folder, f"{table}.parquet")))  # no pipe, and no link out of the folder
        file = _as_pattern(folder) + f"/{table}.parquet"  # nor is it a partition
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
