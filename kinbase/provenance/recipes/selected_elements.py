"""The parents of a merge of selected elements, told element by element: TIES, DARE, and whatever leaves elements out.

The parents are those few models of whose changes, each in or out, the child's every element is made up to its own rounding
(kinbase.provenance.recipes.elements). A model that is merely alike, or was made of the child, explains hardly more elements
than numbers a few roundings beside them; the parents explain all.

What a parent counts is the number that lies in most of the intervals (c - rounding, c + rounding) / d_i: where an element is
another parent's or several's, the interval lies anywhere.
"""

from collections.abc import Container
from dataclasses import dataclass, replace

import numpy as np

from kinbase.provenance.recipes.elements import Changes, Elements, Made, Mask, most_common, units
from kinbase.provenance.recipes.least_squares import FloatArray

ROUGH = 1 << 13
"""Elements by which parents are looked for."""

MOVED = 400
"""Fewest elements that must differ from the base's for anything to be told from them."""

MOST_PARENTS = 5
"""Parents looked for: of n there are 2^n - 1 combinations."""

TRIED, STARTS = 5, 4
"""Models that are tried as the next parent, by how many of the elements left they alone explain; and as the first."""

PROMISING = 0.6
"""Share of the elements that must be explained from one start for another to be worth a try."""

SOME = 0.1
"""The same for counts that differ between tensors: of float32 models one tensor's elements are explained at first."""

FEW = 0.02
"""Share of the elements that a parent alone must explain to be tried."""

ALL = 0.975
"""Share of the changed elements that parents must explain."""

PLAIN = 0.8
"""Share of numbers beside the elements that may be explained by chance: beyond it, nothing is told."""

NEEDED = 0.01
"""Share of the elements that are not explained without a parent, for it to be one."""

HARDLY, MUCH = 0.05, 0.08
"""Shares of the elements that a model adds beyond chance up to which it is no parent, and from which it is one, where other
parents are missing."""

CLEAR = 3.0
"""Roundings that a change must be long for its ratio to another to tell anything."""

ALIKE = 0.05
"""How far, as a share, counts may be apart that are one: of a mean each parent alone counts as much."""

SCALED, WINDOW = 0.04, 0.3
"""How far counts of one parent are looked for to differ between tensors, as a share: a mask that keeps the sum of absolute
changes scales each tensor by itself; at first, and in a tensor that has few elements."""

FEW_OF_A_TENSOR = 8
"""Elements of a tensor that must lie in the window for it to have a count of its own."""

NEARLY_ALL = 0.9
"""Share of the changes kept from which on nothing was dropped but what signs decide: TIES of density 1."""

RARELY = 0.2
"""How often changes in opposite directions are kept together, over how often changes in one direction are, where signs were
elected: rounding lets a few of them seem so."""

LARGEST = 0.7
"""How often a kept element must be larger than one left out, for the largest to have been kept: half of the time by chance, and
less than always where others' signs were elected."""


@dataclass(frozen=True, slots=True)
class Selection:
    """Parents of selected elements: what each counts with standard error, and the share of its changes that was kept.

    `weights` are those of a mean of kept ones, None where they are summed; `largest` whether the largest were kept; `elected`
    whether of changes in opposite directions only those in one were; `explained` the share of the changed elements that they
    make, `chance` that of numbers beside them; `elements` how many there are.
    """

    parents: list[str]
    counts: list[float]
    errors: list[float]
    kept: list[float]
    weights: list[float] | None
    largest: bool
    elected: bool
    explained: float
    chance: float
    elements: int

    @property
    def is_whole(self) -> bool:
        """Whether all parents are there."""
        return self.explained >= ALL


def selected(elements: Elements) -> Selection | None:
    """The models of whose changes, each in or out, the child is made; None where there are none, or where rounding hides it.

    Where they make a part of the elements only, those are given that plainly do: it is not whole then.
    """
    rough, whole = Changes.of(elements.about(ROUGH)), Changes.of(elements)
    if len(whole.change) < MOVED or len(rough.change) < MOVED / 4:
        return None
    best = _best(rough)
    if best is None:
        return None
    share = float(rough.explained(best).mean())
    if SOME <= share < ALL and (scaled := _best(rough.loosened(SCALED))) is not None:
        by_tensor = _by_tensor(whole, scaled)
        if float(whole.explained(by_tensor).mean()) >= ALL:
            return _told(whole, elements, by_tensor)
    if float(whole.explained(best).mean()) < ALL:
        best = _plain(rough, best)
        return _told(whole, elements, best) if best.counts else None
    found = _told(whole, elements, best)
    return found if found.chance <= PLAIN else None


def _best(child: Changes) -> Made | None:
    """The reading that makes the most elements of the fewest parents: sums and means of them, from several first parents."""
    best: tuple[float, Made] | None = None
    everything = np.ones(len(child.change), bool)
    firsts = sorted(
        ((alone, name, count) for name, (alone, count) in _alone(child, everything, ()).items()), reverse=True
    )
    for _, name, count in firsts[:STARTS]:
        for averaged in (False, True):
            made = _found(child, name, count, averaged=averaged)
            share = float(child.explained(made).mean()) if made.counts else 0.0
            fewer = best is not None and len(made.counts) < len(best[1].counts) and share > best[0] - NEEDED
            if best is None or share > best[0] + NEEDED or (fewer and made.counts):
                best = share, made
        if best is None or not PROMISING <= best[0] < ALL:
            break
    return best[1] if best is not None and best[1].counts else None


def _found(child: Changes, first: str, count: float, *, averaged: bool) -> Made:
    """Parents with what they count: the one that explains most of what is left is added, then those go that are not needed.

    The `first` is one of those that explain most alone: a child of the child may explain more than a parent.
    """
    made = _weighted(child, Made({}, {} if averaged else None).beside(first, count))
    share = float(child.explained(made).mean())
    while share < 1 - NEEDED and len(made.counts) < MOST_PARENTS + 2:
        left = ~child.explained(made)
        tried: list[tuple[float, str, float]] = sorted(
            (
                (alone, name, count)
                for name, (alone, count) in _alone(child, left, made.counts).items()
                if not averaged
                or all(abs(count / float(np.mean(one)) - 1) <= ALIKE for one in made.counts.values())
            ),
            reverse=True,
        )[:TRIED]
        more = [_weighted(child, made.beside(name, count)) for _, name, count in tried]
        shares: list[float] = [float(child.explained(one).mean()) for one in more]
        if not more or max(shares) < share + NEEDED:
            break
        share = max(shares)
        made = more[int(np.argmax(shares))]
    return _needed(child, made)


def _needed(child: Changes, made: Made) -> Made:
    """Without the parents that hardly an element needs."""
    while made.counts:
        share = float(child.explained(made).mean())
        without = {name: float(child.explained(made.without(name)).mean()) for name in made.counts}
        name = max(without, key=without.__getitem__)
        if without[name] < share - NEEDED:
            break
        made = made.without(name)
    return made if len(made.counts) <= MOST_PARENTS else Made({}, made.weights)


def _alone(child: Changes, left: Mask, known: Container[str]) -> dict[str, tuple[float, float]]:
    """By candidate: the share of the elements that it alone explains beyond chance among those `left`, and what it counts."""
    found = {}
    clear = left & (np.abs(child.change) > CLEAR * child.room)
    for name, delta in child.deltas.items():
        if name in known:
            continue
        usable = clear & (delta != 0)
        if usable.sum() < MOVED / 20:
            continue
        ratio, half = child.change[usable] / delta[usable], child.room[usable] / np.abs(delta[usable])
        count = most_common(ratio, half)
        away = np.abs(ratio - count) / half
        alone = float((away <= 1).sum() - ((away > 1) & (away <= 4)).sum() / 3) / len(child.change)
        if alone >= FEW:
            found[name] = alone, count
    return found


def _weighted(child: Changes, made: Made) -> Made:
    """A mean by the weights with which the first parent and each other one make the most elements together, or a plain one."""
    if made.weights is None or len(made.counts) < 2:
        return made
    plain = replace(made, weights=dict.fromkeys(made.counts, 1.0))
    first, *others = made.counts
    weights = {first: 1.0}
    for name in others:
        one, other = (made.counts[n] * child.deltas[n] for n in (first, name))
        apart = one - other
        usable = (np.abs(apart) > CLEAR * child.room) & (one != 0) & (other != 0)
        usable &= (np.abs(child.change - one) > child.room) & (np.abs(child.change - other) > child.room)
        share = 0.5
        if usable.sum() >= MOVED / 20:
            between = (child.change - other)[usable] / apart[usable]
            inside = (between > 0) & (between < 1)
            if inside.sum() >= MOVED / 20:
                half = child.room[usable][inside] / np.abs(apart[usable][inside])
                share = float(np.clip(most_common(between[inside], half), 0.02, 0.98))
        weights[name] = (1 - share) / share
    weighted = replace(made, weights=weights)
    gain = float(child.explained(weighted).mean() - child.explained(plain).mean())
    return weighted if gain > NEEDED else plain


def _by_tensor(child: Changes, made: Made) -> Made:
    """The same with counts that are each tensor's own: near those of all, where most of its intervals meet."""
    counts: dict[str, float | FloatArray] = {}
    for name, count in made.counts.items():
        delta = child.deltas[name]
        usable = (np.abs(child.change) > CLEAR * child.room) & (np.abs(delta) > 0)
        ratio = np.divide(child.change, delta, out=np.zeros_like(delta), where=usable)
        usable &= np.abs(ratio / count - 1) <= WINDOW
        each = np.full(len(delta), float(np.mean(count)))
        for group in np.unique(child.group[usable]):
            own = child.group == group
            some = usable & own
            if some.sum() >= FEW_OF_A_TENSOR:
                each[own] = most_common(ratio[some], child.room[some] / np.abs(delta[some]))
        counts[name] = each
    return replace(made, counts=counts)


def _plain(child: Changes, made: Made) -> Made:
    """The parents that plainly have a part though others are missing; none where models have a small part that may be chance.

    What each adds is counted beyond what it adds to numbers beside the elements. A relative of a missing parent adds a little
    too, so nothing may lie between those that add much and those that add hardly anything.
    """
    made = Made(made.counts, None)
    both, by_chance = child.shares(made)
    gains = {}
    for name in made.counts:
        rest = made.without(name)
        less, less_by_chance = child.shares(rest) if rest.counts else (0.0, 0.0)
        gains[name] = (both - less) - (by_chance - less_by_chance)
    if any(HARDLY < gain < MUCH for gain in gains.values()):
        return Made({}, None)
    return Made({name: count for name, count in made.counts.items() if gains[name] >= MUCH}, None)


def _told(child: Changes, elements: Elements, made: Made) -> Selection:
    """Parents with counts by least squares on the elements, each made of the parents that come nearest to it."""
    names = list(made.counts)
    nearest = np.full(len(child.change), np.inf)
    inside = np.zeros((len(names), len(child.change)))
    for some, value in child.values(made):
        off = np.abs(child.change - value)
        better = off < nearest
        nearest[better] = off[better]
        inside[:, better] = 0.0
        for i in some:
            inside[i, better] = 1.0
    used = nearest <= child.room
    weights = None if made.weights is None else np.array([made.weights[name] for name in names])
    share = inside if weights is None else inside * weights[:, None] / np.maximum(weights @ inside, 1e-9)
    columns = share * np.stack([child.deltas[name] for name in names])
    trust = used / child.room**2
    back = np.linalg.pinv((trust * columns) @ columns.T)
    values = back @ (columns @ (trust * child.change))
    variance = float(np.mean(((child.change - values @ columns)[used] / child.room[used]) ** 2))
    signs = np.stack(
        [np.sign(v * (elements.models[n] - elements.base)) for v, n in zip(values, names, strict=True)]
    )
    against = np.abs(signs).sum(axis=0) > np.abs(signs.sum(axis=0))
    elected = _is_elected(signs[:, child.moved] * inside, inside, against[child.moved] & used)
    kept, larger = zip(
        *(
            _kept(
                elements,
                child,
                name,
                values[i],
                (inside[i] > 0, used),
                ~against if elected else against | True,
            )
            for i, name in enumerate(names)
        ),
        strict=True,
    )
    order = sorted(range(len(names)), key=lambda i: -abs(values[i]) * kept[i])
    explained, chance = child.shares(made)
    return Selection(
        [names[i] for i in order], [float(values[i]) for i in order],
        [float(np.sqrt(variance * back[i, i])) for i in order], [kept[i] for i in order],
        None if weights is None else [float(weights[i]) for i in order],
        float(np.mean(larger)) >= LARGEST or min(kept) >= NEARLY_ALL, elected,
        explained, chance, len(elements.child),
    )  # fmt: skip


def _is_elected(signs: FloatArray, inside: FloatArray, against: Mask) -> bool:
    """Whether hardly an element has changes in opposite directions kept, where parents have such, [P, K]."""
    several = inside.sum(axis=0) > 1
    mixed = np.abs(signs).sum(axis=0) > np.abs(signs.sum(axis=0))
    together = float((several & ~against).sum()) / max(float((~against).sum()), 1.0)
    apart = float((several & mixed & against).sum()) / max(float(against.sum()), 1.0)
    return bool(against.any()) and apart < RARELY * together


def _kept(
    elements: Elements, child: Changes, name: str, count: float, kept: tuple[Mask, Mask], at: Mask
) -> tuple[float, float]:
    """The share of a parent's changes that were kept, and how often a kept one is larger than one that was not.

    `kept` are those that are in and those of which it is known, of the elements that moved; `at` the elements, of all, where it
    is asked. Of changes that are no longer than rounding it is not seen whether they are in.
    """
    inside, used = kept
    delta = np.abs(elements.models[name] - elements.base)
    clear = (np.abs(count) * delta > CLEAR * units(elements) / 2) & at
    is_in, is_out = np.zeros(len(delta), bool), np.ones(len(delta), bool)
    is_in[child.moved] = inside & used
    is_out[child.moved] = ~inside & used
    is_in, is_out = is_in & clear, is_out & clear
    share = float(is_in.sum() / max(is_in.sum() + is_out.sum(), 1))
    return share, _how_often_larger(delta[is_in], delta[is_out])


def _how_often_larger(some: FloatArray, others: FloatArray) -> float:
    """How often a number of the one set is larger than one of the other, equal ones half (Mann and Whitney's U); 0.5 of none."""
    if not len(some) or not len(others):
        return 0.5
    others = np.sort(others)
    below = np.searchsorted(others, some, "left") + np.searchsorted(others, some, "right")
    return float(below.mean() / 2 / len(others))
