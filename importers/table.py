"""Plain tables whose columns are the public views': models, lineage, scores, kinship, aliases, tasks, experts.

Which view a table is follows from its columns. It must have that view's required ones, under their own names or
those that other tools give them (`columns.OTHER_NAMES`, docs/tables.md); columns no
view has are named and left out; what a view derives (digest, family, coverage, ...) is known and
left out without a word. A cell that is empty, NaN or "N/A" says nothing, and a row that says
nothing where something is required is left out by its number, all rows of a table in one line. An edge is
reported, whatever the table says of its evidence, which is the program's to give; a child's base is an edge too. A
score without a metric is of its benchmark's usual one. A revision or a file beside a model's name makes it a model
of its own.
"""

import difflib
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import polars as pl

from kinbase.checkpoint import (
    Alias,
    Edge,
    Facts,
    Problem,
    Record,
    ReportedKinship,
    Row,
    Score,
    Table,
    Task,
    Training,
    relations,
    tables,
)
from kinbase.checkpoint.files import shown
from kinbase.errors import CheckpointError
from kinbase.importers import columns as columns_of
from kinbase.importers import evaluated, frames
from kinbase.importers.cells import Cells, is_empty


@dataclass(frozen=True, slots=True)
class View:
    """The columns of a public view: required, read when there, and known but derived by kinbase itself."""

    required: tuple[str, ...]
    optional: tuple[str, ...]
    derived: tuple[str, ...] = ()

    def known(self) -> set[str]:
        """All three."""
        return {*self.required, *self.optional, *self.derived}


VIEWS = {
    "lineage": View(("parent", "child", "relation"), ("method", "weight", "evidence", "detail", "source")),
    "scores": View(
        ("model", "benchmark", "value"),
        (
            "metric",
            "stderr",
            "n_shot",
            "split",
            "limit",
            "template",
            "higher_is_better",
            "source",
            "evaluated_at",
            "revision",
            "file",
            "adapter",
        ),
        ("imported_at", "latest"),
    ),
    "kinship": View(
        ("model_a", "model_b"), ("base", "pcc", "cs", "ed", "source"), ("stderr", "coverage", "method")
    ),
    "aliases": View(("alias", "model"), ("kind",)),
    "tasks": View(("benchmark", "category"), ()),
    "experts": View(("model", "benchmark"), ()),
    "models": View(
        ("name",),
        ("base", "architecture", "parameters", "dtype", "license", "revision", "relation", "created_at"),
        ("digest", "family", "bytes", "source", "has_weights", "imported_at"),
    ),
}


def recognises(source: str) -> bool:
    """A table with at least two columns of one view, one of them required (so that a lack can be named)."""
    return _view(list(_called(source))) is not None


def open(source: str) -> Iterator[Record]:
    """The rows of one table."""
    path = Path(source)
    called = _called(source)
    columns = list(called)
    kind = _view(columns)
    if kind is None:
        raise CheckpointError(f"{shown(source)} has the columns of no view ({', '.join(VIEWS)})")
    view = VIEWS[kind]
    unknown = [column for column in columns if column not in view.known()]
    missing = [column for column in view.required if column not in columns]
    if missing:
        raise CheckpointError(f"{shown(source)} looks like {kind} but {_lack(missing, unknown)}")
    if kind == "kinship" and not {"pcc", "cs", "ed"} & set(columns):
        raise CheckpointError(f"{shown(source)} looks like kinship but has none of the columns pcc, cs, ed")
    if unknown:
        listed = ", ".join(shown(column) for column in unknown[:10]) + (", ..." if len(unknown) > 10 else "")
        yield Problem(f"{path.name}: columns that {kind} does not have were left out: {listed}")
    cells = Cells(path.name)
    wanted = {column: called[column] for column in (*view.required, *view.optional) if column in called}
    parts: dict[type[Row], list[pl.DataFrame]] = {}
    for batch in cells.of(frames.batches(source, wanted)):
        for said, rows in READERS[kind](batch):
            parts.setdefault(said, []).append(rows)
    for said in list(parts):
        rows = tables.joined(said, parts.pop(said))
        # The view kinship has every pair in both directions.
        yield Table(said, rows.unique(maintain_order=True) if said is ReportedKinship else rows)
    if not cells.rows:
        yield Problem(f"{path.name}: no rows")
    yield from cells.problems()


def _called(source: str) -> dict[str, str]:
    """A table's columns by the views' names for them; under other tools' names only if nothing required is missing then."""
    listed = frames.columns(source)
    called = columns_of.recognised(listed)
    if any(_fits(view, set(called)) for view in VIEWS.values()):
        return called
    return {column: column for column in listed}


def _view(columns: list[str]) -> str | None:
    """The view with most columns in common: all required ones first, else a near miss."""
    given = set(columns)
    best = max(VIEWS, key=lambda v: (_fits(VIEWS[v], given), len(given & VIEWS[v].known())))
    view = VIEWS[best]
    enough = len(given & view.known()) >= 2 and given & set(view.required)
    return best if enough else None


def _fits(view: View, given: set[str]) -> bool:
    """Whether all required columns are there; of a view that has no others, they must be all there are.

    Otherwise a table of scores with a misspelt column would be one of experts.
    """
    return given >= set(view.required) and (bool(view.optional) or given == set(view.required))


def _lack(missing: list[str], unknown: list[str]) -> str:
    """Which columns are missing, with what may have been meant."""
    parts = []
    for column in missing:
        near = difflib.get_close_matches(column, unknown[:200], 1, 0.5)
        parts.append(f"{column} (is it {shown(near[0])}?)" if near else column)
    return f"lacks the column{'s' * (len(missing) > 1)} {', '.join(parts)}"


Said = Iterator[tuple[type[Row], pl.DataFrame]]
"""What a batch of rows says: frames of records' fields, each of one kind."""


def _fields(cells: Cells, kind: type[Row], **called: str) -> pl.DataFrame:
    """The columns of a batch that are fields of a kind of record, `called` so where they are not called like them."""
    there = {field: called.get(field, field) for field in tables.schema(kind)}
    return cells.frame.select(
        pl.col(column).cast(pl.Categorical) if field in FEW else pl.col(column).alias(field)
        for field, column in there.items()
        if cells.has(column)
    )


FEW = (
    "relation",
    "method",
    "evidence",
    "benchmark",
    "metric",
    "architecture",
    "license",
    "dtype",
    "category",
    "kind",
)
"""Fields of which a table has few different values, each kept once."""


def _lineage(cells: Cells) -> Said:
    cells.names("parent", "child")
    cells.texts("relation")
    cells.drop(pl.col("relation").is_null(), "no relation, left out")
    cells.drop(pl.col("parent") == pl.col("child"), "a model as its own parent, left out")
    relation = tables.asked(cells.frame["relation"], lambda word: relations.stated(word) or word, pl.String)
    cells.frame = cells.frame.with_columns(relation)
    for word in relation.unique(maintain_order=True):
        if word not in relations.KNOWN:
            cells.refuse(relation == word, f"relation {shown(word)} is none that is known, kept as stated")
    cells.texts("evidence")
    _detail(cells)
    cells.texts("method")
    cells.values("number", "weight")
    cells.frame = cells.frame.with_columns(evidence=pl.lit("reported"))
    yield Edge, _fields(cells, Edge)


def _detail(cells: Cells) -> None:
    """The detail column: JSON text, or the struct that a Parquet or JSON table holds; with it what a table cannot say."""
    if cells.has("detail"):
        told = tables.asked(cells.frame["detail"], _object, pl.String)
        cells.refuse(told == _NO_JSON, "detail is no JSON, cell left out")
        cells.refuse(told == _NO_OBJECT, "detail is no JSON object, cell left out")
        cells.frame = cells.frame.with_columns(
            told.set(told.is_in([_NO_JSON, _NO_OBJECT]).fill_null(False), None)
        )
    if cells.has("evidence"):
        stated = pl.col("evidence").is_not_null() & (pl.col("evidence") != "reported")
        cells.refuse(stated, "evidence that a table can only report: the word is kept in detail")
        cells.frame = cells.frame.with_columns(pl.when(stated).then("evidence").alias("evidence"))
    cells.texts("source")
    beside = [column for column in ("evidence", "source") if cells.has(column)]
    if beside:
        there = [*beside, *(["detail"] if cells.has("detail") else [])]
        told = tables.asked(pl.Series("detail", cells.frame.select(pl.struct(there))), _with_words, pl.String)
        cells.frame = cells.frame.with_columns(told).drop(beside)


_NO_JSON, _NO_OBJECT = "no JSON", "no object"


def _object(value: object) -> str | None:
    """A detail as the text of a JSON object; None where it says nothing, or else why it is none."""
    if isinstance(value, str) and not is_empty(value):
        try:
            value = json.loads(value, parse_constant=str)
        except (ValueError, RecursionError):
            return _NO_JSON
    if isinstance(value, dict):
        return (
            json.dumps(kept, default=str)
            if (kept := {k: v for k, v in value.items() if v is not None})
            else None
        )
    return None if is_empty(value) else _NO_OBJECT


def _with_words(row: dict[str, str | None]) -> str | None:
    """A row's detail with its evidence and source, where it does not say them itself."""
    detail = json.loads(row.get("detail") or "{}")
    for key in ("evidence", "source"):
        if row.get(key):
            detail.setdefault(key, row[key])
    return json.dumps(detail) if detail else None


def _scores(cells: Cells) -> Said:
    cells.names("model")
    cells.texts("benchmark")
    cells.number("value")
    no_benchmark, no_value = pl.col("benchmark").is_null(), pl.col("value").is_null()
    cells.refuse(no_benchmark & no_value, "no benchmark and no value, left out")
    cells.refuse(no_benchmark & ~no_value, "no benchmark, left out")
    cells.refuse(no_value & ~no_benchmark, "no value, left out")
    cells.drop(no_benchmark | no_value)
    cells.texts("revision", "file", "adapter", "metric")
    cells.frame = cells.frame.with_columns(_asked_of(cells), _metric(cells))
    cells.values("number", "stderr")
    cells.values("number of examples", "n_shot")
    cells.texts("split")
    if cells.has("limit"):
        cells.number("limit")
        there = pl.struct([column for column in ("split", "limit") if cells.has(column)])
        split = tables.asked(
            cells.frame.select(there.alias("split"))["split"],
            lambda row: evaluated.limited(row.get("split"), row["limit"]),
            pl.String,
        )
        cells.frame = cells.frame.with_columns(split)
    cells.texts("source")
    cells.values("date or time", "evaluated_at")
    cells.texts("template")
    cells.values("yes or no", "higher_is_better")
    yield Score, _fields(cells, Score)


def _asked_of(cells: Cells) -> pl.Series:
    """The models that scores are of: a revision, a file and an adapter make a model one of its own."""
    parts = [column for column in ("revision", "file", "adapter") if cells.has(column)]
    models = cells.frame["model"]
    special = cells.frame.select(pl.any_horizontal(pl.col(parts).is_not_null(), False)).to_series()
    if not special.any():
        return models

    def called(row: dict[str, str | None]) -> str | None:
        if not any(row.get(part) for part in parts):
            return row["model"]
        told = {
            "pretrained": row["model"], "revision": row.get("revision"), "gguf_file": row.get("file"),
            "peft": row.get("adapter"),
        }  # fmt: skip
        return next(x for x in evaluated.of_arguments(told, row["model"], None, []) if isinstance(x, str))

    return tables.asked(
        cells.frame.select(pl.struct(["model", *parts]).alias("model"))["model"], called, pl.String
    )


def _metric(cells: Cells) -> pl.Series:
    """The metrics of scores; a score without one is of its benchmark's usual one."""
    usual = tables.asked(cells.frame["benchmark"], columns_of.usual_metric, pl.String).alias("metric")
    return cells.frame["metric"].fill_null(usual) if cells.has("metric") else usual


def score_table(cells: Cells) -> Table:
    """The scores in a batch of rows whose columns are called as the view scores calls them."""
    ((_, rows),) = _scores(cells)
    return Table(Score, rows)


def _kinship(cells: Cells) -> Said:
    cells.names("model_a", "model_b")
    cells.values("number", "pcc", "cs", "ed")
    cells.texts("base", "source")
    a, b = pl.col("model_a"), pl.col("model_b")
    numbers = [column for column in ("pcc", "cs", "ed") if cells.has(column)]
    beyond = pl.any_horizontal(
        (pl.col(column).abs() > 1 if column != "ed" else pl.col(column) < 0).fill_null(False)
        for column in numbers
    )
    cells.drop(a == b, "a model and itself, left out")
    cells.drop(beyond, "a correlation beyond 1 or a negative distance, left out")
    cells.drop(pl.all_horizontal(pl.col(numbers).is_null()), "neither pcc nor cs nor ed, left out")
    cells.frame = cells.frame.with_columns(model_a=pl.min_horizontal(a, b), model_b=pl.max_horizontal(a, b))
    yield ReportedKinship, _fields(cells, ReportedKinship)


def _aliases(cells: Cells) -> Said:
    cells.names("alias", "model")
    cells.drop(pl.col("alias") == pl.col("model"))  # the view lists each name as its own alias too
    cells.texts("kind")
    # A path, or a branch, moves to what is there now: only the program knows of those.
    is_moved = pl.col("kind") == "redirect" if cells.has("kind") else pl.lit(False)
    kind = pl.when(is_moved).then(pl.lit("redirect")).otherwise(pl.lit("name"))
    cells.frame = cells.frame.with_columns(kind=kind)
    yield Alias, _fields(cells, Alias)


def _tasks(cells: Cells) -> Said:
    cells.texts("benchmark", "category")
    no_benchmark = pl.col("benchmark").is_null()
    cells.refuse(~no_benchmark & pl.col("category").is_null(), "no category, left out")
    cells.refuse(no_benchmark, "no benchmark, left out")
    cells.drop(no_benchmark | pl.col("category").is_null())
    yield Task, _fields(cells, Task)


def _experts(cells: Cells) -> Said:
    cells.names("model")
    cells.texts("benchmark")
    cells.drop(pl.col("benchmark").is_null(), "no benchmark, left out")
    yield Training, _fields(cells, Training)


def _models(cells: Cells) -> Said:
    cells.names("name")
    cells.texts("architecture", "license", "revision", "relation")
    cells.values("whole number", "parameters")
    cells.texts("dtype")
    cells.values("date or time", "created_at")
    cells.texts("base")
    yield Facts, _fields(cells, Facts, model="name")
    if cells.has("base"):
        cells.drop(pl.col("base").is_null() | (pl.col("base") == pl.col("name")))
        cells.frame = cells.frame.with_columns(relation=pl.lit("base"), evidence=pl.lit("reported"))
        yield Edge, _fields(cells, Edge, parent="base", child="name")


READERS: dict[str, Callable[[Cells], Said]] = {
    "lineage": _lineage,
    "scores": _scores,
    "kinship": _kinship,
    "aliases": _aliases,
    "models": _models,
    "tasks": _tasks,
    "experts": _experts,
}
