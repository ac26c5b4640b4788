"""What a kinship pass returns: sums by tensor, a family's sums, and the pairs and weights derived from them.

These types stand below the pass that makes them and the store that keeps them.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from kinbase.checkpoint import Checkpoint

if TYPE_CHECKING:  # the kernels take half a second to load
    from kinbase.kinship.sketch import TensorSketch
    from kinbase.kinship.sketch_correction import Change

FloatArray = NDArray[np.float64]

STATISTICS = ("numel", "sum", "sumsq", "max_abs", "zeros", "nonfinite")


@dataclass(frozen=True, slots=True)
class TensorSums:
    """What the pass found in one tensor, for N members of which the first K are new.

    `position` counts the base's tensors; from len(base.tensors) on it counts tensors outside the base,
    which were read for their digest only. All arrays are float64. A member without this tensor has
    numel 0; one with a non-finite delta has NaN for sum, sumsq, max_abs and its products. `dot` [K, N]
    is NaN where the pair has no common elements. Members cut to different lengths share a prefix: `dot`
    is over that, and each row of `exceptions` (i, j, numel, sum_i, sum_j, sumsq_i, sumsq_j) gives the
    sums over it of a pair i < j of different lengths. `digests` are the tensor's, in the order of
    `Plan.hashed`, "" for a checkpoint without it; `weights` [H, 3] in the same order are the sums of
    `sketching.MOMENTS` over all its elements as stored, NaN for a checkpoint without it and where one is not
    finite; `sketches` are its sketches, None for a checkpoint without it.
    """

    position: int
    name: str
    numel: FloatArray
    sum: FloatArray
    sumsq: FloatArray
    max_abs: FloatArray
    zeros: FloatArray
    nonfinite: FloatArray
    dot: FloatArray
    exceptions: FloatArray
    digests: tuple[str, ...]
    weights: FloatArray
    sketches: "tuple[TensorSketch | None, ...]"


@dataclass(slots=True)
class Pair:
    """Sums of one measured pair: totals over the tensors aligned in both, and <d_a, d_b> by position [T]."""

    a_id: int
    b_id: int
    numel: int
    sum_a: float
    sum_b: float
    sumsq_a: float
    sumsq_b: float
    dots: FloatArray
    parts: list[tuple[int, int, float, float, float, float]]

    def swapped(self) -> "Pair":
        """The same pair told from the other side."""
        return Pair(
            self.b_id, self.a_id, self.numel, self.sum_b, self.sum_a, self.sumsq_b, self.sumsq_a, self.dots,
            [(position, numel, sb, sa, qb, qa) for position, numel, sa, sb, qa, qb in self.parts],
        )  # fmt: skip


@dataclass(slots=True)
class Weights:
    """Sums over the elements of a model's floating-point tensors, as stored: T tensors, `moments` [T, 3].

    The columns are x, x^2 and the squared distance from x to the next number of its dtype; a row is NaN
    where an element is not finite.
    """

    tensors: list[str]
    dtypes: list[str]
    numels: list[int]
    moments: FloatArray


@dataclass(slots=True)
class FamilySums:
    """A base, its members (the first `new` of them new), and what the pass found.

    `columns[s]` [T, N] holds statistic s of STATISTICS, `dots` [T, K, N] the inner products of new members
    with all, both by tensor position; `digests` are the content digests of the base, if it was new, and
    of the new members, by name; `weights` are those models' power sums and `sketches` [BUCKETS] their sketches;
    `changes` says of those that do not fit the base called `fitted_to` what that adds (see `kinbase.kinship.sketch_correction`).
    """

    base: Checkpoint
    members: list[Checkpoint]
    new: int
    key: str
    tensors: list[tuple[str, int]]
    columns: dict[str, FloatArray]
    dots: FloatArray
    exceptions: list[FloatArray]
    digests: dict[str, str]
    skipped: list[dict[str, str]]
    weights: dict[str, Weights]
    sketches: dict[str, FloatArray]
    fitted_to: str = ""
    changes: "dict[str, Change | None]" = field(default_factory=dict)

    def fit(self, base: Checkpoint, members: Sequence[Checkpoint]) -> None:
        """Find out which of `members` do not fit `base`, reading what does not. May raise CheckpointError."""
        from kinbase.kinship.sketch_correction import misfit

        self.fitted_to = base.name
        for member in members:
            if member.delta_of is None and (change := misfit(base, member)) is not None:
                self.changes[member.name] = change

    def forget(self, name: str) -> None:
        """Leave out what the pass found in a checkpoint that was not read by itself alone."""
        for found in (self.weights, self.sketches):
            found.pop(name, None)

    def coverage(self, member: int) -> float:
        """Aligned parameters of a member over the base's."""
        return float(self.columns["numel"][:, member].sum() / max(1, sum(numel for _, numel in self.tensors)))

    def statistics(self, member: int) -> Mapping[str, FloatArray]:
        """A member's statistics by tensor position, [T] each."""
        return {name: values[:, member] for name, values in self.columns.items()}

    def pairs(self, ids: Sequence[int | None]) -> Iterator[Pair]:
        """Sums of every pair with a new member; a member without an id is left out."""
        parts: dict[tuple[int, int], list[tuple[int, int, float, float, float, float]]] = {}
        for position, rows in enumerate(self.exceptions, 1):
            for i, j, numel, *rest in rows:
                parts.setdefault((int(i), int(j)), []).append((position, int(numel), *map(float, rest)))  # type: ignore[arg-type]
        numel, total, sumsq = (self.columns[name] for name in ("numel", "sum", "sumsq"))
        for i in range(self.new):
            for j in range(i + 1, len(self.members)):
                a, b = ids[i], ids[j]
                both = ~np.isnan(self.dots[:, i, j])
                if a is None or b is None or not both.any():
                    continue
                both_sums = np.stack(
                    [np.minimum(numel[:, i], numel[:, j]), total[:, i], total[:, j], sumsq[:, i], sumsq[:, j]]
                )
                for position, *part in parts.get((i, j), ()):
                    both_sums[:, position - 1] = part
                n, sum_a, sum_b, sumsq_a, sumsq_b = both_sums[:, both].sum(axis=1).tolist()
                dots = self.dots[:, i, j]
                yield Pair(a, b, int(n), sum_a, sum_b, sumsq_a, sumsq_b, dots, parts.get((i, j), []))
