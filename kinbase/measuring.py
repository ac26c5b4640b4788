"""From opened checkpoints to rows of sums: the kinship pass over one family, resumable, database closed.

A family is one base and its members: the new ones, measured against everybody, and the known ones whose
files are still as they were. What the pass has finished is kept in the database every half minute and
when it is interrupted, so that the same import goes on from there.
"""

import io
import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from hashlib import blake2b

import numpy as np

from kinbase import sums
from kinbase.checkpoint import FLOAT_DTYPES, Checkpoint, FileStamp
from kinbase.errors import CheckpointError
from kinbase.kinship import FloatArray, Plan, TensorSums, run
from kinbase.store import Store
from kinbase.sums import Pair

KEEP_EVERY = 30.0
"""Seconds between two savings of finished tensors: what a killed import loses at most."""

ALGORITHM = "1"
"""Changes when the pass would give other sums, so that kept ones of an older version are not used."""

STATISTICS = ("numel", "sum", "sumsq", "max_abs", "zeros", "nonfinite")


@dataclass(slots=True)
class Family:
    """A base, its members (the first `new` of them new), and what the pass found.

    `columns[s]` [T, N] holds statistic s of STATISTICS, `dots` [T, K, N] the inner products of new members
    with all, both by tensor position; `digests` are the content digests of the base, if it was new, and
    of the new members, by name.
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


def measure(
    store: Store,
    base: Checkpoint,
    members: Sequence[Checkpoint] = (),
    *,
    new: int = 0,
    hash_base: bool = False,
    device: str = "cpu",
    report: Callable[[int, int], None] = lambda done, total: None,
) -> Family:
    """Run the pass over `base` and `members` (the first `new` of them new), going on from what was kept.

    Raises CheckpointError when a file changes, shrinks or cannot be read, KinbaseError when the device
    cannot be used. `report(done, total)` is told bytes.
    """
    # The floating-point tensors first and by name: the order of raw.tensor, whoever wrote the file.
    base.tensors.sort(key=lambda tensor: (tensor.dtype not in FLOAT_DTYPES, tensor.name))
    plan = Plan(base, members, new=new, hash_base=hash_base)
    tensors = [(t.name, t.numel) for t in base.tensors if t.dtype in FLOAT_DTYPES]
    key = _key(base, members, new, hash_base)
    done = _kept(store, key)
    fresh: list[TensorSums] = []
    started = saved = time.monotonic()
    nbytes = 0

    def tell(more: int) -> None:
        nonlocal nbytes
        nbytes += more
        report(nbytes, plan.nbytes)

    try:
        for tensor in run(plan, device=device, done=done.keys(), on_bytes=tell):
            done[tensor.position] = tensor
            fresh.append(tensor)
            if time.monotonic() - saved > KEEP_EVERY:
                _keep(store, key, fresh)
                fresh, saved = [], time.monotonic()
    except KeyboardInterrupt:
        _keep(store, key, fresh)
        raise
    if time.monotonic() - started > KEEP_EVERY:
        _keep(store, key, fresh)  # another family of the same import may be interrupted before all are stored
    for checkpoint in (base, *members):
        refuse_changed(checkpoint)
    found = [done[position] for position in range(len(tensors))]
    return Family(
        base=base,
        members=list(members),
        new=new,
        key=key,
        tensors=tensors,
        columns={
            s: np.array([getattr(t, s) for t in found]).reshape(len(found), len(members)) for s in STATISTICS
        },
        dots=np.array([t.dot for t in found]).reshape(len(found), new, len(members)),
        exceptions=[t.exceptions for t in found],
        digests=dict(zip([c.name for c in plan.hashed], plan.model_digests(done.values()), strict=True)),
        skipped=plan.skipped,
    )


def refuse_changed(checkpoint: Checkpoint) -> None:
    """Raise CheckpointError when a file of the checkpoint is not what it was when it was opened."""
    for stamp in checkpoint.files:
        try:
            same = FileStamp.of(stamp.path) == stamp
        except OSError:
            same = False
        if not same:
            raise CheckpointError(
                f"{stamp.path} changed while it was read: import {checkpoint.source} again when it is whole"
            )


def _key(base: Checkpoint, members: Sequence[Checkpoint], new: int, hash_base: bool) -> str:
    """What is being measured: two passes with the same key find the same sums."""
    files = [[(f.path, f.size, f.mtime_ns) for f in c.files] for c in (base, *members)]
    plan = json.dumps([ALGORITHM, files, [c.delta_of for c in members], new, hash_base])
    return blake2b(plan.encode(), digest_size=16).hexdigest()


def _keep(store: Store, key: str, found: list[TensorSums]) -> None:
    if found:
        with store.writing() as con:
            sums.keep(con, key, {tensor.position: _pack(tensor) for tensor in found})


def _kept(store: Store, key: str) -> dict[int, TensorSums]:
    if not store.path.exists():
        return {}
    with store.reading() as con:
        found = [_unpack(blob) for blob in sums.kept(con, key)]
    return {tensor.position: tensor for tensor in found}


def _pack(tensor: TensorSums) -> bytes:
    buffer = io.BytesIO()
    arrays = {name: getattr(tensor, name) for name in (*STATISTICS, "dot", "exceptions")}
    words = json.dumps([tensor.position, tensor.name, tensor.digests]).encode()
    np.savez(buffer, words=np.frombuffer(words, np.uint8), **arrays)
    return buffer.getvalue()


def _unpack(blob: bytes) -> TensorSums:
    with np.load(io.BytesIO(blob), allow_pickle=False) as arrays:
        position, name, digests = json.loads(arrays["words"].tobytes())
        values = {key: arrays[key] for key in (*STATISTICS, "dot", "exceptions")}
    return TensorSums(position=position, name=name, digests=tuple(digests), **values)
