"""The contract between an importer and kinbase: the records an importer yields.

An importer is a module with two functions::

    recognises(source: str) -> bool          # cheap: looks at names and first bytes, raises nothing
    open(source: str) -> Iterator[Record]    # raises CheckpointError; yields, never stores

An importer of what lies elsewhere (its module has DEPTHS) is told how deep to read, and tells what it does::

    open(source, depth, tell)                # depth: one of DEPTHS; tell(what, done, total)
    relatives(source, relation, limit, tell) # optional: Iterator[Relative], models made from this one
    source_of(label) -> str | None           # optional: the source that a parent's name means there
    public(source) -> str                    # optional: the source without what nobody else may see

It is found by the entry point group ``kinbase.importers`` and knows no database. Every record
names a model by the label the source uses for it; ``None`` means "the model this file lies
beside" and is filled in by the loader.
"""

import os
import re
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # what has no table to read does without polars
    import polars as pl

UNSAID = ""
"""The parent of an edge, or `Checkpoint.delta_of`, where a file says that there is one but not which: --base tells."""

DTYPE_BYTES = {
    "F64": 8,
    "F32": 4,
    "F16": 2,
    "BF16": 2,
    "F8_E4M3": 1,
    "F8_E5M2": 1,
    "F8_E8M0": 1,
    "F8_E4M3FNUZ": 1,
    "F8_E5M2FNUZ": 1,
    "I64": 8,
    "U64": 8,
    "I32": 4,
    "U32": 4,
    "I16": 2,
    "U16": 2,
    "I8": 1,
    "U8": 1,
    "BOOL": 1,
}
"""Bytes per element of each safetensors dtype code that is read."""

FLOAT_DTYPES = ("F64", "F32", "F16", "BF16", "F8_E4M3", "F8_E5M2")
"""The dtypes that hold weights. The others are buffers, codes and scales, which have no delta."""


ADDRESS = re.compile(r"[a-z][a-z0-9+.-]+:")
"""How the address of something elsewhere begins; a path does not (nor does a drive, which is one letter)."""


@dataclass(frozen=True, slots=True)
class Extent:
    """Where a tensor's bytes lie in a local file: what a reader needs that does not go through `Tensor.read`.

    `borrow()` is a context that gives an open descriptor; it raises CheckpointError when the file is not as it was.
    """

    borrow: Callable[[], AbstractContextManager[int]]
    offset: int


@dataclass(frozen=True, slots=True)
class Grid:
    """The values that quantising left to a tensor: `name` is the format's (NF4, Q4_K).

    `steps()` is the sum over the tensor's elements of the squared distance between the values of the grid about
    each, of which rounding to the grid costs a twelfth on the average; it may read the tensor, and raise
    CheckpointError.
    """

    name: str
    steps: Callable[[], float]


@dataclass(frozen=True, slots=True)
class Tensor:
    """One tensor of a checkpoint, read by position.

    `read(start, out)` fills the writable byte buffer `out` with the tensor's little-endian
    row-major bytes from byte `start` on; it is called from several threads at once, reads no more than it
    was asked for, and raises CheckpointError when the file is shorter than it said. `extent` is given by those
    whose bytes lie in a local file as they are, one after the other; it only makes reading faster. With a `grid` the
    values are dequantised as they are read, from what stands among its checkpoint's `blobs`. `factors` are those that
    an adapter's change is the product of.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    read: Callable[[int, memoryview], None]
    extent: Extent | None = None
    grid: Grid | None = None
    factors: "Factors | None" = None

    @property
    def numel(self) -> int:
        """Number of elements; 1 for a scalar."""
        product = 1
        for extent in self.shape:
            product *= extent
        return product

    @property
    def form(self) -> str:
        """What the values were rounded to when they were stored: the grid's name, or the dtype."""
        return self.grid.name if self.grid else self.dtype

    @property
    def nbytes(self) -> int:
        """Bytes the elements take as they are read."""
        return self.numel * DTYPE_BYTES[self.dtype]


@dataclass(frozen=True, slots=True, eq=False)
class Factors:
    """A low-rank change: scale * left @ right; `transposed` factors are stored the other way round.

    `left` is [m, r], or stored [r, m]; `right` is [r, n], or stored [n, r]; higher ranks are flattened to these.
    `is_rounded`: who merges it rounds the product to the weights' dtype before it is added, as PEFT does of embeddings.
    """

    left: Tensor
    right: Tensor
    rank: int
    scale: float
    transposed: bool = False
    is_rounded: bool = False


@dataclass(frozen=True, slots=True)
class Blob:
    """Bytes that are part of what a model is and that nothing is computed of: a tensor of a dtype that is not read.

    `read` is as in Tensor, for `nbytes` bytes; `dtype` and `shape` are as the file says.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    nbytes: int
    read: Callable[[int, memoryview], None]

    @classmethod
    def of(cls, tensor: Tensor) -> "Blob":
        """A tensor of a dtype that is read, which is to be part of the identity alone."""
        return cls(tensor.name, tensor.dtype, tensor.shape, tensor.nbytes, tensor.read)


@dataclass(frozen=True, slots=True)
class FileStamp:
    """What tells that a file was not touched since it was read: path, size in bytes, mtime in ns."""

    path: str
    size: int
    mtime_ns: int

    @property
    def elsewhere(self) -> bool:
        """Whether the file is not on this machine: `path` is an address, `mtime_ns` a digest of what identifies it."""
        return ADDRESS.match(self.path) is not None

    @property
    def as_it_was(self) -> bool:
        """Whether the file was not touched since; one elsewhere is as it was: each reading tells."""
        if self.elsewhere:
            return True
        try:
            return FileStamp.of(self.path) == self
        except OSError:
            return False

    @classmethod
    def of(cls, path: str | os.PathLike[str]) -> "FileStamp":
        """The stamp of the file at `path`; raises OSError when there is none."""
        real = Path(path).resolve()
        status = real.stat()
        return cls(str(real), status.st_size, status.st_mtime_ns)


@dataclass(slots=True)
class Checkpoint:
    """The weights of one model, opened but not read.

    `tensors` are whole weights, or, when `delta_of` names a model, the change an adapter makes
    to that model's tensors (tensors not listed are unchanged). `skipped` maps the name of each
    tensor that holds no weights of its own to the reason (tied, integer buffer, quantised). `blobs` are what else
    the model's identity covers: two models that differ there alone are two models. `metadata` is what its files
    say of themselves in text, `notes` are lines for the person on what was made of them. `heads` are the numbers of query
    and of key-value heads where the layout of some tensor depends on them. `placed` gives tensors the names that
    they meet a base's by, "" for none, where that was found out by their content.
    What is dequantised is hashed as the codes and scales among the blobs, and not by its values.
    `close` releases the files; `verify` raises CheckpointError when a file elsewhere is no longer what it was
    when it was opened, where reading it does not tell.
    """

    name: str
    source: str
    tensors: list[Tensor]
    files: list[FileStamp] = field(default_factory=list)
    delta_of: str | None = None
    skipped: dict[str, str] = field(default_factory=dict)
    blobs: list[Blob] = field(default_factory=list)
    metadata: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    heads: tuple[int, int] | None = None
    placed: dict[str, str] = field(default_factory=dict)
    close: Callable[[], None] = lambda: None
    verify: Callable[[], None] = lambda: None

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors as they are stored, read or not."""
        return sum(t.nbytes for t in self.tensors if t.grid is None) + sum(b.nbytes for b in self.blobs)


@dataclass(frozen=True, slots=True)
class Facts:
    """What a source says of one model. None: not said."""

    model: str | None = None
    architecture: str | None = None
    license: str | None = None
    revision: str | None = None
    relation: str | None = None
    parameters: int | None = None
    dtype: str | None = None
    created_at: datetime | None = None


@dataclass(frozen=True, slots=True)
class Alias:
    """Another name of a model: an old repo id, a redirect, a path, ``name@revision``."""

    alias: str
    model: str | None = None
    kind: str = "name"


@dataclass(frozen=True, slots=True)
class Edge:
    """A claim that `child` was made from `parent`.

    `relation` is finetune, merge, adapter, quantized or base (the model a merge's deltas are
    taken against); `evidence` is config, card, adapter, gguf, user, run, weights or reported;
    `weight` is the parent's coefficient where it is one number; `detail` keeps the rest as JSON
    values (gradient, density, t, revision). `alone` is the relation where the other parents of the same file turn out to be
    the child itself: what was inferred from several base models is then of one.
    """

    parent: str
    relation: str
    evidence: str
    child: str | None = None
    method: str | None = None
    weight: float | None = None
    detail: dict[str, object] = field(default_factory=dict)
    alone: str | None = None


@dataclass(frozen=True, slots=True)
class Score:
    """One benchmark result, in the unit its source uses (accuracies as fractions or percent).

    Results compare when benchmark, metric, `n_shot`, `split` (of a run with a limit also what was tested,
    ``test[:100]``) and `template` (chat template, system prompt, examples as turns) are the same.
    `higher_is_better` is None where the source does not say it.
    """

    benchmark: str
    metric: str
    value: float
    model: str | None = None
    stderr: float | None = None
    n_shot: int | None = None
    split: str | None = None
    source: str | None = None
    evaluated_at: datetime | None = None
    template: str | None = None
    higher_is_better: bool | None = None


@dataclass(frozen=True, slots=True)
class ReportedKinship:
    """Kinship somebody else measured: PCC and cosine in [-1, 1], Euclidean distance."""

    model_a: str
    model_b: str
    base: str | None = None
    pcc: float | None = None
    cs: float | None = None
    ed: float | None = None
    source: str | None = None


@dataclass(frozen=True, slots=True)
class Task:
    """What a benchmark is about, for means by category."""

    benchmark: str
    category: str


@dataclass(frozen=True, slots=True)
class Training:
    """A benchmark that a model was trained for."""

    benchmark: str
    model: str | None = None


@dataclass(frozen=True, slots=True)
class Commit:
    """The model and version that a source elsewhere is. It comes before anything else of it is read.

    A loader that has this version may stop there. `is_pinned`: this very version was asked for, and not the newest one.
    """

    model: str
    commit: str
    is_pinned: bool = False


@dataclass(frozen=True, slots=True)
class Relative:
    """A model made from another one, as a site lists it: where to open it, its name and version."""

    source: str
    model: str
    commit: str
    has_children: bool = True


@dataclass(frozen=True, slots=True)
class Problem:
    """Something in the source that could not be read, in one line; the rest was."""

    message: str


Row = Facts | Alias | Edge | Score | ReportedKinship | Task | Training
"""What a row of a table can say."""


@dataclass(frozen=True, slots=True, eq=False)
class Table:
    """Many records of one kind as columns, so that millions of them are no objects (`kinbase.checkpoint.tables`).

    The columns of `rows` are fields of `kind`, a row a record; one that is not there says nothing in any row. Texts are
    String or Categorical, times are UTC without a zone, `Edge.detail` is JSON; every row names its models.
    """

    kind: type[Row]
    rows: "pl.DataFrame"

    def __len__(self) -> int:
        return len(self.rows)


Record = Checkpoint | Commit | Row | Problem | Table
