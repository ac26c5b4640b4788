"""The kinship passes of one import: one over each family, and one reading of whatever has no base."""

from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING

from kinbase.checkpoint import Checkpoint, Tensor
from kinbase.checkpoint.open import Source
from kinbase.errors import CheckpointError, KinbaseError
from kinbase.ingest.bases import groups, reading
from kinbase.ingest.stored import (
    Report,
    Stored,
    open_members,
    open_stored,
    stored_family,
    whole,
    without_unreadable,
)
from kinbase.store import Store, sketches
from kinbase.store import kinship as sums
from kinbase.store import names as naming

if TYPE_CHECKING:  # the pass costs half a second of imports, which records alone need not pay
    from kinbase.kinship.sums import FamilySums


def measure_families(
    store: Store, found: list[Source], first: Stored | None,
    *, kinship: bool, sketch: bool, device: str, depth: str, report: Report,
) -> "list[FamilySums]":  # fmt: skip
    """One pass a family; whatever has no base, or whose base cannot be read, is read by itself alone.

    `first` is what is stored of the first family; of the next ones it is read when their turn comes, which may be
    hours later.
    """
    from kinbase.ingest.family_pass import measure
    from kinbase.kinship.gpu import resolve_device

    families: list[FamilySums] = []
    covered: set[str | None] = set()
    for base_name in groups(found) if kinship and not sketch else ():
        group = [
            s for s in found if s.arriving and not s.again and s.base == base_name and s.name != base_name
        ]
        arriving = next((s for s in found if s.arriving and s.name == base_name), None)
        away = "stream" if depth == "stream" else "kept"
        if first is None:
            with reading(store) as con:
                stored = stored_family(con, base_name)
        else:
            stored, first = first, None
        known, gone = open_stored(stored.members, without=[s.name for s in group], depth=away)
        try:
            base = arriving.checkpoint if arriving else known.get(base_name)
            others = [checkpoint for name, checkpoint in known.items() if name != base_name]
            unsketched = stored.unsketched
            if base is None:
                waits = "kinship waits" if base_name in unsketched else "kinship is estimated by sketches"
                for source in group:
                    source.notes.append(f"the files of its base {base_name} are gone or changed: {waits}")
                continue
            for source in group:
                source.notes += gone_notes(gone, unsketched)
            while group:
                try:
                    members = whole(store, [s.checkpoint for s in group if s.checkpoint] + others, base_name)
                    family = measure(
                        store, base, members, new=len(group), hash_base=arriving is not None or base_name in unsketched,
                        begun=stored.begun, device=resolve_device(device, len(members)), report=report,
                    )  # fmt: skip
                except CheckpointError as error:
                    group = without_unreadable(group, error)
                    continue
                for i, source in enumerate(group):
                    if family.coverage(i) == 0:
                        source.fail(KinbaseError(_stranger(family, i)))
                families.append(family)
                # What an adapter was read with is not part of it: its digest is taken of it alone.
                own = {s.name for s, m in zip(group, members, strict=False) if s.checkpoint is m}
                for source in group:
                    if source.name not in own:
                        family.forget(str(source.name))
                covered |= {base.name} | own
                break
        finally:
            for checkpoint in known.values():
                checkpoint.close()
    for source in found:
        if source.arriving and source.name not in covered:
            its_base = source.base if kinship and source.base != source.name else None
            arriving = next((s for s in found if s.arriving and s.name == its_base), None)
            try:
                families += measure_alone(
                    store, source, its_base, arriving.checkpoint if arriving else None, report=report
                )
            except CheckpointError as error:
                source.fail(error)
    return families


def _stranger(family: "FamilySums", member: int) -> str:
    example = next((f" ({name}: {reason})" for name, reason in family.skipped[member].items()), "")
    return (
        f"{family.members[member].name} shares no tensor with {family.base.name}{example}: "
        "give the base it was tuned from with --base"
    )


def measure_alone(
    store: Store,
    source: Source,
    base: str | None = None,
    arriving: Checkpoint | None = None,
    *,
    report: Report = lambda done, total: None,
) -> "list[FamilySums]":
    """One reading of a source by itself, for its identity and its sketch, fitted to a stored or `arriving` base.

    A base stored without a sketch is read too. What does not fit one whose files are gone cannot be told: the
    source then has no sketch, and a note. Raises CheckpointError when the source cannot be read, and when it shares
    nothing with its base.
    """
    from kinbase.ingest.family_pass import measure

    assert source.checkpoint
    own = measure(store, source.checkpoint, hash_base=True, device="cpu", report=report)
    if base is None or source.checkpoint.delta_of is not None:
        return [own]
    opened: dict[str, Checkpoint] = {}
    found = [own]
    try:
        if arriving is None:
            opened = open_members(store, base, only=[base])[0]
            with store.reading() as con:
                base_id = naming.find(con, base)
                sketched = base_id is not None and sketches.has(con, base_id)
                listed = sums.weights(con, base_id) if base_id is not None else []
            if base in opened and not sketched:
                found.insert(0, measure(store, opened[base], hash_base=True, device="cpu", report=report))
        against = arriving or opened.get(base) or _remembered(base, listed, source.checkpoint)
        try:
            own.fit(against, [source.checkpoint])
        except CheckpointError:
            own.changes[source.checkpoint.name] = None
            source.notes.append(
                f"not all its tensors fit {base}, whose files are gone or changed: no sketch of its change"
            )
    finally:
        for checkpoint in opened.values():
            checkpoint.close()
    change = own.changes.get(source.checkpoint.name)
    if change is not None and change.numel == 0:
        raise CheckpointError(
            f"{source.name} shares no tensor with {base}: give the base it was tuned from with --base"
        )
    return found


def _remembered(base: str, listed: Sequence[tuple[str, str, int]], member: Checkpoint) -> Checkpoint:
    """A base whose files are gone, as far as its tensors' names and sizes tell how a member fits it."""

    def gone(start: int, out: memoryview) -> None:
        raise CheckpointError(f"the files of {base} are gone or changed")

    from kinbase.checkpoint.alignment import labels

    ours = {label: name for name, label in labels(member.tensors).items()}
    by_name = {tensor.name: tensor for tensor in member.tensors}
    tensors = []
    for label, dtype, numel in listed:
        match = by_name.get(ours.get(label, ""))
        row = 1
        for extent in match.shape[1:] if match else ():
            row *= extent
        whole = match is not None and len(match.shape) > 0 and row > 0 and numel % row == 0
        shape = (numel // row, *match.shape[1:]) if match and whole else (numel,)
        tensors.append(Tensor(ours.get(label, label), dtype, shape, gone))
    return Checkpoint(base, base, tensors)


def gone_notes(gone: Sequence[str], unsketched: Collection[str]) -> list[str]:
    """What to say of members whose files are not there."""
    notes = [f"no kinship with {name}: its files are gone or changed" for name in gone if name in unsketched]
    by_sketch = [name for name in gone if name not in unsketched]
    if by_sketch:
        others = f" and {len(by_sketch) - 3} more" if len(by_sketch) > 3 else ""
        notes.append(
            f"kinship with {', '.join(by_sketch[:3])}{others} is estimated by sketches: their files are gone or changed"
        )
    return notes
