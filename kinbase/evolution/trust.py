"""Which runs were begun here: what a run out of somebody else's database would run and delete is theirs.

A run is resumed from its row, and its row names programs. So what a person began here, or said yes to, is
remembered beside the database and not in it, under a digest of what would be run and where it would write: a
database, exported, copied or sent with its folders, does not bring it along.
"""

import contextlib
import hashlib
import json
import os
import shlex
from pathlib import Path

from kinbase.errors import KinbaseError
from kinbase.evolution.config import Config


def remember(config: Config) -> None:
    """Take the run for one of this place from now on; where that cannot be written, `--trust` says it each time."""
    with contextlib.suppress(OSError, RuntimeError):  # no home, or one that cannot be written
        place = _place(config)
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_text(f"{config.name} in {config.out}\n")


def is_known(config: Config) -> bool:
    """Whether the run was begun here, or somebody said yes to it; one that only looks up records runs nothing."""
    if config.evaluate.by == "recorded":
        return True
    with contextlib.suppress(OSError, RuntimeError):
        return _place(config).exists()
    return False


def refuse_stranger(config: Config) -> None:
    """Raise KinbaseError, telling what the run would do, unless it was begun here."""
    if is_known(config):
        return
    evaluate = config.evaluate
    does = {
        "command": f"run `{shlex.join(evaluate.command)}` in {config.folder}",
        "python": f"call {evaluate.function} with {json.dumps(dict(evaluate.settings))}, of the modules in {config.folder}",
        "lm_eval": f"run lm-evaluation-harness with {json.dumps(dict(evaluate.settings))}",
    }
    raise KinbaseError(
        f"the run {config.name} was not begun here: it would {does[evaluate.by]}, and write checkpoints and delete them "
        f"in {config.out}; if that is what you want, `kinbase evolve --resume {shlex.quote(config.name)} --trust` goes on"
    )


def _place(config: Config) -> Path:
    """Where a yes to this evaluator, in these folders, is remembered."""
    state = os.environ.get("XDG_STATE_HOME", "")
    home = Path(state) if Path(state).is_absolute() else Path.home() / ".local" / "state"
    evaluate = config.evaluate
    asked = [
        evaluate.by, evaluate.command, evaluate.function, dict(evaluate.settings), config.folder, config.out,
    ]  # fmt: skip
    digest = hashlib.sha256(json.dumps(asked, sort_keys=True).encode()).hexdigest()
    return Path(home, "kinbase", "runs", digest)
