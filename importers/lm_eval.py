"""lm-evaluation-harness results (`results_*.json`, of 0.3 to 0.4), and the files of lighteval and the leaderboard.

lm-eval 0.4 (lm_eval/result_schema.py) has "metric,filter" keys; the filter "none" goes without saying, another stays
part of the metric. 0.3 has plain keys, and its n-shot in the configuration. A group has the n-shot of its tasks where
they all have one. A run with --limit measured only the first documents, which its split says ("test[:100]"). The
chat template, the system prompt and examples as turns are the score's template.

In a checkpoint folder the scores are that checkpoint's. Anywhere else they carry the name of what was run
(`--model_args`, or `model_name`: an id, or the path it was loaded from).
"""

import json
import re
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path

from kinbase.checkpoint import Record, Score
from kinbase.checkpoint.files import is_file, shown
from kinbase.checkpoint.limits import LIMITS, refuse_many
from kinbase.checkpoint.untrusted import count, head, moment, name, problems, read_text, shots
from kinbase.errors import CheckpointError
from kinbase.importers import evaluated, lighteval
from kinbase.importers.evaluated import mapping

_FILE_TIME = re.compile(r"results_(\d{4}-\d\d-\d\d)T(\d\d)[-:_](\d\d)[-:_](\d\d)")
_BEGINS = re.compile(rb'\s*\{\s*"(results|config_general)"\s*:\s*\{')


def recognises(source: str) -> bool:
    """results*.json (no list, which is a table), or JSON that has one of the formats' keys near its top."""
    path = Path(source)
    if path.suffix.lower() != ".json" or not is_file(source):
        return False
    begins = head(source, 4096)
    is_table = begins.lstrip(b"\xef\xbb\xbf \t\r\n").startswith(b"[")
    return (path.name.startswith("results") and not is_table) or _BEGINS.match(begins) is not None


def open(source: str) -> Iterator[Record]:
    """The scores of one run."""
    path = Path(source)
    text, whole = read_text(path, LIMITS.results_bytes)
    if not whole:
        raise CheckpointError(
            f"{shown(source)} is larger than {LIMITS.results_bytes} bytes; it is no file of results"
        )
    try:
        refuse_many(text, shown(source), LIMITS.json_items)
        document = mapping(json.loads(text))
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{shown(source)} is not valid JSON ({str(error)[:120]})") from None
    results = mapping(document.get("results"))
    refused: list[str] = []
    if lighteval.is_one(document, results):
        found = list(lighteval.records(document, results, path, _file_time(path), refused))
    else:
        found = list(_harness(document, mapping(document.get("groups")) | results, path, refused))
    if not any(isinstance(record, Score) for record in found) and not refused:
        raise CheckpointError(
            f"{shown(source)} is a result file of another schema: lm-eval and the leaderboard keep `results` by task and metric"
        )
    yield from found
    yield from problems(path.name, refused)


def _harness(
    document: dict[str, object], results: dict[str, object], path: Path, refused: list[str]
) -> Iterator[Record]:
    config = mapping(document.get("config"))
    model = None
    if not evaluated.beside_checkpoint(path):
        args = evaluated.arguments(config.get("model_args"))
        stated = document.get("model_name") or _unsanitised(document.get("model_name_sanitized"))
        for told in evaluated.of_arguments(args, stated, config.get("model_revision"), refused):
            if isinstance(told, str):
                model = told
            else:
                yield told
    when = moment(document.get("date")) or _file_time(path)
    yield from evaluated.facts(model, config.get("model_sha"), config.get("model_num_parameters"))
    run = _Run(document)
    template = evaluated.template(document, config, evaluated.arguments(config.get("model_args")))
    for task, metrics in results.items():
        benchmark = name(task, refused)
        if benchmark is None:
            continue
        split, n_shot, better = run.split(task), run.n_shot(task), run.better(task)
        put = evaluated.versioned(template, run.version(task))
        for metric, value, stderr in evaluated.measured(benchmark, metrics, refused):
            direction = better.get(metric.partition(",")[0])
            yield Score(
                benchmark, metric, value, model, stderr, n_shot, split, "lm_eval", when, put,
                direction if isinstance(direction, bool) else None,
            )  # fmt: skip


def _unsanitised(stated: object) -> str | None:
    """The id behind the name that lm-eval gives to a folder of results: org__name."""
    organisation, between, rest = stated.partition("__") if isinstance(stated, str) else ("", "", "")
    return f"{organisation}/{rest}" if between and organisation and rest and "__" not in rest else None


class _Run:
    """What a file says of its tasks beside their results; a group has what all its tasks have."""

    def __init__(self, document: dict[str, object]) -> None:
        self.config = mapping(document.get("config"))
        self.configs = mapping(document.get("configs"))
        self.shots = mapping(document.get("n-shot"))
        self.samples = mapping(document.get("n-samples"))
        self.directions = mapping(document.get("higher_is_better"))
        self.versions = mapping(document.get("versions"))
        self.groups = mapping(document.get("group_subtasks"))

    def tasks(self, task: str, depth: int = 0) -> list[str]:
        """The tasks of a group, of those within it too; of a task itself."""
        below = self.groups.get(task)
        if not isinstance(below, list) or not below or depth > 20:
            return [task]
        return [
            t for each in below if isinstance(each, str) and each != task for t in self.tasks(each, depth + 1)
        ]

    def n_shot(self, task: str) -> int | None:
        """Examples before the question, where the file says one number for the task or for all of a group."""
        told = {self._own_shots(each) for each in [task] if self._own_shots(each) is not None}
        told = told or {self._own_shots(each) for each in self.tasks(task)}
        if told == {None} or not told:
            return shots(self.config.get("num_fewshot"))
        return told.pop() if len(told) == 1 else None

    def _own_shots(self, task: str) -> int | None:
        own = mapping(self.configs.get(task))
        return next(
            (n for n in map(shots, (self.shots.get(task), own.get("num_fewshot"))) if n is not None), None
        )

    def split(self, task: str) -> str | None:
        """What was tested: the split, and of a limited run how much of it."""
        own = mapping(self.configs.get(task))
        split = name(own.get("test_split"), []) or name(own.get("validation_split"), [])
        counts = [mapping(self.samples.get(each)) for each in self.tasks(task)]
        taken, whole = ([count(each.get(key)) for each in counts] for key in ("effective", "original"))
        known = [(t, w) for t, w in zip(taken, whole, strict=True) if t is not None and w is not None]
        if known and len(known) == len(counts):
            tested, there = sum(t for t, _ in known), sum(w for _, w in known)
            return f"{split or 'test'}[:{tested}]" if tested < there else split
        return evaluated.limited(split, self.config.get("limit"))

    def version(self, task: str) -> object:
        """The version of a task; of a group without one that of all its tasks."""
        if self.versions.get(task) is not None:
            return self.versions[task]
        told = [self.versions.get(each) for each in self.tasks(task)]
        return told[0] if told and all(each == told[0] for each in told) else None

    def better(self, task: str) -> dict[str, object]:
        """Which way each metric goes; of a group what all its tasks say."""
        own = mapping(self.directions.get(task))
        for each in self.tasks(task):
            own = mapping(self.directions.get(each)) | own
        return own


def _file_time(path: Path) -> datetime | None:
    found = _FILE_TIME.search(path.name)
    return moment(f"{found[1]}T{found[2]}:{found[3]}:{found[4]}") if found else None
