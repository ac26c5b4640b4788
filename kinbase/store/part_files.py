"""Files of parts of a pass: rows of positions and bytes in Parquet, and a text in the footer that says what they are.

Each row has a row group of its own, so that writing and reading hold one row at a time however many there are.
"""

import os
import struct
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import duckdb

from kinbase.checkpoint.files import open_regular, opened, shown
from kinbase.errors import CheckpointError, DiskError
from kinbase.store.archive import as_pattern
from kinbase.store.connection import WRITING, no_room

Row = tuple[int, bytes]

KEY = "kinbase.part"
"""Under which the footer has the text."""

FOOTER = 64 << 20
"""Bytes of a footer that is looked at: of thousands of models and rows it has some hundred kilobytes."""

MEMORY = "1GiB"
"""What decoding may take: a row of 8,000 members has half of it."""


def is_part(path: str | Path) -> bool:
    """Whether a file is one that `write` wrote, by its end; a file that is cut off is not."""
    try:
        with opened(path) as file:  # no pipe, at which it would wait for ever
            size = file.seek(0, os.SEEK_END)
            file.seek(max(0, size - 8))
            length, magic = struct.unpack("<I4s", file.read(8))
            if magic != b"PAR1" or length > min(size, FOOTER):
                return False
            file.seek(size - 8 - length)
            return KEY.encode() in file.read(length)
    except (CheckpointError, OSError, ValueError, struct.error):
        return False


def write(path: Path, text: str, rows: Callable[[], Iterable[Row]]) -> None:
    """Write a file whole, or leave what is there. Raises DiskError when it cannot be written."""
    import polars as pl
    from polars.io.plugins import register_io_source

    schema = pl.Schema({"position": pl.Int32, "sums": pl.Binary})

    def frames(*_: object) -> Iterator[pl.DataFrame]:
        for position, data in rows():
            yield pl.DataFrame({"position": [position], "sums": [data]}, schema=schema)

    part = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    try:
        register_io_source(frames, schema=schema).sink_parquet(
            part, row_group_size=1, compression="uncompressed", statistics=False, metadata={KEY: text}
        )
        with open(part, "rb") as file:
            os.fsync(file.fileno())
        part.replace(path)
    except (OSError, pl.exceptions.PolarsError) as error:
        reason = no_room(error) or getattr(error, "strerror", None) or str(error).splitlines()[0]
        raise DiskError(f"{shown(str(path))} cannot be written: {reason.lower()}") from None
    finally:
        with suppress(OSError):
            part.unlink()


def text(path: Path) -> str:
    """The text in a file's footer. Raises CheckpointError for one that is damaged."""
    with _reader(path) as (con, name):
        query = "select decode(value) from parquet_kv_metadata($1) where decode(key) = $2"
        found = con.execute(query, [name, KEY]).fetchall()
        if len(found) != 1:
            raise CheckpointError(_damaged(path))
        return str(found[0][0])


def rows(path: Path) -> Iterator[Row]:
    """The rows of a file, in order, one at a time. Raises CheckpointError for a file that is damaged."""
    with _reader(path) as (con, name):
        result = con.execute(
            "select position::integer, sums::blob from read_parquet($1, hive_partitioning = false)", [name]
        )
        while row := result.fetchone():
            if None in row:
                raise CheckpointError(_damaged(path))
            yield row


@contextmanager
def _reader(path: Path) -> Iterator[tuple[duckdb.DuckDBPyConnection, str]]:
    """A connection of its own, and the name of the file in it, which may hold what in DuckDB is a pattern."""
    os.close(open_regular(path))
    con = duckdb.connect(
        ":memory:", config={**WRITING, "memory_limit": MEMORY, "threads": 1, "temp_directory": ""}
    )
    try:
        yield con, as_pattern(str(path.absolute()))
    except duckdb.Error:
        raise CheckpointError(_damaged(path)) from None
    finally:
        con.close()


def _damaged(path: Path) -> str:
    return f"{shown(str(path))} is damaged, or was written only in part: measure that part again"
