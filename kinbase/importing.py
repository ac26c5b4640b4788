"""The one path in: importers read the sources, the kinship pass measures them, one transaction stores them.

    read      each source is opened by the importer that recognises it: a checkpoint, or records
    place     every checkpoint gets the base of its family, or waits for one
    measure   one pass a family, with the database closed
    store     models, aliases, sums, pairs and claims, in one short transaction

A source that fails is reported and the others go on; nothing is stored of it.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from importlib.metadata import entry_points
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, TypeVar

from kinbase import records
from kinbase.checkpoint import (
    FLOAT_DTYPES,
    Alias,
    Checkpoint,
    Edge,
    Facts,
    FileStamp,
    Problem,
    Record,
    ReportedKinship,
    Score,
    Task,
    Training,
)
from kinbase.errors import CheckpointError, KinbaseError, UsageError
from kinbase.store import Connection, Store

if TYPE_CHECKING:  # the pass costs half a second of imports, which records alone need not pay
    from kinbase.measuring import Family

WEIGHTS = (".safetensors", ".bin", ".pt", ".pth", ".gguf")
"""Files of a checkpoint folder that hold weights, not records beside them."""

Report = Callable[[int, int], None]
Kind = TypeVar("Kind")


@dataclass(slots=True)
class Source:
    """One source: what it holds, and what became of it.

    `status` is imported, unchanged, alias, records, metadata or failed. `records` are pairs of the file
    that said something and what it said. `notes` are lines for the person.
    """

    source: str
    name: str | None = None
    checkpoint: Checkpoint | None = None
    records: list[tuple[str, Record]] = field(default_factory=list)
    base: str | None = None
    status: str = ""
    notes: list[str] = field(default_factory=list)

    def fail(self, error: Exception) -> None:
        """Take the source out, for a reason."""
        self.status = "failed"
        self.notes.append(str(error))

    @property
    def arriving(self) -> bool:
        """Whether it has weights that are still to be measured."""
        return self.checkpoint is not None and not self.status

    def said(self, kind: type[Kind]) -> list[tuple[str, Kind]]:
        """The records of one kind, with the file each comes from."""
        return [(file, record) for file, record in self.records if isinstance(record, kind)]


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


# Read.


@cache
def importers() -> list[ModuleType]:
    """The installed importers by name, in-tree ones and plug-ins alike."""
    return [
        point.load()
        for point in sorted(entry_points(group="kinbase.importers"), key=lambda point: point.name)
    ]


def read(source: str, name: str | None = None) -> Source:
    """Open a source with the importer that recognises it, and the records that lie beside its weights."""
    result = Source(source)
    path = Path(source)
    try:
        known = importers()
        result.records = _open(source, known)
        result.checkpoint = next((r for _, r in result.records if isinstance(r, Checkpoint)), None)
        folder = Path(result.checkpoint.source) if result.checkpoint else path
        if result.checkpoint and folder.exists():
            # What is stored must be found again from any folder.
            result.checkpoint.source = str(folder.absolute())
        if folder.is_dir():
            result.records += _read_beside(folder, known)
        elif not result.records:
            raise CheckpointError(
                f"no importer knows what {source} is: `kinbase import --help` lists what can be read"
                if path.exists()
                else f"{source} does not exist: give a checkpoint folder or file, or a model in the local Hub cache"
            )
        if not result.records:
            raise CheckpointError(
                f"{source} holds neither weights (*.safetensors, pytorch_model.bin, adapter_model.safetensors) nor "
                "records (card, config, results, tables): is it the right folder?"
            )
        if name and not result.checkpoint:
            result.records = _renamed(result.records, name)
        result.name = name or (result.checkpoint.name if result.checkpoint else _subject(path))
        if result.checkpoint and name:
            result.checkpoint.name = name
        result.notes = [record.message for _, record in result.records if isinstance(record, Problem)]
        _refuse_unnamed(result)
    except KinbaseError as error:
        result.fail(error)
    except OSError as error:
        result.fail(CheckpointError(f"{source} cannot be read: {error.strerror or error}"))
    return result


def _open(source: str, known: Iterable[ModuleType]) -> list[tuple[str, Record]]:
    importer = next((importer for importer in known if importer.recognises(source)), None)
    return [(source, record) for record in importer.open(source)] if importer else []


def _read_beside(folder: Path, known: Sequence[ModuleType]) -> list[tuple[str, Record]]:
    """The records of every file directly in `folder` (and of .eval_results) that is not weights.

    A link that leaves the folder is not followed, but for the Hub cache's own, which lead to its blobs.
    """
    real = folder.resolve()
    homes = [real, real.parents[1] / "blobs"] if real.parent.name == "snapshots" else [real]
    files = [*sorted(folder.iterdir()), *sorted(folder.glob(".eval_results/*"))]
    found: list[tuple[str, Record]] = []
    for path in files:
        inside = any(path.resolve().is_relative_to(home) for home in homes)
        if inside and path.is_file() and path.suffix.lower() not in WEIGHTS:
            try:
                found += _open(str(path), known)
            except CheckpointError as error:  # a card that cannot be read does not keep the weights out
                found.append((str(path), Problem(str(error))))
    return found


def _renamed(found: list[tuple[str, Record]], name: str) -> list[tuple[str, Record]]:
    """The records of a source that speaks of one model, under another name for it; others as they are."""
    labels = {record.model for _, record in found if isinstance(record, Facts | Score) and record.model}
    labels |= {record.child for _, record in found if isinstance(record, Edge) and record.child}
    if len(labels) != 1:
        return found
    changed: list[tuple[str, Record]] = []
    for file, record in found:
        if isinstance(record, Edge):
            record = replace(record, child=name)
        elif isinstance(record, Facts | Score):
            record = replace(record, model=name)
        changed.append((file, record))
    return changed


def _subject(path: Path) -> str | None:
    """The model that records without a name speak of: their folder's, as in a checkpoint; a GGUF file is one itself."""
    path = path.resolve()
    return path.stem if path.suffix.lower() in WEIGHTS else path.name if path.is_dir() else path.parent.name


def _refuse_unnamed(source: Source) -> None:
    silent = (
        (isinstance(r, Edge) and r.child is None)
        or (isinstance(r, Score | Facts | Training) and r.model is None)
        for _, r in source.records
    )
    if source.name is None and any(silent):
        raise CheckpointError(f"{source.source} does not say which model it speaks of: name it with --name")


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
                if (known := records.find(con, label)) is not None:
                    return records.name_of(con, known)
            if not Path(base).exists():
                return records.resolve(con, base)
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
        known = records.members(con)
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
            if source.name != same.name:
                source.records.append((source.source, Alias(source.name or same.name)))
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
        elif con is not None and (model := records.base_or_parents(con, label)) is not None:
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


def open_members(
    store: Store, base: str, *, without: Sequence[str | None] = ()
) -> tuple[dict[str, Checkpoint], list[str]]:
    """Open a stored base and its members again, the base too, but for those in `without`.

    Returns the checkpoints by name, and the names of those whose files are not what they were.
    """
    if not store.path.exists():
        return {}, []
    with store.reading() as con:
        base_id = records.find(con, base)
        stored = [
            m for m in records.members(con) if base_id is not None and base_id in (m.model_id, m.base_id)
        ]
    opened: dict[str, Checkpoint] = {}
    gone = []
    for member in stored:
        if member.name in without:
            continue
        source = read(member.source, member.name) if all(_as_it_was(file) for file in member.files) else None
        if source and source.checkpoint and frozenset(source.checkpoint.files) == member.files:
            opened[member.name] = source.checkpoint
        else:
            gone.append(member.name)
    return opened, gone


def whole(store: Store, members: Sequence[Checkpoint], base: str) -> list[Checkpoint]:
    """`members` with each adapter of a fine-tune among them read together with that fine-tune's weights.

    An adapter of the base is its own delta; so is one of a model nobody here knows, on the word of
    whoever chose the base.
    """
    from kinbase.adapters import applied

    by_name = {member.name: member for member in members}
    result = []
    for member in members:
        onto = member.delta_of
        if onto is not None and onto not in by_name and store.path.exists():
            with store.reading() as con:
                known = records.find(con, onto)
                onto = records.name_of(con, known) if known is not None else None
        tuned = by_name.get(onto) if onto is not None and onto != base else None
        result.append(member if tuned is None or tuned is member else applied(member, tuned))
    return result


def measure_missing(
    store: Store, models: Sequence[str], *, device: str = "auto", report: Report = lambda done, total: None
) -> list[str]:
    """Measure the pairs without exact kinship: among `models`, or of the only one with its whole family.

    Returns a line for each model that could not be measured, and why. Raises KinbaseError for an unknown model.
    """
    with store.reading() as con:
        names = [records.resolve(con, model) for model in models]
        missing = records.missing_pairs(con, names)
    notes = []
    for base, pairs in missing.items():
        opened, gone = open_members(store, base)
        try:
            notes += [f"{name}: its files are gone or changed, so what is missing stays so" for name in sorted(gone)
                      if name == base or any(name in pair for pair in pairs)]  # fmt: skip
            pairs = [pair for pair in pairs if set(pair) <= opened.keys()]
            if base not in opened or not pairs:
                continue
            fresh = _cover(pairs)
            others = sorted({name for pair in pairs for name in pair} - set(fresh))
            _measure_known(store, opened, base, fresh, others, device, report)
        except CheckpointError as error:
            notes.append(str(error))
        finally:
            for checkpoint in opened.values():
                checkpoint.close()
    return notes


def _cover(pairs: Sequence[tuple[str, str]]) -> list[str]:
    """A few models such that every pair has one of them: always the one in most of the pairs left."""
    left = set(pairs)
    cover = []
    while left:
        name = max(
            sorted({name for pair in left for name in pair}), key=lambda n: sum(n in pair for pair in left)
        )
        cover.append(name)
        left = {pair for pair in left if name not in pair}
    return cover


def _measure_known(
    store: Store,
    opened: dict[str, Checkpoint],
    base: str,
    fresh: list[str],
    others: list[str],
    device: str,
    report: Report,
) -> None:
    from kinbase.gpu import resolve_device
    from kinbase.measuring import measure

    members = whole(store, list(opened.values()), base)
    at = {member.name: member for member in members}
    members = [at[name] for name in fresh + others]
    family = measure(
        store,
        opened[base],
        members,
        new=len(fresh),
        device=resolve_device(device, len(members)),
        report=report,
    )
    with store.writing() as con:
        stored = {member.name: member for member in records.members(con)}
        for name, digest in family.digests.items():
            alone = any(member is opened[name] for member in members)
            if alone and (name not in stored or stored[name].digest != digest):
                raise CheckpointError(
                    f"{name} is no longer what was imported: import {opened[name].source} again under another --name"
                )
        store_family(con, family, {})


def _as_it_was(stamp: FileStamp) -> bool:
    try:
        return FileStamp.of(stamp.path) == stamp
    except OSError:
        return False


def _without_unreadable(group: list[Source], error: CheckpointError) -> list[Source]:
    """Fail the sources whose files changed under the pass, or all of them when it was none of theirs."""
    changed = [s for s in group if s.checkpoint and not all(map(_as_it_was, s.checkpoint.files))]
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
                model_id, base_id = ids[source.name], records.find(con, str(source.base))
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
        model_id = records.named(con, source.name)
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
        records.put_size(con, records.named(con, checkpoint.name), dtypes.total(), dtype, checkpoint.nbytes)


def store_family(con: Connection, family: "Family", ids: dict[str | None, int | None]) -> None:
    """The sums one pass found, for the members that have a row: `ids` by name, else as stored."""
    members = [ids[c.name] if c.name in ids else records.find(con, c.name) for c in family.members]
    base_id = ids[family.base.name] if family.base.name in ids else records.find(con, family.base.name)
    con.execute("delete from raw.pass where pass_key = ?", [family.key])
    if base_id is None or not members:
        return
    records.put_tensors(
        con, base_id, [name for name, _ in family.tensors], [numel for _, numel in family.tensors]
    )
    for i in reversed(range(len(members))):
        # Weights met twice are one model: the first of them is measured.
        if members[i] == base_id or members[i] in members[:i]:
            members[i] = None
    for i in range(family.new):
        model_id = members[i]
        if model_id is None:
            continue
        records.put_base(con, model_id, base_id)
        records.put_deltas(con, model_id, base_id, family.statistics(i))
        records.put_skipped(con, model_id, {**family.members[i].skipped, **family.skipped[i]})
    records.put_pairs(con, base_id, family.pairs(members))


def _store_records(con: Connection, source: Source) -> None:
    """What the source says besides weights. A name that is taken costs a note, not the rest."""
    for _, facts in source.said(Facts):
        records.put_facts(con, records.named(con, facts.model or str(source.name)), facts)
    for _, alias in source.said(Alias):
        try:
            records.put_alias(con, records.named(con, alias.model or str(source.name)), alias)
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
