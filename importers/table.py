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
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from kinbase.checkpoint import (
    Alias,
    Edge,
    Facts,
    Problem,
    Record,
    ReportedKinship,
    Score,
    Task,
    Training,
    relations,
)
from kinbase.checkpoint.files import shown
from kinbase.checkpoint.untrusted import number
from kinbase.errors import CheckpointError
from kinbase.importers import columns as columns_of
from kinbase.importers import evaluated, frames
from kinbase.importers.cells import Rows, is_empty


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
    cells = Rows(path.name)
    wanted = {called[column]: column for column in (*view.required, *view.optional) if column in called}
    rows = (
        {wanted[column]: cell for column, cell in row.items()} for row in frames.rows(source, set(wanted))
    )
    readers = {
        "lineage": _lineage,
        "scores": _scores,
        "kinship": _kinship,
        "aliases": _aliases,
        "models": _models,
        "tasks": _tasks,
        "experts": _experts,
    }
    yield from readers[kind](cells, rows)
    if not cells.row:
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


def _lineage(cells: Rows, rows: Iterator[dict[str, object]]) -> Iterator[Record]:
    for row in cells.of(rows):
        names = cells.names(row, "parent", "child")
        relation = cells.text(row, "relation")
        if names is None or relation is None:
            if names is not None:
                cells.refuse("no relation, left out")
            continue
        if names[0] == names[1]:
            cells.refuse("a model as its own parent, left out")
            continue
        relation = relations.stated(relation) or relation
        if relation not in relations.KNOWN:
            cells.refuse(f"relation {shown(relation)} is none that is known, kept as stated")
        stated = cells.text(row, "evidence")
        detail = _detail(cells, row.get("detail"))
        if stated not in (None, "reported"):
            cells.refuse("evidence that a table can only report: the word is kept in detail")
            detail.setdefault("evidence", stated)
        source = cells.text(row, "source")
        if source:
            detail.setdefault("source", source)
        method, weight = cells.text(row, "method"), cells.number_in(row, "weight")
        yield Edge(names[0], relation, "reported", names[1], method, weight, detail)


def _detail(cells: Rows, value: object) -> dict[str, object]:
    """The detail column: JSON text, or the struct that a Parquet or JSON table holds instead."""
    if isinstance(value, str) and not is_empty(value):
        try:
            value = json.loads(value, parse_constant=str)
        except (ValueError, RecursionError):
            cells.refuse("detail is no JSON, cell left out")
            return {}
    if isinstance(value, dict):
        return {key: item for key, item in value.items() if item is not None}
    if not is_empty(value):
        cells.refuse("detail is no JSON object, cell left out")
    return {}


def _scores(cells: Rows, rows: Iterator[dict[str, object]]) -> Iterator[Record]:
    for row in cells.of(rows):
        if (score := score_of(cells, row)) is not None:
            yield score


def score_of(cells: Rows, row: dict[str, object]) -> Score | None:
    """The score in a row whose columns are called as the view scores calls them; None, refused, if there is none."""
    names = cells.names(row, "model")
    benchmark, value = cells.text(row, "benchmark"), number(row.get("value"))
    if names is None:
        return None
    if benchmark is None or value is None:
        lacking = [c for c, v in (("benchmark", benchmark), ("value", value)) if v is None]
        cells.refuse(f"no {' and no '.join(lacking)}, left out")
        return None
    parts = {"pretrained": names[0], "revision": cells.text(row, "revision"), "gguf_file": cells.text(row, "file"),
             "peft": cells.text(row, "adapter")}  # fmt: skip
    told = evaluated.of_arguments(parts, names[0], None, []) if any(list(parts.values())[1:]) else [names[0]]
    return Score(
        benchmark,
        cells.text(row, "metric") or columns_of.usual_metric(benchmark),
        value,
        next(label for label in told if isinstance(label, str)),
        stderr=cells.number_in(row, "stderr"),
        n_shot=cells.shots_in(row, "n_shot"),
        split=evaluated.limited(cells.text(row, "split"), row.get("limit")),
        source=cells.text(row, "source"),
        evaluated_at=cells.moment_in(row, "evaluated_at"),
        template=cells.text(row, "template"),
        higher_is_better=cells.truth_in(row, "higher_is_better"),
    )


def _kinship(cells: Rows, rows: Iterator[dict[str, object]]) -> Iterator[Record]:
    seen = set()
    for row in cells.of(rows):
        names = cells.names(row, "model_a", "model_b")
        if names is None:
            continue
        pcc, cs, ed = (cells.number_in(row, column) for column in ("pcc", "cs", "ed"))
        base = cells.text(row, "base")
        report = ReportedKinship(min(names), max(names), base, pcc, cs, ed, cells.text(row, "source"))
        if names[0] == names[1]:
            cells.refuse("a model and itself, left out")
        elif any(value is not None and abs(value) > 1 for value in (pcc, cs)) or (ed is not None and ed < 0):
            cells.refuse("a correlation beyond 1 or a negative distance, left out")
        elif pcc is None and cs is None and ed is None:
            cells.refuse("neither pcc nor cs nor ed, left out")
        elif report not in seen:
            seen.add(report)  # the view has every pair in both directions
            yield report


def _aliases(cells: Rows, rows: Iterator[dict[str, object]]) -> Iterator[Record]:
    for row in cells.of(rows):
        names = cells.names(row, "alias", "model")
        if names and names[0] != names[1]:  # the view lists each name as its own alias too
            # A path, or a branch, moves to what is there now: only the program knows of those.
            kind = "redirect" if cells.text(row, "kind") == "redirect" else "name"
            yield Alias(names[0], names[1], kind)


def _tasks(cells: Rows, rows: Iterator[dict[str, object]]) -> Iterator[Record]:
    for row in cells.of(rows):
        benchmark, category = cells.text(row, "benchmark"), cells.text(row, "category")
        if benchmark and category:
            yield Task(benchmark, category)
        else:
            cells.refuse(f"no {'category' if benchmark else 'benchmark'}, left out")


def _experts(cells: Rows, rows: Iterator[dict[str, object]]) -> Iterator[Record]:
    for row in cells.of(rows):
        names, benchmark = cells.names(row, "model"), cells.text(row, "benchmark")
        if names and benchmark:
            yield Training(benchmark, names[0])
        elif names:
            cells.refuse("no benchmark, left out")


def _models(cells: Rows, rows: Iterator[dict[str, object]]) -> Iterator[Record]:
    for row in cells.of(rows):
        names = cells.names(row, "name")
        if names is None:
            continue
        yield Facts(
            names[0],
            architecture=cells.text(row, "architecture"),
            license=cells.text(row, "license"),
            revision=cells.text(row, "revision"),
            relation=cells.text(row, "relation"),
            parameters=cells.count_in(row, "parameters"),
            dtype=cells.text(row, "dtype"),
            created_at=cells.moment_in(row, "created_at"),
        )
        base = cells.text(row, "base")
        if base and base != names[0]:
            yield Edge(base, "base", "reported", names[0])
