"""Whether the scales of a quantised model fit its base: its dequantised tensors are about as long as the base's.

Scales that are wrong in value fit by their shapes, and dequantise without a word to weights that are none. 8-bit floats
whose scales were lost are read as plain weights, and are told by their length too.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from kinbase.checkpoint import Checkpoint, Tensor
from kinbase.checkpoint.alignment import labels, meet
from kinbase.checkpoint.files import shown
from kinbase.checkpoint.packed import BYTE_FLOATS
from kinbase.ingest.steps import Placed, Todo
from kinbase.store import Store
from kinbase.store import kinship as sums
from kinbase.store import names as naming

if TYPE_CHECKING:  # the pass costs half a second of imports, which records alone need not pay
    from kinbase.kinship.sums import Weights

FACTOR = 3.0
"""How many times as long as the base's a dequantised tensor may be, or the base's as it.

Fine-tuning changes the length of a tensor by some hundredths, rounding to the nearest value of a grid by its relative
error, which even at two bits is below a half: both together stay below two. Scales that are left at one, inverted or
of another model are off by what scales are for: the ratio of codes (7 to 448) to weights (about a hundredth).
"""


@dataclass(frozen=True, slots=True)
class Lengths:
    """The mean squares of a tensor of a member, and of the base's that it meets, over `numel` elements."""

    name: str
    numel: int
    base: float
    member: float


def have_scales(checkpoint: Checkpoint) -> bool:
    """Whether any tensor has scales, or may have had some."""
    return any(map(is_scaled, checkpoint.tensors))


def mean_squares(weights: "Weights") -> dict[str, float]:
    """The mean square of each tensor that a pass read, by label; NaN where an element is not finite."""
    return {
        label: float(moments[1]) / max(numel, 1)
        for label, numel, moments in zip(weights.tensors, weights.numels, weights.moments, strict=True)
    }


def stored_mean_squares(store: Store, name: str) -> dict[str, float]:
    """The mean square of each tensor of a stored model, by label; nothing for one that is not stored."""
    if not store.path.exists():
        return {}
    with store.reading() as con:
        model_id = naming.find(con, name)
        return sums.mean_squares(con, model_id) if model_id is not None else {}


def is_scaled(tensor: Tensor) -> bool:
    """Whether a tensor is dequantised, or of 8-bit floats, which are codes where their scales were lost."""
    return tensor.grid is not None or tensor.dtype in BYTE_FLOATS


def lengths(
    base: Checkpoint,
    member: Checkpoint,
    theirs: Mapping[str, float],
    ours: Mapping[str, float],
    *,
    of: Callable[[Tensor], bool] = is_scaled,
) -> Iterator[Lengths]:
    """Those of the tensors `of` a kind that both models have, by their mean squares, `theirs` the base's, by label.

    A view of a tensor in another layout has no sums of its own: some runs of it are read. May raise CheckpointError.
    """
    their_labels, our_labels = labels(base.tensors), labels(member.tensors)
    own = {id(tensor) for tensor in member.tensors}
    for tensor, match in zip(base.tensors, meet(base, member)[0], strict=True):
        if match is None or not of(match):
            continue
        expected = theirs.get(their_labels.get(tensor.name, ""), 0.0)
        value = ours.get(our_labels.get(match.name, "")) if id(match) in own else _mean_square(match)
        if value is not None:
            yield Lengths(match.name, match.numel, expected, value)


def _mean_square(tensor: Tensor) -> float:
    """The mean square of some runs of a tensor: of a few thousand elements it is right to some hundredths."""
    from kinbase.kinship.layers import runs

    values = runs(tensor, tensor.numel)
    return float(values @ values) / max(len(values), 1)


def judged(source: Placed, base: Checkpoint, found: Iterable[Lengths]) -> Placed:
    """The source with what is to be said of its scales, left to what it says where they do not fit the base.

    `found` are its `lengths`.
    """
    member = source.opened.checkpoint
    if member is None or member.delta_of is not None or not have_scales(member):
        return source
    why = unmet(base, member)
    is_wrong, line = (True, why) if why else misfit(base, member, found)
    if not is_wrong:
        return source.noted(line) if line else source
    # What was said of dequantising its weights is said of what is not kept.
    notes = tuple(note for note in source.notes if note not in member.notes)
    refused = replace(source, opened=replace(source.opened, checkpoint=None), todo=Todo.STORE, notes=notes)
    return refused.noted(f"{shown(member.source)} has no weights to compare and is kept for lineage: {line}")


def unmet(base: Checkpoint, member: Checkpoint) -> str | None:
    """Why nothing is told by comparing what is left: most of what is dequantised is not in the base; else None.

    Embeddings and norms, which are seldom quantised, are not the model.
    """
    dequantised = [tensor for tensor in member.tensors if tensor.grid is not None]
    reasons = meet(base, member)[1]
    strangers = [tensor for tensor in dequantised if tensor.name in reasons]
    numel = sum(tensor.numel for tensor in strangers)
    whole = sum(tensor.numel for tensor in dequantised)
    if 2 * numel <= whole:
        return None
    first = strangers[0].name
    return (
        f"{numel / whole:.0%} of what is dequantised meets no tensor of {base.name} ({shown(first)}: {reasons[first]}), so "
        "its scales cannot be checked: give the base that it was made from with --base"
    )


def misfit(base: Checkpoint, member: Checkpoint, found: Iterable[Lengths]) -> tuple[bool, str | None]:
    """Whether the scales of `member` do not fit `base`, and what is to be said of it, if anything.

    They do not when tensors that hold most of the elements with scales, of those by whose lengths something can be
    told, are longer or shorter by FACTOR. Of fewer a line tells. Vocabularies of other sizes are compared by the element.
    """
    compared = wrong = 0
    named: list[str] = []
    for tensor in found:
        if not tensor.base > 0 or not math.isfinite(tensor.base):
            continue  # beside zeros no length is wrong
        compared += tensor.numel
        ratio = math.sqrt(tensor.member / tensor.base)
        if not 1 / FACTOR <= ratio <= FACTOR:
            wrong += tensor.numel
            named.append(f"{shown(tensor.name)} {_told(ratio)} {base.name}")
    if not named:
        return False, None
    is_dequantised = any(tensor.grid for tensor in member.tensors)
    if 2 * wrong > compared:
        what = "its scales" if is_dequantised else "its 8-bit floats, which have no scales,"
        return True, f"{what} do not fit, {named[0]}"
    what, of = ("the scales of ", "what is dequantised") if is_dequantised else ("", "its 8-bit floats")
    return False, f"{what}{len(named)} of its tensors ({wrong / compared:.0%} of {of}) do not fit: {named[0]}"


def _told(ratio: float) -> str:
    if not math.isfinite(ratio):
        return "is not finite where it is in"
    return f"is {ratio:.3g} times as long as in"
