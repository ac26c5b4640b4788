"""lm-evaluation-harness results (`results_*.json`) and Open LLM Leaderboard v1 result files.

Both hold `results` by task. lm-eval (lm_eval/result_schema.py, 0.4) has "metric,filter" keys; the
filter "none" goes without saying, another stays part of the metric. A run with --limit measured
only the first documents, which its split says ("test[:100]"). The leaderboard's own files name
tasks "harness|arc:challenge|25"; its MMLU, the plain mean over the 57 subjects, is added as one
score, because no file holds it.

In a checkpoint folder the scores are that checkpoint's. Anywhere else they carry the name that the
file gives the model (`model_name`: an id, or the path it was loaded from).
"""

import json
import math
import re
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path

from kinbase.checkpoint import Facts, Record, Score
from kinbase.checkpoint.files import is_file, shown
from kinbase.checkpoint.untrusted import (
    count,
    head,
    model_id,
    moment,
    name,
    number,
    problems,
    read_text,
    shots,
)
from kinbase.errors import CheckpointError

_LIMIT = 64 * 1024 * 1024
_SUBJECTS = 57
_OLD_TASK = re.compile(r"[^|]+\|([^|]+)\|(\d{1,4})(?:\|\d+)?")
_FILE_TIME = re.compile(r"results_(\d{4}-\d\d-\d\d)T(\d\d)[-:_](\d\d)[-:_](\d\d)")
_BEGINS = re.compile(rb'\s*\{\s*"(results|config_general)"\s*:\s*\{')
_NOT_METRICS = ("alias", "name", "sample_len", "sample_count", "samples")


def recognises(source: str) -> bool:
    """results*.json (no list, which is a table), or JSON that has one of the two formats' keys near its top."""
    path = Path(source)
    if path.suffix.lower() != ".json" or not is_file(source):
        return False
    begins = head(source, 4096)
    is_table = begins.lstrip().startswith(b"[")
    return (path.name.startswith("results") and not is_table) or _BEGINS.match(begins) is not None


def open(source: str) -> Iterator[Record]:
    """The scores of one run."""
    path = Path(source)
    text, whole = read_text(path, _LIMIT)
    if not whole:
        raise CheckpointError(f"{shown(source)} is larger than {_LIMIT} bytes; it is no file of results")
    try:
        document = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{shown(source)} is not valid JSON ({str(error)[:120]})") from None
    document = _dict(document)
    results = _dict(document.get("results"))
    refused: list[str] = []
    if any(_OLD_TASK.fullmatch(task) for task in results):
        found = list(_leaderboard(document, results, path, refused))
    else:
        found = list(_harness(document, _dict(document.get("groups")) | results, path, refused))
    if not any(isinstance(record, Score) for record in found) and not refused:
        raise CheckpointError(
            f"{shown(source)} is a result file of another schema: lm-eval and the leaderboard keep `results` by task and metric"
        )
    yield from found
    yield from problems(path.name, refused)


def _harness(
    document: dict[str, object], results: dict[str, object], path: Path, refused: list[str]
) -> Iterator[Record]:
    config, configs = _dict(document.get("config")), _dict(document.get("configs"))
    examples, samples = _dict(document.get("n-shot")), _dict(document.get("n-samples"))
    model = None
    if not _beside_checkpoint(path):
        model = model_id(document.get("model_name"), refused) or _pretrained(config.get("model_args"))
    when = moment(document.get("date")) or _file_time(path)
    yield from _facts(model, config.get("model_sha"), config.get("model_num_parameters"))
    for task, metrics in results.items():
        benchmark = name(task, refused)
        task_config = _dict(configs.get(task))
        split = name(task_config.get("test_split"), refused) or name(
            task_config.get("validation_split"), refused
        )
        done = _dict(samples.get(task))
        taken, all_of_them = count(done.get("effective")), count(done.get("original"))
        if taken is not None and all_of_them is not None and taken < all_of_them:
            split = f"{split or 'test'}[:{taken}]"
        n_shot = shots(examples.get(task, task_config.get("num_fewshot")))
        if benchmark is None:
            continue
        for metric, value, stderr in _metrics(benchmark, metrics, refused):
            yield Score(benchmark, metric, value, model, stderr, n_shot, split, "lm_eval", when)


def _leaderboard(
    document: dict[str, object], results: dict[str, object], path: Path, refused: list[str]
) -> Iterator[Record]:
    general = _dict(document.get("config_general"))
    model = None if _beside_checkpoint(path) else model_id(general.get("model_name"), refused)
    when = _file_time(path)
    yield from _facts(model, general.get("model_sha"), None)
    subjects: list[float] = []
    for task, metrics in results.items():
        found = _OLD_TASK.fullmatch(task)
        benchmark = name(found.group(1).replace(":", "_"), refused) if found else None
        if found is None or benchmark is None:
            continue  # "all", a mean over everything whatever its metric
        benchmark = benchmark.replace("hendrycksTest-", "mmlu_")
        for metric, value, stderr in _metrics(benchmark, metrics, refused):
            # lm-eval's own name for what this version calls truthfulqa:mc with mc1 and mc2
            told = f"truthfulqa_{metric}" if benchmark == "truthfulqa_mc" else benchmark
            source = "open_llm_leaderboard_v1"
            yield Score(told, metric, value, model, stderr, int(found.group(2)), None, source, when)
            if benchmark.startswith("mmlu_") and metric == "acc" and found.group(2) == "5":
                subjects.append(value)
    if len(subjects) == _SUBJECTS:
        mean = math.fsum(subjects) / _SUBJECTS
        yield Score("mmlu", "acc", mean, model, None, 5, None, "open_llm_leaderboard_v1", when)
    elif subjects:
        refused.append(f"the mean of MMLU, which has {len(subjects)} of its {_SUBJECTS} subjects")


def _metrics(task: str, metrics: object, refused: list[str]) -> Iterator[tuple[str, float, float | None]]:
    """Metric, value and standard error of a task; "N/A" errors are none, other texts are no metrics."""
    entries = _dict(metrics)
    for key, stated in entries.items():
        metric, _, filtered = key.partition(",")
        if metric.endswith("_stderr") or key in _NOT_METRICS or isinstance(stated, dict | list):
            continue
        value = number(stated)
        label = name(metric if filtered in ("", "none") else key, refused)
        if value is None or label is None:
            refused.append(f"{task} {shown(key)}: {shown(stated)} is no score")
            continue
        stderr = entries.get(f"{metric}_stderr" + (f",{filtered}" if filtered else ""))
        yield label, value, number(stderr)


def _facts(model: str | None, sha: object, parameters: object) -> Iterator[Facts]:
    revision = sha if isinstance(sha, str) and re.fullmatch(r"[0-9a-f]{7,64}", sha) else None
    size = count(parameters)
    if revision or size:
        yield Facts(model, revision=revision, parameters=size or None)


def _beside_checkpoint(path: Path) -> bool:
    return any(is_file(str(path.parent / name)) for name in ("config.json", "adapter_config.json"))


def _pretrained(arguments: object) -> str | None:
    """The model in `--model_args`, which is one text or a mapping: the adapter where there is one."""
    if isinstance(arguments, str):
        arguments = dict(part.partition("=")[::2] for part in arguments.split(","))
    given = _dict(arguments)
    return next((model_id(given[key], []) for key in ("peft", "pretrained", "model") if given.get(key)), None)


def _file_time(path: Path) -> datetime | None:
    found = _FILE_TIME.search(path.name)
    return moment(f"{found[1]}T{found[2]}:{found[3]}:{found[4]}") if found else None


def _dict(value: object) -> dict[str, object]:
    return value if isinstance(value, dict) else {}
