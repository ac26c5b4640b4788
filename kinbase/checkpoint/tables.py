"""Tables of records: from records and back, and what is asked of their cells.

A rule about a cell is a function of one value, written once, and asked once of each value that a column holds: a
million rows have few benchmarks. Most names differ, and are spelled plainly, which one expression over the column tells.
"""

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import fields
from datetime import UTC, datetime
from itertools import groupby
from typing import Any

import polars as pl

from kinbase.checkpoint.contract import Edge, Row, Table
from kinbase.checkpoint.ids import NOTHING, SITES, canonical, folded
from kinbase.checkpoint.untrusted import model_id

_DTYPES: dict[Any, pl.DataType | type[pl.DataType]] = {
    str: pl.String, str | None: pl.String, int | None: pl.Int64, float: pl.Float64, float | None: pl.Float64,
    bool | None: pl.Boolean, datetime | None: pl.Datetime("us"), dict[str, object]: pl.String,
}  # fmt: skip

MODELS = ("parent", "child", "model", "model_a", "model_b")
"""The fields by which rows name the models they speak of; an edge speaks of its child."""


def schema(kind: type[Row]) -> dict[str, Any]:
    """The columns of a table of one kind, with their dtypes."""
    return {field.name: _DTYPES[field.type] for field in fields(kind)}


def of(kind: type[Row], records: Sequence[Row]) -> Table:
    """Records of one kind as a table."""
    columns = {
        name: pl.Series(name, [_cell(getattr(record, name)) for record in records], dtype=dtype)
        for name, dtype in schema(kind).items()
    }
    return Table(kind, pl.DataFrame(columns))


def _cell(value: object) -> object:
    if isinstance(value, dict):
        return json.dumps(value, default=str) if value else None
    return (
        value.astimezone(UTC).replace(tzinfo=None) if isinstance(value, datetime) and value.tzinfo else value
    )


def records(table: Table) -> Iterator[Row]:
    """The rows of a table as records."""
    for row in table.rows.iter_rows(named=True):
        said: dict[str, Any] = {
            name: value.replace(tzinfo=UTC) if isinstance(value, datetime) else value
            for name, value in row.items()
            if value is not None
        }
        if table.kind is Edge:
            said = {"evidence": "reported", **said, "detail": json.loads(said.get("detail", "{}"))}
        yield table.kind(**said)


def gathered(kind: type[Row], said: Sequence[Row | Table]) -> Table:
    """Records and tables of one kind as one table, in their order."""
    if len(said) == 1 and isinstance(said[0], Table):
        return said[0]
    frames = []
    for _, part in groupby(said, lambda one: isinstance(one, Table)):
        run = list(part)
        frames.append(of(kind, [one for one in run if not isinstance(one, Table)]).rows)
        frames += [one.rows for one in run if isinstance(one, Table)]
    return Table(kind, joined(kind, frames))


def joined(kind: type[Row], frames: Sequence[pl.DataFrame]) -> pl.DataFrame:
    """Frames of one kind under each other, in the columns that any of them has."""
    return pl.concat(frames, how="diagonal_relaxed") if frames else pl.DataFrame(schema=schema(kind))


def named(table: Table, model: str) -> pl.DataFrame:
    """The rows of a table of facts, said of `model` where they name none."""
    return table.rows.with_columns(pl.col("model").fill_null(model))


def asked(cells: pl.Series, answer: Callable[[Any], Any], dtype: Any) -> pl.Series:
    """What `answer` says of each cell; it is asked once of each value, and row by row where values are of several kinds."""
    if cells.dtype == pl.Object:
        return pl.Series(cells.name, [answer(cell) for cell in cells.to_list()], dtype=dtype)
    values = cells.unique()
    answers = pl.Series([answer(value) for value in values.to_list()], dtype=dtype)
    known = pl.DataFrame({"cell": values, "answer": answers})
    told = cells.to_frame("cell").join(known, on="cell", how="left", nulls_equal=True, maintain_order="left")
    return told["answer"].alias(cells.name)


def model_ids(cells: pl.Series) -> pl.Series:
    """`untrusted.model_id` of each cell."""

    def called(cell: object) -> str | None:
        return model_id(cell if cell is None or isinstance(cell, str) else str(cell), [])

    if cells.dtype != pl.String:
        return asked(cells, called, pl.String)
    plain = _is_plain(cells)
    rest = cells.zip_with(~plain, _nothing(cells))
    return cells.zip_with(plain, asked(rest, called, pl.String))


def spelled_alike(labels: pl.Series) -> pl.DataFrame:
    """`ids.canonical` and `ids.folded` of labels, as columns `canonical` and `folded`."""
    plain = _is_plain(labels)
    rest = labels.zip_with(~plain, _nothing(labels))
    is_id = labels.str.contains("/", literal=True)
    lower = labels.zip_with(~is_id, labels.str.to_lowercase())
    return pl.DataFrame(
        {
            "canonical": labels.zip_with(plain, asked(rest, lambda x: x and canonical(x), pl.String)),
            "folded": lower.zip_with(plain, asked(rest, lambda x: x and folded(x), pl.String)),
        }
    )


def _nothing(cells: pl.Series) -> pl.Series:
    return pl.repeat(None, len(cells), dtype=cells.dtype, eager=True)


def _is_plain(labels: pl.Series) -> pl.Series:
    """Which labels are `org/name` or a name alone as they stand, so that no rule changes or refuses them."""
    in_parts = labels.str.contains(r"^[A-Za-z0-9][A-Za-z0-9_.\-]*(/[A-Za-z0-9][A-Za-z0-9_.\-]*)?$")
    is_site = labels.str.contains(f"^({'|'.join(SITES)})/")
    is_other = is_site | labels.str.ends_with(".git") | labels.str.to_lowercase().is_in(NOTHING)
    return (in_parts & (labels.str.len_bytes() <= 96) & ~is_other).fill_null(False)
