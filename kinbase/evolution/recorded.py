"""The evaluator `recorded`: children and scores that the database has already; nothing is merged or run."""

from typing import TYPE_CHECKING

from kinbase.errors import KinbaseError
from kinbase.evolution import journal
from kinbase.query import merges

if TYPE_CHECKING:
    from kinbase.evolution.journal import Child, Run
    from kinbase.store import Connection


def look_up(con: "Connection", run: "Run") -> list[str]:
    """Take the open generation's children and their scores from what was recorded; of which there is nothing.

    Raises KinbaseError when a model that the run starts from has no score.
    """
    found = [_look_up(con, run, child) for child in run.of(run.generation) if child.status == "planned"]
    return [line for line in found if line]


def _look_up(con: "Connection", run: "Run", child: "Child") -> str | None:
    """Take one child and its score from what was recorded; else what is lacking, which its row says then."""
    config, wanted = run.config, ", ".join(run.config.score.benchmarks)
    candidates = (
        [child.model] if child.role == "start" else merges.of_parents(con, child.parents, child.method)
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
    return f"{child.child}: {problem}"
