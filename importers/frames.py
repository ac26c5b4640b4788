"""Plain tables on disk: the names of their columns at the cost of a look, and their cells a batch of rows at a time.

CSV cells are read as text: what is a number is decided where it is used, so that one "N/A" does
not spoil a column and "007" stays a name. CSV and JSON are read by Python's own modules, which take what a file holds
and no more, and say which row is wrong; Parquet is decoded elsewhere (kinbase.checkpoint.parquet).
"""

import contextlib
import csv
import io
import json
import os
from collections.abc import Iterable, Iterator, Mapping
from itertools import count, islice, zip_longest
from pathlib import Path
from typing import BinaryIO

import polars as pl

from kinbase.checkpoint import parquet
from kinbase.checkpoint.files import is_file, opened, read_bounded, shown
from kinbase.checkpoint.limits import LIMITS, refuse_many
from kinbase.checkpoint.untrusted import decoded, head
from kinbase.errors import CheckpointError

_HEAD = 65536
_LINES = (".jsonl", ".ndjson")
BATCH = 1 << 16
"""Rows at a time: all that is held of a file beside what was made of its rows."""


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


def batches(source: str, wanted: Mapping[str, str]) -> Iterator[pl.DataFrame]:
    """The rows of a table, some at a time: the columns `wanted`, by what they are to be called.

    A column is text, numbers or truths, or Object where a JSON file has several kinds in it. Raises CheckpointError,
    one line, for a table that cannot be read.
    """
    suffix = Path(source).suffix.lower()
    called = {theirs: ours for ours, theirs in wanted.items()}
    try:
        if suffix == ".parquet":
            for frame in parquet.frames(source, set(called)):
                yield frame.rename(called, strict=False)
        elif suffix == ".json":
            yield from _frames(_of_json(source), called)
        else:
            with opened(source) as file:
                if os.fstat(file.fileno()).st_size > LIMITS.table_bytes:
                    raise CheckpointError(
                        f"{shown(source)} is larger than {LIMITS.table_bytes} bytes: split the table"
                    )
                if suffix in _LINES:
                    yield from _frames(_of_lines(file), called)
                else:
                    yield from _of_csv(file, source, called)
    except (csv.Error, ValueError, RecursionError, OSError) as error:
        raise CheckpointError(f"{shown(source)} is no table that can be read: {str(error)[:200]}") from None


def of_rows(rows: Iterable[Mapping[str, object]]) -> pl.DataFrame:
    """Rows that were read already, with all columns that any of them has."""
    listed = list(rows)
    names = list(dict.fromkeys(name for row in listed for name in row))
    return pl.DataFrame([_cells(name, [row.get(name) for row in listed]) for name in names])


def _of_csv(file: BinaryIO, source: str, called: Mapping[str, str]) -> Iterator[pl.DataFrame]:
    begins = head(source, _HEAD)
    encoding = "utf-16" if begins.startswith((b"\xff\xfe", b"\xfe\xff")) else "utf-8-sig"
    text = io.TextIOWrapper(file, encoding=encoding, errors="replace", newline="")
    separator = _separator(Path(source).suffix.lower(), decoded(begins).split("\n")[0])
    lines = _closed(csv.reader(text, delimiter=separator, strict=True))
    names = _names(next(lines, []))
    places = {name: names.index(name) for name in names if name in called}
    seen = 0
    while batch := list(islice(lines, BATCH)):
        seen += len(batch)
        if seen > LIMITS.table_rows:
            raise CheckpointError(f"{shown(source)} has more than {LIMITS.table_rows} rows: split the table")
        lengths = list(map(len, batch))
        if max(lengths) > len(names):
            at = next(i for i, length in enumerate(lengths) if length > len(names))
            raise ValueError(
                f"row {seen - len(batch) + at + 1} has {lengths[at]} cells for {len(names)} columns"
            )
        # A row may end early, and one without any cell is an empty line.
        columns = list(zip_longest(*filter(None, batch), [""] * len(names)))
        yield pl.DataFrame(
            [pl.Series(called[name], columns[i][:-1], dtype=pl.String) for name, i in places.items()]
        )


def _closed(lines: Iterator[list[str]]) -> Iterator[list[str]]:
    """The rows before one whose quotes nothing closes."""
    try:
        yield from lines
    except csv.Error as error:
        if "unexpected end" not in str(error):
            raise


def _of_lines(file: BinaryIO) -> Iterator[dict[str, object]]:
    number = 0
    while line := file.readline(LIMITS.yaml_chars + 1):
        number += 1
        if len(line) > LIMITS.yaml_chars or number > LIMITS.table_rows:
            raise ValueError(f"line {number} is too long, or one too many")
        if line.strip():
            yield _checked(json.loads(line), number)


def _of_json(source: str) -> Iterator[dict[str, object]]:
    data = read_bounded(source, LIMITS.results_bytes)
    refuse_many(data, shown(source), LIMITS.json_items)
    table = json.loads(data.decode("utf-8-sig"))
    if not isinstance(table, list):
        raise ValueError("it is no list of rows")
    yield from map(_checked, table, count(1))


def _checked(row: object, number: int) -> dict[str, object]:
    if not isinstance(row, dict):
        raise ValueError(f"row {number} is no object")
    return row


def _frames(rows: Iterator[dict[str, object]], called: Mapping[str, str]) -> Iterator[pl.DataFrame]:
    while batch := list(islice(rows, BATCH)):
        yield pl.DataFrame(
            [_cells(ours, [row.get(theirs) for row in batch]) for theirs, ours in called.items()]
        )


_PLAIN = {str: pl.String, int: pl.Int64, float: pl.Float64, bool: pl.Boolean}


def _cells(name: str, values: list[object]) -> pl.Series:
    """A column of what JSON holds; of several kinds, or of what no column can hold, as objects."""
    kinds = {type(value) for value in values if value is not None}
    if len(kinds) <= 1:
        with contextlib.suppress(
            OverflowError, UnicodeEncodeError, KeyError, TypeError, pl.exceptions.PolarsError
        ):
            return pl.Series(name, values, dtype=_PLAIN[kinds.pop()] if kinds else pl.String)
    return pl.Series(name, values, dtype=pl.Object)


def _names(cells: list[str]) -> list[str]:
    if len(cells) > LIMITS.table_columns:
        raise ValueError(f"it has {len(cells)} columns, and at most {LIMITS.table_columns} are read")
    return [cell.strip() for cell in cells]


def _separator(suffix: str, first: str) -> str:
    """What parts the cells: a tab in a .tsv; in a .csv a comma, or what its first line has and no comma."""
    if suffix == ".tsv":
        return "\t"
    return "," if "," in first else next((mark for mark in (";", "\t", "|") if mark in first), ",")
