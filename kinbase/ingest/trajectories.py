"""A training run's folder as its checkpoints: one model a step, each made from the one before."""

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from kinbase.checkpoint import Edge
from kinbase.checkpoint.files import listing
from kinbase.checkpoint.open import Opened
from kinbase.checkpoint.subjects import WEIGHTS
from kinbase.errors import CheckpointError

_STEP = re.compile(r"(?:checkpoint|ckpt|step|epoch|iter|iteration)s?[-_]?(\d{1,12})(?:[-_].*)?")


@dataclass(frozen=True, slots=True)
class Leg:
    """A source to be read: what it is called, where a run's folder says so, and the leg before it."""

    source: str
    name: str | None = None
    step: int | None = None
    parent: str | None = None

    @property
    def is_of_a_run(self) -> bool:
        """Whether it is one of the checkpoints of a run, or what the run ended with."""
        return self.step is not None or self.parent is not None

    def told(self, opened: Opened) -> Opened:
        """An opened source with its name, and the claim that it was trained on from the leg before."""
        if opened.problem:
            return opened
        detail: dict[str, object] = {} if self.step is None else {"step": self.step}
        edge = Edge(self.parent, "finetune", "config", detail=detail) if self.parent else None
        return replace(
            opened,
            is_renamed=False,
            records=(*opened.records, *([(opened.source, edge)] if edge else [])),
        )


def legs(sources: Sequence[str], name: str | None) -> list[Leg]:
    """The sources, a run's folder replaced by its checkpoints in the order of their steps.

    They are called NAME@STEP after the folder, or after `name`. A folder that holds weights itself comes last, as what
    its run ended with.
    """
    found: list[Leg] = []
    for source in sources:
        steps = _steps(source)
        if not steps:
            found.append(Leg(source, name))
            continue
        run = name or Path(source).resolve().name
        parent: str | None = None
        for step, folder in steps:
            called = f"{run}@{step}"
            found.append(Leg(folder, called, step, parent))
            parent = called
        if _holds_weights(Path(source)):
            found.append(Leg(source, run, None, parent))
    return found


def _steps(source: str) -> list[tuple[int, str]]:
    """The checkpoints in a folder by their steps; none where two have the same."""
    try:
        names = listing(source) if Path(source).is_dir() else []
    except CheckpointError:
        return []
    found = []
    for name in names:
        match = _STEP.fullmatch(name)
        if match and _holds_weights(Path(source, name)):
            found.append((int(match[1]), str(Path(source, name))))
    found.sort()
    return [] if len({step for step, _ in found}) < len(found) else found


def _holds_weights(folder: Path) -> bool:
    if not folder.is_dir():
        return False
    left_by_trainers = ("optimizer", "scheduler", "rng_state", "training_args", "scaler", "random_states")
    try:
        names = listing(folder)
    except CheckpointError:
        return False
    return any(Path(name).suffix in WEIGHTS and not name.startswith(left_by_trainers) for name in names)
