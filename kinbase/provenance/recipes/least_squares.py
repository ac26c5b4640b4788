"""Which deltas add up to a child's, from inner products alone: constrained least squares on Gram matrices.

The child's delta is d = sum_i a_i d_i + a_0 theta_0 + e over candidates' deltas d_i and, for methods that mix
raw weights, the base's own weights theta_0; e is what rounding to the child's dtype left. Everything here is
a function of `Grams`, sums that the kinship pass stored, so no weights are read again. Non-negative least
squares finds the parents (Lawson and Hanson 1974, in the form of Bro and De Jong 1997 that needs the
Gram alone); where that fits badly, signed steps follow. Fits are judged in units of the rounding floor.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

FloatArray = NDArray[np.float64]

LIMIT = 1.5
"""Largest residual of a merge, over the rounding floor. Rounding once leaves 1 where the deltas are many units
in the last place long, from 0.7 to 1.25 where they are few; 16-bit arithmetic on the way leaves up to 1.4."""

MATTERS = 0.01
"""What leaving out a parent must add to the squared residual, in squared floors, for the parent to count."""

CHANCE = 40.0
"""The same in variances of one element: what no column of thousands reaches by chance (6.3 standard errors)."""

MOST = 8
"""Parents looked for at most."""

SURE = 1e-3
"""Length of what a unit column has beyond the columns before it, above which their equations are solved outright."""

TWINS = 0.01
"""A column's gain by itself, over what must be gained to matter, below which it is no parent: it is less than what the
column gains beside the others by what they share with it."""

EXACT = 2e-14
"""Relative error of a squared residual taken from float64 sums: no floor is below it."""


BITS = {
    **{"F64": 53, "F32": 24, "F16": 11, "BF16": 8},
    **{"INT8": 7, "GPTQ8": 7, "Q8_0": 7, "INT6": 5, "Q6_K": 5},
    **{"F8_E4M3": 4, "FP8": 4, "INT5": 4, "Q5_0": 4, "Q5_1": 4, "Q5_K": 4, "F8_E5M2": 3, "FP8_E5M2": 3},
    **{
        "INT4": 3,
        "GPTQ4": 3,
        "AWQ4": 3,
        "Q4_0": 3,
        "Q4_1": 3,
        "Q4_K": 3,
        "NF4": 3,
        "FP4": 3,
        "4BIT": 3,
        "MXFP4": 2,
    },
    **{"INT3": 2, "Q3_K": 2, "INT2": 1, "GPTQ2": 1, "Q2_K": 1},
}
"""Significant bits of a number, by safetensors dtype code or the form it was quantised to: an integer's without its sign."""


@dataclass(slots=True)
class Grams:
    """Inner products tensor by tensor, T tensors and M candidates, float64.

    `gram` [T, M + 1, M + 1] of the candidates' deltas and, last, of the base's weights; `cross` [T, M + 1] of the
    child's delta with each of them; `sumsq` [T] of the child's delta; `noise` [T] the expected square
    of what rounding the child adds: sum of squared units in the last place / 12. Without the base's weights
    (`based` false) its row is zero. `centre` [T] is the mean of the base's weights, where
    known. `dtypes` are safetensors codes of the candidates, the base and the child: those of most of their weights;
    `bits` [T, M + 2] their significant bits tensor by tensor, where a model keeps several dtypes. `adapters` are
    the candidates that are a change and no whole model: it was not rounded.
    """

    names: list[str]
    tensors: list[str]
    numel: FloatArray
    gram: FloatArray
    cross: FloatArray
    sumsq: FloatArray
    noise: FloatArray
    based: bool = True
    dtypes: list[str] = field(default_factory=list)
    centre: FloatArray | None = None
    bits: "NDArray[np.int64] | None" = None
    adapters: frozenset[str] = frozenset()

    @property
    def significant(self) -> "NDArray[np.int64]":
        """Significant bits [T, M + 2] of candidates, base and child in each tensor."""
        if self.bits is not None:
            return self.bits
        codes = self.dtypes or ["F32"] * (len(self.names) + 2)
        return np.broadcast_to(
            [BITS.get(code, BITS["F32"]) for code in codes], (len(self.tensors), len(codes))
        )

    @property
    def floor(self) -> float:
        """The rounding floor over the length of the child's delta, not below what float64 sums resolve."""
        total = float(self.sumsq.sum())
        return float(np.sqrt(max(self.noise.sum() / total, EXACT))) if total > 0 else float("inf")

    @property
    def rounded(self) -> FloatArray:
        """The noise by tensor [T] where it can be: an element on the base's grid is rounded by no more than it moved.

        Scales of norms, which are about 1 and hardly move, would be most of the floor otherwise.
        """
        finer = self.significant[:, -2] > self.significant[:, -1]
        moved = np.diagonal(self.gram, axis1=1, axis2=2)[:, :-1]
        usual = np.median(moved, axis=1) if moved.shape[1] else 0.0
        return np.where(finer, self.noise, np.minimum(self.noise, np.maximum(self.sumsq, usual)))

    @property
    def trust(self) -> FloatArray:
        """What each tensor [T] counts: the inverse of its rounding noise an element, 1 for the usual one.

        Scales of norms, which are about 1, are rounded a hundred times as coarsely as weights about 0.01.
        """
        noise = self.noise / np.maximum(self.numel, 1)
        if not np.all(noise > 0):
            return np.ones(len(noise))
        return np.asarray(np.median(noise) / noise)

    def of(self, chosen: Sequence[int]) -> "Grams":
        """The same with some of the candidates only."""
        rows = [*chosen, len(self.names)]
        return replace(
            self, names=[self.names[i] for i in chosen], gram=self.gram[:, rows][:, :, rows], cross=self.cross[:, rows],
            dtypes=[self.dtypes[i] for i in rows] + self.dtypes[-1:] if self.dtypes else [],
            bits=None if self.bits is None else self.bits[:, [*rows, -1]],
        )  # fmt: skip

    def rounded_to(self, bits: "NDArray[np.int64]") -> "Grams":
        """The same of a child whose numbers have only so many significant bits [T], whatever dtype they are stored in."""
        own = self.significant
        kept = np.minimum(bits, own[:, -1])
        return replace(
            self, noise=self.noise * 4.0 ** (own[:, -1] - kept), bits=np.column_stack([own[:, :-1], kept])
        )

    def at(self, tensors: "NDArray[np.intp] | list[int]") -> "Grams":
        """The same over some of the tensors only."""
        return replace(
            self, tensors=[self.tensors[t] for t in tensors], numel=self.numel[tensors], gram=self.gram[tensors],
            cross=self.cross[tensors], sumsq=self.sumsq[tensors], noise=self.noise[tensors],
            centre=None if self.centre is None else self.centre[tensors],
            bits=None if self.bits is None else self.bits[tensors],
        )  # fmt: skip


@dataclass(frozen=True, slots=True)
class Normal:
    """One system of normal equations over `numel` elements: Gram, right-hand side, squared length, squared floor."""

    gram: FloatArray
    cross: FloatArray
    sumsq: float
    floor: float
    numel: float

    @classmethod
    def of(cls, grams: Grams, *, base: bool = False) -> "Normal":
        """All tensors together, each by its `trust`; the base's weights as last column where asked for."""
        end = None if base else -1
        trust = grams.trust
        sumsq = float(trust @ grams.sumsq)
        return cls(
            np.einsum("t,tij->ij", trust, grams.gram)[:end, :end],
            (trust @ grams.cross)[:end],
            sumsq,
            max(float(trust @ grams.rounded), EXACT * sumsq),
            float(grams.numel.sum()),
        )

    @classmethod
    def beside_base(cls, grams: Grams) -> "Normal":
        """All tensors together, with the base's weights projected out: whatever share of them the child has."""
        whole = cls.of(grams, base=True)
        length = whole.gram[-1, -1]
        if length <= 0:
            return cls.of(grams)
        along = whole.gram[-1, :-1] / length
        return cls(
            whole.gram[:-1, :-1] - length * np.outer(along, along),
            whole.cross[:-1] - along * whole.cross[-1],
            whole.sumsq - whole.cross[-1] ** 2 / length,
            whole.floor,
            whole.numel,
        )

    def matters(self, rss: float) -> float:
        """How far the squared residual must fall for a column to count: beyond bending, beyond chance."""
        return MATTERS * self.floor + CHANCE * rss / self.numel

    def solve(self, chosen: Sequence[int]) -> tuple[FloatArray, float]:
        """Signed least squares on some columns: coefficients and squared residual."""
        rows = list(chosen)
        coefficients = solve(self.gram[np.ix_(rows, rows)], self.cross[rows])
        return coefficients, self.left(rows, coefficients)

    def left(self, rows: Sequence[int], coefficients: FloatArray) -> float:
        """Squared residual of given coefficients, not below what the sums resolve."""
        rows = list(rows)
        gram, cross = self.gram[np.ix_(rows, rows)], self.cross[rows]
        value = self.sumsq - 2 * cross @ coefficients + coefficients @ gram @ coefficients
        return max(float(value), 0.0)


def solve(gram: FloatArray, cross: FloatArray) -> FloatArray:
    """Least squares from normal equations [..., P, P], [..., P], columns scaled to one length; null ones get 0."""
    diagonal = np.diagonal(gram, axis1=-2, axis2=-1)
    scale = np.where(diagonal > 0, 1 / np.sqrt(np.where(diagonal > 0, diagonal, 1)), 0.0)
    scaled = gram * scale[..., :, None] * scale[..., None, :]
    result: FloatArray = scale * (_inverted(scaled) @ (cross * scale)[..., None])[..., 0]
    return result


def _inverted(scaled: FloatArray) -> FloatArray:
    """The inverse of matrices [..., P, P] of unit columns; the pseudo-inverse where columns nearly make each other."""
    try:
        root = np.linalg.cholesky(scaled)
        if (np.diagonal(root, axis1=-2, axis2=-1) > SURE).all():
            back = np.linalg.inv(root)
            return np.asarray(back.swapaxes(-1, -2) @ back)
    except np.linalg.LinAlgError:
        pass
    return np.asarray(np.linalg.pinv(scaled, rcond=1e-13, hermitian=True))


def residuals(grams: Grams, rows: Sequence[int], each: FloatArray) -> FloatArray:
    """Squared residual of each tensor [..., T] for coefficients [..., T, P]."""
    rows = list(rows)
    gram, cross = grams.gram[:, rows][:, :, rows], grams.cross[:, rows]
    value = (
        grams.sumsq - 2 * (cross * each).sum(axis=-1) + np.einsum("...tp,tpq,...tq->...t", each, gram, each)
    )
    return np.asarray(np.maximum(value, 0.0))


def nonnegative(
    gram: FloatArray, cross: FloatArray, *, enough: float = 0.0, most: int | None = None
) -> FloatArray:
    """Non-negative least squares from normal equations: the active-set method of Bro and De Jong (1997).

    It ends early where no other column alone would lower the squared residual by more than `enough`, or where
    `most` columns have a share: of a thousand that correlate, hundreds follow that fit what is left by chance.
    """
    size = len(cross)
    scale = np.sqrt(np.maximum(np.diagonal(gram), 1e-300))
    cross = cross / scale
    result, passive = np.zeros(size), np.zeros(size, bool)
    tolerance = max(1e-12 * max(1.0, float(np.abs(cross).max(initial=0.0))), np.sqrt(enough))
    for _ in range(3 * size):
        rows = np.flatnonzero(passive)
        slope = np.where(passive, -np.inf, cross - gram[:, rows] @ (result[rows] / scale[rows]) / scale)
        if len(rows) == (size if most is None else min(most, size)) or slope.max() <= tolerance:
            break
        passive[int(slope.argmax())] = True
        while True:
            rows = np.flatnonzero(passive)
            trial = np.zeros(size)
            trial[rows] = solve(gram[np.ix_(rows, rows)] / np.outer(scale[rows], scale[rows]), cross[rows])
            if trial[rows].min() > 0:
                break
            falling = rows[trial[rows] <= 0]
            step = (result[falling] / np.maximum(result[falling] - trial[falling], 1e-300)).min()
            result += step * (trial - result)
            passive &= result > 1e-14
            result[~passive] = 0.0
            if not passive.any():
                break
        result = np.where(passive, trial, 0.0)
    return result / scale


def find_parents(normal: Normal, *, most: int = MOST) -> list[int]:
    """The columns whose combination is nearest to the child with the fewest of them.

    Non-negative combinations first; signed ones only where those leave more than rounding does and signed
    ones do not.
    """
    usable = [i for i in range(len(normal.cross)) if normal.gram[i, i] > 0]
    gram = normal.gram if len(usable) == len(normal.cross) else normal.gram[np.ix_(usable, usable)]
    enough = TWINS * MATTERS * normal.floor
    share = nonnegative(gram, normal.cross[usable], enough=enough, most=8 * most)
    gains = share * normal.cross[usable]
    order = sorted((i for i in range(len(usable)) if share[i] > 0), key=lambda i: -gains[i])
    chosen = _pruned(normal, [usable[i] for i in order[: 4 * most]], most)
    chosen = _swapped(normal, chosen, usable)
    if _fits(normal, chosen):
        return _stepwise(normal, usable, most, chosen)  # a small or negative share may hide below the limit
    signed = _stepwise(normal, usable, most, [])
    return signed if _fits(normal, signed) else chosen


def _fits(normal: Normal, chosen: Sequence[int]) -> bool:
    return bool(chosen) and normal.solve(chosen)[1] <= LIMIT**2 * normal.floor


def losses(normal: Normal, chosen: Sequence[int]) -> tuple[FloatArray, float]:
    """What leaving out each of the chosen columns adds to the squared residual, a_i^2 / (G^-1)_ii; and that residual."""
    rows = list(chosen)
    back = inverse(normal.gram[np.ix_(rows, rows)])
    coefficients = back @ normal.cross[rows]
    return coefficients**2 / np.diagonal(back), normal.left(rows, coefficients)


def inverse(gram: FloatArray) -> FloatArray:
    """Inverse of a Gram matrix, columns scaled to one length first."""
    scale = 1 / np.sqrt(np.maximum(np.diagonal(gram), 1e-300))
    return _inverted(gram * np.outer(scale, scale)) * np.outer(scale, scale)


def _pruned(normal: Normal, chosen: list[int], most: int) -> list[int]:
    """Leave out, one by one, the column that matters least, while it matters little or there are too many."""
    while chosen:
        lost, rss = losses(normal, chosen)
        least = int(lost.argmin())
        if len(chosen) <= most and lost[least] > max(
            normal.matters(rss), 0.02 * (rss - LIMIT**2 * normal.floor)
        ):
            break
        chosen = chosen[:least] + chosen[least + 1 :]
    return chosen


def _swapped(normal: Normal, chosen: list[int], usable: Sequence[int]) -> list[int]:
    """Try each column's near twins in its place: a near-duplicate can win the first step by chance."""
    best, rss = list(chosen), normal.solve(chosen)[1] if chosen else 0.0
    lengths = np.sqrt(np.diagonal(normal.gram))
    for at in range(len(best)):
        near = [
            j for j in usable
            if j not in best and normal.gram[best[at], j] > 0.8 * lengths[best[at]] * lengths[j]
        ]  # fmt: skip
        for j in near:
            trial = [*best[:at], j, *best[at + 1 :]]
            left = normal.solve(trial)[1]
            if left < rss:
                best, rss = trial, left
    return best


def _stepwise(normal: Normal, usable: Sequence[int], most: int, chosen: list[int]) -> list[int]:
    """Forward selection with signs, pruning on the way, until nothing that is left matters."""
    seen: set[frozenset[int]] = set()
    for _ in range(2 * most):
        rest = [j for j in usable if j not in chosen]
        if not rest or len(chosen) > most:
            break
        gain = step_gains(normal, chosen, rest)
        trial = _pruned(normal, [*chosen, rest[int(gain.argmax())]], most)
        if frozenset(trial) in seen or gain.max() <= normal.matters(
            normal.solve(chosen)[1] if chosen else normal.sumsq
        ):
            break
        chosen = trial
        seen.add(frozenset(chosen))
    return _swapped(normal, chosen, usable)


def step_gains(normal: Normal, chosen: Sequence[int], rest: Sequence[int]) -> FloatArray:
    """By how much the squared residual falls when each of the other columns joins the chosen ones."""
    rows, others = list(chosen), list(rest)
    diagonal = np.diagonal(normal.gram)[others]
    if not rows:
        return np.asarray(normal.cross[others] ** 2 / diagonal)
    between = normal.gram[np.ix_(others, rows)]
    back = inverse(normal.gram[np.ix_(rows, rows)])
    coefficients, _ = normal.solve(rows)
    room = diagonal - np.einsum("ij,jk,ik->i", between, back, between)
    gain = (normal.cross[others] - between @ coefficients) ** 2 / np.maximum(room, 1e-12 * diagonal)
    return np.asarray(np.where(room > 1e-12 * diagonal, gain, 0.0))
