"""The recipe of a stored model: which models of its family it was made of, and with what coefficients.

    candidates    the family, without what descends from the model or is younger
    screened      by the sums of all tensors together (by sketches, then measured, where they are not there yet)
    judged        by the sums of each tensor (kinbase.provenance.recipes.verdict), with the base's own weights as one more column

No checkpoint is read whose sums are stored.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from functools import partial

import numpy as np

from kinbase.checkpoint import Edge
from kinbase.errors import KinbaseError
from kinbase.ingest.missing import measure_missing
from kinbase.ingest.steps import OnProgress as Report
from kinbase.provenance.recipes import stored_grams as grams
from kinbase.provenance.recipes.judgement import Judgement
from kinbase.provenance.recipes.least_squares import EXACT, LIMIT, find_parents, step_gains
from kinbase.provenance.recipes.recipe import Recipe
from kinbase.provenance.recipes.sampled_elements import ElementReader
from kinbase.provenance.recipes.verdict import (
    ADAPTER,
    COPY,
    MERGE,
    MERGES,
    NONE,
    ONWARD,
    SELECTED,
    TRAINED,
    UNDECIDABLE,
    Finding,
    fitted,
    judge,
)
from kinbase.query import sums as stored
from kinbase.query.kinship import ENOUGH
from kinbase.query.models import source_of
from kinbase.store import Connection, Store, journal
from kinbase.store import kinship as sums
from kinbase.store import names as naming
from kinbase.store.lineage import put_measured

SHORT = 32
"""Candidates whose sums are read tensor by tensor."""

FAR = 0.02
"""Cosine by which a sketch, or a stored pair, tells a candidate worth measuring."""

RELATIONS = {
    MERGE: "merge", ADAPTER: "merge", SELECTED: "merge", TRAINED: "finetune", ONWARD: "finetune",
    COPY: "quantized",
}  # fmt: skip
"""What a recipe's edges are called in the lineage."""


@dataclass(frozen=True, slots=True)
class Screened:
    """Of so many `known` candidates of a child those worth reading tensor by tensor, `short`, by model_id."""

    child_id: int
    known: int
    short: list[int]
    notes: list[str]
    unknown: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Family:
    """Where recipes are looked for: all that was measured against one base, by model_id.

    `covered` is the share of the base that each was compared by, `born` are the dates where known, `children` what
    anybody but the weights says was made from a model, `unmeasured` the members of which there are no sums.
    """

    base: str
    totals: grams.Totals
    sums: grams.Sums
    born: dict[int, datetime | None]
    children: dict[int, set[int]]
    covered: dict[int, float]
    unmeasured: tuple[str, ...] = ()

    def candidates(self, child_id: int, among: Sequence[str] = ()) -> tuple[list[int], list[str]]:
        """The models that a child may be made of, and lines on those left out.

        What descends from it by what anybody but the weights says, and what is younger where both dates are known, is
        left out; whoever is asked for `among` is in.
        """
        names = self.sums.names
        if among:
            ids = {names[i]: i for i in self.born}
            strangers = [other for other in among if other not in ids]
            if strangers:
                raise KinbaseError(
                    f"{', '.join(strangers)}: not measured against the base of {names[child_id]}, so no parent can be "
                    "told from them"
                )
            return [ids[other] for other in dict.fromkeys(among) if ids[other] != child_id], []
        below, todo = set[int](), [child_id]
        while todo:
            todo = list(set().union(*(self.children.get(i, ()) for i in todo)) - below)
            below.update(todo)
        own = self.born[child_id]
        younger = {i for i, date in self.born.items() if own is not None and date is not None and date > own}
        notes = []
        weak = {i for i in self.born if self.covered.get(i, 1.0) < ENOUGH} - below - younger
        reasons = (
            (below, "descend from it"),
            (younger - below, "are younger"),
            (weak, "were compared by less than half of the base's parameters"),
        )
        for left_out, why in reasons:
            if told := sorted(names[i] for i in left_out & self.born.keys() - {child_id}):
                notes.append(f"left out, because they {why}: {', '.join(told)}")
        own_share = self.covered.get(child_id, 1.0)
        if own_share < ENOUGH:
            notes.append(
                f"{names[child_id]} itself was compared by {own_share:.1%} of the base: the rest is not told of"
            )
        return [i for i in self.born if i not in below | younger | weak | {child_id}], notes

    def is_copy_of(self, model_id: int, original_id: int) -> bool:
        """Whether a model's weights are the other's, said in a finer dtype or later, or rounded to fewer bits."""
        at = {i: row for row, i in enumerate(self.totals.ids)}
        own, other = self.sums.weights.get(model_id), self.sums.weights.get(original_id)
        if own is None or other is None or model_id not in at or original_id not in at:
            return False
        gram = self.totals.gram
        a, b = at[model_id], at[original_id]
        apart = gram[a, a] + gram[b, b] - 2 * gram[a, b]
        bits = np.nanmean(own[4]), np.nanmean(other[4])
        if apart <= EXACT * gram[b, b]:
            return bool(bits[0] > bits[1]) or (
                bits[0] == bits[1] and self._order(original_id) < self._order(model_id)
            )
        return bool(bits[0] < bits[1] and apart <= LIMIT**2 * np.nansum(own[2]) / 12)

    def _order(self, model_id: int) -> tuple[float, str]:
        date = self.born[model_id]
        return (date.timestamp() if date is not None else float("inf")), self.sums.names[model_id]

    def screened(self, child_id: int, ids: Sequence[int]) -> Screened:
        """The candidates of which more is read, by the sums of all tensors; those not measured with the child are told."""
        totals = self.totals
        at = {model_id: row for row, model_id in enumerate(totals.ids)}
        child = at[child_id]
        rows = np.array(sorted(at[i] for i in ids if i in at), dtype=np.intp)
        measured = ~np.isnan(totals.gram[rows, rows]) & ~np.isnan(totals.gram[child, rows])
        known, unknown = rows[measured].tolist(), rows[~measured].tolist()
        own = self.sums.weights.get(child_id)
        floor = 0.0 if own is None else float(np.nansum(own[2])) / 12
        short = _complete(totals, _short(totals, child, known, floor))
        names = ", ".join(totals.names[i] for i in unknown)
        notes = [f"not measured with it, so left out: {names}"] if unknown else []
        lacking = tuple(totals.names[i] for i in unknown)
        return Screened(child_id, len(known), [totals.ids[i] for i in short], notes, lacking)


def recover(
    store: Store,
    model: str,
    *,
    among: Sequence[str] = (),
    measure: bool = True,
    device: str = "auto",
    report: Report = lambda done, total: None,
) -> Recipe:
    """The recipe of `model` from the models `among` (none: from its family, what descends from it left out).

    With `measure`, pairs that were not measured yet are, while their files are there. Raises KinbaseError for
    an unknown model, one without weights, without a base, of another family, and for an adapter.
    """
    with store.reading() as con:
        name = naming.resolve(con, model)
        child_id, base_id, base = placed(con, name)
        family = load(con, base_id, base)
        ids, notes = family.candidates(child_id, [naming.resolve(con, other) for other in among])
        wanted = _wanted(con, child_id, ids) if measure else []
    if wanted:
        notes += measure_missing(store, [name, *wanted], device=device, on_progress=report)
    with store.reading() as con:
        family = load(con, base_id, base) if wanted else family
        recipes = Recipes(con, family)
        found = recipes.read_among(child_id, ids) if among else recipes.of(child_id)
    return replace(found, notes=notes + found.notes)


def measure(
    store: Store, name: str, *, device: str = "auto", report: Report = lambda done, total: None
) -> list[str]:
    """Measure the pairs that a recipe of `name` hangs on; nothing for a model that has none."""
    with store.reading() as con:
        try:
            child_id, base_id, base = placed(con, name)
        except KinbaseError:
            return []
        wanted = _wanted(con, child_id, load(con, base_id, base).candidates(child_id)[0])
    return measure_missing(store, [name, *wanted], device=device, on_progress=report) if wanted else []


def placed(con: Connection, name: str) -> tuple[int, int, str]:
    """Ids of a model and of its base, and the base's name; KinbaseError for a model that has no recipe."""
    model_id, base_id, base, has_weights, measured, weighed, is_base, is_adapter = stored.state(con, name)
    if not has_weights:
        raise KinbaseError(f"{name} is known without its weights: import its checkpoint")
    if base_id is None and is_base:
        raise KinbaseError(f"{name} is the base of its family: recipes are of what was made from it")
    if base_id is None or base is None:
        raise KinbaseError(f"no base is known for {name}: import it again with --base")
    if is_adapter and not weighed:
        raise KinbaseError(f"{name} is an adapter, a change and no whole model: merge it first, import that")
    if not measured:
        source = source_of(con, name)
        raise KinbaseError(
            f"there are no sums of {name} against {base}, as after --stream, --sample or --no-kinship: a recipe needs them; "
            f"`kinbase import {source} --base {base}` reads its weights"
        )
    if not weighed:
        raise KinbaseError(f"the sums of {name}'s own weights are not here: import it again")
    return model_id, base_id, base


def load(con: Connection, base_id: int, base: str) -> Family:
    """The family measured against a base, without the sums of its pairs by tensor."""
    dates = stored.members_with_dates(con, base_id)
    ids = list(dates)
    children: dict[int, set[int]] = {}
    for parent, child in stored.children_by_claims(con):
        children.setdefault(parent, set()).add(child)
    lacking = tuple(stored.unmeasured_members(con, base))
    return Family(base, grams.totals(con, base_id, ids), grams.load(con, base_id, ids), dates, children,
                  sums.covered(con, base_id), lacking)  # fmt: skip


def from_stored(
    con: Connection, family: Family, screened: Screened, reader: ElementReader | None = None
) -> Recipe:
    """The recipe by what is stored, descendants and all, and by elements that the `reader` reads where sums do not tell.

    Raises KinbaseError when no tensor is common to all candidates.
    """
    name, child_id, short = family.sums.names[screened.child_id], screened.child_id, screened.short
    stored = grams.read(con, family.sums, child_id, short)
    if stored is None:
        raise KinbaseError(f"{name} shares no whole tensor with all its candidates: name fewer with --among")
    sampler = None if reader is None else partial(reader.of, name, family.base)
    finding = judge(stored.grams, stored.zeros, sampler)
    if stored.coverage < 0.999:
        # A candidate of another shape takes tensors away from everybody: only those that matter stay.
        kept = {p.parent for p in (*finding.parents, *finding.nearest)}
        again = grams.read(con, family.sums, child_id, [i for i in short if family.sums.names[i] in kept])
        if again is not None and again.coverage > stored.coverage:
            stored, finding = again, judge(again.grams, again.zeros, sampler)
    notes = list(screened.notes)
    if family.base in stored.lacking:
        notes.append(
            f"the sums of {family.base}'s own weights are not here, so SLERP is not looked for: import it again"
        )
    lacking = [*screened.unknown, *(other for other in family.unmeasured if other != name)]
    if family.unmeasured:
        notes.append(f"without sums, so left out: {_some(family.unmeasured)}")
    if lacking and finding.verdict == NONE:
        finding = replace(
            finding, verdict=UNDECIDABLE,
            reason=f"{_some(lacking)} may be in it and was not measured with it: `kinbase import` of its files does that",
        )  # fmt: skip
    return Recipe(name, family.base, finding, screened.known, stored.coverage, notes)


def _some(names: Sequence[str], most: int = 5) -> str:
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


class Recipes:
    """The recipes of a family by model_id, in one judgement of all its relations, worked out when asked for.

    The connection must stay open as long as recipes are asked for.
    """

    def __init__(self, con: Connection, family: Family) -> None:
        self._con, self.family = con, family
        self._read_so_far: dict[tuple[int, frozenset[int]], Recipe] = {}
        self._screened: dict[int, list[int]] = {}
        ids = {family.sums.names[i]: i for i in family.born}
        self.judgement = Judgement(self._finding, self._fit, self._candidates, ids)
        self.reader = ElementReader({m.name: m for m in naming.members(con)}, family.base)

    def of(self, model_id: int) -> Recipe:
        """A model's recipe; KinbaseError when no tensor is common to it and its candidates."""
        finding = self.judgement.of(model_id)
        recipe = self._recipe(model_id, self.judgement.left_out(model_id))
        if finding is None:
            return recipe
        if finding.verdict == TRAINED:
            above = self.judgement.of(self.judgement.ids[finding.parents[0].parent])
            if above is not None and above.verdict in MERGES:
                made = " and ".join(p.parent for p in above.parents)
                finding = replace(
                    finding, reason=f"{finding.reason}: continued training of a merge of {made}"
                )
        return replace(recipe, finding=finding).with_base()

    def read_among(self, model_id: int, ids: Sequence[int]) -> Recipe:
        """A model's recipe from just these candidates, whatever the others say."""
        return from_stored(
            self._con, self.family, self.family.screened(model_id, ids), self.reader
        ).with_base()

    def _candidates(self, model_id: int) -> list[int]:
        if model_id not in self._screened:
            ids = [
                i for i in self.family.candidates(model_id)[0]
                if not self.family.is_copy_of(i, model_id)
            ]  # fmt: skip
            self._screened[model_id] = ids
        return self._screened[model_id]

    def _recipe(self, model_id: int, without: frozenset[int]) -> Recipe:
        key = model_id, without
        if key not in self._read_so_far:
            ids = [i for i in self._candidates(model_id) if i not in without]
            self._read_so_far[key] = from_stored(
                self._con, self.family, self.family.screened(model_id, ids), self.reader
            )
        return self._read_so_far[key]

    def _finding(self, model_id: int, without: frozenset[int]) -> Finding | None:
        try:
            return self._recipe(model_id, without).finding
        except KinbaseError:
            return None

    def _fit(self, model_id: int, others: list[int]) -> Finding | None:
        stored = grams.read(self._con, self.family.sums, model_id, others)
        return fitted(stored.grams, range(len(others))) if stored is not None else None


def _complete(totals: grams.Totals, chosen: Sequence[int]) -> list[int]:
    """Those of the chosen candidates, in their order, of which every pair was measured."""
    kept: list[int] = []
    for i in chosen:
        if not np.isnan(totals.gram[i, [i, *kept]]).any():
            kept.append(i)
    return kept


def _short(totals: grams.Totals, child: int, known: list[int], floor: float) -> list[int]:
    """The candidates worth reading tensor by tensor: what fits globally, their twins, and the nearest kin."""
    if len(known) <= SHORT:
        return known
    length = np.sqrt(np.diagonal(totals.gram))
    cosine = np.abs(totals.gram[child, known]) / np.maximum(length[child] * length[known], 1e-300)
    ranked = [known[i] for i in np.argsort(-cosine)]
    sumsq = float(totals.gram[child, child])
    normal = totals.normal(child, ranked, max(floor, EXACT * sumsq), 1e6)
    chosen = find_parents(normal)
    rest = [j for j in range(len(ranked)) if j not in chosen]
    gains = step_gains(normal, chosen, rest)
    order = [*chosen, *(rest[i] for i in np.argsort(-gains))]
    near = normal.gram[:, chosen] > 0.9 * np.outer(length[ranked], length[ranked][chosen])
    twins = np.flatnonzero(near.any(axis=1)).tolist()
    first = [*chosen, *twins[: SHORT // 4], *range(SHORT // 4), *order]
    return [ranked[j] for j in dict.fromkeys(first)][:SHORT]


def _wanted(con: Connection, child_id: int, ids: Sequence[int]) -> list[str]:
    """Whom to measure with the model: the nearest by what is known, and whoever nothing is known of."""
    near = stored.cosines(con, child_id, ids)
    known = sorted((i for i in ids if near.get(i, 0.0) >= FAR), key=lambda i: -near[i])[:SHORT]
    return [naming.name_of(con, i) for i in (*known, *(i for i in ids if i not in near))]


def places(store: Store, names: Sequence[str], model: str) -> tuple[dict[str, str], str | None]:
    """Where the named models lie (an adapter with what it is of: `model+adapter`), and the dtype of `model`."""
    with store.reading() as con:
        found, adapters, dtype = stored.files_of(con, names, model)
    for name in names:
        if not found.get(name):
            raise KinbaseError(f"it is not known where {name} lies: import its checkpoint")
    whole = {name: f"{adapters[name]}+{path}" if name in adapters else path for name, path in found.items()}
    return whole, dtype


def record(store: Store, recipe: Recipe) -> list[str]:
    """Store the recipe's edges with evidence `weights`, in place of earlier ones; lines on what was stored."""
    found = recipe.finding
    relation = RELATIONS.get(found.verdict)
    edges = []
    for parent in found.parents if relation else []:
        detail: dict[str, object] = {
            "verdict": found.verdict, "low": parent.low, "high": parent.high, "residual": found.residual,
            "floor": found.floor, "ratio": found.ratio,
        }  # fmt: skip
        if recipe.lists():
            detail["lists"] = recipe.lists()
        weight = parent.coefficient if relation == "merge" and found.gradient is None else None
        edges.append(
            Edge(parent.parent, str(relation), "weights", recipe.model, found.method, weight, detail)
        )
    with store.writing() as con, journal.act(con, "recipe", f"{recipe.model} --record"):
        circular = put_measured(con, recipe.model, edges)
    lines = [f"{e.parent} -> {recipe.model} {e.relation}" for e in edges if e.parent not in circular]
    lines += [f"{parent} descends from {recipe.model} by what is said: not stored" for parent in circular]
    return lines or [f"nothing to store: {found.verdict}"]
