"""A model's family on its site, generation by generation: children as the site lists them, parents as cards claim them.

What is met is stored as metadata, a batch in one transaction, so that a walk that is broken off goes on: a version
that is stored already costs no more than the listing it was met in. Generations are walked breadth-first to a depth,
and to a number of models, so that no family is too large; what was left out is said.
"""

import threading
import time
from collections import Counter, deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor

from kinbase.checkpoint import Checkpoint, Commit, Edge, Relative, Tensor
from kinbase.checkpoint.open import Known, Source, Tell, elsewhere, read
from kinbase.errors import KinbaseError, UsageError
from kinbase.ingest.pipeline import import_metadata
from kinbase.ingest.remote import AT_ONCE, result, stored_versions, until
from kinbase.ingest.stored import Report
from kinbase.store import Store
from kinbase.store import names as naming

BATCH = 256
"""Models that are stored in one transaction: to open and close the database costs as much as to store sixty of them."""

PATIENCE = 5.0
"""Seconds after which what was read is stored, however few they are: what a walk that is broken off can lose."""


def import_family(
    store: Store,
    sources: Sequence[str],
    *,
    children: bool = False,
    parents: bool = False,
    depth: int = 1,
    limit: int = 1000,
    relations: Sequence[str] = (),
    report: Report = lambda done, total: None,
    tell: Tell = lambda what, done, total: None,
) -> list[Source]:
    """Import the metadata of sources elsewhere, and of their relatives up to `depth` generations away.

    At most `limit` relatives, of `relations` if any are named (finetune, adapter, merge, quantized). Returns what
    became of each, without what was read. Raises UsageError for sources that have no relatives to follow.
    """
    if depth < 0 or limit < 0:
        raise UsageError("--depth and --limit count generations and models: they cannot be negative")
    _refuse_homeless(sources, children or parents, relations)
    done: list[Source] = []
    frontier = list(dict.fromkeys(sources))
    walk = _Walk(store, len(frontier) + limit, relations, tell)
    walk.seen.update(frontier)
    for generation in range(depth + 1 if children or parents else 1):
        following: list[str] = []
        for found in walk.read(frontier):
            done += found
            report(len(done), max(len(done), len(walk.seen)))
            if generation < depth:
                if children:
                    following += walk.children(found)
                if parents:
                    following += walk.parents(found)
            for source in found:
                source.checkpoint, source.records = None, []
        frontier = following
        if not frontier:
            break
    if walk.cut and done:
        done[0].notes.append(f"there are more relatives than --limit {limit}: the nearest were read")
    return done


def _refuse_homeless(sources: Sequence[str], follow: bool, relations: Sequence[str]) -> None:
    for source in sources:
        importer = elsewhere(source)
        if importer is None or (follow and not hasattr(importer, "relatives")):
            raise UsageError(
                f"{source} has no relatives to follow: --children and --parents go with hf:ORG/NAME"
            )
        known = getattr(importer, "RELATIONS", ())
        unknown = [relation for relation in relations if relation not in known]
        if unknown:
            raise UsageError(f"there is no relation {unknown[0]!r} to follow: choose of {', '.join(known)}")


class _Walk:
    """What was met so far, and how to read on."""

    def __init__(self, store: Store, most: int, relations: Sequence[str], tell: Tell) -> None:
        self.store, self.most, self.relations = store, most, relations
        self.stopped = threading.Event()
        self.tell = until(self.stopped, tell)
        self.seen: set[str] = set()
        self.listed: dict[str, Relative] = {}
        self.known: Known = lambda commit: (commit.model, False)
        self.cut = False

    def read(self, sources: Sequence[str]) -> Iterator[list[Source]]:
        """Read and store a generation, batch by batch; while one is stored the next ones are read.

        A version that is stored is not asked for again where a listing told it.
        """
        self.known = stored_versions(self.store, "metadata")
        rest = iter(sources)
        window: deque[Future[Source]] = deque()
        with ThreadPoolExecutor(AT_ONCE, thread_name_prefix="kinbase-ask") as pool:
            try:
                while True:
                    while len(window) < BATCH + 4 * AT_ONCE and (source := next(rest, None)):
                        window.append(pool.submit(self._one, source))
                    if not window:
                        return
                    found = [result(window.popleft())]
                    until = time.monotonic() + PATIENCE
                    while window and len(found) < BATCH and time.monotonic() < until:
                        found.append(result(window.popleft()))
                    import_metadata(self.store, found)
                    yield found
            except BaseException:
                self.stopped.set()
                pool.shutdown(wait=False, cancel_futures=True)
                raise

    def _one(self, source: str) -> Source:
        listed = self._listed(source)
        found = listed or read(source, depth="metadata", known=self.known, tell=self.tell)
        if found.checkpoint:
            _outline(found.checkpoint)
        return found

    def _listed(self, source: str) -> Source | None:
        relative = self.listed.get(source)
        if relative is None:
            return None
        name, unchanged = self.known(Commit(relative.model, relative.commit))
        return Source(source, name, status="unchanged") if unchanged else None

    def children(self, found: Sequence[Source]) -> list[str]:
        """What the site lists as made from these, so far as it was not met and there is room."""
        childless = {s for s, relative in self.listed.items() if not relative.has_children}
        asked = [s for s in found if s.status != "failed" and s.source not in childless]
        self.tell(f"listing the children of {len(asked)} models", 0, 0)
        new: list[str] = []
        with ThreadPoolExecutor(AT_ONCE, thread_name_prefix="kinbase-list") as pool:
            try:
                for source, listing in [(s, pool.submit(self._relatives, s)) for s in asked]:
                    listed = result(listing)
                    if isinstance(listed, KinbaseError):
                        source.notes.append(f"its children were not listed: {listed}")
                        continue
                    for relative in listed:
                        if self._meet(relative.source):
                            self.listed[relative.source] = relative
                            new.append(relative.source)
            except BaseException:
                self.stopped.set()
                pool.shutdown(cancel_futures=True)
                raise
        return new

    def _relatives(self, source: Source) -> list[Relative] | KinbaseError:
        importer = elsewhere(source.source)
        assert importer
        # As many as there could ever be room for, were all that was met among them, and one that tells of more.
        most = self.most + 1
        found: list[Relative] = []
        try:
            for relation in self.relations or (None,):
                found += importer.relatives(source.source, relation, most, self.tell)
        except KinbaseError as error:
            return error
        return found

    def parents(self, found: Sequence[Source]) -> list[str]:
        """What these claim as parents, so far as the site could have it, it was not met, and there is room."""
        new = []
        known = [s for s in found if s.status == "unchanged" and not s.records]
        stored: dict[str, list[tuple[str, str]]] = {}
        if known:
            with self.store.reading() as con:
                stored = {str(s.name): naming.parents(con, str(s.name)) for s in known}
        for source in found:
            importer = elsewhere(source.source)
            claims = [(e.parent, e.relation) for _, e in source.said(Edge) if e.child in (None, source.name)]
            for parent, relation in claims + stored.get(str(source.name), []):
                address = importer.source_of(parent) if importer else None
                wanted = not self.relations or relation in self.relations
                if address and wanted and self._meet(address):
                    new.append(address)
        return new

    def _meet(self, source: str) -> bool:
        """Whether a source is new and there is room for it."""
        if source in self.seen:
            return False
        if len(self.seen) >= self.most:
            self.cut = True
            return False
        self.seen.add(source)
        return True


def _outline(weights: Checkpoint) -> None:
    """Leave one tensor a dtype, as large as all of them together: what metadata keep, in little memory."""
    sizes = Counter[str]()
    for tensor in weights.tensors:
        sizes[tensor.dtype] += tensor.numel
    weights.close()
    weights.tensors = [Tensor(dtype, dtype, (numel,), _unread) for dtype, numel in sizes.items()]
    weights.skipped, weights.close = {}, lambda: None


def _unread(start: int, out: memoryview) -> None:
    raise AssertionError("an outline has no bytes")
