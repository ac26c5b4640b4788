"""Reading one tensor in order through `Tensor.read`: what is read is hashed, weighed and sketched."""

import numpy as np
import xxhash

from kinbase.checkpoint.digest import LEAF, SPAN
from kinbase.kinship.parts import Part
from kinbase.kinship.plan import Lane
from kinbase.kinship.sketch import Buffers


class LaneReader:
    """Reads one lane, from a leaf's beginning on and without a gap, and adds what it finds to a part."""

    def __init__(self, lane: Lane, part: Part, buffers: Buffers) -> None:
        self._lane, self._part, self._buffers = lane, part, buffers
        self._hasher = xxhash.xxh3_128()

    def read(self, start: int, raw: memoryview) -> None:
        """Fill `raw` with whole elements from `start` on, none beyond the end of the leaf."""
        lane, part = self._lane, self._part
        lane.tensor.read(start * lane.width, raw)
        part.nbytes += len(raw)
        if not lane.hashed:
            return
        end = start + len(raw) // lane.width
        if lane.is_digested:
            self._hasher.update(raw)
        if lane.label:
            leaves = part.weights[lane.slot]
            if start % LEAF == 0:
                leaves.append(np.zeros(3))
            sketch = part.piece.sketches[lane.slot]
            sketch.weigh(raw, start, lane.code, self._buffers, lane.slot, leaves[-1])
            if end % SPAN == 0 or end == lane.numel:
                sketch.flush(self._buffers, lane.slot)
        if lane.is_digested and (end % LEAF == 0 or end == lane.numel):
            part.leaves[lane.slot].append(self._hasher.digest())
            self._hasher.reset()
