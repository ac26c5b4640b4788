"""The rows of a run: what it was asked, what it tried, what came of it. All a resumed run knows is here.

The functions that read take any connection of the store, those that write one of `Store.writing()`, and are
part of its transaction.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from kinbase.checkpoint import Edge
from kinbase.errors import KinbaseError
from kinbase.evolution.config import Config, dumps, loads
from kinbase.query.scores import mean_over
from kinbase.store import runs
from kinbase.store.lineage import put_claims

if TYPE_CHECKING:
    import networkx as nx

    from kinbase.evolution.mating import Mating
    from kinbase.store import Connection


LOST = ""
"""The name of a model that a run's rows number and that is not there."""


@dataclass(frozen=True, slots=True)
class Child:
    """A child of a run; `model` is the name of the model it became, else its planned name."""

    generation: int
    position: int
    child: str
    model: str
    parents: tuple[str, ...]
    role: str
    method: str
    seed: int
    reason: str
    kinship: float | None
    status: str
    problem: str | None
    score: float | None
    folder: str | None
    deleted: bool
    bytes: int = 0
    known: bool = False
    """Whether it is a model already."""


@dataclass(frozen=True, slots=True)
class Run:
    """A run as its rows tell it: `tops` are the k best by generation, best first, with their mean kinship."""

    run_id: int
    config: Config
    status: str
    reason: str | None
    children: list[Child] = field(default_factory=list)
    tops: list[tuple[tuple[str, ...], float | None]] = field(default_factory=list)

    @property
    def generation(self) -> int:
        """The generation that is not closed yet."""
        return len(self.tops)

    @property
    def scores(self) -> dict[str, float]:
        """Score by model, those it started from included."""
        return {c.model: c.score for c in self.children if c.score is not None}

    def of(self, generation: int) -> list[Child]:
        """The children of one generation, in the order of planning."""
        return [child for child in self.children if child.generation == generation]


# Reading.


def read(con: "Connection", name: str) -> Run:
    """The run called `name`. Raises KinbaseError, naming the near ones, when there is none."""
    rows = runs.read(con, name)
    names = {model_id: model for model_id, (model, _) in rows.models.items()}
    children = []
    for row in rows.children:
        generation, position, child, child_id, parent_ids, *rest = row
        model, size = rows.models.get(child_id, (child, 0))
        parents = tuple(names.get(i, LOST) for i in parent_ids)
        known: list[Any] = [generation, position, child, model, parents, *rest, size, child_id is not None]
        children.append(Child(*known))
    ranked = [(tuple(names.get(i, LOST) for i in top), mean) for top, mean in rows.tops]
    if any(LOST in child.parents for child in children) or any(LOST in top for top, _ in ranked):
        raise KinbaseError(f"the run {name} names models that are not there: `kinbase check` says which")
    asked = loads(rows.config)
    if asked.name != name:
        raise KinbaseError(f"the row of the run {name} has the configuration of {asked.name}: it is damaged")
    return Run(rows.run_id, asked, rows.status, rows.reason, children, ranked)


def population(run: Run) -> "nx.DiGraph":
    """The models of a run as the strategies want them: `generation` on nodes, `method` and `seed` on edges.

    A child that came to nothing, or to a model that was there already, is a node under its planned name.
    """
    import networkx as nx

    graph = nx.DiGraph()
    for child in run.children:
        node = child.model if child.score is not None and child.model not in graph else child.child
        graph.add_node(node, generation=child.generation)
        graph.add_edges_from(
            ((parent, node) for parent in child.parents), method=child.method, seed=child.seed
        )
    return graph


def score(
    con: "Connection", model: str, config: Config, benchmarks: Sequence[str]
) -> tuple[float | None, list[str]]:
    """A model's mean over `benchmarks` (none: all it has), None unless it has them all; and those it has."""
    mean, there = mean_over(con, model, benchmarks, source=config.evaluate.source, metric=config.score.metric)
    return (mean if there and set(benchmarks) <= set(there) else None), there


# Writing.


def begin(con: "Connection", config: Config) -> None:
    """A new run, with the models it starts from as its generation 0. Raises KinbaseError when the name is taken."""
    runs.begin(con, config.name, config.strategy, dumps(config), config.models)


def plan(
    con: "Connection", run: Run, matings: "Sequence[tuple[str, Mating, str | None]]", left_out: str | None
) -> None:
    """The children of the generation that is not closed: name, mating, and why it is skipped (None: it is not)."""
    children = [
        runs.PlannedChild(child, m.parents, m.role, m.method, m.seed, m.reason, m.kinship, problem)
        for child, m, problem in matings
    ]
    runs.plan(con, run.run_id, run.generation, children, left_out)


def mark(con: "Connection", run: Run, child: Child, **values: Any) -> None:
    """Set columns of a child's row; `model` names the model it became."""
    runs.mark(con, run.run_id, child.generation, child.position, **values)


def put_edges(con: "Connection", run: Run, made: Sequence[tuple[Child, str]]) -> None:
    """Store the run's own word on the parents of children and the models they became, beside their merge configurations'."""
    claims = []
    for child, model in made:
        detail: Mapping[str, object] = {
            "run": run.config.name, "generation": child.generation, "role": child.role, "strategy": run.config.strategy,
        }  # fmt: skip
        edges = [
            Edge(parent, "merge", "run", model, child.method, None, dict(detail)) for parent in child.parents
        ]
        claims.append((None, f"run {run.config.name}: {child.child}", edges))
    put_claims(con, claims)


def close(
    con: "Connection",
    run: Run,
    top: Sequence[str],
    top_kinship: float | None,
    reason: str,
    dropped: Sequence[str],
) -> None:
    """Close the generation: who is among the best, and the children whose weights are to be deleted."""
    runs.close(con, run.run_id, run.generation, top, top_kinship, reason, dropped)
