"""A database file from its beginning: made whole, upgraded behind a backup, refused where it is somebody else's.

Every step leaves a file that can be used: a new one is made under another name and linked to its own when it is
whole, an upgrade is one transaction and begins when a copy of the old file is safe on the disk.
"""

import contextlib
import hashlib
import os
import shutil
from collections.abc import Sequence
from pathlib import Path

import duckdb

from kinbase.errors import DatabaseError, DiskError
from kinbase.schema import scripts
from kinbase.store import beside, surface

Connection = duckdb.DuckDBPyConnection


def make(path: Path, config: dict[str, str | bool | int | float | list[str]]) -> None:
    """Make an empty database at `path`, unless another process does so first.

    Nothing is ever at `path` but a whole database, whenever this process is killed. Raises DatabaseError where it
    cannot be made.
    """
    # DuckDB calls a database after its file, up to the first dot.
    part = path.with_name(f"kinbase_new.{os.getpid()}.{path.name[:200]}")
    try:
        _remove(part)  # of a process of the same number that was killed
        template = _template()
        if template:
            part.write_bytes(template)
        else:
            con = duckdb.connect(str(part), config=config)
            try:
                shut_in(con)
                migrate(con)
            finally:
                con.close()
            _keep_template(part.read_bytes())
        _flush(part)
        with contextlib.suppress(FileExistsError):
            os.link(part, path)
    except OSError as error:
        raise DatabaseError(f"{path} cannot be made: {(error.strerror or str(error)).lower()}") from None
    finally:
        with contextlib.suppress(OSError):
            _remove(part)


def _template() -> bytes | None:
    """An empty database that this machine made before, in a hundredth of the time; None where it has none, or half of one."""
    with contextlib.suppress(OSError):
        digest, _, data = surface.kept("empty", "duckdb").read_bytes().partition(b"\n")
        if hashlib.sha256(data).hexdigest().encode() == digest:
            return data
    return None


def _keep_template(data: bytes) -> None:
    head = hashlib.sha256(data).hexdigest().encode()
    surface.keep(surface.kept("empty", "duckdb"), head + b"\n" + data)


def shut_in(con: Connection, reads: Sequence[str | Path] = ()) -> None:
    """Keep a connection that writes from all files but the database and those in the folders `reads`."""
    folders = ", ".join("'" + str(folder).replace("'", "''") + "'" for folder in reads)
    if folders:
        con.execute(f"set allowed_directories = [{folders}]")
    con.execute("set enable_external_access = false")


def applied(con: Connection) -> dict[str, str]:
    """Checksum by script name; empty for a file that is not Kinbase's."""
    # Asked first: a query that fails would end a transaction that is under way.
    there = con.execute(
        """
        select count(*) from duckdb_columns()
        where database_name = current_database() and schema_name = 'raw' and table_name = 'migration'
            and column_name in ('name', 'checksum') and data_type = 'VARCHAR'
        """
    ).fetchone()
    return dict(con.execute("select name, checksum from raw.migration").fetchall()) if there == (2,) else {}


def is_empty(con: Connection) -> bool:
    """Whether nothing was ever defined in the file: what an import that was cut off at its birth left."""
    row = con.execute(
        """
        select (select count(*) from duckdb_tables() where database_name = current_database())
            + (select count(*) from duckdb_views() where not internal and database_name = current_database())
        """
    ).fetchone()
    return row == (0,)


def pending(con: Connection) -> list[tuple[str, str, str]]:
    """The scripts that an upgrade has to run; raises DatabaseError for a file that is not Kinbase's, or newer."""
    done = applied(con)
    if not done and not is_empty(con):
        raise DatabaseError("it is a DuckDB file but not Kinbase's: nothing was changed in it")
    known = {name: checksum for name, _, checksum in scripts("migrations")}
    for name, checksum in done.items():
        if name.startswith("migrations/") and known.get(name) != checksum:
            raise DatabaseError(f"it has a {name} that this Kinbase does not know: upgrade kinbase")
    left = [script for script in scripts("migrations") if script[0] not in done]
    views = scripts("views")
    if left or any(done.get(name) != checksum for name, _, checksum in views):
        left += views
    return left


def migrate(con: Connection) -> list[str]:
    """Run the scripts that are missing, and lay what is defined otherwise anew, all in one transaction.

    The names of the scripts that ran, the views' among them. Raises DatabaseError like `pending`.
    """
    con.begin()
    try:
        left = pending(con)
        con.execute("create schema if not exists raw")
        con.execute(surface.JOURNAL)
        if any(name.startswith("views/") for name, _, _ in left):
            con.execute("delete from raw.migration where name like 'views/%'")
            surface.drop(con)
        for name, text, checksum in left:
            con.execute(text)
            if name == "migrations/0009_beside.sql":
                beside.mark(con)
            con.execute("insert into raw.migration (name, checksum) values (?, ?)", [name, checksum])
        names = [name for name, _, _ in left]
        tables, others = surface.differences(con)
        if tables:
            raise DatabaseError(f"it has another {tables[0]} than this Kinbase makes: it was edited")
        if others:
            surface.lay(con, others)
            names += [name for name, _, _ in scripts("views") if name not in names]
        con.commit()
    except BaseException:
        with contextlib.suppress(duckdb.Error):  # the failure itself may have ended the transaction
            con.rollback()
        raise
    return names


def back_up(path: Path, con: Connection) -> Path | None:
    """Copy the file beside itself before tables change; its name, None where none do.

    `con` holds the file's lock, so that nobody writes meanwhile. Raises DiskError when there is no room.
    """
    first = next((name for name, _, _ in pending(con) if name.startswith("migrations/")), None)
    if first is None or not applied(con):
        return None
    return copied(path, con, first.removeprefix("migrations/").partition("_")[0])


def copied(path: Path, con: Connection, event: str) -> Path:
    """Copy the file beside itself, called after what comes; raises DiskError when there is no room."""
    con.execute("checkpoint")
    target = path.with_name(f"{path.name}.before-{event}")
    tries = 1
    while os.path.lexists(target):
        tries += 1
        target = path.with_name(f"{path.name}.before-{event}.{tries}")
    part = target.with_name(f".{target.name}.{os.getpid()}.part")
    try:
        shutil.copyfile(path, part)
        _flush(part)
        part.replace(target)
    except OSError as error:
        raise DiskError(
            f"{target} cannot be written ({(error.strerror or str(error)).lower()}), and nothing is changed without "
            "that backup: make room, or copy the database elsewhere (and migrate with --no-backup)"
        ) from None
    finally:
        with contextlib.suppress(OSError):
            part.unlink(missing_ok=True)
    return target


def _remove(path: Path) -> None:
    path.unlink(missing_ok=True)
    path.with_name(path.name + ".wal").unlink(missing_ok=True)


def _flush(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
