"""From opened checkpoints to rows of sums: the kinship pass over one family, resumable, database closed.

A family is one base and its members: the new ones, measured against everybody, and the known ones whose
files are still as they were. What the pass has finished is kept in the database every half minute and
when it is interrupted, so that the same import goes on from there (`kinbase.ingest.finished`).
"""

import json
import time
from collections.abc import Collection, Sequence
from hashlib import blake2b

from kinbase.checkpoint import FLOAT_DTYPES, Checkpoint, FileStamp
from kinbase.errors import CheckpointError, KinbaseError
from kinbase.ingest import finished as finishing
from kinbase.ingest.engine import Engine
from kinbase.ingest.finished import ALGORITHM, Finished, InStore
from kinbase.ingest.part_files import PartFiles
from kinbase.ingest.steps import OnProgress
from kinbase.kinship.layers import place_all, told_origins
from kinbase.kinship.same import twins
from kinbase.kinship.stream import Plan, run
from kinbase.kinship.sums import FamilySums
from kinbase.store import Store


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
    parts: PartFiles | None = None,
    engine: Engine | None = None,
    on_progress: OnProgress = lambda done, total: None,
) -> FamilySums:
    """Run the pass over `base` and `members` (the first `new` of them new), going on from what was kept.

    `begun` are the keys of the passes of which something was kept, where the caller has just read them; `is_last`
    says that nothing else is read before all is stored. With `parts` nothing is read but what those hold; an `engine`
    reads in place of this process. Raises
    CheckpointError when a file changes, shrinks or cannot be read, DiskError when there is no room for the sums,
    KinbaseError when the device cannot be used or the parts are not this family's. `on_progress` is told bytes.
    """
    plan, notes = planned(base, members, new=new, hash_base=hash_base)
    key = _key(base, members, new, hash_base)
    if parts is not None:
        parts.check(plan)
    finished = Finished(plan, parts or InStore(store, key, is_begun=begun is None or key in begun))
    if parts is not None and finished.tensors.keys() != set(plan.positions):
        raise KinbaseError("the parts lack sums of tensors that they say they have: measure them anew")
    started = time.monotonic()
    read(plan, finished, plan.positions, device=device, engine=engine, on_progress=on_progress)
    if not is_last and time.monotonic() - started > finishing.KEEP_EVERY:
        finished.save()  # another family of the same import may be interrupted before all are stored
    for checkpoint in (base, *members):
        refuse_changed(checkpoint)
    family = finished.sums(key)
    family.notes = notes
    family.fit(base, members[:new])
    family.same = twins(plan, family)
    for member in members[:new]:
        family.notes[member.name] += told_origins(base, members, member)
    return family


def planned(
    base: Checkpoint, members: Sequence[Checkpoint], *, new: int, hash_base: bool
) -> tuple[Plan, dict[str, list[str]]]:
    """The plan of a pass, the same wherever the same files are opened, and lines on members' layers by name."""
    # The floating-point tensors first and by name: the order they are stored in, whoever wrote the file.
    base.tensors.sort(key=lambda tensor: (tensor.dtype not in FLOAT_DTYPES, tensor.name))
    notes = place_all(base, members)
    return Plan(base, members, new=new, hash_base=hash_base), notes


def read(
    plan: Plan,
    finished: Finished,
    positions: Collection[int],
    *,
    device: str = "cpu",
    threads: int | None = None,
    engine: Engine | None = None,
    on_progress: OnProgress = lambda done, total: None,
) -> None:
    """Read the tensors at `positions` that are not finished; `on_progress` is told of the bytes of those positions."""
    wanted = sum(plan.jobs[position].nbytes for position in positions)
    nbytes = wanted - plan.nbytes

    def tell(more: int) -> None:
        nonlocal nbytes
        nbytes += more
        on_progress(max(nbytes, 0), wanted)

    left = set(positions) - finished.tensors.keys()
    done = set(plan.positions) - left
    try:
        if engine is not None:
            tell(plan.nbytes - sum(plan.jobs[position].nbytes for position in left))
            for rows in engine.run(plan, left, device, tell):
                finished.add_rows(rows)
                if finished.is_save_due:
                    finished.save()
            return
        for tensor in run(plan, device=device, threads=threads, done=done, on_bytes=tell):
            finished.add(tensor)
            if finished.is_save_due:
                finished.save()
    except KeyboardInterrupt:
        finished.save()
        raise
    except KinbaseError:
        if engine is not None:  # a machine that could not do its part takes nothing from what others did
            finished.save()
        raise


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
