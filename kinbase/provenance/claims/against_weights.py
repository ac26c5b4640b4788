"""What cards, configurations and people say a model was made of, held against its weights.

A claim is supported, contradicted, or undecidable: its parents are not here, were not measured, or what is left over
does not decide. Only stored sums are used.
"""

from collections.abc import Sequence

import numpy as np
from scipy.special import chdtri

from kinbase.ingest.steps import OnProgress as Report
from kinbase.provenance.claims.claims import EXPLAINED, Claim, Model, all_claims, with_recipe, worth_a_recipe
from kinbase.provenance.recipes import stored_grams as grams
from kinbase.provenance.recipes.intervals import LEAST
from kinbase.provenance.recipes.least_squares import EXACT, LIMIT, Grams
from kinbase.provenance.recipes.partial_merges import ALIKE
from kinbase.provenance.recipes.search import Recipes, load
from kinbase.provenance.recipes.verdict import (
    ADAPTER,
    COPY,
    MERGE,
    MERGES,
    NONE,
    ONWARD,
    SELECTED,
    TRAINED,
    UNRELATED,
    Finding,
    Parent,
    fitted,
    graded,
    judge,
)
from kinbase.query import kinship, models
from kinbase.query import sums as stored
from kinbase.store import Connection

CLOSED = (None, "linear", "slerp", "task_arithmetic", "nuslerp", "multislerp", "karcher", "model_stock")
"""Merge methods that are a combination of the parents in each tensor; the others leave elements out or bend them."""

PRINTED = 0.005
"""How far a printed coefficient may lie outside the interval: cards round to two decimals."""

BY_CHANCE = 1e-3
"""How seldom the coefficients of a merge may be as far from the printed ones and not be called others."""

NO_PART = 0.02
"""A coefficient that is no share in a merge."""

NAMED = 4
"""Tensors that are named one by one."""

CLEARLY = 4.0
"""Residual over rounding from which a combination is clearly not the model, unless most of it is explained."""

AT_ONCE = 32
"""Models whose pairs are read from the database together: of 220 tensors each they are 30 MB."""

Row = tuple[str, str, str, str]


def findings(
    con: Connection, names: Sequence[str] = (), report: Report = lambda done, total: None
) -> list[Row]:
    """Rows of subject, claim, verdict and detail, of the models named or of all that were measured.

    Of a model that names no parents there is a row only when its weights do, or when it was asked for.
    `report` is told how many of how many models were looked at.
    """
    measured = stored.measured_models(con, names)
    if names and not measured and not stored.copies(con, names):
        return []
    said = all_claims(con)
    rows, copied = _copies(con, said, names), _claims_of_copies(con, said, names)
    originals = [] if not names else [name for name in copied if name not in names]
    measured += stored.measured_models(con, originals) if originals else []
    done = 0
    for base_id, base in dict.fromkeys((base_id, base) for *_, base_id, base in measured):
        family = load(con, base_id, base)
        worth = None if names else worth_a_recipe(family.totals)
        recipes = Recipes(con, family)
        members = [(name, i) for name, i, its_base, _ in measured if its_base == base_id]
        for start in range(0, len(members), AT_ONCE):
            models = [
                with_recipe(recipes, name, i, base_id, said.get(name, []), worth is None or name in worth)
                for name, i in members[start : start + AT_ONCE]
            ]
            family.sums.pairs.clear()
            grams.fetch(con, family.sums, (ids for model in models for ids in model.pairs()))
            for model in models:
                for claim in copied.get(model.name, []):
                    rows += _held(con, claim, model)
                if model.name in originals:
                    continue
                for claim in model.claims:
                    rows += _held(con, claim, model)
                if not any(claim.parents for claim in model.claims):
                    rows += _silent(model, asked=bool(names))
                done += 1
                report(done, len(measured))
    return rows


def _copies(con: Connection, said: dict[str, list[Claim]], names: Sequence[str]) -> list[Row]:
    """Copies that claim to be made of the very model whose weights they have."""
    rows: list[Row] = []
    for name, original, base in stored.copies(con, names):
        for claim in said.get(name, []):
            if claim.is_merge and (original == base or any(original == parent for parent, *_ in claim.edges)):
                detail = f"nothing was applied: its weights are those of {original}"
                rows.append((name, claim.text(), "contradicted", detail))
    return rows


def _claims_of_copies(
    con: Connection, said: dict[str, list[Claim]], names: Sequence[str]
) -> dict[str, list[Claim]]:
    """By original, what copies of it with another card claim to be merges of: its weights are to be held against that too."""
    found: dict[str, list[Claim]] = {}
    for name, original, base in stored.copies(con, names):
        own = {frozenset(claim.edges) for claim in said.get(original, [])}
        for claim in said.get(name, []):
            is_of_it = original == base or any(original == parent for parent, *_ in claim.edges)
            if claim.is_merge and not is_of_it and frozenset(claim.edges) not in own:
                found.setdefault(original, []).append(claim)
    return found


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
    # Where even this leaves less than rounding, more coefficients would leave still less.
    if found.verdict not in MERGES and (found.ratio or 1.0) >= LEAST:
        found = graded(stored.grams) or found
    if stored.grams.adapters and (lacking := without_it(stored.grams)):
        return "contradicted", f"{lacking}; {_numbers(found)}"
    shares = {p.parent: p for p in (*found.parents, *found.nearest)}
    absent = [name for name in parents if name not in shares or _no_part(shares[name])]
    if (absent or found.verdict not in MERGES) and (same := _nothing_applied(stored.grams, base)) is not None:
        return "contradicted", f"nothing was applied: it is {same} but for rounding"
    if absent:
        instead = "" if found.verdict in MERGES else _instead(model, parents)
        return "contradicted", f"{', '.join(absent)} has no part in it: {_numbers(found)}{instead}"
    if found.verdict == ADAPTER:
        return _held_adapter(claim, found, _numbers(found))
    if found.verdict == MERGE:
        return _held_weights(claim, found, shares, _numbers(found))
    return _held_unmade(model, stored, parents, method, found)


def _held_unmade(
    model: Model, stored: grams.Stored, parents: Sequence[str], method: str | None, found: Finding
) -> tuple[str, str]:
    """A merge whose parents have a part in it, though no combination of them makes it."""
    numbers = _numbers(found)
    if method not in CLOSED:
        chosen = judge(stored.grams, stored.zeros, model.sampler)
        if chosen.verdict == SELECTED:
            return "supported", f"{chosen.reason}; {numbers}"
        return "undecidable", f"{method} leaves no equation to hold it against; {numbers}"
    if (found.rho or 0) > CLEARLY:
        instead = _instead(model, parents)
        if instead or (found.residual or 0) > EXPLAINED:
            return "contradicted", numbers + instead
    return "undecidable", f"{numbers}: trained on after the merge, or other parents"


def _nothing_applied(sums: Grams, base: str) -> str | None:
    """The base or the parent that a child of several is, to the last bit or rounded; None where it is none of them."""
    own = np.diagonal(sums.gram.sum(axis=0))[:-1]
    length, noise = float(sums.sumsq.sum()), float(sums.noise.sum())
    apart = {base: length} | {
        name: length - 2 * float(sums.cross[:, i].sum()) + float(own[i])
        for i, name in enumerate(sums.names)
        if name not in sums.adapters
    }
    nearest = min(apart, key=lambda name: apart[name])
    others = [far for name, far in apart.items() if name != nearest]
    # What several of them are within rounding of tells of none.
    is_it = apart[nearest] <= max(LIMIT**2 * noise, EXACT * length)
    return nearest if is_it and all(far > CLEARLY**2 * noise for far in others) else None


def without_it(sums: Grams) -> str | None:
    """Which tensors of an adapter are not in a model that has it in others; None where it is in all or in none."""
    lacking = []
    for i, name in enumerate(sums.names):
        own = sums.gram[:, i, i]
        touched = np.flatnonzero(own > 0)
        # An adapter's part may be shorter than rounding: then nothing is said of that tensor.
        touched = touched[own[touched] > 4 * sums.noise[touched]]
        slope = sums.cross[touched, i] / own[touched]
        if name in sums.adapters and (slope > 0.5).any():
            lacking += [sums.tensors[t] for t, there in zip(touched, slope, strict=True) if there < 0.25]
    if not lacking:
        return None
    more = f" and {len(lacking) - NAMED} more" if len(lacking) > NAMED else ""
    return f"the adapter is not in {', '.join(lacking[:NAMED])}{more}"


def _held_adapter(claim: Claim, found: Finding, numbers: str) -> tuple[str, str]:
    """The scale of a merged adapter: 1, or what was printed."""
    parent = found.parents[0]
    printed = next((w for name, _, _, w in claim.edges if name == parent.parent and w is not None), 1.0)
    if parent.low - PRINTED <= printed <= parent.high + PRINTED:
        return "supported", f"adapter merged at scale {parent.coefficient:.4f}: {numbers}"
    return (
        "contradicted",
        f"the adapter was merged at scale {parent.coefficient:.4f}, not {printed:.4g}: {numbers}",
    )


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
    """Whether a merge by depth has the printed coefficients everywhere, or none were printed: of all places together.

    Of many blocks and layers some lie outside their own 95% interval by chance. Asked is whether their distances in
    standard errors are those of chance (chi-squared).
    """
    assert found.gradient is not None and found.errors is not None
    told = [printed.get(p.parent) for p in found.parents]
    if found.gradient.method == "slerp":
        second = told[1] if told[1] is not None else None if told[0] is None else 1 - told[0]
        told = [second]
    wanted = np.array([np.nan if t is None else t for t in told])
    off = np.maximum(np.abs(found.gradient.values - wanted) - PRINTED, 0) / (found.errors / 1.96)
    told_of = np.isfinite(off)
    return float((off[told_of] ** 2).sum()) <= float(chdtri(max(told_of.sum(), 1), BY_CHANCE))


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
        return _held_trained(con, claim, model, others[0])
    if found is None or found.verdict == NONE:
        return "supported", f"no others of the family of {base} make it" + (
            f": {found.reason}" if found else ""
        )
    if found.verdict == UNRELATED:
        return "contradicted", found.reason
    if found.verdict in (TRAINED, ONWARD):
        return (
            "undecidable",
            f"the weights read as well as {found.verdict} of {_combination(found.parents)}: {found.reason}",
        )
    if found.verdict in (COPY, ADAPTER):  # all of these are made from the base too
        return "supported", f"{found.verdict}: {found.reason}"
    return "undecidable", found.reason


def _held_trained(con: Connection, claim: Claim, model: Model, parent: str) -> tuple[str, str]:
    """A fine-tune of another than the base."""
    stored = _read(con, claim, model, [parent])
    if isinstance(stored, str):
        return "undecidable", stored
    near, sums = judge(stored.grams, stored.zeros), stored.grams
    cosine = float(sums.cross[:, 0].sum() / np.sqrt(sums.gram[:, 0, 0].sum() * max(sums.sumsq.sum(), 1e-300)))
    if near.verdict in (TRAINED, COPY):
        return "supported", f"{_combination(near.parents)}, kinship {cosine:.3f} (cosine)"
    told = f"kinship {cosine:.3f} (cosine) with {parent}; nearest is {_nearest(con, claim.child)}"
    return ("contradicted" if cosine < ALIKE / 4 else "undecidable"), told


def _held_base(con: Connection, claim: Claim, model: Model) -> list[Row]:
    """A base that is not the one it was measured against: which of the two is nearer."""
    base = model.family.base
    rows: list[Row] = []
    for name, *_ in claim.edges:
        if name == base:
            continue
        other, _ = claim.here.get(name, (None, None))
        found = stored.distance_and_length(con, model.model_id, other)
        if not found:
            rows.append((claim.child, claim.text(), "undecidable", f"measured against {base}, not {name}"))
            continue
        far, length = found
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
    if found.verdict in (MERGE, ADAPTER, SELECTED):
        return [
            (name, "no parents named", "contradicted", f"the weights say {found.verdict}: {_numbers(found)}")
        ]
    if not asked:
        return []
    if found.verdict in (NONE, COPY):  # the same weights under another name contradict nobody
        return [(name, "no parents named", "supported", found.reason)]
    if found.verdict in (TRAINED, ONWARD):
        told = f"the weights read as {found.verdict} of {_combination(found.parents)}: {found.reason}"
        return [(name, "no parents named", "undecidable", told)]
    return [(name, "no parents named", "undecidable", found.reason)]


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
    for kin, values in kinship.nearest(con, models.original(con, models.meant(con, name)).id, 1):
        if values.cs is not None:
            return f"{kin.name}, {values.cs:.3f}"
    return "unknown"
