"""What a source holds: the importer that recognises it opens it, and the records beside its weights."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from importlib.metadata import entry_points
from pathlib import Path
from types import ModuleType
from typing import TypeVar

from kinbase.checkpoint import Alias, Checkpoint, Commit, Edge, Facts, Problem, Record, Score, Training
from kinbase.errors import CheckpointError, KinbaseError

WEIGHTS = (".safetensors", ".bin", ".pt", ".pth", ".gguf")
"""Files of a checkpoint folder that hold weights, not records beside them."""

MANIFEST = "kinbase.json"
"""What tells a folder that holds a whole database, as `kinbase export` writes it."""

Kind = TypeVar("Kind")
Tell = Callable[[str, int, int], None]
"""Told what is going on, and how much of how much is done (0 of 0: not known)."""

Known = Callable[[Commit], tuple[str, bool]]
"""What to call a version of a model that lies elsewhere, and whether nothing more need be read of it."""


@dataclass(slots=True)
class Source:
    """One source: what it holds, and what became of it.

    `status` is imported, unchanged, alias, records, metadata, sampled or failed. `records` are pairs of the
    file that said something and what it said. `notes` are lines for the person. `importer` is set for what lies
    elsewhere, `commit` where it has versions.
    """

    source: str
    name: str | None = None
    renamed: bool = False  # whether a person chose the name
    checkpoint: Checkpoint | None = None
    records: list[tuple[str, Record]] = field(default_factory=list)
    base: str | None = None
    status: str = ""
    notes: list[str] = field(default_factory=list)
    importer: ModuleType | None = None
    commit: Commit | None = None
    # Stored already, and read again for what earlier versions did not take from its weights.
    again: bool = False

    def fail(self, error: Exception) -> None:
        """Take the source out, for a reason."""
        self.status = "failed"
        self.notes.append(str(error))

    @property
    def arriving(self) -> bool:
        """Whether it has weights that are still to be measured."""
        return self.checkpoint is not None and not self.status

    def said(self, kind: type[Kind]) -> list[tuple[str, Kind]]:
        """The records of one kind, with the file each comes from."""
        return [(file, record) for file, record in self.records if isinstance(record, kind)]


def is_whole(source: str) -> bool:
    """Whether `source` is a folder that holds a whole exported database."""
    return Path(source, MANIFEST).is_file() and Path(source, "model.parquet").is_file()


@cache
def importers() -> list[ModuleType]:
    """The installed importers by name, in-tree ones and plug-ins alike."""
    return [
        point.load()
        for point in sorted(entry_points(group="kinbase.importers"), key=lambda point: point.name)
    ]


def elsewhere(source: str) -> ModuleType | None:
    """The importer of a source that is not on this machine; None for any other."""
    return next((m for m in importers() if hasattr(m, "DEPTHS") and m.recognises(source)), None)


def read(
    source: str,
    name: str | None = None,
    *,
    depth: str = "whole",
    known: Known = lambda commit: (commit.model, False),
    tell: Tell = lambda what, done, total: None,
) -> Source:
    """Open a source with the importer that recognises it, and the records that lie beside its weights.

    `depth` is how much is read of what lies elsewhere: metadata, sample, stream, whole, or kept (nothing but
    what is on this machine already).
    """
    if importer := elsewhere(source):
        return _read_elsewhere(source, name, importer, depth, known, tell)
    result = Source(source)
    path = Path(source)
    try:
        known_importers = importers()
        result.records = _open(source, known_importers)
        result.checkpoint = next((r for _, r in result.records if isinstance(r, Checkpoint)), None)
        folder = Path(result.checkpoint.source) if result.checkpoint else path
        if result.checkpoint and folder.exists():
            # What is stored must be found again from any folder.
            result.checkpoint.source = str(folder.absolute())
        if folder.is_dir() and depth == "kept" and result.checkpoint:
            pass  # a stored model is opened for its weights: what lies beside them is stored too
        elif folder.is_dir():
            result.records += _read_beside(folder, known_importers)
        elif not result.records:
            raise CheckpointError(
                f"no importer knows what {source} is: `kinbase import --help` lists what can be read"
                if path.exists()
                else f"{source} does not exist: give a checkpoint folder or file, or a model in the local Hub cache"
            )
        if not result.records:
            raise CheckpointError(
                f"{source} holds neither weights (*.safetensors, pytorch_model.bin, adapter_model.safetensors) nor "
                "records (card, config, results, tables): is it the right folder?"
            )
        if name and not result.checkpoint:
            result.records = _renamed(result.records, name)
        result.name = name or (result.checkpoint.name if result.checkpoint else _subject(path))
        result.renamed = name is not None
        if result.checkpoint and name:
            result.checkpoint.name = name
        result.notes = [record.message for _, record in result.records if isinstance(record, Problem)]
        _refuse_unnamed(result)
    except KinbaseError as error:
        result.fail(error)
    except OSError as error:
        result.fail(CheckpointError(f"{source} cannot be read: {error.strerror or error}"))
    return result


def _read_elsewhere(
    source: str, name: str | None, importer: ModuleType, depth: str, known: Known, tell: Tell
) -> Source:
    """As `read`; stops at the version it is where that is known."""
    # An address may hold a signature or a password, which is neither shown nor stored.
    public = importer.public(source) if hasattr(importer, "public") else source
    result = Source(public, name, renamed=name is not None, importer=importer)
    said = public  # who says what is said: the model's page, whatever its version
    try:
        for record in importer.open(source, depth, tell):
            if isinstance(record, Commit):
                result.commit = record
                label, unchanged = known(record)
                if unchanged:
                    result.name, result.status = label, "unchanged"
                    return result
                result.name = name or label
                if result.name != record.model and not name:
                    result.notes.append(f"another version of {record.model} is here: this one is {label}")
                said = f"{public.partition(':')[0]}:{result.name}"
                record = Alias(f"{record.model}@{record.commit}", kind="revision")
            elif isinstance(record, Alias) and record.kind == "redirect" and result.notes:
                continue  # the other version keeps the old name
            elif isinstance(record, Problem):
                result.notes.append(record.message)
            elif isinstance(record, Checkpoint):
                result.checkpoint = record
                result.name = record.name = result.name or record.name
            result.records.append((said, record))
        _refuse_unnamed(result)
    except KinbaseError as error:
        if result.checkpoint:
            result.checkpoint.close()
            result.checkpoint = None
        result.fail(error)
    return result


def _open(source: str, known: Iterable[ModuleType]) -> list[tuple[str, Record]]:
    importer = next((importer for importer in known if importer.recognises(source)), None)
    return [(source, record) for record in importer.open(source)] if importer else []


def _read_beside(folder: Path, known: Sequence[ModuleType]) -> list[tuple[str, Record]]:
    """The records of every file directly in `folder` (and of .eval_results) that is not weights.

    A link that leaves the folder is not followed, but for the Hub cache's own, which lead to its blobs.
    """
    real = folder.resolve()
    homes = [real, real.parents[1] / "blobs"] if real.parent.name == "snapshots" else [real]
    files = [*sorted(folder.iterdir()), *sorted(folder.glob(".eval_results/*"))]
    found: list[tuple[str, Record]] = []
    for path in files:
        inside = any(path.resolve().is_relative_to(home) for home in homes)
        if inside and path.is_file() and path.suffix.lower() not in WEIGHTS:
            try:
                found += _open(str(path), known)
            except CheckpointError as error:  # a card that cannot be read does not keep the weights out
                found.append((str(path), Problem(str(error))))
    return found


def _renamed(found: list[tuple[str, Record]], name: str) -> list[tuple[str, Record]]:
    """The records of a source that speaks of one model, under another name for it; others as they are."""
    labels = {record.model for _, record in found if isinstance(record, Facts | Score) and record.model}
    labels |= {record.child for _, record in found if isinstance(record, Edge) and record.child}
    if len(labels) != 1:
        return found
    changed: list[tuple[str, Record]] = []
    for file, record in found:
        if isinstance(record, Edge):
            record = replace(record, child=name)
        elif isinstance(record, Facts | Score):
            record = replace(record, model=name)
        changed.append((file, record))
    return changed


def _subject(path: Path) -> str | None:
    """The model that records without a name speak of: their folder's, as in a checkpoint; a GGUF file is one itself."""
    path = path.resolve()
    return path.stem if path.suffix.lower() in WEIGHTS else path.name if path.is_dir() else path.parent.name


def _refuse_unnamed(source: Source) -> None:
    silent = (
        (isinstance(r, Edge) and r.child is None)
        or (isinstance(r, Score | Facts | Training) and r.model is None)
        for _, r in source.records
    )
    if source.name is None and any(silent):
        raise CheckpointError(f"{source.source} does not say which model it speaks of: name it with --name")
