"""The family of every source: which base it is measured against, and which sources are stored already."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from kinbase.checkpoint import Alias, Edge
from kinbase.checkpoint.open import Known, Source, Tell, elsewhere, read
from kinbase.errors import KinbaseError
from kinbase.ingest.stored import Stored, stored_family
from kinbase.store import Connection, Store, sketches
from kinbase.store import names as naming


@contextmanager
def reading(store: Store) -> Iterator[Connection | None]:
    """`Store.reading`, and None where there is no database yet."""
    if not store.path.exists():
        yield None
    else:
        with store.reading() as con:
            yield con


def known_base(
    con: Connection | None, base: str | None, found: list[Source], depth: str
) -> tuple[str | None, str | None]:
    """The name of the base asked for, if it has one; and the source to read it from, if it is yet to be read."""
    if base is None:
        return None, None
    paths = {base, str(Path(base).resolve())}
    for source in found:
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
            address = None if depth == "metadata" else naming.address_without_weights(con, known)
            return naming.name_of(con, known), address
    if not Path(base).exists() and not elsewhere(base):
        return naming.resolve(con, base), None
    return None, base


def read_base(
    base: str, name: str | None, found: list[Source], depth: str, versions: Known, tell: Tell
) -> str | None:
    """The name of a base that is neither imported nor on its way: it is read from `base`, and goes first."""
    extra = read(base, name, depth=depth, known=versions, tell=tell)
    if extra.status == "failed":
        raise KinbaseError(f"the base cannot be read: {extra.notes[-1]}")
    if extra.status == "unchanged":
        return extra.name
    if extra.checkpoint is None:
        raise KinbaseError(
            f"the base {base} has no weights: give the checkpoint that the others were tuned from"
        )
    found.insert(0, extra)
    return extra.name


def place(con: Connection | None, found: list[Source], base: str | None, sketch: bool) -> Stored | None:
    """Choose each checkpoint's base, and tell which are stored already, by their files.

    Returns what is stored of the first family to be measured, if there is one.
    """
    refuse_namesakes(found)
    if con is None:
        for source in found:
            if source.arriving:
                source.base = base or _claimed_base(None, source, found)
    else:
        _tell_stored(con, found, base, sketch)
    first = next(iter(groups(found)), None)
    return stored_family(con, first) if first else None


def refuse_namesakes(found: list[Source]) -> None:
    """Fail every checkpoint of a name that an earlier one has."""
    first: dict[str, Source] = {}
    for source in found:
        if source.checkpoint and source.name:
            other = first.setdefault(source.name, source)
            if other is not source:
                source.fail(
                    KinbaseError(
                        f"{other.source} is called {source.name!r} too: import one of them with --name"
                    )
                )


def _tell_stored(con: Connection, found: list[Source], base: str | None, sketch: bool) -> None:
    known = naming.members(con)
    names = {member.model_id: member.name for member in known}
    by_files = {member.files: member for member in known if member.files}
    lacking = sketches.lacking(con, [member.name for member in known])
    sketched = sketches.sketched(con) if sketch else set()
    for source in found:
        if not source.arriving:
            continue
        assert source.checkpoint
        source.base = base or _claimed_base(con, source, found)
        same = by_files.get(frozenset(source.checkpoint.files))
        if same is None:
            continue
        stored_base = names.get(same.base_id) if same.base_id is not None else None
        source.base = source.base or stored_base
        if source.renamed and source.name != same.name:
            source.records.append((source.source, Alias(str(source.name))))
            source.notes.append(f"{source.name} is another name of {same.name} now")
        source.name = source.checkpoint.name = same.name
        met = same.measured or same.model_id in sketched
        if source.base in (None, same.name) or (source.base == stored_base and met):
            source.again = same.name in lacking
            source.status = "" if source.again else "unchanged"


def groups(found: Sequence[Source]) -> list[str]:
    """The bases that sources arrive to be measured against."""
    return list(
        dict.fromkeys(s.base for s in found if s.arriving and not s.again and s.base and s.base != s.name)
    )


def _claimed_base(con: Connection | None, source: Source, found: list[Source]) -> str | None:
    """The base that adapter, config or card lead to: from the claimed parents up to models without parents."""
    arriving = {s.name: s for s in found if s.arriving}
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
    bases.discard(source.name or "")
    if len(bases) > 1:
        source.notes.append(
            f"its parents lead to several bases ({', '.join(sorted(bases))}): say which with --base"
        )
    return bases.pop() if len(bases) == 1 else None


def _claimed_parents(source: Source) -> list[str]:
    return [r.parent for _, r in source.records if isinstance(r, Edge) and r.child in (None, source.name)]
