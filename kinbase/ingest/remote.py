"""Sources elsewhere, many at a time: which versions are stored already, and reading the others side by side."""

import threading
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from typing import TypeVar

from kinbase.checkpoint import Commit
from kinbase.checkpoint.open import Known, Opened, Tell, elsewhere, read
from kinbase.errors import KinbaseError
from kinbase.ingest.steps import ImportOptions
from kinbase.ingest.trajectories import Leg
from kinbase.store import Store
from kinbase.store import names as naming

Result = TypeVar("Result")

AT_ONCE = 16
"""Sources that are asked for at the same time; most of the time they wait for answers."""


def stored_versions(store: Store, depth: str, base: str | None = None) -> Known:
    """What `checkpoint.open.read` asks of each version it meets: what to call it, and whether it is stored as deep as `depth`.

    A version of a model of which another one is stored with its weights is called after its commit; so is one that was
    asked for, of a model that is here in another version at all, or that the same import met in another one. What is known
    by its metadata alone is renewed by a newer version that nobody named.
    """
    versions: dict[str, naming.Version] = {}
    if store.path.exists():
        with store.reading() as con:
            versions = naming.versions(con)
    met: dict[str, str] = {}
    one_at_a_time = threading.Lock()

    def known(commit: Commit) -> tuple[str, bool]:
        here = versions.get(f"{commit.model}@{commit.commit}")
        if here is not None and commit.is_pinned and here.revision != commit.commit:
            here = None  # what had this version was renewed since
        if here is not None:
            if depth == "metadata":
                return here.name, here.revision == commit.commit
            if depth == "sample" or not here.has_weights:
                return here.name, False
            placed = here.measured or not here.has_parents
            placed = placed and base in (None, here.name, here.base)
            return here.name, placed and (depth == "stream" or _kept(store, here.name))
        other = versions.get(commit.model)
        taken = other is not None and (
            other.has_weights or (commit.is_pinned and other.revision != commit.commit)
        )
        with one_at_a_time:
            taken = taken or met.setdefault(commit.model, commit.commit) != commit.commit
        return (f"{commit.model}@{commit.commit[:12]}" if taken else commit.model), False

    return known


def _kept(store: Store, name: str) -> bool:
    """Whether the files that a model was read from are on this machine, as they were."""
    with store.reading() as con:
        files = naming.files(con, name)
    return bool(files) and not any(file.elsewhere for file in files) and all(file.as_it_was for file in files)


def read_all(legs: Sequence[Leg], options: ImportOptions, known: Known) -> list[Opened]:
    """Every source opened, in order; those elsewhere side by side where little is read of each."""

    stopped = threading.Event()

    def one(leg: Leg) -> Opened:
        log = until(stopped, options.log)
        opened = read(leg.source, leg.name, depth=options.depth, known=known, tell=log)
        return leg.told(opened) if leg.is_of_a_run else opened

    away = [leg for leg in dict.fromkeys(legs) if elsewhere(leg.source)]
    if len(away) < 2 or options.depth not in ("metadata", "sample"):
        return [one(leg) for leg in legs]
    # Versions of one model after each other, so that it is always the first that is called as the model.
    versions: dict[str, list[Leg]] = {}
    for leg in away:
        versions.setdefault(leg.source.partition("@")[0], []).append(leg)

    def each(same: Sequence[Leg]) -> list[Opened]:
        return [one(leg) for leg in same]

    with ThreadPoolExecutor(AT_ONCE, thread_name_prefix="kinbase-ask") as pool:
        opened: dict[Leg, Opened] = {}
        try:
            for same, reading in [(same, pool.submit(each, same)) for same in versions.values()]:
                read_of_same = result(reading)
                opened |= zip(same, read_of_same, strict=True)
        except BaseException:
            stopped.set()
            pool.shutdown(cancel_futures=True)
            raise
    return [opened.pop(leg) if leg in opened else one(leg) for leg in legs]


def until(stopped: threading.Event, log: Tell) -> Tell:
    """`log`, by which a thread that waits (a rate limit may ask for minutes) also hears that nobody waits for it."""

    def told(what: str, done: int, total: int) -> None:
        if stopped.is_set():
            raise KinbaseError("interrupted")
        log(what, done, total)

    return told


def result(future: "Future[Result]") -> Result:
    """A future's result, waited for in short turns: polars handles SIGINT first and has an endless wait restarted."""
    while not future.done():
        wait([future], timeout=0.2)
    return future.result()
