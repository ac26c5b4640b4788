"""Models whose tensors do not all fit their base's: what to correct in the difference of two sketches.

The sketch of a model is of all its weights, that of a delta must be of what meets. What does not (further rows of
a vocabulary, a tensor that one side lacks) is read once more and taken away on each side.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from kinbase.checkpoint import DTYPE_BYTES, FLOAT_DTYPES, Checkpoint, Tensor
from kinbase.checkpoint.alignment import labels, meet
from kinbase.checkpoint.digest import SPAN
from kinbase.kinship.layout import code_of
from kinbase.kinship.sketch import Buffers, TensorSketch, empty


@dataclass(frozen=True, slots=True)
class Change:
    """What to add to S(model) - S(base) [BUCKETS], and to the difference of their sums; and the elements that meet."""

    sums: NDArray[np.float64]
    sum: float
    numel: int


def misfit(base: Checkpoint, member: Checkpoint) -> Change | None:
    """What the tensors that do not fit add to the difference of the sketches; None: all fit.

    Reads what does not fit, and so raises CheckpointError where that cannot be read.
    """
    aligned, _ = meet(base, member)
    ours, theirs = labels(base.tensors), labels(member.tensors)
    spare: list[tuple[int, Tensor, str, int, int]] = []
    both = 0
    left = {id(t): t for t in member.tensors if t.dtype in FLOAT_DTYPES}
    for tensor, match in zip(base.tensors, aligned, strict=True):
        if tensor.dtype not in FLOAT_DTYPES:
            continue
        cut = min(tensor.numel, match.numel) if match else 0
        both += cut
        if cut < tensor.numel:
            spare.append((1, tensor, ours[tensor.name], cut, tensor.numel))
        if match and id(match) in left and theirs[match.name] == ours[tensor.name]:
            del left[id(match)]
            if cut < match.numel:
                spare.append((-1, match, theirs[match.name], cut, match.numel))
        elif match:  # sketched under another name, or in another layout: as it would be under the base's
            spare.append((1, match, ours[tensor.name], 0, cut))
    spare += [(-1, tensor, theirs[tensor.name], 0, tensor.numel) for tensor in left.values()]
    if not spare:
        return None
    sums, total = empty(), 0.0
    for sign, tensor, label, start, stop in spare:
        part, amount = _stretch(tensor, label, start, stop)
        sums += sign * part
        total += sign * amount
    return Change(sums, total, both)


def _stretch(tensor: Tensor, label: str, start: int, end: int) -> tuple[NDArray[np.float64], float]:
    """The sketch [BUCKETS] and the sum of a tensor's elements `start` to `end`, under the name `label`."""
    sketch, buffers, moments = TensorSketch(label, end), Buffers(), np.zeros(3)
    width = DTYPE_BYTES[tensor.dtype]
    while start < end:
        stop = min(end, (start // SPAN + 1) * SPAN)
        raw = memoryview(bytearray((stop - start) * width))
        tensor.read(start * width, raw)
        sketch.weigh(raw, start, code_of(tensor), buffers, 0, moments)
        sketch.flush(buffers, 0)
        start = stop
    total = empty()
    sketch.pour(total)
    return total, float(moments[0])
