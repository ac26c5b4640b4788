"""The one path in: importers read the sources, the kinship pass measures them, one transaction stores them.

    read      each source is opened by the importer that recognises it: a checkpoint, or records
    place     every checkpoint gets the base of its family, or waits for one
    measure   one pass a family, with the database closed
    store     models, aliases, sums, pairs and claims, in one short transaction

A source that fails is reported and the others go on; nothing is stored of it.
"""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from kinbase import naming, records
from kinbase.checkpoint import (
    FLOAT_DTYPES,
    Alias,
    Checkpoint,
    Edge,
    Facts,
    ReportedKinship,
    Score,
    Task,
    Training,
)
from kinbase.errors import CheckpointError, KinbaseError, UsageError
from kinbase.families import Report, is_as_it_was, open_members, store_family, whole
from kinbase.sources import Source, read
from kinbase.store import Connection, Store

if TYPE_CHECKING:  # the pass costs half a second of imports, which records alone need not pay
    from kinbase.measuring import Family


def import_sources(
    store: Store,
    sources: Sequence[str],
    *,
    base: str | None = None,
    name: str | None = None,
    device: str = "auto",
    metadata_only: bool = False,
    kinship: bool = True,
    report: Report = lambda done, total: None,
) -> list[Source]:
    """Import `sources`; what became of each, in the same order (a base that had to be read comes first).

    `base` is a model or a source; `name` renames the only source; `report(done, total)` is told bytes.
    Raises UsageError for contradictory arguments, KinbaseError when the base cannot be had and
    DatabaseError when the file cannot be used. KeyboardInterrupt leaves the database without the models
    but with the tensors measured so far, and the same import goes on from there.
    """
    if name and len(sources) != 1:
        raise UsageError("--name names one model: import that source by itself")
    found = [read(source, name) for source in sources]
    try:
        base = _find_base(store, base, found)
        _refuse_namesakes(found)
        _place(store, found, base)
        families: list[Family] = []
        if metadata_only:
            for source in found:
                source.status = "metadata" if source.arriving else source.status
        elif any(source.arriving for source in found):
            families = _measure(store, found, kinship=kinship, device=device, report=report)
        _store(store, found, families)
    finally:
        for source in found:
            if source.checkpoint:
                source.checkpoint.close()
    return found


# Place.


def _find_base(store: Store, base: str | None, found: list[Source]) -> str | None:
    """The name of the base asked for. A source that is neither imported nor on its way is read, and goes first."""
    if base is None:
        return None
    paths = {base, str(Path(base).resolve())}
    for source in found:
        if (
            source.checkpoint
            and source.name
            and paths & {source.name, source.source, str(Path(source.source).resolve())}
        ):
            return source.name
    if store.path.exists():
        with store.reading() as con:
            for label in sorted(paths):
                if (known := naming.find(con, label)) is not None:
                    return naming.name_of(con, known)
            if not Path(base).exists():
                return naming.resolve(con, base)
    extra = read(base)
    if extra.status == "failed":
        raise KinbaseError(f"the base cannot be read: {extra.notes[-1]}")
    if extra.checkpoint is None:
        raise KinbaseError(
            f"the base {base} has no weights: give the checkpoint that the others were tuned from"
        )
    found.insert(0, extra)
    return extra.name


def _refuse_namesakes(found: list[Source]) -> None:
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


def _place(store: Store, found: list[Source], base: str | None) -> None:
    """Choose each checkpoint's base, and tell which are stored already, by their files."""
    if not store.path.exists():
        for source in found:
            if source.arriving:
                source.base = base or _claimed_base(None, source, found)
        return
    with store.reading() as con:
        known = naming.members(con)
        names = {member.model_id: member.name for member in known}
        by_files = {member.files: member for member in known if member.files}
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
            if source.base in (None, same.name) or (source.base == stored_base and same.measured):
                source.status = "unchanged"


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


# Measure.


def _measure(
    store: Store, found: list[Source], *, kinship: bool, device: str, report: Report
) -> "list[Family]":
    """One pass a family; whatever has no base, or whose base cannot be read, is read for its digest alone."""
    from kinbase.gpu import resolve_device
    from kinbase.measuring import measure

    families: list[Family] = []
    covered: set[str | None] = set()
    groups = (
        dict.fromkeys(s.base for s in found if s.arriving and s.base not in (None, s.name)) if kinship else {}
    )
    for base_name in groups:
        group = [s for s in found if s.arriving and s.base == base_name and s.name != base_name]
        arriving = next((s for s in found if s.arriving and s.name == base_name), None)
        known, gone = open_members(store, base_name, without=[s.name for s in group])
        try:
            base = arriving.checkpoint if arriving else known.get(base_name)
            others = [checkpoint for name, checkpoint in known.items() if name != base_name]
            if base is None:
                for source in group:
                    source.notes.append(
                        f"the files of its base {base_name} are gone or changed: kinship waits"
                    )
                continue
            for source in group:
                source.notes += [f"no kinship with {name}: its files are gone or changed" for name in gone]
            while group:
                try:
                    members = whole(store, [s.checkpoint for s in group if s.checkpoint] + others, base_name)
                    family = measure(
                        store, base, members, new=len(group), hash_base=arriving is not None,
                        device=resolve_device(device, len(members)), report=report,
                    )  # fmt: skip
                except CheckpointError as error:
                    group = _without_unreadable(group, error)
                    continue
                for i, source in enumerate(group):
                    if family.coverage(i) == 0:
                        source.fail(KinbaseError(_stranger(family, i)))
                families.append(family)
                # What an adapter was read with is not part of it: its digest is taken of it alone.
                covered |= {base.name} | {
                    s.name for s, m in zip(group, members, strict=False) if s.checkpoint is m
                }
                break
        finally:
            for checkpoint in known.values():
                checkpoint.close()
    for source in found:
        if source.arriving and source.name not in covered:
            assert source.checkpoint
            try:
                families.append(
                    measure(store, source.checkpoint, hash_base=True, device="cpu", report=report)
                )
            except CheckpointError as error:
                source.fail(error)
    return families


def _without_unreadable(group: list[Source], error: CheckpointError) -> list[Source]:
    """Fail the sources whose files changed under the pass, or all of them when it was none of theirs."""
    changed = [s for s in group if s.checkpoint and not all(map(is_as_it_was, s.checkpoint.files))]
    for source in changed or group:
        source.fail(error)
    return [source for source in group if source.arriving]


def _stranger(family: "Family", member: int) -> str:
    example = next((f" ({name}: {reason})" for name, reason in family.skipped[member].items()), "")
    return (
        f"{family.members[member].name} shares no tensor with {family.base.name}{example}: "
        "give the base it was tuned from with --base"
    )


# Store.


def _store(store: Store, found: list[Source], families: "Sequence[Family]") -> None:
    if all(source.status == "failed" for source in found):
        return
    with store.writing() as con:
        digests = {name: digest for family in families for name, digest in family.digests.items()}
        ids = {
            source.name: _store_model(con, source, digests) for source in found if source.status != "failed"
        }
        for source in found:
            if source.status == "imported" and source.base not in (None, source.name):
                model_id, base_id = ids[source.name], naming.find(con, str(source.base))
                if model_id is not None and base_id is not None:
                    records.put_base(con, model_id, base_id)
        for family in families:
            store_family(con, family, ids)
        for source in found:
            if source.status != "failed":
                _store_records(con, source)
            if source.status in ("imported", "metadata", "unchanged") and source.checkpoint:
                _store_size(con, source.checkpoint)


def _store_model(con: Connection, source: Source, digests: dict[str, str]) -> int | None:
    """The model's row and names; its model_id, or None for a source that is no model or whose name is taken."""
    checkpoint = source.checkpoint
    if checkpoint is None or source.name is None:
        source.status = "records"
        return None
    if source.status in ("unchanged", "metadata"):
        model_id = naming.named(con, source.name)
        if source.status == "metadata":
            records.put_source(con, model_id, checkpoint.source)
    else:
        digest = digests[source.name]
        try:
            model_id, name = records.put_model(con, source.name, digest, checkpoint.source, checkpoint.files)
        except KinbaseError as error:
            source.fail(error)
            return None
        source.status = "imported" if name == source.name else "alias"
        if name != source.name:
            source.notes.append(f"the same weights as {name}: {source.name} is another name of it now")
            source.name = name
    source.records.insert(0, (source.source, Alias(str(Path(source.source).resolve()), kind="path")))
    return model_id


def _store_size(con: Connection, checkpoint: Checkpoint) -> None:
    """What the tensors say of a model's size, whatever its files claim; an adapter's are its delta, not itself."""
    if checkpoint.delta_of is None:
        dtypes = Counter[str]()
        for tensor in checkpoint.tensors:
            dtypes[tensor.dtype] += tensor.numel if tensor.dtype in FLOAT_DTYPES else 0
        dtype = max(dtypes, key=dtypes.__getitem__, default=None)
        records.put_size(con, naming.named(con, checkpoint.name), dtypes.total(), dtype, checkpoint.nbytes)


def _store_records(con: Connection, source: Source) -> None:
    """What the source says besides weights. A name that is taken costs a note, not the rest."""
    for _, facts in source.said(Facts):
        records.put_facts(con, naming.named(con, facts.model or str(source.name)), facts)
    for _, alias in source.said(Alias):
        try:
            records.put_alias(con, naming.named(con, alias.model or str(source.name)), alias)
        except KinbaseError as error:
            source.notes.append(str(error))
    for file in dict.fromkeys(file for file, _ in source.records):
        edges = [r for f, r in source.said(Edge) if f == file]
        scores = [r for f, r in source.said(Score) if f == file]
        reported = [r for f, r in source.said(ReportedKinship) if f == file]
        records.put_edges(con, source.name, file, edges)
        records.put_scores(con, source.name, scores)
        records.put_reported(con, file, reported)
    records.put_tasks(con, [task for _, task in source.said(Task)])
    records.put_trainings(con, source.name, [training for _, training in source.said(Training)])
