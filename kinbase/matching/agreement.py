"""How akin two models are with their units as they lie, and with those of the second in the first's order.

Pearson's correlation over all elements that both have (for deltas: that both and their base have), from sums in float64
over stretches: of the weights, and of what they changed in a base.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from kinbase.checkpoint import FLOAT_DTYPES, Checkpoint, Tensor
from kinbase.checkpoint.adapters import elements
from kinbase.checkpoint.alignment import align

STRETCH = 1 << 20
"""Elements compared at once."""


@dataclass(slots=True)
class Moments:
    """Sums over pairs of elements: how many, x, y, x^2, y^2, xy; those that are not finite in either are left out."""

    sums: NDArray[np.float64] = field(default_factory=lambda: np.zeros(6))

    def add(self, x: NDArray[np.float64], y: NDArray[np.float64]) -> None:
        """Take elements of two float64 arrays [n]."""
        finite = np.isfinite(x) & np.isfinite(y)
        if not finite.all():
            x, y = x[finite], y[finite]
        self.sums += np.array([len(x), x.sum(), y.sum(), x @ x, y @ y, x @ y])

    @property
    def numel(self) -> int:
        """How many pairs."""
        return int(self.sums[0])

    @property
    def pcc(self) -> float | None:
        """Pearson's correlation; None where one side does not vary."""
        n, x, y, xx, yy, xy = map(float, self.sums)
        if n < 2:
            return None
        var_x, var_y = xx - x * x / n, yy - y * y / n
        if not (var_x > 1e-12 * xx and var_y > 1e-12 * yy):
            return None
        return max(-1.0, min(1.0, (xy - x * y / n) / math.sqrt(var_x * var_y)))


@dataclass(slots=True)
class Agreement:
    """One tensor's sums, or all tensors': of the weights and of the deltas, before the units were matched and after."""

    tensor: str | None = None
    before: Moments = field(default_factory=Moments)
    after: Moments = field(default_factory=Moments)
    delta_before: Moments = field(default_factory=Moments)
    delta_after: Moments = field(default_factory=Moments)

    def plus(self, other: "Agreement") -> None:
        """Add another's sums."""
        for name in ("before", "after", "delta_before", "delta_after"):
            getattr(self, name).sums += getattr(other, name).sums


@dataclass(frozen=True, slots=True)
class View:
    """A model's tensors as they lie and as they are matched, by name; the same objects where nothing moved."""

    checkpoint: Checkpoint
    matched: Mapping[str, Tensor]

    @classmethod
    def plain(cls, checkpoint: Checkpoint) -> "View":
        """A model whose units are where they are to be."""
        return cls(checkpoint, {t.name: t for t in checkpoint.tensors})

    def against(self, base: Sequence[Tensor]) -> tuple[list[Tensor | None], list[Tensor | None]]:
        """Its tensor for each of `base`: as they lie, as they are matched."""
        heads = self.checkpoint.heads
        plain = self.checkpoint.tensors
        as_they_lie = align(base, plain, heads=heads)[0]
        if all(self.matched[t.name] is t for t in plain):
            return as_they_lie, as_they_lie
        return as_they_lie, align(base, [self.matched[t.name] for t in plain], heads=heads)[0]


def agreements(
    a: View,
    b: View,
    base: Checkpoint | None = None,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
) -> Iterator[Agreement]:
    """The sums of each tensor that both models have, and their base if one is given, under the names of `base` or `a`.

    `on_progress` is told elements. Raises CheckpointError when one cannot be read.
    """
    order = (base or a.checkpoint).tensors
    ours, theirs = a.against(order), b.against(order)
    total, done = sum(t.numel for t in order), 0
    for at, origin in enumerate(order):
        tensors = [side[k][at] for k in (0, 1) for side in (ours, theirs)]
        if origin.dtype in FLOAT_DTYPES and all(t is not None for t in tensors):
            yield _compared(origin, [t for t in tensors if t is not None], has_base=base is not None)
        done += origin.numel
        on_progress(done, total)


def _compared(origin: Tensor, tensors: Sequence[Tensor], *, has_base: bool) -> Agreement:
    """The sums of one tensor: a's and b's as they lie, a's and b's as they are matched."""
    found = Agreement(origin.name)
    numel = min(t.numel for t in (origin, *tensors))  # common rows are a prefix
    is_moved = tensors[2] is not tensors[0] or tensors[3] is not tensors[1]
    for first in range(0, numel, STRETCH):
        count = min(STRETCH, numel - first)
        rest = elements(origin, first, count) if has_base else None
        for at, (plain, delta) in enumerate(
            ((found.before, found.delta_before), (found.after, found.delta_after))
        ):
            if at and not is_moved:
                break
            x, y = (elements(t, first, count) for t in tensors[2 * at : 2 * at + 2])
            plain.add(x, y)
            if rest is not None:
                delta.add(x - rest, y - rest)
    if not is_moved:
        found.after, found.delta_after = found.before, found.delta_before
    return found
