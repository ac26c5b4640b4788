"""Many rows at once: columns of numpy or lists, as a table that a query reads.

DuckDB takes Arrow without copying cell by cell; lists of Python cost it a microsecond a cell.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from kinbase.store.connection import Connection

if TYPE_CHECKING:  # importing polars for an annotation would slow down every command
    import polars as pl


class _Stream:
    """A frame as an Arrow stream and nothing else: what DuckDB takes without pyarrow."""

    def __init__(self, frame: "pl.DataFrame") -> None:
        self.frame = frame

    def __arrow_c_stream__(self, requested_schema: object = None) -> object:
        return self.frame.__arrow_c_stream__(requested_schema)


@contextmanager
def rows(con: Connection, columns: Mapping[str, Any]) -> Iterator[str]:
    """The name of a table of `columns`, all of one length, within the block; a 2-d array is a column of lists."""
    import numpy as np
    import polars as pl

    frame = pl.DataFrame({
        name: pl.Series(np.ascontiguousarray(values), dtype=pl.Array(pl.Float64, values.shape[1]))
        if isinstance(values, np.ndarray) and values.ndim == 2
        else values
        for name, values in columns.items()
    })  # fmt: skip
    nothing = [name for name, dtype in frame.schema.items() if dtype == pl.Null]
    # A column of Nones alone has no type of its own, and DuckDB refuses Arrow's for it.
    frame = frame.with_columns(pl.col(nothing).cast(pl.Int64))
    con.register("new_rows", _Stream(frame))
    yield "new_rows"
    con.unregister("new_rows")  # after an error the connection only rolls back
