"""trainer_state.json of the Transformers Trainer: the losses and metrics a checkpoint had, with its step.

A result is of the checkpoint whose folder holds the file; its split says the step, so that those of two steps are two.
"""

from collections.abc import Iterator
from pathlib import Path

from kinbase.checkpoint import Record, Score
from kinbase.checkpoint.files import is_file, read_json, shown
from kinbase.checkpoint.untrusted import count, name, number
from kinbase.errors import CheckpointError

_NOT_METRICS = ("runtime", "per_second", "epoch", "step", "flos", "grad_norm", "learning_rate", "mem")


def recognises(source: str) -> bool:
    """A file of that name."""
    return Path(source).name == "trainer_state.json" and is_file(source)


def open(source: str) -> Iterator[Record]:
    """The last training loss and the last results of evaluation."""
    state = read_json(source)
    history = state.get("log_history")
    step = count(state.get("global_step"))
    if step is None or not isinstance(history, list):
        raise CheckpointError(
            f"{shown(source)} tells no global_step and no log_history: it is no trainer's state"
        )
    last: dict[tuple[str, str], tuple[float, int | None]] = {}
    for entry in history:
        for key, stated in entry.items() if isinstance(entry, dict) else ():
            told = _metric(key)
            value = number(stated)
            if told and value is not None:
                last[told] = value, count(entry.get("step"))
    for (benchmark, metric), (value, at) in last.items():
        yield Score(benchmark, metric, value, split=f"step {step if at is None else at}", source="trainer")


def _metric(key: object) -> tuple[str, str] | None:
    """Benchmark and metric of an entry of the log: `loss` is training's, `eval_` stands before those of evaluation."""
    text = name(key, [])
    if text is None or any(part in text for part in _NOT_METRICS):
        return None
    if text in ("loss", "train_loss"):
        return "train", "loss"
    return ("eval", text.removeprefix("eval_")) if text.startswith("eval_") else None
