"""Stacks: each tensor of a child is one model's as it is, as mergekit's passthrough and grafts of layers leave them."""

from collections import defaultdict

import numpy as np

from kinbase.checkpoint.names import layer_of
from kinbase.provenance.recipes.intervals import MERGE, Finding, Parent
from kinbase.provenance.recipes.least_squares import EXACT, Grams

BASE = "the base"


def stacked(grams: Grams) -> Finding | None:
    """The finding on a child of whose tensors each is a candidate's or the base's, and not all are one's; None of any other.

    Where a tensor is several models' it counts for the one that has the most of the child's.
    """
    own = np.diagonal(grams.gram, axis1=1, axis2=2)[:, :-1]
    apart = np.column_stack([grams.sumsq[:, None] - 2 * grams.cross[:, :-1] + own, grams.sumsq])
    length = np.maximum(grams.sumsq[:, None], np.column_stack([own, np.zeros(len(own))]))
    equal = (apart <= EXACT * length) & ~np.isin([*grams.names, BASE], list(grams.adapters))
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
        MERGE, f"a stack, each tensor as one model has it: {told}", 0.0, grams.floor, parents, "passthrough", 0.0, 0.0, 1.0,
        condition=1.0, base=share.get(len(grams.names), 0.0),
    )  # fmt: skip


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
