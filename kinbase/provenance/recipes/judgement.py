"""One judgement of a family: of the models that an equation binds, which is the child, and who descends from whom.

If C = 0.6 A + 0.4 B then also A = 1.67 C - 0.67 B. Read by itself, a fine-tune whose merges are in the family is "a merge"
of its own children. So each relation is explained once. The child is the model whose expression is the most
plausible recipe: an average of others first (a merge lies inside the hull of its parents, a parent never in the hull of its
merges), then a sum of them, elements selected from them, last differences; among like readings the one that leaves
what its own rounding leaves. Whatever a model explains that way is no candidate for it, so its verdict is the same
with and without its descendants. `recipe`, `check` and `infer` all read this judgement.
"""

from collections.abc import Callable
from dataclasses import replace

from kinbase.provenance.recipes.stacks import STACK
from kinbase.provenance.recipes.verdict import (
    COPY,
    MERGES,
    NONE,
    ONWARD,
    SELECTED,
    TRAINED,
    UNDECIDABLE,
    Finding,
    is_negative,
    off,
)

ROUNDS = 12
"""How often a model is judged again without what was found to descend from it."""

NEARER = 0.05
"""By how much the logarithm of residual over expected must be nearer to 0 for the same equation to be another's."""

BACKWARDS = 0.1
"""How far an average of models at right angles must be off to be an extrapolation read backwards."""

EXTRA = 0.02
"""How far coefficients may sum above 1 in an average: rounding's part."""

FAR = 0.65
"""Residual from which a reading that found nothing finds nothing among fewer models either: they leave no less."""

ROUNDED = 0.2
"""How far, as a logarithm, a coarser copy may lie from what rounding its source leaves."""

AVERAGE, SUM, LIKELY, SELECTION, DIFFERENCE, OPPOSITION, ONE, NOTHING = range(8)
"""Readings of a model from the most plausible to none; OPPOSITION is a sum of changes that point away from each other."""

OPPOSED, BESIDE = -0.05, 0.1
"""Cosine of two parents below which a sum of them is none but reads a difference backwards; and below which an average
may be one that leaves too little."""

Reading = tuple[int, float]

Read = Callable[[int, frozenset[int]], Finding | None]
"""The finding on a model without some of the candidates that it has; None where it cannot be judged."""

Fit = Callable[[int, list[int]], Finding | None]
"""The fit of one model by exactly some others."""


def plausibility(finding: Finding | None) -> Reading:
    """The kind of a reading and, within it, what speaks against it: the lowest is the most plausible."""
    if finding is None:
        return NOTHING, 0.0
    if finding.verdict in MERGES:
        total = sum(p.coefficient for p in finding.parents)
        if is_negative(finding):
            return DIFFERENCE, off(finding)
        lowest = 1.0 if finding.opposed is None else finding.opposed
        if total > 1 + EXTRA:
            return (OPPOSITION if lowest < OPPOSED else SUM), off(finding)
        return (OPPOSITION if lowest < BESIDE and off(finding) > BACKWARDS else AVERAGE), off(finding)
    if (
        finding.verdict == UNDECIDABLE
        and finding.nearest
        and finding.method != STACK  # which says as much of them as of it
        and not any(p.coefficient < 0 for p in finding.nearest)
    ):
        return LIKELY, off(finding)
    if finding.verdict == SELECTED and finding.explained is not None:
        return AVERAGE, 1 - finding.explained  # element by element nothing but its parents makes it
    if finding.verdict == SELECTED:
        return SELECTION, finding.residual or 0.0
    if finding.verdict in (TRAINED, ONWARD):
        return ONE, finding.residual or 0.0
    return NOTHING, finding.residual or 0.0


def _is_rounding(finding: Finding) -> bool:
    """Whether a model is another one rounded to fewer bits: nothing is made of it there, it was made last."""
    return finding.verdict == COPY and finding.expected is not None and off(finding) <= ROUNDED


def _is_nothing(finding: Finding | None) -> bool:
    """Whether the best that all candidates make of a model is so far from it that none of them would be read from fewer."""
    return finding is not None and finding.verdict == NONE and (finding.residual or 0.0) > FAR


class Judgement:
    """Findings on the models of a family by id, each relation explained once; they are worked out when asked for.

    `read` judges one model against its `candidates`, `fit` a model by given others; `ids` are the models by name.
    """

    def __init__(
        self, read: Read, fit: Fit, candidates: Callable[[int], list[int]], ids: dict[str, int]
    ) -> None:
        self._read, self._fit, self._candidates, self.ids = read, fit, candidates, ids
        self.names = {model: name for name, model in ids.items()}
        self._settled: dict[int, Finding | None] = {}
        self._left_out: dict[int, frozenset[int]] = {}
        self._readings: dict[tuple[int, frozenset[int]], Finding | None] = {}
        self._asked: set[int] = set()

    def of(self, model: int) -> Finding | None:
        """The finding on a model, what descends from it left out; None where it cannot be judged."""
        if model not in self._settled:
            self._asked.add(model)
            self._settled[model], self._left_out[model] = self._settle(model)
            self._asked.discard(model)
        return self._settled[model]

    def left_out(self, model: int) -> frozenset[int]:
        """The candidates that were found to descend from a model."""
        self.of(model)
        return self._left_out[model]

    def _settle(self, model: int) -> tuple[Finding | None, frozenset[int]]:
        below: frozenset[int] = frozenset()
        for turn in range(ROUNDS):
            reading = self._reading(model, below)
            if reading is None:
                return None, below
            finding = reading
            kind = plausibility(finding)
            # Where one descendant came up, others wait behind it.
            others = self._involved(finding) if not turn else self._candidates(model)
            if kind[0] == AVERAGE or _is_rounding(finding):
                others = []
            more = self._turned(model, finding) | self._in_circle(model, finding, below)
            for other in others:
                if other not in below and (
                    self._descends(other, model, kind)
                    or (kind[0] == SELECTION and self._is_selected_from(other, model, finding))
                ):
                    more.add(other)
            if not more - below:
                break
            below |= more
        else:
            finding = replace(
                finding, verdict=UNDECIDABLE, parents=[], nearest=finding.parents or finding.nearest,
                reason="the models that make it are made of it too: dates or cards would decide",
            )  # fmt: skip
        if below:
            names = ", ".join(sorted(self.names[i] for i in below))
            finding = replace(
                finding, notes=[*finding.notes, f"descends from it by the weights, so left out: {names}"]
            )
        return finding, below

    def _reading(self, model: int, without: frozenset[int]) -> Finding | None:
        key = model, without
        if key not in self._readings:
            self._readings[key] = self._read(model, without)
        return self._readings[key]

    def _involved(self, finding: Finding) -> list[int]:
        """The models of a reading, from the one with the largest share on."""
        shares = sorted((*finding.parents, *finding.nearest), key=lambda p: -abs(p.coefficient))
        return [self.ids[p.parent] for p in shares if p.parent in self.ids]

    def _descends(self, model: int, origin: int, than: Reading, seen: frozenset[int] = frozenset()) -> bool:
        """Whether `model` is made of `origin` by readings that are all more plausible than `than`."""
        finding = self._settled.get(model)
        if finding is None:
            finding = self._reading(model, frozenset())
            if plausibility(finding)[0] > SUM and not _is_nothing(finding):
                # Its own descendants may stand in this one; while they are being looked for, nothing is said.
                finding = self.of(model) if model not in self._asked else None
        if finding is None or finding.verdict == COPY or plausibility(finding) >= than:
            return False
        if plausibility(finding)[0] == SELECTION == than[0]:
            return False  # which of the two was selected from the other is decided elsewhere
        kind = plausibility(finding)[0]
        listed = finding.nearest if kind == LIKELY else finding.parents
        parents = [self.ids[p.parent] for p in listed if p.parent in self.ids and kind < NOTHING]
        if origin in parents:
            return True
        seen |= {model}
        return any(p not in seen and self._descends(p, origin, than, seen) for p in parents)

    def _is_selected_from(self, other: int, model: int, finding: Finding) -> bool:
        """Whether, of two models of selected elements, `other` is the child though it has a part in `model`'s reading.

        A parent explains more of its child, beside the child's other parents, than the child of it.
        """
        back = self._reading(other, frozenset())
        if back is None or back.verdict != SELECTED:
            return False
        ours = [i for i in self._involved(finding) if i != other]
        theirs = [i for i in self._involved(back) if i != model]
        return self._gain(other, theirs, model) > self._gain(model, ours, other)

    def _gain(self, model: int, others: list[int], one: int) -> float:
        """By what the squared residual of a model on others falls, as a factor, with one more."""
        alone, both = (self._fit(model, some) if some else None for some in (others, [*others, one]))
        left = alone.residual if alone is not None and alone.residual is not None else 1.0
        less = both.residual if both is not None and both.residual is not None else 1.0
        return (left / max(less, 1e-9)) ** 2

    def _in_circle(self, model: int, finding: Finding, below: frozenset[int]) -> set[int]:
        """Parents of an average that are themselves read as averages of it, and do worse without it than it without them."""
        if plausibility(finding)[0] != AVERAGE or finding.explained is not None:
            return set()
        found = set()
        for parent in self._involved(finding):
            back = self._reading(parent, frozenset())
            if back is None or plausibility(back)[0] != AVERAGE or model not in self._involved(back):
                continue
            ours = self._loss(finding, self._reading(model, below | {parent}))
            theirs = self._loss(back, self._reading(parent, frozenset({model})))
            if (ours, self.names[model]) < (theirs, self.names[parent]):
                found.add(parent)
        return found

    @staticmethod
    def _loss(finding: Finding, without: Finding | None) -> float:
        """How much further off an average is without one of its parents; infinite where it is none then."""
        if without is None or plausibility(without)[0] != AVERAGE:
            return float("inf")
        return max(off(without) - off(finding), 0.0)

    def _turned(self, model: int, finding: Finding) -> set[int]:
        """Parents of a merge that the same equation explains better as the child."""
        beside = finding.opposed is not None and finding.opposed < BESIDE
        odd = plausibility(finding)[0] in (SUM, OPPOSITION) and beside and off(finding) > NEARER
        if not odd or finding.gradient is not None:
            return set()
        found = set()
        models = [self.ids[p.parent] for p in finding.parents if p.parent in self.ids]
        for parent in models:
            again = self._fit(parent, [model, *(i for i in models if i != parent)])
            if again is not None and again.verdict in MERGES and off(again) + NEARER < off(finding):
                found.add(parent)
        return found
