"""Polars frames: what the verbs of `kinbase.database` answer with, column by column, and rows of SQL to them."""

import json
from collections.abc import Sequence
from typing import Any

import polars as pl

from kinbase.store import Connection
from kinbase.store.worker import Kind, kind

Columns = dict[str, pl.DataType | type[pl.DataType]]

IMPORTED: Columns = {
    "source": pl.String, "model": pl.String, "status": pl.String, "base": pl.String, "notes": pl.List(pl.String()),
}  # fmt: skip
KIN: Columns = {
    "model": pl.String, "pcc": pl.Float64, "cs": pl.Float64, "ed": pl.Float64, "stderr": pl.Float64, "coverage": pl.Float64,
    "method": pl.String,
}  # fmt: skip
ALIGNED: Columns = {
    "model_a": pl.String, "model_b": pl.String, "verdict": pl.String, "pcc_before": pl.Float64, "pcc": pl.Float64,
    "base": pl.String, "delta_before": pl.Float64, "delta": pl.Float64, "p": pl.Float64, "layers": pl.Int64,
    "channels": pl.Int64, "units": pl.Int64, "heads": pl.Int64, "values": pl.Int64, "flipped": pl.Int64,
    "scaled": pl.Int64, "coverage": pl.Float64, "notes": pl.List(pl.String),
}  # fmt: skip
ALIGNED_PARTS: Columns = {
    "model_a": pl.String, "model_b": pl.String, "part": pl.String, "pcc_before": pl.Float64, "pcc": pl.Float64,
    "delta_before": pl.Float64, "delta": pl.Float64, "numel": pl.Int64,
}  # fmt: skip
SCANNED: Columns = {
    "name": pl.String, "verdict": pl.String, "kinship": pl.Float64, "stderr": pl.Float64, "p": pl.Float64,
    "direction": pl.String, "coverage": pl.Float64,
}  # fmt: skip
DIFFERENCE: Columns = {
    "part": pl.String, "item": pl.String, "difference": pl.String, "a": pl.String, "b": pl.String, "numel": pl.Int64,
    "relative": pl.Float64, "max_abs": pl.Float64, "changed": pl.Float64,
}  # fmt: skip
STAT: Columns = {
    "part": pl.String, "of": pl.String, "equal": pl.Int64, "changed": pl.Int64, "other": pl.Int64, "relative": pl.Float64,
}  # fmt: skip
STATUS: Columns = {"model": pl.String, "state": pl.String, "source": pl.String, "advice": pl.String}
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
    """The result of a query as a frame; columns as `framed` says.

    By rows: DuckDB's Arrow stream would be faster for millions of them, but leaves Polars and DuckDB
    printing leak warnings when Python exits (duckdb 2.0, polars 2.1).
    """
    result = con.execute(query, list(parameters))
    described = (result.description or []) if result else []
    rows = result.fetchall() if described else []
    return framed([column[0] for column in described], [kind(column[1]) for column in described], rows)


def framed(columns: Sequence[str], kinds: Sequence[Kind], rows: Sequence[tuple[Any, ...]]) -> pl.DataFrame:
    """Rows as a frame: a map is a list of key and value, a second column of one name gets a number behind it.

    A column with a value that its type has no place for in Polars (a year before 1, a time with a zone) is text.
    """
    series: dict[str, pl.Series] = {}
    cells = list(zip(*rows, strict=True)) if rows else [()] * len(columns)
    for column, told, values in zip(columns, kinds, cells, strict=True):
        name, number = column, 1
        while name in series:
            number += 1
            name = f"{column}_{number}"
        series[name] = _series(name, told, values)
    return pl.DataFrame(list(series.values()))


def _series(name: str, told: Kind, values: Sequence[Any]) -> pl.Series:
    try:
        fitting = values if told[0] in SCALARS else [_fitting(told, value) for value in values]
        return pl.Series(name, fitting, _polars(told), strict=True)
    except (
        pl.exceptions.PolarsError,
        pl.exceptions.PanicException,
        TypeError,
        ValueError,
        OverflowError,
        AttributeError,
    ):
        return pl.Series(name, [None if value is None else _text(value) for value in values], pl.String)


def _text(value: object) -> str:
    if isinstance(value, dict | list | tuple):
        return json.dumps(value, ensure_ascii=False, default=str)
    return str(value)


def _fitting(told: Kind, value: Any) -> Any:
    """A value as Polars takes it: maps as lists of key and value, and text for what has no type of its own."""
    word, inner = told
    if value is None:
        return None
    if word == "map":
        keys, held = (inner[0][1], inner[1][1]) if len(inner) == 2 else (("varchar", ()), ("varchar", ()))
        return [{"key": _fitting(keys, k), "value": _fitting(held, v)} for k, v in value.items()]
    if word in ("list", "array"):
        return [_fitting(inner[0], item) for item in value]
    if word == "struct":
        return {name: _fitting(child, value.get(name)) for name, child in inner}
    return value if word in SCALARS or word == "decimal" else _text(value)


def _polars(told: Kind) -> pl.DataType | type[pl.DataType]:
    """The Polars type of a DuckDB type; text for what Polars has no counterpart of."""
    word, inner = told
    if word in ("list", "array"):
        return pl.List(_polars(inner[0]))
    if word == "map" and len(inner) == 2:
        return pl.List(pl.Struct({"key": _polars(inner[0][1]), "value": _polars(inner[1][1])}))
    if word == "struct":
        return pl.Struct({name: _polars(child) for name, child in inner})
    if word == "decimal":
        return pl.Decimal(*inner)
    return SCALARS.get(word, pl.String)


SCALARS: dict[str, pl.DataType | type[pl.DataType]] = {
    "boolean": pl.Boolean, "tinyint": pl.Int8, "smallint": pl.Int16, "integer": pl.Int32, "bigint": pl.Int64,
    "hugeint": pl.Int128, "utinyint": pl.UInt8, "usmallint": pl.UInt16, "uinteger": pl.UInt32,
    "ubigint": pl.UInt64, "float": pl.Float32, "double": pl.Float64, "blob": pl.Binary, "date": pl.Date,
    "time": pl.Time, "timestamp": pl.Datetime("us"), "timestamp with time zone": pl.Datetime("us", "UTC"),
    "interval": pl.Duration("us"), "null": pl.Null,
}  # fmt: skip
