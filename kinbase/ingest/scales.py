"""Whether the scales of a quantised model fit its base: its dequantised tensors are about as long as the base's.

Scales that are wrong in value fit by their shapes, and dequantise without a word to weights that are none.
"""

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING

from kinbase.checkpoint import Checkpoint
from kinbase.checkpoint.alignment import labels, meet
from kinbase.checkpoint.files import shown
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


def misfit(
    base: Checkpoint, member: Checkpoint, theirs: Mapping[str, float], ours: Mapping[str, float]
) -> tuple[bool, str | None]:
    """Whether the scales of `member` do not fit `base`, and what is to be said of it, if anything.

    They do not when tensors that hold most of the elements dequantised, of those that the base has too and by whose
    mean squares (`theirs` the base's, `ours`, by label) something can be told, are longer or shorter by FACTOR. Of
    fewer a line tells. Vocabularies of other sizes are compared by the element.
    """
    if not any(tensor.grid for tensor in member.tensors):
        return False, None
    their_labels, our_labels = labels(base.tensors), labels(member.tensors)
    compared = wrong = 0
    named: list[str] = []
    for tensor, match in zip(base.tensors, meet(base, member)[0], strict=True):
        if match is None or match.grid is None:
            continue
        expected = theirs.get(their_labels.get(tensor.name, ""), 0.0)
        value = ours.get(our_labels.get(match.name, ""))
        if value is None or not expected > 0 or not math.isfinite(expected):
            continue  # a view of a part has no sums of its own, and beside zeros no length is wrong
        compared += match.numel
        ratio = math.sqrt(value / expected)
        if not 1 / FACTOR <= ratio <= FACTOR:
            wrong += match.numel
            named.append(f"{shown(match.name)} {_told(ratio)} {base.name}")
    if not named:
        return False, None
    if 2 * wrong > compared:
        return True, (
            f"{shown(member.source)} has no weights to compare and is kept for lineage: its scales do not fit, "
            f"{named[0]}"
        )
    return False, (
        f"the scales of {len(named)} of its tensors ({wrong / compared:.0%} of what is dequantised) do not fit: {named[0]}"
    )


def _told(ratio: float) -> str:
    if not math.isfinite(ratio):
        return "is not finite where it is in"
    return f"is {ratio:.3g} times as long as in"
