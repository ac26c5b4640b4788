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
from dataclasses import replace

from kinbase.checkpoint import Checkpoint, Commit, Edge, Relative, Tensor
from kinbase.checkpoint.open import Known, Opened, Tell, as_called, elsewhere, read
from kinbase.errors import KinbaseError, UsageError
from kinbase.ingest.pipeline import import_metadata
from kinbase.ingest.remote import AT_ONCE, result, stored_versions, until
from kinbase.ingest.steps import OnProgress, Outcome
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
    on_progress: OnProgress = lambda done, total: None,
    log: Tell = lambda what, done, total: None,
) -> list[Outcome]:
    """Import the metadata of sources elsewhere, and of their relatives up to `depth` generations away.

    At most `limit` relatives, of `relations` if any are named (finetune, adapter, merge, quantized). Returns what
    became of each. Raises UsageError for sources that have no relatives to follow.
    """
    if depth < 0 or limit < 0:
        raise UsageError("--depth and --limit count generations and models: they cannot be negative")
    _refuse_homeless(sources, children or parents, relations)
    done: list[Outcome] = []
    frontier = list(dict.fromkeys(sources))
    walk = _Walk(store, len(frontier) + limit, relations, log)
    walk.seen.update(frontier)
    for generation in range(depth + 1 if children or parents else 1):
        following: list[str] = []
        for batch in walk.read(frontier):
            on_progress(len(done) + len(batch), max(len(done) + len(batch), len(walk.seen)))
            outcomes = [outcome for _, outcome in batch]
            if generation < depth and children:
                listed, outcomes = walk.children(outcomes)
                following += listed
            if generation < depth and parents:
                following += walk.parents(batch)
            done += outcomes
        frontier = following
        if not frontier:
            break
    if walk.is_cut and done:
        done[0] = done[0].noted(f"there are more relatives than --limit {limit}: the nearest were read")
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

    def __init__(self, store: Store, most: int, relations: Sequence[str], log: Tell) -> None:
        self.store, self.most, self.relations = store, most, relations
        self.stopped = threading.Event()
        self.log = until(self.stopped, log)
        self.seen: set[str] = set()
        self.listed: dict[str, Relative] = {}
        self.known: Known = as_called
        self.is_cut = False

    def read(self, sources: Sequence[str]) -> Iterator[list[tuple[Opened, Outcome]]]:
        """Read and store a generation, batch by batch; while one is stored the next ones are read.

        A version that is stored is not asked for again where a listing told it.
        """
        self.known = stored_versions(self.store, "metadata")
        rest = iter(sources)
        window: deque[Future[Opened]] = deque()
        with ThreadPoolExecutor(AT_ONCE, thread_name_prefix="kinbase-ask") as pool:
            try:
                while True:
                    while len(window) < BATCH + 4 * AT_ONCE and (source := next(rest, None)):
                        window.append(pool.submit(self._one, source))
                    if not window:
                        return
                    batch = [result(window.popleft())]
                    until = time.monotonic() + PATIENCE
                    while window and len(batch) < BATCH and time.monotonic() < until:
                        batch.append(result(window.popleft()))
                    yield list(zip(batch, import_metadata(self.store, batch), strict=True))
            except BaseException:
                self.stopped.set()
                pool.shutdown(wait=False, cancel_futures=True)
                raise

    def _one(self, source: str) -> Opened:
        opened = self._listed(source) or read(source, depth="metadata", known=self.known, tell=self.log)
        return replace(opened, checkpoint=_outline(opened.checkpoint)) if opened.checkpoint else opened

    def _listed(self, source: str) -> Opened | None:
        relative = self.listed.get(source)
        if relative is None:
            return None
        name, is_unchanged = self.known(Commit(relative.model, relative.commit))
        return Opened(source, name, is_unchanged=True) if is_unchanged else None

    def children(self, parents: Sequence[Outcome]) -> tuple[list[str], list[Outcome]]:
        """What the site lists as made from these, so far as it was not met and there is room; and a word if it does not."""
        childless = {s for s, relative in self.listed.items() if not relative.has_children}
        asked = [i for i, s in enumerate(parents) if not s.is_failed and s.source not in childless]
        self.log(f"listing the children of {len(asked)} models", 0, 0)
        new: list[str] = []
        told = list(parents)
        with ThreadPoolExecutor(AT_ONCE, thread_name_prefix="kinbase-list") as pool:
            try:
                for i, listing in [(i, pool.submit(self._relatives, parents[i].source)) for i in asked]:
                    listed = result(listing)
                    if isinstance(listed, KinbaseError):
                        told[i] = told[i].noted(f"its children were not listed: {listed}")
                        continue
                    for relative in listed:
                        if self._meet(relative.source):
                            self.listed[relative.source] = relative
                            new.append(relative.source)
            except BaseException:
                self.stopped.set()
                pool.shutdown(cancel_futures=True)
                raise
        return new, told

    def _relatives(self, source: str) -> list[Relative] | KinbaseError:
        importer = elsewhere(source)
        assert importer
        # As many as there could ever be room for, were all that was met among them, and one that tells of more.
        most = self.most + 1
        relatives: list[Relative] = []
        try:
            for relation in self.relations or (None,):
                relatives += importer.relatives(source, relation, most, self.log)
        except KinbaseError as error:
            return error
        return relatives

    def parents(self, children: Sequence[tuple[Opened, Outcome]]) -> list[str]:
        """What these claim as parents, so far as the site could have it, it was not met, and there is room."""
        new = []
        known = [str(s.name) for s, outcome in children if outcome.status == "unchanged" and not s.records]
        stored: dict[str, list[tuple[str, str]]] = {}
        if known:
            with self.store.reading() as con:
                stored = {name: naming.parents(con, name) for name in known}
        for source, _ in children:
            importer = elsewhere(source.source)
            claims = [(e.parent, e.relation) for _, e in source.said(Edge) if e.child in (None, source.name)]
            for parent, relation in claims + stored.get(str(source.name), []):
                address = importer.source_of(parent) if importer else None
                is_wanted = not self.relations or relation in self.relations
                if address and is_wanted and self._meet(address):
                    new.append(address)
        return new

    def _meet(self, source: str) -> bool:
        """Whether a source is new and there is room for it."""
        if source in self.seen:
            return False
        if len(self.seen) >= self.most:
            self.is_cut = True
            return False
        self.seen.add(source)
        return True


def _outline(weights: Checkpoint) -> Checkpoint:
    """Weights with one tensor a dtype, as large as all of them together: what metadata keep, in little memory."""
    sizes = Counter[str]()
    for tensor in weights.tensors:
        sizes[tensor.dtype] += tensor.numel
    weights.close()
    tensors = [Tensor(dtype, dtype, (numel,), _unread) for dtype, numel in sizes.items()]
    return replace(weights, tensors=tensors, skipped={}, close=lambda: None, verify=lambda: None)


def _unread(start: int, out: memoryview) -> None:
    raise AssertionError("an outline has no bytes")
