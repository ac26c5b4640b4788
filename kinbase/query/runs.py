"""Runs of evolution, their generations and their offspring."""

from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING

from kinbase.errors import KinbaseError
from kinbase.query.models import Model
from kinbase.store import Connection

if TYPE_CHECKING:  # Polars is slow to import, and the terminal UI does without
    import polars as pl

RUNS = """
select run, strategy, status, generations, merges, best, best_score, reason, started_at, ended_at
from runs order by status = 'running' desc, started_at desc, run
"""

GENERATIONS = """
select generation, best, best_score, mean_score, best_so_far, top, top_kinship, reason, ended_at
from generations where run = ? order by generation
"""

TOP = """
select model_id, name from raw.model
where name in (select unnest(arg_max(top, generation)) from generations where run = $1)
order by name
"""

# The newest first: what a run that goes on does now is on top.
OFFSPRING = """
select m.model_id, o.generation, o.child, o.parents, o.role, o.method, o.kinship, o.score, coalesce(o.kept, false), o.status,
    o.reason, o.problem
from offspring o left join raw.model m on m.name = o.child
where o.run = $1 order by o.generation desc, o.position limit $2 offset $3
"""


TRIED = """
select generation, child, array_to_string(parents, ' + ') as parents, role, round(kinship, 3) as kinship,
    round(score, 3) as score, kept
from offspring where run = ? order by generation, position
"""

# Of the generation that is under way, if one is; how long a child of the run takes from the start of its merge to its score.
PROGRESS = """
select o.generation, count(*), count(*) filter (o.status not in ('planned', 'merged')),
    (select avg(coalesce(merge_s, 0) + coalesce(evaluate_s, 0)) from offspring where run = $1 and status = 'scored')
from offspring o
where o.run = $1 and o.generation > coalesce((select max(generation) from generations where run = $1), 0)
group by o.generation order by o.generation limit 1
"""


@dataclass(frozen=True)
class RunSummary:
    """One run; `generations` counts the finished ones, `merges` the children that were really merged."""

    name: str
    strategy: str
    status: str
    generations: int | None
    merges: int
    best: str | None
    best_score: float | None
    reason: str | None
    started_at: datetime
    ended_at: datetime | None


@dataclass(frozen=True)
class FinishedGeneration:
    """A row of the view `generations`."""

    generation: int
    best: str | None
    best_score: float | None
    mean_score: float | None
    best_so_far: float | None
    top: list[str] | None
    top_kinship: float | None
    reason: str | None
    ended_at: datetime | None


@dataclass(frozen=True)
class Progress:
    """How far the generation that is under way came: `done` of its `children`, each of which takes `seconds` on average."""

    generation: int
    children: int
    done: int
    seconds: float | None

    @property
    def left(self) -> float | None:
        """Seconds until the generation is over, if its children take as long as those before."""
        return self.seconds * (self.children - self.done) if self.seconds else None


@dataclass(frozen=True)
class Offspring:
    """A row of the view `offspring`; `model_id` is None while the child is no model yet."""

    model_id: int | None
    generation: int
    child: str
    parents: list[str] | None
    role: str
    method: str | None
    kinship: float | None
    score: float | None
    kept: bool
    status: str
    reason: str | None
    problem: str | None

    @property
    def model(self) -> Model | None:
        """What it became."""
        return None if self.model_id is None else Model(self.model_id, self.child)


def runs(con: Connection) -> list[RunSummary]:
    """All runs, those that go on first, then the newest."""
    return [RunSummary(*row) for row in con.execute(RUNS).fetchall()]


def exists(con: Connection, run: str) -> bool:
    """Whether there is a run of this name."""
    return bool(con.execute("select 1 from runs where run = ?", [run]).fetchall())


def generations(con: Connection, run: str) -> list[FinishedGeneration]:
    """The finished generations of a run. Raises KinbaseError when it is gone."""
    if not exists(con, run):
        raise KinbaseError("this run is no longer in the database")
    return [FinishedGeneration(*row) for row in con.execute(GENERATIONS, [run]).fetchall()]


def progress(con: Connection, run: str) -> Progress | None:
    """How far the generation came that a run is in; None between two."""
    rows = con.execute(PROGRESS, [run]).fetchall()
    return Progress(*rows[0]) if rows else None


def count_offspring(con: Connection, run: str) -> int:
    """How many children a run planned."""
    ((number,),) = con.execute("select count(*) from offspring where run = ?", [run]).fetchall()
    return int(number)


def offspring(con: Connection, run: str, limit: int | None = None, offset: int = 0) -> list[Offspring]:
    """Children of a run from `offset` on, of the newest generation first."""
    return [Offspring(*row) for row in con.execute(OFFSPRING, [run, limit, offset]).fetchall()]


def best(con: Connection, run: str) -> list[Model]:
    """The k best models of a run so far."""
    return [Model(*row) for row in con.execute(TOP, [run]).fetchall()]


def generation_rows(con: Connection, run: str) -> "pl.DataFrame":
    """The rows of the view `generations` of a run."""
    from kinbase.query.frames import frame

    return frame(con, "from generations where run = ? order by generation", [run])


def tried(con: Connection, run: str) -> "pl.DataFrame":
    """What a run tried, child by child, as a page shows it."""
    from kinbase.query.frames import frame

    return frame(con, TRIED, [run])
