"""The parts of a pass: which tensors each has, the file that holds its sums, and the files of all parts together.

A part knows no database. Its file says in its head which family it is of: the tensors and files of every model, and
which of the tensors it has. Files are the same by name, size and time of change, so that machines that see the same
storage agree; one that was changed or written anew between two parts is told by its time.
"""

import heapq
import json
from collections.abc import Collection, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from hashlib import blake2b
from itertools import pairwise
from pathlib import Path
from typing import Any

from kinbase.checkpoint import Checkpoint
from kinbase.checkpoint.files import shown
from kinbase.errors import CheckpointError, KinbaseError
from kinbase.ingest.finished import ALGORITHM, Finished, Row
from kinbase.kinship.plan import Plan
from kinbase.kinship.sketch import SCHEME
from kinbase.store import part_files as files

UNFINISHED = ".unfinished"
"""What follows the name of a part's file while it is not whole."""


@dataclass(frozen=True, slots=True)
class Model:
    """A model as the parts have to agree on it: its place, tensors (a digest of their names, dtypes and shapes), files.

    `files` are name, size in bytes and time of change in ns of each.
    """

    name: str
    source: str
    tensors: str
    files: tuple[tuple[str, int, int], ...]
    delta_of: str | None = None

    @classmethod
    def of(cls, checkpoint: Checkpoint) -> "Model":
        """An opened checkpoint's."""
        listed: list[list[object]] = [[t.name, t.form, t.dtype, t.shape] for t in checkpoint.tensors]
        listed += [[b.name, b.dtype, b.shape, b.nbytes] for b in checkpoint.blobs]
        digest = blake2b(json.dumps(sorted(listed, key=repr)).encode(), digest_size=16).hexdigest()
        stamps = [
            (f.path if f.elsewhere else Path(f.path).name, f.size, f.mtime_ns) for f in checkpoint.files
        ]
        return cls(checkpoint.name, checkpoint.source, digest, tuple(sorted(stamps)), checkpoint.delta_of)

    def difference(self, other: "Model") -> str | None:
        """What tells two models apart, whatever they are called; None: nothing does."""
        if self.files != other.files:
            ours, theirs = ({name: stamp for name, *stamp in m.files} for m in (self, other))
            changed = next((n for n in [*ours, *theirs] if ours.get(n) != theirs.get(n)), "a file")
            return f"{shown(changed)} of {self.name} was changed, or is a copy with another time"
        if (self.tensors, self.delta_of) != (other.tensors, other.delta_of):
            return f"{self.name} has other tensors"
        return None


@dataclass(frozen=True, slots=True)
class Head:
    """What a part is: number `part` of `parts` of the pass over `models`, the base first.

    `sources` are what the models were opened from, `positions` the tensors of the plan that are in it.
    """

    part: int
    parts: int
    sources: tuple[str, ...]
    base: str
    is_streamed: bool
    models: tuple[Model, ...]
    positions: tuple[int, ...]
    device: str = "cpu"
    processor: str = ""
    scheme: str = field(default=f"{ALGORITHM} {SCHEME}")

    def difference(self, other: "Head") -> str | None:
        """Why two heads are not of parts of one pass; None: they are."""
        if self.scheme != other.scheme:
            return "another version of Kinbase measured it"
        if self.parts != other.parts:
            return f"it is one of {other.parts} parts, not of {self.parts}"
        for i, (ours, theirs) in enumerate(zip(self.models, other.models, strict=False)):
            if ours.name != theirs.name:
                what = "base is another one" if i == 0 else "members are others"
                return f"its {what} ({theirs.name}, not {ours.name})"
            if told := ours.difference(theirs):
                return told
        if len(self.models) != len(other.models):
            return f"it is of {len(other.models) - 1} members, not of {len(self.models) - 1}"
        return None

    def dumps(self) -> str:
        """As a text of JSON."""
        return json.dumps(asdict(self))

    @classmethod
    def loads(cls, text: str) -> "Head":
        """Of a text; raises ValueError and others for what is none."""
        values: dict[str, Any] = json.loads(text)
        models = [
            Model(
                str(m["name"]), str(m["source"]), str(m["tensors"]),
                tuple((str(name), int(size), int(time)) for name, size, time in m["files"]),
                None if m["delta_of"] is None else str(m["delta_of"]),
            )
            for m in values["models"]
        ]  # fmt: skip
        head = cls(
            int(values["part"]), int(values["parts"]), tuple(map(str, values["sources"])), str(values["base"]),
            bool(values["is_streamed"]), tuple(models), tuple(map(int, values["positions"])),
            str(values["device"]), str(values["processor"]), str(values["scheme"]),
        )  # fmt: skip
        if not 1 <= head.part <= head.parts or not models:
            raise ValueError("no part")
        return head


def split(plan: Plan, parts: int, positions: Collection[int] | None = None) -> list[list[int]]:
    """The positions of each part: of all tensors, or those at `positions`, the largest first, each goes to the part with
    the fewest bytes."""
    loads = [(0, part) for part in range(parts)]
    chosen: list[list[int]] = [[] for _ in range(parts)]
    wanted = plan.positions if positions is None else positions
    for job in sorted((plan.jobs[i] for i in wanted), key=lambda job: (-job.nbytes, job.position)):
        nbytes, part = loads[0]
        chosen[part].append(job.position)
        heapq.heapreplace(loads, (nbytes + job.nbytes, part))
    return [sorted(positions) for positions in chosen]


def read_head(path: Path) -> Head:
    """What the part in a file is; raises CheckpointError for a file that is damaged."""
    try:
        return Head.loads(files.text(path))
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        raise CheckpointError(
            f"{shown(str(path))} does not say what it is a part of: it is damaged, or of another version of Kinbase"
        ) from None


class PartFile:
    """One part on its way: what is finished of it lies beside its place until it is whole."""

    def __init__(self, path: Path, head: Head) -> None:
        self.path, self.head = path, head
        self.folder = path.absolute().parent
        self.unfinished = path.with_name(path.name + UNFINISHED)
        self.where = str(self.unfinished)

    def rows(self) -> Iterator[Row]:
        """What an earlier process finished of the same part."""
        if self.unfinished.exists() and self._is_ours():
            yield from files.rows(self.unfinished)

    def _is_ours(self) -> bool:
        try:
            known = read_head(self.unfinished)
        except CheckpointError:
            return False
        return self.head.difference(known) is None and known.positions == self.head.positions

    def save(self, finished: Finished) -> None:
        """Write all that is finished anew."""
        files.write(self.unfinished, self.head.dumps(), finished.all_rows)

    def finish(self, finished: Finished) -> None:
        """Put the whole part in its place."""
        self.save(finished)
        self.unfinished.replace(self.path)


class PartFiles:
    """The files of all parts of one pass, in the order of the parts: what `family_pass.measure` takes for finished."""

    def __init__(self, paths: Sequence[Path], folder: Path) -> None:
        """Raises KinbaseError where they are not all the parts of one pass, each once; `folder` is where there is room."""
        self.folder, self.where = folder, ""
        heads = sorted(((read_head(path), path) for path in paths), key=lambda part: part[0].part)
        self.head, first = heads[0]
        self.paths = [path for _, path in heads]
        self.heads = [head for head, _ in heads]
        for head, path in heads[1:]:
            if told := self.head.difference(head):
                raise KinbaseError(
                    f"{shown(str(path))} is no part of the same pass as {shown(str(first))}: {told}"
                )
        for (head, path), (after, other) in pairwise(heads):
            if head.part == after.part:
                raise KinbaseError(
                    f"{shown(str(path))} and {shown(str(other))} are both part {head.part} of {head.parts}: leave one out"
                )
        given = {head.part for head in self.heads}
        if lacking := [part for part in range(1, min(self.head.parts, 100_000) + 1) if part not in given]:
            some = ", ".join(map(str, lacking[:8])) + ", ..." * (len(lacking) > 8)
            parts = f"part {some} is" if len(lacking) == 1 else f"parts {some} are"
            raise KinbaseError(
                f"{parts} missing of {self.head.parts}: measure with `--part {lacking[0]}/{self.head.parts}`"
            )

    def check(self, plan: Plan) -> None:
        """Raise KinbaseError where the models opened here are not those that were measured, or tensors are left out."""
        here = [Model.of(checkpoint) for checkpoint in (plan.base, *plan.members)]
        if len(here) != len(self.head.models):
            raise KinbaseError(
                f"the parts are of {len(self.head.models) - 1} members, and {len(here) - 1} are here: measure them anew"
            )
        for measured, model in zip(self.head.models, here, strict=True):
            if told := measured.difference(model):
                raise KinbaseError(
                    f"the parts are not of the models that are here: {told}; measure them anew"
                )
        positions = sorted(position for head in self.heads for position in head.positions)
        if positions != list(plan.positions):
            raise KinbaseError(
                "the parts do not have each tensor once: measure them anew with one version of Kinbase"
            )

    def rows(self) -> Iterator[Row]:
        """The rows of all parts."""
        for path in self.paths:
            self.where = shown(str(path))
            yield from files.rows(path)

    def save(self, finished: Finished) -> None:
        """Nothing: what is finished lies in the files already."""

    @property
    def doubt(self) -> str | None:
        """A line where the last bits of the sums may be others than those of one machine."""
        kinds = sorted({f"{head.device} of {head.processor}" for head in self.heads})
        if len(kinds) < 2:
            return None
        return f"the parts were measured on {' and '.join(kinds)}: their sums differ in the last bits"
