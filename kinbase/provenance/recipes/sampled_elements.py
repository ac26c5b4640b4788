"""A sample of elements of stored models, the same places of each, read from their files: what sums do not tell.

About 32,768 elements of a model of any size, in short runs that are spread evenly over it: a quarter of a megabyte to read.
"""

from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from kinbase.checkpoint import FLOAT_DTYPES, Checkpoint, Tensor
from kinbase.checkpoint.adapters import elements
from kinbase.checkpoint.alignment import meet
from kinbase.errors import KinbaseError
from kinbase.ingest.stored import open_stored
from kinbase.provenance.recipes.elements import Elements
from kinbase.provenance.recipes.least_squares import BITS, FloatArray
from kinbase.store.names import Member

RUN, RUNS = 128, 256
"""Elements of a run, and runs."""

ENOUGH = 0.5
"""Share of the places that a candidate must have: the others are left out for all."""

KEPT = 256
"""Models whose elements are kept in memory: 64 MiB of them."""


@dataclass(frozen=True, slots=True)
class _Sampled:
    """A model's elements [K], NaN where it lacks them, and their significant bits."""

    values: NDArray[np.float64]
    bits: NDArray[np.int64]


class ElementReader:
    """Reads the same elements of the models `members` by name, at places of the tensors of one of them, the `reference`."""

    def __init__(self, members: Mapping[str, Member], reference: str) -> None:
        self._members, self._reference = members, reference
        self._places: list[tuple[int, int, int]] = []
        self._tensors: Checkpoint | None = None
        self._sampled = lru_cache(maxsize=KEPT)(self._read)

    def of(self, child: str, base: str, candidates: Sequence[str]) -> Elements | None:
        """Elements of a child, of what its changes are from, and of those candidates that can be read and that have most of
        the child's tensors; None where the first two cannot be read."""
        found = {name: self._sampled(name) for name in (child, base, *candidates)}
        own, ground = found.pop(child), found.pop(base)
        if own is None or ground is None:
            return None
        finite = np.isfinite(own.values) & np.isfinite(ground.values)
        models = {
            name: one.values
            for name, one in found.items()
            if one is not None and np.isfinite(one.values)[finite].mean() > ENOUGH
        }
        for values in models.values():
            finite &= np.isfinite(values)
        if not models or not finite.any():
            return None
        group = np.repeat([place[0] for place in self._places], [place[2] for place in self._places])
        return Elements(own.values, ground.values, models, own.bits, group).at(finite)

    def _read(self, name: str) -> _Sampled | None:
        if self._tensors is None and name != self._reference and self._sampled(self._reference) is None:
            return None
        member = self._members.get(name)
        opened, _ = open_stored([member]) if member is not None else ({}, [])
        if name not in opened:
            return None
        with closing(opened[name]) as checkpoint:
            if checkpoint.delta_of is not None:
                return None
            try:
                if name == self._reference:
                    self._tensors, self._places = checkpoint, places(checkpoint)
                    aligned: list[Tensor | None] = list(checkpoint.tensors)
                else:
                    assert self._tensors is not None
                    aligned, _ = meet(self._tensors, checkpoint)
                return self._values(aligned)
            except (KinbaseError, OSError):
                return None

    def _values(self, aligned: Sequence[Tensor | None]) -> _Sampled:
        assert self._tensors is not None
        values: list[FloatArray] = []
        bits: list[NDArray[np.int64]] = []
        for position, start, count in self._places:
            tensor = aligned[position]
            if tensor is None or tensor.numel != self._tensors.tensors[position].numel:
                values.append(np.full(count, np.nan))
                bits.append(np.full(count, BITS["F32"]))
            else:
                values.append(elements(tensor, start, count))
                bits.append(np.full(count, BITS.get(tensor.form, BITS["F32"])))
        return _Sampled(np.concatenate(values), np.concatenate(bits))


def places(checkpoint: Checkpoint, runs: int = RUNS) -> list[tuple[int, int, int]]:
    """(tensor, first element, elements) of runs that are spread evenly over a model's floats; all of a small model.

    Where a run begins within its stride is drawn, the same for the same shapes.
    """
    floats = [
        (position, tensor.numel)
        for position, tensor in enumerate(checkpoint.tensors)
        if tensor.dtype in FLOAT_DTYPES
    ]
    ends = np.cumsum([numel for _, numel in floats])
    total = int(ends[-1]) if len(ends) else 0
    if total <= runs * RUN:
        return [(position, 0, numel) for position, numel in floats if numel]
    stride = total / runs
    drawn = np.random.default_rng(0).random(runs) * max(stride - RUN, 0.0)
    found = []
    for first in (np.arange(runs) * stride + drawn).astype(np.int64).tolist():
        row = int(np.searchsorted(ends, first, "right"))
        position, numel = floats[row]
        start = first - (int(ends[row]) - numel)
        found.append((position, start, min(RUN, numel - start)))
    return found
