"""What was read and measured, to rows: models, names, sums, pairs and claims, in one short transaction."""

from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from kinbase.checkpoint import FLOAT_DTYPES, Alias, Edge, Facts, ReportedKinship, Score, Task, Training
from kinbase.checkpoint.open import Source
from kinbase.errors import KinbaseError
from kinbase.ingest.stored import store_family
from kinbase.store import Connection, Store, models
from kinbase.store import names as naming
from kinbase.store.estimates import drop_reported, put_reported
from kinbase.store.lineage import put_claims
from kinbase.store.scores import put_scores, put_tasks, put_trainings

if TYPE_CHECKING:  # the pass costs half a second of imports, which records alone need not pay
    from kinbase.ingest.sample import Sampled
    from kinbase.kinship.sums import FamilySums


def store_sources(
    store: Store,
    found: list[Source],
    families: "Sequence[FamilySums]",
    sampled: "Sequence[Sampled]",
    kinship: bool,
    also: Callable[[Connection, list[Source]], None] | None = None,
) -> None:
    """Store what sources say and what passes or samples found, and what `also` writes, in one transaction.

    A source gets its final status; what could not be stored of it is among its notes.
    """
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
    families: "Sequence[FamilySums]",
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
                models.put_base(con, model_id, base_id)
    for family in sorted(
        families, key=lambda family: bool(family.changes)
    ):  # a base before who does not fit it
        store_family(con, family, ids)
    _meet(con, found, ids, kinship)
    if sampled:
        from kinbase.ingest.sample import store_sampled

        for each in sampled:
            store_sampled(con, each, ids)
    _store_records(con, [source for source in found if source.status != "failed" and not _is_known(source)])
    _store_sizes(con, found)


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
            model_id, name = models.put_model(con, source.name, digest, checkpoint.source, checkpoint.files)
        except KinbaseError as error:
            source.fail(error)
            return None
        source.status = "imported" if name == source.name else "alias"
        if name != source.name:
            source.notes.append(f"the same weights as {name}: {source.name} is another name of it now")
            source.name = name
        if (kept := models.place(con, model_id)) not in (None, checkpoint.source):
            source.notes.append(f"read from {kept} before, where they still are: that stays their place")
    place = source.source if source.importer else str(Path(source.source).resolve())
    speaker = source.records[0][0] if source.importer and source.records else source.source
    source.records.insert(0, (speaker, Alias(place, kind="path")))
    return model_id


def _meet(con: Connection, found: list[Source], ids: dict[str | None, int | None], kinship: bool) -> None:
    """Estimate by sketches the kinship of new members with whom they were not measured; say whom others resemble."""
    new = [s for s in found if s.status == "imported" and not s.again and ids[s.name] is not None]
    if not new:
        return
    from kinbase.ingest import estimate as meeting

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
    models.put_sizes(con, rows)
    places = {
        ids[str(s.name)]: s.checkpoint.source if s.checkpoint else s.source
        for s in told
        if s.status in ("metadata", "sampled")
    }
    models.put_first_sources(con, places)


def _store_records(con: Connection, found: Sequence[Source]) -> None:
    """What sources say besides weights. A name that is taken costs a note, not the rest."""
    said = [(source, record) for source in found for _, record in source.records]
    labels = [r.model or str(s.name) for s, r in said if isinstance(r, Facts | Alias)]
    ids = naming.named_all(con, labels)
    speaker = {id(r): s for s, r in said if isinstance(r, Alias)}
    aliases = [(ids[r.model or str(s.name)], r) for s, r in said if isinstance(r, Alias)]
    for model_id, alias in models.put_new_aliases(con, aliases) if aliases else ():
        try:
            models.put_alias(con, model_id, alias)
        except KinbaseError as error:
            speaker[id(alias)].notes.append(str(error))
    ids = naming.named_all(con, labels)  # an alias may have made two rows one
    models.put_many_facts(con, [(ids[r.model or str(s.name)], r) for s, r in said if isinstance(r, Facts)])
    claims = []
    for source in found:
        for file in dict.fromkeys(file for file, _ in source.records):
            edges = [r for f, r in source.said(Edge) if f == file]
            scores = [r for f, r in source.said(Score) if f == file]
            claims.append((source.name, file, edges))
            put_scores(con, source.name, scores)
        put_trainings(con, source.name, [training for _, training in source.said(Training)])
    put_claims(con, claims)
    files = [file for _, file, _ in claims]
    if files:
        drop_reported(con, files)
    for source in found:
        for file in dict.fromkeys(file for file, _ in source.said(ReportedKinship)):
            put_reported(con, file, [r for f, r in source.said(ReportedKinship) if f == file])
    put_tasks(con, [task for source in found for _, task in source.said(Task)])


def _is_known(source: Source) -> bool:
    """Whether nothing was read of a source but that it is what is stored."""
    return source.status == "unchanged" and source.checkpoint is None
