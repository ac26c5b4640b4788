"""The one path in: importers read the sources, the kinship pass measures them, one transaction stores them.

    read      each source is opened by the importer that recognises it: a checkpoint, or records (kinbase.checkpoint.open)
    place     every checkpoint gets the base of its family, or waits for one (kinbase.ingest.bases)
    measure   one pass a family, with the database closed (kinbase.ingest.measure)
    store     models, aliases, sums, pairs and claims, in one short transaction (kinbase.ingest.persist)

A source that fails is reported and the others go on; nothing is stored of it.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

from kinbase.checkpoint import Commit
from kinbase.checkpoint.open import Source, Tell, elsewhere
from kinbase.errors import UsageError
from kinbase.ingest.bases import known_base, place, read_base, reading, refuse_namesakes
from kinbase.ingest.measure import measure_families
from kinbase.ingest.persist import store_sources
from kinbase.ingest.remote import read_all, stored_versions
from kinbase.ingest.stored import Report
from kinbase.store import Connection, Store

if TYPE_CHECKING:  # the pass costs half a second of imports, which records alone need not pay
    from kinbase.ingest.sample import Sampled
    from kinbase.kinship.sums import FamilySums


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
        with reading(store) as con:
            base, unread = known_base(con, base, found, depth)
            family = None if unread else place(con, found, base, sketch)
        if unread:
            base = read_base(unread, base, found, depth, known, tell)
            with reading(store) as con:
                family = place(con, found, base, sketch)
        families: list[FamilySums] = []
        if metadata_only:
            _keep_metadata(found)
        elif sample is not None and any(source.arriving for source in found):
            from kinbase.ingest.sample import sample_families

            sampled = sample_families(store, found, sample, stderr, report)
        elif any(source.arriving for source in found):
            families = measure_families(
                store, found, family,
                kinship=kinship, sketch=sketch, device=device, depth=depth, report=report,
            )  # fmt: skip
        measured({name: digest for family in families for name, digest in family.digests.items()})
        store_sources(store, found, families, sampled, kinship and not metadata_only, also)
    finally:
        for source in found:
            if source.checkpoint:
                source.checkpoint.close()
    return found


def import_metadata(store: Store, found: list[Source]) -> None:
    """Store what sources say besides weights, in one transaction."""
    refuse_namesakes(found)
    _keep_metadata(found)
    store_sources(store, found, [], [], False)


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
