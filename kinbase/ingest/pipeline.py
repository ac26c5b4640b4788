"""The one path in: importers read the sources, the kinship pass measures them, one transaction stores them.

    read      each source is opened by the importer that recognises it: a checkpoint, or records   -> Opened
    place     every checkpoint gets the base of its family, or waits for one                       -> Placed
    measure   one pass, or one sample, a family, with the database closed                          -> Measured | Sampled
    store     models, aliases, sums, pairs and claims, in one short transaction                    -> Outcome

The steps are in kinbase.ingest.steps. A source that fails is reported and the others go on; nothing is stored of it.
"""

from collections.abc import Callable, Mapping, Sequence

from kinbase.checkpoint.open import Opened, as_called, elsewhere
from kinbase.errors import UsageError
from kinbase.ingest.bases import Placement, place_all, without_namesakes
from kinbase.ingest.measure import measure_sources
from kinbase.ingest.persist import Also, store_sources
from kinbase.ingest.remote import read_all, stored_versions
from kinbase.ingest.steps import ImportOptions, Measured, Outcome, Sampled
from kinbase.ingest.trajectories import legs
from kinbase.store import Store


def import_sources(
    store: Store,
    sources: Sequence[str],
    options: ImportOptions,
    *,
    on_measured: Callable[[Mapping[str, str]], None] = lambda digests: None,
    also: Also | None = None,
) -> list[Outcome]:
    """Import `sources`; what became of each, in the same order (a base that had to be read comes first).

    The folder of a training run is its checkpoints: see `trajectories`.

    `on_measured` is told the digests of what was read, by name, before it is stored; `also` writes what belongs to
    the import, in its transaction, when what became of the sources is known.
    Raises UsageError for contradictory arguments, KinbaseError when the base cannot be had and
    DatabaseError when the file cannot be used. KeyboardInterrupt leaves the database without the models
    but with the tensors measured so far, and the same import goes on from there.
    """
    if options.name and len(sources) != 1:
        raise UsageError("--name names one model: import that source by itself")
    run = legs(sources, options.name)
    is_away = any(map(elsewhere, [*sources, options.base or ""]))
    known = stored_versions(store, options.depth, options.base) if is_away else as_called
    opened = read_all(run, options, known)
    try:
        placement = place_all(store, opened, options, known)
        measured = _measure(store, placement, options)
        on_measured(measured.digests)
        return store_sources(store, measured, has_kinship=options.has_kinship, also=also)
    finally:
        for source in opened:
            source.close()
        if options.engine is not None:
            options.engine.close()


def _measure(store: Store, placement: Placement, options: ImportOptions) -> Measured | Sampled:
    """The passes over what is to be read; sampling is not loaded, nor is the pass, where nothing is."""
    if options.sample is None or not any(source.is_to_read for source in placement.sources):
        return measure_sources(store, placement, options)
    from kinbase.ingest.sample import sample_sources

    return sample_sources(store, placement, options)


def import_metadata(store: Store, opened: Sequence[Opened]) -> list[Outcome]:
    """Store what sources say besides weights, in one transaction."""
    placed = tuple(source.without_reading() for source in without_namesakes(opened))
    return store_sources(store, Measured(placed), has_kinship=False)
