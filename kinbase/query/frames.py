"""Polars frames: what the verbs of `kinbase.database` answer with, column by column, and rows of SQL to them."""

from collections.abc import Sequence
from typing import Any

import polars as pl

from kinbase.store import Connection

Columns = dict[str, pl.DataType | type[pl.DataType]]

IMPORTED: Columns = {
    "source": pl.String, "model": pl.String, "status": pl.String, "base": pl.String, "notes": pl.List(pl.String()),
}  # fmt: skip
KIN: Columns = {
    "model": pl.String, "pcc": pl.Float64, "cs": pl.Float64, "ed": pl.Float64, "stderr": pl.Float64, "coverage": pl.Float64,
    "method": pl.String,
}  # fmt: skip
PLANNED: Columns = {
    "child": pl.String, "parents": pl.List(pl.String()), "role": pl.String, "method": pl.String, "seed": pl.Int64,
    "kinship": pl.Float64, "reason": pl.String, "problem": pl.String,
}  # fmt: skip
INFERRED: Columns = {
    "parent": pl.String, "child": pl.String, "relation": pl.String, "confidence": pl.Float64, "weight": pl.Float64,
    "distance": pl.Float64, "family": pl.String, "evidence": pl.String,
}  # fmt: skip
COEFFICIENT = pl.Struct(
    {"parent": pl.String, "coefficient": pl.Float64, "low": pl.Float64, "high": pl.Float64}
)
RECIPE: Columns = {
    "model": pl.String, "verdict": pl.String, "residual": pl.Float64, "floor": pl.Float64,
    "parents": pl.List(COEFFICIENT), "method": pl.String, "reason": pl.String, "base": pl.String,
    "base_weight": pl.Float64, "rho": pl.Float64, "expected": pl.Float64, "ratio": pl.Float64,
    "condition": pl.Float64, "nearest": pl.List(COEFFICIENT),
    "alternatives": pl.List(pl.Struct({"parent": pl.String, "or": pl.List(pl.String)})),
    "by": pl.List(pl.Struct({"block": pl.String, "layer": pl.Int64, **dict(COEFFICIENT)})),
    "lists": pl.List(pl.Struct({"block": pl.String, "parent": pl.String, "values": pl.List(pl.Float64)})),
    "candidates": pl.Int64, "coverage": pl.Float64, "notes": pl.List(pl.String),
}  # fmt: skip
SUGGESTED: Columns = {
    "parent_a": pl.String, "parent_b": pl.String, "score_a": pl.Float64, "score_b": pl.Float64, "kinship": pl.Float64,
    "nearest": pl.String, "predicted_kinship": pl.Float64, "norm": pl.Float64, "to_best": pl.Float64, "ceiling": pl.Float64,
    "estimate": pl.Float64, "error": pl.Float64, "basis": pl.String, "reason": pl.String,
}  # fmt: skip
REPLAYED: Columns = {
    "rule": pl.String, "stops_after": pl.Int64, "generations": pl.Int64, "score": pl.Float64, "lost": pl.Float64,
    "best_so_far": pl.Float64, "merges_saved": pl.Int64, "merges": pl.Int64, "evaluations_saved": pl.Int64,
    "evaluations": pl.Int64, "reason": pl.String,
}  # fmt: skip


def frame(con: Connection, query: str, parameters: Sequence[Any] = ()) -> pl.DataFrame:
    """The result of a query as a frame.

    By rows: DuckDB's Arrow stream would be faster for millions of them, but leaves Polars and DuckDB
    printing leak warnings when Python exits (duckdb 2.0, polars 2.1).
    """
    result = con.sql(query, params=list(parameters))
    schema = {name: _polars(kind) for name, kind in zip(result.columns, result.types, strict=True)}
    return pl.DataFrame(result.fetchall(), schema=schema, orient="row")


def _polars(kind: Any) -> pl.DataType | type[pl.DataType]:
    """The Polars type of a DuckDB type; text for what Polars has no counterpart of."""
    if kind.id in ("list", "array"):
        return pl.List(_polars(kind.children[0][1]))
    if kind.id == "struct":
        return pl.Struct({name: _polars(child) for name, child in kind.children})
    if kind.id == "decimal":
        return pl.Decimal(*(value for _, value in kind.children))
    return SCALARS.get(kind.id, pl.String)


SCALARS: dict[str, pl.DataType | type[pl.DataType]] = {
    "boolean": pl.Boolean, "tinyint": pl.Int8, "smallint": pl.Int16, "integer": pl.Int32, "bigint": pl.Int64,
    "hugeint": pl.Int128, "utinyint": pl.UInt8, "usmallint": pl.UInt16, "uinteger": pl.UInt32,
    "ubigint": pl.UInt64, "float": pl.Float32, "double": pl.Float64, "blob": pl.Binary, "date": pl.Date,
    "time": pl.Time, "timestamp": pl.Datetime("us"), "timestamp with time zone": pl.Datetime("us", "UTC"),
    "interval": pl.Duration("us"), "null": pl.Null,
}  # fmt: skip
