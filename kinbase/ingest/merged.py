"""A merge of models that a database knows: their names become checkpoints, and the child is imported.

The merging itself is `kinbase.merging`, which knows no database; the file is closed while it works.
"""

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from kinbase import merging
from kinbase.checkpoint.files import absolute, read_bounded
from kinbase.checkpoint.open import importers
from kinbase.errors import CheckpointError, KinbaseError, UsageError
from kinbase.ingest.pipeline import import_sources
from kinbase.ingest.steps import ImportOptions, OnProgress, Outcome
from kinbase.merging import MergeConfig, Merged
from kinbase.store import Store
from kinbase.store import names as naming

BACKENDS = ("kinbase", "mergekit")
MARK = ".kinbase-merge"
"""The file that says that a folder is whole and not imported yet, and which merge it is of."""


def read(
    config: str | Path | Mapping[str, object], backend: str, *, align: bool | Sequence[str | Path] = False
) -> MergeConfig:
    """A configuration from a YAML file or plain values, or MODEL+ADAPTER, as strictly as the backend wants.

    `align`: as if it said so, by files if some are given. Raises KinbaseError for what it does not understand.
    """
    wanted = _read(config, backend)
    if align is False:
        return wanted
    if backend != "kinbase":
        raise UsageError(f"{backend} aligns no units: leave out --align, or merge with the backend kinbase")
    files = [] if align is True else [str(absolute(file)) for file in align]
    return merging.parse({**wanted.document, "align": files or True})


def _read(config: str | Path | Mapping[str, object], backend: str) -> MergeConfig:
    if backend not in BACKENDS:
        raise UsageError(f"there is no merge backend {backend!r}: choose of {', '.join(BACKENDS)}")
    if isinstance(config, Mapping):
        return merging.parse(config, any_method=backend == "mergekit")
    if "+" in str(config) and not os.path.lexists(config):
        one = {"model": str(config), "parameters": {"weight": 1.0}}
        return merging.parse({"merge_method": "linear", "models": [one]}, any_method=backend == "mergekit")
    return merging.load(config, any_method=backend == "mergekit")


def located(store: Store, labels: tuple[str, ...]) -> dict[str, str]:
    """Where the checkpoint of each model is: a path, a source of some importer, or what the database says.

    Raises KinbaseError for a model that is none of these, naming near ones, or that has no weights.
    """
    places = {label: str(Path(label).resolve()) for label in labels if os.path.lexists(label)}
    unknown = [label for label in labels if label not in places]
    if unknown and store.path.exists():
        with store.reading() as con:
            stored = {member.name: member.source for member in naming.members(con)}
            for label in unknown:
                name = naming.meant(con, label)
                if name is None and not _is_source(label):
                    naming.resolve(con, label)
                if name is not None and name not in stored and not _is_source(label):
                    raise KinbaseError(
                        f"{name} is known by name only: import its checkpoint before it is merged"
                    )
                if name in stored:
                    places[label] = stored[name]
    for label in unknown:
        if label not in places and not _is_source(label):
            raise KinbaseError(
                f"there is no model {label!r}: give its folder, or import it and give its name"
            )
    return places


def _is_source(label: str) -> bool:
    return any(importer.recognises(label) for importer in importers())


def refuse_namesake(store: Store, name: str) -> None:
    """Raise KinbaseError when the child's name is another model's: before it is made, not after."""
    if store.path.exists():
        with store.reading() as con:
            known = naming.find(con, name)
            if known is not None and naming.name_of(con, known) in {
                member.name for member in naming.members(con)
            }:
                raise KinbaseError(
                    f"there is a model {name!r} already: name another folder, or the child with --name"
                )


def merge(
    config: MergeConfig,
    out: str | Path,
    places: Mapping[str, str],
    backend: str,
    seed: int,
    on_progress: OnProgress,
) -> Merged:
    """Run one merge by a backend; nothing is done when `is_unfinished` says that the folder is whole already.

    The folder says that it is not finished until `finish` is called.
    """
    if is_unfinished(config, out, places, backend, seed):
        size = sum(file.stat().st_size for file in Path(out).glob("*.safetensors"))
        return Merged(
            absolute(out), size, None, ("it was merged before and not finished: the folder was whole",)
        )
    marks = {MARK: _mark(config, places, backend, seed)}
    if backend == "mergekit":
        from kinbase.merging import mergekit

        return mergekit.merge(config, out, sources=places, seed=seed, marks=marks)
    return merging.merge(config, out, sources=places, seed=seed, marks=marks, report=on_progress)


def is_unfinished(
    config: MergeConfig, out: str | Path, places: Mapping[str, str], backend: str, seed: int
) -> bool:
    """Whether this very merge, of the same files, wrote the folder whole and was cut off before it was imported."""
    try:
        return read_bounded(absolute(out) / MARK, 1024).decode() == _mark(config, places, backend, seed)
    except (CheckpointError, UnicodeError):
        return False


def finish(merged: Merged) -> None:
    """Take the mark away: the child is what it was made for."""
    with suppress(OSError):
        (merged.folder / MARK).unlink(missing_ok=True)


def _mark(config: MergeConfig, places: Mapping[str, str], backend: str, seed: int) -> str:
    """A digest of what is merged: the configuration, and the files of its models as they are."""
    stamps = {}
    for label, place in places.items():
        path = Path(place)
        files = sorted(path.iterdir()) if path.is_dir() else [path] if path.is_file() else []
        stamps[label] = [(f.name, f.stat().st_size, f.stat().st_mtime_ns) for f in files if f.is_file()]
    told = json.dumps([config.document, dict(places), stamps, backend, seed], sort_keys=True, default=str)
    return hashlib.sha256(told.encode("utf-8", "surrogatepass")).hexdigest() + "\n"


def record(store: Store, merged: Merged, places: Mapping[str, str], options: ImportOptions) -> Outcome:
    """Import a child; parents that the database does not have yet come in with it, without their weights.

    Raises KinbaseError when the child cannot be imported; its folder stays.
    """
    known: set[str] = set()
    if store.path.exists():
        with store.reading() as con:
            known = {place for place in places.values() if naming.find(con, place) is not None}
    strangers = [place for place in dict.fromkeys(places.values()) if place not in known]
    for place in strangers:
        import_sources(store, [place], ImportOptions(is_metadata_only=True))
    (child,) = import_sources(store, [str(merged.folder)], options)
    if child.is_failed:
        raise KinbaseError(f"{merged.folder} was made, but not imported: {child.notes[-1]}")
    return replace(child, notes=(*merged.notes, *child.notes))
