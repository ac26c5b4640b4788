"""Plain tables on disk: the names of their columns at the cost of a look, and their rows through Polars.

CSV cells are read as text: what is a number is decided where it is used, so that one "N/A" does
not spoil a column and "007" stays a name.
"""

import csv
import json
from pathlib import Path
from typing import TYPE_CHECKING

from kinbase.checkpoint.files import is_file, shown
from kinbase.checkpoint.untrusted import decoded
from kinbase.errors import CheckpointError

if TYPE_CHECKING:
    import polars

MAX_BYTES = 1 << 30
MAX_ROWS = 5_000_000
_HEAD = 65536
_LINES = (".jsonl", ".ndjson")


def columns(source: str) -> list[str]:
    """The columns of a table; none for anything that is no CSV, TSV, Parquet or JSON table. Raises nothing."""
    suffix = Path(source).suffix.lower()
    if suffix not in (".csv", ".tsv", ".parquet", ".json", *_LINES) or not is_file(source):
        return []
    try:
        if suffix == ".parquet":
            return _parquet_columns(source)
        with Path(source).open("rb") as file:
            head = decoded(file.read(_HEAD))
        if suffix in (".csv", ".tsv"):
            first = head.split("\n")[0]
            return [
                cell.strip() for cell in next(csv.reader([first], delimiter=_separator(suffix, first)), [])
            ]
        head = head.lstrip()
        if suffix == ".json":
            head = head[1:].lstrip() if head.startswith("[") else ""
        first = json.JSONDecoder().raw_decode(head)[0] if head.startswith("{") else {}
        return list(first)
    except (OSError, ValueError, csv.Error, RecursionError):
        return []


def read(source: str, wanted: set[str]) -> "polars.DataFrame":
    """The wanted columns of a table that fits; CheckpointError, one line, for one that cannot be read."""
    import polars  # a third of a second, which recognising a table must not cost

    path = Path(source)
    suffix = path.suffix.lower()
    try:
        if path.stat().st_size > MAX_BYTES:
            raise CheckpointError(f"{shown(source)} is larger than {MAX_BYTES} bytes: split the table")
        if suffix == ".parquet":
            scan = polars.scan_parquet(path, glob=False)
            if scan.select(polars.len()).collect().item() > MAX_ROWS:
                raise CheckpointError(f"{shown(source)} has more than {MAX_ROWS} rows: split the table")
            return scan.select(
                [column for column in scan.collect_schema().names() if column in wanted]
            ).collect()
        if suffix in (".csv", ".tsv"):
            text, first = _plain(path)
            frame = polars.read_csv(
                text,
                separator=_separator(suffix, first),
                infer_schema=False,
                encoding="utf8-lossy",
                n_rows=MAX_ROWS,
                glob=False,
            )
            frame = frame.rename(str.strip)
        elif suffix in _LINES:
            frame = polars.read_ndjson(path, infer_schema_length=None, n_rows=MAX_ROWS)
        else:
            frame = polars.read_json(path, infer_schema_length=None)
        return frame.select([column for column in frame.columns if column in wanted])
    except (polars.exceptions.PolarsError, polars.exceptions.PanicException, OSError, ValueError) as error:
        reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
        raise CheckpointError(f"{shown(source)} is no table that can be read: {reason[:200]}") from None


def _parquet_columns(source: str) -> list[str]:
    import polars

    with Path(source).open("rb") as file:
        if file.read(4) != b"PAR1":
            return []
    try:
        return list(polars.read_parquet_schema(source))
    except (polars.exceptions.PolarsError, polars.exceptions.PanicException):
        return []


def _plain(path: Path) -> tuple[Path | bytes, str]:
    """A table of text as Polars reads it, and its first line: what is UTF-16, or ends its lines as old Macs did, as UTF-8."""
    with path.open("rb") as file:
        head = file.read(_HEAD)
        first = decoded(head).split("\n")[0]
        if head.startswith((b"\xff\xfe", b"\xfe\xff")) or (b"\r" in head and b"\n" not in head):
            return decoded(head + file.read()).encode(), first
    return path, first


def _separator(suffix: str, first: str) -> str:
    """What parts the cells: a tab in a .tsv; in a .csv a comma, or what its first line has and no comma."""
    if suffix == ".tsv":
        return "\t"
    return "," if "," in first else next((mark for mark in (";", "\t", "|") if mark in first), ",")
