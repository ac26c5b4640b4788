"""`.eval_results/*.yaml`: a repository's scores, one file a benchmark or several (hub-docs eval_results.yaml).

An entry names a dataset, a task in it and one value but no metric: the benchmark is the dataset
and the task, the metric is "score". The notes ("tools", "no-tools") are part of what was measured
and go with the metric.
"""

from collections.abc import Iterator
from pathlib import Path

from kinbase.checkpoint import Record, Score
from kinbase.checkpoint import yaml as safe_yaml
from kinbase.checkpoint.files import is_file, shown
from kinbase.checkpoint.untrusted import moment, name, number, problems, read_text
from kinbase.errors import CheckpointError
from kinbase.importers import evaluated
from kinbase.importers.model_index import distinct

_LIMIT = 1024 * 1024
_LONGEST_NOTE = 40


def recognises(source: str) -> bool:
    """Any YAML file in a folder of that name."""
    path = Path(source)
    inside = path.absolute().parent.name == ".eval_results"
    return inside and path.suffix.lower() in (".yaml", ".yml") and is_file(source)


def open(source: str) -> Iterator[Record]:
    """The scores of the model whose folder holds the file."""
    path = Path(source)
    text, whole = read_text(path, _LIMIT)
    if not whole:
        raise CheckpointError(
            f"{shown(source)} is larger than {_LIMIT} bytes; it is no file of evaluation results"
        )
    entries = [each for document in safe_yaml.load(text, shown(source)) for each in _list(document)]
    if not any(isinstance(entry, dict) and "dataset" in entry for entry in entries):
        raise CheckpointError(
            f"{shown(source)} holds no evaluation results: a list of entries with dataset and value"
        )
    refused: list[str] = []
    yield from distinct(_scores(entries, refused))
    yield from problems(path.name, refused)


def _scores(entries: list[object], refused: list[str]) -> Iterator[tuple[Score, dict[str, str | None]]]:
    for entry in entries:
        if not isinstance(entry, dict):
            refused.append(f"{shown(entry)}, which is no result")
            continue
        dataset = entry["dataset"] if isinstance(entry.get("dataset"), dict) else {}
        source = entry["source"] if isinstance(entry.get("source"), dict) else {}
        benchmark, task = name(dataset.get("id"), refused), name(dataset.get("task_id"), refused)
        value = number(entry.get("value"))
        if benchmark is None or value is None:
            refused.append(
                f"{benchmark or 'a result without a dataset'}: {shown(entry.get('value'))} is no score"
            )
            continue
        notes = entry.get("notes")
        short = name(notes, refused) if isinstance(notes, str) and len(notes) <= _LONGEST_NOTE else None
        score = Score(
            benchmark=benchmark if task in (None, "default") else f"{benchmark}/{task}",
            metric=f"score ({short})" if short else "score",
            value=value,
            split=evaluated.at_revision(None, name(dataset.get("revision"), refused)),
            source=name(source.get("url"), refused) or name(source.get("name"), refused) or "eval_results",
            evaluated_at=moment(entry.get("date")),
        )
        yield score, {}


def _list(document: object) -> list[object]:
    return document if isinstance(document, list) else [] if document is None else [document]
