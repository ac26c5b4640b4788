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
from kinbase.kinship.layers import place_all, told_origins
from kinbase.kinship.layout import BUCKETS
from kinbase.kinship.same import twins
from kinbase.kinship.stream import Plan, run
from kinbase.kinship.sums import STATISTICS, FamilySums, FloatArray, Products, TensorSums, Weights
from kinbase.store import Store
from kinbase.store import kinship as sums

KEEP_EVERY = 30.0
"""Seconds between two savings of finished tensors: what a killed import loses at most."""

SAVING_SHARE = 0.1
"""Of the time of a pass that saving may take: the products of thousands of members are large."""

SAVED_AT_ONCE = 64 << 20
"""Bytes of finished tensors in one transaction: readers wait for it."""

NONE = np.empty((0, 0))

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
    is_last: bool = False,
    device: str = "cpu",
    on_progress: OnProgress = lambda done, total: None,
) -> FamilySums:
    """Run the pass over `base` and `members` (the first `new` of them new), going on from what was kept.

    `begun` are the keys of the passes of which something was kept, where the caller has just read them; `is_last`
    says that nothing else is read before all is stored. Raises CheckpointError when a file changes, shrinks or
    cannot be read, DiskError when there is no room for the sums, KinbaseError when the device cannot be used.
    `on_progress` is told bytes.
    """
    # The floating-point tensors first and by name: the order they are stored in, whoever wrote the file.
    base.tensors.sort(key=lambda tensor: (tensor.dtype not in FLOAT_DTYPES, tensor.name))
    notes = place_all(base, members)
    plan = Plan(base, members, new=new, hash_base=hash_base)
    key = _key(base, members, new, hash_base)
    finished = _Finished(store, key, plan)
    if begun is None or key in begun:
        finished.load()
    nbytes = 0

    def tell(more: int) -> None:
        nonlocal nbytes
        nbytes += more
        on_progress(nbytes, plan.nbytes)

    started = time.monotonic()
    try:
        for tensor in run(plan, device=device, done=finished.tensors.keys(), on_bytes=tell):
            finished.add(tensor)
            if finished.is_save_due:
                finished.save()
    except KeyboardInterrupt:
        finished.save()
        raise
    if not is_last and time.monotonic() - started > KEEP_EVERY:
        finished.save()  # another family of the same import may be interrupted before all are stored
    for checkpoint in (base, *members):
        refuse_changed(checkpoint)
    family = finished.sums()
    family.notes = notes
    family.fit(base, members[:new])
    family.same = twins(plan, family)
    for member in members[:new]:
        family.notes[member.name] += told_origins(base, members, member)
    return family


class _Finished:
    """What a pass has finished, tensor by tensor; what it did since the last saving is yet to be saved.

    The products of all members are kept apart from the rest of the sums, which is small (`sums.Products`).
    """

    def __init__(self, store: Store, key: str, plan: Plan) -> None:
        self.tensors: dict[int, TensorSums] = {}
        self._store, self._key, self._plan = store, key, plan
        self._floats = sum(tensor.dtype in FLOAT_DTYPES for tensor in plan.base.tensors)
        self._dots = Products(self._floats, plan.new, len(plan.members), store.path.absolute().parent)
        self._sketches = np.zeros((len(plan.hashed), BUCKETS))
        self._unsaved: list[int] = []
        # Of the unsaved ones; sums of any sketches in any order have the same bits.
        self._unsaved_sketches = np.zeros_like(self._sketches)
        self._saved_at, self._saving_took = time.monotonic(), 0.0

    def add(self, tensor: TensorSums) -> None:
        """Take in the sums of one more tensor."""
        for sketch, to in zip(tensor.sketches, self._unsaved_sketches, strict=True):
            if sketch:
                sketch.pour(to)
        self._put(tensor)
        self._unsaved.append(tensor.position)

    def _put(self, tensor: TensorSums) -> None:
        if tensor.position < self._floats:
            self._dots.put(tensor.position, tensor.dot)
        self.tensors[tensor.position] = replace(tensor, sketches=(), dot=NONE)

    @property
    def is_save_due(self) -> bool:
        """Whether to save now: every half minute, and so that little of the time goes into saving."""
        return time.monotonic() - self._saved_at > max(KEEP_EVERY, self._saving_took / SAVING_SHARE)

    def save(self) -> None:
        """Save what is not saved yet in the database, a second of writing at a time."""
        began = time.monotonic()
        step = max(1, SAVED_AT_ONCE // (8 * self._plan.new * len(self._plan.members) + 1))
        for first in range(0, len(self._unsaved), step):
            with self._store.writing() as con:
                packed: dict[int, bytes] = {}
                for position in self._unsaved[first : first + step]:
                    is_float = position < self._floats
                    dot = self._dots.tensor(position) if is_float else NONE
                    # The sketches of all of them lie with the first.
                    sketches = NONE if packed or first else self._unsaved_sketches
                    packed[position] = _pack(replace(self.tensors[position], dot=dot), sketches)
                sums.keep(con, self._key, packed)
        self._sketches += self._unsaved_sketches
        self._unsaved_sketches[:] = 0
        self._unsaved = []
        self._saved_at = time.monotonic()
        self._saving_took = self._saved_at - began

    def load(self) -> None:
        """Take in what an earlier pass with this key saved."""
        if not self._store.path.exists():
            return
        with self._store.reading() as con:
            for blob in sums.kept(con, self._key):
                tensor, sketches = _unpack(blob)
                self._put(tensor)
                self._sketches += sketches if sketches.size else 0.0

    def sums(self) -> FamilySums:
        """The sums of the family, when every tensor is finished."""
        plan = self._plan
        self._sketches += self._unsaved_sketches
        self._unsaved_sketches[:] = 0
        floats = [self.tensors[position] for position in range(self._floats)]
        return FamilySums(
            base=plan.base,
            members=plan.members,
            new=plan.new,
            key=self._key,
            tensors=[(t.name, t.numel) for t in plan.base.tensors if t.dtype in FLOAT_DTYPES],
            columns={
                s: np.array([getattr(t, s) for t in floats]).reshape(len(floats), len(plan.members))
                for s in STATISTICS
            },
            dots=self._dots,
            exceptions=[t.exceptions for t in floats],
            digests=dict(
                zip([c.name for c in plan.hashed], plan.model_digests(self.tensors.values()), strict=True)
            ),
            skipped=plan.skipped,
            weights=_weights(plan, self.tensors.values()),
            sketches={c.name: sketch for c, sketch in zip(plan.hashed, self._sketches, strict=True)},
        )


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
