"""The steps that a source takes on its way in, each a value that nothing changes any more.

Opened               what lies there, by the importer that recognised it     (kinbase.checkpoint.open)
Placed               its base, and what is still to be done with it          (kinbase.ingest.bases)
Measured | Sampled   all sources of the import, with the sums of its passes  (kinbase.ingest.measure, .sample)
Outcome              what became of it, as it is stored                      (kinbase.ingest.persist)
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from enum import Enum
from typing import TYPE_CHECKING

from kinbase.checkpoint.open import Opened, Tell
from kinbase.errors import UsageError

if TYPE_CHECKING:  # the pass costs half a second of imports, which records alone need not pay
    from kinbase.ingest.engine import Engine
    from kinbase.ingest.part_files import PartFiles
    from kinbase.kinship.sampling import Sample
    from kinbase.kinship.sums import FamilySums

OnProgress = Callable[[int, int], None]
"""Told how much of how much is done."""


@dataclass(frozen=True, slots=True)
class ImportOptions:
    """What an import is to do, and who hears of it. Raises UsageError for options that contradict each other.

    `base` is a model or a source; `name` renames the only source. Kinship is estimated from the share `sample` of
    the bytes, until its error is below `stderr`, in place of being measured; weights elsewhere are read and not kept
    if `is_streamed`. With `is_sketched` the sources are read and nothing else: they meet all others by sketches. With
    `parts` their family was measured before: no weights are read. An `engine` reads families in place of this process.
    `on_progress` is told bytes, `log` what else is going on.
    """

    base: str | None = None
    name: str | None = None
    device: str = "auto"
    is_metadata_only: bool = False
    has_kinship: bool = True
    sample: float | None = None
    stderr: float | None = None
    is_streamed: bool = False
    is_sketched: bool = False
    parts: "PartFiles | None" = None
    engine: "Engine | None" = None
    on_progress: OnProgress = lambda done, total: None
    log: Tell = lambda what, done, total: None

    def __post_init__(self) -> None:
        if self.is_sketched and (self.is_metadata_only or self.sample is not None or not self.has_kinship):
            raise UsageError("--sketch reads the weights once, for kinship: it goes with no other depth")
        if self.is_metadata_only + self.is_streamed + (self.sample is not None) > 1:
            raise UsageError("--metadata-only, --sample and --stream are different depths: choose one")
        is_measured = self.is_compared and self.depth in ("whole", "stream")
        if self.engine is not None and not is_measured:
            raise UsageError("--engine measures all weights of a family: it goes with no other depth")
        if self.sample is not None and not 0 < self.sample < 1:
            raise UsageError(f"--sample takes a share of the bytes between 0 and 1, not {self.sample:g}")
        if self.stderr is not None and (self.sample is None or self.stderr <= 0):
            raise UsageError("--stderr is the error at which --sample stops early: give both, above zero")

    @property
    def depth(self) -> str:
        """How deep what lies elsewhere is read: metadata, sample, stream or whole."""
        if self.is_metadata_only:
            return "metadata"
        if self.sample is not None:
            return "sample"
        return "stream" if self.is_streamed else "whole"

    @property
    def is_compared(self) -> bool:
        """Whether members of a family are compared by their weights, all or a sample of them."""
        return self.sample is not None or (self.has_kinship and not self.is_sketched)


class Todo(Enum):
    """What is still to be done with a placed source."""

    MEASURE = "measure its weights against its base and the others of the family"
    READ = "read its weights by themselves, for their identity and their sketch"
    REREAD = "read its weights again, for the sketch that is not stored with them"
    STORE = "store what it says; its weights are not read"
    KEEP = "store what it says beside weights that are stored already"
    NOTHING = "nothing: it is what is stored"
    FAIL = "nothing: the last of its notes says why"


@dataclass(frozen=True, slots=True)
class Placed:
    """A source with its place: the base of its family, as far as one is known, and what is to be done.

    `notes` are all lines for the person so far.
    """

    opened: Opened
    todo: Todo
    base: str | None = None
    notes: tuple[str, ...] = ()

    @property
    def name(self) -> str | None:
        """The name of the model that the source is, or speaks of."""
        return self.opened.name

    @property
    def is_to_read(self) -> bool:
        """Whether its weights are still to be read."""
        return self.todo in (Todo.MEASURE, Todo.READ, Todo.REREAD)

    def noted(self, *lines: str) -> "Placed":
        """The source with more to say of it."""
        return replace(self, notes=(*self.notes, *lines))

    def without_reading(self) -> "Placed":
        """The source with its weights left unread."""
        return replace(self, todo=Todo.STORE) if self.is_to_read else self

    def failed(self, reason: object) -> "Placed":
        """The source taken out, for a reason."""
        return replace(self.noted(str(reason)), todo=Todo.FAIL)


@dataclass(frozen=True, slots=True)
class Measured:
    """The sources of an import when every pass is over, and what the passes found.

    `known` are the models that were stored when the sources were placed: others came in at the same time.
    """

    sources: tuple[Placed, ...]
    families: "tuple[FamilySums, ...]" = ()
    known: frozenset[int] = frozenset()

    @property
    def digests(self) -> dict[str, str]:
        """The content digest of each checkpoint that was read, by name."""
        return {name: digest for family in self.families for name, digest in family.digests.items()}


@dataclass(frozen=True, slots=True)
class FamilySample:
    """What a sample of one family found; `members` are names in the order of its estimates, the first `new` new."""

    base: str
    members: tuple[str, ...]
    new: int
    sample: "Sample"


@dataclass(frozen=True, slots=True)
class Sampled:
    """The sources of an import when every family is sampled, and the samples."""

    sources: tuple[Placed, ...]
    families: tuple[FamilySample, ...]
    known: frozenset[int] = frozenset()

    @property
    def digests(self) -> dict[str, str]:
        """None: a sample tells no identity."""
        return {}


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of a source: imported, unchanged, alias, copy, records, metadata, sampled, refused or failed.

    A copy is another name of weights that are stored, with a card of its own.
    Of a refused one all is stored but its weights, and a note says why. The last note of a failed one says why.
    """

    source: str
    name: str | None
    status: str
    base: str | None = None
    notes: tuple[str, ...] = ()
    same_as: str | None = None  # of a copy: the model whose weights it has

    @property
    def is_failed(self) -> bool:
        """Whether nothing of it is stored."""
        return self.status == "failed"

    def noted(self, *lines: str) -> "Outcome":
        """The outcome with more to say of it."""
        return replace(self, notes=(*self.notes, *lines))


@dataclass(frozen=True, slots=True)
class Row:
    """A source with what became of it, and the id of its model's row, if it has one."""

    placed: Placed
    outcome: Outcome
    model_id: int | None = None

    @property
    def is_told(self) -> bool:
        """Whether anything that it says is to be stored."""
        return not self.outcome.is_failed and self.placed.todo is not Todo.NOTHING

    def noted(self, *lines: str) -> "Row":
        """The row with more to say of its source."""
        return replace(self, outcome=self.outcome.noted(*lines))
