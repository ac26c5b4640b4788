"""Plain tables on disk: the names of their columns at the cost of a look, and their rows one by one, within bounds.

CSV cells are read as text: what is a number is decided where it is used, so that one "N/A" does
not spoil a column and "007" stays a name. Rows go through Python anyway, so CSV and JSON are read by Python's
own modules, which take what a file holds and no more; Parquet is decoded elsewhere (kinbase.checkpoint.parquet).
"""

import csv
import io
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from kinbase.checkpoint import parquet
from kinbase.checkpoint.files import is_file, opened, read_bounded, shown
from kinbase.checkpoint.limits import LIMITS, refuse_many
from kinbase.checkpoint.untrusted import decoded, head
from kinbase.errors import CheckpointError

_HEAD = 65536
_LINES = (".jsonl", ".ndjson")


def columns(source: str) -> list[str]:
    """The columns of a table; none for anything that is no CSV, TSV, Parquet or JSON table. Raises nothing."""
    suffix = Path(source).suffix.lower()
    if suffix not in (".csv", ".tsv", ".parquet", ".json", *_LINES) or not is_file(source):
        return []
    try:
        begins = head(source, _HEAD)
        if suffix == ".parquet":
            return parquet.columns(source) if begins.startswith(b"PAR1") else []
        text = decoded(begins)
        if suffix in (".csv", ".tsv"):
            line = text.split("\n")[0]
            return _names(next(csv.reader([line], delimiter=_separator(suffix, line)), []))
        text = text.lstrip()
        if suffix == ".json":
            text = text[1:].lstrip() if text.startswith("[") else ""
        first = json.JSONDecoder().raw_decode(text)[0] if text.startswith("{") else {}
        return list(first)[: LIMITS.table_columns]
    except (CheckpointError, ValueError, csv.Error, RecursionError):
        return []


def rows(source: str, wanted: set[str]) -> Iterator[dict[str, object]]:
    """The rows of a table, of the columns `wanted`; CheckpointError, one line, for one that cannot be read."""
    suffix = Path(source).suffix.lower()
    try:
        if suffix == ".parquet":
            yield from parquet.rows(source, wanted)
        elif suffix == ".json":
            yield from _of_json(source, wanted)
        else:
            with opened(source) as file:
                if os.fstat(file.fileno()).st_size > LIMITS.table_bytes:
                    raise CheckpointError(
                        f"{shown(source)} is larger than {LIMITS.table_bytes} bytes: split the table"
                    )
                read = _of_lines if suffix in _LINES else _of_csv
                yield from read(file, source, wanted)
    except (csv.Error, ValueError, RecursionError, OSError) as error:
        raise CheckpointError(f"{shown(source)} is no table that can be read: {str(error)[:200]}") from None


def _of_csv(file: BinaryIO, source: str, wanted: set[str]) -> Iterator[dict[str, object]]:
    begins = head(source, _HEAD)
    encoding = "utf-16" if begins.startswith((b"\xff\xfe", b"\xfe\xff")) else "utf-8-sig"
    text = io.TextIOWrapper(file, encoding=encoding, errors="replace", newline="")
    separator = _separator(Path(source).suffix.lower(), decoded(begins).split("\n")[0])
    lines = _closed(csv.reader(text, delimiter=separator, strict=True))
    names = _names(next(lines, []))
    places = {name: names.index(name) for name in names if name in wanted}
    for number, cells in enumerate(lines, 1):
        if number > LIMITS.table_rows:
            raise CheckpointError(f"{shown(source)} has more than {LIMITS.table_rows} rows: split the table")
        if len(cells) > len(names):
            raise ValueError(f"row {number} has {len(cells)} cells for {len(names)} columns")
        if cells:
            yield {name: cells[i] if i < len(cells) else None for name, i in places.items()}


def _closed(lines: Iterator[list[str]]) -> Iterator[list[str]]:
    """The rows before one whose quotes nothing closes."""
    try:
        yield from lines
    except csv.Error as error:
        if "unexpected end" not in str(error):
            raise


def _of_lines(file: BinaryIO, source: str, wanted: set[str]) -> Iterator[dict[str, object]]:
    number = 0
    while line := file.readline(LIMITS.yaml_chars + 1):
        number += 1
        if len(line) > LIMITS.yaml_chars or number > LIMITS.table_rows:
            raise ValueError(f"line {number} is too long, or one too many")
        if line.strip():
            yield _picked(json.loads(line), wanted, number)


def _of_json(source: str, wanted: set[str]) -> Iterator[dict[str, object]]:
    data = read_bounded(source, LIMITS.results_bytes)
    refuse_many(data, shown(source), LIMITS.json_items)
    table = json.loads(data.decode("utf-8-sig"))
    if not isinstance(table, list):
        raise ValueError("it is no list of rows")
    for number, row in enumerate(table, 1):
        yield _picked(row, wanted, number)


def _picked(row: object, wanted: set[str], number: int) -> dict[str, object]:
    if not isinstance(row, dict):
        raise ValueError(f"row {number} is no object")
    return {name: row.get(name) for name in wanted if name in row}


def _names(cells: list[str]) -> list[str]:
    if len(cells) > LIMITS.table_columns:
        raise ValueError(f"it has {len(cells)} columns, and at most {LIMITS.table_columns} are read")
    return [cell.strip() for cell in cells]


def _separator(suffix: str, first: str) -> str:
    """What parts the cells: a tab in a .tsv; in a .csv a comma, or what its first line has and no comma."""
    if suffix == ".tsv":
        return "\t"
    return "," if "," in first else next((mark for mark in (";", "\t", "|") if mark in first), ",")
