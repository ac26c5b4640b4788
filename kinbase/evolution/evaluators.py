"""What a model is worth: evaluators give benchmark results, in their own unit, more being better.

    recorded   what the database has of the model already
    command    any program: it is given the checkpoint's folder and prints JSON on stdout
    python     module:function, called with the checkpoint's folder in a process of its own
    lm_eval    lm-evaluation-harness (extra lm-eval), in such a process too

The JSON is {"benchmark": number}, or {"benchmark": {"metric": number, "metric_stderr": number}}, or what lm-eval
writes ({"results": ...}). A result that is no finite number is refused: NaN would be nobody's best.
"""

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any, NoReturn
from urllib.parse import quote

from kinbase.checkpoint import Score
from kinbase.checkpoint.files import shown
from kinbase.errors import CheckpointError, KinbaseError
from kinbase.evolution.config import Config
from kinbase.evolution.subprocesses import Caller
from kinbase.importers import lm_eval

Evaluation = Callable[[], tuple[list[Score], float]]
"""Waits for the results of a checkpoint, and tells the seconds they took. Raises KinbaseError, one line, when the
evaluator fails or gives none."""

HARNESS = "kinbase.evolution.lm_eval:evaluate"


def begin(config: Config, name: str, folder: str, caller: Caller) -> Evaluation:
    """Begin to evaluate the checkpoint in `folder`; what came of it is told when that is asked, and errors too."""
    by, now = config.evaluate, datetime.now(UTC)
    try:
        if by.by == "command":
            words = [word.replace("{model}", folder).replace("{name}", name) for word in by.command]
            answer = caller.run(words, timeout=by.timeout)
        elif by.by == "lm_eval":
            out = str(
                Path(config.out, "results", quote(name, safe="").replace(".", "%2E", name.startswith(".")))
            )
            answer = caller.call(HARNESS, [folder, out], by.settings, timeout=by.timeout)
        else:
            answer = caller.call(by.function, [folder], by.settings, timeout=by.timeout)
    except KinbaseError as error:
        return partial(_raise, error)

    def scores() -> tuple[list[Score], float]:
        said, took = answer()
        if by.by == "lm_eval":
            return _harness(Path(said)), took
        return results(_json(said, by.command[0]) if by.by == "command" else said, by.source, now), took

    return scores


def _raise(error: KinbaseError) -> NoReturn:
    raise error


def results(answer: object, source: str | None, when: datetime) -> list[Score]:
    """Scores out of an evaluator's JSON. Raises KinbaseError for anything else."""
    if isinstance(answer, dict) and isinstance(answer.get("results"), dict):
        answer = {
            task: {
                k.removesuffix(",none"): v
                for k, v in metrics.items()
                if k not in ("alias", " ") and v != "N/A"
            }
            if isinstance(metrics, dict)
            else metrics
            for task, metrics in answer["results"].items()
        }
    if not isinstance(answer, dict) or not answer:
        raise KinbaseError(
            f"the evaluator gave {shown(json.dumps(answer))}, where {{benchmark: number}} was expected"
        )
    found = []
    for benchmark, said in answer.items():
        metrics: Mapping[str, Any] = said if isinstance(said, dict) else {"score": said}
        for metric, value in metrics.items():
            if metric.endswith("_stderr"):
                continue
            stderr = metrics.get(f"{metric}_stderr")
            found.append(Score(
                benchmark, metric, _finite(value, benchmark), None, None if stderr is None else _finite(stderr, benchmark),
                source=source, evaluated_at=when,
            ))  # fmt: skip
    return found


def _finite(value: object, benchmark: str) -> float:
    try:
        if isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value):
            return float(value)
    except OverflowError:  # whole numbers have no bound in JSON
        pass
    raise KinbaseError(f"the evaluator gave {shown(value)} on {shown(benchmark)}, which is no finite number")


def _json(text: str, who: str) -> object:
    """All that a program printed as JSON, or else its last line: programs talk before they answer."""
    lines = text.strip().splitlines()
    for candidate in (text, lines[-1] if lines else ""):
        try:
            return json.loads(candidate)
        except (ValueError, RecursionError):
            continue
    said = f"it printed {shown(lines[-1])}" if lines else "it printed nothing"
    raise KinbaseError(f"{shown(who)} gave no JSON on stdout: {said}")


def _harness(path: Path) -> list[Score]:
    """The scores of a result file that lm-eval's own importer reads."""
    try:
        records = list(lm_eval.open(str(path)))
    except CheckpointError as error:
        raise KinbaseError(f"lm-eval gave nothing that can be read: {error}") from None
    scores = [replace(record, model=None) for record in records if isinstance(record, Score)]
    if not scores:
        raise KinbaseError(f"lm-eval gave no score: see {shown(str(path))}")
    return scores
