"""Stacks: each tensor of a child is one model's as it is, as mergekit's passthrough and grafts of layers leave them."""

from collections import defaultdict
from dataclasses import replace

import numpy as np

from kinbase.checkpoint.names import layer_of
from kinbase.provenance.recipes.intervals import MERGE, UNDECIDABLE, Finding, Parent
from kinbase.provenance.recipes.least_squares import EXACT, Grams

BASE = "the base"
STACK = "passthrough"
"""mergekit's word for what takes tensors as they are."""

CLEAR = 0.02
"""How near to 0 or 1 a share by depth is all or nothing."""

WHOLE = 0.2
"""How far from 1 the coefficient of a model inside what was trained from it may be: training goes on in its direction."""


def stacked(grams: Grams) -> Finding | None:
    """The finding on a child of whose tensors each is a candidate's or the base's, and not all are one's; None of any other.

    Where a tensor is several models' it counts for the one that has the most of the child's.
    """
    equal = _equal(grams)
    if not equal.any(axis=1).all():
        return None
    names = [*grams.names, BASE]
    order = np.argsort(-(grams.numel @ equal), kind="stable")
    source = order[equal[:, order].argmax(axis=1)]
    if len(set(source.tolist())) < 2:
        return None
    share = {int(i): float(grams.numel[source == i].sum() / grams.numel.sum()) for i in np.unique(source)}
    parents = [
        Parent(names[i], share[i], share[i], share[i])
        for i in sorted(share, key=lambda i: -share[i])
        if i < len(grams.names)
    ]
    told = ", ".join(
        f"{names[i]} has {_places(grams, source == i)}" for i in sorted(share, key=lambda i: -share[i])
    )
    return Finding(
        MERGE, f"a stack, each tensor as one model has it: {told}", 0.0, grams.floor, parents, STACK, 0.0, 0.0, 1.0,
        condition=1.0, base=share.get(len(grams.names), 0.0),
    )  # fmt: skip


def grown_from(grams: Grams, finding: Finding) -> list[str]:
    """Parents of a reading that may have been made from the child itself, by training some of its tensors alone.

    A model and two fine-tunes of it, of its attention and of its MLPs, read as a stack of the two: each tensor is
    one's as it is. The fine-tunes have, where they differ from it, its whole change and more, which strangers do not. Layers
    that are one model's whole are a stack all the same: parts are trained, and grafted, inside layers.
    """
    if not _is_all_or_nothing(finding) or _is_by_layer(grams):
        return []
    own = np.diagonal(grams.gram, axis1=1, axis2=2)
    found = []
    for parent in finding.parents:
        i = grams.names.index(parent.parent)
        other = ~_equal(grams)[:, i]
        mine, theirs = grams.sumsq[other].sum(), own[other, i].sum()
        inside = float(grams.cross[other, i].sum() / mine) if mine > 0 else 1.0
        if other.any() and not other.all() and abs(inside - 1) <= WHOLE and theirs > mine:
            found.append(parent.parent)
    return found


def undecided(finding: Finding, grown: list[str]) -> Finding:
    """A finding whose parents `grown` may have been made from the child."""
    return replace(
        finding, verdict=UNDECIDABLE, method=STACK, gradient=None, parents=[], nearest=finding.parents,
        reason=f"each tensor is as another model has it, and {' and '.join(grown)} may as well have been trained from "
        "some of its tensors: dates or lineage would decide",
    )  # fmt: skip


def _equal(grams: Grams) -> "np.ndarray[tuple[int, int], np.dtype[np.bool_]]":
    """Which tensors of the child are each candidate's and, last, the base's [T, N + 1]."""
    own = np.diagonal(grams.gram, axis1=1, axis2=2)[:, :-1]
    apart = np.column_stack([grams.sumsq[:, None] - 2 * grams.cross[:, :-1] + own, grams.sumsq])
    length = np.maximum(grams.sumsq[:, None], np.column_stack([own, np.zeros(len(own))]))
    return np.asarray((apart <= EXACT * length) & ~np.isin([*grams.names, BASE], list(grams.adapters)))


def _is_all_or_nothing(finding: Finding) -> bool:
    if finding.verdict != MERGE:
        return False
    if finding.gradient is None:
        return finding.method == STACK
    values = finding.gradient.values
    return bool((np.minimum(np.abs(values), np.abs(values - 1)) <= CLEAR).all())


def _is_by_layer(grams: Grams) -> bool:
    """Whether every layer is one model's whole, where the child has more than one."""
    equal, layers = _equal(grams), defaultdict(list)
    for t, name in enumerate(grams.tensors):
        place = layer_of(name)
        if place is not None:
            layers[place[:2]].append(t)
    return len(layers) > 1 and all(equal[tensors].all(axis=0).any() for tensors in layers.values())


def _places(grams: Grams, chosen: "np.ndarray[tuple[int], np.dtype[np.bool_]]") -> str:
    """The layers, as ranges, and how many other tensors, of some tensors."""
    layers: defaultdict[int, int] = defaultdict(int)
    others = 0
    for name, is_in in zip(grams.tensors, chosen, strict=True):
        place = layer_of(name) if is_in else None
        if place is not None:
            layers[place[1]] += 1
        else:
            others += bool(is_in)
    ranges: list[list[int]] = []
    for layer in sorted(layers):
        if ranges and layer == ranges[-1][1] + 1:
            ranges[-1][1] = layer
        else:
            ranges.append([layer, layer])
    said = [f"{first} to {last}" if last > first else str(first) for first, last in ranges]
    parts = [f"layers {', '.join(said)}"] if said else []
    return " and ".join([*parts, *([f"{others} other tensors"] if others else [])])
