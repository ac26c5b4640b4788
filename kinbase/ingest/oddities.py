"""What a pass shows of a member that no figure of kinship says: weights of zeros, no change at all, infinities, another scale."""

import math
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from kinbase.checkpoint import Checkpoint
from kinbase.checkpoint.files import shown
from kinbase.checkpoint.names import is_norm
from kinbase.ingest import scales
from kinbase.ingest.partial import some
from kinbase.ingest.steps import Placed, Todo

if TYPE_CHECKING:  # the pass costs half a second of imports, which records alone need not pay
    from kinbase.kinship.sums import FamilySums, Weights

RAISED = 0.1
"""How far from 1 the mean change of a norm's gains, and their spread about it, may be for 1 to have been added to them."""

FACTOR = 10.0
"""How many times as long as the base's a tensor may be, or the base's as it, before something is said.

Training from the same start changes lengths by less than twice; integers that stand for weights are hundreds of times as long.
"""


def lines(family: "FamilySums", member: int, theirs: Callable[[], dict[str, float]]) -> list[str]:
    """A line each on what is odd about one member; `theirs` are mean squares of the base's tensors by label, got if wanted."""
    checkpoint = family.members[member]
    found = [
        *_infinite(family, member),
        *_unchanged(family, member),
        *_raised(family, member),
        *_of_another_length(family, checkpoint, member, theirs),
    ]
    base = family.weights.get(family.base.name)
    if base is not None and is_zero(base):
        found.append(
            f"all weights of {family.base.name} are zero: what is compared of {checkpoint.name} is its weights, not a change"
        )
    return found


def without_zeros(source: Placed, weights: "Weights | None") -> Placed:
    """The source, left to what it says if all its weights are zero: there is nothing to compare."""
    member = source.opened.checkpoint
    if member is None or member.delta_of is not None or weights is None or not is_zero(weights):
        return source
    kept = replace(source, opened=replace(source.opened, checkpoint=None), todo=Todo.STORE)
    return kept.noted(
        f"{shown(member.source)} has no weights to compare and is kept for lineage: all its weights are zero"
    )


def is_zero(weights: "Weights") -> bool:
    """Whether not one weight of a model differs from zero."""
    return bool(weights.numels) and bool((weights.moments[:, 1] == 0).all())


def _infinite(family: "FamilySums", member: int) -> list[str]:
    counts = family.columns["nonfinite"][:, member]
    names = [name for (name, _), count in zip(family.tensors, counts, strict=True) if count > 0]
    if not names:
        return []
    return [
        f"{family.members[member].name}: {int(counts.sum()):,} of its elements, or the base's, are not finite, and their "
        f"tensors are not compared: {some(names)}"
    ]


def _unchanged(family: "FamilySums", member: int) -> list[str]:
    name = family.members[member].name
    compared = family.columns["numel"][:, member].sum()
    if name in family.same or not compared or np.nansum(family.columns["max_abs"][:, member]) != 0:
        return []
    if family.columns["nonfinite"][:, member].any():
        return []
    return [
        f"{name} changes nothing of {family.base.name}: it has a distance to others, and no correlation with any"
    ]


def _raised(family: "FamilySums", member: int) -> list[str]:
    """A line where gains of norms are the base's with 1 added or taken away: Gemma's are kept less 1, by some libraries."""
    numel, total, squares = (family.columns[name][:, member] for name in ("numel", "sum", "sumsq"))
    counted = np.maximum(numel, 1)
    mean = np.nan_to_num(total / counted)
    spread = np.sqrt(np.maximum(np.nan_to_num(squares / counted) - mean**2, 0))
    is_off = (numel > 1) & (np.abs(np.abs(mean) - 1) < RAISED) & (spread < RAISED)
    norms = [position for position in np.flatnonzero(is_off) if is_norm(family.tensors[position][0])]
    if not norms:
        return []
    checkpoint, base = family.members[member].name, family.base.name
    how = "1 above" if mean[norms[0]] > 0 else "1 below"
    return [
        f"{checkpoint}: the gains of {len(norms)} of its norms are {how} those of {base}, which is another way to store the same "
        f"({some([family.tensors[position][0] for position in norms])}): its kinship counts it as a change, so convert it first"
    ]


def _of_another_length(
    family: "FamilySums", checkpoint: Checkpoint, member: int, theirs: Callable[[], dict[str, float]]
) -> list[str]:
    """A line where most of what is compared is FACTOR times as long as the base's, or as short.

    Of what is so much longer the change is about as long as the weights, and of what is so much shorter about as long as the
    base's: only then are the base's asked for.
    """
    weights = family.weights.get(checkpoint.name)
    if checkpoint.delta_of is not None or weights is None or scales.have_scales(checkpoint):
        return []
    change, own = np.nansum(family.columns["sumsq"][:, member]), np.nansum(weights.moments[:, 1])
    if own <= 0 or 0.75 < math.sqrt(change / own) < 1.25 or change > own:
        expected = theirs()
    else:
        return []
    ours = scales.mean_squares(weights)
    compared = odd = 0
    named: list[str] = []
    for tensor in scales.lengths(family.base, checkpoint, expected, ours, of=lambda tensor: True):
        if not tensor.base > 0 or not math.isfinite(tensor.base) or not math.isfinite(tensor.member):
            continue
        compared += tensor.numel
        ratio = math.sqrt(tensor.member / tensor.base)
        if not 1 / FACTOR <= ratio <= FACTOR:
            odd += tensor.numel
            named.append(f"{shown(tensor.name)} is {ratio:.3g} times as long")
    if 2 * odd <= compared or not named:
        return []
    return [
        f"{checkpoint.name}: {odd / compared:.0%} of what is compared is of another length than in {family.base.name} "
        f"({named[0]}): codes without their scales, or of another training? Its kinship tells little"
    ]
