"""Parquet from strangers, decoded in a process of its own: cells as JSON, one row a line.

A file of a few kilobytes can stand for gigabytes (a dictionary's long entry under every row, a page that unpacks
without end), and the decoder takes no bound. So it runs confined, and what comes out is cut: texts to a bound,
times to text, since Python's end with the year 9999; columns of lists and bytes are left out.
"""

import json
import os
import sys
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kinbase.checkpoint.confined import confine, lines
from kinbase.checkpoint.files import open_regular, shown, stamp
from kinbase.checkpoint.limits import LIMITS
from kinbase.errors import CheckpointError

if TYPE_CHECKING:
    import polars

_ROWS = 1024
"""Rows turned into Python at a time: of the longest cells 64 MB."""


def columns(path: str) -> list[str]:
    """The columns of a file that can be read as cells; raises CheckpointError for one that cannot be read."""
    known = stamp(path)
    return list(_columns(path, known.size, known.mtime_ns))


@lru_cache(maxsize=64)  # several importers ask before one of them reads
def _columns(path: str, size: int, mtime_ns: int) -> tuple[str, ...]:
    (first,) = _answers(path, size, ["columns"])
    return tuple(first)


def rows(path: str, wanted: set[str]) -> Iterator[dict[str, object]]:
    """The rows of a file, of the columns `wanted`; raises CheckpointError, one line, for one that cannot be read."""
    names = [name for name in columns(path) if name in wanted]
    for cells in _answers(path, stamp(path).size, ["rows", json.dumps(names)]):
        yield dict(zip(names, cells, strict=True))


def _answers(path: str, size: int, arguments: list[str]) -> Iterator[list[Any]]:
    what = shown(path)
    os.close(open_regular(path))
    if size > LIMITS.table_bytes:
        raise CheckpointError(f"{what} is larger than {LIMITS.table_bytes} bytes: split the table")
    said = lines(
        "kinbase.checkpoint.parquet", [str(Path(path).absolute()), *arguments],
        what=what, seconds=_seconds(size), most=(64 << 20) + 64 * size,
    )  # fmt: skip
    for line in said:
        answer = json.loads(line)
        if isinstance(answer, dict):
            raise CheckpointError(f"{what} is no table that can be read: {answer['error']}")
        yield answer


def _seconds(size: int) -> float:
    return LIMITS.seconds + size / 1e6


# In the child.


def main() -> None:
    """`path columns` or `path rows NAMES`: prints lists in JSON, or an object with the error."""
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
            print(json.dumps(readable))  # noqa: T201
            return
        _write(scan, json.loads(rest[0]), schema)
    except Exception as error:  # whatever the decoder raises is the file's fault
        reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
        print(json.dumps({"error": reason[:200]}))  # noqa: T201
    except BaseException as error:  # a panic in the decoder is no Exception
        if not isinstance(error, polars.exceptions.PanicException):
            raise
        print(json.dumps({"error": "its pages are damaged"}))  # noqa: T201


def _write(scan: "polars.LazyFrame", names: list[str], schema: Any) -> None:
    import polars

    (number,) = scan.select(polars.len()).collect().row(0)
    if number > LIMITS.table_rows:
        raise ValueError(f"it has more than {LIMITS.table_rows} rows: split the table")
    frame = scan.select(names).collect()
    for start in range(0, number, _ROWS):
        part = frame.slice(start, _ROWS)
        cells = [_cells(part.get_column(name), schema[name]) for name in names]
        for i in range(len(part)):
            sys.stdout.write(json.dumps([column[i] for column in cells]) + "\n")


def _is_cell(kind: Any) -> bool:
    import polars

    return not isinstance(kind, polars.List | polars.Array) and kind not in (polars.Binary, polars.Object)


def _cells(column: "polars.Series", kind: Any) -> list[object]:
    """A column's cells as JSON has them: numbers, and texts of bounded length."""
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
    return column.to_list()


if __name__ == "__main__":
    main()
