"""A model's recipe as it is told: the finding, what it was found among, and its tables."""

from dataclasses import dataclass, field, replace

from kinbase.provenance.recipes.verdict import COPY, NONE, Finding, Parent


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

    def with_base(self) -> "Recipe":
        """The same with the base as the parent of what was made from it alone."""
        found = self.finding
        if found.parents or found.verdict not in (NONE, COPY):
            return self
        return replace(self, finding=replace(found, parents=[Parent(self.base, 1.0, 1.0, 1.0)]))

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
