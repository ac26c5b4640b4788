"""Kinship that a family lacks, measured or estimated when somebody asks for it."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from kinbase.checkpoint import Checkpoint
from kinbase.errors import CheckpointError
from kinbase.ingest.steps import OnProgress
from kinbase.ingest.stored import open_members, whole
from kinbase.ingest.stored_sums import store_family
from kinbase.store import Store
from kinbase.store import names as naming

if TYPE_CHECKING:  # the pass costs half a second of imports, which a look at what is stored need not pay
    from kinbase.kinship.sums import FamilySums

Pairs = Sequence[tuple[str, str]]


def measure_missing(
    store: Store,
    models: Sequence[str],
    *,
    exact: bool = False,
    device: str = "auto",
    on_progress: OnProgress = lambda done, total: None,
) -> list[str]:
    """Measure the pairs without kinship: among `models`, or of the only one with its whole family.

    A pair estimated by sketches is not missing, unless all is to be `exact`. What has no files any more is
    estimated where there are sketches. Returns a line for each model that could not be measured, and why. Raises
    KinbaseError for an unknown model.
    """
    with store.reading() as con:
        names = [naming.resolve(con, model) for model in models]
        missing = naming.missing_pairs(con, names, exact=exact)
    notes = []
    for base, pairs in missing.items():
        opened, gone = open_members(store, base, only={base, *(name for pair in pairs for name in pair)})
        try:
            left = [pair for pair in pairs if base not in opened or not set(pair) <= opened.keys()]
            notes += _estimated(store, base, left, gone, exact=exact)
            pairs = [pair for pair in pairs if set(pair) <= opened.keys()]
            if base in opened and pairs:
                _measure(store, opened, base, pairs, device, on_progress)
        except CheckpointError as error:
            notes.append(str(error))
        finally:
            for checkpoint in opened.values():
                checkpoint.close()
    return notes


def _estimated(store: Store, base: str, pairs: Pairs, gone: Sequence[str], *, exact: bool) -> list[str]:
    """Estimate pairs by sketches that cannot be measured; a line for each model whose files are `gone`."""
    estimated = _estimate(store, base, pairs)
    lost = {name for pair in set(pairs) - estimated for name in (base, *pair)}
    notes = [
        f"{name}: its files are gone or changed, so what is missing stays so"
        for name in sorted(lost.intersection(gone))
    ]
    if exact:
        kept = {name for pair in estimated for name in (base, *pair)}
        notes += [
            f"{name}: its files are gone or changed, so its kinship stays an estimate"
            for name in sorted(kept.intersection(gone))
        ]
    return notes


def _estimate(store: Store, base: str, pairs: Pairs) -> set[tuple[str, str]]:
    """Estimate pairs by sketches; those that have an estimate."""
    if not pairs:
        return set()
    from kinbase.ingest import estimate as meeting

    with store.writing() as con:
        meeting.estimate_named(con, base, pairs)
        return naming.sketched_pairs(con, pairs)


def _measure(
    store: Store,
    opened: dict[str, Checkpoint],
    base: str,
    pairs: Pairs,
    device: str,
    on_progress: OnProgress,
) -> None:
    """One pass over the models of `pairs`, as few of them as new as it takes, and its sums to rows."""
    from kinbase.ingest.family_pass import measure
    from kinbase.kinship.gpu import resolve_device

    fresh = _cover(pairs)
    others = sorted({name for pair in pairs for name in pair} - set(fresh))
    at = {member.name: member for member in whole(store, list(opened.values()), base)}
    members = [at[name] for name in fresh + others]
    family = measure(
        store, opened[base], members, new=len(fresh), device=resolve_device(device),
        on_progress=on_progress,
    )  # fmt: skip
    with store.writing() as con:
        _refuse_others(family, opened, {member.name: member.digest for member in naming.members(con)})
        store_family(con, family, naming.ids(con, [base, *fresh, *others]))


def _refuse_others(family: "FamilySums", opened: dict[str, Checkpoint], stored: dict[str, str]) -> None:
    """Raise CheckpointError when weights read are not those that were imported; forget what was read with others."""
    own = set(map(id, (family.base, *family.members)))
    for name, digest in family.digests.items():
        if id(opened[name]) not in own:
            family.forget(name)
        elif stored.get(name) != digest:
            raise CheckpointError(
                f"{name} is no longer what was imported: import {opened[name].source} again under another --name"
            )


def _cover(pairs: Pairs) -> list[str]:
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
