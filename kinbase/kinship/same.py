"""The same weights in another layout or dtype: told by the sums of a pass, proved by the bytes."""

from collections.abc import Sequence

import numpy as np

from kinbase.checkpoint import FLOAT_DTYPES, Checkpoint, Tensor
from kinbase.checkpoint.alignment import meet
from kinbase.checkpoint.tensors import same_bytes
from kinbase.kinship.plan import Plan
from kinbase.kinship.sums import FamilySums

Same = tuple[str, str, str]
"""Another model's name, how the weights differ in form (layout, dtype or names), and what shows it first."""


def twins(plan: Plan, family: FamilySums) -> dict[str, Same]:
    """By name the new members whose weights are the base's or another member's, all of them, and no others.

    The base's where no element differs; another member's where the sums agree in every tensor and then the bytes do.
    Reads those again; may raise CheckpointError.
    """
    found: dict[str, Same] = {}
    numel, zeros, sumsq = (family.columns[name] for name in ("numel", "zeros", "sumsq"))
    sizes = np.array([n for _, n in family.tensors], dtype=np.float64)
    for i, member in enumerate(plan.members[: plan.new]):
        is_whole = member.delta_of is None and bool(len(sizes)) and bool((numel[:, i] == sizes).all())
        if not is_whole or not _holds_nothing_else(member, plan.aligned[i], plan.skipped[i]):
            continue
        if (zeros[:, i] == sizes).all():
            found[member.name] = (plan.base.name, *_difference(plan.base, member, plan.aligned[i]))
            continue
        for j, other in enumerate(plan.members):
            is_before = j < i or j >= plan.new
            if not is_before or other.delta_of is not None or not (numel[:, j] == sizes).all():
                continue
            if not np.array_equal(sumsq[:, i], sumsq[:, j]):
                continue
            if np.array_equal(family.dots.rows(i, i + 1)[:, 0, j], sumsq[:, i]):
                how = _proved(other, member)
                if how:
                    found[member.name] = (other.name, *how)
                    break
    return found


def _holds_nothing_else(
    member: Checkpoint, aligned: Sequence[Tensor | None], skipped: dict[str, str]
) -> bool:
    floats = {t.name for t in member.tensors if t.dtype in FLOAT_DTYPES}
    return not member.blobs and not (floats & skipped.keys())


def _proved(other: Checkpoint, member: Checkpoint) -> tuple[str, str] | None:
    """How two models differ in form, if every tensor of one is the other's, byte for byte."""
    aligned, skipped = meet(other, member)
    if skipped:
        return None
    for tensor, match in zip(other.tensors, aligned, strict=True):
        if match is None or tensor.shape != match.shape or not same_bytes(tensor, match):
            return None
    return _difference(other, member, aligned)


def _difference(other: Checkpoint, member: Checkpoint, aligned: Sequence[Tensor | None]) -> tuple[str, str]:
    own = {id(t) for t in member.tensors}
    kept = {id(t) for t in aligned if t is not None}
    for tensor in member.tensors:
        if tensor.dtype in FLOAT_DTYPES and id(tensor) not in kept:
            return "layout", tensor.name
    for tensor, match in zip(other.tensors, aligned, strict=True):
        if match is not None and id(match) not in own:
            return "layout", tensor.name
        if match is not None and match.dtype != tensor.dtype:
            return "dtype", f"{match.dtype} for {tensor.dtype}"
    for tensor, match in zip(other.tensors, aligned, strict=True):
        if match is not None and match.name != tensor.name:
            return "names", f"{match.name} for {tensor.name}"
    return "names", ""  # a copy, or one that differs in what is no weight
