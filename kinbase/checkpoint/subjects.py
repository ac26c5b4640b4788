"""Which model records speak of: the one they name, the one they lie beside, or one that --name says."""

import re
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path

from kinbase.checkpoint.contract import Alias, Edge, Facts, Problem, Record, Score, Table, Training

WEIGHTS = (".safetensors", ".bin", ".pt", ".pth", ".ckpt", ".gguf")
"""Files of a checkpoint folder that hold weights, not records beside them."""

_OF_A_MODEL = re.compile(
    r"(config\.json|README\.md|trainer_state\.json|\.(safetensors|bin|gguf))$", re.IGNORECASE
)
"""Files of a folder that is a model's, so that what lies in it is said of that model."""

_SUBJECT = {Edge: "child", Facts: "model", Score: "model"}
"""The field by which a record of each kind names the model that a source speaks of."""


def said_of(records: list[tuple[str, Record]], name: str) -> list[tuple[str, Record]]:
    """What was said of the model a file lies beside, said of `name`."""
    changed: list[tuple[str, Record]] = []
    for file, record in records:
        if isinstance(record, Edge) and record.child is None:
            record = replace(record, child=name)
        elif isinstance(record, Facts | Score | Alias | Training) and record.model is None:
            record = replace(record, model=name)
        changed.append((file, record))
    return changed


def renamed(records: list[tuple[str, Record]], name: str) -> list[tuple[str, Record]]:
    """The records of a source that speaks of one model, under another name for it; others as they are."""
    labels = {label for _, record in records for label in _subjects(record)}
    if len(labels) != 1:
        return records
    changed: list[tuple[str, Record]] = []
    for file, record in records:
        if isinstance(record, Table) and record.kind in _SUBJECT:
            import polars as pl

            rows = record.rows.with_columns(pl.lit(name).alias(_SUBJECT[record.kind]))
            record = replace(record, rows=rows)
        elif isinstance(record, Edge):
            record = replace(record, child=name)
        elif isinstance(record, Facts | Score):
            record = replace(record, model=name)
        changed.append((file, record))
    return changed


def told_of_folder(path: Path, records: Sequence[tuple[str, Record]]) -> list[tuple[str, Record]]:
    """A line on results by themselves that do not say of which model they are: they are taken as their folder's."""
    try:
        beside = [each.name for each in path.parent.iterdir()] if path.is_file() else None
    except OSError:
        return []
    of_folder = any(isinstance(record, Score) and record.model is None for _, record in records)
    if beside is None or not of_folder or any(_OF_A_MODEL.search(each) for each in beside):
        return []
    said = f"{path.name} does not say which model was tested: taken as {subject(path)}, after its folder; --name says another"
    return [(str(path), Problem(said))]


def _subjects(record: Record) -> Iterable[str]:
    """The models that edges, facts and scores speak of; of a table's at most two."""
    if isinstance(record, Table):
        field = _SUBJECT.get(record.kind)
        return record.rows[field].unique().head(2) if field else ()
    field = _SUBJECT.get(type(record))
    label = getattr(record, field) if field else None
    return [label] if label else ()


def subject(path: Path) -> str | None:
    """The model that records without a name speak of: their folder's, as in a checkpoint; a GGUF file is one itself."""
    path = path.resolve()
    return path.stem if path.suffix.lower() in WEIGHTS else path.name if path.is_dir() else path.parent.name


def are_unnamed(records: Sequence[tuple[str, Record]]) -> bool:
    """Whether any of the records speaks of the model they lie beside."""
    return any(
        (isinstance(r, Edge) and r.child is None)
        or (isinstance(r, Score | Facts | Training) and r.model is None)
        for _, r in records
    )
