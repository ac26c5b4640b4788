"""Runs of evolution, their generations and their offspring, as the screen shows them."""

from dataclasses import dataclass
from typing import Any

from kinbase.errors import KinbaseError
from kinbase.query.models import Model
from kinbase.store import Connection

COLUMNS = ("gen", "child", "score", "kept", "role", "kinship", "parents", "status", "reason")

RUNS = """
select run, strategy, status, generations, merges, best, best_score, reason, started_at
from runs order by status = 'running' desc, started_at desc, run
"""

GENERATIONS = "select generation, best_so_far, mean_score, top_kinship from generations where run = ? order by generation"

TOP = """
select model_id, name from raw.model
where name in (select unnest(arg_max(top, generation)) from generations where run = $1)
order by name
"""

# The newest first: what a run that goes on does now is on top.
OFFSPRING = """
select m.model_id, o.generation, o.child, o.role, o.parents, o.kinship, o.score, o.kept, o.status,
    concat_ws('; ', o.reason, o.problem)
from offspring o left join raw.model m on m.name = o.child
where o.run = $1 order by o.generation desc, o.position limit $2 offset $3
"""


@dataclass(frozen=True)
class Run:
    """One run; `generations` counts the finished ones."""

    name: str
    strategy: str
    status: str
    generations: int | None
    merges: int
    best: str | None
    best_score: float | None
    reason: str | None


@dataclass(frozen=True)
class Generation:
    """What the chart draws of one."""

    number: int
    best: float | None
    mean: float | None
    kinship: float | None


@dataclass
class Story:
    """All that is shown of one run: its generations, how many children it has, and a page of them with their models."""

    generations: list[Generation]
    number: int
    rows: list[tuple[Any, ...]]
    models: list[Model | None]


def runs(con: Connection) -> list[Run]:
    """All runs, those that go on first, then the newest."""
    return [Run(*row[:-1]) for row in con.execute(RUNS).fetchall()]


def story(con: Connection, run: str, page: int) -> Story:
    """A run's generations and the first `page` of its children; raises KinbaseError when it is gone."""
    if not con.execute("select 1 from runs where run = ?", [run]).fetchall():
        raise KinbaseError("this run is no longer in the database: press r to read it again")
    generations = [Generation(*row) for row in con.execute(GENERATIONS, [run]).fetchall()]
    ((number,),) = con.execute("select count(*) from offspring where run = ?", [run]).fetchall()
    rows, models = offspring(con, run, page, 0)
    return Story(generations, number, rows, models)


def offspring(
    con: Connection, run: str, limit: int, offset: int
) -> tuple[list[tuple[Any, ...]], list[Model | None]]:
    """Children of a run from `offset` on, in COLUMNS, and the models they became."""
    found = con.execute(OFFSPRING, [run, limit, offset]).fetchall()
    rows = [
        (
            generation,
            child,
            score,
            "kept" if kept else "",
            role,
            kinship,
            " + ".join(parents or []),
            status,
            reason,
        )
        for _, generation, child, role, parents, kinship, score, kept, status, reason in found
    ]
    return rows, [Model(row[0], row[2]) if row[0] is not None else None for row in found]


def best(con: Connection, run: str) -> list[Model]:
    """The k best models of a run so far."""
    return [Model(*row) for row in con.execute(TOP, [run]).fetchall()]
