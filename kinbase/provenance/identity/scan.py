"""Which known base a model is: held against sketches of weights, tested where files allow, and never told by its config.

The sketches of two models' weights, less the mean of every vector (`look.vectors`), give the cosine of their weights with
its standard error: near 1 for a fine-tune, near 0 for independent trainings of one configuration. Where a known model's files are
here the test of `kinbase.matching.independence` decides, which also finds what was disguised.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from kinbase.checkpoint import DTYPE_BYTES, FLOAT_DTYPES, Checkpoint, Tensor
from kinbase.checkpoint.adapters import decoded, elements
from kinbase.checkpoint.alignment import meet
from kinbase.errors import CheckpointError, KinbaseError
from kinbase.ingest.stored import open_stored
from kinbase.kinship.sketch import compare
from kinbase.matching.architecture import Architecture, architecture, config_of
from kinbase.matching.independence import Independence
from kinbase.matching.match import independence
from kinbase.matching.relabelled import stored
from kinbase.provenance.identity import sketch_file
from kinbase.provenance.identity.look import Look, look, vectors, without
from kinbase.provenance.identity.opening import Model, open_model
from kinbase.store import Store, sketches
from kinbase.store import names as naming

OnProgress = Callable[[int, int], None]

AKIN, ERRORS = 0.1, 5.0
"""The cosine from which sketches say that two models are related, and by how many of its standard errors it is above 0."""
PLAIN = 1e-6
"""p below which two models are related though their sketches say nothing of it. Strangers are looked at by the hundred, and
of a thousand one has a p below 0.001; of what was disguised it is smaller than this by far."""
LIKE = 0.1
"""By how much the numbers of elements of two models may differ: vocabularies are resized, layers are not."""
TESTED = 8
"""Known models whose weights are read for the test: those that the sketches find, or else the likeliest."""
PROBES, PROBE = 16, 1 << 16
"""Tensors, and elements of each, of which it is seen whether one model is the other rounded."""

EQUAL = "equal where they were read, which tells no direction"
WIDER = "its values in a wider dtype, which hold nothing that was not in them"
SAME, RELATED, UNRELATED, UNDECIDED, NO_SIGN = (
    "the same weights",
    "related",
    "unrelated",
    "undecided",
    "no sign",
)


@dataclass(frozen=True, slots=True)
class Hit:
    """A known model held against the one asked for.

    `verdict` is "the same weights" (digests), "related" or "unrelated" (by the test, or by sketches that are plain),
    "undecided" (test and sketches disagree), "no sign" (by sketches alone, which do not see through a disguise).
    `kinship` is the cosine of the weights less the means of their vectors; `p` of the test, None where it was not made;
    `direction` says of related models who was made from whom, where that is decided; `coverage` is the share of the
    model's parameters that the known one has, None where its files are not here.
    """

    name: str
    verdict: str
    kinship: float | None
    stderr: float | None
    p: float | None = None
    direction: str | None = None
    coverage: float | None = None

    @property
    def is_akin(self) -> bool:
        """Whether the sketches alone say that the two are related."""
        return self.kinship is not None and self.kinship > max(AKIN, ERRORS * (self.stderr or 0))


def scan(
    store: Store,
    label: str,
    *,
    against: str | None = None,
    k: int = 5,
    on_progress: OnProgress = lambda done, total: None,
) -> tuple[list[Hit], list[str]]:
    """The `k` known models that a model is likest to, and lines on what was not compared; nothing is stored.

    Known are the bases of the database and its models without one, or those of the file of sketches `against`.
    Raises KinbaseError for a model that cannot be read.
    """
    model = open_model(store, label)
    try:
        known = _known(store, model, against)
        own = _own(store, model, on_progress)
        fitting = [one for one in known if abs(one.numel - own.numel) <= LIKE * own.numel]
        notes = _said_of_sizes(model.label, known, fitting)
        hits = _by_sketches(model.checkpoint, own, fitting)
        rows = {one.name: one for one in fitting}
        hits, more = _tested(store, model, hits, rows, on_progress)
        hits.sort(
            key=lambda hit: (_ORDER.index(hit.verdict), -(hit.kinship if hit.kinship is not None else -1))
        )
        summary = [_summary(model.label, hits, len(fitting))] if known else []
        return hits[:k], [*notes, *more, *summary]
    finally:
        model.checkpoint.close()


_ORDER = (SAME, RELATED, UNDECIDED, NO_SIGN, UNRELATED)


def _known(store: Store, model: Model, against: str | None) -> list[sketches.Known]:
    """What the model is held against; not itself, if it is stored."""
    if against is not None:
        return sketch_file.read(against)
    if not store.path.exists():
        raise KinbaseError(
            f"there is no database {store.path} to scan against: import bases, or name a file with --sketches"
        )
    own = model.member.model_id if model.member else None
    with store.reading() as con:
        return [one for one in sketches.known(con) if one.model_id != own]


def _own(store: Store, model: Model, on_progress: OnProgress) -> Look:
    """The model's own sketch: as it is stored, or read anew."""
    if model.member is not None:
        with store.reading() as con:
            kept = sketches.vector(con, model.member.model_id)
        if kept is not None:
            return Look(model.member.digest, kept.numel, kept.sums)
    return look(model.checkpoint, on_progress)


def _said_of_sizes(
    name: str, known: Sequence[sketches.Known], fitting: Sequence[sketches.Known]
) -> list[str]:
    if not known:
        return ["nothing is known to compare with: import bases, or name a file with --sketches"]
    left = len(known) - len(fitting)
    return (
        [
            f"{left} of {len(known)} known models differ from {name} by more than {LIKE:.0%} in size: not compared"
        ]
        if left
        else []
    )


def _by_sketches(model: Checkpoint, own: Look, known: Sequence[sketches.Known]) -> list[Hit]:
    """Every known model by its sketch."""
    if not known:
        return []
    common = vectors(model.tensors)
    mine = without(own.sums, common)
    cosines, errors, *_ = compare(mine, np.stack([without(one.sums, common) for one in known]))
    hits = []
    for one, cosine, error in zip(known, cosines.tolist(), errors.tolist(), strict=True):
        is_known = np.isfinite(cosine)
        hit = Hit(one.name, NO_SIGN, cosine if is_known else None, error if is_known else None)
        if one.digest is not None and one.digest == own.digest:
            hit = replace(hit, verdict=SAME, direction="equal, which tells no direction")
        elif hit.is_akin:
            hit = replace(hit, verdict=RELATED, direction=UNDECIDED)
        hits.append(hit)
    return hits


def _tested(
    store: Store, model: Model, hits: Sequence[Hit], known: dict[str, sketches.Known], on_progress: OnProgress
) -> tuple[list[Hit], list[str]]:
    """The hits with what the files of known models tell: p, direction, coverage. And lines on those that are not there."""
    notes: list[str] = []
    akin = [hit for hit in hits if hit.verdict == RELATED]
    chosen = akin or [hit for hit in hits if hit.verdict != SAME]
    chosen = sorted(chosen, key=lambda hit: -(hit.kinship or 0))[:TESTED]
    found = {hit.name: hit for hit in hits}
    with_files = {
        hit.name: known[hit.name].model_id for hit in chosen if known[hit.name].model_id is not None
    }
    if not with_files:
        return list(hits), notes
    with store.reading() as con:
        members = [m for m in naming.members(con) if m.model_id in with_files.values()]
    try:
        roles = architecture(model.checkpoint.tensors, config_of(model.checkpoint), model.label)
    except KinbaseError as error:
        roles = None
        notes.append(f"no p-values: {error}")
    for member in members:
        opened, gone = open_stored([member])
        notes += [f"{name}: its files are gone or changed, so its sketch alone is compared" for name in gone]
        if member.name in opened:
            try:
                found[member.name] = _read(
                    model, roles, opened[member.name], found[member.name], notes, on_progress
                )
            finally:
                opened[member.name].close()
    return list(found.values()), notes


def _read(
    model: Model,
    roles: Architecture | None,
    other: Checkpoint,
    hit: Hit,
    notes: list[str],
    on_progress: OnProgress,
) -> Hit:
    """A hit with what the known model's files tell."""
    met, _ = meet(other, model.checkpoint)
    pairs = [
        (t, own)
        for t, own in zip(other.tensors, met, strict=True)
        if own is not None and t.dtype in FLOAT_DTYPES
    ]
    total = sum(t.numel for t in model.checkpoint.tensors if t.dtype in FLOAT_DTYPES)
    hit = replace(hit, coverage=sum(min(t.numel, own.numel) for t, own in pairs) / max(total, 1))
    if roles is not None:
        try:
            test = independence(architecture(other.tensors, config_of(other), other.name), roles, on_progress)
            hit = replace(hit, p=test.p, verdict=_judged(hit, test))
        except CheckpointError as error:
            notes.append(str(error))
        except KinbaseError as error:
            notes.append(f"no p-value: {error}")
    return replace(hit, direction=_direction(hit, pairs) if hit.verdict == RELATED else None)


def _judged(hit: Hit, test: Independence) -> str:
    """The verdict of test and sketch together."""
    if test.p is None:
        return hit.verdict
    if test.p < PLAIN or (test.is_related and hit.is_akin):
        return RELATED
    return UNDECIDED if test.is_related or hit.is_akin else UNRELATED


def _direction(hit: Hit, pairs: Sequence[tuple[Tensor, Tensor]]) -> str:
    """Who was made from whom: decided where one is the other rounded, or holds the same numbers in a wider dtype."""
    chosen = sorted(pairs, key=lambda pair: -pair[0].numel)[:PROBES]
    if not chosen:
        return UNDECIDED
    values = [[elements(t, 0, min(PROBE, a.numel, b.numel)) for t in (a, b)] for a, b in chosen]
    if all(np.array_equal(known, own) for known, own in values):
        widths = [sum(DTYPE_BYTES[pair[k].dtype] for pair in chosen) for k in (0, 1)]
        if widths[0] == widths[1]:
            return EQUAL
        return f"made from {hit.name}: {WIDER}" if widths[1] > widths[0] else f"the known one is it: {WIDER}"
    for this, that, words in (
        (1, 0, f"made from {hit.name}: its values rounded"),
        (0, 1, "the known one is it, rounded"),
    ):
        forms = [pair[this].dtype for pair in chosen]
        if not any(DTYPE_BYTES[form] == 1 for form in forms) and all(
            np.array_equal(_rounded(both[that], form), both[this])
            for both, form in zip(values, forms, strict=True)
        ):
            return words
    return UNDECIDED


def _rounded(values: NDArray[np.float64], dtype: str) -> NDArray[np.float64]:
    return decoded(stored(values, dtype).reshape(-1), dtype)


def _summary(name: str, hits: Sequence[Hit], count: int) -> str:
    """What was found, in a line."""
    related = [hit for hit in hits if hit.verdict in (SAME, RELATED)]
    if related:
        best = related[0]
        what = "has the same weights as" if best.verdict == SAME else "is related to"
        more = f", and to {len(related) - 1} more" if len(related) > 1 else ""
        hidden = (
            ""
            if best.verdict == SAME or best.is_akin
            else ": its units lie in another order (`kinbase kin --aligned`)"
        )
        return f"{name} {what} {best.name}{more}{hidden}"
    doubt = " (sketches do not see through a disguise)" if any(hit.verdict == NO_SIGN for hit in hits) else ""
    return f"{name}: none of {count} known models of its size is seen to be related{doubt}"
