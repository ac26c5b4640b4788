"""Which runs were begun here, and which folders they made: what a database says of either is not proof.

A run is resumed from its row, and its row names programs and folders. So what a person began here, or said yes to,
is remembered beside the database and not in it, under a digest of the database's place, of what would be run and of
where it would write. And each folder that a run makes holds a mark: a keyed digest (HMAC, RFC 2104) of the run and
the child, with a key that never leaves this machine. A database that was exported, copied or sent, with or without
its folders, brings neither along; what is not marked is not deleted, and not taken for a finished child.
"""

import contextlib
import hashlib
import json
import os
import shlex
from pathlib import Path

from kinbase.checkpoint.files import read_bounded
from kinbase.checkpoint.machine import home, is_signed, signed
from kinbase.errors import CheckpointError, KinbaseError
from kinbase.evolution.config import Config

MARK = ".kinbase-run"
"""The file that says which run of this machine made a folder."""

_MARK_LIMIT = 4096


def remember(config: Config, database: Path) -> None:
    """Take the run for one of this place from now on; where that cannot be written, `--trust` says it each time."""
    with contextlib.suppress(OSError, RuntimeError):  # no home, or one that cannot be written
        place = _place(config, database)
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_text(f"{config.name} in {config.out}\n")


def is_known(config: Config, database: Path) -> bool:
    """Whether the run was begun here in this database, or somebody said yes to it."""
    with contextlib.suppress(OSError, RuntimeError):
        return _place(config, database).exists()
    return False


def refuse_stranger(config: Config, database: Path) -> None:
    """Raise KinbaseError, telling what the run would do, unless it was begun here.

    One that only looks up records runs nothing, and writes nothing but its own database.
    """
    if config.evaluate.by == "recorded" or is_known(config, database):
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


# Folders.


def mark(config: Config, child: str) -> dict[str, str]:
    """The file that a child's folder gets, by its name, with its text; none where no key can be kept."""
    made = signed(_told(config, child))
    if made is None:
        return {}
    said = {"run": config.name, "child": child, "mark": made}
    return {MARK: json.dumps(said) + "\n"}


def made_here(config: Config, child: str, folder: Path) -> bool:
    """Whether this machine's own run made `folder` for this child; a folder that is a link never counts."""
    if folder.is_symlink() or not folder.is_dir():
        return False
    try:
        said = json.loads(read_bounded(folder / MARK, _MARK_LIMIT))
        return is_signed(_told(config, child), said["mark"])
    except (CheckpointError, ValueError, KeyError, TypeError, RecursionError):
        return False


def _told(config: Config, child: str) -> str:
    return json.dumps([config.name, os.path.realpath(config.out), child])


def _place(config: Config, database: Path) -> Path:
    """Where a yes to this evaluator, in these folders, out of this database, is remembered."""
    evaluate = config.evaluate
    asked = [
        os.path.realpath(database), config.name, evaluate.by, evaluate.command, evaluate.function,
        dict(evaluate.settings), config.folder, config.out,
    ]  # fmt: skip
    digest = hashlib.sha256(json.dumps(asked, sort_keys=True).encode("utf-8", "surrogatepass")).hexdigest()
    return home() / "runs" / digest
