"""What cards, configurations and people say a model was made of, held against its weights.

A claim is all that one source says of one model's parents. It is supported, contradicted, or undecidable: its
parents are not here, were not measured, or what is left over does not decide. Only stored sums are used.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import cache

import numpy as np

from kinbase import grams, recipes
from kinbase.errors import KinbaseError
from kinbase.families import Report
from kinbase.fits import LEAST
from kinbase.recipes import Family, Recipe, Screened
from kinbase.store import Connection
from kinbase.traces import ALIKE
from kinbase.verdicts import COPY, MERGE, NONE, SELECTED, TRAINED, Finding, Parent, fitted, graded, judge

CLOSED = (None, "linear", "slerp", "task_arithmetic", "nuslerp", "multislerp", "karcher", "model_stock")
"""Merge methods that are a combination of the parents in each tensor; the others leave elements out or bend them."""

PRINTED = 0.005
"""How far a printed coefficient may lie outside the interval: cards round to two decimals."""

NO_PART = 0.02
"""A coefficient that is no share in a merge."""

CLEARLY = 4.0
"""Residual over rounding from which a combination is clearly not the model, unless most of it is explained."""

MANY = 64
"""Members of a family from which on only the models that others explain at all are looked at one by one."""

EXPLAINED = 0.5
"""Share of a model's change that all others together must explain for a look at its recipe, then."""

AT_ONCE = 32
"""Models whose pairs are read from the database together: of 220 tensors each they are 30 MB."""

Row = tuple[str, str, str, str]


@dataclass(frozen=True, slots=True)
class Claim:
    """What one source says of one model: parents by name with relation, method and weight.

    `here` are model_id and base_id of those parents whose weights are stored.
    """

    child: str
    evidence: str
    edges: list[tuple[str, str, str | None, float | None]]
    here: dict[str, tuple[int, int | None]] = field(default_factory=dict)

    @property
    def parents(self) -> list[str]:
        """Names of the parents, without the base a merge's deltas were taken from."""
        return [name for name, relation, _, _ in self.edges if relation != "base"]

    @property
    def is_merge(self) -> bool:
        """Whether it speaks of a merge."""
        return any(relation == "merge" for _, relation, _, _ in self.edges)

    def text(self) -> str:
        """The claim in a line."""
        said = [
            f"{name} {weight:.4g}" if weight is not None else name
            for name, relation, _, weight in self.edges
            if relation != "base"
        ]
        relation = next((r for _, r, _, _ in self.edges if r != "base"), "base")
        method = next((m for _, r, m, _ in self.edges if m and r != "base"), None)
        names = ", ".join(said or [name for name, *_ in self.edges])
        return f"{relation} of {names} ({', '.join(w for w in (method, self.evidence) if w)})"


@dataclass(frozen=True, slots=True)
class Model:
    """A measured model, its family, what is said of it, and its recipe, which costs more than anything else here."""

    name: str
    model_id: int
    base_id: int
    family: Family
    claims: list[Claim]
    recipe: Callable[[], Recipe | None] = lambda: None
    screened: Callable[[], Screened] | None = None

    def pairs(self) -> Iterable[list[int]]:
        """Whose inner products decide: among the model and its claimed parents, and among the candidates of its recipe.

        A merge that is what is said of it needs no recipe, so that is not provided for.
        """
        for claim in self.claims:
            yield [self.model_id, *(i for i, base_id in claim.here.values() if base_id == self.base_id)]
        if self.screened is not None and not (self.claims and all(claim.is_merge for claim in self.claims)):
            yield [self.model_id, *self.screened().short]


def findings(
    con: Connection, names: Sequence[str] = (), report: Report = lambda done, total: None
) -> list[Row]:
    """Rows of subject, claim, verdict and detail, of the models named or of all that were measured.

    Of a model that names no parents there is a row only when its weights do, or when it was asked for.
    `report` is told how many of how many models were looked at.
    """
    measured = con.execute(
        """
        select m.name, m.model_id, b.model_id, b.name from raw.model m join raw.model b on b.model_id = m.base_id
        where m.digest is not null and m.model_id in (select model_id from raw.delta)
            and m.model_id in (select model_id from raw.weight) and (len($1) = 0 or list_contains($1, m.name))
        order by b.model_id, m.name
        """,
        [list(names)],
    ).fetchall()
    said = _claims(con)
    rows: list[Row] = []
    done = 0
    for base_id, base in dict.fromkeys((base_id, base) for *_, base_id, base in measured):
        family = recipes.load(con, base_id, base)
        worth = None if names else _worth_a_recipe(family.totals)
        members = [(name, i) for name, i, its_base, _ in measured if its_base == base_id]
        for start in range(0, len(members), AT_ONCE):
            models = [
                _model(con, family, name, i, base_id, said.get(name, []), worth is None or name in worth)
                for name, i in members[start : start + AT_ONCE]
            ]
            family.sums.pairs.clear()
            grams.fetch(con, family.sums, (ids for model in models for ids in model.pairs()))
            for model in models:
                for claim in model.claims:
                    rows += _held(con, claim, model)
                if not any(claim.parents for claim in model.claims):
                    rows += _silent(model, asked=bool(names))
                done += 1
                report(done, len(measured))
    return rows


def _model(
    con: Connection, family: Family, name: str, model_id: int, base_id: int, claims: list[Claim], look: bool
) -> Model:
    """A model with its recipe yet to be worked out, if it is worth a `look`."""
    if not look:
        return Model(name, model_id, base_id, family, claims)

    @cache
    def screened() -> Screened:
        return family.screened(model_id, family.candidates(model_id)[0])

    @cache
    def recipe() -> Recipe | None:
        try:
            return recipes.from_stored(con, family, screened())
        except KinbaseError:
            return None

    return Model(name, model_id, base_id, family, claims, recipe, screened)


def _claims(con: Connection) -> dict[str, list[Claim]]:
    """What is said of each model, by whoever says it: the weights' own word is not a claim."""
    rows = con.execute(
        """
        select c.name, k.evidence, k.source, p.name, k.relation, k.method, k.weight,
            if(p.digest is null, null, p.model_id), p.base_id
        from raw.claim k join raw.model c on c.model_id = k.child_id join raw.model p on p.model_id = k.parent_id
        where k.evidence <> 'weights' order by c.name, k.evidence, k.source, k.weight desc nulls last, p.name
        """
    ).fetchall()
    found: dict[tuple[str, str, str | None], Claim] = {}
    for child, evidence, source, parent, relation, method, weight, parent_id, base_id in rows:
        claim = found.setdefault((child, evidence, source), Claim(child, evidence, []))
        claim.edges.append((parent, relation, method, weight))
        if parent_id is not None:
            claim.here[parent] = parent_id, base_id
    by_child: dict[str, list[Claim]] = {}
    for claim in found.values():
        by_child.setdefault(claim.child, []).append(claim)
    return by_child


def _worth_a_recipe(totals: grams.Totals) -> set[str]:
    """The models of which others explain a part, by one inverse a family: what is left is 1 / (G^-1)_ii."""
    if len(totals.ids) < MANY:
        return set(totals.names)
    length = np.sqrt(np.maximum(np.diagonal(np.nan_to_num(totals.gram)), 1e-300))
    likeness = np.nan_to_num(totals.gram) / np.outer(length, length)
    # A family that was not measured pair by pair has no positive matrix: a little more on the diagonal.
    least = float(np.linalg.eigvalsh(likeness).min())
    likeness += np.eye(len(length)) * max(1e-9, 1e-9 - least)
    left = 1 / np.diagonal(np.linalg.inv(likeness))
    return {name for name, share in zip(totals.names, left, strict=True) if share < 1 - EXPLAINED}


def _held(con: Connection, claim: Claim, model: Model) -> list[Row]:
    """The verdict on one source's word about one model."""
    relations = {relation for _, relation, _, _ in claim.edges}
    if "adapter" in relations:
        return []  # an adapter is its parent's by construction
    if relations == {"base"}:
        return _held_base(con, claim, model)
    if "merge" in relations:
        verdict, detail = _held_merge(con, claim, model)
    elif "quantized" in relations:
        verdict, detail = _held_copy(con, claim, model)
    else:
        verdict, detail = _held_finetune(con, claim, model)
    return [(claim.child, claim.text(), verdict, detail)]


def _read(con: Connection, claim: Claim, model: Model, parents: Sequence[str]) -> grams.Stored | str:
    """Sums of a child and claimed parents, or which are not here."""
    lacking = [name for name in parents if name not in claim.here]
    if lacking:
        return f"the weights of {', '.join(lacking)} are not here"
    strangers = [name for name in parents if claim.here[name][1] != model.base_id]
    if strangers:
        return f"{', '.join(strangers)} was not measured against {model.family.base}"
    stored = grams.read(con, model.family.sums, model.model_id, [claim.here[name][0] for name in parents])
    return (
        stored
        or f"not all pairs of it and {', '.join(parents)} were measured: `kinbase check {claim.child}` does"
    )


def _held_merge(con: Connection, claim: Claim, model: Model) -> tuple[str, str]:
    base = model.family.base
    method = next((m for _, relation, m, _ in claim.edges if relation == "merge"), None)
    parents = [name for name in dict.fromkeys(claim.parents) if name != base]
    if not parents or claim.child in parents:
        return "undecidable", "it names no parent but the base"
    stored = _read(con, claim, model, parents)
    if isinstance(stored, str):
        return "undecidable", stored
    found = fitted(stored.grams, range(len(parents)))
    if found.verdict != MERGE and (found.ratio or 1.0) >= LEAST:  # more coefficients would leave still less
        found = graded(stored.grams) or found
    shares = {p.parent: p for p in (*found.parents, *found.nearest)}
    absent = [name for name in parents if name not in shares or _no_part(shares[name])]
    numbers = _numbers(found)
    if found.verdict == MERGE:
        if absent:
            return "contradicted", f"{', '.join(absent)} has no part in it: {numbers}"
        return _held_weights(claim, found, shares, numbers)
    if absent:
        return "contradicted", f"{', '.join(absent)} has no part in it: {numbers}{_instead(model, parents)}"
    if method not in CLOSED:
        chosen = judge(stored.grams, stored.zeros)
        if chosen.verdict == SELECTED:
            return "supported", f"{chosen.reason}; {numbers}"
        return "undecidable", f"{method} leaves no equation to hold it against; {numbers}"
    if (found.rho or 0) > CLEARLY:
        instead = _instead(model, parents)
        if instead or (found.residual or 0) > EXPLAINED:
            return "contradicted", numbers + instead
    return "undecidable", f"{numbers}: trained on after the merge, or other parents"


def _held_weights(claim: Claim, found: Finding, shares: dict[str, Parent], numbers: str) -> tuple[str, str]:
    """The printed coefficients of a merge whose parents are right."""
    printed = {name: weight for name, relation, _, weight in claim.edges if relation == "merge"}
    wrong = [
        name for name, weight in printed.items()
        if weight is not None and name in shares
        and not shares[name].low - PRINTED <= weight <= shares[name].high + PRINTED
    ]  # fmt: skip
    if found.gradient is not None and not _constant(found, printed):
        return "contradicted", f"the coefficients change with depth: {numbers}"
    if wrong and found.gradient is None:
        said = ", ".join(f"{name} {printed[name]:.4g}" for name in wrong)
        return "contradicted", f"not {said}: {numbers}"
    return "supported", numbers


def _constant(found: Finding, printed: dict[str, float | None]) -> bool:
    """Whether a merge by depth has the printed coefficients in every block and layer, or none were printed."""
    assert found.gradient is not None and found.errors is not None
    told = [printed.get(p.parent) for p in found.parents]
    if found.gradient.method == "slerp":
        second = told[1] if told[1] is not None else None if told[0] is None else 1 - told[0]
        told = [second]
    wanted = np.array([np.nan if t is None else t for t in told])
    off = np.abs(found.gradient.values - wanted) > found.errors + PRINTED
    return not bool(off.any())


def _held_copy(con: Connection, claim: Claim, model: Model) -> tuple[str, str]:
    parent, sums = claim.parents[0], model.family.sums
    if parent == model.family.base:
        squared = float(np.nansum(sums.deltas[model.model_id][1]))
        floor = float(np.nansum(sums.weights[model.model_id][2])) / 12
        rho = float(np.sqrt(squared / floor)) if floor > 0 else float("inf")
        detail = f"it lies {rho:.2f} times its rounding floor from {parent}"
        return ("supported" if rho <= 1.5 else "contradicted"), detail
    stored = _read(con, claim, model, [parent])
    if isinstance(stored, str):
        return "undecidable", stored
    found = judge(stored.grams, stored.zeros)
    if found.verdict == COPY:
        return "supported", f"{found.reason}: {found.rho or 0:.2f} times its rounding floor away"
    normal = stored.grams
    apart = float(normal.sumsq.sum() - 2 * normal.cross[:, 0].sum() + normal.gram[:, 0, 0].sum())
    rho = np.sqrt(max(apart, 0.0) / max(float(normal.noise.sum()), 1e-300))
    return (
        "contradicted",
        f"it lies {rho:.1f} times its rounding floor from {parent}: more than rounding was done",
    )


def _held_finetune(con: Connection, claim: Claim, model: Model) -> tuple[str, str]:
    base, recipe, parents = model.family.base, model.recipe(), claim.parents
    others = [name for name in parents if name != base]
    found = recipe.finding if recipe is not None else None
    if found is not None and found.verdict in (MERGE, SELECTED) and len(found.parents) > 1:
        return "contradicted", f"the weights say {found.verdict}: {_numbers(found)}"
    if others:
        stored = _read(con, claim, model, others[:1])
        if isinstance(stored, str):
            return "undecidable", stored
        near = judge(stored.grams, stored.zeros)
        sums = stored.grams
        cosine = float(
            sums.cross[:, 0].sum() / np.sqrt(sums.gram[:, 0, 0].sum() * max(sums.sumsq.sum(), 1e-300))
        )
        if near.verdict in (TRAINED, COPY):
            return "supported", f"{_combination(near.parents)}, kinship {cosine:.3f} (cosine)"
        nearest = _nearest(con, claim.child)
        told = f"kinship {cosine:.3f} (cosine) with {others[0]}; nearest is {nearest}"
        return ("contradicted" if cosine < ALIKE / 4 else "undecidable"), told
    if found is None:
        return "supported", f"no others of the family of {base} explain it"
    if found.verdict in (TRAINED, COPY) and found.parents[0].parent != base:
        return "contradicted", f"nearer is {found.parents[0].parent}: {_numbers(found)}"
    if found.verdict == NONE:
        return (
            "supported",
            f"no others of the family of {base} make it: {found.reason}",
        )
    return "undecidable", found.reason


def _held_base(con: Connection, claim: Claim, model: Model) -> list[Row]:
    """A base that is not the one it was measured against: which of the two is nearer."""
    base = model.family.base
    rows: list[Row] = []
    for name, *_ in claim.edges:
        if name == base:
            continue
        other, _ = claim.here.get(name, (None, None))
        found = con.execute(
            """
            select sqrt(greatest(sumsq_a + sumsq_b - 2 * dot, 0)), sqrt(if(a_id = $1, sumsq_a, sumsq_b))
            from raw.pair where a_id = least($1, $2) and b_id = greatest($1, $2)
            """,
            [model.model_id, other],
        ).fetchall()
        if not found:
            rows.append((claim.child, claim.text(), "undecidable", f"measured against {base}, not {name}"))
            continue
        ((far, length),) = found
        verdict = "supported" if far < length else "contradicted"
        rows.append(
            (claim.child, claim.text(), verdict, f"distance {far:.4g} to {name}, {length:.4g} to {base}")
        )
    return rows


def _silent(model: Model, *, asked: bool) -> list[Row]:
    """A model that names no parents."""
    name, recipe = model.name, model.recipe()
    if recipe is None:
        return []
    found = recipe.finding
    if found.verdict in (MERGE, SELECTED, COPY) or (found.verdict == TRAINED and asked):
        return [
            (name, "no parents named", "contradicted", f"the weights say {found.verdict}: {_numbers(found)}")
        ]
    if not asked:
        return []
    verdict = "supported" if found.verdict == NONE else "undecidable"
    return [(name, "no parents named", verdict, found.reason)]


def _no_part(parent: Parent) -> bool:
    return abs(parent.coefficient) < NO_PART and parent.low < NO_PART and parent.high > -NO_PART


def _instead(model: Model, parents: Sequence[str]) -> str:
    """What the weights say instead, where they say anything else."""
    recipe = model.recipe()
    if recipe is None or not recipe.finding.parents or set(recipe.named()) == set(parents):
        return ""
    return f"; the weights say {recipe.finding.verdict}: {_numbers(recipe.finding)}"


def _combination(parents: Sequence[Parent]) -> str:
    return " + ".join(f"{p.coefficient:.4f} ({p.low:.4f} to {p.high:.4f}) {p.parent}" for p in parents)


def _numbers(found: Finding) -> str:
    if found.verdict == COPY:
        return found.reason
    depth = " on average over depth" if found.gradient is not None else ""
    return (
        f"{_combination(found.parents or found.nearest)}{depth} leaves {found.residual or 0:.3g} of its change, "
        f"{found.rho or 0:.2f} times the rounding floor"
    )


def _nearest(con: Connection, name: str) -> str:
    rows = con.execute("select model, cs from nearest_kin(?, 1)", [name]).fetchall()
    return f"{rows[0][0]}, {rows[0][1]:.3f}" if rows and rows[0][1] is not None else "unknown"
