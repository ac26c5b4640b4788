"""The one path in: importers read the sources, the kinship pass measures them, one transaction stores them.

    read      each source is opened by the importer that recognises it: a checkpoint, or records
    place     every checkpoint gets the base of its family, or waits for one
    measure   one pass a family, with the database closed
    store     models, aliases, sums, pairs and claims, in one short transaction

A source that fails is reported and the others go on; nothing is stored of it.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from kinbase import naming, records, sketches, sums
from kinbase.checkpoint import (
    FLOAT_DTYPES,
    Alias,
    Commit,
    Edge,
    Facts,
    ReportedKinship,
    Score,
    Task,
    Training,
)
from kinbase.errors import CheckpointError, KinbaseError, UsageError
from kinbase.families import (
    Report,
    gone_notes,
    measure_alone,
    members_of,
    open_stored,
    store_family,
    whole,
    without_sketch,
    without_unreadable,
)
from kinbase.remote import read_all, stored_versions
from kinbase.sources import Known, Source, Tell, elsewhere, read
from kinbase.store import Connection, Store

if TYPE_CHECKING:  # the pass costs half a second of imports, which records alone need not pay
    from kinbase.estimating import Sampled
    from kinbase.measuring import Family


@dataclass(frozen=True, slots=True)
class Stored:
    """What the database has of one family: its base and members, those of them without a sketch, passes begun."""

    members: Sequence[naming.Member]
    unsketched: set[str]
    begun: set[str]


def import_sources(
    store: Store,
    sources: Sequence[str],
    *,
    base: str | None = None,
    name: str | None = None,
    device: str = "auto",
    metadata_only: bool = False,
    kinship: bool = True,
    sample: float | None = None,
    stderr: float | None = None,
    stream: bool = False,
    sketch: bool = False,
    report: Report = lambda done, total: None,
    tell: Tell = lambda what, done, total: None,
    also: Callable[[Connection, list[Source]], None] | None = None,
    measured: Callable[[Mapping[str, str]], None] = lambda digests: None,
) -> list[Source]:
    """Import `sources`; what became of each, in the same order (a base that had to be read comes first).

    `base` is a model or a source; `name` renames the only source; `report(done, total)` is told bytes.
    Kinship is estimated from the share `sample` of the bytes, until its error is below `stderr`, in place of
    being measured; weights elsewhere are read and not kept if `stream`. With `sketch` the sources are read and
    nothing else: they meet everybody by sketches. `tell` is told what else is going on. `measured` is told the digests
    of what was read, by name, before it is stored; `also` writes what belongs to the import, in its transaction, when
    what became of the sources is known.
    Raises UsageError for contradictory arguments, KinbaseError when the base cannot be had and
    DatabaseError when the file cannot be used. KeyboardInterrupt leaves the database without the models
    but with the tensors measured so far, and the same import goes on from there.
    """
    if name and len(sources) != 1:
        raise UsageError("--name names one model: import that source by itself")
    if sketch and (metadata_only or sample is not None or not kinship):
        raise UsageError("--sketch reads the weights once, for kinship: it goes with no other depth")
    depth = _depth(metadata_only, sample, stderr, stream)
    known = stored_versions(store, depth, base) if any(map(elsewhere, [*sources, base or ""])) else _new
    found = read_all(sources, name=name, depth=depth, known=known, tell=tell)
    sampled: list[Sampled] = []
    try:
        with _reading(store) as con:
            base, unread = _known_base(con, base, found, depth)
            family = None if unread else _place(con, found, base, sketch)
        if unread:
            base = _read_base(unread, base, found, depth, known, tell)
            with _reading(store) as con:
                family = _place(con, found, base, sketch)
        families: list[Family] = []
        if metadata_only:
            _keep_metadata(found)
        elif sample is not None and any(source.arriving for source in found):
            from kinbase.estimating import sample_families

            sampled = sample_families(store, found, sample, stderr, report)
        elif any(source.arriving for source in found):
            families = _measure(
                store, found, family,
                kinship=kinship, sketch=sketch, device=device, depth=depth, report=report,
            )  # fmt: skip
        measured({name: digest for family in families for name, digest in family.digests.items()})
        _store(store, found, families, sampled, kinship and not metadata_only, also)
    finally:
        for source in found:
            if source.checkpoint:
                source.checkpoint.close()
    return found


def import_metadata(store: Store, found: list[Source]) -> None:
    """Store what sources say besides weights, in one transaction."""
    _refuse_namesakes(found)
    _keep_metadata(found)
    _store(store, found, [], [], False)


def _keep_metadata(found: list[Source]) -> None:
    for source in found:
        if source.arriving or (source.commit and not source.status):
            source.status = "metadata"


def _depth(metadata_only: bool, sample: float | None, stderr: float | None, stream: bool) -> str:
    """How deep what lies elsewhere is read; raises UsageError for two depths at once."""
    if metadata_only + stream + (sample is not None) > 1:
        raise UsageError("--metadata-only, --sample and --stream are different depths: choose one")
    if sample is not None and not 0 < sample < 1:
        raise UsageError(f"--sample takes a share of the bytes between 0 and 1, not {sample:g}")
    if stderr is not None and (sample is None or stderr <= 0):
        raise UsageError("--stderr is the error at which --sample stops early: give both, above zero")
    return (
        "metadata" if metadata_only else "sample" if sample is not None else "stream" if stream else "whole"
    )


def _new(commit: Commit) -> tuple[str, bool]:
    return commit.model, False


# Place.


@contextmanager
def _reading(store: Store) -> Iterator[Connection | None]:
    """`Store.reading`, and None where there is no database yet."""
    if not store.path.exists():
        yield None
    else:
        with store.reading() as con:
            yield con


def _known_base(
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


def _read_base(
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


def _place(con: Connection | None, found: list[Source], base: str | None, sketch: bool) -> Stored | None:
    """Choose each checkpoint's base, and tell which are stored already, by their files.

    Returns what is stored of the first family to be measured, if there is one.
    """
    _refuse_namesakes(found)
    if con is None:
        for source in found:
            if source.arriving:
                source.base = base or _claimed_base(None, source, found)
    else:
        _tell_stored(con, found, base, sketch)
    first = next(iter(_groups(found)), None)
    return _family(con, first) if first else None


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


def _groups(found: Sequence[Source]) -> list[str]:
    """The bases that sources arrive to be measured against."""
    return list(
        dict.fromkeys(s.base for s in found if s.arriving and not s.again and s.base and s.base != s.name)
    )


def _family(con: Connection | None, base: str) -> Stored:
    """What is stored of a base's family."""
    if con is None:
        return Stored([], {base}, set())
    members = members_of(con, base)
    return Stored(members, without_sketch(con, [base, *(m.name for m in members)]), sums.kept_keys(con))


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
    store: Store, found: list[Source], first: Stored | None,
    *, kinship: bool, sketch: bool, device: str, depth: str, report: Report,
) -> "list[Family]":  # fmt: skip
    """One pass a family; whatever has no base, or whose base cannot be read, is read by itself alone.

    `first` is what is stored of the first family; of the next ones it is read when their turn comes, which may be
    hours later.
    """
    from kinbase.gpu import resolve_device
    from kinbase.measuring import measure

    families: list[Family] = []
    covered: set[str | None] = set()
    for base_name in _groups(found) if kinship and not sketch else ():
        group = [
            s for s in found if s.arriving and not s.again and s.base == base_name and s.name != base_name
        ]
        arriving = next((s for s in found if s.arriving and s.name == base_name), None)
        away = "stream" if depth == "stream" else "kept"
        if first is None:
            with _reading(store) as con:
                stored = _family(con, base_name)
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


def _stranger(family: "Family", member: int) -> str:
    example = next((f" ({name}: {reason})" for name, reason in family.skipped[member].items()), "")
    return (
        f"{family.members[member].name} shares no tensor with {family.base.name}{example}: "
        "give the base it was tuned from with --base"
    )


# Store.


def _store(
    store: Store,
    found: list[Source],
    families: "Sequence[Family]",
    sampled: "Sequence[Sampled]",
    kinship: bool,
    also: Callable[[Connection, list[Source]], None] | None = None,
) -> None:
    nothing = all(source.status == "failed" or _is_known(source) for source in found)
    if nothing and also is None:
        return
    with store.writing() as con:
        if not nothing:
            _store_found(con, found, families, sampled, kinship)
        if also is not None:
            also(con, found)


def _store_found(
    con: Connection,
    found: list[Source],
    families: "Sequence[Family]",
    sampled: "Sequence[Sampled]",
    kinship: bool,
) -> None:
    digests = {name: digest for family in families for name, digest in family.digests.items()}
    light = [s for s in found if s.name and s.status in ("metadata", "sampled", "unchanged")]
    named = naming.named_all(con, [str(source.name) for source in light])
    ids = {
        source.name: _store_model(con, source, digests, named)
        for source in found
        if source.status != "failed"
    }
    for source in found:
        if source.status == "imported" and source.base not in (None, source.name):
            model_id, base_id = ids[source.name], naming.find(con, str(source.base))
            if model_id is not None and base_id is not None:
                records.put_base(con, model_id, base_id)
    for family in sorted(
        families, key=lambda family: bool(family.changes)
    ):  # a base before who does not fit it
        store_family(con, family, ids)
    _meet(con, found, ids, kinship)
    if sampled:
        from kinbase.estimating import store_sampled

        for each in sampled:
            store_sampled(con, each, ids)
    _store_records(con, [source for source in found if source.status != "failed" and not _is_known(source)])
    _store_sizes(con, found)


def _meet(con: Connection, found: list[Source], ids: dict[str | None, int | None], kinship: bool) -> None:
    """Estimate by sketches the kinship of new members with whom they were not measured; say whom others resemble."""
    new = [s for s in found if s.status == "imported" and not s.again and ids[s.name] is not None]
    if not new:
        return
    from kinbase import meeting

    groups: dict[int, list[int]] = {}
    for source in new:
        model_id = ids[source.name]
        assert model_id is not None
        base_id = naming.base_id(con, model_id)
        if base_id is not None and kinship:
            groups.setdefault(base_id, []).append(model_id)
    for base_id, members in groups.items():
        meeting.meet(con, base_id, members)
    bases = {source.base for source in found}
    for source in new:
        model_id = ids[source.name]
        if model_id is not None and source.base is None and source.name not in bases:
            line = meeting.suggestion(con, model_id)
            source.notes += [line] if line else []


def _store_model(
    con: Connection, source: Source, digests: dict[str, str], named: dict[str, int]
) -> int | None:
    """The model's row and names; its model_id, or None for a source that is no model or whose name is taken."""
    checkpoint = source.checkpoint
    if _is_known(source):
        return named[str(source.name)]
    if source.name is None or (checkpoint is None and not source.commit):
        source.status = "records"
        return None
    if checkpoint is None or source.status in ("unchanged", "metadata", "sampled"):
        model_id = named[source.name]
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
        if (kept := records.place(con, model_id)) not in (None, checkpoint.source):
            source.notes.append(f"read from {kept} before, where they still are: that stays their place")
    place = source.source if source.importer else str(Path(source.source).resolve())
    speaker = source.records[0][0] if source.importer and source.records else source.source
    source.records.insert(0, (speaker, Alias(place, kind="path")))
    return model_id


def _is_known(source: Source) -> bool:
    """Whether nothing was read of a source but that it is what is stored."""
    return source.status == "unchanged" and source.checkpoint is None


def _store_sizes(con: Connection, found: Sequence[Source]) -> None:
    """What the tensors say of models' sizes, whatever their files claim; an adapter's are its delta, not itself.

    And where models without weights are found.
    """
    told = [s for s in found if s.status in ("imported", "metadata", "sampled", "unchanged") and s.name]
    ids = naming.named_all(con, [str(s.name) for s in told])
    rows = []
    for source in told:
        checkpoint = source.checkpoint
        if checkpoint is None or checkpoint.delta_of is not None:
            continue
        dtypes = Counter[str]()
        for tensor in checkpoint.tensors:
            dtypes[tensor.dtype] += tensor.numel if tensor.dtype in FLOAT_DTYPES else 0
        dtype = max(dtypes, key=dtypes.__getitem__, default=None)
        rows.append((ids[str(source.name)], dtypes.total(), dtype, checkpoint.nbytes))
    records.put_sizes(con, rows)
    places = {
        ids[str(s.name)]: s.checkpoint.source if s.checkpoint else s.source
        for s in told
        if s.status in ("metadata", "sampled")
    }
    records.put_first_sources(con, places)


def _store_records(con: Connection, found: Sequence[Source]) -> None:
    """What sources say besides weights. A name that is taken costs a note, not the rest."""
    said = [(source, record) for source in found for _, record in source.records]
    labels = [r.model or str(s.name) for s, r in said if isinstance(r, Facts | Alias)]
    ids = naming.named_all(con, labels)
    speaker = {id(r): s for s, r in said if isinstance(r, Alias)}
    aliases = [(ids[r.model or str(s.name)], r) for s, r in said if isinstance(r, Alias)]
    for model_id, alias in records.put_new_aliases(con, aliases) if aliases else ():
        try:
            records.put_alias(con, model_id, alias)
        except KinbaseError as error:
            speaker[id(alias)].notes.append(str(error))
    ids = naming.named_all(con, labels)  # an alias may have made two rows one
    records.put_many_facts(con, [(ids[r.model or str(s.name)], r) for s, r in said if isinstance(r, Facts)])
    claims = []
    for source in found:
        for file in dict.fromkeys(file for file, _ in source.records):
            edges = [r for f, r in source.said(Edge) if f == file]
            scores = [r for f, r in source.said(Score) if f == file]
            claims.append((source.name, file, edges))
            records.put_scores(con, source.name, scores)
        records.put_trainings(con, source.name, [training for _, training in source.said(Training)])
    records.put_claims(con, claims)
    files = [file for _, file, _ in claims]
    if files:
        records.drop_reported(con, files)
    for source in found:
        for file in dict.fromkeys(file for file, _ in source.said(ReportedKinship)):
            records.put_reported(con, file, [r for f, r in source.said(ReportedKinship) if f == file])
    records.put_tasks(con, [task for source in found for _, task in source.said(Task)])
