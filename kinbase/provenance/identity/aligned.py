"""Kinship under disguise: two models compared with their units as they lie, and in one order; and whether they are related.

What is found is verified by the correlation that it gives: of the weights, and of what both changed in their base,
where they are stored with one whose files are there.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations

from kinbase.checkpoint import Checkpoint, Tensor
from kinbase.checkpoint.names import bare, layer_of
from kinbase.errors import KinbaseError, UsageError
from kinbase.ingest.stored import open_stored
from kinbase.matching.agreement import Agreement, View, agreements
from kinbase.matching.architecture import Architecture, architecture, config_of
from kinbase.matching.fingerprint import fingerprint
from kinbase.matching.independence import Independence
from kinbase.matching.match import Matched, match
from kinbase.matching.relabelled import relabelled
from kinbase.matching.symmetry import Symmetry, save
from kinbase.provenance.identity.opening import Model, base_of, open_model
from kinbase.store import Store

OnProgress = Callable[[int, int], None]
Tensors = Mapping[str, Tensor]

ALIGNED, IN_PLACE, NOT_ALIGNED = "aligned", "in place", "not aligned"


@dataclass(slots=True)
class Aligned:
    """How two models compare: `whole` over all tensors, `parts` tensor by tensor.

    `verdict` is "aligned" where units were found elsewhere, "in place" where they are where they belong, "not aligned"
    where nothing shows that the two are related, or no order was settled on: then the figures are of the best found.
    `coverage` is the share of the first's parameters that were compared; `base` the name of what deltas are against.
    """

    a: str
    b: str
    verdict: str
    test: Independence
    symmetry: Symmetry
    whole: Agreement
    parts: list[Agreement]
    base: str | None
    coverage: float
    notes: list[str] = field(default_factory=list)

    def by(self, grouping: str) -> list[Agreement]:
        """The sums by `tensor`, or by `layer`: "" for what is outside the layers. Raises UsageError for another."""
        if grouping == "tensor":
            return self.parts
        if grouping != "layer":
            raise UsageError(f"aligned kinship goes by tensor or layer, not by {grouping!r}")
        found: dict[str, Agreement] = {}
        for part in self.parts:
            place = layer_of(bare(part.tensor or ""))
            key = str(place[1]) if place else ""
            found.setdefault(key, Agreement(key)).plus(part)
        return list(found.values())

    def row(self) -> tuple[object, ...]:
        """What is told of the pair: the columns of `kinbase.query.frames.ALIGNED`."""
        whole = self.whole
        return (
            self.a, self.b, self.verdict, whole.before.pcc, whole.after.pcc, self.base, whole.delta_before.pcc,
            whole.delta_after.pcc, self.test.p, self.test.layers, *self.symmetry.counts().values(), self.coverage, self.notes,
        )  # fmt: skip

    def rows(self, grouping: str) -> list[tuple[object, ...]]:
        """The columns of `kinbase.query.frames.ALIGNED_PARTS`, by tensor or layer."""
        return [
            (self.a, self.b, part.tensor, part.before.pcc, part.after.pcc, part.delta_before.pcc, part.delta_after.pcc,
             part.before.numel)
            for part in self.by(grouping)
        ]  # fmt: skip


def aligned(
    store: Store,
    label_a: str,
    label_b: str,
    *,
    save_to: str | None = None,
    on_progress: OnProgress = lambda done, total: None,
) -> Aligned:
    """Match the units of the second of two models with the first's, and compare them.

    With `save_to`, the order found is written there. Raises KinbaseError for models that are not there, whose
    architecture is not supported, or whose sizes differ.
    """
    a = open_model(store, label_a)
    try:
        b = open_model(store, label_b)
    except BaseException:
        a.checkpoint.close()
        raise
    base: Checkpoint | None = None
    try:
        models = _roles(a), _roles(b)
        found = match(models[0], models[1], on_progress)
        known = base_of(store, a, b)
        if known is not None:
            opened, gone = open_stored([known])
            base = opened.get(known.name)
            found.notes += [
                f"{name}: its files are gone or changed, so no deltas are compared" for name in gone
            ]
        result = _compared(a, b, models, found, base, on_progress)
        if save_to:
            told = {"model": b.label, "onto": a.label, "model_fingerprint": fingerprint(b.checkpoint.tensors),
                    "onto_fingerprint": fingerprint(a.checkpoint.tensors), "verdict": result.verdict}  # fmt: skip
            save(result.symmetry, save_to, told)
        return result
    finally:
        for checkpoint in (a.checkpoint, b.checkpoint, base):
            if checkpoint is not None:
                checkpoint.close()


def aligned_pairs(
    store: Store,
    models: Sequence[str],
    *,
    save_to: str | None = None,
    on_progress: OnProgress = lambda done, total: None,
) -> list[Aligned]:
    """`aligned` of every two of several models, in their order. Raises UsageError for fewer than two."""
    pairs = list(combinations(dict.fromkeys(models), 2))
    if not pairs or (save_to and len(pairs) > 1):
        raise UsageError(
            "two models are aligned with each other: name two" + (", and one file for them" if pairs else "")
        )
    return [aligned(store, a, b, save_to=save_to, on_progress=on_progress) for a, b in pairs]


def _roles(model: Model) -> Architecture:
    return architecture(model.checkpoint.tensors, config_of(model.checkpoint), model.label)


def _compared(
    a: Model, b: Model, models: tuple[Architecture, Architecture], found: Matched, base: Checkpoint | None,
    on_progress: OnProgress,
) -> Aligned:  # fmt: skip
    """The verdict on what was found, with what it gives."""
    mine: Tensors = {t.name: t for t in a.checkpoint.tensors}
    other: Tensors = relabelled({t.name: t for t in b.checkpoint.tensors}, models[1], found.symmetry)
    notes = list(found.notes)
    if base is not None:
        try:
            mine, other = _into_base(base, (a, b), models[0], mine, other)
        except KinbaseError as error:
            notes.append(f"no deltas are compared: {error}")
            base = None
    parts = list(agreements(View(a.checkpoint, mine), View(b.checkpoint, other), base, on_progress))
    whole = Agreement()
    for part in parts:
        whole.plus(part)
    if not whole.before.numel:
        raise KinbaseError(f"{a.label} and {b.label} have no tensor in common")
    symmetry = found.symmetry
    if found.test.is_related and (whole.after.pcc or 0) < (whole.before.pcc or 0):
        symmetry = Symmetry.identity(models[1])
        for part in (whole, *parts):
            part.after, part.delta_after = part.before, part.delta_before
    if not found.is_converged:
        notes.append("channels went on changing their places: what is given is the best found")
    if found.test.p is None:
        notes.append("no layer has units enough to test by")
    is_found = found.test.is_related and found.is_converged
    verdict = NOT_ALIGNED if not is_found else IN_PLACE if symmetry.is_identity else ALIGNED
    total = sum(t.numel for t in a.checkpoint.tensors)
    coverage = whole.before.numel / total if total else 0.0
    name = base.name if base is not None else None
    return Aligned(a.label, b.label, verdict, found.test, symmetry, whole, parts, name, coverage, notes)


def _into_base(
    base: Checkpoint, pair: tuple[Model, Model], model: Architecture, mine: Tensors, other: Tensors
) -> tuple[Tensors, Tensors]:
    """Both models' tensors, the second's already in the first's order, with their units in their base's."""
    roles = architecture(base.tensors, config_of(base), base.name)
    found = match(roles, model)
    if found.symmetry.is_identity or not found.test.is_related:
        return mine, other
    moved = architecture(list(other.values()), config_of(pair[1].checkpoint), pair[1].label)
    return relabelled(mine, model, found.symmetry), relabelled(other, moved, found.symmetry)
