"""What a pass has finished, tensor by tensor, and the rows in which that is kept until all of it is stored.

A row is a position and bytes: of one tensor its sums, at its position; of many tensors together the sum of their
sketches and which tensors they are, at SKETCHES. A tensor counts as finished when such a sum covers it, so that rows
that were kept only in part count for nothing.
"""

import io
import json
import time
import zipfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from kinbase.checkpoint import FLOAT_DTYPES
from kinbase.errors import KinbaseError
from kinbase.kinship.layout import BUCKETS
from kinbase.kinship.stream import Plan
from kinbase.kinship.sums import STATISTICS, FamilySums, FloatArray, Products, TensorSums, Weights
from kinbase.store import Store
from kinbase.store import kinship as sums

Row = tuple[int, bytes]
"""A position and what is kept there."""

SKETCHES = -1
"""The position of sums of sketches; rows of it come before the others."""

ALGORITHM = "5"
"""Changes when the pass would give other sums, or keep them otherwise: kept ones of an older version are not used."""

KEEP_EVERY = 30.0
"""Seconds between two savings of finished tensors: what a killed import loses at most."""

SAVING_SHARE = 0.1
"""Of the time of a pass that saving may take: the products of thousands of members are large."""

SAVED_AT_ONCE = 64 << 20
"""Bytes of finished tensors in one transaction: readers wait for it."""

NONE = np.empty((0, 0))


class Kept(Protocol):
    """Where a pass keeps what it has finished: the database, or the file of a part."""

    folder: Path
    """Where there is room for what does not fit into memory."""

    where: str
    """What the last row came from, for a message that it is damaged."""

    def rows(self) -> Iterator[Row]:
        """What was kept before."""

    def save(self, finished: "Finished") -> None:
        """Keep what is finished and was not kept yet."""


class InStore:
    """Finished tensors in the database, under the key of their pass."""

    def __init__(self, store: Store, key: str, *, is_begun: bool = True) -> None:
        self._store, self._key, self._is_begun = store, key, is_begun
        self.folder = store.path.absolute().parent
        self.where = str(store.path)

    def rows(self) -> Iterator[Row]:
        """What was kept under the key; nothing is asked where nothing was begun."""
        if self._is_begun and self._store.path.exists():
            with self._store.reading() as con:
                yield from sums.kept(con, self._key)

    def save(self, finished: "Finished") -> None:
        """Append, a second of writing at a time."""
        held: list[Row] = []
        for row in finished.new_rows():
            held.append(row)
            if sum(len(data) for _, data in held) >= SAVED_AT_ONCE:
                self._append(held)
                held = []
        self._append(held)

    def _append(self, rows: Sequence[Row]) -> None:
        if rows:
            with self._store.writing() as con:
                sums.keep(con, self._key, rows)


class Finished:
    """What a pass has finished; what it did since the last saving is yet to be saved.

    The products of all members are kept apart from the rest of the sums, which is small (`sums.Products`).
    """

    def __init__(self, plan: Plan, kept: Kept) -> None:
        self.tensors: dict[int, TensorSums] = {}
        self._plan, self._kept = plan, kept
        self._floats = sum(tensor.dtype in FLOAT_DTYPES for tensor in plan.base.tensors)
        self._dots = Products(self._floats, plan.new, len(plan.members), kept.folder)
        # Sums of any sketches in any order have the same bits.
        self._sketches = np.zeros((len(plan.hashed), BUCKETS))
        self._unsaved: list[int] = []
        self._unsaved_sketches = np.zeros_like(self._sketches)
        self._saved_at, self._saving_took = time.monotonic(), 0.0
        self._take(kept.rows(), self._sketches)

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

    def add_rows(self, rows: Sequence[Row]) -> None:
        """Take in what another process finished, its sketches first; raises KinbaseError for rows of something else."""
        self._unsaved += self._take(rows, self._unsaved_sketches)

    def _take(self, rows: Iterable[Row], sketches: FloatArray) -> set[int]:
        """Put rows in their places and add their sketches to `sketches`; the positions they are of."""
        covered: set[int] = set()
        try:
            for position, data in rows:
                if position == SKETCHES:
                    positions, more = _unpacked_sketches(data, sketches.shape)
                    if covered.issuperset(positions):
                        continue  # a saving that was interrupted, and done once more
                    if not covered.isdisjoint(positions):
                        raise ValueError("sketches of one tensor twice")
                    covered.update(positions)
                    sketches += more
                elif position in covered:
                    self._put(_unpacked(data, position, self._plan, self._floats))
            if not covered <= self.tensors.keys():
                raise ValueError("sketches without their sums")
        except (ValueError, KeyError, TypeError, IndexError, zipfile.BadZipFile, RecursionError):
            raise KinbaseError(
                f"{self._kept.where} holds sums that do not fit the tensors they are of: it is damaged"
            ) from None
        return covered

    @property
    def is_save_due(self) -> bool:
        """Whether to save now: every half minute, and so that little of the time goes into saving."""
        return time.monotonic() - self._saved_at > max(KEEP_EVERY, self._saving_took / SAVING_SHARE)

    def save(self) -> None:
        """Save what is not saved yet."""
        began = time.monotonic()
        if self._unsaved:
            self._kept.save(self)
        self._settle()
        self._saved_at = time.monotonic()
        self._saving_took = self._saved_at - began

    def _settle(self) -> None:
        self._sketches += self._unsaved_sketches
        self._unsaved_sketches[:] = 0
        self._unsaved = []

    def new_rows(self) -> Iterator[Row]:
        """What is not saved yet; the sketches, without which it counts for nothing, come last."""
        yield from self._rows(self._unsaved)
        yield SKETCHES, _packed_sketches(self._unsaved, self._unsaved_sketches)

    def all_rows(self) -> Iterator[Row]:
        """All that is finished, the sketches first."""
        positions = sorted(self.tensors)
        yield SKETCHES, _packed_sketches(positions, self._sketches + self._unsaved_sketches)
        yield from self._rows(positions)

    def _rows(self, positions: Iterable[int]) -> Iterator[Row]:
        for position in positions:
            dot = self._dots.tensor(position) if position < self._floats else NONE
            yield position, _packed(replace(self.tensors[position], dot=dot))

    def close(self) -> None:
        """Let go of the products, where `sums` hands them to nobody."""
        self._dots.close()

    def sums(self, key: str) -> FamilySums:
        """The sums of the family, when every tensor is finished."""
        plan = self._plan
        self._settle()
        floats = [self.tensors[position] for position in range(self._floats)]
        return FamilySums(
            base=plan.base,
            members=plan.members,
            new=plan.new,
            key=key,
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
            weights=_weights(plan, [self.tensors[position] for position in sorted(self.tensors)]),
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


# Rows.


def _packed(tensor: TensorSums) -> bytes:
    arrays = {name: getattr(tensor, name) for name in (*STATISTICS, "dot", "exceptions", "weights")}
    words = json.dumps([tensor.name, tensor.digests]).encode()
    return _saved(words=np.frombuffer(words, np.uint8), **arrays)


def _packed_sketches(positions: Sequence[int], sketches: FloatArray) -> bytes:
    return _saved(positions=np.array(positions, np.int64), sketches=sketches)


def _saved(**arrays: NDArray[Any]) -> bytes:
    buffer = io.BytesIO()
    np.savez(buffer, allow_pickle=False, **arrays)
    return buffer.getvalue()


def _unpacked(data: bytes, position: int, plan: Plan, floats: int) -> TensorSums:
    """The sums of the tensor at `position`; raises ValueError and others for what are none."""
    members, hashed = len(plan.members), len(plan.hashed)
    arrays = _loaded(data)
    name, digests = json.loads(arrays["words"].tobytes())
    shapes = {**dict.fromkeys(STATISTICS, (members,)), "weights": (hashed, 3)}
    shapes["dot"] = (plan.new, members) if position < floats else (0, 0)
    shapes["exceptions"] = (len(arrays["exceptions"]), 7)
    values = {key: arrays[key] for key in shapes}
    are_ours = all(values[key].shape == shape for key, shape in shapes.items())
    are_ours = are_ours and all(array.dtype == np.float64 for array in values.values())
    are_ours = are_ours and name == plan.jobs[position].name and len(digests) == hashed
    if not are_ours or not all(isinstance(digest, str) for digest in digests):
        raise ValueError(f"no sums of {name}")
    return TensorSums(position=position, name=name, digests=tuple(digests), sketches=(), **values)


def _unpacked_sketches(data: bytes, shape: tuple[int, ...]) -> tuple[list[int], FloatArray]:
    arrays = _loaded(data)
    if arrays["sketches"].shape != shape or arrays["sketches"].dtype != np.float64:
        raise ValueError("no sketches")
    return arrays["positions"].tolist(), arrays["sketches"]


def _loaded(data: bytes) -> dict[str, NDArray[Any]]:
    """The arrays of a row: as they lie, so that they take no more memory than the row."""
    with zipfile.ZipFile(io.BytesIO(data)) as listing:
        if any(i.compress_type != zipfile.ZIP_STORED or i.file_size > len(data) for i in listing.infolist()):
            raise ValueError("a row that unpacks to more than it holds")
    with np.load(io.BytesIO(data), allow_pickle=False) as arrays:
        return {name: arrays[name] for name in arrays.files}
