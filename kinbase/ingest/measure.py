"""The kinship passes of one import: one over each family, and one reading of whatever has no base."""

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from kinbase.checkpoint import FLOAT_DTYPES, Checkpoint
from kinbase.checkpoint.alignment import AMBIGUOUS, meet
from kinbase.errors import CheckpointError, KinbaseError
from kinbase.ingest import oddities, partial, scales
from kinbase.ingest.bases import Placement
from kinbase.ingest.families import Family, attempt, families, settle
from kinbase.ingest.gone import gone_notes, layers_by_number, remembered
from kinbase.ingest.steps import ImportOptions, Measured, Placed, Todo
from kinbase.ingest.stored import open_members
from kinbase.store import Store, sketches
from kinbase.store import kinship as sums
from kinbase.store import names as naming

if TYPE_CHECKING:  # the pass costs half a second of imports, which records alone need not pay
    from kinbase.ingest.part_files import PartFiles
    from kinbase.kinship.sums import FamilySums


def measure_sources(store: Store, placement: Placement, options: ImportOptions) -> Measured:
    """One pass a family; whatever has no base, or whose base cannot be read, is read by itself alone."""
    standing = list(placement.sources)
    if not any(source.is_to_read for source in standing):
        return Measured(placement.sources)
    from kinbase.kinship import native

    if not native.are_kept():
        options.log("compiling the kernels for this processor, which is done once", 0, 0)
    found: list[FamilySums] = []
    read: set[str | None] = set()
    away = "stream" if options.depth == "stream" else "kept"
    is_closed = options.parts is not None
    for family in families(
        store, standing, first=placement.first, depth=away, base_depth=away, is_closed=is_closed
    ):
        inside = {family.base_name, *(source.name for source in family.sources)}
        is_last = not any(source.is_to_read and source.name not in inside | read for source in standing)
        measured, sources = _measure(store, family, options, is_last=is_last)
        settle(standing, sources)
        if measured is not None:
            found.append(measured)
            # What an adapter was read with is not part of it: its digest is taken of it alone.
            read |= {measured.base.name, *_own(measured, sources)}
    arriving = {source.name for source in standing if source.is_to_read}
    # A base before those that are held against it.
    for i, source in sorted(enumerate(standing), key=lambda at: at[1].base in arriving - {at[1].name}):
        if source.is_to_read and source.name not in read:
            alone, standing[i] = _read(store, source, standing, found, options)
            found += alone
    return Measured(tuple(standing), tuple(found), placement.known)


FORMS = {"layout": "another layout", "dtype": "another dtype", "names": "other names"}


def _measure(
    store: Store, family: Family, options: ImportOptions, *, is_last: bool
) -> "tuple[FamilySums | None, tuple[Placed, ...]]":
    """The pass over one family; its sources with what is to be said of them."""
    from kinbase.ingest.family_pass import measure
    from kinbase.kinship.gpu import resolve_device

    base, unsketched = family.base, family.stored.unsketched
    if base is None:
        waits = "kinship waits" if family.base_name in unsketched else "kinship is estimated by sketches"
        line = f"the files of its base {family.base_name} are gone or changed: {waits}"
        return None, tuple(source.noted(line) for source in family.sources)
    lines = gone_notes(family.gone, unsketched)
    if options.parts is not None:
        lines += _left_out(family, options.parts)
    family = replace(family, sources=tuple(source.noted(*lines) for source in family.sources))

    def work(members: list[Checkpoint], new: tuple[Placed, ...]) -> "FamilySums":
        is_hashed = family.is_base_new or family.base_name in unsketched or options.parts is not None
        try:
            return measure(
                store, base, members, new=len(new), hash_base=is_hashed, is_last=is_last,
                begun=family.stored.begun, parts=options.parts, engine=options.engine,
                device=options.device if options.engine else resolve_device(options.device),
                on_progress=options.on_progress,
            )  # fmt: skip
        except (CheckpointError, OSError) as error:
            if options.parts is None:
                raise
            raise KinbaseError(str(error)) from error  # sums of a family stand and fall together

    measured, sources = attempt(store, family, work)
    if measured is None:
        return None, sources
    by_name = {source.name: source for source in sources}
    theirs = _base_squares(store, base.name, [measured], measured.members[: measured.new])

    def squares() -> dict[str, float]:
        return theirs or _squares(store, base.name, [measured])

    for i, member in enumerate(measured.members[: measured.new]):
        source = by_name[member.name]
        if source.opened.checkpoint is not member:
            measured.forget(member.name)
        if measured.coverage(i) == 0:
            by_name[member.name] = source.failed(_stranger(measured, i))
            continue
        source = oddities.without_zeros(source, measured.weights.get(member.name))
        source = _judged_by_scales(source, base, theirs, measured)
        if source.todo is Todo.STORE:
            measured.forget(member.name)
            by_name[member.name] = source
            continue
        lines = [*measured.notes.get(member.name, ()), *partial.lines(measured, i)]
        lines += oddities.lines(measured, i, squares)
        other, how, first = measured.same.get(member.name, ("", "", ""))
        if first:
            lines.append(f"{member.name}: the same weights as {other}, in {FORMS[how]} ({first})")
        by_name[member.name] = source.noted(*lines)
    return measured, tuple(by_name.values())


def _left_out(family: Family, parts: "PartFiles") -> list[str]:
    """Lines on what parts of a pass do not tell."""
    lines = [parts.doubt] if parts.doubt else []
    own = {family.base_name, *(source.name for source in family.sources)}
    if others := [member.name for member in family.stored.members if member.name not in own]:
        some = ", ".join(others[:3]) + (f" and {len(others) - 3} more" if len(others) > 3 else "")
        lines.append(
            f"kinship with {some} is estimated by sketches, for the parts are not of them: "
            "`kinbase kin MODEL --exact` measures it"
        )
    return lines


def _base_squares(
    store: Store, base: str, found: "Sequence[FamilySums]", members: Sequence[Checkpoint]
) -> dict[str, float]:
    """Mean squares of a base's tensors by label, from a pass that read it or as they are stored.

    They are for members with scales alone; without one the database is not opened.
    """
    return _squares(store, base, found) if any(map(scales.have_scales, members)) else {}


def _squares(store: Store, base: str, found: "Sequence[FamilySums]") -> dict[str, float]:
    """Mean squares of a base's tensors by label, from a pass that read it or as they are stored."""
    read = next((family.weights[base] for family in found if base in family.weights), None)
    return scales.mean_squares(read) if read is not None else scales.stored_mean_squares(store, base)


def _judged_by_scales(
    source: Placed, base: Checkpoint, theirs: dict[str, float], measured: "FamilySums"
) -> Placed:
    """The source, left to what it says where its scales do not fit the base, and with a line where some do not."""
    member = source.opened.checkpoint
    if member is None or member.name not in measured.weights:
        return source
    ours = scales.mean_squares(measured.weights[member.name])
    return scales.judged(source, base, scales.lengths(base, member, theirs, ours))


def _own(measured: "FamilySums", sources: Sequence[Placed]) -> list[str | None]:
    """The sources of which the pass read their own weights and nothing else."""
    members = set(map(id, measured.members))
    return [source.name for source in sources if id(source.opened.checkpoint) in members]


def _stranger(family: "FamilySums", member: int) -> str:
    name, base, reasons = family.members[member].name, family.base.name, family.skipped[member]
    if doubtful := [tensor for tensor, reason in reasons.items() if reason == AMBIGUOUS]:
        return (
            f"{name} holds several models that could be compared with {base} ({doubtful[0]}: {AMBIGUOUS}): choose one by what "
            "its tensors' names begin with, with --key"
        )
    example = next((f" ({tensor}: {reason})" for tensor, reason in reasons.items()), "")
    return f"{name} shares no tensor with {base}{example}: give the base it was tuned from with --base"


def _read(
    store: Store,
    source: Placed,
    standing: Sequence[Placed],
    found: "Sequence[FamilySums]",
    options: ImportOptions,
) -> "tuple[list[FamilySums], Placed]":
    """A source read by itself; it fails when it cannot be read, or shares nothing with its base."""
    base = source.base if options.has_kinship and source.base != source.name else None
    arriving = next((s.opened.checkpoint for s in standing if s.is_to_read and s.name == base), None)
    try:
        alone, source, against = _measure_alone(store, source, base, arriving, options)
        member = source.opened.checkpoint
        source = oddities.without_zeros(source, alone[-1].weights.get(member.name) if member else None)
        if against is not None and source.is_to_read:
            theirs = _base_squares(store, against.name, [*found, *alone], [alone[-1].base])
            source = _judged_by_scales(source, against, theirs, alone[-1])
            if source.is_to_read:
                source = source.noted(*_partly(source, against, alone[-1]))
        return (alone if source.is_to_read else alone[:-1]), source
    except (CheckpointError, OSError) as error:
        return [], source.failed(error)


def _measure_alone(
    store: Store, source: Placed, base: str | None, arriving: Checkpoint | None, options: ImportOptions
) -> "tuple[list[FamilySums], Placed, Checkpoint | None]":
    """One reading of a source by itself, for its identity and its sketch, fitted to a stored or `arriving` base.

    A base stored without a sketch is read too. What does not fit one whose files are gone cannot be told: the
    source then has no sketch, and a note. The base comes with what was found. Raises
    CheckpointError when the source cannot be read, and when it shares
    nothing with its base.
    """
    from kinbase.ingest.family_pass import measure

    member = source.opened.checkpoint
    assert member
    own = measure(store, member, hash_base=True, device="cpu", on_progress=options.on_progress)
    if base is None or member.delta_of is not None:
        return [own], source, None
    opened: dict[str, Checkpoint] = {}
    found = [own]
    try:
        if arriving is None:
            opened = open_members(store, base, only=[base])[0]
            with store.reading() as con:
                base_id = naming.find(con, base)
                is_sketched = base_id is not None and sketches.has(con, base_id)
                listed = sums.weights(con, base_id) if base_id is not None else []
            if base in opened and not is_sketched:
                found.insert(
                    0,
                    measure(
                        store, opened[base], hash_base=True, device="cpu", on_progress=options.on_progress
                    ),
                )
        against = arriving or opened.get(base) or remembered(base, listed, member)
        is_gone = arriving is None and base not in opened
        try:
            own.fit(against, [member], is_gone=is_gone)
            in_order, line = layers_by_number(store, against, member) if is_gone else (True, None)
        except CheckpointError:
            in_order = False
            line = f"not all its tensors fit {base}, whose files are gone or changed: no sketch of its change"
        if not in_order:
            own.changes[member.name] = None
        source = source.noted(line) if line else source
    finally:
        for checkpoint in opened.values():
            checkpoint.close()
    change = own.changes.get(member.name)
    if change is not None and change.numel == 0:
        raise CheckpointError(
            f"{source.name} shares no tensor with {base}: give the base it was tuned from with --base"
        )
    return found, source, against


def _partly(source: Placed, base: Checkpoint, own: "FamilySums") -> list[str]:
    """What to say of a source that was read by itself, if it is compared in part."""
    member = source.opened.checkpoint
    change = own.changes.get(member.name) if member else None
    if member is None or change is None:
        return []
    whole = sum(t.numel for t in base.tensors if t.dtype in FLOAT_DTYPES)
    share, reasons = change.numel / max(whole, 1), meet(base, member)[1]
    if share < partial.WHOLE:
        return [partial.partial(member.name, base.name, share, reasons)]
    return partial.beyond(member, base.name, reasons)
