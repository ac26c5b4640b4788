"""Two models, stored or only lying in a folder, opened to be compared: rows of what differs between them."""

import contextlib
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from kinbase.checkpoint import Checkpoint, Edge, Facts, Score, difference
from kinbase.checkpoint.names import layer_of
from kinbase.checkpoint.open import Opened, read
from kinbase.errors import KinbaseError
from kinbase.ingest.steps import OnProgress
from kinbase.store import Store
from kinbase.store import names as naming
from kinbase.store.places import Told, place_named, told_of

FACTS = ("architecture", "license", "relation", "parameters", "dtype", "created_at")


@dataclass(frozen=True, slots=True)
class Row:
    """One thing in which two models differ, or are equal; the last three are of tensors (`checkpoint.difference`)."""

    part: str
    item: str
    difference: str
    a: str | None = None
    b: str | None = None
    numel: int | None = None
    relative: float | None = None
    max_abs: float | None = None
    changed: float | None = None


@dataclass(slots=True)
class Side:
    """One of the two: what is said of it, where its weights are, and the lines there are to say of it."""

    label: str
    told: Told
    source: str | None = None
    digest: str | None = None
    notes: list[str] = field(default_factory=list)


def differences(
    store: Store, label_a: str, label_b: str, *, on_progress: OnProgress = lambda done, total: None
) -> tuple[list[Row], list[str]]:
    """What differs between two models, equal tensors and tokenizer files among it; and lines on what was not compared.

    A label is a model's name, alias or prefix, or else a path. Raises KinbaseError for one that is neither.
    """
    sides = [_side(store, label) for label in (label_a, label_b)]
    notes = [note for side in sides for note in side.notes]
    rows: list[Row] = []
    if sides[0].digest is not None and sides[0].digest == sides[1].digest:
        notes.append(f"{label_a} and {label_b} have the same weights, by their digest: no tensor was read")
    with contextlib.ExitStack() as opened:
        checkpoints = []
        for side in sides:
            checkpoint, note = _open(side)
            if checkpoint is None:
                notes.append(str(note))
                continue
            opened.callback(checkpoint.close)
            checkpoints.append(checkpoint)
        if len(checkpoints) == 2:
            rows += _files(checkpoints[0], checkpoints[1])
            if sides[0].digest is None or sides[0].digest != sides[1].digest:
                rows += [
                    Row("tensor", t.tensor, t.difference, t.a, t.b, t.numel, t.relative, t.max_abs, t.changed)
                    for t in difference.tensors(checkpoints[0], checkpoints[1], on_progress)
                ]
    return [*_said(sides[0].told, sides[1].told), *rows], notes


def _side(store: Store, label: str) -> Side:
    if store.path.exists():
        with store.reading() as con:
            name = naming.meant(con, label)
            if name is not None:
                source, digest = place_named(con, name)
                return Side(label, told_of(con, name), source, digest)
    if not Path(label).exists():
        if store.path.exists():
            with store.reading() as con:
                naming.resolve(con, label)
        raise KinbaseError(f"{label} is neither a model here nor a folder: name one of them")
    return Side(label, Told(), label)


def _open(side: Side) -> tuple[Checkpoint | None, str | None]:
    """A side's weights, or why there are none; a folder's own words become what is said of it."""
    if side.source is None:
        return (
            None,
            f"{side.label} has no weights here: tensors, configuration and tokenizer were not compared",
        )
    opened = read(side.source)
    if not side.told.facts and not side.told.scores:
        side.told = _told(opened)
    if opened.checkpoint is None:
        return None, f"{side.label}: {opened.last_word or 'it has no weights'}: its tensors were not compared"
    return opened.checkpoint, None


def _told(opened: Opened) -> Told:
    """What the files beside weights say of them."""
    facts = {
        key: str(value)
        for _, said in opened.said(Facts)
        for key in FACTS
        if said.model in (None, opened.name) and (value := getattr(said, key)) is not None
    }
    parents = {
        f"{edge.parent} ({edge.relation})": f"{edge.weight:g}"
        if edge.weight is not None
        else edge.method or "said"
        for _, edge in opened.said(Edge)
        if edge.child in (None, opened.name)
    }
    scores = {
        " ".join(
            str(w) for w in (s.benchmark, s.metric, s.n_shot and f"{s.n_shot}-shot") if w
        ): f"{s.value:.6g}"
        for _, s in opened.said(Score)
        if s.model in (None, opened.name)
    }
    return Told(facts, parents, scores)


def _said(a: Told, b: Told) -> Iterator[Row]:
    for part, left, right in (
        ("fact", a.facts, b.facts),
        ("lineage", a.parents, b.parents),
        ("score", a.scores, b.scores),
    ):
        for item in dict.fromkeys((*left, *right)):
            if left.get(item) != right.get(item):
                yield Row(part, item, _kind(left.get(item), right.get(item)), left.get(item), right.get(item))


def _kind(a: str | None, b: str | None) -> str:
    return "only in b" if a is None else "only in a" if b is None else "changed"


def _files(a: Checkpoint, b: Checkpoint) -> Iterator[Row]:
    try:
        left, right = difference.home(a), difference.home(b)
    except KinbaseError:
        return
    for key, x, y in difference.configs(left, right):
        yield Row("config", key, _kind(x, y), x, y)
    for file, kind, x, y in difference.tokenizers(left, right):
        yield Row("tokenizer", file, kind, x, y)


@dataclass(frozen=True, slots=True)
class Stat:
    """How much of a part, or of the tensors of a layer, is equal; `relative` is a mean over tensors, by elements."""

    part: str
    of: str
    equal: int
    changed: int
    other: int
    relative: float | None = None


def stats(rows: Sequence[Row]) -> list[Stat]:
    """Rows counted: tensors by layer, and all else by part."""
    groups: dict[tuple[str, str], list[Row]] = {}
    for row in rows:
        layer = layer_of(row.item) if row.part == "tensor" else None
        of = f"{layer[0]}.{layer[1]}" if layer else "outside the layers" if row.part == "tensor" else ""
        groups.setdefault((row.part, of), []).append(row)
    return [_stat(part, of, members) for (part, of), members in groups.items()]


def _stat(part: str, of: str, rows: Sequence[Row]) -> Stat:
    equal = sum(row.difference == "equal" for row in rows)
    changed = sum(row.difference in ("changed", "dtype") for row in rows)
    measured = [(row.numel or 0, row.relative) for row in rows if row.relative is not None]
    weight = sum(numel for numel, _ in measured)
    relative = math.sqrt(sum(numel * value**2 for numel, value in measured) / weight) if weight else None
    return Stat(part, of, equal, changed, len(rows) - equal - changed, relative)
