"""What rounding does to a merge: simulated, because few-bit weights round systematically and not at random.

Where deltas are long against a unit in the last place, rounding the child adds independent noise of
ulp^2 / 12 an element. Fine-tunes stored in 16 bits often move a weight by one unit or none, and then the error
follows the deltas: 0.3 of a unit always rounds to nothing. That bends the coefficients (0.3 reads 0.23 where
deltas are 0.3% of bf16 weights) and changes what is left over. Both are taken from a population drawn to the
stored sums: base weights with the child's units in the last place, deltas with the candidates' Gram matrix,
Gaussian, rounded as the models are. Seeded: the same sums give the same figures.
"""

from collections.abc import Callable, Sequence
from copy import copy
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from kinbase.provenance.recipes.least_squares import BITS, FloatArray, Grams

FINE = 20
"""From so many bits on, deltas that matter are many units long, and rounding is noise."""

DRAWS = 1 << 16
"""Elements drawn in all at least: a standard error of 0.004 floors in a coefficient; of large models more."""

ROOM = 1 << 20
"""Numbers drawn at most, of all parents together: 8 MiB."""

EXPONENT = np.uint64(0x7FF0000000000000)
"""Sign and fraction of a float64 masked out: what is left is the power of two below it."""

CALIBRATING = 1 << 13
"""Elements on which the size of deltas before rounding is found, but for the last step, which takes all."""


def to_dtype(values: FloatArray, bits: "str | int | NDArray[np.int64]") -> FloatArray:
    """Values rounded to so many significant bits, ties to even; exponents are not bounded.

    `bits` is a dtype's code, a number, or an array of numbers that broadcasts to the values' shape.
    """
    kept = BITS[bits] if isinstance(bits, str) else bits
    if np.ndim(kept) and np.size(kept) and np.min(kept) == np.max(kept):
        kept = int(np.min(kept))
    if not np.ndim(kept):
        return _to_bits(values, BITS["F64"] - int(kept))
    spare = np.broadcast_to(BITS["F64"] - np.asarray(kept), np.shape(values))
    result = np.array(values, np.float64)
    for some in np.unique(spare):
        result[spare == some] = _to_bits(result[spare == some], int(some))
    return result


def _to_bits(values: FloatArray, spare: int) -> FloatArray:
    if spare == 0:
        return values
    # On the bits themselves: half a unit less one, and one more where the last kept bit is odd.
    bits = np.array(values, np.float64).view(np.uint64)
    odd = bits >> np.uint64(spare)
    odd &= np.uint64(1)
    odd += np.uint64((1 << (spare - 1)) - 1)
    bits += odd
    bits &= ~np.uint64((1 << spare) - 1)
    return bits.view(np.float64)


def summed_in_steps(
    models: Sequence[FloatArray],
    weights: "Sequence[float | FloatArray] | FloatArray",
    bits: "NDArray[np.int64]",
    total: float = 1.0,
) -> FloatArray:
    """Weights times raw weights added up in the order given and divided by a total, each step rounded to `bits`."""
    result = np.zeros_like(models[0])
    for model, weight in zip(models, weights, strict=True):
        if np.any(weight):
            result = to_dtype(result + to_dtype(weight * model, bits), bits)
    return result if total == 1 else to_dtype(result / total, bits)


def added_in_steps(
    base: FloatArray,
    changes: Sequence[FloatArray],
    weights: "Sequence[float | FloatArray] | FloatArray",
    bits: "NDArray[np.int64]",
) -> FloatArray:
    """Weights times changes added up in the order given, and then to the base, each step rounded to `bits`."""
    added = np.zeros_like(base)
    for change, weight in zip(changes, weights, strict=True):
        if np.any(weight):
            added = to_dtype(added + to_dtype(weight * to_dtype(change, bits), bits), bits)
    return to_dtype(base + added, bits)


def spacing(values: FloatArray, bits: "str | NDArray[np.int64]") -> FloatArray:
    """Units in the last place of numbers, none of them 0 or smaller than float64's normal ones."""
    kept = BITS[bits] if isinstance(bits, str) else bits
    powers = (np.array(values, np.float64).view(np.uint64) & EXPONENT).view(np.float64)
    powers *= np.ldexp(1.0, 1 - np.asarray(kept))
    return np.asarray(powers)


def drawn(grams: Grams, draws: int = DRAWS) -> int:
    """Elements drawn in each tensor."""
    whole = max(draws, min(int(grams.numel.sum()), ROOM // (len(grams.names) + 2)))
    return max(256, whole // max(1, len(grams.tensors)))


class Population:
    """Elements drawn to the sums of P candidates, T tensors: weights [T, K], deltas and the base [T, P + 1, K]."""

    def __init__(self, grams: Grams, *, draws: int = DRAWS, seed: int = 0) -> None:
        rng = np.random.default_rng(seed)
        self.grams = grams
        count, parents = len(grams.tensors), len(grams.names)
        number = drawn(grams, draws)
        bits = grams.significant
        self.bits = bits[:, -1:]
        self.weight = grams.numel / number
        self.base = to_dtype(_weights(grams, rng.standard_normal((count, number)), self.bits), bits[:, -2:-1])
        normal = rng.standard_normal((count, parents, number))
        target = grams.gram[:, :parents, :parents] / np.maximum(grams.numel, 1)[:, None, None]
        spread = np.maximum(np.sqrt(np.diagonal(target, axis1=1, axis2=2)), 1e-150)
        likeness = target / spread[:, :, None] / spread[:, None, :]
        scale, mixing = spread.copy(), likeness.copy()
        # The latent sizes that rounding turns into the stored ones are found on a part of the draws, then on all.
        part = min(number, max(256, CALIBRATING // max(1, count)))
        for size in (part, part, part, part, number):
            moved = self._moved(scale, _root(mixing), normal[:, :, :size], bits[:, :parents])
            gram = moved @ moved.transpose(0, 2, 1) / size
            length = np.sqrt(np.maximum(np.diagonal(gram, axis1=1, axis2=2), 1e-300))
            scale = scale * np.clip(spread / length, 0.5, 2.0)
            mixing = np.clip(mixing + likeness - gram / length[:, :, None] / length[:, None, :], -1, 1)
        moved = self._moved(scale, _root(mixing), normal, bits[:, :parents])
        self.columns = np.concatenate([moved, self.base[:, None, :]], axis=1)
        self.gram = self.weight[:, None, None] * (self.columns @ self.columns.transpose(0, 2, 1))

    def _moved(
        self, scale: FloatArray, root: FloatArray, normal: FloatArray, bits: "NDArray[np.int64]"
    ) -> FloatArray:
        """Deltas [T, P, K] of stored models: drawn, laid on the base, rounded, and the base taken off again."""
        base = self.base[:, None, : normal.shape[2]]
        latent = (scale[:, :, None] * root) @ normal
        latent += base
        moved = to_dtype(latent, bits[:, :, None])
        moved -= base
        return moved

    def of(self, chosen: Sequence[int]) -> "Population":
        """The same elements with some of the candidates only."""
        rows = [*chosen, self.columns.shape[1] - 1]
        if rows == list(range(self.columns.shape[1])):
            return self
        part = copy(self)
        part.grams, part.columns = self.grams.of(chosen), self.columns[:, rows]
        part.gram = self.gram[:, rows][:, :, rows]
        return part

    def merged(self, coefficients: FloatArray) -> Grams:
        """The sums that a merge with `coefficients` ([P + 1] or [T, P + 1], the base's last) would have."""
        each = np.broadcast_to(coefficients, (len(self.base), self.columns.shape[1]))
        delta = (each[:, None, :] @ self.columns)[:, 0]
        delta += self.base
        return self._sums(to_dtype(delta, self.bits) - self.base)

    def merged_in_steps(self, weights: FloatArray, total: float = 1.0) -> Grams:
        """The sums of a merge whose every product and partial sum was rounded to the child's dtype: no wider one was used.

        `weights` [P + 1] or [T, P + 1] are of the models' raw weights, the base's last, and are added in that order; the sum
        is divided by `total`, as mergekit's `linear` and most loops of people do.
        """
        each = np.broadcast_to(weights, (len(self.base), self.columns.shape[1])).T[:, :, None]
        models = [*(self.base + self.columns[:, i] for i in range(len(each) - 1)), self.base]
        return self._sums(summed_in_steps(models, each, self.bits, total) - self.base)

    def added_in_steps(self, coefficients: FloatArray) -> Grams:
        """The sums of changes added to the base, rounded to the child's dtype after each step: task arithmetic in a loop."""
        each = np.broadcast_to(coefficients, (len(self.base), self.columns.shape[1] - 1)).T[:, :, None]
        changes = [self.columns[:, i] for i in range(len(each))]
        return self._sums(added_in_steps(self.base, changes, each, self.bits) - self.base)

    def _sums(self, delta: FloatArray) -> Grams:
        """The sums of a child with these changes [T, K]."""
        return replace(
            self.grams,
            gram=self.gram,
            cross=self.weight[:, None] * (self.columns @ delta[:, :, None])[:, :, 0],
            sumsq=self.weight * np.einsum("tk,tk->t", delta, delta),
        )

    def unmoved(self, coefficients: FloatArray) -> FloatArray:
        """The share of weights [T] that a merge leaves as the base has them."""
        exact = self.base + coefficients @ self.columns
        return np.asarray(np.mean(to_dtype(exact, self.bits) == self.base, axis=1))


def _weights(grams: Grams, normal: FloatArray, bits: "NDArray[np.int64]") -> FloatArray:
    """Weights [T, K] with the units in the last place that the child's have; about the base's mean where it is far from 0."""
    unit = np.maximum(12 * grams.noise / np.maximum(grams.numel, 1), 1e-300)
    weights = normal.copy()
    for _ in range(4):  # the spacing of numbers jumps at powers of two
        weights *= np.sqrt(unit / np.mean(spacing(weights, bits) ** 2, axis=1))[:, None]
    if grams.centre is None or not grams.based:
        return weights
    square = grams.gram[:, -1, -1] / np.maximum(grams.numel, 1)
    spread = np.sqrt(np.maximum(square - grams.centre**2, 0))
    shifted = np.abs(grams.centre) > spread  # scales of norms lie about 1
    return np.where(shifted[:, None], grams.centre[:, None] + spread[:, None] * normal, weights)


def _root(matrices: FloatArray) -> FloatArray:
    """A square root of each correlation matrix [..., P, P], the nearest positive one where it is none."""
    values, vectors = np.linalg.eigh(matrices)
    root = vectors * np.sqrt(np.maximum(values, 0))[..., None, :]
    length = np.sqrt(np.maximum((root**2).sum(axis=-1, keepdims=True), 1e-300))
    result: FloatArray = root / length
    return result


def bends(grams: Grams) -> bool:
    """Whether rounding this child can be anything but noise."""
    return bool(grams.dtypes) and bool((grams.significant[:, -1] < FINE).any())


Estimate = Callable[[Grams], tuple[FloatArray, FloatArray]]
"""Values fitted to sums, and the squared residual by tensor [T]."""


def straightened(
    grams: Grams,
    estimate: Estimate,
    spread: Callable[[FloatArray], FloatArray],
    *,
    draws: int = DRAWS,
    population: Population | None = None,
) -> tuple[FloatArray, FloatArray, FloatArray]:
    """Fitted values without what rounding bent, the bend, and the expected squared residual by tensor [T].

    `spread` turns values into coefficients [P + 1] or [T, P + 1]. The values looked for are those whose merge,
    rounded, is fitted like the child (indirect inference: Gourieroux, Monfort and Renault 1993).
    """
    fitted, _ = estimate(grams)
    if not bends(grams):
        return fitted, np.zeros_like(fitted), _left_by_fine(grams, fitted, estimate, spread)
    population = population or Population(grams, draws=draws)
    straight, found, left = fitted, fitted, grams.rounded
    for _ in range(4):
        found, left = estimate(population.merged(spread(straight)))
        straight = fitted - (found - straight)
    # At a round coefficient halves are ties, to be rounded up and down alike; a hair beside it they all go
    # one way. So people's coefficients, multiples of 0.05, are tried as such, and win where they do as well.
    missed = np.square(estimate(population.merged(spread(straight)))[0] - fitted)
    bent = np.abs(fitted - straight)
    enough = np.square((bent if straight.ndim == 2 else bent.max()) / 10)
    rows = straight.ndim == 2
    # Halves and quarters of a unit tie the most, and bend the most: up to half of the way to the next one.
    quarters = np.round(4 * straight) / 4
    for rounded in (np.round(20 * straight) / 20, np.round(20 * fitted) / 20, quarters):
        again = np.square(estimate(population.merged(spread(rounded)))[0] - fitted)
        better = (
            again <= np.maximum(missed, enough) if rows else again.sum() <= np.maximum(missed.sum(), enough)
        )
        straight, missed = np.where(better, rounded, straight), np.where(better, again, missed)
    left = estimate(population.merged(spread(straight)))[1]
    return straight, fitted - straight, left


def _left_by_fine(
    grams: Grams, fitted: FloatArray, estimate: Estimate, spread: Callable[[FloatArray], FloatArray]
) -> FloatArray:
    """The same for dtypes of many bits: noise, but for round coefficients, at which sums fall on the grid or midway."""
    rounded = np.round(20 * fitted) / 20
    near = np.abs(rounded - fitted) < 1e-4
    if not near.any() or not grams.dtypes or int(grams.significant[:, -1].max()) > BITS["F32"]:
        return grams.rounded
    return estimate(Population(grams).merged(spread(np.where(near, rounded, fitted))))[1]
