"""Queries of people in a process of their own: stopped in time and within memory, whatever they compute.

DuckDB is asked to stop first; what does not obey (a function over one giant value neither looks at an interrupt nor
counts its memory) is killed with its process. The worker stays for the next query, and ends with whoever started it.
"""

import copyreg
import datetime
import decimal
import io
import os
import pickle
import re
import resource
import select
import struct
import subprocess
import sys
import threading
import time
import uuid
import zoneinfo
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, ClassVar

from kinbase.errors import DatabaseError, DiskError, KinbaseError, QueryError

MEMORY = 4 << 30
"""Bytes that a worker may take beside what it has when it starts: DuckDB's own bound is as high."""
RESULT = 1 << 30
"""Bytes of a result that are taken."""
GRACE = 0.5
"""Seconds that DuckDB has to obey; what obeys does so in a twentieth of that."""
REAPED = 0.5
"""Seconds that a killed process is waited for: giving back gigabytes takes a while, and nothing depends on it."""

Part = tuple[int, int] | str | Path | None
"""Of a query's rows: so many from an offset on (limit, offset), "count", or a file; None: all."""

Kind = tuple[str, tuple[Any, ...]]
"""A type of DuckDB's: its id, and for those that hold others, names and types or numbers."""

Answer = tuple[list[str], list[Kind], list[tuple[Any, ...]]]
"""Columns, their types, rows."""


class Worker:
    """A process that answers queries on the database at `path`, one at a time.

    `wait` bounds, in seconds, how long another process's lock is waited for.
    """

    def __init__(self, path: Path, wait: float) -> None:
        self.path, self.wait = path, wait
        self._process: subprocess.Popen[bytes] | None = None
        self._turn = threading.Lock()

    def ask(
        self,
        query: str,
        parameters: Sequence[Any] = (),
        *,
        seconds: float = 0,
        part: Part = None,
        stop: threading.Event | None = None,
    ) -> Answer:
        """The columns, their types and the rows of a query.

        All of them, or of `part` those from an offset on, `count` for how many there are, or the file they go to.

        Raises KinbaseError when it fails, takes longer than `seconds` (0: never) or more memory than there is for it,
        or when `stop` is set; KeyboardInterrupt ends it too.
        """
        with self._turn:
            try:
                return self._ask(query, parameters, seconds, part, stop)
            except _SaidError as error:
                raise error.known from None
            except BaseException:
                self.close()
                if isinstance(part, Path):
                    part.with_name(part.name + ".part").unlink(missing_ok=True)
                raise

    def close(self) -> None:
        """End the process, whatever it does."""
        process, self._process = self._process, None
        if process is not None:
            process.kill()
            try:
                process.wait(REAPED)
            except subprocess.TimeoutExpired:
                threading.Thread(target=process.wait, daemon=True).start()
            for pipe in (process.stdin, process.stdout):
                with suppress(OSError):
                    if pipe is not None:
                        pipe.close()

    def __del__(self) -> None:
        with suppress(Exception):
            self.close()

    def _ask(
        self, query: str, parameters: Sequence[Any], seconds: float, part: Part, stop: threading.Event | None
    ) -> Answer:
        if self._process is None or self._process.poll() is not None:
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-m", "kinbase.store.worker", str(self.path), repr(self.wait)],
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True,
            )  # fmt: skip
        process = self._process
        assert process.stdin and process.stdout
        _send(process.stdin, (query, list(parameters), seconds, part))
        until = time.monotonic() + seconds + GRACE if seconds else float("inf")
        # The lock of another process is waited for first, and does not count.
        answers = _Answers(process.stdout, until + self.wait + 5 if seconds else until, stop)
        try:
            answers.next()  # the file is open
            answers.until = time.monotonic() + seconds + GRACE if seconds else float("inf")
            columns, kinds = answers.next()
            rows: list[tuple[Any, ...]] = []
            while batch := answers.next():
                rows += batch
        except TimeoutError:
            raise stopped(seconds) from None
        except EOFError:
            raise too_much() from None
        return columns, kinds, rows


def stopped(seconds: float) -> KinbaseError:
    """What is said of a query that took too long."""
    return KinbaseError(f"the query was stopped after {seconds:g} s: narrow it or raise --timeout")


def too_much() -> KinbaseError:
    """What is said of a query whose process died of its bounds."""
    return KinbaseError(
        f"the query was stopped: it takes more than the {MEMORY >> 30} GiB it may have; narrow it"
    )


def confine() -> None:
    """From here on this process takes no more than MEMORY beside what it has, and leaves no core."""
    with suppress(OSError, ValueError):
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    with suppress(OSError, ValueError):
        held = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (held + MEMORY, held + MEMORY))


class _SaidError(Exception):
    """The worker's own word for what went wrong: it is there for the next query."""

    def __init__(self, known: KinbaseError) -> None:
        super().__init__(str(known))
        self.known = known


class _Answers:
    """What a worker says, message by message, within a time and a number of bytes."""

    def __init__(self, pipe: Any, until: float, stop: threading.Event | None) -> None:
        self.fd, self.until, self.stop = pipe.fileno(), until, stop
        self.heard = 0

    def next(self) -> Any:
        (length,) = struct.unpack("<Q", self._take(8))
        self.heard += length
        if self.heard > RESULT:
            raise KinbaseError(
                f"the result is larger than {RESULT >> 30} GiB: add a limit, or write it with `kinbase sql -o`"
            )
        said = _Plain(io.BytesIO(self._take(length))).load()
        if isinstance(said, dict):
            kind = {"database": DatabaseError, "disk": DiskError}.get(said["error"], KinbaseError)
            place = said.get("place")
            raise _SaidError(QueryError(said["message"], *place) if place else kind(said["message"]))
        return said

    def _take(self, length: int) -> bytes:
        data = bytearray()
        while len(data) < length:
            left = self.until - time.monotonic()
            if left <= 0:
                raise TimeoutError
            if self.stop is not None and self.stop.is_set():
                raise KinbaseError("stopped")
            ready, _, _ = select.select([self.fd], [], [], min(left, 0.1 if self.stop is not None else 3600))
            if ready:
                piece = os.read(self.fd, min(length - len(data), 1 << 20))
                if not piece:
                    raise EOFError
                data += piece
        return bytes(data)


class _Plain(pickle.Unpickler):
    """Values of columns and nothing else: what is in a database is not to build objects here."""

    known: ClassVar[dict[tuple[str, str], Any]] = {(c.__module__, c.__qualname__): c for c in (
        datetime.datetime, datetime.date, datetime.time, datetime.timedelta, datetime.timezone,
        decimal.Decimal, uuid.UUID, zoneinfo.ZoneInfo,
    )}  # fmt: skip

    def find_class(self, module: str, name: str) -> Any:
        return self.known[module, name]


def _send(pipe: Any, what: object) -> None:
    data = pickle.dumps(what, protocol=5)
    pipe.write(struct.pack("<Q", len(data)) + data)
    pipe.flush()


# In the worker.


def main() -> None:
    """Answer queries until stdin ends: `path wait`."""
    from kinbase.store.connection import Store

    store = Store(sys.argv[1], wait=float(sys.argv[2]))
    out = sys.stdout.buffer
    copyreg.pickle(zoneinfo.ZoneInfo, lambda zone: (zoneinfo.ZoneInfo, (zone.key,)))
    confine()
    while head := sys.stdin.buffer.read(8):
        query, parameters, seconds, part = pickle.loads(sys.stdin.buffer.read(*struct.unpack("<Q", head)))
        try:
            with store.bounded(seconds) as con:
                _send(out, "open")
                _answer(out, con, query, parameters, part)
        except MemoryError:
            _send(out, {"error": "", "message": str(too_much())})
        except KinbaseError as error:
            word = (
                "database"
                if isinstance(error, DatabaseError)
                else "disk"
                if isinstance(error, DiskError)
                else ""
            )
            place = (error.line, error.text, error.at) if isinstance(error, QueryError) else None
            _send(out, {"error": word, "message": str(error), "place": place})


def _answer(out: Any, con: Any, query: str, parameters: list[Any], part: Part) -> None:
    """Send a query's columns, then its rows in batches, then an empty batch."""
    described: Sequence[Any] = []
    batches: Iterator[list[tuple[Any, ...]]] = iter(())
    if isinstance(part, Path):
        _save(con, query, part)
    elif part == "count":
        batches = iter([con.sql(bare(query)).count("*").fetchall()])
    elif isinstance(part, tuple) and part[1]:  # the file was closed since: the query runs again, up to there
        batches = iter([con.sql(bare(query)).limit(*part).fetchall()])
    elif result := con.execute(query, parameters):  # nothing for a comment
        described = result.description or []
        if described:
            batches = iter([result.fetchmany(part[0])]) if isinstance(part, tuple) else _batches(result)
    _send(out, ([column[0] for column in described], [kind(column[1]) for column in described]))
    for batch in batches:
        if batch:
            _send(out, batch)
    _send(out, [])


def bare(query: str) -> str:
    """The query without a last semicolon and what is said after it: it becomes a part of another one."""
    return re.sub(r";(?:\s|--[^\n]*|/\*.*?\*/)*\Z", "", query, flags=re.DOTALL)


def _save(con: Any, query: str, path: Path) -> None:
    """Write a query's rows to a file that ends in .parquet or .csv; no half file is left behind."""
    from kinbase.store.connection import Store
    from kinbase.text import write_rows, written

    if path.suffix.lower() == ".parquet":
        Store.write_parquet(con, query, str(path))
        return
    try:
        result = con.execute(query)
        with written(str(path)) as out:
            write_rows([c[0] for c in result.description or []], Store.stream(result), "csv", out)
    except OSError as error:
        raise KinbaseError(f"{path} could not be written: {error.strerror}") from error


def _batches(result: Any) -> Iterator[list[tuple[Any, ...]]]:
    while rows := result.fetchmany(1000):
        yield rows


def kind(described: Any) -> Kind:
    """A type of DuckDB's as plain values."""
    word = str(described.id)
    if word in ("list", "array"):
        return word, (kind(described.children[0][1]),)
    if word in ("struct", "union", "map"):
        return word, tuple((name, kind(child)) for name, child in described.children)
    if word == "decimal":
        return word, tuple(value for _, value in described.children)
    return word, ()


if __name__ == "__main__":
    main()
