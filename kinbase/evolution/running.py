"""The loop of a run: plan a generation, merge, import, evaluate, close it. Everything it knows is rows.

Each step leaves a row behind in a transaction of its own, and each looks at the rows before it does anything.
So a run that was killed goes on where it was: a finished merge is a folder of the child's name, a finished
evaluation is scores, a closed generation is a row. The children of a generation come in by one import, which
reads every checkpoint of the family once.

Opening and writing the database costs more than most of what is asked of it. So what follows at once shares a
transaction: a child that was merged or scored with the import or the close after it.
"""

import fcntl
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kinbase.errors import KinbaseError
from kinbase.evolution import breeding, journal, planning, stopping, strategies
from kinbase.evolution.config import Config
from kinbase.evolution.evaluating import evaluate
from kinbase.evolution.programs import Caller
from kinbase.importing import import_sources

if TYPE_CHECKING:
    from kinbase.checkpoint import Score as Result
    from kinbase.database import Kinbase
    from kinbase.evolution.journal import Child, Run
    from kinbase.evolution.planning import Planned
    from kinbase.sources import Source
    from kinbase.store import Connection

Tell = Callable[[str], None]
Report = Callable[[int, int], None]

SAVE_EVERY = 1.0
"""Seconds that the row of a finished merge may wait for the next ones' and the import's transaction."""


@dataclass(frozen=True, slots=True)
class Generation:
    """A closed generation: its children, the k best so far, best first, and what the stop rules said."""

    number: int
    children: tuple["Child", ...]
    top: tuple[str, ...]
    best_so_far: float | None
    reason: str
    last: bool


def begin(db: "Kinbase", config: Config) -> Config:
    """Store a new run; its configuration with the models called by their names.

    Raises KinbaseError for an unknown model or method, and when the name is taken.
    """
    config = resolved(db, config)
    with db.store.writing() as con:
        journal.begin(con, config)
        if config.evaluate.by != "recorded":
            breeding.refuse_used(config)
    return config


def resolved(db: "Kinbase", config: Config) -> Config:
    """The configuration with models by their names, checked against the database."""
    with db.store.reading() as con:
        models = journal.names(con, config.models)
        also = journal.names(con, config.explore.also)
        base = journal.names(con, [config.base])[0] if config.base else journal.base_of(con, models)
        where = journal.sources(con, models)
    if len(set(models)) < len(models):
        raise KinbaseError("models: two of them are names of one model")
    config = replace(
        config, models=tuple(models), base=base, explore=replace(config.explore, also=tuple(also))
    )
    if config.evaluate.by != "recorded":
        bare = [model for model, (source, _) in where.items() if source is None]
        if bare:
            raise KinbaseError(
                f"the weights of {', '.join(sorted(bare))} are not here: import the checkpoints first"
            )
        breeding.check(config, base)
    return config


def first_plan(db: "Kinbase", config: Config) -> tuple[list["Planned"], list[str]]:
    """The first generation of a run that has not begun: name, mating and why it would be skipped; and what is left out.

    Models without a score yet count as equal; the second list says which.
    """
    config = resolved(db, config)
    with db.store.reading() as con:
        found = {m: journal.score(con, m, config, config.score.benchmarks)[0] for m in config.models}
        start = [
            journal.Child(
                0, i, m, m, (), "start", "", 0, "", None, "scored", None, found[m] or 0.0, None, False
            )
            for i, m in enumerate(config.models)
        ]
        run = journal.Run(0, config, "running", None, start, [((), None)])
        matings, left_out = planning.matings(con, run)
    bare = [model for model, score in found.items() if score is None]
    return matings, left_out + [f"not scored yet: {', '.join(bare)}; the plan is made when they are"] * bool(
        bare
    )


def evolve(
    db: "Kinbase", name: str, *, tell: Tell = lambda line: None, report: Report = lambda done, total: None
) -> Iterator[Generation]:
    """Go on with the run called `name` from whatever its rows say; each generation as it is closed.

    Raises KinbaseError, after which the run can be resumed, when a merge or an evaluation fails, and
    for an unknown run. KeyboardInterrupt, or closing the generator, leaves the run interrupted.
    """
    with db.store.reading() as con:
        run = journal.read(con, name)
    if run.status == "finished":
        tell(f"the run {name} is finished: {run.reason}")
        return
    with _alone(run), closing(Caller(run.config.folder)) as caller:
        with db.store.writing() as con:
            journal.resume(con, name)
        try:
            yield from _generations(db, name, caller, tell, report)
            _sweep(_read(db, name))
        except KinbaseError as error:
            with db.store.writing() as con:
                journal.end(con, name, "failed", str(error))
            raise type(error)(f"{error}; then `kinbase evolve --resume {name}` goes on") from error
        except (KeyboardInterrupt, GeneratorExit):
            with db.store.writing() as con:
                journal.end(con, name, "interrupted", "interrupted")
            raise


def _generations(
    db: "Kinbase", name: str, caller: Caller, tell: Tell, report: Report
) -> Iterator[Generation]:
    while True:
        planned = _plan(db, name, tell, report)
        if planned is None:
            return
        run, sources = planned
        if run.config.evaluate.by == "recorded":
            _look_up(db, run, tell)
            generation = None
        else:
            generation = _make(db, run, sources, caller, tell, report)
        if generation is None:
            with db.store.writing() as con:
                generation = _close(con, name)
        tell(_line(generation))
        yield generation
        if generation.last:
            return


def _read(db: "Kinbase", name: str) -> "Run":
    with db.store.reading() as con:
        return journal.read(con, name)


# Planning.


def _plan(db: "Kinbase", name: str, tell: Tell, report: Report) -> "tuple[Run, dict[str, str]] | None":
    """The run with the open generation planned, as it may be already, and where its parents' and models' weights are.

    None when nothing is left, and the run is over.
    """
    with db.store.writing() as con:
        run = journal.read(con, name)
        if run.generation and not run.of(run.generation):
            matings, left_out = planning.matings(con, run)
            if not matings:
                journal.end(con, name, "finished", f"nothing is left to merge: {'; '.join(left_out)}")
                return None
            journal.plan(con, run, matings, "; ".join(left_out) or None)
            run = journal.read(con, name)
        needed = {model for child in run.of(run.generation) for model in (child.model, *child.parents)}
        where = journal.sources(con, [*needed, *filter(None, [run.config.base])])
    if run.generation:
        _sweep(run)
    elif (
        run.config.evaluate.by != "recorded"
    ):  # the models it starts from, which are planned from the beginning
        for note in db.measure(run.config.models, report=report):
            tell(note)
    return run, {model: source for model, (source, _) in where.items() if source}


# Making.


def _make(
    db: "Kinbase", run: "Run", sources: Mapping[str, str], caller: Caller, tell: Tell, report: Report
) -> Generation | None:
    """Merge, import and score what is still to be done of the open generation; closed already with the last score."""
    merged: dict[int, dict[str, Any]] = {}
    unsaved: dict[int, dict[str, Any]] = {}
    saved = time.monotonic()
    unmerged = [c for c in run.of(run.generation) if c.status == "planned" and c.role != "start"]
    for child in unmerged:
        with _lenient(db, run, child, tell):
            merged[child.position] = unsaved[child.position] = _merge(run, child, sources, report)
        if (
            time.monotonic() - saved > SAVE_EVERY
        ):  # the merge is on disk, and found there, whatever its row says
            with db.store.writing() as con:
                _mark(con, run, unsaved)
            unsaved, saved = {}, time.monotonic()
    run = _with(run, merged)
    if run.generation:
        run, known, benchmarks = _bring_in(db, run, unsaved, tell, report)
    else:
        with db.store.reading() as con:
            known, benchmarks = _scored(con, run)
    closed = None
    unscored = _unscored(run)
    for child in unscored:
        with _lenient(db, run, child, tell):
            results, took = [], None
            if child.model not in known:
                folder = child.folder or sources.get(child.model)
                if folder is None:
                    raise KinbaseError(f"the weights of {child.model} are not here")
                started = time.monotonic()
                results = evaluate(run.config, child.model, folder, caller)
                took = time.monotonic() - started
            with db.store.writing() as con:
                benchmarks = _score(con, run, child, results, took, benchmarks)
                if child is unscored[-1]:
                    closed = _close(con, run.config.name)
    return closed


def _with(run: "Run", merged: Mapping[int, Mapping[str, Any]]) -> "Run":
    """The run with children of the open generation merged, as their rows say or will say."""
    children = [
        replace(c, status="merged", folder=merged[c.position]["folder"])
        if c.generation == run.generation and c.position in merged
        else c
        for c in run.children
    ]
    return replace(run, children=children)


def _unscored(run: "Run") -> list["Child"]:
    return [c for c in run.of(run.generation) if c.status == ("merged" if c.parents else "planned")]


@contextmanager
def _lenient(db: "Kinbase", run: "Run", child: "Child", tell: Tell) -> Iterator[None]:
    """Let a child fail without the run, where the configuration says so."""
    try:
        yield
    except KinbaseError as error:
        if run.config.on_error == "stop" or child.role == "start":
            raise KinbaseError(f"{child.child}: {error}") from error
        tell(f"{child.child} failed and is left out: {error}")
        with db.store.writing() as con:
            journal.mark(con, run, child, status="failed", problem=str(error))


def _look_up(db: "Kinbase", run: "Run", tell: Tell) -> None:
    """Take the open generation's children and their scores from what was recorded; say of which there is nothing."""
    with db.store.writing() as con:
        for child in run.of(run.generation):
            if child.status == "planned":
                problem = _recorded(con, run, child)
                if problem:
                    tell(f"{child.child}: {problem}")


def _recorded(con: "Connection", run: "Run", child: "Child") -> str | None:
    """Take one child and its score from what was recorded; else what is lacking, which its row says then."""
    config, wanted = run.config, ", ".join(run.config.score.benchmarks)
    candidates = (
        [child.model] if child.role == "start" else journal.recorded(con, child.parents, child.method)
    )
    for model in candidates:
        score, _ = journal.score(con, model, config, config.score.benchmarks)
        if score is not None:
            journal.mark(con, run, child, model=model, score=score, status="scored")
            return None
    if child.role == "start":
        raise KinbaseError(f"{child.model} has no recorded score on {wanted}: import its results first")
    parents = " and ".join(child.parents)
    problem = f"no recorded {child.method} merge of {parents}"
    if candidates:
        problem = f"{', '.join(candidates)} of {parents} has no recorded score on {wanted}"
    journal.mark(con, run, child, status="unrecorded", problem=problem)
    return problem


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
    """Set columns of the rows of the open generation's children, by position."""
    for child in run.of(run.generation):
        if child.position in values:
            journal.mark(con, run, child, **values[child.position])


def _bring_in(
    db: "Kinbase", run: "Run", unsaved: Mapping[int, dict[str, Any]], tell: Tell, report: Report
) -> "tuple[Run, set[str], Sequence[str]]":
    """Import the generation's merged children, all in one, so that every checkpoint of the family is read once.

    What is `unsaved` of them goes into the same transaction. Returns the run, and what `_scored` says of it.
    """
    fresh = run.of(run.generation)
    waiting = {c.folder: c for c in fresh if c.status == "merged" and c.folder and not c.known}
    after: list[tuple[Run, set[str], Sequence[str]]] = []

    def mark(con: "Connection", found: "Sequence[Source]") -> None:
        _mark(con, run, unsaved)
        made = [
            (waiting[s.source], str(s.name)) for s in found if s.source in waiting and s.status != "failed"
        ]
        for child, model in made:
            journal.mark(con, run, child, model=model)
        journal.put_edges(con, run, made)
        now = journal.read(con, run.config.name)
        after.append((now, *_scored(con, now)))

    if not waiting:
        with db.store.writing() as con:
            mark(con, [])
        return after[0]
    failed = [
        source
        for source in import_sources(db.store, list(waiting), base=run.config.base, report=report, also=mark)
        if source.source in waiting and source.status == "failed"
    ]
    for source in failed:
        with _lenient(db, run, waiting[source.source], tell):
            raise KinbaseError(source.notes[-1])
    if failed:
        now = _read(db, run.config.name)
        return now, *after[0][1:]
    return after[0]


def _scored(con: "Connection", run: "Run") -> tuple[set[str], Sequence[str]]:
    """The models still to be scored whose results are there already, and the benchmarks that the score is the mean over."""
    benchmarks = _benchmarks(con, run)
    models = [child.model for child in _unscored(run)]
    return {m for m in models if journal.score(con, m, run.config, benchmarks)[0] is not None}, benchmarks


def _score(
    con: "Connection", run: "Run", child: "Child", results: "Sequence[Result]", took: float | None,
    benchmarks: Sequence[str],
) -> Sequence[str]:  # fmt: skip
    """Store a model's results and its score, the mean over `benchmarks`; those, which the first model may decide."""
    journal.put_results(con, child.model, results)
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


# Closing.


def _close(con: "Connection", name: str) -> Generation:
    """Close the generation: rank, judge, and end the run when a rule says so."""
    run = journal.read(con, name)
    config, scores = run.config, run.scores
    top = tuple(strategies.top_k(scores, config.k))
    mean, _, _ = strategies.mean_kinship(journal.kinship(con, top, config.metric), top)
    fresh = run.of(run.generation)
    spent = (
        planning.Budget(run).refused(max((c.bytes for c in run.children), default=0))
        if run.generation
        else None
    )
    if config.strategy == "grid" and run.generation:
        spent = spent or "the grid is done"
    last, reason = stopping.verdict(config, [*run.tops, (top, mean)], spent)
    journal.close(con, run, top, mean, reason, _dropped(run, top))
    if last:
        journal.end(con, name, "finished", reason)
    return Generation(run.generation, tuple(fresh), top, max(scores.values(), default=None), reason, last)


def _line(generation: Generation) -> str:
    """A generation in a line."""
    scored = [c for c in generation.children if c.score is not None]
    if not generation.number:
        words = f"{len(scored)} models to start from"
    else:
        best = max(scored, key=lambda c: c.score or 0.0, default=None)
        words = f"{len(scored)} of {len(generation.children)} children scored"
        words += f", the best {best.model} {best.score:.5g}" if best else ""
    so_far = f", best so far {generation.best_so_far:.5g}" if generation.best_so_far is not None else ""
    return f"generation {generation.number}: {words}{so_far}; {generation.reason}"


def _dropped(run: "Run", top: Sequence[str]) -> list[str]:
    """The children whose weights no later generation needs, where the configuration wants them deleted."""
    if run.config.keep == "all":
        return []
    needed = {*top, *(c.model for c in run.of(run.generation) if run.config.explore.pool == "previous")}
    # A child of the same bits as a model that was there is that model, which is found in the child's folder now.
    own = [c for c in run.children if c.folder and c.model == c.child]
    return [c.child for c in own if not c.deleted and c.model not in needed]


def _sweep(run: "Run") -> None:
    """Delete the weights of children that were dropped, again if a killed run left some."""
    kept = {c.folder for c in run.children if not c.deleted}
    for child in run.children:
        if child.deleted and child.folder and child.folder not in kept:
            breeding.delete_weights(child.folder)


@contextmanager
def _alone(run: "Run") -> Iterator[None]:
    """Hold the folder of the children, so that a run goes on in one process only."""
    if run.config.evaluate.by == "recorded":
        yield
        return
    folder = Path(run.config.out)
    folder.mkdir(parents=True, exist_ok=True)
    held = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise KinbaseError(
                f"another process is at work in {folder}: is the run {run.config.name} going on already?"
            ) from None
        yield
    finally:
        os.close(held)
