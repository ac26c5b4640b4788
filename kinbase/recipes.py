"""The recipe of a stored model: which models of its family it was made of, and with what coefficients.

    candidates    the family, without what descends from the model or is younger
    screened      by the sums of all tensors together (by sketches, then measured, where they are not there yet)
    judged        by the sums of each tensor (kinbase.verdicts), with the base's own weights as one more column

No checkpoint is read whose sums are stored.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from kinbase import families, grams, naming, records
from kinbase.checkpoint import Edge
from kinbase.errors import KinbaseError
from kinbase.families import Report
from kinbase.recovery import EXACT, find_parents, step_gains
from kinbase.store import Connection, Store
from kinbase.verdicts import COPY, MERGE, SELECTED, TRAINED, Finding, judge

SHORT = 32
"""Candidates whose sums are read tensor by tensor."""

FAR = 0.02
"""Cosine by which a sketch, or a stored pair, tells a candidate worth measuring."""

RELATIONS = {MERGE: "merge", SELECTED: "merge", TRAINED: "finetune", COPY: "quantized"}
"""What a recipe's edges are called in the lineage."""


@dataclass(slots=True)
class Recipe:
    """A model's recipe: the `finding`, over so many `candidates`, over `coverage` of the base's parameters."""

    model: str
    base: str
    finding: Finding
    candidates: int
    coverage: float
    notes: list[str] = field(default_factory=list)

    def named(self) -> list[str]:
        """The parents' names."""
        return [parent.parent for parent in self.finding.parents]

    def as_dict(self) -> dict[str, object]:
        """Plain values, the contract's keys first: model, verdict, residual, floor, parents."""
        found = self.finding
        return {
            "model": self.model,
            "verdict": found.verdict,
            "residual": found.residual,
            "floor": found.floor,
            "parents": [_parent(p) for p in found.parents],
            "method": found.method,
            "reason": found.reason,
            "base": self.base,
            "base_weight": found.base,
            "rho": found.rho,
            "expected": found.expected,
            "ratio": found.ratio,
            "condition": found.condition,
            "nearest": [_parent(p) for p in found.nearest],
            "alternatives": [{"parent": p, "or": other} for p, other in found.alternatives.items()],
            "by": self.table(),
            "lists": self.lists(),
            "candidates": self.candidates,
            "coverage": self.coverage,
            "notes": self.notes + found.notes,
        }

    def table(self) -> list[dict[str, object]]:
        """Coefficients by block and layer, a row each; of SLERP t, the share of the second parent."""
        gradient, errors = self.finding.gradient, self.finding.errors
        if gradient is None or errors is None:
            return []
        names = [p.parent for p in self.finding.parents] if gradient.method != "slerp" else ["t"]
        return [
            {"block": place.block, "layer": place.layer, "parent": name, "coefficient": float(value),
             "low": float(value - error), "high": float(value + error)}
            for place, values, off in zip(gradient.places, gradient.values, errors, strict=True)
            for name, value, error in zip(names, values, off, strict=True)
        ]  # fmt: skip

    def lists(self) -> list[dict[str, object]]:
        """mergekit's lists by block: of t, or of a parent's weight."""
        gradient = self.finding.gradient
        if gradient is None:
            return []
        names = [p.parent for p in self.finding.parents] if gradient.method != "slerp" else ["t"]
        return [
            {"block": block, "parent": name, "values": [float(v) for v in values[:, i]]}
            for block, values in gradient.lists.items()
            for i, name in enumerate(names)
        ]


def _parent(parent: object) -> dict[str, object]:
    return {name: getattr(parent, name) for name in ("parent", "coefficient", "low", "high")}


def recover(
    store: Store,
    model: str,
    *,
    among: Sequence[str] = (),
    measure: bool = True,
    device: str = "auto",
    report: Report = lambda done, total: None,
) -> Recipe:
    """The recipe of `model` from the models `among` (none: from its family).

    With `measure`, pairs that were not measured yet are, while their files are there. Raises KinbaseError for
    an unknown model, one without weights, without a base, of another family, and for an adapter.
    """
    with store.reading() as con:
        name = naming.resolve(con, model)
        child_id, base_id, base = placed(con, name)
        ids, notes = candidates(con, name, base_id, [naming.resolve(con, other) for other in among])
        wanted = _wanted(con, child_id, ids) if measure else []
    if wanted:
        notes += families.measure_missing(store, [name, *wanted], device=device, report=report)
    with store.reading() as con:
        found = from_stored(con, name, child_id, base_id, base, ids)
    found.notes = notes + found.notes
    return found


def measure(
    store: Store, name: str, *, device: str = "auto", report: Report = lambda done, total: None
) -> list[str]:
    """Measure the pairs that a recipe of `name` hangs on; nothing for a model that has none."""
    with store.reading() as con:
        try:
            child_id, base_id, _ = placed(con, name)
        except KinbaseError:
            return []
        wanted = _wanted(con, child_id, candidates(con, name, base_id)[0])
    return families.measure_missing(store, [name, *wanted], device=device, report=report) if wanted else []


def placed(con: Connection, name: str) -> tuple[int, int, str]:
    """Ids of a model and of its base, and the base's name; KinbaseError for a model that has no recipe."""
    row = con.execute(
        """
        select m.model_id, m.base_id, b.name, m.digest is not null, m.model_id in (select model_id from raw.delta),
            m.model_id in (select model_id from raw.weight), m.model_id in (select base_id from raw.model),
            m.relation = 'adapter' or m.model_id in (select child_id from raw.claim where relation = 'adapter')
        from raw.model m left join raw.model b on b.model_id = m.base_id where m.name = ?
        """,
        [name],
    ).fetchone()
    assert row
    model_id, base_id, base, has_weights, measured, weighed, is_base, is_adapter = row
    if not has_weights:
        raise KinbaseError(f"{name} is known without its weights: import its checkpoint")
    if base_id is None and is_base:
        raise KinbaseError(f"{name} is the base of its family: recipes are of what was made from it")
    if base_id is None:
        raise KinbaseError(f"no base is known for {name}: import it again with --base")
    if is_adapter and not weighed:
        raise KinbaseError(f"{name} is an adapter, a change and no whole model: merge it first, import that")
    if not measured:
        raise KinbaseError(
            f"{name} was not measured against {base}: run `kinbase kin {name}` or import it again"
        )
    if not weighed:
        raise KinbaseError(f"the sums of {name}'s own weights are not here: import it again")
    return model_id, base_id, base


def candidates(
    con: Connection, name: str, base_id: int, among: Sequence[str] = ()
) -> tuple[list[int], list[str]]:
    """Ids of the models that `name` may be made of, and lines on those left out.

    Of the whole family, what descends from it by what anybody but the weights says, and what is younger where both
    dates are known, is left out; whoever is asked for `among` is in.
    """
    family = dict(
        con.execute(
            """
            select name, model_id from raw.model
            where base_id = $1 and name <> $2 and digest is not null and model_id in (select model_id from raw.delta)
            order by model_id
            """,
            [base_id, name],
        ).fetchall()
    )
    if among:
        strangers = [other for other in among if other not in family and other != name]
        if strangers:
            raise KinbaseError(
                f"{', '.join(strangers)}: not measured against the base of {name}, so no parent can be told from them"
            )
        return [family[other] for other in dict.fromkeys(among) if other != name], []
    below = {
        child
        for (child,) in con.execute(
            """
            with recursive down(model_id) as (
                select model_id from raw.model where name = $1
                union
                select k.child_id from down join raw.claim k on k.parent_id = down.model_id where k.evidence <> 'weights'
            )
            select m.name from down join raw.model m using (model_id) where m.name <> $1
            """,
            [name],
        ).fetchall()
    }
    younger = {
        other
        for (other,) in con.execute(
            """
            select o.name from raw.model o join raw.model m on o.created_at > m.created_at
            where m.name = $1 and o.base_id = m.base_id
            """,
            [name],
        ).fetchall()
    }
    notes = []
    for left_out, why in (
        (below & family.keys(), "descend from it"),
        (younger & family.keys() - below, "are younger"),
    ):
        if left_out:
            notes.append(f"left out, because they {why}: {', '.join(sorted(left_out))}")
    return [i for other, i in family.items() if other not in below | younger], notes


def from_stored(
    con: Connection, name: str, child_id: int, base_id: int, base: str, ids: Sequence[int],
    family: grams.Totals | None = None,
) -> Recipe:  # fmt: skip
    """The recipe by what is stored: candidates without a measured pair with the model are left out, and told.

    `family` are the inner products of all its family, where they were read already.
    """
    whole = [child_id, *ids]
    totals = grams.totals(con, base_id, whole) if family is None else family.of(whole)
    child = totals.ids.index(child_id)
    known = [
        i
        for i in range(len(totals.ids))
        if i != child and not np.isnan(totals.gram[[i, child], [child, i]]).any()
    ]
    unknown = [totals.names[i] for i in range(len(totals.ids)) if i != child and i not in known]
    floor = grams.floors(con, [child_id]).get(child_id, 0.0)
    short = _complete(totals, _short(totals, child, known, floor))
    notes = [f"not measured with it, so left out: {', '.join(unknown)}"] if unknown else []
    stored = grams.read(con, base_id, child_id, [totals.ids[i] for i in short])
    if stored is None:
        raise KinbaseError(f"{name} shares no whole tensor with all its candidates: name fewer with --among")
    finding = judge(stored.grams, stored.zeros)
    if stored.coverage < 0.999 and (finding.parents or finding.nearest):
        # A candidate of another shape takes tensors away from everybody: only those that matter stay.
        kept = {p.parent for p in (*finding.parents, *finding.nearest)}
        again = grams.read(con, base_id, child_id, [totals.ids[i] for i in short if totals.names[i] in kept])
        if again is not None and again.coverage > stored.coverage:
            stored, finding = again, judge(again.grams, again.zeros)
    if base in stored.lacking:
        notes.append(
            f"the sums of {base}'s own weights are not here, so SLERP is not looked for: import it again"
        )
    return Recipe(name, base, finding, len(known), stored.coverage, notes)


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
    gram = np.nan_to_num(totals.gram)
    whole = grams.Totals(totals.ids, totals.names, gram)
    normal = whole.normal(child, ranked, max(floor, EXACT * sumsq), 1e6)
    chosen = find_parents(normal)
    rest = [j for j in range(len(ranked)) if j not in chosen]
    gains = step_gains(normal, chosen, rest)
    order = [*chosen, *(rest[i] for i in np.argsort(-gains))]
    twins = [
        j for j in range(len(ranked)) if any(
            gram[ranked[j], ranked[i]] > 0.9 * length[ranked[j]] * length[ranked[i]] for i in chosen
        )
    ]  # fmt: skip
    first = [*chosen, *twins[: SHORT // 4], *range(SHORT // 4), *order]
    return [ranked[j] for j in dict.fromkeys(first)][:SHORT]


def _wanted(con: Connection, child_id: int, ids: Sequence[int]) -> list[str]:
    """Whom to measure with the model: the nearest by what is known, and whoever nothing is known of."""
    near = dict(
        con.execute(
            """
            select o.model_id, abs(k.cs) from kinship k
            join raw.model m on m.name = k.model_a join raw.model o on o.name = k.model_b
            where m.model_id = $1 and list_contains($2, o.model_id) and k.cs is not null
            """,
            [child_id, list(ids)],
        ).fetchall()
    )
    known = sorted((i for i in ids if near.get(i, 0.0) >= FAR), key=lambda i: -near[i])[:SHORT]
    return [naming.name_of(con, i) for i in (*known, *(i for i in ids if i not in near))]


def places(store: Store, names: Sequence[str], model: str) -> tuple[dict[str, str], str | None]:
    """Where the named models lie (an adapter with what it is of: `model+adapter`), and the dtype of `model`."""
    with store.reading() as con:
        found = dict(
            con.execute(
                "select name, source from raw.model where list_contains($1, name)", [list(names)]
            ).fetchall()
        )
        adapters = dict(
            con.execute(
                """
                select c.name, p.source from raw.claim k
                join raw.model c on c.model_id = k.child_id join raw.model p on p.model_id = k.parent_id
                where k.relation = 'adapter' and list_contains($1, c.name)
                """,
                [list(names)],
            ).fetchall()
        )
        row = con.execute("select dtype from raw.model where name = ?", [model]).fetchone()
    for name in names:
        if not found.get(name):
            raise KinbaseError(f"it is not known where {name} lies: import its checkpoint")
    whole = {name: f"{adapters[name]}+{path}" if name in adapters else path for name, path in found.items()}
    return whole, row[0] if row else None


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
    with store.writing() as con:
        circular = records.put_measured(con, recipe.model, edges)
    lines = [f"{e.parent} -> {recipe.model} {e.relation}" for e in edges if e.parent not in circular]
    lines += [f"{parent} descends from {recipe.model} by what is said: not stored" for parent in circular]
    return lines or [f"nothing to store: {found.verdict}"]
