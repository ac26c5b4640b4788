"""A model read by itself, and nothing of it kept: its digest, and the sketch of its weights."""

import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from kinbase.checkpoint import FLOAT_DTYPES, Checkpoint, Tensor
from kinbase.checkpoint.alignment import labels
from kinbase.ingest.family_pass import planned, read, refuse_changed
from kinbase.ingest.finished import Finished, Row
from kinbase.ingest.steps import OnProgress
from kinbase.kinship.sketch import Buffers, TensorSketch, empty

VECTORS = 512
"""Vectors whose mean is taken away, the longest of a model; nets of some hundred layers have fewer."""


@dataclass(frozen=True, slots=True)
class Look:
    """What one reading of a model tells: its digest, elements, and the sketch [BUCKETS] of its weights."""

    digest: str
    numel: int
    sums: NDArray[np.float32]


class _Nowhere:
    """What a pass finishes is not kept."""

    def __init__(self, folder: str) -> None:
        self.folder, self.where = Path(folder), "memory"

    def rows(self) -> Iterator[Row]:
        """Nothing was kept."""
        return iter(())

    def save(self, finished: Finished) -> None:
        """Nothing is kept."""


def look(checkpoint: Checkpoint, on_progress: OnProgress) -> Look:
    """Read a checkpoint once. Raises CheckpointError when it cannot be read, or changes meanwhile."""
    plan, _ = planned(checkpoint, (), new=0, hash_base=True)
    with tempfile.TemporaryDirectory() as folder:
        finished = Finished(plan, _Nowhere(folder))
        read(plan, finished, plan.positions, on_progress=on_progress)
        refuse_changed(checkpoint)
        family = finished.sums("")
    name = checkpoint.name
    numel = sum(family.weights[name].numels)
    return Look(family.digests[name], numel, family.sketches[name].astype(np.float32))


def vectors(tensors: list[Tensor]) -> NDArray[np.float64]:
    """The sketches [BUCKETS, n] of 1 in each vector of a model (gains, biases), by which its mean is taken away.

    Gains are near 1 in every model that was ever trained, so that strangers' weights correlate: in small models by most of
    their length.
    """
    named = labels(tensors)
    chosen = sorted(
        (t for t in tensors if len(t.shape) == 1 and t.dtype in FLOAT_DTYPES), key=lambda t: -t.numel
    )
    columns = []
    for tensor in chosen[:VECTORS]:
        sketch, buffers = TensorSketch(named[tensor.name], tensor.numel), Buffers()
        ones = memoryview(np.ones(tensor.numel, np.float32).view(np.uint8))  # type: ignore[arg-type]
        sketch.weigh(ones, 0, FLOAT_DTYPES.index("F32"), buffers, 0, np.zeros(3))
        sketch.flush(buffers, 0)
        total = empty()
        sketch.pour(total)
        columns.append(total)
    return np.stack(columns, axis=1) if columns else np.zeros((len(empty()), 0))


def without(sums: NDArray[np.float32], common: NDArray[np.float64]) -> NDArray[np.float32]:
    """A sketch less what `vectors` tell of it: that of the weights with the mean of each vector taken away."""
    if not common.shape[1]:
        return sums
    share = np.linalg.lstsq(common, sums.astype(np.float64), rcond=None)[0]
    return np.asarray(sums - common @ share, np.float32)
