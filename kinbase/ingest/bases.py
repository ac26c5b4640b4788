"""The family of every source: which base it is measured against, and which sources are stored already."""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from kinbase.checkpoint import Alias, Edge
from kinbase.checkpoint.open import Known, Opened, elsewhere, read
from kinbase.errors import KinbaseError
from kinbase.ingest.paths import settled
from kinbase.ingest.steps import ImportOptions, Placed, Todo
from kinbase.ingest.stored import StoredFamily, stored_family
from kinbase.store import Connection, Store, models, sketches
from kinbase.store import kinship as sums
from kinbase.store import names as naming


@dataclass(frozen=True, slots=True)
class Placement:
    """Every source with its place, and what is stored of the first family to be measured, if there is one.

    `known` are the models that were stored with their weights at that moment.
    """

    sources: tuple[Placed, ...]
    first: StoredFamily | None = None
    known: frozenset[int] = frozenset()


@contextmanager
def reading(store: Store | None) -> Iterator[Connection | None]:
    """`Store.reading`, and None where there is no database, or none yet."""
    if store is None or not store.path.exists():
        yield None
    else:
        with store.reading() as con:
            yield con


def place_all(store: Store | None, opened: list[Opened], options: ImportOptions, known: Known) -> Placement:
    """Place every source; a base that is neither stored nor among them is read first, and put before them.

    Raises KinbaseError when the base cannot be had.
    """
    with reading(store) as con:
        base, address = _known_base(con, options, opened)
        if address is None:
            return _place(con, opened, base, options)
    extra = _read_base(address, base, options, known)
    if extra.checkpoint:
        opened.insert(0, extra)
    with reading(store) as con:
        return _place(con, opened, extra.name, options)


def _known_base(
    con: Connection | None, options: ImportOptions, opened: Sequence[Opened]
) -> tuple[str | None, str | None]:
    """The name of the base asked for, if it has one; and the source to read it from, if it is yet to be read."""
    base = options.base
    if base is None:
        return None, None
    paths = {base, str(Path(base).resolve())}
    for source in opened:
        if (
            source.checkpoint
            and source.name
            and paths & {source.name, source.source, str(Path(source.source).resolve())}
        ):
            return source.name, None
    if con is None:
        return None, base
    for label in sorted(paths):
        if (known := naming.find(con, label)) is not None:
            address = None if options.is_metadata_only else naming.address_without_weights(con, known)
            return naming.name_of(con, known), address
    if not Path(base).exists() and not elsewhere(base):
        return naming.resolve(con, base), None
    return None, base


def _read_base(address: str, name: str | None, options: ImportOptions, known: Known) -> Opened:
    """The base that `address` holds, opened, or told to be stored as it is."""
    base = read(address, name, depth=options.depth, known=known, tell=options.log)
    if base.problem:
        raise KinbaseError(f"the base cannot be read: {base.problem}")
    if base.checkpoint is None and not base.is_unchanged:
        raise KinbaseError(
            f"the base {address} has no weights: give the checkpoint that the others were tuned from"
        )
    return base


def _place(
    con: Connection | None, opened: Sequence[Opened], base: str | None, options: ImportOptions
) -> Placement:
    """Choose each checkpoint's base, and tell which are stored already, by their files."""
    unique = without_namesakes(settled(con, opened, base))
    stored = _StoredAlready(con, options) if con is not None else None
    arriving = {s.name: s.opened for s in unique if s.opened.checkpoint and s.todo is not Todo.FAIL}
    placed: list[Placed] = []
    for source in unique:
        if source.opened.checkpoint and source.todo is not Todo.FAIL:
            name = source.name
            source = _with_base(con, source, base, arriving)
            source = stored.told(source) if stored else source
            # What is stored already leads to its stored base, whatever its files claim.
            del arriving[name]
            if source.todo is not Todo.KEEP:
                arriving[source.name] = source.opened
        placed.append(source)
    placed = [_with_todo(source, options) for source in placed]
    if options.parts is not None:
        placed = _all_of_the_parts(placed)
    first = next(iter(bases_of(placed)), None)
    return Placement(
        tuple(placed),
        first=stored_family(con, first) if first else None,
        known=stored.known if stored else frozenset(),
    )


def _all_of_the_parts(placed: list[Placed]) -> list[Placed]:
    """The sources of a family that parts were measured of: all of its members, where one of them is not stored.

    Raises KinbaseError for one that cannot be opened here.
    """
    for source in placed:
        if source.todo is Todo.FAIL:
            raise KinbaseError(
                f"{source.opened.source}, which the parts are of, cannot be had: {source.notes[-1]}"
            )
    if not any(source.is_to_read for source in placed):
        return placed
    return [
        replace(source, todo=Todo.MEASURE)
        if source.opened.checkpoint and source.base not in (None, source.name)
        else source
        for source in placed
    ]


def _with_todo(source: Placed, options: ImportOptions) -> Placed:
    """What is to be done with a checkpoint that is not stored, or not as it would be now."""
    if source.todo is not Todo.MEASURE:
        return source
    if options.is_metadata_only:
        return source.without_reading()
    is_member = source.base not in (None, source.name)
    return source if is_member and options.is_compared else replace(source, todo=Todo.READ)


def bases_of(placed: Iterable[Placed]) -> list[str]:
    """The bases that sources are to be measured against."""
    return list(dict.fromkeys(str(s.base) for s in placed if s.todo is Todo.MEASURE))


def without_namesakes(opened: Iterable[Opened]) -> list[Placed]:
    """The sources, yet without a place; a checkpoint of a name that an earlier one has fails."""
    first: dict[str, str] = {}
    placed = []
    for source in opened:
        at = Placed(source, _first_todo(source), notes=source.notes)
        if source.problem:
            at = at.failed(source.problem)
        elif source.checkpoint and source.name:
            other = first.get(source.name)
            first.setdefault(source.name, source.source)
            if other is not None:
                at = at.failed(f"{other} is called {source.name!r} too: import one of them with --name")
        placed.append(at)
    return placed


def _first_todo(source: Opened) -> Todo:
    if source.is_unchanged:
        return Todo.NOTHING
    return Todo.MEASURE if source.checkpoint else Todo.STORE


class _StoredAlready:
    """Which checkpoints are stored already, by the files they were read from."""

    def __init__(self, con: Connection, options: ImportOptions) -> None:
        members = naming.members(con)
        self.known = frozenset(member.model_id for member in members)
        self._names = {member.model_id: member.name for member in members}
        self._by_files = {(m.files, state_dict_key(m.source)): m for m in members if m.files}
        self._copies = models.copies(con)
        self._stale = models.stale(con)
        self._lacking = sketches.lacking(con, [member.name for member in members])
        self._sketched = sketches.sketched(con) if options.is_sketched else set()
        self._unfinished = sums.unfinished(con)
        self._is_read = options.depth in ("stream", "whole")

    def told(self, source: Placed) -> Placed:
        """A source under the name it is stored by, and what there is to do with it: it keeps a stored base."""
        checkpoint = source.opened.checkpoint
        assert checkpoint
        same = self._by_files.get((frozenset(checkpoint.files), state_dict_key(checkpoint.source)))
        if same is None:
            is_copy = self._copies.get((frozenset(checkpoint.files), checkpoint.source)) == source.name
            return replace(source, todo=Todo.KEEP) if is_copy else source
        stored_base = self._names.get(same.base_id) if same.base_id is not None else None
        opened, notes = source.opened, source.notes
        if opened.is_renamed and opened.name != same.name:
            opened = replace(opened, records=(*opened.records, (opened.source, Alias(str(opened.name)))))
            notes = (*notes, f"{opened.name} is another name of {same.name} now")
        opened = replace(opened, name=same.name, checkpoint=replace(checkpoint, name=same.name))
        todo, base = source.todo, source.base or stored_base
        has_met = same.measured or same.model_id in self._sketched
        has_met = has_met and same.model_id not in self._unfinished
        if same.name in self._stale and self._is_read:
            pass  # its tensors may be others now: all that is known of them is measured again
        elif base in (None, same.name) or (base == stored_base and has_met):
            todo = Todo.REREAD if same.name in self._lacking and self._is_read else Todo.KEEP
        return Placed(opened, todo, base, notes)


def state_dict_key(source: str | None) -> str:
    """Which of the models in one file a source is: what follows the # of PATH#KEY."""
    path, mark, key = (source or "").rpartition("#")
    return key if mark and not Path(source or "").exists() and Path(path).is_file() else ""


def _with_base(
    con: Connection | None, source: Placed, base: str | None, arriving: dict[str | None, Opened]
) -> Placed:
    """A source with the base asked for, or else the one that its claims lead to."""
    if base is not None:
        return replace(source, base=base)
    bases = sorted(_claimed_bases(con, source.opened, arriving))
    if len(bases) > 1:
        return source.noted(f"its parents lead to several bases ({', '.join(bases)}): say which with --base")
    return replace(source, base=bases[0] if bases else None)


def _claimed_bases(con: Connection | None, source: Opened, arriving: dict[str | None, Opened]) -> set[str]:
    """The bases that adapter, config or card lead to: from the claimed parents up to models without parents."""
    bases: set[str] = set()
    seen = {source.name}
    todo = _claimed_parents(source)
    while todo:
        label = todo.pop()
        if label in seen:
            continue
        seen.add(label)
        if label in arriving:
            above = _claimed_parents(arriving[label])
            todo += above
            if not above:
                bases.add(label)
        elif con is not None and (model := naming.base_or_parents(con, label)) is not None:
            stored_base, above = model
            todo += above if stored_base is None else []
            if stored_base is not None:
                bases.add(stored_base)
    return bases - {source.name or ""}


def _claimed_parents(source: Opened) -> list[str]:
    return [edge.parent for _, edge in source.said(Edge) if edge.child in (None, source.name)]
