"""What to say of a member that is compared by a part of its base's parameters, or of its own: how much, and why."""

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

from kinbase.checkpoint import FLOAT_DTYPES, Checkpoint, Tensor
from kinbase.checkpoint.alignment import AMBIGUOUS, MISSING, NOT_IN_THE_BASE
from kinbase.checkpoint.names import bare

if TYPE_CHECKING:  # the pass costs half a second of imports, which records alone need not pay
    from kinbase.kinship.sums import FamilySums

WHOLE = 0.99
"""Share of the base's parameters from which a comparison counts as one of the whole models."""

NAMED = 3
"""Tensors that are named for each reason."""

_NUMBERED = re.compile(r"^(.*?)\.(\d+)\.")


def lines(family: "FamilySums", member: int) -> list[str]:
    """A line if a member's layers are not as many as the base's, and one if it is compared by less than WHOLE of either."""
    checkpoint = family.members[member]
    layers = _layers(family.base, checkpoint)
    coverage = family.coverage(member)
    if coverage >= WHOLE or coverage == 0:
        return [*layers, *beyond(checkpoint, family.base.name, family.skipped[member])]
    reasons = {**family.skipped[member], **checkpoint.skipped}
    counted = family.columns["numel"][:, member]
    cut = [name for (name, numel), own in zip(family.tensors, counted, strict=True) if 0 < own < numel]
    return [*layers, partial(checkpoint.name, family.base.name, coverage, reasons, cut)]


def partial(name: str, base: str, coverage: float, reasons: dict[str, str], cut: Sequence[str] = ()) -> str:
    """By how much of its base a member is compared, and why not by all; `cut` are tensors with fewer rows."""
    kinds: dict[str, list[str]] = {}
    for tensor, reason in reasons.items():
        kinds.setdefault(_kind(reason), []).append(tensor)
    if cut:
        kinds["with fewer rows than the base's"] = list(cut)
    why = "; ".join(f"{len(tensors)} {kind} ({some(tensors)})" for kind, tensors in kinds.items())
    # Never rounded up to what it is not.
    share = f"{min(coverage, 0.9899):.1%}"
    return f"{name} is compared by {share} of the parameters of {base}" + (
        f": of its tensors {why}" if why else ""
    )


def beyond(member: Checkpoint, base: str, reasons: Mapping[str, str]) -> list[str]:
    """A line where more than 1 - WHOLE of a member's parameters is in no tensor of its base, and so takes no part."""
    floats = [tensor for tensor in member.tensors if tensor.dtype in FLOAT_DTYPES]
    strangers = [tensor for tensor in floats if reasons.get(tensor.name) in (NOT_IN_THE_BASE, AMBIGUOUS)]
    share = sum(t.numel for t in strangers) / max(sum(t.numel for t in floats), 1)
    if share <= 1 - WHOLE:
        return []
    return [
        f"{share:.1%} of the parameters of {member.name} take no part: {len(strangers)} of its tensors are not in {base} "
        f"({some([t.name for t in strangers])})"
    ]


def _kind(reason: str) -> str:
    """What is wrong with tensors of a reason, in words that follow their number."""
    if reason == MISSING:
        return "missing in it"
    if reason in (NOT_IN_THE_BASE, AMBIGUOUS):
        return {AMBIGUOUS: "that several could be"}.get(reason, reason)
    if reason.startswith("empty where "):
        return "empty"
    if reason.startswith("shape "):
        return "of another shape, left out"
    return f"left out as {reason.partition(' (')[0]}"


def some(tensors: Sequence[str]) -> str:
    """The first NAMED tensors, and how many more there are."""
    more = f", and {len(tensors) - NAMED} more" if len(tensors) > NAMED else ""
    return ", ".join(sorted(tensors)[:NAMED]) + more


def _layers(base: Checkpoint, member: Checkpoint) -> list[str]:
    """A line where a stack of layers is not as high as the base's; an adapter need not list every layer."""
    if member.delta_of is not None:
        return []
    ours, theirs = _heights(base.tensors), _heights(member.tensors)
    return [
        f"{member.name} has {theirs[stack]} layer{'s' * (theirs[stack] != 1)} ({stack}) where {base.name} has {height}"
        for stack, height in ours.items()
        if stack in theirs and theirs[stack] != height
    ]


def _heights(tensors: Iterable[Tensor]) -> dict[str, int]:
    """How many layers each stack of a model has, by what their names begin with."""
    stacks: dict[str, set[str]] = {}
    for tensor in tensors:
        if match := _NUMBERED.match(bare(tensor.name)):
            stacks.setdefault(match[1], set()).add(match[2])
    return {stack: len(numbers) for stack, numbers in stacks.items()}
