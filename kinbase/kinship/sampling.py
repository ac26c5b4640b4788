"""Kinship estimated from a sample: many short runs of elements, read at the same places of base and members.

The elements of the base that somebody shares are cut into runs; a systematic sample of them (every k-th from a
random start) is spread over all tensors in proportion to their size, so each is a stratum of its own. A run of a
member minus that of the base gives the sums of the kinship pass, and the ratio of their totals the estimate. The
interval comes from a bootstrap over runs, not over elements: neighbours in a run are alike; and over those of each
stratum by itself, for what differs between tensors an even sample holds nearly fixed. It is stated only when at
least LEAST_RUNS runs show a change and no handful of them carries it: a delta that lies in a few rows, or in tensors
the sample hardly met, cannot be told from a sample, and is said to be one that may hide.
"""

import math
import threading
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial

import numpy as np
from numpy.typing import NDArray

from kinbase.checkpoint import DTYPE_BYTES, FLOAT_DTYPES, Checkpoint, Tensor
from kinbase.errors import KinbaseError
from kinbase.kinship.plan import Plan

LEAST_RUNS = 200
"""Runs that must show a change before an interval is stated: with fewer a bootstrap over runs covers too rarely."""

LEAST_EFFECTIVE = 50.0
"""Runs that would carry as much of the squared delta if all carried alike: fewer, and the next run may be the one."""

RUN_BYTES = (4096, 2048, 1024)
"""Lengths of a run, in bytes of the base: the longest that gives MANY_RUNS runs, for each costs a request elsewhere."""

MANY_RUNS = 4000
STRATUM = 64
"""Runs that a stratum has at least: tensors of fewer are taken together with the next ones in the file. Of 16 the intervals
of a few hundred runs cover only 92 times in 100."""

FIRST = 400
"""Runs of the first stage, where an error is asked for: after each the sample doubles, until the error is met."""

DRAWS = 999
"""Bootstrap samples."""

AT_ONCE = 16
"""Runs that are read at the same time, where each may be a request."""

FloatArray = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Estimate:
    """Kinship of members i and j: values, standard error of pcc and cs, the share of the base's elements compared.

    `stderr` is half the 95% interval over 1.96.
    """

    i: int
    j: int
    pcc: float | None
    cs: float
    ed: float
    stderr: float
    coverage: float
    runs: int


@dataclass(slots=True)
class Sample:
    """What a sample found: the estimates that can be stated, and what is to be said of members that have none.

    `squares` [tensors of the base, members, 2] are mean squares of the weights read, the base's and the member's, over
    the same elements; NaN where none were.
    """

    estimates: list[Estimate] = field(default_factory=list)
    notes: dict[int, str] = field(default_factory=dict)
    squares: FloatArray = field(default_factory=lambda: np.zeros((0, 0, 2)))
    runs: int = 0
    run_bytes: int = 0
    nbytes: int = 0


@dataclass(frozen=True, slots=True)
class Run:
    """`numel` elements of the base's tensor at `position` from `start` on."""

    position: int
    start: int
    numel: int


def estimate(
    base: Checkpoint,
    members: Sequence[Checkpoint],
    share: float,
    *,
    new: int | None = None,
    stderr: float | None = None,
    seed: int = 0,
    report: Callable[[int, int], None] = lambda done, total: None,
) -> Sample:
    """Estimate the kinship of the first `new` members (default: all) with all, reading `share` of the bytes.

    With `stderr` the sample grows until every estimate is that sure, `share` at most. Raises KinbaseError for a
    share that is no share, and what `Tensor.read` raises.
    """
    if not 0 < share < 1:
        raise KinbaseError(f"a sample is a share of the bytes between 0 and 1, not {share:g}")
    plan = Plan(base, members, new=new)
    order = [
        p for p, t in enumerate(base.tensors) if t.dtype in FLOAT_DTYPES and any(a[p] for a in plan.aligned)
    ]
    rng = np.random.default_rng(seed)
    runs, run_bytes = _draw(base, order, share, rng)
    found = _Sums(plan, order, len(runs))
    planned = sum(found.cost(run) for run in runs)
    done = 0
    result = Sample(run_bytes=run_bytes)
    stop = len(runs) if stderr is None else min(FIRST, len(runs))
    away = any(file.elsewhere for checkpoint in (base, *members) for file in checkpoint.files)
    try:
        with ThreadPoolExecutor(AT_ONCE if away else 1, thread_name_prefix="kinbase-sample") as pool:
            while done < len(runs):
                # A stage is a random part of an even sample, read in the order of the files: neighbours together.
                stage = sorted(range(done, stop), key=lambda k: (runs[k].position, runs[k].start))
                groups = _neighbours(stage, runs)
                for nbytes in pool.map(lambda group: found.read(group, runs), groups):
                    result.nbytes += nbytes
                    report(result.nbytes, planned)
                done = stop
                result.runs = done
                result.estimates, result.notes = found.conclude(done, seed)
                if stderr is not None and found.sure(result, stderr):
                    break
                stop = min(2 * done, len(runs))
        result.squares = found.mean_squares()
    finally:
        for checkpoint in (base, *members):
            checkpoint.close()
    return result


def _draw(
    base: Checkpoint, order: Sequence[int], share: float, rng: np.random.Generator
) -> tuple[list[Run], int]:
    """A systematic sample of runs in a random order of stages, and the bytes of a whole run."""
    total = sum(base.tensors[p].nbytes for p in order)
    length = next((b for b in RUN_BYTES if share * total / b >= MANY_RUNS), RUN_BYTES[-1])
    slots = [-(-base.tensors[p].nbytes // length) for p in order]
    ends = np.cumsum(slots) if slots else np.zeros(0, np.int64)
    everything = int(ends[-1]) if len(ends) else 0
    count = min(everything, round(share * everything))
    if count == 0:
        return [], length
    at = np.floor((rng.random() + np.arange(count)) * everything / count).astype(np.int64)
    runs = []
    for slot in at[rng.permutation(count)].tolist():
        k = int(np.searchsorted(ends, slot, "right"))
        tensor = base.tensors[order[k]]
        step = length // DTYPE_BYTES[tensor.dtype]
        start = (slot - int(ends[k]) + slots[k]) * step
        runs.append(Run(order[k], start, min(step, tensor.numel - start)))
    return runs, length


def _neighbours(stage: Sequence[int], runs: Sequence[Run]) -> list[list[int]]:
    """The runs of a stage, those that follow one another in a tensor together: they share a request."""
    groups: list[list[int]] = []
    for k in stage:
        last = runs[groups[-1][-1]] if groups else None
        run = runs[k]
        follows = last and last.position == run.position and last.start + last.numel == run.start
        if follows and len(groups[-1]) < 256:
            groups[-1].append(k)
        else:
            groups.append([k])
    return groups


class _Sums:
    """Sums over each run: of deltas, of their squares, and of their products, NaN where a member has no such run."""

    def __init__(self, plan: Plan, order: Sequence[int], runs: int) -> None:
        self.plan, self.order = plan, order
        self.floats = [p for p, t in enumerate(plan.base.tensors) if t.dtype in FLOAT_DTYPES]
        members = len(plan.members)
        self.numel = np.zeros(runs)
        self.position = np.zeros(runs, np.intp)
        self.sum = np.full((runs, members), np.nan)
        self.sumsq = np.full((runs, members), np.nan)
        self.pairs = [(i, j) for i in range(plan.new) for j in range(i + 1, members)]
        self.dot = np.full((runs, len(self.pairs)), np.nan)
        self.broken = np.zeros(members, np.int64)
        # Elements and both sums of squares, by tensor and member; threads have tensors in common.
        self._squares = np.zeros((len(plan.base.tensors), members, 3))
        self._lock = threading.Lock()

    def mean_squares(self) -> FloatArray:
        """`Sample.squares`."""
        with np.errstate(invalid="ignore"):
            return np.asarray(self._squares[:, :, 1:] / self._squares[:, :, :1])

    def cost(self, run: Run) -> int:
        """Bytes that one run takes in all checkpoints."""
        base = self.plan.base.tensors[run.position]
        tensors = [base, *(a[run.position] for a in self.plan.aligned)]
        return sum(run.numel * DTYPE_BYTES[t.dtype] for t in tensors if t is not None)

    def read(self, group: Sequence[int], runs: Sequence[Run]) -> int:
        """Read runs of one tensor that lie together, and take their sums; the bytes read."""
        position = runs[group[0]].position
        begin = runs[group[0]].start
        end = runs[group[-1]].start + runs[group[-1]].numel
        base = self.plan.base.tensors[position]
        nbytes = 0
        deltas: list[FloatArray | None] = []
        theta: FloatArray | None = None
        for i, aligned in enumerate(self.plan.aligned):
            tensor = aligned[position]
            if tensor is None:
                unchanged = self.plan.jobs[position].unlisted[i]
                deltas.append(np.zeros(end - begin) if unchanged else None)
                continue
            stop = min(end, tensor.numel)
            if stop <= begin:
                deltas.append(None)
                continue
            values = _values(tensor, begin, stop)
            nbytes += (stop - begin) * DTYPE_BYTES[tensor.dtype]
            if not self.plan.direct[i]:
                if theta is None:
                    theta = _values(base, begin, end)
                    nbytes += (end - begin) * DTYPE_BYTES[base.dtype]
                with np.errstate(over="ignore"), self._lock:
                    there = theta[: len(values)]
                    self._squares[position, i] += len(values), there @ there, values @ values
                values = values - there
            deltas.append(values)
        for k in group:
            run = runs[k]
            here = slice(run.start - begin, run.start - begin + run.numel)
            self.numel[k], self.position[k] = run.numel, position
            parts = [None if d is None or len(d) < here.stop else d[here] for d in deltas]
            for i, part in enumerate(parts):
                if part is not None and not np.isfinite(part).all():
                    self.broken[i] += 1
                    parts[i] = part = None
                if part is not None:
                    self.sum[k, i] = part.sum()
                    self.sumsq[k, i] = part @ part
            for column, (i, j) in enumerate(self.pairs):
                a, b = parts[i], parts[j]
                if a is not None and b is not None:
                    self.dot[k, column] = a @ b
        return nbytes

    def conclude(self, done: int, seed: int) -> tuple[list[Estimate], dict[int, str]]:
        """The estimates that the first `done` runs allow, and why members have none."""
        notes = {}
        for i in range(len(self.plan.members)):
            note = self._hides(i, done)
            if note:
                notes[i] = note
        total = sum(self.plan.base.tensors[p].numel for p in self.floats)
        met = (~np.isnan(self.dot[:done])).sum(axis=0)
        told = [
            c for c, (i, j) in enumerate(self.pairs) if not {i, j} & notes.keys() and met[c] >= LEAST_RUNS
        ]
        errors = _errors([partial(self._sums, c, done) for c in told], self.position[:done], seed)
        estimates = []
        for column, error in zip(told, errors, strict=True):
            i, j = self.pairs[column]
            sums = self._sums(column, done).sum(axis=0)
            pcc, cs = (float(value[0]) for value in _ratios(sums[None]))
            if math.isnan(cs):
                continue
            _, _, _, q_a, q_b, dot = sums
            n = self.numel[:done][~np.isnan(self.dot[:done, column])].sum()
            ed = math.sqrt(max(0.0, q_a + q_b - 2 * dot) * self._aligned(i, j, self.order) / n)
            value = None if math.isnan(pcc) else pcc
            estimates.append(Estimate(i, j, value, cs, ed, error, float(n / total), int(met[column])))
        return estimates, notes

    def _sums(self, column: int, done: int) -> FloatArray:
        """Sums over the first `done` runs for one pair [R, 6]: numel, sums, squares, products; zeros where it has no run."""
        i, j = self.pairs[column]
        sums = np.stack(
            [
                self.numel[:done], self.sum[:done, i], self.sum[:done, j],
                self.sumsq[:done, i], self.sumsq[:done, j], self.dot[:done, column],
            ],
            axis=1,
        )  # fmt: skip
        sums[np.isnan(sums[:, 5])] = 0
        # Tensors that nobody changed are not sampled: they only take part in the means.
        sums[:, 0] *= self._aligned(i, j, self.floats) / self._aligned(i, j, self.order)
        return sums

    def _aligned(self, i: int, j: int, positions: Iterable[int]) -> int:
        """Elements of the tensors at `positions` in which both members are compared."""
        count = 0
        for position in positions:
            job = self.plan.jobs[position]
            numel = np.where(job.unlisted, self.plan.base.tensors[position].numel, job.cuts)
            count += int(min(numel[i], numel[j]))
        return count

    def _hides(self, i: int, done: int) -> str | None:
        """Why a sample can say nothing of a member's delta; None when it can."""
        squares = self.sumsq[:done, i]
        squares = squares[~np.isnan(squares)]
        met, changed = len(squares), int((squares > 0).sum())
        if self.broken[i] and not met:
            return "every run of it holds weights that are not finite: nothing can be said"
        if done < LEAST_RUNS:
            return f"{done} runs are too few to tell (at least {LEAST_RUNS}): take a larger --sample"
        if changed == 0:
            return (
                f"none of {met} runs differs from the base: it is the base, or less than {3 / max(1, met):.2%} of its "
                "runs changed (a few rows, a few tensors), which a sample cannot see; --stream tells"
            )
        if changed < LEAST_RUNS:
            return (
                f"only {changed} of {met} runs differ from the base: what changed (a few tensors, as adapters do, or "
                "some rows of an embedding) is too little for this sample; take a larger one, or --stream"
            )
        effective = float(squares.sum() ** 2 / (squares**2).sum())
        if effective < LEAST_EFFECTIVE:
            return (
                f"{effective:.0f} of {met} runs carry nearly all of its change: more may hide between the runs, and "
                "no error could be stated; --stream tells"
            )
        return None

    def sure(self, sample: Sample, stderr: float) -> bool:
        """Whether every pair is known that well."""
        known = {(e.i, e.j) for e in sample.estimates if e.stderr <= stderr}
        return all(pair in known for pair in self.pairs)


def _values(tensor: Tensor, start: int, stop: int) -> FloatArray:
    """Elements start..stop of a tensor as float64."""
    width = DTYPE_BYTES[tensor.dtype]
    raw = bytearray((stop - start) * width)
    tensor.read(start * width, memoryview(raw))
    return decoded(raw, tensor.dtype)


def decoded(raw: bytes | bytearray, dtype: str) -> FloatArray:
    """Little-endian bytes of a floating-point dtype as float64."""
    if dtype == "BF16":
        return (np.frombuffer(raw, "<u2").astype(np.uint32) << 16).view(np.float32).astype(np.float64)
    if dtype in _NUMPY:
        return np.frombuffer(raw, _NUMPY[dtype]).astype(np.float64)
    bits = np.frombuffer(raw, np.uint8).astype(np.uint16)
    if dtype == "F8_E5M2":  # the upper half of a half-precision number
        return (bits << 8).view(np.float16).astype(np.float64)
    sign = np.where(bits & 0x80, -1.0, 1.0)
    exponent, mantissa = (bits >> 3 & 15).astype(np.int32), (bits & 7).astype(np.float64)
    normal = np.ldexp(1 + mantissa / 8, exponent - 7)
    values = sign * np.where(exponent > 0, normal, np.ldexp(mantissa / 8, -6))
    return np.where(bits & 0x7F == 0x7F, np.nan, values)


_NUMPY = {"F64": "<f8", "F32": "<f4", "F16": "<f2"}


def _strata(position: NDArray[np.intp]) -> list[NDArray[np.intp]]:
    """Which runs belong together: those of one tensor, or of several in a row until they are STRATUM."""
    order = np.argsort(position, kind="stable")
    found: list[NDArray[np.intp]] = []
    last = 0
    for end in [*(np.flatnonzero(np.diff(position[order])) + 1).tolist(), len(order)]:
        if end - last >= STRATUM:
            found.append(order[last:end])
            last = end
    if last < len(order):
        found[-1:] = [np.concatenate([*found[-1:], order[last:]])]
    return found


def _errors(pairs: Sequence[Callable[[], FloatArray]], position: NDArray[np.intp], seed: int) -> list[float]:
    """The standard error of pcc and cs of each pair, of which `pairs` give the sums over the runs [R, 6].

    Of n runs of a stratum n - 1 are drawn with replacement and weighted by n / (n - 1) (the bootstrap of Rao and Wu
    1988), the same for all pairs; the error is the wider of the two 95% intervals over 2 * 1.96. NaN for a zero delta.
    """
    rng = np.random.default_rng((seed, 1))  # not the stream that chose the runs
    strata = _strata(position)
    drawn = np.empty((len(pairs), DRAWS, 6))
    step = max(1, (4 << 20) // max(len(position), 1))
    for first in range(0, DRAWS if pairs else 0, step):
        weights = np.empty((min(step, DRAWS - first), len(position)))
        for stratum in strata:
            n = len(stratum)
            weights[:, stratum] = rng.multinomial(n - 1, np.full(n, 1 / n), size=len(weights)) * (n / (n - 1))
        for found, sums in zip(drawn, pairs, strict=True):
            found[first : first + len(weights)] = weights @ sums()
    return [_span(found) / (2 * 1.96) for found in drawn]


def _span(drawn: FloatArray) -> float:
    """The width of the wider of the 95% intervals of pcc and cs."""
    spans = [np.ptp(np.nanquantile(v, (0.025, 0.975))) for v in _ratios(drawn) if not np.isnan(v).all()]
    return float(max(spans, default=np.nan))


def _ratios(sums: FloatArray) -> tuple[FloatArray, FloatArray]:
    """pcc and cs of each row of sums; NaN where a delta does not vary, or is zero."""
    n, s_a, s_b, q_a, q_b, dot = sums.T
    with np.errstate(invalid="ignore", divide="ignore"):
        cs = dot / np.sqrt(q_a * q_b)
        v_a, v_b = q_a - s_a * s_a / n, q_b - s_b * s_b / n
        varied = (v_a > 1e-12 * q_a) & (v_b > 1e-12 * q_b)
        pcc = np.where(varied, (dot - s_a * s_b / n) / np.sqrt(v_a * v_b), np.nan)
    return pcc, cs
