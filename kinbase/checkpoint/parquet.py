"""Parquet from strangers, decoded in a process of its own: cells in batches of Arrow.

A file of a few kilobytes can stand for gigabytes (a dictionary's long entry under every row, a page that unpacks
without end), and the decoder takes no bound. So it runs confined, and what comes out is cut: texts to a bound,
times to text, since Python's end with the year 9999; columns of lists and bytes are left out.
"""

import io
import json
import os
import sys
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kinbase.checkpoint.confined import confine, messages, say
from kinbase.checkpoint.files import open_regular, shown, stamp
from kinbase.checkpoint.limits import LIMITS
from kinbase.errors import CheckpointError

if TYPE_CHECKING:
    import polars

_ERROR = b"ERROR "
"""How a message begins that says what is wrong; no names in JSON and no Arrow do."""

_ROWS = 1 << 16
"""Rows handed over at a time, and fewer where their cells are long."""

_BYTES = 64 << 20
"""Bytes of a batch beyond which its rows are handed over in halves."""


def columns(path: str) -> list[str]:
    """The columns of a file that can be read as cells; raises CheckpointError for one that cannot be read."""
    known = stamp(path)
    return list(_columns(path, known.size, known.mtime_ns))


@lru_cache(maxsize=64)  # several importers ask before one of them reads
def _columns(path: str, size: int, mtime_ns: int) -> tuple[str, ...]:
    (first,) = _answers(path, size, ["columns"])
    return tuple(json.loads(first))


def frames(path: str, wanted: set[str]) -> Iterator["polars.DataFrame"]:
    """The rows of a file, some at a time, of the columns `wanted`.

    Raises CheckpointError, one line, for a file that cannot be read.
    """
    import polars

    names = [name for name in columns(path) if name in wanted]
    for batch in _answers(path, stamp(path).size, ["rows", json.dumps(names)]):
        yield polars.read_ipc_stream(batch)


def _answers(path: str, size: int, arguments: list[str]) -> Iterator[bytes]:
    what = shown(path)
    os.close(open_regular(path))
    if size > LIMITS.table_bytes:
        raise CheckpointError(f"{what} is larger than {LIMITS.table_bytes} bytes: split the table")
    said = messages(
        "kinbase.checkpoint.parquet", [str(Path(path).absolute()), *arguments],
        what=what, seconds=_seconds(size), most=(64 << 20) + 64 * size,
    )  # fmt: skip
    for message in said:
        if message.startswith(_ERROR):
            raise CheckpointError(f"{what} is no table that can be read: {message[len(_ERROR) :].decode()}")
        yield message


def _seconds(size: int) -> float:
    return LIMITS.seconds + size / 1e6


# In the child.


def main() -> None:
    """`path columns` or `path rows NAMES`: says the names in JSON, or frames in Arrow; or what is wrong with the file."""
    import polars

    path, mode, *rest = sys.argv[1:]
    size = os.stat(path).st_size  # noqa: PTH116
    confine(memory=LIMITS.parquet_memory + 16 * size, seconds=_seconds(size))
    try:
        scan = polars.scan_parquet(path, glob=False, hive_partitioning=False)
        schema = scan.collect_schema()
        if len(schema) > LIMITS.table_columns:
            raise ValueError(f"it has {len(schema)} columns, and at most {LIMITS.table_columns} are read")
        readable = [name for name, kind in schema.items() if _is_cell(kind)]
        if mode == "columns":
            say(json.dumps(readable).encode())
            return
        _write(scan, json.loads(rest[0]), schema)
    except Exception as error:  # whatever the decoder raises is the file's fault
        reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
        say(_ERROR + reason[:200].encode("utf-8", "replace"))
    except BaseException as error:  # a panic in the decoder is no Exception
        if not isinstance(error, polars.exceptions.PanicException):
            raise
        say(_ERROR + b"its pages are damaged")


def _write(scan: "polars.LazyFrame", names: list[str], schema: Any) -> None:
    import polars

    (number,) = scan.select(polars.len()).collect().row(0)
    if number > LIMITS.table_rows:
        raise ValueError(f"it has more than {LIMITS.table_rows} rows: split the table")
    for frame in scan.select(names).collect_batches(chunk_size=_ROWS, maintain_order=True):
        _say_rows(frame, schema)


def _say_rows(frame: "polars.DataFrame", schema: Any) -> None:
    import polars
    import polars.selectors

    cells = polars.DataFrame([_cells(frame.get_column(name), schema[name]) for name in frame.columns])
    texts = cells.select(polars.selectors.string().str.len_bytes())
    if len(cells) > 1 and sum(texts.sum().row(0)) > _BYTES:
        _say_rows(frame[: len(frame) // 2], schema)
        _say_rows(frame[len(frame) // 2 :], schema)
        return
    data = io.BytesIO()
    # Flat: a text that many rows share is as long as all of them, here as in what is made of it.
    cells.write_ipc_stream(data, compat_level=polars.CompatLevel.oldest())
    say(data.getbuffer())


def _is_cell(kind: Any) -> bool:
    import polars

    return not isinstance(kind, polars.List | polars.Array) and kind not in (polars.Binary, polars.Object)


def _cells(column: "polars.Series", kind: Any) -> "polars.Series":
    """A column's cells as numbers, truths, or texts of bounded length."""
    import polars

    if isinstance(kind, polars.Datetime) and kind.time_zone:
        column = column.dt.convert_time_zone("UTC").dt.replace_time_zone(None)
    if kind.is_decimal():
        column = column.cast(polars.Float64)
    elif isinstance(kind, polars.Struct):
        column = column.struct.json_encode()
    elif not (kind.is_numeric() or kind in (polars.Boolean, polars.Null, polars.String)):
        column = column.cast(polars.String)
    if column.dtype == polars.String:
        column = column.str.slice(0, LIMITS.cell_chars + 1)  # longer than any cell that is taken
    elif column.dtype == polars.Null:
        column = column.cast(polars.String)
    return column


if __name__ == "__main__":
    main()
