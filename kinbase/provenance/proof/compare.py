"""What a tensor of a child is beside what its recipe makes: equal, off by rounding, or off in some way that has a name."""

import threading
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from kinbase.checkpoint import DTYPE_BYTES, Tensor
from kinbase.checkpoint.adapters import byte_floats

Floats = NDArray[np.float64]

UNITS = 2.0
"""Units in the last place that rounding on the way may set a result off by."""

SYSTEMATIC = 6.0
"""Standard errors from which differences along the change are no rounding: one in a thousand million by chance."""

ALONG = 0.9
"""Cosine from which a change is the recipe's at another scale."""

BITS = {"F64": 53, "F32": 24, "F16": 11, "BF16": 8, "F8_E4M3": 4, "F8_E5M2": 3}
EQUAL, ROUNDING, UNTOUCHED, SCALED, BROKEN, OTHER = range(6)


@dataclass
class Compared:
    """Sums over one tensor of T elements: c is the child's, e what the recipe makes, r the tensor it starts from.

    `different` elements, `units` the largest difference in units in the last place of the larger, `broken` elements of the
    child that are not finite, `unmoved` ones that are r's where e is another, `moved` ones where e is not r.
    Products: `own` |c - r|^2, `made` |e - r|^2, `along` <c - r, e - r>, `off` <c - e, e - r> and `spread`, the sum of squares
    of its terms.
    """

    name: str
    numel: int
    different: int = 0
    units: float = 0.0
    farthest: float = 0.0
    broken: int = 0
    unmoved: int = 0
    moved: int = 0
    own: float = 0.0
    made: float = 0.0
    along: float = 0.0
    off: float = 0.0
    spread: float = 0.0
    lock: threading.Lock = field(default_factory=threading.Lock, repr=False)

    def add(self, child: Floats, made: Floats, start: Floats, code: str, equal: bool) -> None:
        """Take in a stretch; called from several threads, in any order."""
        fine = np.isfinite(child)
        broken = int(child.size - fine.sum())
        change = made - start
        with np.errstate(invalid="ignore", over="ignore"):
            apart = np.where(fine, child - made, 0.0)
        own = apart + change
        unit = np.ldexp(
            1.0, np.frexp(np.maximum(np.abs(np.where(fine, child, 0)), np.abs(made)))[1] - BITS[code]
        )
        moved = change != 0
        terms = apart * change
        with self.lock:
            self.broken += broken
            self.moved += int(moved.sum())
            self.made += float(change @ change)
            self.own += float(own @ own)
            self.along += float(own @ change)
            if equal:
                return
            self.different += int((apart != 0).sum()) + broken
            self.units = max(self.units, float((np.abs(apart) / np.maximum(unit, 1e-300)).max(initial=0.0)))
            self.farthest = max(self.farthest, float(np.abs(apart).max(initial=0.0)))
            self.unmoved += int((moved & (child == start)).sum())
            self.off += float(terms.sum())
            self.spread += float(terms @ terms)

    @property
    def scale(self) -> float:
        """What the recipe's change is in the child's: 1 as it should be, 0 not at all."""
        return self.along / self.made if self.made > 0 else 1.0

    @property
    def kind(self) -> int:
        """EQUAL, ROUNDING, UNTOUCHED (the start's own), SCALED, BROKEN (not finite) or OTHER."""
        if self.broken:
            return BROKEN
        if not self.different:
            return EQUAL
        if self.moved and self.unmoved == self.moved and self.own == 0:
            return UNTOUCHED
        if self.units <= UNITS and abs(self.off) <= SYSTEMATIC * np.sqrt(max(self.spread, 1e-300)):
            return ROUNDING
        length = np.sqrt(max(self.own * self.made, 1e-300))
        return SCALED if abs(self.along) > ALONG * length else OTHER


def floats(data: "memoryview | bytearray | bytes", code: str) -> Floats:
    """Stored elements as float64, exactly."""
    if code == "BF16":
        return (np.frombuffer(data, np.uint16).astype(np.uint32) << 16).view(np.float32).astype(np.float64)
    if code in ("F8_E4M3", "F8_E5M2"):
        return byte_floats(code)[np.frombuffer(data, np.uint8)]
    return np.frombuffer(data, {"F64": np.float64, "F32": np.float32, "F16": np.float16}[code]).astype(
        np.float64
    )


def elements(tensor: Tensor, first: int, count: int) -> Floats:
    """Elements first..first + count of a tensor as float64."""
    width = DTYPE_BYTES[tensor.dtype]
    raw = bytearray(count * width)
    tensor.read(first * width, memoryview(raw))
    return floats(raw, tensor.dtype)
