"""Results of other evaluation tools, where their files are plain.

`evals` lists: a JSON object with a list under evals, evaluations, benchmarks or results, whose entries have the columns
of the view scores or what others call them, and may leave the model to the object. HELM: `stats.json`, with the
`run_spec.json` beside it that says which model. OpenCompass: the summary CSV, one column a model. Folders of lm-eval's
`--output_path`: one folder a model, results in each.
"""

import csv
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path

from kinbase.checkpoint import Problem, Record, Score, tables
from kinbase.checkpoint.files import is_file, is_folder, listing, shown
from kinbase.checkpoint.ids import says_nothing
from kinbase.checkpoint.untrusted import decoded, head, model_id, name, number, problems, read_text, shots
from kinbase.errors import CheckpointError
from kinbase.importers import columns, evaluated, frames, lm_eval, table
from kinbase.importers.cells import Cells
from kinbase.importers.evaluated import mapping

_LIMIT = 64 << 20
_LISTS = ("evals", "evaluations", "eval_results", "benchmarks", "scores", "results")
_SUMMARY = ("dataset", "version", "metric", "mode")
_VIEW = table.VIEWS["scores"]
_MOST_FILES = 10_000
_HELM_NOT_METRICS = (
    "num_",
    "training_",
    "inference_",
    "max_prob",
    "logprob",
    "finish_reason",
    "prompt_",
    "estimated_",
)


def recognises(source: str) -> bool:
    """One of the four, by its name and its first bytes."""
    path = Path(source)
    if is_folder(source):
        return _is_output(path)
    if not is_file(source):
        return False
    if path.name == "stats.json":
        return is_file(str(path.with_name("run_spec.json")))
    begins = decoded(head(source, 4096)).lstrip()
    if path.suffix.lower() == ".csv":
        first = next(csv.reader([begins.split("\n")[0]]), [])
        return tuple(cell.strip() for cell in first[:4]) == _SUMMARY and len(first) > 4
    return (
        path.suffix.lower() == ".json"
        and re.search(rf'"({"|".join(_LISTS)})"\s*:\s*\[\s*\{{', begins) is not None
    )


def open(source: str) -> Iterator[Record]:
    """The scores of one file, or of a folder of results."""
    path = Path(source)
    if is_folder(source):
        for file in _results(path):
            try:
                yield from lm_eval.open(str(file))
            except CheckpointError as error:
                yield Problem(str(error))
    elif path.suffix.lower() == ".csv":
        yield from _summary(path)
    elif path.name == "stats.json":
        yield from _helm(path)
    else:
        yield from _listed(path)


def _is_output(folder: Path) -> bool:
    """Whether a folder holds results in its folders, and no model itself."""
    try:
        names = listing(folder)
    except CheckpointError:
        return False
    here = any(
        n in ("config.json", "adapter_config.json") or n.endswith((".safetensors", ".bin", ".md"))
        for n in names
    )
    here = here or "snapshots" in names or any(n.startswith("checkpoint-") for n in names)
    return not here and next(_results(folder), None) is not None


def _results(folder: Path) -> Iterator[Path]:
    """The files of results up to three folders down, in order; links are not followed."""
    seen = 0
    for depth in ("*", "*/*", "*/*/*"):
        for path in sorted(folder.glob(f"{depth}/results*.json")):
            seen += 1
            if seen > _MOST_FILES:
                return
            linked = any(p.is_symlink() for p in (path, *path.parents[: depth.count("/") + 1]))
            if not linked and lm_eval.recognises(str(path)):
                yield path


def _document(path: Path) -> object:
    text, whole = read_text(path, _LIMIT)
    if not whole:
        raise CheckpointError(f"{shown(path)} is larger than {_LIMIT} bytes; it is no file of results")
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{shown(path)} is not valid JSON ({str(error)[:120]})") from None


def _listed(path: Path) -> Iterator[Record]:
    document = mapping(_document(path))
    common = {k: v for k, v in document.items() if isinstance(v, str | int | float)}
    if isinstance(document.get("model"), dict):
        common |= {k: v for k, v in mapping(document["model"]).items() if isinstance(v, str | int | float)}
        common.setdefault("model", common.get("name", common.get("id", "")))
    beside = evaluated.beside_checkpoint(path)
    entries = next((document[key] for key in _LISTS if isinstance(document.get(key), list)), [])
    rows = [_as_in_the_view(mapping(entry), common, beside) for entry in entries]  # type: ignore[attr-defined]
    cells = Cells(path.name)
    for batch in cells.of([frames.of_rows(rows)] if rows else []):
        scores = table.score_table(batch)
        # Of a checkpoint that they lie beside they are, whatever they call it.
        yield from (
            replace(score, model=None) if beside and isinstance(score, Score) else score
            for score in tables.records(scores)
        )
    yield from cells.problems()


def _as_in_the_view(
    entry: Mapping[str, object], common: Mapping[str, object], beside: bool
) -> dict[str, object]:
    """An entry's cells, and those of the whole file that it does not have, as the view scores calls them."""
    row = {**common, **{k: v for k, v in entry.items() if not isinstance(v, dict | list)}}
    row = {ours: row[theirs] for ours, theirs in columns.recognised(row).items()}
    if says_nothing(row.get("model")) and beside:
        row["model"] = "."
    return {column: row.get(column) for column in (*_VIEW.required, *_VIEW.optional)}


def _helm(path: Path) -> Iterator[Record]:
    spec = mapping(_document(path.with_name("run_spec.json")))
    stats = _document(path)
    adapter = mapping(spec.get("adapter_spec"))
    refused: list[str] = []
    model = model_id(adapter.get("model") or adapter.get("model_deployment"), refused)
    title = name(spec.get("name"), refused) or path.parent.name
    scenario = re.sub(r",?(model|model_deployment)=[^,]+", "", title).rstrip(":,")
    if model is None or not isinstance(stats, list):
        raise CheckpointError(
            f"{shown(path)}: the run_spec.json beside it names no model, or it holds no list of statistics"
        )
    for stat in map(mapping, stats):
        told = mapping(stat.get("name"))
        metric, value = name(told.get("name"), []), number(stat.get("mean"))
        if (
            metric is None
            or value is None
            or told.get("perturbation")
            or metric.startswith(_HELM_NOT_METRICS)
        ):
            continue
        part = "/".join(filter(None, (name(told.get(key), []) for key in ("split", "sub_split"))))
        split = evaluated.limited(part or None, adapter.get("max_eval_instances"))
        yield Score(
            scenario,
            metric,
            value,
            model,
            n_shot=shots(adapter.get("max_train_instances")),
            split=split,
            source="helm",
        )
    yield from problems(path.name, refused)


def _summary(path: Path) -> Iterator[Record]:
    text, _ = read_text(path, _LIMIT)
    rows = list(csv.reader(text.splitlines()))
    models = [model_id(cell, []) for cell in rows[0][4:]]
    refused: list[str] = []
    for row in rows[1:]:
        benchmark, metric, mode = (
            (name(cell, refused) for cell in (row[0], row[2], row[3])) if len(row) > 4 else (None, None, None)
        )
        prompt = evaluated.versioned(None, row[1].strip()) if len(row) > 4 else None
        if benchmark is None or says_nothing(metric):
            continue  # a heading, or a summary group without a metric
        for model, cell in zip(models, row[4:], strict=False):
            value = number(cell)
            if model and value is not None and metric:
                yield Score(
                    benchmark, metric, value, model, split=mode, source="opencompass", template=prompt
                )
    yield from problems(path.name, refused)
