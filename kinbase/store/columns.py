"""Many rows at once: columns of numpy or lists, as a table that a query reads.

DuckDB takes Arrow without copying cell by cell; lists of Python cost it a microsecond a cell.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from kinbase.checkpoint import Row
from kinbase.store.connection import Connection

if TYPE_CHECKING:  # importing polars for an annotation would slow down every command
    import polars as pl


SLICE = 1 << 18
"""Rows of a large table that are stored at a time, so that memory does not grow with all of them."""


class _Stream:
    """A frame as an Arrow stream and nothing else: what DuckDB takes without pyarrow."""

    def __init__(self, frame: "pl.DataFrame") -> None:
        self.frame = frame

    def __arrow_c_stream__(self, requested_schema: object = None) -> object:
        return self.frame.__arrow_c_stream__(requested_schema)


@contextmanager
def rows(
    con: Connection,
    columns: "Mapping[str, Any] | pl.DataFrame",
    name: str = "new_rows",
    *,
    kind: type[Row] | None = None,
) -> Iterator[str]:
    """The name of a table of `columns`, all of one length, within the block; a 2-d array is a column of lists.

    The rows of a table of records have all columns of their `kind`; those that are not there are NULL.
    """
    import polars as pl

    frame = columns if isinstance(columns, pl.DataFrame) else _framed(columns)
    nothing = [name for name, dtype in frame.schema.items() if dtype == pl.Null]
    # A column of Nones alone has no type of its own, and DuckDB refuses Arrow's for it.
    frame = frame.with_columns(pl.col(nothing).cast(pl.Int64))
    if kind is None:
        con.register(name, _Stream(frame))
    else:
        con.register(f"{name}_said", _Stream(frame))
        con.execute(f"create or replace temp view {name} as select *{_missing(frame, kind)} from {name}_said")
    yield name
    # After an error the connection only rolls back.
    if kind is None:
        con.unregister(name)
    else:
        con.execute(f"drop view {name}")
        con.unregister(f"{name}_said")


def _missing(frame: "pl.DataFrame", kind: type[Row]) -> str:
    """SQL of the columns of a kind of records that a table of them does not have."""
    import polars as pl

    from kinbase.checkpoint.tables import schema

    types = {pl.String: "varchar", pl.Int64: "bigint", pl.Float64: "double", pl.Boolean: "boolean"}
    return "".join(
        f", null::{types.get(dtype, 'timestamp')} as {name}"
        for name, dtype in schema(kind).items()
        if name not in frame.columns
    )


def _framed(columns: Mapping[str, Any]) -> "pl.DataFrame":
    import numpy as np
    import polars as pl

    return pl.DataFrame({
        name: pl.Series(np.ascontiguousarray(values), dtype=pl.Array(pl.Float64, values.shape[1]))
        if isinstance(values, np.ndarray) and values.ndim == 2
        else values
        for name, values in columns.items()
    })  # fmt: skip


def filled(frame: "pl.DataFrame", **given: str | None) -> "pl.DataFrame":
    """A table's rows with what is `given` for a column wherever a row does not say it."""
    import polars as pl

    return frame.with_columns(
        pl.col(name).fill_null(value) if name in frame.columns else pl.lit(value, pl.Categorical).alias(name)
        for name, value in given.items()
        if value is not None or name not in frame.columns
    )
