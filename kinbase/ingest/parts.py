"""A pass in parts, for any scheduler: each part measures some of the tensors, and an import puts the parts together.

    kinbase measure base m1 m2 --base base --part 3/8 -o sums-3.parquet     # eight times, anywhere
    kinbase import sums-*.parquet

A tensor is measured by one part as by one process, so that the database is the same to the bit on like processors.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from kinbase.checkpoint import Checkpoint
from kinbase.checkpoint.files import absolute, shown
from kinbase.checkpoint.open import as_called, elsewhere
from kinbase.errors import CheckpointError, KinbaseError, UsageError
from kinbase.ingest.bases import bases_of, place_all
from kinbase.ingest.pipeline import import_sources
from kinbase.ingest.remote import read_all
from kinbase.ingest.steps import ImportOptions, Outcome, Placed, Todo
from kinbase.ingest.stored import whole
from kinbase.ingest.trajectories import legs
from kinbase.store import Store
from kinbase.store import part_files as files

if TYPE_CHECKING:  # the pass costs half a second of imports
    from kinbase.ingest.part_files import Head


@dataclass(frozen=True, slots=True)
class Part:
    """A part that was measured: its number and place, and how much of the whole it has.

    `is_old` says that it was there already.
    """

    path: Path
    part: int
    parts: int
    base: str
    members: int
    tensors: int
    of_tensors: int
    nbytes: int
    is_old: bool = False


def measure_part(
    sources: Sequence[str], out: Path, options: ImportOptions, *, part: int = 1, parts: int = 1
) -> Part:
    """Measure one part of the pass over `sources` and their base, and write its sums to `out`.

    Of the options `base`, `device`, `is_streamed`, `on_progress` and `log` count. An interrupted part goes on where it
    stopped; one that is there is left as it is. Raises UsageError for no such part, KinbaseError when the sources are
    not one family, all of it to be read, or `out` is something else, and DiskError when there is no room.
    """
    if not 1 <= part <= parts:
        raise UsageError(f"--part takes I/N with I from 1 to N, not {part}/{parts}")
    with opened_family(sources, options) as (base, members):
        return _measure(sources, base, members, out, options, part, parts)


def _measure(
    sources: Sequence[str], base: Checkpoint, members: Sequence[Checkpoint], out: Path, options: ImportOptions,
    part: int, parts: int,
) -> Part:  # fmt: skip
    from kinbase.ingest.family_pass import planned, read, refuse_changed
    from kinbase.ingest.finished import Finished
    from kinbase.ingest.part_files import Head, Model, PartFile, split
    from kinbase.kinship import native
    from kinbase.kinship.gpu import resolve_device

    if not native.are_kept():
        options.log("compiling the kernels for this processor, which is done once", 0, 0)
    device = resolve_device(options.device)
    plan, _ = planned(base, members, new=len(members), hash_base=True)
    positions = split(plan, parts)[part - 1]
    head = Head(
        part, parts, tuple(_from_anywhere(source) for source in sources), base.source, options.is_streamed,
        tuple(map(Model.of, (base, *members))), tuple(positions), device, native.processor(),
    )  # fmt: skip
    nbytes = sum(plan.jobs[position].nbytes for position in positions)
    told = Part(out, part, parts, base.name, len(members), len(positions), len(plan.jobs), nbytes)
    file = PartFile(out, head)
    if out.exists():
        _refuse_other(out, head)
        return replace(told, is_old=True)
    finished = Finished(plan, file)
    try:
        read(plan, finished, positions, device=device, on_progress=options.on_progress)
        for checkpoint in (base, *members):
            refuse_changed(checkpoint)
        file.finish(finished)
    finally:
        finished.close()
    return told


def _refuse_other(out: Path, head: "Head") -> None:
    """Raise KinbaseError unless `out` is this part already."""
    from kinbase.ingest.part_files import read_head

    if not files.is_part(out):
        raise KinbaseError(f"{shown(str(out))} exists already and is no part: name another file with -o")
    known = read_head(out)
    told = head.difference(known) or (f"it is part {known.part}" if known.part != head.part else None)
    if told or known.positions != head.positions:
        raise KinbaseError(
            f"{shown(str(out))} exists already and is another part ({told or 'of other tensors'}): remove it, or name "
            "another file with -o"
        )


def _from_anywhere(source: str) -> str:
    """A source as it is found from any folder."""
    return source if elsewhere(source) else str(absolute(source))


@contextmanager
def opened_family(
    sources: Sequence[str], options: ImportOptions
) -> Iterator[tuple[Checkpoint, list[Checkpoint]]]:
    """The base and the members that `sources` are, opened as an import into a new database opens them.

    Raises KinbaseError for a source that cannot be had, is no weights, or is of no family or another.
    """
    opened = read_all(legs(sources, None), options, as_called)
    try:
        placed = place_all(None, opened, options, as_called).sources
        for source in placed:
            if source.todo is Todo.FAIL or source.opened.refused or not source.opened.checkpoint:
                why = source.opened.last_word or (source.notes[-1] if source.notes else "it holds no weights")
                raise KinbaseError(f"{source.opened.source} cannot be measured: {why}")
        bases = bases_of(placed)
        if len(bases) > 1:
            raise KinbaseError(
                f"the sources are of several families ({', '.join(bases[:8])}): measure them one by one, or give --base"
            )
        lonely = [s for s in placed if s.todo is not Todo.MEASURE and s.name not in bases]
        if lonely or not bases:
            raise KinbaseError(
                f"no base is known for {(lonely or placed)[0].name}: say with --base what it was tuned from"
            )
        yield _family(placed, bases[0])
    finally:
        for each in opened:
            each.close()


def _family(placed: Sequence[Placed], base_name: str) -> tuple[Checkpoint, list[Checkpoint]]:
    by_name = {source.name: source.opened.checkpoint for source in placed}
    base = by_name[base_name]
    members = [s.opened.checkpoint for s in placed if s.todo is Todo.MEASURE and s.opened.checkpoint]
    assert base
    return base, whole(None, members, base_name)


def are_parts(sources: Sequence[str]) -> bool:
    """Whether sources are files of parts. Raises KinbaseError where only some of them are."""
    given = [files.is_part(source) for source in sources]
    if any(given) and not all(given):
        other = sources[given.index(False)]
        is_cut = other.endswith(".parquet")
        raise KinbaseError(
            f"{shown(other)} is no part of a pass, or was written only in part: measure that part again"
            if is_cut
            else f"{shown(other)} is no part of a pass as the others are: import it by itself"
        )
    return any(given)


def import_parts(store: Store, paths: Sequence[str], options: ImportOptions) -> list[Outcome]:
    """Import the family that parts were measured of; its files are opened for all but their weights.

    Raises UsageError for options that the parts have settled, and KinbaseError where they are not all the parts of one
    pass, each once, or the models here are not those that were measured: nothing is stored then.
    """
    from kinbase.ingest.part_files import PartFiles

    settled = replace(
        ImportOptions(), device=options.device, on_progress=options.on_progress, log=options.log
    )
    if settled != options:
        raise UsageError("parts of a pass say themselves what they are of: give no other options with them")
    try:
        parts = PartFiles([Path(path) for path in paths], store.path.absolute().parent)
        head = parts.head
        settled = replace(settled, base=head.base, is_streamed=head.is_streamed, parts=parts)
        return import_sources(store, head.sources, settled)
    except CheckpointError as error:
        raise KinbaseError(str(error)) from error
