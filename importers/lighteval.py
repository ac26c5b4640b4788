"""Results of lighteval and of the first Open LLM Leaderboard, which names tasks as "harness|arc:challenge|25".

lighteval names them "leaderboard|gsm8k|5", or since 0.11 "gsm8k|5"; its "all" is a mean over everything, whatever the
metric, and no score. The leaderboard's MMLU, the plain mean over the 57 subjects, is added as one score, because no
file of its own holds it; lighteval's "mmlu:_average" is that mean.
"""

import math
import re
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path

from kinbase.checkpoint import Record, Score
from kinbase.checkpoint.untrusted import moment, name
from kinbase.importers import evaluated
from kinbase.importers.evaluated import mapping

_SUBJECTS = 57
_TASK = re.compile(r"(?:(?P<suite>[^|]+)\|)?(?P<task>[^|]+)\|(?P<shots>\d{1,4})(?:\|\d+)?")


def is_one(document: dict[str, object], results: dict[str, object]) -> bool:
    """Whether a file of results names its tasks as these two do."""
    return "config_general" in document or any(_TASK.fullmatch(task) for task in results)


def records(
    document: dict[str, object],
    results: dict[str, object],
    path: Path,
    when: datetime | None,
    refused: list[str],
) -> Iterator[Record]:
    """The facts and scores of one run."""
    general = mapping(document.get("config_general"))
    run = mapping(general.get("model_config"))
    old = any(task.startswith(("harness|", "original|")) for task in results) or (
        "lighteval_sha" not in general and not run
    )
    source = "open_llm_leaderboard_v1" if old else "lighteval"
    model = None
    if not evaluated.beside_checkpoint(path):
        stated = general.get("model_name") or run.get("model_name") or run.get("pretrained")
        for told in evaluated.of_arguments(run, stated, run.get("revision"), refused):
            if isinstance(told, str):
                model = told
            else:
                yield told
    yield from evaluated.facts(model, general.get("model_sha"), None)
    when = when or moment(general.get("end_date"))
    template = evaluated.template(general, run)
    versions = mapping(document.get("versions"))
    subjects: list[float] = []
    for task, metrics in results.items():
        found = _TASK.fullmatch(task)
        benchmark = name(found["task"].replace(":", "_"), refused) if found else None
        if found is None or benchmark is None:
            continue  # "all"
        benchmark = benchmark.replace("hendrycksTest-", "mmlu_").replace("mmlu__average", "mmlu")
        split = evaluated.limited(None, general.get("max_samples"))
        for metric, value, stderr in evaluated.measured(benchmark, metrics, refused):
            # lm-eval's own name for what the leaderboard's version calls truthfulqa:mc with mc1 and mc2
            told_as = f"truthfulqa_{metric}" if benchmark == "truthfulqa_mc" else benchmark
            put = evaluated.versioned(template, versions.get(task))
            better = _better(mapping(document.get("config_tasks")).get(task)).get(metric)
            yield Score(
                told_as,
                metric,
                value,
                model,
                stderr,
                int(found["shots"]),
                split,
                source,
                when,
                put,
                better,
            )
            if old and benchmark.startswith("mmlu_") and metric == "acc" and found["shots"] == "5":
                subjects.append(value)
    if len(subjects) == _SUBJECTS:
        mean = math.fsum(subjects) / _SUBJECTS
        yield Score("mmlu", "acc", mean, model, None, 5, None, source, when, template)
    elif subjects:
        refused.append(f"the mean of MMLU, which has {len(subjects)} of its {_SUBJECTS} subjects")


def _better(task: object) -> dict[str, bool]:
    """Which way a task's metrics go, as its configuration says."""
    listed = mapping(task).get("metric") or mapping(task).get("metrics")
    metrics = [mapping(each) for each in listed] if isinstance(listed, list) else []
    found: dict[str, bool] = {}
    for each in metrics:
        metric, better = each.get("metric_name"), each.get("higher_is_better")
        if isinstance(metric, str) and isinstance(better, bool):
            found[metric] = better
    return found
