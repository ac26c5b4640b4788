"""What a run is asked: a strict, typed reading of its YAML file.

Every key is a field of the classes here. An unknown key is refused with the nearest right one, a value of
another kind with the path to it: a run that takes a night must not find out in the morning what a typo meant.
"""

import difflib
import json
import math
import re
import types
import typing
from collections.abc import Mapping
from dataclasses import MISSING, asdict, dataclass, field, fields, is_dataclass, replace
from pathlib import Path
from typing import Any, Literal

from kinbase.checkpoint import yaml as safe_yaml
from kinbase.checkpoint.files import shown
from kinbase.checkpoint.untrusted import read_text
from kinbase.errors import KinbaseError

_LIMIT = 1024 * 1024


@dataclass(frozen=True, slots=True)
class Explore:
    """The exploration step of `kinship`: whom the best model is merged with besides the pairs."""

    pool: Literal["all", "top_k", "previous"] = "all"
    partner: Literal["lowest", "highest"] = "lowest"
    also: tuple[str, ...] = ()
    """Models outside the run that may be partners too, such as those of an earlier run."""


@dataclass(frozen=True, slots=True)
class Merge:
    """How parents become a child: mergekit's keys, but for the models, which the strategy chooses."""

    method: str = "slerp"
    parameters: Mapping[str, Any] = field(default_factory=dict)
    dtype: str | None = None
    out_dtype: str | None = None
    tokenizer_source: str | None = None
    backend: Literal["built-in", "mergekit"] = "built-in"


@dataclass(frozen=True, slots=True)
class Evaluate:
    """What says how good a model is."""

    by: Literal["recorded", "command", "python", "lm_eval"]
    command: tuple[str, ...] = ()
    """For `command`: words, in which {model} stands for the checkpoint's folder and {name} for its name."""
    function: str = ""
    """For `python`: module:function, called with the checkpoint's folder and `settings`."""
    settings: Mapping[str, Any] = field(default_factory=dict)
    """Keyword arguments of the function, or of lm-eval's simple_evaluate."""
    timeout: float = 3600.0
    """Seconds that one model may take."""
    source: str | None = None
    """Source of the scores as they are stored, by which they are known again; default: what gives them, with its
    settings. For `recorded`: whose scores count (none: anybody's)."""


@dataclass(frozen=True, slots=True)
class Score:
    """What of the results counts: the plain mean over benchmarks, of one metric each."""

    benchmarks: tuple[str, ...] = ()
    """None: all that the evaluator gives."""
    metric: str | None = None
    """None: as `merge_gains` chooses (normalised before raw, then the last in the alphabet)."""


@dataclass(frozen=True, slots=True)
class Stop:
    """When a run ends. A rule that is null is off."""

    unchanged: int | None = 1
    """Generations in a row that leave the k best as they were."""
    kinship: float | None = 0.9
    """Mean kinship of the k best above which the run counts as saturated ..."""
    patience: int = 2
    """... when it stays there for so many generations."""
    generations: int | None = 10
    merges: int | None = None
    evaluations: int | None = None
    disk: str | None = None
    """What the run's checkpoints may take: 20GB."""

    def disk_bytes(self) -> int | None:
        """The budget of disk in bytes; None: no bound. Raises KinbaseError when it is no size."""
        if self.disk is None:
            return None
        found = re.fullmatch(r"\s*(\d{1,6}(?:\.\d+)?)\s*([KMGT]?)(i?)B\s*", self.disk)
        if not found:
            raise KinbaseError(f"stop.disk: {shown(self.disk)} is no size: write it like 20GB or 500MiB")
        return int(float(found[1]) * (1024 if found[3] else 1000) ** " KMGT".index(found[2] or " "))


@dataclass(frozen=True, slots=True)
class Grid:
    """The combinations of `grid`: every method with every number of experts and every seed."""

    methods: tuple[str, ...] = ()
    experts: tuple[int, ...] = ()
    seeds: tuple[int, ...] = (0,)


@dataclass(frozen=True, slots=True)
class Config:
    """One run. Relative paths were made absolute against the folder of the file it was read from."""

    strategy: Literal["greedy", "kinship", "grid"]
    models: tuple[str, ...]
    evaluate: Evaluate
    name: str = ""
    base: str | None = None
    k: int = 3
    pairs: Literal["best_k", "all"] = "best_k"
    metric: Literal["pcc", "cs", "ed"] = "pcc"
    explore: Explore = Explore()
    merge: Merge = Merge()
    score: Score = Score()
    stop: Stop = Stop()
    grid: Grid = Grid()
    seed: int = 0
    twins: float | None = None
    """Children predicted to be at least so akin to a model of the run are not merged."""
    keep: Literal["all", "top_k"] = "all"
    """Whose weights stay: of all children, or of those that later generations may need."""
    on_error: Literal["stop", "skip"] = "stop"
    """What a child that cannot be merged or evaluated does to the run."""
    out: str = ""
    """Folder of the children's checkpoints; default: the run's name, beside the configuration."""
    folder: str = ""
    """Where the configuration lies: commands run there, functions are found there."""


def read(path: str | Path, name: str | None = None) -> Config:
    """The configuration in a YAML file; `name` is the run's, else the file's `name`, else the file's stem.

    Raises CheckpointError when it is no YAML and KinbaseError, naming the key, when it says something wrong.
    """
    path = Path(path)
    if not path.is_file():
        raise KinbaseError(f"there is no configuration {shown(str(path))}: give a YAML file")
    text, whole = read_text(path, _LIMIT)
    if not whole:
        raise KinbaseError(
            f"{shown(str(path))} is larger than {_LIMIT} bytes; it is no configuration of a run"
        )
    documents = safe_yaml.load(text, shown(str(path)))
    if len(documents) != 1 or not isinstance(documents[0], dict):
        raise KinbaseError(f"{shown(str(path))} must hold one mapping: strategy, models, evaluate, ...")
    try:
        config: Config = _read(Config, documents[0], "")
        config = replace(config, name=name or config.name or path.stem, folder=str(path.parent.resolve()))
        config = replace(config, evaluate=replace(config.evaluate, source=_source(config.evaluate)))
        out = Path(config.folder, config.out or config.name).resolve()
        config = replace(config, out=str(out))
        _check(config)
    except KinbaseError as error:
        raise KinbaseError(f"{shown(str(path))}: {error}") from None
    return config


def dumps(config: Config) -> str:
    """The configuration as JSON, every default filled in."""
    return json.dumps(asdict(config))


def loads(text: str) -> Config:
    """What `dumps` wrote; raises KinbaseError for anything else."""
    try:
        config: Config = _read(Config, json.loads(text), "")
    except (ValueError, RecursionError):
        raise KinbaseError("the run's row holds no configuration: it is damaged") from None
    _check(config)
    if not (Path(config.out).is_absolute() and Path(config.folder).is_absolute()):
        raise KinbaseError("the run's row names folders without their roots: it is damaged")
    return config


def _source(by: Evaluate) -> str | None:
    """What stored scores are told by: lm-eval's own results always say lm_eval.

    Settings are part of it: a model's scores on few exercises are none on many.
    """
    if by.by == "lm_eval":
        return "lm_eval"
    settings = ", ".join(f"{key}={json.dumps(value)}" for key, value in sorted(by.settings.items()))
    function = f"{by.function}({settings})" if settings else by.function
    return by.source or {"recorded": None, "command": " ".join(by.command), "python": function}[by.by]


# Reading.


def _read(kind: Any, value: object, path: str) -> Any:
    """`value` as `kind`: a class of fields, a Literal, a tuple, a mapping, or a plain type, or one of several."""
    where = path or "the configuration"
    if is_dataclass(kind):
        return _fields(kind, value, path)
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin is Literal:
        if value in arguments and isinstance(value, str):
            return value
        raise KinbaseError(
            f"{where}: {shown(value)} is none of {', '.join(arguments)}{_near(value, arguments)}"
        )
    if origin in (typing.Union, types.UnionType):
        if value is None and type(None) in arguments:
            return None
        return _read(next(a for a in arguments if a is not type(None)), value, path)
    if origin is tuple:
        if not isinstance(value, list):
            raise KinbaseError(f"{where}: {shown(value)} is no list")
        return tuple(_read(arguments[0], item, f"{path}[{i}]") for i, item in enumerate(value))
    if origin is Mapping:
        if not isinstance(value, dict):
            raise KinbaseError(f"{where}: {shown(value)} is no mapping")
        _finite(value, path)
        return value
    if isinstance(value, int) and abs(value) >= 2**53:
        raise KinbaseError(f"{where}: {shown(value)} is beyond any number that makes sense here")
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        value = float(value)
    if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
        words = {str: "text", int: "a whole number", float: "a number", bool: "true or false"}
        raise KinbaseError(f"{where}: {shown(value)} is not {words[kind]}")
    if isinstance(value, float) and not math.isfinite(value):
        raise KinbaseError(f"{where}: {value} is no finite number")
    return value


def _fields(kind: Any, value: object, path: str) -> Any:
    if not isinstance(value, dict):
        raise KinbaseError(f"{path}: {shown(value)} is no mapping")
    hints = typing.get_type_hints(kind)
    names = [each.name for each in fields(kind)]
    for key in value:
        if key not in names:
            known = [n for n in names if n != "folder"]
            raise KinbaseError(
                f"there is no key {shown(_join(path, key))}{_near(key, known) or ': ' + ', '.join(known)}"
            )
    missing = [
        each.name
        for each in fields(kind)
        if each.name not in value and each.default is MISSING and each.default_factory is MISSING
    ]
    if missing:
        raise KinbaseError(f"the key {_join(path, missing[0])} is missing")
    return kind(**{key: _read(hints[key], item, _join(path, key)) for key, item in value.items()})


def _finite(value: object, path: str) -> None:
    """Raise KinbaseError for a number somewhere in `value` that JSON cannot say."""
    if isinstance(value, dict | list):
        for key, item in value.items() if isinstance(value, dict) else enumerate(value):
            _finite(item, _join(path, key))
    elif isinstance(value, float) and not math.isfinite(value):
        raise KinbaseError(f"{path}: {value} is no finite number")


def _join(path: str, key: object) -> str:
    return f"{path}.{key}" if path else str(key)


def _near(word: object, known: typing.Sequence[str]) -> str:
    near = difflib.get_close_matches(str(word), known, 1, 0.5)
    return f": did you mean {near[0]}?" if near else ""


# What the kinds do not say.


def _check(config: Config) -> None:
    """Raise KinbaseError for values that contradict each other or lead nowhere."""
    stop, evaluate, grid = config.stop, config.evaluate, config.grid
    stop.disk_bytes()
    least = {
        "k": (config.k, 2), "stop.unchanged": (stop.unchanged, 1), "stop.patience": (stop.patience, 1),
        "stop.generations": (stop.generations, 1), "stop.merges": (stop.merges, 0), "stop.evaluations": (stop.evaluations, 0),
        "evaluate.timeout": (evaluate.timeout, 1e-3), **{f"grid.experts[{i}]": (n, 2) for i, n in enumerate(grid.experts)},
    }  # fmt: skip
    for key, (value, bound) in least.items():
        if value is not None and value < bound:
            raise KinbaseError(f"{key}: {value} is less than {bound:g}")
    if not re.fullmatch(r"[\w.+ -]{1,100}", config.name) or config.name.startswith("."):
        raise KinbaseError(
            f"name: {shown(config.name)} is to name folders too: letters, digits, - _ . and no more"
        )
    if len(set(config.models)) < len(config.models):
        raise KinbaseError("models: one of them is there twice")
    if len(config.models) < 2:
        raise KinbaseError("models: at least two are needed to merge")
    needed = {
        "command": evaluate.command,
        "python": ":" in evaluate.function,
        "lm_eval": "tasks" in evaluate.settings,
    }
    hint = {"command": "evaluate.command: the words of the program", "python": "evaluate.function: module:function",
            "lm_eval": "evaluate.settings.tasks: the tasks"}  # fmt: skip
    if evaluate.by in needed and not needed[evaluate.by]:
        raise KinbaseError(f"evaluate.by {evaluate.by} needs {hint[evaluate.by]}")
    if evaluate.by == "recorded" and not config.score.benchmarks:
        raise KinbaseError("score.benchmarks: say which recorded benchmarks count")
    if config.strategy == "grid" and not (grid.methods and grid.experts and grid.seeds):
        raise KinbaseError("the strategy grid needs grid.methods, grid.experts and grid.seeds")
    if config.strategy == "grid" and max(grid.experts) > len(config.models):
        raise KinbaseError(
            f"grid.experts: {max(grid.experts)} of {len(config.models)} models cannot be chosen"
        )
    if config.keep == "top_k" and config.strategy == "kinship" and config.explore.pool == "all":
        raise KinbaseError(
            "keep: top_k deletes what explore.pool: all may choose: set the pool to top_k or previous"
        )
