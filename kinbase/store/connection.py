"""The database file: opened for one unit of work, guarded, migrated, written in short transactions.

DuckDB allows one writing process or many reading ones. So a handle never lives longer than one unit
of work, the tensor pass runs with the file closed, and a locked file is waited for, within bounds.
Nothing outside this package imports duckdb.
"""

import re
import stat
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Concatenate, ParamSpec, TypeVar

import duckdb

from kinbase.errors import DatabaseError, DiskError, KinbaseError, QueryError
from kinbase.schema import scripts
from kinbase.store import migrations, surface
from kinbase.text import made_whole

Connection = duckdb.DuckDBPyConnection
Asked = ParamSpec("Asked")
Answer = TypeVar("Answer")

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

_CHECKED: set[tuple[str, int, int]] = set()
"""Files whose views were compared with ours."""

EMPTY = 64 << 10
"""Bytes that a file may have in which nothing was ever defined; one with a schema has megabytes."""

BATCH = 10_000
"""Rows fetched at a time."""


class Store:
    """The database at `path`; nothing is opened until it is asked for.

    `wait` bounds, in seconds, how long a lock held by another process is waited for; `log` is told of it, in a line,
    when that takes more than a moment.
    """

    def __init__(
        self, path: str | Path, *, wait: float = WAIT, log: Callable[[str], None] = lambda line: None
    ) -> None:
        # DuckDB takes a name such as `md:x` for an address; from the root on it is a file's.
        self.path = Path(path) if ":" not in str(path) else Path(path).absolute()
        self.wait = wait
        self.log = log

    @contextmanager
    def reading(self) -> Iterator[Connection]:
        """A guarded read-only connection.

        Raises DatabaseError when the file is missing, locked, unreadable or of another schema, and
        KinbaseError when a query in the block fails.
        """
        self._refuse_missing()
        con = self._connect(read_only=True)
        try:
            self._check_schema(con)
            yield con
        except duckdb.Error as error:
            raise query_error(error) from error
        finally:
            con.close()

    def ask(
        self,
        question: Callable[Concatenate[Connection, Asked], Answer],
        *given: Asked.args,
        **more: Asked.kwargs,
    ) -> Answer:
        """What a function of `kinbase.query` answers on a connection of its own. Raises like `reading`."""
        with self.reading() as con:
            return question(con, *given, **more)

    @contextmanager
    def writing(self, reads: Sequence[str | Path] = ()) -> Iterator[Connection]:
        """A connection inside one transaction, committed at the end of the block, rolled back on any error.

        It sees the database and the folders `reads`. Makes the database when there is none. Raises like `reading`,
        and DiskError when there is no room.
        """
        if not self._exists():
            migrations.make(self.path, WRITING)
        con = self._connect(read_only=False, reads=reads)
        try:
            if migrations.is_empty(con):
                migrations.migrate(con)
            self._check_schema(con, mend=True)
            con.begin()
            try:
                yield con
                con.commit()
            except BaseException:
                with suppress(duckdb.Error):  # the failure itself may have ended the transaction
                    con.rollback()
                raise
        except duckdb.Error as error:
            raise query_error(error, self.path) from error
        finally:
            with suppress(duckdb.Error):
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
        if Path(path).exists() and not Path(path).is_file():
            raise DiskError(f"{path} is no regular file: Parquet is written to a file of its own")
        writer = duckdb.connect()
        try:
            rows = _Stream(con.sql(query))
            writer.register("rows", rows)
            with made_whole(path) as part:
                quoted = str(part).replace("'", "''")
                writer.execute(f"copy (from rows) to '{quoted}' (format parquet)")
        except (duckdb.IOException, OSError) as error:
            raise DiskError(f"{path} cannot be written: {no_room(error) or first_line(error)}") from None
        finally:
            with suppress(duckdb.Error):
                writer.close()

    @contextmanager
    def mending(self, on_backup: Callable[[Path], None]) -> Iterator[Connection]:
        """`writing`, on a file that was copied beside itself first; `on_backup` is told the copy."""
        self._refuse_missing()
        con = self._connect(read_only=False)
        try:
            if not migrations.applied(con):
                raise DatabaseError(f"{self.path} is not Kinbase's: nothing was changed in it")
            on_backup(migrations.copied(self.path, con, "repair"))
        except duckdb.Error as error:
            raise query_error(error, self.path) from error
        finally:
            con.close()
        with self.writing() as con:
            yield con

    def migrate(
        self, *, backup: bool = True, on_backup: Callable[[Path], None] = lambda path: None
    ) -> list[str]:
        """Bring the database to this version's schema; the names of the scripts that ran.

        The file is copied before tables change, unless `backup` is off, and `on_backup` is told the copy. Raises
        DatabaseError for somebody else's file, and DiskError when there is no room.
        """
        self._refuse_missing()
        con = self._connect(read_only=False)
        try:
            if backup and (copy := migrations.back_up(self.path, con)):
                on_backup(copy)
            return migrations.migrate(con)
        except DatabaseError as error:
            raise DatabaseError(f"{self.path} is as it was: {error}") from None
        except duckdb.Error as error:
            kind = DiskError if no_room(error) else DatabaseError
            known = no_room(error) or first_line(error)
            raise kind(f"{self.path} could not be migrated and is as it was: {known}") from error
        finally:
            with suppress(duckdb.Error):
                con.close()

    def fill(self) -> None:
        """Lay the schema in a file that an import left empty when it was cut off; nothing for any other."""
        if self._exists() and self.path.stat().st_size <= EMPTY:
            with self.writing():
                pass

    def _exists(self) -> bool:
        """Whether there is anything at the path; raises DatabaseError where it can be no database."""
        if self.path.name == ":memory:":
            raise DatabaseError(
                "a database in memory keeps nothing from one command to the next: name a file with --db"
            )
        if self.path.name.partition(".")[0].lower() == "raw":
            # DuckDB calls the database after its file, and could not tell it from the schema `raw`.
            raise DatabaseError(
                f"{self.path} cannot be a Kinbase database: give the file a name that is not raw"
            )
        for ending, is_it in ((".wal", stat.S_ISREG), (".tmp", stat.S_ISDIR)):
            self._refuse_beside(Path(f"{self.path}{ending}"), is_it)
        try:
            status = self.path.stat()
        except FileNotFoundError:
            return False
        except (OSError, ValueError) as error:
            reason = getattr(error, "strerror", None) or "it is no file name"
            raise DatabaseError(f"{shortened(self.path)} cannot be a database: {reason.lower()}") from None
        if not stat.S_ISREG(status.st_mode):
            raise DatabaseError(f"{self.path} is not a regular file: name a database with --db")
        return True

    def _refuse_beside(self, path: Path, is_it: Callable[[int], bool]) -> None:
        """Refuse a pipe or a link where DuckDB keeps its journal and what it spills: it would wait, or write elsewhere."""
        try:
            mode = path.lstat().st_mode
        except (OSError, ValueError):
            return
        if not is_it(mode):
            raise DatabaseError(f"{shortened(path)} is in the way of the database: take it away")

    def _refuse_missing(self) -> None:
        if not self._exists():
            raise DatabaseError(
                f"there is no database at {self.path}: `kinbase import` or `kinbase demo` makes one"
            )

    def _connect(self, *, read_only: bool, reads: Sequence[str | Path] = ()) -> Connection:
        self._exists()
        began = time.monotonic()
        deadline, is_told = began + self.wait, False
        pause = 0.02
        while True:
            try:
                con = duckdb.connect(
                    str(self.path), read_only=read_only, config=READING if read_only else WRITING
                )
                if not read_only:
                    migrations.shut_in(con, reads)
                return con
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

    def _check_schema(self, con: Connection, *, mend: bool = False) -> None:
        applied = migrations.applied(con)
        if not applied:
            if migrations.is_empty(con):
                raise DatabaseError(f"{self.path} is empty: `kinbase import` fills it")
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
        self._check_surface(con, mend)

    def _check_surface(self, con: Connection, mend: bool) -> None:
        """Refuse views that are not ours, or lay ours anew; looked at once a process and file."""
        status = self.path.stat()
        key = (str(self.path), status.st_dev, status.st_ino)
        if key in _CHECKED:
            return
        tables, others = surface.differences(con)
        if tables:
            raise DatabaseError(f"{self.path} has another {tables[0]} than this Kinbase makes: it was edited")
        if others and not mend:
            raise DatabaseError(
                f"{self.path} has another {others[0]} than this Kinbase lays: `kinbase --db {self.path} migrate` makes "
                "all of them anew"
            )
        if others:
            con.begin()
            try:
                surface.lay(con, others)
                con.commit()
            except BaseException:
                with suppress(duckdb.Error):
                    con.rollback()
                raise
        _CHECKED.add(key)


def utc(moment: datetime | None) -> datetime | None:
    """A time as the tables keep it: UTC, without a zone."""
    return moment.astimezone(UTC).replace(tzinfo=None) if moment and moment.tzinfo else moment


class _Stream:
    """A result as an Arrow stream and nothing else: what DuckDB takes without pyarrow."""

    def __init__(self, result: duckdb.DuckDBPyRelation) -> None:
        self.result = result

    def __arrow_c_stream__(self, requested_schema: object = None) -> object:
        return self.result.__arrow_c_stream__(requested_schema)


def as_stream(result: duckdb.DuckDBPyRelation) -> object:
    """A result that another connection can register as a table and read once."""
    return _Stream(result)


def is_broken_rule(error: BaseException) -> bool:
    """Whether a statement failed because a key is taken, or a column wants a value."""
    return isinstance(error, duckdb.ConstraintException)


def first_line(error: BaseException) -> str:
    """The error's text as one line, without the echo of the query."""
    lines = [line.strip() for line in str(error).split("\nLINE ")[0].splitlines()]
    return " ".join(line for line in lines if line)


def query_error(error: duckdb.Error, path: Path | None = None) -> KinbaseError:
    """A failed query as one line; damage to the file as a DatabaseError, a full disk as a DiskError."""
    if full := no_room(error):
        return DiskError(
            f"{path or 'the database'} cannot be written: {full}; nothing of this was stored, make room and run it again"
        )
    damaged = isinstance(error, duckdb.FatalException | duckdb.IOException | duckdb.SerializationException)
    if damaged or "Corrupt database file" in str(error):
        return DatabaseError(f"the database file cannot be read: {first_line(error)}")
    if isinstance(error, duckdb.InvalidInputException) and "read-only mode" in str(error):
        return KinbaseError(
            "the query writes, and queries here only read: use the other commands, or DuckDB itself"
        )
    if isinstance(error, duckdb.PermissionException):
        return KinbaseError(f"{first_line(error)}: queries see the database and nothing else")
    place = re.search(r"^LINE (\d+): (.*)\n( *)\^", str(error), re.MULTILINE)
    if place:
        at = max(0, len(place[3]) - len(f"LINE {place[1]}: "))
        return QueryError(first_line(error), int(place[1]), place[2], at)
    return KinbaseError(first_line(error))


_FULL = {
    "no space left on device": "the disk is full",
    "disk quota exceeded": "the quota is used up",
    "file too large": "a file of this size is not allowed",
}


def no_room(error: BaseException) -> str | None:
    """What is full, where that is why something could not be written."""
    text = str(error).lower()
    return next((said for words, said in _FULL.items() if words in text), None)


def shortened(path: Path) -> str:
    """A path for a message, cut where it is longer than any that exists."""
    text = str(path)
    return text if len(text) <= 200 else text[:197] + "..."


def _holder(error: BaseException) -> str:
    process = re.search(r"PID \d+", str(error))
    return f"by process {process[0]}" if process else "by this process"
