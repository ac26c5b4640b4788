"""What a source holds: the importer that recognises it opens it, and the records beside its weights."""

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache
from importlib.metadata import entry_points
from pathlib import Path
from types import ModuleType
from typing import TypeVar

from kinbase.checkpoint import (
    Alias,
    Checkpoint,
    Commit,
    Edge,
    Facts,
    Problem,
    Record,
    Row,
    Score,
    Table,
    Training,
)
from kinbase.checkpoint.authority import within_their_right
from kinbase.checkpoint.guard import watched
from kinbase.checkpoint.own_name import without_itself
from kinbase.checkpoint.subjects import WEIGHTS, are_unnamed, renamed, said_of, subject, told_of_folder
from kinbase.errors import CheckpointError, KinbaseError, WeightsRefused

MANIFEST = "kinbase.json"
"""What tells a folder that holds a whole database, as `kinbase export` writes it."""

Kind = TypeVar("Kind")
Tell = Callable[[str, int, int], None]
"""Told what is going on, and how much of how much is done (0 of 0: not known)."""

Known = Callable[[Commit], tuple[str, bool]]
"""What to call a version of a model that lies elsewhere, and whether nothing more need be read of it."""


def as_called(commit: Commit) -> tuple[str, bool]:
    """A `Known` that knows nothing: every version is called as its site calls the model, and is to be read."""
    return commit.model, False


@dataclass(frozen=True, slots=True)
class Opened:
    """One source as it was opened: the first of the steps that an import takes (kinbase.ingest.steps).

    `records` are pairs of the file that said something beside the weights and what it said. `notes` are lines for the person, and
    `problem` says in one why nothing can be had of the source, None where something can. `importer` is set for
    what lies elsewhere, `commit` where it has versions; `is_unchanged` says that the version is stored already and
    that no more was read of it; `is_renamed` that a person chose the name. `refused` says why the weights were not
    read of a source of which all else is kept.
    """

    source: str
    name: str | None = None
    is_renamed: bool = False
    checkpoint: Checkpoint | None = None
    records: tuple[tuple[str, Record], ...] = ()
    notes: tuple[str, ...] = ()
    problem: str | None = None
    importer: ModuleType | None = None
    commit: Commit | None = None
    is_unchanged: bool = False
    refused: str | None = None

    def said(self, kind: type[Kind]) -> list[tuple[str, Kind]]:
        """The records of one kind, with the file each comes from; rows of tables as records too."""
        if not any(isinstance(record, Table) and record.kind is kind for _, record in self.records):
            return [(file, record) for file, record in self.records if isinstance(record, kind)]
        from kinbase.checkpoint import tables

        return [
            (file, one)
            for file, record in self.records
            for one in (tables.records(record) if isinstance(record, Table) else [record])
            if isinstance(one, kind)
        ]

    def told(self, kind: type[Row]) -> dict[str, Table]:
        """The records of one kind as one table a file."""
        from kinbase.checkpoint import tables

        by_file: dict[str, list[Row | Table]] = {}
        for file, record in self.records:
            if isinstance(record, kind) or (isinstance(record, Table) and record.kind is kind):
                by_file.setdefault(file, []).append(record)
        return {file: tables.gathered(kind, said) for file, said in by_file.items()}

    @property
    def last_word(self) -> str | None:
        """Why there is nothing in it, or else the last line there is on it."""
        return self.problem or (self.notes[-1] if self.notes else None)

    def close(self) -> None:
        """Release the files of the weights."""
        if self.checkpoint:
            self.checkpoint.close()


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
    known: Known = as_called,
    tell: Tell = lambda what, done, total: None,
) -> Opened:
    """Open a source with the importer that recognises it, and the records that lie beside its weights.

    `depth` is how much is read of what lies elsewhere: metadata, sample, stream, whole, or kept (nothing but
    what is on this machine already). A source that cannot be read has its `problem`.
    """
    if importer := elsewhere(source):
        return _read_elsewhere(source, name, importer, depth, known, tell)
    try:
        return _read_here(source, name, depth)
    except KinbaseError as error:
        return Opened(source, problem=str(error))
    except OSError as error:
        return Opened(source, problem=f"{source} cannot be read: {error.strerror or error}")


def _read_here(source: str, name: str | None, depth: str) -> Opened:
    """`read` of what is on this machine; raises CheckpointError when there is nothing in it, and OSError."""
    yielded, refused = _open_part(source, importers())
    if refused and depth == "kept":
        raise refused
    checkpoint = next((r for _, r in yielded if isinstance(r, Checkpoint)), None)
    try:
        records = [said for said in yielded if not isinstance(said[1], Checkpoint)]
        records += _beside(source, checkpoint, depth, is_recognised=bool(yielded) or refused is not None)
        if refused and not any(_tells(record) for _, record in records):
            raise refused
        if name and not checkpoint:
            records = renamed(records, name)
        elif not checkpoint:
            records += told_of_folder(Path(source), records)
        model = name or (checkpoint.name if checkpoint else subject(Path(source)))
        has_weights = checkpoint is not None or _holds_weights(Path(source))
        records = within_their_right(without_itself(records, model), model, beside_weights=has_weights)
        opened = Opened(
            source,
            model,
            is_renamed=name is not None,
            checkpoint=checkpoint,
            records=tuple(records),
            notes=tuple(
                [record.message for _, record in records if isinstance(record, Problem)]
                + ([str(refused)] if refused else [])
            ),
            refused=str(refused) if refused else None,
        )
        if checkpoint and name:
            checkpoint.name = name
        _refuse_unnamed(opened)
    except BaseException:
        if checkpoint:
            checkpoint.close()
        raise
    return opened


def _beside(
    source: str, checkpoint: Checkpoint | None, depth: str, *, is_recognised: bool
) -> list[tuple[str, Record]]:
    """The records in the folder of a source; raises CheckpointError for a source of which nothing can be had."""
    path = Path(source)
    folder = Path(checkpoint.source) if checkpoint else path
    if checkpoint and folder.exists():
        # What is stored must be found again from any folder.
        checkpoint.source = str(folder.absolute())
    beside: list[tuple[str, Record]] = []
    if folder.is_dir() and depth == "kept" and checkpoint:
        return []  # a stored model is opened for its weights: what lies beside them is stored too
    if folder.is_dir():
        beside = _read_beside(folder, importers(), has_weights=checkpoint is not None)
    elif not is_recognised:
        raise CheckpointError(
            f"no importer knows what {source} is: `kinbase import --help` lists what can be read"
            if path.exists()
            else f"{source} does not exist: give a checkpoint folder or file, or a model in the local Hub cache"
        )
    said = _advice(source, importers()) if path.is_dir() and not is_recognised else None
    if said:
        if not beside:
            raise CheckpointError(said)
        beside.append((source, Problem(said)))
    if not is_recognised and not beside:
        raise CheckpointError(
            f"{source} holds neither weights (*.safetensors, pytorch_model.bin, adapter_model.safetensors) nor "
            "records (card, config, results, tables): is it the right folder?"
        )
    return beside


def _advice(source: str, known: Iterable[ModuleType]) -> str | None:
    """What an importer says of a source from which no model can be read: its optional `advice`."""
    said = (module.advice(source) for module in known if hasattr(module, "advice"))
    return next((line for line in said if line), None)


def _read_elsewhere(
    source: str, name: str | None, importer: ModuleType, depth: str, known: Known, tell: Tell
) -> Opened:
    """As `read`; stops at the version it is where that is known."""
    # An address may hold a signature or a password, which is neither shown nor stored.
    public = importer.public(source) if hasattr(importer, "public") else source
    opened = Opened(public, name, is_renamed=name is not None, importer=importer)
    said = public  # who says what is said: the model's page, whatever its version
    records: list[tuple[str, Record]] = []
    notes: list[str] = []
    problem: str | None = None
    try:
        try:
            for record in _yielded(importer, public, source, depth, tell):
                if isinstance(record, Commit):
                    label, is_unchanged = known(record)
                    if is_unchanged:
                        return replace(opened, name=label, commit=record, is_unchanged=True)
                    opened = replace(opened, name=name or label, commit=record)
                    if opened.name != record.model and not name:
                        notes.append(f"another version of {record.model} is here: this one is {label}")
                    said = f"{public.partition(':')[0]}:{opened.name}"
                    record = Alias(f"{record.model}@{record.commit}", kind="revision")
                elif isinstance(record, Alias) and record.kind == "redirect" and notes:
                    continue  # the other version keeps the old name
                elif isinstance(record, Problem):
                    notes.append(record.message)
                elif isinstance(record, Checkpoint):
                    record.name = opened.name or record.name
                    opened = replace(opened, name=record.name, checkpoint=record)
                    continue
                records.append((said, record))
        except WeightsRefused as error:
            opened.close()
            called = opened.name or Path(public.rstrip("/")).name
            opened = replace(opened, name=called, checkpoint=None, refused=str(error))
            notes.append(str(error))
        kept = without_itself(records, opened.name)
        kept = within_their_right(kept, opened.name, beside_weights=opened.commit is not None)
        notes += [each.message for _, each in kept if isinstance(each, Problem) and each.message not in notes]
        records = kept
        _refuse_unnamed(replace(opened, records=tuple(records)))
    except KinbaseError as error:
        opened.close()
        opened = replace(opened, checkpoint=None)
        problem = str(error)
    return replace(opened, records=tuple(records), notes=tuple(notes), problem=problem)


def _yielded(importer: ModuleType, shown_as: str, *asked: object) -> Iterator[Record]:
    """What an importer yields; whatever it raises is a CheckpointError, so that the other sources go on."""
    try:
        yield from importer.open(*asked)
    except (KinbaseError, KeyboardInterrupt, SystemExit, GeneratorExit):
        raise
    except OSError as error:
        where = f" ({error.filename})" if error.filename and str(error.filename) != shown_as else ""
        raise CheckpointError(f"{shown_as} cannot be read: {error.strerror or error}{where}") from error
    except MemoryError as error:
        raise CheckpointError(f"{shown_as} cannot be read: it takes more memory than there is") from error
    except BaseException as error:  # a panic of a library in Rust is no Exception
        words = " ".join(str(error).split())
        raise CheckpointError(
            f"{shown_as} cannot be read: {importer.__name__} failed ({type(error).__name__}: {words[:200]}); "
            "that is an error of this importer: please report it"
        ) from error


def _open_part(
    source: str, known: Iterable[ModuleType]
) -> tuple[list[tuple[str, Record]], CheckpointError | None]:
    """What an importer yields of a source before it has to refuse its weights, if it has to, and the refusal."""
    records: list[tuple[str, Record]] = []

    def take() -> None:
        if importer := next((importer for importer in known if importer.recognises(source)), None):
            records.extend((source, record) for record in _yielded(importer, source, source))

    try:
        watched(take, source)
    except CheckpointError as error:
        for _, record in records:
            if isinstance(record, Checkpoint):
                record.close()
        return [said for said in records if not isinstance(said[1], Checkpoint)], error
    return records, None


def _tells(record: Record) -> bool:
    """Whether a record is worth keeping where the weights are refused: a claim, a score, or a fact of a card."""
    if isinstance(record, Table):
        if record.kind is Facts:
            return "license" in record.rows.columns and bool(record.rows["license"].is_not_null().any())
        return record.kind in (Edge, Score, Training) and not record.rows.is_empty()
    return isinstance(record, Edge | Score | Training) or (
        isinstance(record, Facts) and record.license is not None
    )


def _open(source: str, known: Iterable[ModuleType]) -> list[tuple[str, Record]]:
    """What the importer that recognises a source yields of it, all or nothing; raises CheckpointError."""
    records, refused = _open_part(source, known)
    if refused:
        raise refused
    return records


def _read_beside(folder: Path, known: Sequence[ModuleType], *, has_weights: bool) -> list[tuple[str, Record]]:
    """The records of every file directly in `folder` (and of .eval_results) that is not weights.

    A link that leaves the folder is not followed, but for the Hub cache's own, which lead to its blobs. Several merge
    configurations are several merges, called after their files, but for the one that bears mergekit's name. Where
    there are no other weights, each GGUF file is a model of its own, `folder/file.gguf`.
    """
    real = folder.resolve()
    homes = [real, real.parents[1] / "blobs"] if real.parent.name == "snapshots" else [real]
    files = [*sorted(folder.iterdir()), *sorted(folder.glob(".eval_results/*"))]
    said: dict[Path, list[tuple[str, Record]]] = {}
    for path in files:
        inside = any(path.resolve().is_relative_to(home) for home in homes)
        is_model = path.suffix.lower() == ".gguf" and not has_weights and not _LATER_PART.search(path.name)
        if inside and path.is_file() and (is_model or path.suffix.lower() not in WEIGHTS):
            try:
                said[path] = _open(str(path), known)
            except CheckpointError as error:  # a card that cannot be read does not keep the weights out
                said[path] = [(str(path), Problem(str(error)))]
            if is_model:
                said[path] = said_of(said[path], f"{folder.absolute().name}/{path.name}")
    merges = [path for path, records in said.items() if any(_is_recipe(record) for _, record in records)]
    own = [path for path in merges if path.stem.startswith("mergekit")]
    if len(merges) > 1:
        for path in merges:
            if own != [path]:
                said[path] = said_of(said[path], path.stem)
    return [record for records in said.values() for record in records]


_LATER_PART = re.compile(r"-(?!0*1-of-)\d{5}-of-\d{5}\.gguf$", re.IGNORECASE)


def _is_recipe(record: Record) -> bool:
    """Whether a record is a merge configuration's claim on the model it lies beside."""
    return (
        isinstance(record, Edge)
        and record.child is None
        and record.evidence == "config"
        and record.relation in ("merge", "base")
        and record.method is not None
    )


def _holds_weights(path: Path) -> bool:
    """Whether a folder holds weights, though perhaps none that are read; a file of records does not."""
    return path.is_dir() and any(each.suffix.lower() in WEIGHTS for each in path.iterdir())


def _refuse_unnamed(opened: Opened) -> None:
    if opened.name is None and are_unnamed(opened.records):
        raise CheckpointError(f"{opened.source} does not say which model it speaks of: name it with --name")
