"""The Open LLM Leaderboard v2 table (`open-llm-leaderboard/contents`), as Parquet or CSV.

One row an evaluation of a model in one precision. Each benchmark has two columns, the score on
the leaderboard's own scale (metric "normalised", random guessing is 0 and the best is 100) and the
raw fraction (metric "raw"); `Average` is the mean of the normalised ones. `Base Model` is what the
table says of the parent ("org/name (Merge)" with the relation behind it). A model evaluated in
several precisions has one source for each.
"""

from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from kinbase.checkpoint import Edge, Facts, Record, Score
from kinbase.checkpoint.files import shown
from kinbase.errors import CheckpointError
from kinbase.importers import frames
from kinbase.importers.cells import Rows

SOURCE = "open_llm_leaderboard_v2"

BENCHMARKS = {"IFEval": 0, "BBH": 3, "MATH Lvl 5": 4, "GPQA": 0, "MUSR": 0, "MMLU-PRO": 5}
"""The six benchmarks by the number of examples in the prompt (the leaderboard's about page)."""

_RELATIONS = {"merge": "merge", "adapter": "adapter", "quantized": "quantized", "finetune": "finetune"}
_DTYPES = {"bfloat16": "BF16", "float16": "F16", "float32": "F32"}
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
    rows = list(frames.rows(source, {*_OTHERS, *scores}))
    evaluations = Counter(str(row.get("fullname")) for row in rows)
    cells = Rows(Path(source).name)
    for row in cells.of(rows):
        names = cells.names(row, "fullname")
        if names is None:
            continue
        model = names[0]
        yield _facts(cells, row, model)
        yield from _base(cells, row, model)
        told = SOURCE
        if evaluations[str(row["fullname"])] > 1:
            told = f"{SOURCE} ({cells.text(row, 'Precision') or 'unknown precision'})"
        when = cells.moment_in(row, "Submission Date")
        for column, (benchmark, metric, n_shot) in scores.items():
            value = cells.number_in(row, column)
            if value is not None:
                yield Score(benchmark, metric, value, model, None, n_shot, None, told, when)
    yield from cells.problems()


def _facts(cells: Rows, row: dict[str, object], model: str) -> Facts:
    billions = cells.number_in(row, "#Params (B)")
    return Facts(
        model,
        architecture=cells.text(row, "Architecture"),
        license=cells.text(row, "Hub License"),
        revision=cells.text(row, "Model sha"),
        relation="merge" if _is_merge(row) else None,
        parameters=round(billions * 1e9) if billions and 0 < billions < 1e5 else None,
        dtype=_DTYPES.get(cells.text(row, "Precision") or ""),
        created_at=cells.moment_in(row, "Upload To Hub Date"),
    )


def _is_merge(row: dict[str, object]) -> bool:
    """By the flag, which older tables have the other way round, or by the type of model."""
    merged, not_merged = str(row.get("Merged")).lower(), str(row.get("Not_Merged")).lower()
    return merged == "true" or not_merged == "false" or "merge" in str(row.get("Type")).lower()


def _base(cells: Rows, row: dict[str, object], model: str) -> Iterator[Edge]:
    stated = cells.text(row, "Base Model")
    for part in (stated or "").split(","):
        parent, _, kind = part.strip().partition(" (")
        # A model without a parent is its own base model here; a vanished repository's is "Removed".
        if "/" in parent and parent != model:
            relation = _RELATIONS.get(kind.rstrip(")").strip().lower())
            yield Edge(parent, relation or ("merge" if _is_merge(row) else "finetune"), "reported", model)
