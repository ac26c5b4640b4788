"""What is said of measured models, gathered from all who say it, and the recipes it is to be held against.

A claim is all that one source says of one model's parents. What a model's weights say is its recipe, which is worked
out when it is asked for.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import cache, partial

import numpy as np

from kinbase.errors import KinbaseError
from kinbase.provenance.recipes import stored_grams as grams
from kinbase.provenance.recipes.elements import Sampler
from kinbase.provenance.recipes.recipe import Recipe
from kinbase.provenance.recipes.search import Family, Recipes, Screened
from kinbase.query import sums as stored
from kinbase.store import Connection

MANY = 64
"""Members of a family from which on only the models that others explain at all are looked at one by one."""

EXPLAINED = 0.5
"""Share of a model's change that all others together must explain for a look at its recipe, then."""


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
    sampler: Sampler | None = None

    def pairs(self) -> Iterable[list[int]]:
        """Whose inner products decide: among the model and its claimed parents, and among the candidates of its recipe.

        A merge that is what is said of it needs no recipe, so that is not provided for.
        """
        for claim in self.claims:
            yield [self.model_id, *(i for i, base_id in claim.here.values() if base_id == self.base_id)]
        if self.screened is not None and not (self.claims and all(claim.is_merge for claim in self.claims)):
            yield [self.model_id, *self.screened().short]


def all_claims(con: Connection) -> dict[str, list[Claim]]:
    """What is said of each model, by whoever says it: the weights' own word is not a claim."""
    found: dict[tuple[str, str, str | None], Claim] = {}
    for child, evidence, source, parent, relation, method, weight, parent_id, base_id in stored.claims(con):
        claim = found.setdefault((child, evidence, source), Claim(child, evidence, []))
        claim.edges.append((parent, relation, method, weight))
        if parent_id is not None:
            claim.here[parent] = parent_id, base_id
    by_child: dict[str, list[Claim]] = {}
    for claim in found.values():
        by_child.setdefault(claim.child, []).append(claim)
    return by_child


def with_recipe(
    recipes: Recipes, name: str, model_id: int, base_id: int, claims: list[Claim], look: bool
) -> Model:
    """A model with its recipe yet to be worked out, if it is worth a `look`."""
    family = recipes.family
    sampler = partial(recipes.reader.of, name, family.base)
    if not look:
        return Model(name, model_id, base_id, family, claims, sampler=sampler)

    @cache
    def screened() -> Screened:
        return family.screened(model_id, family.candidates(model_id)[0])

    @cache
    def recipe() -> Recipe | None:
        try:
            return recipes.of(model_id)
        except KinbaseError:
            return None

    return Model(name, model_id, base_id, family, claims, recipe, screened, sampler)


def worth_a_recipe(totals: grams.Totals) -> set[str]:
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
