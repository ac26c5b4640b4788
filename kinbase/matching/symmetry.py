"""A relabelling of a model's units that leaves what it computes as it is: permutations, signs and scales.

`Symmetry` holds what was found of each group of units; `along` is what that means for one axis of a tensor: new
position i holds the old `index[i]`, times `factor[i]`. With rotary positions, a scale of queries that differs within a
rotary pair does change what is computed: `Symmetry.breaks` tells.

The file of a symmetry is safetensors: of each group that is not as it was a permutation (int64) and, where they are not
1, factors (float64), called `layers.3.units.index`; its metadata names the two models and what tells them from others.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kinbase.checkpoint import own_files
from kinbase.checkpoint.files import shown
from kinbase.errors import UsageError
from kinbase.matching.architecture import Architecture

FORMAT = "kinbase-alignment-1"
LARGEST = 1 << 30
"""Bytes of a file of permutations: that of a model with 100 layers of 50,000 units takes a tenth."""

Indices = NDArray[np.int64]
Factors = NDArray[np.float64]


@dataclass(slots=True)
class Units:
    """A permutation of n units, in rows where they are grouped, and a factor for each: shapes [..., n]."""

    index: Indices
    factor: Factors

    @classmethod
    def same(cls, *shape: int) -> "Units":
        """Units that are where they were."""
        index = np.broadcast_to(np.arange(shape[-1] if shape else 0), shape).copy()
        return cls(index, np.ones(shape))

    @property
    def moved(self) -> int:
        """How many are elsewhere."""
        return int((self.index != np.arange(self.index.shape[-1])).sum()) if self.index.size else 0

    @property
    def scaled(self) -> int:
        """How many have another length."""
        return int((np.abs(self.factor) != 1).sum())

    @property
    def flipped(self) -> int:
        """How many have another sign."""
        return int((self.factor < 0).sum())


@dataclass(slots=True)
class Layer:
    """One layer's groups: MLP units [m], key-value groups [G], queries [G, r], keys [G, h], values [G, v], gains [d]."""

    units: Units
    groups: Units
    queries: Units
    keys: Units
    values: Units
    first: Units
    second: Units


@dataclass(slots=True)
class Symmetry:
    """A relabelling of the units of a model of `architecture`'s sizes: channels [d], its layers, the last gain [d]."""

    residual: Units
    layers: list[Layer]
    last: Units
    has_pairs: bool = True
    told: dict[str, str] = field(default_factory=dict)

    @classmethod
    def identity(cls, model: Architecture) -> "Symmetry":
        """The relabelling that changes nothing."""
        d, groups, same = model.hidden, model.groups, Units.same
        layers = [
            Layer(same(model.units), same(groups), same(groups, model.queries), same(groups, model.head),
                  same(groups, model.value), same(d), same(d))
            for _ in range(model.layers)
        ]  # fmt: skip
        return cls(same(d), layers, same(d), model.is_rotary and model.has_pairs)

    def groups(self) -> Iterator[tuple[str, Units]]:
        """Every group of units by its name in a file."""
        yield "residual", self.residual
        yield "last", self.last
        for number, layer in enumerate(self.layers):
            for name in Layer.__slots__:
                yield f"layers.{number}.{name}", getattr(layer, name)

    @property
    def is_identity(self) -> bool:
        """Whether nothing is moved, flipped or scaled."""
        return not any(units.moved or units.scaled or units.flipped for _, units in self.groups())

    def breaks(self) -> bool:
        """Whether a scale of queries differs within a rotary pair, so that what is computed is not quite the same."""
        if not self.has_pairs:
            return False
        halves = (np.split(layer.keys.factor, 2, axis=-1) for layer in self.layers if layer.keys.factor.size)
        return any(
            first.shape == second.shape and not np.allclose(first, second, rtol=0.05)
            for first, second in halves
        )

    def along(self, axis: str) -> tuple[Indices, Factors]:
        """(index [n], factor [n]) of an axis as `Piece` names it: `residual`, `q.3`, `into-second.0`."""
        kind, _, number = axis.partition(".")
        residual, sign = self.residual.index, self.residual.factor
        if kind == "residual":
            return residual, sign
        if kind == "channels":
            return residual, np.ones(len(residual))
        if kind.removeprefix("into-") == "last":
            gain = self.last
        else:
            layer = self.layers[int(number)]
            if kind in ("gate", "up", "down"):
                factor = {"gate": np.ones(len(layer.units.index)), "up": layer.units.factor}.get(kind)
                return layer.units.index, 1 / layer.units.factor if factor is None else factor
            if kind in ("q", "k", "v", "o"):
                return _heads(layer, kind)
            gain = layer.first if kind.removeprefix("into-") == "first" else layer.second
        return residual, sign / gain.factor if kind.startswith("into-") else gain.factor

    def counts(self) -> dict[str, int]:
        """How many units of each kind are elsewhere, and how many are flipped and scaled in all."""
        found = dict.fromkeys(("channels", "units", "heads", "values", "flipped", "scaled"), 0)
        kinds = {"residual": "channels", "units": "units", "groups": "heads", "queries": "heads", "keys": "values",
                 "values": "values"}  # fmt: skip
        for name, units in self.groups():
            kind = kinds.get(name.rpartition(".")[2])
            if kind:
                found[kind] += units.moved
            found["flipped"] += units.flipped
            found["scaled"] += units.scaled
        return found


def _heads(layer: Layer, kind: str) -> tuple[Indices, Factors]:
    """(index, factor) of the rows of q, k or v, or the columns of o."""
    inner = layer.keys if kind in "qk" else layer.values
    count, width = inner.index.shape
    ours = layer.groups.index
    if kind in "kv":
        index = ours[:, None] * width + inner.index
        return index.reshape(-1), (1 / inner.factor if kind == "k" else inner.factor).reshape(-1)
    queries = layer.queries.index.shape[-1]
    heads = ours[:, None] * queries + layer.queries.index
    index = heads[:, :, None] * width + inner.index[:, None, :]
    factor = inner.factor if kind == "q" else 1 / inner.factor
    return index.reshape(-1), np.broadcast_to(factor[:, None, :], (count, queries, width)).reshape(-1)


def save(symmetry: Symmetry, path: str | Path, told: dict[str, str]) -> None:
    """Write a symmetry to a new file; `told` is its metadata. Raises KinbaseError."""
    tensors = {}
    for name, units in symmetry.groups():
        if units.moved:
            tensors[f"{name}.index"] = np.ascontiguousarray(units.index)
        if units.scaled or units.flipped:
            tensors[f"{name}.factor"] = np.ascontiguousarray(units.factor)
    own_files.save(path, FORMAT, tensors, told)


def metadata(path: str | Path) -> dict[str, str]:
    """What a file of permutations says of the models it is of. Raises UsageError for another kind of file."""
    return _read(path)[0]


def load(path: str | Path, model: Architecture) -> Symmetry:
    """The symmetry in a file, held against the sizes of the model that it is to be applied to.

    Raises UsageError for a file that is none, or of another model's sizes.
    """
    told, tensors = _read(path)
    symmetry = Symmetry.identity(model)
    symmetry.told = told
    known = dict(symmetry.groups())
    for name, values in tensors.items():
        group, _, part = name.rpartition(".")
        units = known.get(group)
        old = None if units is None else {"index": units.index, "factor": units.factor}.get(part)
        if units is None or old is None or values.shape != old.shape or values.dtype != old.dtype:
            raise UsageError(f"{shown(path)} is not of {model.name}: {shown(name)} does not fit its sizes")
        is_sound = (
            bool((np.sort(values, -1) == np.arange(values.shape[-1])).all()) if part == "index"
            else bool(np.isfinite(values).all() and (values != 0).all())
        )  # fmt: skip
        if not is_sound:
            raise UsageError(
                f"{shown(path)} is damaged: {shown(name)} is no permutation, or holds a factor of 0"
            )
        setattr(units, part, values)
    if not model.has_signs and symmetry.residual.flipped:
        raise UsageError(f"{shown(path)} flips channels of {model.name}, whose norms do not allow it")
    return symmetry


def _read(path: str | Path) -> tuple[dict[str, str], dict[str, Any]]:
    kind = "no file of permutations: `kinbase kin A B --aligned --save FILE` writes one"
    return own_files.read(path, FORMAT, LARGEST, kind)
