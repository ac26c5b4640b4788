"""The end of a generation: who is among the best, what the stop rules say, and whose weights may go."""

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING

from kinbase.errors import KinbaseError
from kinbase.evolution import journal, planning, stopping
from kinbase.evolution import mating as strategies
from kinbase.evolution import merge_child as breeding
from kinbase.query.kinship import known_pairs
from kinbase.store import runs

if TYPE_CHECKING:
    from kinbase.evolution.journal import Child, Run
    from kinbase.evolution.planning import Open
    from kinbase.store import Connection


@dataclass(frozen=True, slots=True)
class Generation:
    """A closed generation: its children, the k best so far, best first, and what the stop rules said."""

    number: int
    children: tuple["Child", ...]
    top: tuple[str, ...]
    best_so_far: float | None
    reason: str
    last: bool


Closed = tuple[Generation, "Open | None"]
"""A closed generation and the next one, planned; None when there is none, or it could not be planned here."""


def close(con: "Connection", name: str) -> Closed:
    """Rank, judge, and end the run when a rule says so; else plan what comes next, in the same transaction."""
    run = journal.read(con, name)
    config, scores = run.config, run.scores
    top = tuple(strategies.top_k(scores, config.k))
    mean, _, _ = strategies.mean_kinship(known_pairs(con, top, config.metric), top)
    fresh = run.of(run.generation)
    spent = None
    if run.generation:
        spent = planning.Budget(run).refused(max((c.bytes for c in run.children), default=0))
        if config.strategy == "grid":
            spent = spent or "the grid is done"
    last, reason = stopping.verdict(config, [*run.tops, (top, mean)], spent)
    journal.close(con, run, top, mean, reason, _dropped(run, top))
    generation = Generation(
        run.generation, tuple(fresh), top, max(scores.values(), default=None), reason, last
    )
    if last:
        runs.end(con, name, "finished", reason)
        return generation, None
    with suppress(
        KinbaseError
    ):  # what was scored is stored all the same; whoever plans it next meets it again
        return generation, planning.open_next(con, name)
    return generation, None


def line(generation: Generation) -> str:
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


def sweep(run: "Run") -> None:
    """Delete the weights of children that were dropped, again if a killed run left some."""
    kept = {c.folder for c in run.children if not c.deleted}
    for child in run.children:
        if child.deleted and child.folder and child.folder not in kept:
            breeding.delete_weights(run.config, child.child, child.folder)


def _dropped(run: "Run", top: Sequence[str]) -> list[str]:
    """The children whose weights no later generation needs, where the configuration wants them deleted."""
    if run.config.keep == "all":
        return []
    needed = {*top, *(c.model for c in run.of(run.generation) if run.config.explore.pool == "previous")}
    # A child of the same bits as a model that was there is that model, which is found in the child's folder now.
    own = [c for c in run.children if c.folder and c.model == c.child]
    return [c.child for c in own if not c.deleted and c.model not in needed]
