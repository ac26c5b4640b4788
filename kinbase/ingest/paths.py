"""Paths that files name models by, made into names: a path means something to its author alone.

A path that is a source of this import, or the base asked for, is that model; one of a place on this machine is that
place, and the model stored from there. Any other is a place on its author's disk: it becomes a name of the folder that
says it, `./merged#1a2b3c4d`, so that two strangers' ./merged are two models. A parent that a file leaves out, or names
by a path that is nowhere here, is the base asked for, if one is.
"""

import hashlib
import os
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

from kinbase.checkpoint import UNSAID, Alias, Edge, Facts, Record, Score, Table, Training
from kinbase.checkpoint.ids import folded, is_path, last_part
from kinbase.checkpoint.open import Opened
from kinbase.store import Connection
from kinbase.store import names as naming

_TABLES = (".csv", ".tsv", ".parquet", ".jsonl", ".ndjson")
_SCOPED = re.compile(r".*#[0-9a-f]{8}")
_ONE_BASE = ("adapter", "finetune", "quantized", "base")
"""Relations of which a model has one parent, so that --base can stand for it."""


def settled(con: Connection | None, opened: Sequence[Opened], base: str | None) -> list[Opened]:
    """The sources with their paths as names; one whose base nobody says has its weights refused."""
    places: dict[str, str] = {}
    for source in opened:
        if source.name and (source.checkpoint or source.commit or Path(source.source).is_dir()):
            for place in (source.source, os.path.normpath(source.source), _real(Path(source.source))):
                places.setdefault(place, source.name)
    return [_settled(con, source, places, base) for source in opened]


def _settled(con: Connection | None, source: Opened, places: dict[str, str], base: str | None) -> Opened:
    strange: dict[str, str] = {}
    named = {
        last_part(parent).lower(): parent
        for parent in _parents(source.records, "adapter")
        if not is_path(parent)
    }

    def called(label: str, file: str) -> str:
        if not is_path(label) or _SCOPED.fullmatch(label) or Path(file).suffix.lower() in _TABLES:
            return label
        # The folder that an adapter was trained on is what its card calls by its whole name.
        known = _known(con, label, file, places) or named.get(last_part(label.rstrip("/\\")).lower())
        return known or strange.setdefault(label, _scoped(label, file))

    records: list[tuple[str, Record]] = []
    for file, record in _spelled_out(source.records):
        renamed = _renamed(record, partial(called, file=file), strange, base, source.name)
        if renamed:
            records.append((file, renamed))
    checkpoint, refused, notes = source.checkpoint, source.refused, source.notes
    if checkpoint and checkpoint.delta_of is not None:
        onto = checkpoint.delta_of and called(
            checkpoint.delta_of, str(Path(checkpoint.source) / "adapter_config.json")
        )
        if base is not None and (not onto or onto in strange.values()):
            onto = base
        if onto:
            checkpoint = replace(checkpoint, delta_of=onto)
        else:
            refused = (
                f"{source.source} does not say what it adapts: import it again with --base, or write its base's name "
                "as base_model_name_or_path in adapter_config.json"
            )
            notes = (*notes, refused)
            checkpoint.close()
            checkpoint = None
    if strange:
        first = next(iter(strange))
        more = f" (and {len(strange) - 1} more)" if len(strange) > 1 else ""
        notes = (
            *notes,
            f"{first}{more} is a path on its author's disk: it is the model {strange[first]} here",
        )
    notes = (*notes, *_disagreement(records))
    return replace(source, records=tuple(records), checkpoint=checkpoint, refused=refused, notes=notes)


def _parents(records: Iterable[tuple[str, Record]], relation: str) -> list[str]:
    """What the files of a source say that its own model was made from, in one way."""
    edges = (record for _, record in records if isinstance(record, Edge))
    own = (
        edge for edge in edges if edge.child is None and edge.parent and edge.evidence != "config"
    )  # a run may go on from an adapter
    return [edge.parent for edge in own if edge.relation == relation]


def _disagreement(records: Sequence[tuple[str, Record]]) -> Iterator[str]:
    """A line where several models are named as the one that a model adapts, or is a quantised copy of."""
    for relation, what in (("adapter", "what it adapts"), ("quantized", "what it is a quantised copy of")):
        parents = list({folded(parent): parent for parent in _parents(records, relation)}.values())
        if len(parents) > 1:
            yield f"{' and '.join(parents[:3])} are both named as {what}, which can be one: each is kept as stated"


def _spelled_out(said: Iterable[tuple[str, Record]]) -> Iterator[tuple[str, Record]]:
    """What is said; record by record of a table that names models by paths, where its paths are looked at."""
    for file, record in said:
        if isinstance(record, Table) and Path(file).suffix.lower() not in _TABLES:
            from kinbase.checkpoint import tables

            columns = [record.rows[column] for column in tables.MODELS if column in record.rows.columns]
            if any(is_path(label) for column in columns for label in column.unique() if label):
                yield from ((file, one) for one in tables.records(record))
                continue
        yield file, record


def _renamed(
    record: Record,
    called: Callable[[str], str],
    strange: dict[str, str],
    base: str | None,
    subject: str | None,
) -> Record | None:
    """A record with names in the place of paths; None for an edge from a parent that nobody says."""
    if isinstance(record, Edge):
        parent = record.parent and called(record.parent)
        is_nowhere = not parent or (parent in strange.values() and record.child in (None, subject))
        if base is not None and is_nowhere and record.relation in _ONE_BASE:
            said = {"path": record.parent} if record.parent else {}
            strange.pop(record.parent, None)
            return replace(record, parent=base, evidence="user", detail={**record.detail, **said})
        if parent == UNSAID:
            return None
        detail = record.detail if parent == record.parent else {**record.detail, "path": record.parent}
        child = record.child and called(record.child)
        return record if (parent, child) == (record.parent, record.child) else replace(
            record, parent=parent, child=child, detail=detail
        )  # fmt: skip
    if isinstance(record, Facts | Score | Training | Alias) and record.model and is_path(record.model):
        return replace(record, model=called(record.model))
    return record


def _known(con: Connection | None, label: str, file: str, places: dict[str, str]) -> str | None:
    """The model at a path: a source of this import as it was typed or lies, or a place on this machine."""
    typed = os.path.normpath(label)
    if label in places or typed in places:
        return places.get(label) or places[typed]
    plain = label.removeprefix("file://")
    at = Path(plain) if Path(plain).is_absolute() else _home(file) / plain
    real = _real(at)
    if real in places:
        return places[real]
    if not os.path.lexists(real):
        return None
    stored = naming.find(con, real) if con is not None else None
    return naming.name_of(con, stored) if con is not None and stored is not None else real


def _real(path: Path) -> str:
    try:
        return os.path.realpath(path)
    except (OSError, ValueError):  # a loop of links, or a NUL
        return str(path)


def _home(file: str) -> Path:
    """The folder of what says a path: a file, or a folder as a whole."""
    try:
        return Path(file) if Path(file).is_dir() else Path(file).parent
    except (OSError, ValueError):  # too long, or a NUL
        return Path(file).parent


def _scoped(label: str, file: str) -> str:
    """The name of a path that only its author knows: of the folder, or the page, of the file that says it."""
    where = file if "://" in file or file.startswith("hf:") else _real(_home(file))
    return f"{label}#{hashlib.sha256(f'{where} {label}'.encode('utf-8', 'replace')).hexdigest()[:8]}"
