"""The children of a generation, really made: merged, imported, evaluated, scored.

A finished merge is a folder of the child's name. The children come in by one import, which reads every checkpoint
of the family once. Evaluations run one at a time in processes of their own, and this one works meanwhile: it
stores the children while the first is evaluated, and each score while the next one is.
"""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from kinbase.errors import DatabaseError, DiskError, KinbaseError
from kinbase.evolution import (
    evaluators as evaluating,
)
from kinbase.evolution import (
    journal,
)
from kinbase.evolution import (
    merge_child as breeding,
)
from kinbase.evolution import (
    selection as closing,
)
from kinbase.ingest.pipeline import import_sources
from kinbase.ingest.steps import ImportOptions
from kinbase.store.scores import put_scores

if TYPE_CHECKING:
    from kinbase.checkpoint import Score as Result
    from kinbase.evolution.journal import Child, Run
    from kinbase.evolution.planning import Open
    from kinbase.evolution.selection import Closed
    from kinbase.evolution.subprocesses import Caller
    from kinbase.ingest.steps import Outcome
    from kinbase.store import Connection, Store

Tell = Callable[[str], None]
Report = Callable[[int, int], None]
Values = dict[int, dict[str, Any]]
"""Columns of rows of the open generation's children, by position."""

SAVE_EVERY = 1.0
"""Seconds that the row of a finished merge may wait for the next ones' and the import's transaction."""


def make(store: "Store", here: "Open", caller: "Caller", tell: Tell, report: Report) -> "Closed | None":
    """Merge, import and score what is still to be done of a generation; closed already with the last score."""
    merged, unsaved = _merge_all(store, here, tell, report)
    run, name = _with(here.run, merged), here.run.config.name
    evaluations = Evaluations(here, caller)
    if run.generation:
        run, known, benchmarks = _bring_in(store, run, unsaved, evaluations, tell, report)
    else:
        with store.reading() as con:
            known, benchmarks = _scored(con, run)
    closed = None
    unscored = _unscored(run)
    for number, child in enumerate(unscored):
        with _lenient(store, run, child, tell):
            results, took = ([], None) if child.model in known else evaluations.take(child)
            after = (c for c in unscored[number + 1 :] if c.model not in known | {child.model})
            evaluations.begin(next(after, None))
            with store.writing() as con:
                benchmarks = _score(con, run, child, results, took, benchmarks)
                if child is unscored[-1]:
                    closed = closing.close(con, name)
            known = known | {child.model}
    return closed


@contextmanager
def _lenient(store: "Store", run: "Run", child: "Child", tell: Tell) -> Iterator[None]:
    """Let a child fail without the run, where the configuration says so and it is the child's own failure."""
    try:
        yield
    except DatabaseError:
        raise
    except KinbaseError as error:
        if run.config.on_error == "stop" or child.role == "start" or isinstance(error, DiskError):
            raise type(error)(f"{child.child}: {error}") from error
        tell(f"{child.child} failed and is left out: {error}")
        with store.writing() as con:
            journal.mark(con, run, child, status="failed", problem=str(error))


# Merging.


def _merge_all(store: "Store", here: "Open", tell: Tell, report: Report) -> tuple[Values, Values]:
    """Merge the children that are not yet; what their rows are to say, and what of it they do not say yet."""
    merged: Values = {}
    unsaved: Values = {}
    run, saved = here.run, time.monotonic()
    for child in run.of(run.generation):
        if child.status != "planned" or child.role == "start":
            continue
        with _lenient(store, run, child, tell):
            merged[child.position] = unsaved[child.position] = _merge(run, child, here.sources, report)
        if (
            time.monotonic() - saved > SAVE_EVERY
        ):  # the merge is on disk, and found there, whatever its row says
            with store.writing() as con:
                _mark(con, run, unsaved)
            unsaved, saved = {}, time.monotonic()
    return merged, unsaved


def _merge(run: "Run", child: "Child", sources: Mapping[str, str], report: Report) -> dict[str, Any]:
    """Merge one child; what its row is to say."""
    config = run.config
    made = breeding.document(config, child.parents, child.method, config.base)
    gone = [model for model in [*child.parents, made.get("base_model")] if model and model not in sources]
    if gone:
        raise KinbaseError(f"the weights of {', '.join(gone)} are not here")
    started = time.monotonic()
    folder = breeding.breed(
        config, child.child, made, sources, child.seed, lambda done, total: report(done, total or 0)
    )
    return {"status": "merged", "folder": str(folder), "merge_s": time.monotonic() - started}


def _mark(con: "Connection", run: "Run", values: Mapping[int, dict[str, Any]]) -> None:
    for child in run.of(run.generation):
        if child.position in values:
            journal.mark(con, run, child, **values[child.position])


def _with(run: "Run", merged: Mapping[int, Mapping[str, Any]]) -> "Run":
    """The run with children of the open generation merged, as their rows say or will say."""
    children = [
        replace(c, status="merged", folder=merged[c.position]["folder"])
        if c.generation == run.generation and c.position in merged
        else c
        for c in run.children
    ]
    return replace(run, children=children)


# Importing.


def _bring_in(
    store: "Store", run: "Run", unsaved: Values, evaluations: "Evaluations", tell: Tell, report: Report
) -> "tuple[Run, frozenset[str], Sequence[str]]":
    """Import the generation's merged children, all in one, so that every checkpoint of the family is read once.

    What is `unsaved` of them goes into the same transaction. When they are read, the first of them begins to be
    evaluated. Returns the run, and what `_scored` says of it.
    """
    fresh = run.of(run.generation)
    waiting = {c.folder: c for c in fresh if c.status == "merged" and c.folder and not c.known}
    after: list[tuple[Run, frozenset[str], Sequence[str]]] = []

    def mark(con: "Connection", outcomes: "Sequence[Outcome]") -> None:
        _mark(con, run, unsaved)
        made = [
            (waiting[s.source], str(s.same_as or s.name))
            for s in outcomes
            if s.source in waiting and not s.is_failed
        ]
        for child, model in made:
            journal.mark(con, run, child, model=model)
        journal.put_edges(con, run, made)
        now = journal.read(con, run.config.name)
        after.append((now, *_scored(con, now)))

    if not waiting:
        with store.writing() as con:
            mark(con, [])
        return after[0]
    outcomes = import_sources(
        store, list(waiting), ImportOptions(base=run.config.base, on_progress=report), also=mark,
        on_measured=lambda digests: evaluations.begin_new(_unscored(run)[0], digests),
    )  # fmt: skip
    failed = [outcome for outcome in outcomes if outcome.source in waiting and outcome.is_failed]
    for source in failed:
        with _lenient(store, run, waiting[source.source], tell):
            raise KinbaseError(source.notes[-1])
    if failed:
        with store.reading() as con:
            return journal.read(con, run.config.name), *after[0][1:]
    return after[0]


# Evaluating.


class Evaluations:
    """The evaluations of a generation: at most one is under way, begun before anybody waits for it."""

    def __init__(self, here: "Open", caller: "Caller") -> None:
        self._config, self._sources, self._digests = here.run.config, here.sources, here.digests
        self._caller = caller
        self._begun: tuple[str, evaluating.Evaluation] | None = None

    def begin(self, child: "Child | None") -> None:
        """Begin to evaluate a child; `take` tells what came of it, errors too."""
        folder = child and (child.folder or self._sources.get(child.model))
        if child and folder:
            self._begun = child.child, evaluating.begin(self._config, child.model, folder, self._caller)

    def begin_new(self, child: "Child", digests: Mapping[str, str]) -> None:
        """`begin`, if the child's weights are none that the database knows, with their scores, under another name."""
        if digests.get(child.child, "") not in self._digests | {""}:
            self.begin(child)

    def take(self, child: "Child") -> "tuple[list[Result], float]":
        """The results of a child and the seconds they took. Raises KinbaseError when there are none."""
        if self._begun is None or self._begun[0] != child.child:
            if self._begun is not None:  # of a child that could not be stored
                self._caller.close()
            self.begin(child)
        if self._begun is None:
            raise KinbaseError(f"the weights of {child.model} are not here")
        (_, evaluation), self._begun = self._begun, None
        return evaluation()


def _unscored(run: "Run") -> list["Child"]:
    return [c for c in run.of(run.generation) if c.status == ("merged" if c.parents else "planned")]


def _scored(con: "Connection", run: "Run") -> tuple[frozenset[str], Sequence[str]]:
    """The models still to be scored whose results are there already, and the benchmarks that the score is the mean over."""
    benchmarks = _benchmarks(con, run)
    models = [child.model for child in _unscored(run)]
    known = (m for m in models if journal.score(con, m, run.config, benchmarks)[0] is not None)
    return frozenset(known), benchmarks


def _score(
    con: "Connection", run: "Run", child: "Child", results: "Sequence[Result]", took: float | None,
    benchmarks: Sequence[str],
) -> Sequence[str]:  # fmt: skip
    """Store a model's results and its score, the mean over `benchmarks`; those, which the first model may decide."""
    put_scores(con, child.model, results)
    benchmarks = benchmarks or _benchmarks(con, run)
    value, there = journal.score(con, child.model, run.config, benchmarks)
    if value is None:
        lacking = (
            ", ".join(sorted(set(benchmarks) - set(there))) or run.config.score.metric or "any benchmark"
        )
        raise KinbaseError(f"the evaluator gave no result on {lacking}")
    journal.mark(con, run, child, status="scored", score=value, evaluate_s=took)
    return benchmarks


def _benchmarks(con: "Connection", run: "Run") -> Sequence[str]:
    """What the score is the mean over: as configured, else all that the first model was scored on."""
    if run.config.score.benchmarks:
        return run.config.score.benchmarks
    return journal.score(con, run.children[0].model, run.config, ())[1]
