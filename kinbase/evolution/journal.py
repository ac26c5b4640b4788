"""The rows of a run: what it was asked, what it tried, what came of it. All a resumed run knows is here.

The functions that read take any connection of the store, those that write one of `Store.writing()`, and are
part of its transaction.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from kinbase.checkpoint import Edge
from kinbase.checkpoint import Score as Result
from kinbase.errors import KinbaseError
from kinbase.evolution.config import Config, dumps, loads
from kinbase.store import names as naming
from kinbase.store.lineage import put_claims
from kinbase.store.scores import put_scores

if TYPE_CHECKING:
    import networkx as nx

    from kinbase.evolution.mating import Kinship, Mating
    from kinbase.store import Connection


LOST = ""
"""The name of a model that a run's rows number and that is not there."""


@dataclass(frozen=True, slots=True)
class Child:
    """A row of raw.offspring; `model` is the name of the model it became, else its planned name."""

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
    row = con.execute("select run_id, config, status, reason from raw.run where name = ?", [name]).fetchone()
    if row is None:
        from difflib import get_close_matches

        known = [str(run) for (run,) in con.execute("select name from raw.run order by name").fetchall()]
        near = get_close_matches(name, known, 3, 0.4) or known[:5]
        raise KinbaseError(
            f"there is no run {name!r}: " + (f"there is {', '.join(near)}" if near else "none has begun yet")
        )
    run_id, config, status, reason = row
    rows = con.execute(
        """
        select o.generation, o.position, o.child, o.child_id, o.parent_ids, o.role, o.method, o.seed, o.reason,
            o.kinship, o.status, o.problem, o.score, o.folder, o.deleted
        from raw.offspring o where o.run_id = ? order by o.generation, o.position
        """,
        [run_id],
    ).fetchall()
    tops = con.execute(
        "select top_ids, top_kinship from raw.generation where run_id = ? and ended_at is not null order by generation",
        [run_id],
    ).fetchall()
    # Names by hand: the views' joins take a tenth of a second, and a run reads itself at every step.
    ids = {i for row in rows for i in [row[3], *row[4]] if i is not None} | {
        i for top, _ in tops for i in top
    }
    named = con.execute(
        "select model_id, name, coalesce(bytes, 0) from raw.model where list_contains($1, model_id)",
        [list(ids)],
    ).fetchall()
    names = {model_id: model for model_id, model, _ in named}
    sizes = {model_id: size for model_id, _, size in named}
    children = []
    for row in rows:
        generation, position, child, child_id, parent_ids = row[:5]
        model, size = names.get(child_id, child), sizes.get(child_id, 0)
        parents = tuple(names.get(i, LOST) for i in parent_ids)
        values: list[Any] = [
            generation,
            position,
            child,
            model,
            parents,
            *row[5:],
            size,
            child_id is not None,
        ]
        children.append(Child(*values))
    ranked = [(tuple(names.get(i, LOST) for i in top), mean) for top, mean in tops]
    if any(LOST in child.parents for child in children) or any(LOST in top for top, _ in ranked):
        raise KinbaseError(f"the run {name} names models that are not there: `kinbase check` says which")
    asked = loads(config)
    if asked.name != name:
        raise KinbaseError(f"the row of the run {name} has the configuration of {asked.name}: it is damaged")
    return Run(run_id, asked, status, reason, children, ranked)


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


def kinship(con: "Connection", models: Sequence[str], metric: str) -> "Kinship":
    """The known kinship among `models`, by pair; `metric` is pcc, cs or ed."""
    rows = con.execute(
        f"""
        select model_a, model_b, {metric} from kinship
        where model_a < model_b and {metric} is not null and list_contains($1, model_a) and list_contains($1, model_b)
        """,
        [list(models)],
    ).fetchall()
    return {frozenset((a, b)): value for a, b, value in rows}


SCORE = """
with reading as (
    select benchmark, value from raw.reading
    where model = $1 and benchmark <> 'average' and ($2 is null or setting.source = $2)
        and (len($3::varchar[]) = 0 or list_contains($3::varchar[], benchmark)) and ($4 is null or setting.metric = $4)
    qualify row_number() over (
        partition by benchmark
        order by setting.metric <> 'normalised', setting.metric desc, setting.n_shot desc nulls last,
            setting.split nulls first, setting.template nulls first, setting.source nulls last
    ) = 1
)
select avg(value order by benchmark), list(benchmark order by benchmark) from reading
"""


def score(
    con: "Connection", model: str, config: Config, benchmarks: Sequence[str]
) -> tuple[float | None, list[str]]:
    """A model's mean over `benchmarks` (none: all it has), None unless it has them all; and those it has."""
    given = [model, config.evaluate.source, list(benchmarks), config.score.metric]
    row = con.execute(SCORE, given).fetchone()
    assert row
    mean, there = row
    return (mean if there and set(benchmarks) <= set(there) else None), there or []


def recorded(con: "Connection", parents: Sequence[str], method: str) -> list[str]:
    """The merges of exactly these parents that are in the lineage, by this method or by one that is not said."""
    rows = con.execute(
        """
        select model from raw.merge
        where parents = list_sort($1::varchar[]) and coalesce(method, $2) = $2 order by method nulls last, model
        """,
        [list(parents), method],
    ).fetchall()
    return [model for (model,) in rows]


def names(con: "Connection", labels: Sequence[str]) -> list[str]:
    """The names of the models meant by `labels`. Raises KinbaseError, naming the near ones, for an unknown one."""
    return [naming.resolve(con, label) for label in labels]


def sources(con: "Connection", models: Sequence[str]) -> dict[str, tuple[str | None, int]]:
    """Where each of `models` was read from (None: only its name is known) and its bytes."""
    rows = con.execute(
        "select name, if(digest is null, null, source), coalesce(bytes, 0) from raw.model where list_contains($1, name)",
        [list(models)],
    ).fetchall()
    return {name: (source, size) for name, source, size in rows}


def digests(con: "Connection") -> frozenset[str]:
    """The digests of all weights that are known."""
    rows = con.execute("select digest from raw.model where digest is not null").fetchall()
    return frozenset(digest for (digest,) in rows)


def base_of(con: "Connection", models: Sequence[str]) -> str | None:
    """The base that all of `models` are measured against; None when they have none in common."""
    rows = con.execute(
        "select distinct base from models where list_contains($1, name)", [list(models)]
    ).fetchall()
    return rows[0][0] if len(rows) == 1 else None


# Writing.


def begin(con: "Connection", config: Config) -> None:
    """A new run, with the models it starts from as its generation 0. Raises KinbaseError when the name is taken."""
    row = con.execute("select status from raw.run where name = ?", [config.name]).fetchone()
    if row is not None:
        goes_on = f"`kinbase evolve --resume {config.name}` goes on with it, " if row[0] != "finished" else ""
        raise KinbaseError(
            f"there is a run {config.name} already ({row[0]}): {goes_on}--name gives this one another name"
        )
    con.execute(
        "insert into raw.run (name, strategy, status, config) values (?, ?, 'running', ?)",
        [config.name, config.strategy, dumps(config)],
    )
    run_id = _run_id(con, config.name)
    for position, model in enumerate(config.models):
        con.execute(
            """
            insert into raw.offspring (run_id, generation, position, child, child_id, parent_ids, role, reason, status)
            values (?, 0, ?, ?, ?, [], 'start', 'the configuration names it', 'planned')
            """,
            [run_id, position, model, naming.named(con, model)],
        )


def resume(con: "Connection", name: str) -> None:
    """Say that a run is going on again."""
    con.execute(
        "update raw.run set status = 'running', reason = null, ended_at = null where name = ?", [name]
    )


def end(con: "Connection", name: str, status: str, reason: str) -> None:
    """Say how a run ended, or what stopped it."""
    con.execute(
        """
        update raw.run set status = ?, reason = ?, ended_at = now() at time zone 'UTC' where name = ? and status = 'running'
        """,
        [status, reason, name],
    )


def plan(
    con: "Connection", run: Run, matings: "Sequence[tuple[str, Mating, str | None]]", left_out: str | None
) -> None:
    """The children of the generation that is not closed: name, mating, and why it is skipped (None: it is not)."""
    con.execute(
        "insert into raw.generation (run_id, generation, plan) values (?, ?, ?)",
        [run.run_id, run.generation, left_out],
    )
    for position, (child, mating, problem) in enumerate(matings):
        con.execute(
            """
            insert into raw.offspring (run_id, generation, position, child, parent_ids, role, method, seed, reason, kinship,
                status, problem)
            values (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)
            """,
            [
                run.run_id, run.generation, position, child, [naming.named(con, p) for p in mating.parents], mating.role,
                mating.method, mating.seed, mating.reason, mating.kinship, "skipped" if problem else "planned", problem,
            ],
        )  # fmt: skip


def mark(con: "Connection", run: Run, child: Child, **values: Any) -> None:
    """Set columns of a child's row; `model` names the model it became."""
    if "model" in values:
        values["child_id"] = naming.find(con, values.pop("model"))
    columns = ", ".join(f"{column} = ?" for column in values)
    con.execute(
        f"update raw.offspring set {columns} where run_id = ? and generation = ? and position = ?",
        [*values.values(), run.run_id, child.generation, child.position],
    )


def put_results(con: "Connection", model: str, results: Sequence[Result]) -> None:
    """Store what an evaluator gave."""
    put_scores(con, model, results)


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
    ids = [naming.named(con, model) for model in top]
    con.execute(
        """
        insert or replace into raw.generation (run_id, generation, plan, top_ids, top_kinship, reason, ended_at)
        select $1, $2, (select plan from raw.generation where run_id = $1 and generation = $2), $3, $4, $5,
            now() at time zone 'UTC'
        """,
        [run.run_id, run.generation, ids, top_kinship, reason],
    )
    con.execute(
        """
        update raw.offspring set kept = coalesce(list_contains($3, child_id), false)
        where run_id = $1 and generation = $2
        """,
        [run.run_id, run.generation, ids],
    )
    con.execute(
        "update raw.offspring set deleted = true where run_id = $1 and list_contains($2, child)",
        [run.run_id, list(dropped)],
    )


def _run_id(con: "Connection", name: str) -> int:
    row = con.execute("select run_id from raw.run where name = ?", [name]).fetchone()
    assert row
    return int(row[0])
