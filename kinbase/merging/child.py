"""One merge from its configuration to a checkpoint folder, whole or not at all."""

import errno
import os
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kinbase.checkpoint import Checkpoint, Facts
from kinbase.checkpoint.files import absolute, is_file, read_json, shown
from kinbase.checkpoint.merge_config import Reference
from kinbase.checkpoint.open import Opened, read
from kinbase.errors import CheckpointError, DiskError, KinbaseError, UsageError
from kinbase.merging import folder as beside
from kinbase.merging.adapted import adapted
from kinbase.merging.config import MergeConfig
from kinbase.merging.plan import Parent, in_words_of, opened, targets
from kinbase.merging.shards import SHARD_BYTES, Shards

Report = Callable[[int, int], None]

FULL = {
    errno.ENOSPC: "the disk is full",
    errno.EDQUOT: "the quota is used up",
    errno.EFBIG: "a file of this size is not allowed",
}
"""What the system says when there is no room."""


@dataclass(frozen=True, slots=True)
class Merged:
    """What a merge made: its folder, bytes and tensors (None: not counted), and lines for the person."""

    folder: Path
    nbytes: int
    tensors: int | None
    notes: tuple[str, ...]


def merge(
    config: MergeConfig,
    out: str | Path,
    *,
    sources: Mapping[str, str] | None = None,
    seed: int = 0,
    threads: int | None = None,
    shard_bytes: int = SHARD_BYTES,
    marks: Mapping[str, str] | None = None,
    report: Report = lambda done, total: None,
) -> Merged:
    """Write the merge that `config` describes as a checkpoint folder at `out`.

    `sources` maps what the configuration calls a model to where its checkpoint is (a folder, a file, a
    model of the local Hub cache); a model not in it is itself a source. `seed` is of the random masks,
    `threads` the workers (default: one a core, at most eight), `report(done, total)` is told bytes written.
    `marks` are small files, text by name, that lie in the folder when it gets its name.
    All is written to `out`.part and renamed when it is whole; whatever happens before leaves nothing.
    Raises KinbaseError, in one line, for parents that do not fit, a full disk, results that are not
    finite; UsageError when `out` exists.
    """
    out = absolute(out)
    part = out.with_name(out.name + ".part")
    refuse_existing(out, part)
    parents: dict[Reference, Parent] = {}
    try:
        licenses, written_as, notes = open_parents(config, sources or {}, parents, report)
        labels: dict[str, str] = {}
        for model, parent in parents.items():
            labels |= zip(filter(None, (model.model, model.lora)), parent.label.split("+"), strict=False)
        planned = targets(config, parents)
        beside.check_vocabularies(config, parents, planned)
        shards = Shards(part, planned, shard_bytes)
        try:
            _make(part, shards.nbytes)
            shards.open()
            from kinbase.merging.streaming import (
                merge_tensors,  # torch takes two seconds: after what can be refused
            )

            merge_tensors(planned, config.method, shards.write, seed=seed, threads=threads, report=report)
            beside.write_beside(part, config, parents, planned)
            beside.write_record(part, out.name, config, labels, written_as, licenses)
            beside.write_marks(part, marks)
            shards.finish()
            shards.close()
            publish(part, out)
        except OSError as error:
            raise cannot_write(out, error) from None
        finally:
            shards.close()
            beside.remove(part)
    finally:
        for parent in parents.values():
            parent.checkpoint.close()
    notes += _left_aside(config)
    return Merged(out, shards.nbytes, len(planned), tuple(notes))


def _left_aside(config: MergeConfig) -> list[str]:
    """Lines on parameters that the method does not read."""
    return [
        f"{config.method} has no parameter {name}: left aside"
        for name in config.ignored
        if name != "int8_mask"
    ]


def refuse_existing(out: Path, part: Path) -> None:
    """Raise UsageError when there is something at `out`; clear away what an interrupted merge left at `part`."""
    if os.path.lexists(out):
        raise UsageError(f"{shown(out)} exists: name a folder that is not there yet")
    if os.path.lexists(part):
        if not beside.is_abandoned(part):
            raise UsageError(f"{shown(part)} is in the way: move it, or name another folder")
        beside.remove(part)


def open_parents(
    config: MergeConfig,
    sources: Mapping[str, str],
    parents: dict[Reference, Parent],
    report: Report = lambda done, total: None,
) -> tuple[list[str | None], dict[str, str], list[str]]:
    """Open every model into `parents`; their licences, what the written configuration calls each, and lines on them.

    Their tensors are under the donor's names and in its layout and, if the configuration says so, order of units.
    """
    licenses: list[str | None] = []
    written_as: dict[str, str] = {}
    wanted = dict.fromkeys(entry.model for part in config.slices for entry in part.inputs)
    wanted |= dict.fromkeys(part.base for part in config.slices if part.base)
    if isinstance(config.tokenizer, Reference):
        wanted.setdefault(config.tokenizer)
    for model in wanted:
        label, checkpoint, said = _opened(model.model, model.revision, sources, written_as)
        parents[model] = opened(label, checkpoint, _config(Path(checkpoint.source)))
        licenses += said
        if checkpoint.delta_of is not None:
            raise KinbaseError(f"{model.model} is an adapter: say BASE+{model.model}")
        if model.lora:
            name, adapter, said = _opened(model.lora, model.lora_revision, sources, written_as)
            licenses += said
            try:
                if adapter.delta_of is None:
                    raise KinbaseError(f"{model.lora} is no adapter: only those are written behind a +")
                both = adapted(checkpoint, adapter, f"{label}+{name}")
            except BaseException:
                adapter.close()
                raise
            parents[model] = opened(f"{label}+{name}", both, _config(Path(checkpoint.source)))
    donor = parents.get(config.donor)
    if donor is not None:
        for model, parent in parents.items():
            parents[model] = in_words_of(donor, parent)
    if len(parents) == 1 and not next(iter(parents)).lora:
        raise KinbaseError(f"there is only {next(iter(parents.values())).label} to merge: list two models")
    notes = []
    if config.is_aligned:
        from kinbase.merging.aligned import in_one_order  # scipy takes half a second

        notes = in_one_order(config, parents, report)
    return licenses, written_as, notes


def _opened(
    label: str, revision: str | None, sources: Mapping[str, str], written_as: dict[str, str]
) -> tuple[str, Checkpoint, list[str | None]]:
    """A model's name, weights and licence. Raises CheckpointError when it has no weights."""
    where = sources.get(label, f"{label}@{revision}" if revision else label)
    source = read(where)
    if source.checkpoint is None:
        raise CheckpointError(f"{label}: {source.last_word or 'it has no weights to merge'}")
    if os.path.lexists(where):
        written_as[label] = str(Path(where).resolve())
    license_ = next((facts.license for _, facts in source.said(Facts) if facts.license), None)
    return _label(label, where, source), source.checkpoint, [license_]


def _label(label: str, where: str, source: Opened) -> str:
    """How messages and the card call a model: by its name if the configuration gives a path."""
    return str(source.name or label) if label == where and os.path.lexists(where) else label


def _config(home: Path) -> dict[str, Any]:
    return read_json(home / "config.json") if is_file(str(home / "config.json")) else {}


def _make(part: Path, nbytes: int) -> None:
    """Create the folder, after looking whether the disk has room."""
    home = part.parent
    while not home.exists():
        home = home.parent
    free = shutil.disk_usage(home).free
    if free < nbytes:
        raise DiskError(
            f"the merge takes {nbytes / 1e9:.1f} GB and {shown(home)} has {free / 1e9:.1f} GB free: "
            "make room, or name another folder"
        )
    part.mkdir(parents=True)


def publish(part: Path, out: Path) -> None:
    """Flush the folder's entries and give it its name, in this order."""
    for file in part.iterdir():
        if file.suffix != ".safetensors":  # these were flushed by who wrote them
            fd = os.open(file, os.O_RDONLY)
            os.fsync(fd)
            os.close(fd)
    _flush(part)
    if os.path.lexists(out):
        raise UsageError(f"{shown(out)} was made by somebody else meanwhile: name another folder")
    part.rename(out)
    _flush(out.parent)


def _flush(folder: Path) -> None:
    fd = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def cannot_write(out: Path, error: OSError) -> DiskError:
    """What to say of a folder of which nothing is left because writing it failed."""
    reason = FULL.get(error.errno or 0, (error.strerror or str(error)).lower())
    hint = "make room and run it again" if error.errno in FULL else "is the folder writable?"
    return DiskError(f"cannot write {shown(out)}: {reason}; nothing is left of the merge, {hint}")
