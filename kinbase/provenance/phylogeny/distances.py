"""Models as points: the distances between their weights, and which of them are the same weights again."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from kinbase.provenance.recipes.elements import Elements
from kinbase.provenance.recipes.least_squares import BITS, FloatArray

ROUNDED = (0.5, 1.6)
"""Squared distance of a rounded copy from its original, in squared rounding floors: 1 but for systematic rounding."""

SAME = 1e-13
"""Squared distance over squared length that float64 sums cannot tell from none."""


@dataclass(frozen=True)
class Points:
    """N models by the distances between their weights, T tensors (1: all of them together), float64.

    `squared` [T, N, N] are squared distances over the aligned elements, `sumsq` [T, N] squared lengths of the
    weights, `noise` [T, N] squared rounding floors (sum of squared units in the last place / 12), `numel` [T];
    `dtypes` are safetensors codes, `dates` in seconds where known. With `exact` false the distances are
    estimates, and neither copies nor merges are looked for. `bits` [T, N] are significant bits by tensor, where a
    model keeps several dtypes; `zeros` [T, N] the share of elements equal to those of the model at `reference`;
    `tensors` are their names, by which blocks and layers are known. `sampler` reads elements of a child, of the model that
    changes are from, and of candidates, all by name.
    """

    names: list[str]
    squared: FloatArray
    sumsq: FloatArray
    noise: FloatArray
    numel: FloatArray
    dtypes: list[str]
    dates: list[float | None]
    exact: bool = True
    bits: NDArray[np.int64] | None = None
    zeros: FloatArray | None = None
    reference: int | None = None
    tensors: list[str] | None = None
    sampler: "Callable[[str, str, Sequence[str]], Elements | None] | None" = None

    def of(self, rows: Sequence[int]) -> "Points":
        """Some of the models."""
        rows = list(rows)
        return replace(
            self,
            names=[self.names[i] for i in rows],
            squared=self.squared[:, rows][:, :, rows],
            sumsq=self.sumsq[:, rows],
            noise=self.noise[:, rows],
            dtypes=[self.dtypes[i] for i in rows],
            dates=[self.dates[i] for i in rows],
            bits=None if self.bits is None else self.bits[:, rows],
            zeros=None if self.zeros is None else self.zeros[:, rows],
            reference=rows.index(self.reference) if self.reference in rows else None,
        )

    @property
    def distance(self) -> FloatArray:
        """Distances over all tensors [N, N]."""
        result: FloatArray = np.sqrt(np.maximum(self.squared.sum(axis=0), 0))
        return result


def find_copies(points: Points, root: int | None = None) -> dict[int, int]:
    """The index of each copy and of its original: equal weights, or weights rounded to fewer bits and no more.

    Of files with equal weights the one with the fewest bits a weight is the original: a finer one holds
    nothing that was not in it. Where dtypes are equal too the order is that of the dates, then as given.
    """
    squared, floors = points.squared.sum(axis=0), points.noise.sum(axis=0)
    bits = [BITS.get(dtype, 24) for dtype in points.dtypes]
    late = [date if date is not None else np.inf for date in points.dates]
    order = sorted(range(len(bits)), key=lambda i: (i != root, bits[i], late[i], i))
    originals: list[int] = []
    found: dict[int, int] = {}
    for i in order:
        same = next((j for j in originals if squared[i, j] <= SAME * points.sumsq[:, j].sum()), None)
        if same is None:
            originals.append(i)
        else:
            found[i] = same
    for i in originals:
        ratio = {
            j: squared[i, j] / max(floors[i], 1e-300) for j in originals if bits[j] > bits[i] and i != root
        }
        near = [j for j, value in ratio.items() if ROUNDED[0] <= value <= ROUNDED[1]]
        if near:
            found[i] = min(near, key=lambda j: ratio[j])
    return found
