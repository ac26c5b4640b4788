"""From opened checkpoints to rows of sums: the kinship pass over one family, resumable, database closed.

A family is one base and its members: the new ones, measured against everybody, and the known ones whose
files are still as they were. What the pass has finished is kept in the database every half minute and
when it is interrupted, so that the same import goes on from there.
"""

import io
import json
import time
from collections.abc import Collection, Iterable, Sequence
from dataclasses import replace
from hashlib import blake2b

import numpy as np

from kinbase.checkpoint import FLOAT_DTYPES, Checkpoint, FileStamp
from kinbase.errors import CheckpointError
from kinbase.ingest.steps import OnProgress
from kinbase.kinship.layout import BUCKETS
from kinbase.kinship.stream import Plan, run
from kinbase.kinship.sums import STATISTICS, FamilySums, FloatArray, TensorSums, Weights
from kinbase.store import Store
from kinbase.store import kinship as sums

KEEP_EVERY = 30.0
"""Seconds between two savings of finished tensors: what a killed import loses at most."""

ALGORITHM = "3"
"""Changes when the pass would give other sums, so that kept ones of an older version are not used."""


def measure(
    store: Store,
    base: Checkpoint,
    members: Sequence[Checkpoint] = (),
    *,
    new: int = 0,
    hash_base: bool = False,
    begun: Collection[str] | None = None,
    device: str = "cpu",
    on_progress: OnProgress = lambda done, total: None,
) -> FamilySums:
    """Run the pass over `base` and `members` (the first `new` of them new), going on from what was kept.

    `begun` are the keys of the passes of which something was kept, where the caller has just read them.
    Raises CheckpointError when a file changes, shrinks or cannot be read, KinbaseError when the device
    cannot be used. `on_progress` is told bytes.
    """
    # The floating-point tensors first and by name: the order they are stored in, whoever wrote the file.
    base.tensors.sort(key=lambda tensor: (tensor.dtype not in FLOAT_DTYPES, tensor.name))
    plan = Plan(base, members, new=new, hash_base=hash_base)
    tensors = [(t.name, t.numel) for t in base.tensors if t.dtype in FLOAT_DTYPES]
    key = _key(base, members, new, hash_base)
    done, total = _kept(store if begun is None or key in begun else None, key, len(plan.hashed))
    fresh: list[TensorSums] = []
    sketches = np.zeros_like(total)  # of the fresh ones; sums of any of them in any order have the same bits
    started = saved = time.monotonic()
    nbytes = 0

    def tell(more: int) -> None:
        nonlocal nbytes
        nbytes += more
        on_progress(nbytes, plan.nbytes)

    try:
        for tensor in run(plan, device=device, done=done.keys(), on_bytes=tell):
            for sketch, to in zip(tensor.sketches, sketches, strict=True):
                if sketch:
                    sketch.pour(to)
            done[tensor.position] = tensor = replace(tensor, sketches=())
            fresh.append(tensor)
            if time.monotonic() - saved > KEEP_EVERY:
                _keep(store, key, fresh, sketches)
                total += sketches
                sketches[:] = 0
                fresh, saved = [], time.monotonic()
    except KeyboardInterrupt:
        _keep(store, key, fresh, sketches)
        raise
    total += sketches
    if time.monotonic() - started > KEEP_EVERY:
        _keep(
            store, key, fresh, sketches
        )  # another family of the same import may be interrupted before all are stored
    for checkpoint in (base, *members):
        refuse_changed(checkpoint)
    found = [done[position] for position in range(len(tensors))]
    family = FamilySums(
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
        weights=_weights(plan, done.values()),
        sketches={c.name: sketch for c, sketch in zip(plan.hashed, total, strict=True)},
    )
    family.fit(base, members[:new])
    return family


def _weights(plan: Plan, found: Iterable[TensorSums]) -> dict[str, Weights]:
    """The power sums of each hashed checkpoint's floating-point tensors, by its name."""
    rows: dict[int, list[tuple[str, str, int, FloatArray]]] = {slot: [] for slot in plan.hashed_slots}
    for tensor in found:
        lanes = {lane.slot: lane for lane in plan.jobs[tensor.position].lanes if lane.label}
        for slot, moments in zip(plan.hashed_slots, tensor.weights, strict=True):
            if slot in lanes:
                lane = lanes[slot]
                rows[slot].append((lane.label, lane.tensor.form, lane.numel, moments))
    return {
        c.name: Weights(
            [label for label, *_ in listed],
            [dtype for _, dtype, *_ in listed],
            [numel for *_, numel, _ in listed],
            np.array([moments for *_, moments in listed]).reshape(-1, 3),
        )
        for c, listed in zip(plan.hashed, rows.values(), strict=True)
    }


def refuse_changed(checkpoint: Checkpoint) -> None:
    """Raise CheckpointError when a file of the checkpoint is not what it was when it was opened."""
    for stamp in checkpoint.files:
        try:
            same = stamp.elsewhere or FileStamp.of(stamp.path) == stamp
        except OSError:
            same = False
        if not same:
            raise CheckpointError(
                f"{stamp.path} changed while it was read: import {checkpoint.source} again when it is whole"
            )
    checkpoint.verify()


def _key(base: Checkpoint, members: Sequence[Checkpoint], new: int, hash_base: bool) -> str:
    """What is being measured: two passes with the same key find the same sums."""
    files = [[c.source, *((f.path, f.size, f.mtime_ns) for f in c.files)] for c in (base, *members)]
    plan = json.dumps([ALGORITHM, files, [c.delta_of for c in members], new, hash_base])
    return blake2b(plan.encode(), digest_size=16).hexdigest()


def _keep(store: Store, key: str, found: list[TensorSums], sketches: FloatArray) -> None:
    """Save finished tensors, the sketches of all of them with the first."""
    if found:
        none = np.empty((0, 0))
        with store.writing() as con:
            packed = {t.position: _pack(t, none if i else sketches) for i, t in enumerate(found)}
            sums.keep(con, key, packed)


def _kept(store: Store | None, key: str, hashed: int) -> tuple[dict[int, TensorSums], FloatArray]:
    """The tensors that were saved, by position, and the sum of their sketches [H, BUCKETS]; none without a store."""
    total = np.zeros((hashed, BUCKETS))
    if store is None or not store.path.exists():
        return {}, total
    done = {}
    with store.reading() as con:
        for blob in sums.kept(con, key):
            tensor, sketches = _unpack(blob)
            done[tensor.position] = tensor
            total += sketches if sketches.size else 0.0
    return done, total


def _pack(tensor: TensorSums, sketches: FloatArray) -> bytes:
    buffer = io.BytesIO()
    arrays = {name: getattr(tensor, name) for name in (*STATISTICS, "dot", "exceptions", "weights")}
    arrays["sketches"] = sketches
    words = json.dumps([tensor.position, tensor.name, tensor.digests]).encode()
    np.savez(buffer, words=np.frombuffer(words, np.uint8), **arrays)
    return buffer.getvalue()


def _unpack(blob: bytes) -> tuple[TensorSums, FloatArray]:
    with np.load(io.BytesIO(blob), allow_pickle=False) as arrays:
        position, name, digests = json.loads(arrays["words"].tobytes())
        values = {key: arrays[key] for key in (*STATISTICS, "dot", "exceptions", "weights")}
        sketches = arrays["sketches"]
    return TensorSums(position=position, name=name, digests=tuple(digests), sketches=(), **values), sketches
