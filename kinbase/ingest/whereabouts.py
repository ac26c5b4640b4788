"""Where the files of stored models are now: as they were, changed, gone, or found again by their content."""

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from kinbase.checkpoint import FileStamp
from kinbase.checkpoint.open import Opened, read
from kinbase.errors import KinbaseError
from kinbase.ingest.steps import OnProgress
from kinbase.store import Store, journal
from kinbase.store import kinship as sums
from kinbase.store.places import StoredPlace, put_place, stored_places

DEEPEST = 8
"""Folders below a folder that is searched."""

WEIGHTS = (".safetensors", ".bin", ".pt", ".pth", ".gguf")


@dataclass(frozen=True, slots=True)
class Whereabouts:
    """Where a model's weights are: there, moved, changed, gone or elsewhere; and what is to be done, if anything."""

    model: str
    state: str
    source: str | None
    advice: str | None = None


def whereabouts(
    store: Store,
    relocate: str | None = None,
    *,
    on_progress: OnProgress = lambda done, total: None,
    log: Callable[[str], None] = lambda line: None,
) -> list[Whereabouts]:
    """The state of every model with weights, by name.

    With `relocate`, what is gone or changed is looked for under that folder: whatever has as many bytes of weights is
    read, and what has the model's digest is its place from now on. Raises KinbaseError when there is no such folder.
    """
    with store.reading() as con:
        stored = stored_places(con)
    found = [_state(model) for model in stored]
    if relocate is None:
        return found
    if not Path(relocate).is_dir():
        raise KinbaseError(f"{relocate} is no folder: name one to look for models in")
    missing = {m.name: m for m, at in zip(stored, found, strict=True) if at.state in ("gone", "changed")}
    places = _search(store, Path(relocate), missing, on_progress, log)
    if places:
        with store.writing() as con, journal.act(con, "status", f"--relocate {relocate}"):
            for name, place in places.items():
                put_place(con, missing[name].model_id, place.source, place.files)
    return [
        replace(at, state="moved", source=places[at.model].source, advice=_advice(model))
        if at.model in places
        else at
        for model, at in zip(stored, found, strict=True)
    ]


def _state(model: StoredPlace) -> Whereabouts:
    if model.files and all(file.elsewhere for file in model.files):
        return Whereabouts(model.name, "elsewhere", model.source, _advice(model))
    there = [file for file in model.files if Path(file.path).exists()]
    if len(there) < len(model.files) or not model.files:
        return Whereabouts(
            model.name,
            "gone",
            model.source,
            "find it with --relocate FOLDER, or import it again: it keeps its row",
        )
    if not all(file.as_it_was for file in model.files):
        return Whereabouts(
            model.name, "changed", model.source,
            "import it again: the same weights keep their row, new ones take it with --replace",
        )  # fmt: skip
    return Whereabouts(model.name, "there", model.source, _advice(model))


def _advice(model: StoredPlace) -> str | None:
    """What has to be measured of a model whose files are known."""
    if model.to_reread:
        return "import it again: it was read by a version that did not cover all its files hold"
    if model.is_unmeasured:
        return f"`kinbase kin {model.name}` measures it against its base"
    return None


@dataclass(frozen=True, slots=True)
class _Place:
    source: str
    files: tuple[FileStamp, ...]


def _search(
    store: Store,
    folder: Path,
    missing: dict[str, StoredPlace],
    on_progress: OnProgress,
    log: Callable[[str], None],
) -> dict[str, _Place]:
    """Where missing models are below a folder, by their digests; what cannot be read is logged and passed over."""
    from kinbase.ingest.family_pass import measure

    sizes = {model.nbytes for model in missing.values()}
    by_digest = {model.digest: model.name for model in missing.values()}
    places: dict[str, _Place] = {}
    for source in _sources(folder):
        if len(places) == len(missing):
            break
        opened = read(source)
        try:
            checkpoint = opened.checkpoint
            if checkpoint is None:
                if opened.problem and _is_model(opened):
                    log(opened.problem)
                continue
            if checkpoint.nbytes not in sizes and checkpoint.delta_of is None:
                continue
            try:
                family = measure(store, checkpoint, hash_base=True, device="cpu", on_progress=on_progress)
            except KinbaseError as error:
                log(str(error))
                continue
            name = by_digest.get(family.digests[checkpoint.name])
            family.dots.close()
            with store.writing() as con:
                sums.drop_kept(con, family.key)
            if name is not None and name not in places:
                places[name] = _Place(checkpoint.source, tuple(checkpoint.files))
        finally:
            opened.close()
    return places


def _is_model(opened: Opened) -> bool:
    return Path(opened.source).suffix in WEIGHTS


def _sources(folder: Path) -> Iterator[str]:
    """Folders and files below a folder that may hold a model's weights; links are not followed."""
    for home, folders, files in os.walk(folder):
        depth = len(Path(home).relative_to(folder).parts)
        folders[:] = sorted(f for f in folders if not f.startswith(".")) if depth < DEEPEST else []
        names = set(files)
        weights = sorted(name for name in names if Path(name).suffix in WEIGHTS)
        if not weights:
            continue
        yield home
        if not names & {"config.json", "adapter_config.json"}:
            yield from (str(Path(home, name)) for name in weights)
