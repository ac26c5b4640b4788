"""The database file: opened for one unit of work, guarded, migrated, written in short transactions.

DuckDB allows one writing process or many reading ones. So a handle never lives longer than one unit
of work, the tensor pass runs with the file closed, and a locked file is waited for, within bounds.
This is the only module that imports duckdb.
"""

import re
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import duckdb

from kinbase.errors import DatabaseError, KinbaseError
from kinbase.schema import scripts

Connection = duckdb.DuckDBPyConnection

# Whoever reads can reach nothing but the database file: no other file, no extension, no variable of this
# process. One configuration for all readers, because DuckDB refuses two on one file in one process.
READING: dict[str, str | bool | int | float | list[str]] = {
    "enable_external_access": "false",
    "autoload_known_extensions": "false",
    "autoinstall_known_extensions": "false",
    "python_enable_replacements": "false",
    "temp_directory": "",
    "memory_limit": "4GiB",
    "lock_configuration": "true",
}
WRITING: dict[str, str | bool | int | float | list[str]] = {
    "autoload_known_extensions": "false",
    "autoinstall_known_extensions": "false",
    "python_enable_replacements": "false",
}

WAIT = 60.0
"""Seconds a lock held by another process is waited for."""

MOMENT = 2.0
"""Seconds of waiting after which a word is said."""

BATCH = 10_000
"""Rows fetched at a time."""

JOURNAL = """
create table if not exists raw.migration (
    name varchar primary key, checksum varchar not null, applied_at timestamp not null default (now() at time zone 'UTC')
)
"""


class Store:
    """The database at `path`; nothing is opened until it is asked for.

    `wait` bounds, in seconds, how long a lock held by another process is waited for; `log` is told of it, in a line,
    when that takes more than a moment.
    """

    def __init__(
        self, path: str | Path, *, wait: float = WAIT, log: Callable[[str], None] = lambda line: None
    ) -> None:
        self.path = Path(path)
        self.wait = wait
        self.log = log

    @contextmanager
    def reading(self) -> Iterator[Connection]:
        """A guarded read-only connection.

        Raises DatabaseError when the file is missing, locked, unreadable or of another schema, and
        KinbaseError when a query in the block fails.
        """
        if not self.path.exists():
            raise DatabaseError(
                f"there is no database at {self.path}: `kinbase import` or `kinbase demo` makes one"
            )
        con = self._connect(read_only=True)
        try:
            self._check_schema(con)
            yield con
        except duckdb.Error as error:
            raise query_error(error) from error
        finally:
            con.close()

    @contextmanager
    def writing(self) -> Iterator[Connection]:
        """A connection inside one transaction, committed at the end of the block, rolled back on any error.

        Makes the database when there is none. Raises like `reading`.
        """
        con = self._connect(read_only=False)
        try:
            if not _applied(con) and not con.execute("from duckdb_tables()").fetchone():
                _migrate(con)
            self._check_schema(con)
            con.begin()
            try:
                yield con
                con.commit()
            except BaseException:
                con.rollback()
                raise
        except duckdb.Error as error:
            raise query_error(error) from error
        finally:
            con.close()

    @contextmanager
    def bounded(self, seconds: float) -> Iterator[Connection]:
        """`reading`, with whatever runs in the block interrupted after `seconds` (0: never)."""
        with self.reading() as con:
            expired = threading.Event()

            def stop() -> None:
                expired.set()
                con.interrupt()

            timer = threading.Timer(seconds, stop)
            timer.daemon = True
            if seconds:
                timer.start()
            try:
                yield con
            except duckdb.InterruptException as error:
                if expired.is_set():
                    raise KinbaseError(
                        f"the query was stopped after {seconds:g} s: narrow it or raise --timeout"
                    ) from error
                raise
            finally:
                timer.cancel()

    @staticmethod
    def stream(result: Connection) -> Iterator[tuple[Any, ...]]:
        """The rows of a query that was executed, in batches, so that any number fits in memory."""
        while rows := result.fetchmany(BATCH):
            yield from rows

    @staticmethod
    def write_parquet(con: Connection, query: str, path: str) -> None:
        """Write a query's result to a Parquet file, streaming; no half file is left behind.

        The guarded connection can write nothing, so another one, which sees only its result, does.
        """
        part = f"{path}.part"
        writer = duckdb.connect()
        try:
            rows = _Stream(con.sql(query))
            writer.register("rows", rows)
            writer.execute(f"copy (from rows) to '{part.replace(chr(39), 2 * chr(39))}' (format parquet)")
            Path(part).replace(path)
        finally:
            writer.close()
            Path(part).unlink(missing_ok=True)

    def migrate(self) -> list[str]:
        """Bring the database to this version's schema; the names of the scripts that ran."""
        if not self.path.exists():
            raise DatabaseError(
                f"there is no database at {self.path}: `kinbase import` or `kinbase demo` makes one"
            )
        con = self._connect(read_only=False)
        try:
            return _migrate(con)
        except duckdb.Error as error:
            raise DatabaseError(
                f"{self.path} could not be migrated and is as it was: {first_line(error)}"
            ) from error
        finally:
            con.close()

    def _connect(self, *, read_only: bool) -> Connection:
        if self.path.name.partition(".")[0].lower() == "raw":
            # DuckDB calls the database after its file, and could not tell it from the schema `raw`.
            raise DatabaseError(
                f"{self.path} cannot be a Kinbase database: give the file a name that is not raw"
            )
        began = time.monotonic()
        deadline, is_told = began + self.wait, False
        pause = 0.02
        while True:
            try:
                return duckdb.connect(
                    str(self.path), read_only=read_only, config=READING if read_only else WRITING
                )
            except (duckdb.IOException, duckdb.ConnectionException) as error:
                busy = "lock on file" in str(error) or "different configuration" in str(error)
                if not busy:
                    raise DatabaseError(
                        f"{self.path} cannot be opened as a Kinbase database: {first_line(error)}"
                    ) from error
                if time.monotonic() >= deadline:
                    raise DatabaseError(
                        f"{self.path} is in use ({_holder(error)}) and stayed so for {self.wait:g} s: "
                        "wait for it to finish, give it longer with --wait, or name another file with --db"
                    ) from error
                if not is_told and time.monotonic() >= began + MOMENT:
                    self.log(f"waiting for {self.path}, in use {_holder(error)} (at most {self.wait:g} s)")
                    is_told = True
            except duckdb.Error as error:
                raise DatabaseError(
                    f"{self.path} cannot be opened as a Kinbase database: {first_line(error)}"
                ) from error
            time.sleep(max(0.0, min(pause, deadline - time.monotonic())))
            pause = min(2 * pause, 0.5)

    def _check_schema(self, con: Connection) -> None:
        applied = _applied(con)
        if not applied:
            raise DatabaseError(f"{self.path} is a DuckDB file but not Kinbase's: name another one with --db")
        known = {name: checksum for kind in ("migrations", "views") for name, _, checksum in scripts(kind)}
        for name, checksum in applied.items():
            if name not in known:
                raise DatabaseError(f"{self.path} was written by a newer Kinbase ({name}): upgrade kinbase")
            if name.startswith("migrations/") and known[name] != checksum:
                raise DatabaseError(
                    f"{self.path} was made with another {name} than this Kinbase has: use the Kinbase that made it"
                )
        if applied != known:
            raise DatabaseError(f"{self.path} has an older schema: run `kinbase --db {self.path} migrate`")


def utc(moment: datetime | None) -> datetime | None:
    """A time as the tables keep it: UTC, without a zone."""
    return moment.astimezone(UTC).replace(tzinfo=None) if moment and moment.tzinfo else moment


class _Stream:
    """A result as an Arrow stream and nothing else: what DuckDB takes without pyarrow."""

    def __init__(self, result: duckdb.DuckDBPyRelation) -> None:
        self.result = result

    def __arrow_c_stream__(self, requested_schema: object = None) -> object:
        return self.result.__arrow_c_stream__(requested_schema)


def _applied(con: Connection) -> dict[str, str]:
    """Checksum by script name; empty for a file that is not Kinbase's."""
    try:
        return dict(con.execute("select name, checksum from raw.migration").fetchall())
    except duckdb.CatalogException:
        return {}


def _migrate(con: Connection) -> list[str]:
    """Run the migrations that are missing, then the views if any changed, all in one transaction."""
    con.begin()
    try:
        con.execute("create schema if not exists raw")
        con.execute(JOURNAL)
        applied = _applied(con)
        known = {name: checksum for name, _, checksum in scripts("migrations")}
        for name, checksum in applied.items():
            if name.startswith("migrations/") and known.get(name) != checksum:
                raise DatabaseError(
                    f"the database has a {name} that this Kinbase does not know: upgrade kinbase"
                )
        pending = [script for script in scripts("migrations") if script[0] not in applied]
        views = scripts("views")
        if any(applied.get(name) != checksum for name, _, checksum in views):
            pending += views
            con.execute("delete from raw.migration where name like 'views/%'")
        for name, text, checksum in pending:
            con.execute(text)
            con.execute("insert into raw.migration (name, checksum) values (?, ?)", [name, checksum])
        con.commit()
    except BaseException:
        con.rollback()
        raise
    return [name for name, _, _ in pending]


def first_line(error: BaseException) -> str:
    """The error's text as one line, without the echo of the query."""
    lines = [line.strip() for line in str(error).split("\nLINE ")[0].splitlines()]
    return " ".join(line for line in lines if line)


def query_error(error: duckdb.Error) -> KinbaseError:
    """A failed query as one line; damage to the file as a DatabaseError."""
    if isinstance(error, duckdb.FatalException | duckdb.IOException | duckdb.SerializationException):
        return DatabaseError(f"the database file cannot be read: {first_line(error)}")
    if isinstance(error, duckdb.InvalidInputException) and "read-only mode" in str(error):
        return KinbaseError(
            "the query writes, and queries here only read: use the other commands, or DuckDB itself"
        )
    if isinstance(error, duckdb.PermissionException):
        return KinbaseError(f"{first_line(error)}: queries see the database and nothing else")
    return KinbaseError(first_line(error))


def _holder(error: BaseException) -> str:
    process = re.search(r"PID \d+", str(error))
    return f"by process {process[0]}" if process else "by this process"
