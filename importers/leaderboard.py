"""The Open LLM Leaderboard v2 table (`open-llm-leaderboard/contents`), as Parquet or CSV.

One row an evaluation of a model in one precision. Each benchmark has two columns, the score on
the leaderboard's own scale (metric "normalised", random guessing is 0 and the best is 100) and the
raw fraction (metric "raw"); `Average` is the mean of the normalised ones. `Base Model` is what the
table says of the parent ("org/name (Merge)" with the relation behind it). A model evaluated in
several precisions has one source for each.
"""

from collections import Counter
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import polars as pl

from kinbase.checkpoint import Edge, Facts, Record, Score
from kinbase.checkpoint.files import shown
from kinbase.checkpoint.tables import asked
from kinbase.errors import CheckpointError
from kinbase.importers import frames
from kinbase.importers.cells import Cells

SOURCE = "open_llm_leaderboard_v2"

BENCHMARKS = {"IFEval": 0, "BBH": 3, "MATH Lvl 5": 4, "GPQA": 0, "MUSR": 0, "MMLU-PRO": 5}
"""The six benchmarks by the number of examples in the prompt (the leaderboard's about page)."""

_RELATIONS = {"merge": "merge", "adapter": "adapter", "quantized": "quantized", "finetune": "finetune"}
_DTYPES = {"bfloat16": "BF16", "float16": "F16", "float32": "F32"}
_FLAGS = ("Merged", "Not_Merged", "Type")
_OTHERS = (
    "fullname", "Model sha", "Precision", "Architecture", "Hub License", "#Params (B)", "Type", "Merged", "Not_Merged",
    "Base Model", "Upload To Hub Date", "Submission Date",
)  # fmt: skip


def recognises(source: str) -> bool:
    """A table with the model's full name and at least one of the benchmarks."""
    columns = set(frames.columns(source))
    return "fullname" in columns and bool(columns & {*BENCHMARKS, *(f"{each} Raw" for each in BENCHMARKS)})


def open(source: str) -> Iterator[Record]:
    """Facts, reported edges and scores of every model in the table."""
    columns = frames.columns(source)
    if "fullname" not in columns:
        raise CheckpointError(f"{shown(source)} lacks the column fullname of the leaderboard's table")
    average = next((column for column in columns if column.startswith("Average")), "")
    scores: dict[str, tuple[str, str, int | None]] = {}
    if average:
        scores[average] = ("average", "normalised", None)
    for each, examples in BENCHMARKS.items():
        scores[each] = (each, "normalised", examples)
        scores[f"{each} Raw"] = (each, "raw", examples)
    there = {column: column for column in columns if column in (*_OTHERS, *scores)}
    batches = list(frames.batches(source, there))
    evaluations = Counter(str(name) for batch in batches for name in batch["fullname"].to_list())
    cells = Cells(Path(source).name)
    for batch in cells.of(batches):
        for row in _cleaned(batch, scores):
            yield _facts(row)
            yield from _base(row)
            told = SOURCE
            if evaluations[row["stated"]] > 1:
                told = f"{SOURCE} ({row.get('Precision') or 'unknown precision'})"
            for column, (benchmark, metric, n_shot) in scores.items():
                if row.get(column) is not None:
                    when = _utc(row.get("Submission Date"))
                    yield Score(
                        benchmark, metric, row[column], row["fullname"], None, n_shot, None, told, when
                    )
    yield from cells.problems()


def _cleaned(cells: Cells, scores: Iterable[str]) -> Iterator[dict[str, Any]]:
    """The rows of a batch that name a model, their cells as the contract wants them."""
    stated = asked(cells.frame["fullname"], str, pl.String).alias("stated")
    flags = [
        asked(cells.frame[column], lambda flag: str(flag).lower(), pl.String)
        for column in _FLAGS
        if cells.has(column)
    ]
    cells.frame = cells.frame.with_columns(stated, *flags)
    cells.names("fullname")
    cells.values("number", "#Params (B)")
    cells.texts("Architecture", "Hub License", "Model sha", "Precision")
    cells.values("date or time", "Upload To Hub Date")
    cells.texts("Base Model")
    cells.values("date or time", "Submission Date")
    cells.values("number", *scores)
    yield from cells.frame.iter_rows(named=True)


def _utc(moment: datetime | None) -> datetime | None:
    return moment and moment.replace(tzinfo=UTC)


def _facts(row: dict[str, Any]) -> Facts:
    billions = row.get("#Params (B)")
    return Facts(
        row["fullname"],
        architecture=row.get("Architecture"),
        license=row.get("Hub License"),
        revision=row.get("Model sha"),
        relation="merge" if _is_merge(row) else None,
        parameters=round(billions * 1e9) if billions and 0 < billions < 1e5 else None,
        dtype=_DTYPES.get(row.get("Precision") or ""),
        created_at=_utc(row.get("Upload To Hub Date")),
    )


def _is_merge(row: dict[str, Any]) -> bool:
    """By the flag, which older tables have the other way round, or by the type of model."""
    merged, not_merged, kind = (row.get(flag, "none") for flag in _FLAGS)
    return merged == "true" or not_merged == "false" or "merge" in kind


def _base(row: dict[str, Any]) -> Iterator[Edge]:
    for part in (row.get("Base Model") or "").split(","):
        parent, _, kind = part.strip().partition(" (")
        # A model without a parent is its own base model here; a vanished repository's is "Removed".
        if "/" in parent and parent != row["fullname"]:
            relation = _RELATIONS.get(kind.rstrip(")").strip().lower())
            yield Edge(
                parent, relation or ("merge" if _is_merge(row) else "finetune"), "reported", row["fullname"]
            )
