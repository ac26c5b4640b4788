"""The merge methods, one function each, on a tensor that is looked at stretch by stretch.

A method takes a `Look`, goes over the whole tensor as often as it must (slerp for two norms and a
product, ties for the k-th largest change, dare for what its mask left), and returns the function that
merges one stretch. The arithmetic, its order and its roundings are those that mergekit 0.1.5 was observed
to use, so that results agree to the bit where the method is elementwise: linear and slerp compute in
float32 (float64 for float64), the others in the dtype of the merge, rounding after every step. Sources:
linear, Wortsman et al. 2022 (2203.05482); slerp, Shoemake 1985; task arithmetic, Ilharco et al. 2022
(2212.04089); ties, Yadav et al. 2023 (2306.01708); dare, Yu et al. 2023 (2311.03099).
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Protocol, TypeVar

import numpy as np
import torch
import xxhash
from numpy.typing import NDArray
from torch import Tensor

from kinbase.errors import KinbaseError
from kinbase.merging.plan import Target

T = TypeVar("T")

LINEAR_ABOVE = 0.9995
"""|cosine| beyond which slerp falls back to lerp: the sines lose precision there."""


@dataclass(frozen=True, slots=True)
class Stretch:
    """Elements start..stop of a tensor; the grid of stretches depends on nothing but their number."""

    number: int
    start: int
    stop: int


class Look(Protocol):
    """One target under the eyes of its method: `streaming.Look`, or a test's."""

    target: Target
    seed: int

    def load(self, stretch: Stretch) -> list[Tensor]:
        """The inputs' elements, flat, in the dtype of the merge."""

    def over(self, seen: Callable[[Stretch], T]) -> Iterator[T]:
        """`seen` of every stretch, in order."""


Merged = Callable[[Stretch], Tensor]


def linear(look: Look) -> Merged:
    """The weighted sum of the inputs, divided by the sum of the weights unless normalize is off."""
    wide = torch.float64 if look.target.dtype == "F64" else torch.float32
    weights = torch.tensor([own["weight"] for own in look.target.own], dtype=wide)
    total = weights.sum() if look.target.shared["normalize"] else None
    if total is not None and float(total) == 0:
        raise KinbaseError(
            f"the weights of {look.target.name!r} add up to 0: change them, or set normalize: false"
        )

    def merged(stretch: Stretch) -> Tensor:
        tensors = look.load(stretch)
        result = torch.zeros_like(tensors[0], dtype=wide)
        for tensor, weight in zip(tensors, weights, strict=True):
            result.addcmul_(tensor, weight)
        return (result if total is None else result.div_(total)).to(tensors[0].dtype)

    return merged


def slerp(look: Look) -> Merged:
    """The point t of the way along the arc from the base's tensor to the other's, each taken as one vector."""
    wide = torch.float64 if look.target.dtype == "F64" else torch.float32

    def norms(stretch: Stretch) -> list[float]:
        return [float(torch.linalg.vector_norm(tensor.to(wide))) for tensor in look.load(stretch)]

    # Norms of norms, and vectors of length one before their product: neither overflows float32.
    length_a, length_b = (math.hypot(*column) for column in zip(*look.over(norms), strict=True))
    unit_a, unit_b = (length if length > 1e-8 else 1.0 for length in (length_a, length_b))

    def product(stretch: Stretch) -> float:
        a, b = look.load(stretch)
        return float((a.to(wide) / unit_a).mul_(b.to(wide) / unit_b).sum())

    first, second = shares(look.target.number("t"), math.fsum(look.over(product)), wide)

    def merged(stretch: Stretch) -> Tensor:
        a, b = look.load(stretch)
        return a.to(wide).mul(first).add_(b.to(wide).mul(second)).to(a.dtype)

    return merged


def shares(t: float, cosine: float, dtype: torch.dtype) -> tuple[float, float]:
    """slerp's coefficients of a and b at the cosine between them, computed in `dtype`."""
    cos = torch.tensor(cosine, dtype=dtype).clamp(-1, 1)
    share = torch.tensor(t, dtype=dtype)
    if not float(cos.abs()) <= LINEAR_ABOVE:
        return float(1 - share), float(share)
    angle = cos.acos()
    return float(((1 - share) * angle).sin() / angle.sin()), float((share * angle).sin() / angle.sin())


def task_arithmetic(look: Look) -> Merged:
    """The base plus the weighted sum of what each input changed in it."""

    def merged(stretch: Stretch) -> Tensor:
        base, *others = look.load(stretch)
        return _onto(base, [other - base for other in others], look.target, elect=False)

    return merged


def ties(look: Look) -> Merged:
    """Trim each change to its largest elements, elect a sign an element, and average those that agree."""
    cuts = _cuts(look)

    def trimmed(i: int, change: Tensor, stretch: Stretch) -> Tensor:
        cut = cuts[i]
        return change if cut is None else cut.trimmed(change, stretch)

    return _sparse(look, trimmed, [cut is not None for cut in cuts], DTYPES[look.target.dtype], elect=True)


def dare_linear(look: Look) -> Merged:
    """Task arithmetic on changes of which a random share was dropped and the rest scaled up."""
    return dare(look, elect=False)


def dare_ties(look: Look) -> Merged:
    """As dare_linear, with ties' election of a sign an element."""
    return dare(look, elect=True)


def dare(look: Look, *, elect: bool, mask: "Mask | None" = None) -> Merged:
    """Both dare methods. `mask` tells which elements of an input stay; None: drawn at random.

    What is left of a change is scaled so that its sum of magnitudes is what it was (mergekit's
    rescale; the paper's 1 / density, on average).
    """
    drawn = mask or drawn_mask
    wide = torch.float32 if look.target.dtype == "F16" else DTYPES[look.target.dtype]

    def dropped(i: int, change: Tensor, stretch: Stretch) -> Tensor:
        return change.to(wide) * drawn(look, i, stretch)

    return _sparse(look, dropped, [own["density"] < 1 for own in look.target.own[1:]], wide, elect=elect)


Mask = Callable[[Look, int, Stretch], Tensor]
Thinned = Callable[[int, Tensor, Stretch], Tensor]


def _sparse(look: Look, thinned: Thinned, sparse: list[bool], wide: torch.dtype, *, elect: bool) -> Merged:
    """Task arithmetic on changes thinned out, those of `sparse`, and rescaled in `wide` if the target wants it."""
    factors = [1.0] * len(sparse)
    if look.target.shared["rescale"] and any(sparse):
        factors = _factors(look, thinned, sparse, wide)

    def merged(stretch: Stretch) -> Tensor:
        base, *others = look.load(stretch)
        changes = []
        for i, other in enumerate(others):
            change = other - base
            if sparse[i]:
                change = thinned(i, change, stretch)
                change = (change.mul_(factors[i]) if factors[i] != 1 else change).to(base.dtype)
            changes.append(change)
        return _onto(base, changes, look.target, elect=elect)

    return merged


def _onto(base: Tensor, changes: Sequence[Tensor], target: Target, *, elect: bool) -> Tensor:
    """base + lambda * sum of weight * change, over the elected ones, divided by their weights if so wanted.

    A sign is elected by the sum of the weighted changes, positive when it is zero; what agrees with it is
    found by products with the signs, because torch does not vectorise comparisons and choices on the CPU.
    `changes` are used up. Sums over inputs are float32 and rounded once, all other steps one by one.
    """
    wide = torch.float64 if base.dtype == torch.float64 else torch.float32
    weights = torch.tensor([own["weight"] for own in target.own[1:]], dtype=base.dtype).to(wide)
    total = torch.zeros_like(base, dtype=wide)
    for change, weight in zip(changes, weights.tolist(), strict=True):
        total.add_(change.mul_(weight))
    divisor: Tensor | float | None = None
    if elect:
        sign = total.sign_().add_(0.5).sign_()
        total = torch.zeros_like(sign)
        divided = torch.zeros_like(sign) if target.shared["normalize"] else None
        for change, weight in zip(changes, weights.tolist(), strict=True):
            agreeing = (change.to(wide) * sign).relu_()
            total.add_(agreeing)
            if divided is not None:
                divided.add_(agreeing.sign_(), alpha=weight)
        total.mul_(sign)
        if divided is not None:
            divisor = divided.add_(1 - divided.sign().abs_()).to(base.dtype)  # 1 in place of 0
    elif target.shared["normalize"]:
        summed = float(weights.sum().to(base.dtype))
        divisor = summed if abs(summed) >= 1e-8 else None
    mixed = total.to(base.dtype)
    if divisor is not None:
        mixed.div_(divisor)
    if target.shared["lambda"] != 1:
        mixed.mul_(target.number("lambda"))
    return base + mixed


def drawn_mask(look: Look, i: int, stretch: Stretch) -> Tensor:
    """1 for the elements of input i that stay, else 0, each with its density as probability; the same whenever it is asked.

    Drawn from the seed, the tensor's name and the input's place, so that neither threads nor shards nor
    the rest of the configuration change it. The probability is rounded to bfloat16 where that is merged
    in, as torch.bernoulli does.
    """
    density = look.target.own[1 + i]["density"]
    if look.target.dtype == "BF16":
        density = float(torch.tensor(density, dtype=torch.bfloat16))
    count = stretch.stop - stretch.start
    stream = xxhash.xxh3_64_intdigest(f"{look.seed}/{i}/{stretch.number}/{look.target.name}".encode())
    drawn = np.random.SFC64(stream).random_raw((count + 1) // 2).view(np.int32)[:count]
    # An even draw from [-2**31, 2**31): what lies below the density's share of it stays.
    return torch.from_numpy(drawn).float().neg_().add_(density * 2.0**32 - 2.0**31).relu_().sign_()


def _factors(look: Look, thinned: Thinned, sparse: list[bool], dtype: torch.dtype) -> list[float]:
    """What each thinned change, of this dtype, is multiplied by so that its sum of magnitudes is as before."""

    def magnitudes(stretch: Stretch) -> list[tuple[float, float]]:
        base, *others = look.load(stretch)
        found = []
        for i, other in enumerate(others):
            change = other - base
            left = thinned(i, change, stretch) if sparse[i] else change
            found.append((float(change.abs().float().sum()), float(left.abs().float().sum())))
        return found

    totals = np.array(list(look.over(magnitudes))).sum(0)
    return [
        _ratio(before, after, dtype) if thin else 1.0
        for (before, after), thin in zip(totals, sparse, strict=True)
    ]


def _ratio(before: float, after: float, dtype: torch.dtype) -> float:
    """before / after as the dtype has it, float32 where float16 overflows; 1 where there is nothing to scale."""
    sums = torch.tensor([before, after], dtype=dtype)
    if not bool(sums.isfinite().all()):
        sums = torch.tensor([before, after], dtype=torch.float32)
    return 1.0 if float(sums.min()) < 1e-7 else float(sums[0] / sums[1])


@dataclass(frozen=True, slots=True)
class Cut:
    """The k largest magnitudes of a change: all whose bits are above `bits`, and `room` [stretches] of those at it.

    `equal` [stretches] counts those at it. Which of equals stay is settled by position: the first ones.
    """

    bits: int
    room: NDArray[np.int64]
    equal: NDArray[np.int64]

    def trimmed(self, change: Tensor, stretch: Stretch) -> Tensor:
        """The change with 0 in place of what is cut."""
        room, equal = int(self.room[stretch.number]), int(self.equal[stretch.number])
        if self.bits == NOTHING:
            return torch.zeros_like(change)
        if room in (0, equal) and change.dtype != torch.float64:
            above = self.bits if room == 0 and equal else self.bits - 1
            return (
                torch.nn.functional.hardshrink(change, _magnitude(above, change.dtype))
                if above >= 0
                else change
            )
        found = _magnitude_bits(change)
        keep = found > self.bits
        keep[(found == self.bits).nonzero().squeeze(1)[:room]] = True
        return change * keep


NOTHING = 0x7FFFFFFF
"""Bits of a cut above all magnitudes."""


def _magnitude(bits: int, dtype: torch.dtype) -> float:
    """The float of a dtype that has these bits."""
    integers = torch.int32 if dtype == torch.float32 else torch.int16
    return float(torch.tensor(bits, dtype=integers).view(dtype))


def _magnitude_bits(change: Tensor) -> Tensor:
    """The magnitudes as integers of the same order (NaN the largest); float64 by its float32."""
    if change.dtype in (torch.bfloat16, torch.float16):
        return change.view(torch.int16) & 0x7FFF
    return change.float().view(torch.int32) & 0x7FFFFFFF


def _cuts(look: Look) -> list[Cut | None]:
    """Where each change is cut to its density's share of elements, at least one; None: everything stays.

    A histogram of the magnitudes' bits finds the k-th largest exactly without holding the tensor: in one
    pass for 16-bit floats, in two for the others.
    """
    densities = [own["density"] for own in look.target.own[1:]]
    wanted = [
        None if density >= 1 else max(1, int(density * look.target.numel)) if density > 0 else 0
        for density in densities
    ]
    if all(k is None for k in wanted):
        return [None] * len(wanted)
    shifts = (0,) if look.target.dtype in ("BF16", "F16") else (16, 0)
    above = [0] * len(wanted)
    prefix = [0] * len(wanted)
    for shift in shifts:
        counts = np.zeros((len(wanted), 1 << 16), np.int64)
        for part in look.over(partial(_histograms, look, shift, prefix, wanted)):
            counts += part
        for i, k in enumerate(wanted):
            if k is not None:
                down = counts[i][::-1].cumsum()
                place = int(np.searchsorted(down, max(k - above[i], 1)))
                above[i] += int(down[place - 1]) if place else 0
                prefix[i] = prefix[i] << 16 | (len(down) - 1 - place)

    def at_cut(stretch: Stretch) -> list[int]:
        base, *others = look.load(stretch)
        return [
            int(np.count_nonzero(_magnitude_bits(other - base).numpy() == bits)) if k is not None else 0
            for other, bits, k in zip(others, prefix, wanted, strict=True)
        ]

    equal = np.array(list(look.over(at_cut)), np.int64).reshape(-1, len(wanted))
    cuts: list[Cut | None] = []
    for i, k in enumerate(wanted):
        if k is None:
            cuts.append(None)
        elif k == 0:
            cuts.append(Cut(NOTHING, equal[:, i], equal[:, i]))
        else:
            before = equal[:, i].cumsum() - equal[:, i]
            cuts.append(Cut(prefix[i], np.clip(k - above[i] - before, 0, equal[:, i]), equal[:, i]))
    return cuts


def _histograms(
    look: Look, shift: int, prefix: Sequence[int], wanted: Sequence[int | None], stretch: Stretch
) -> NDArray[np.int64]:
    """For each input that is cut, how many magnitudes begin with `prefix` and go on with each 16 bits."""
    base, *others = look.load(stretch)
    counts = np.zeros((len(others), 1 << 16), np.int64)
    for i, other in enumerate(others):
        if wanted[i] is not None:
            bits = _magnitude_bits(other - base)
            if bits.dtype == torch.int32 and shift == 0:
                bits = bits[(bits >> 16) == prefix[i]] & 0xFFFF
            counts[i] = torch.bincount(bits >> shift, minlength=1 << 16).numpy()
    return counts


DTYPES = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2,
}  # fmt: skip

METHODS: dict[str, Callable[[Look], Merged]] = {
    "linear": linear,
    "slerp": slerp,
    "task_arithmetic": task_arithmetic,
    "ties": ties,
    "dare_linear": dare_linear,
    "dare_ties": dare_ties,
}
