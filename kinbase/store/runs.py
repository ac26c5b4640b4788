"""The rows of a run of evolution: what it was asked, what it tried, what came of it.

The functions that write take a connection of `Store.writing()` and are part of its transaction.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from kinbase.errors import KinbaseError
from kinbase.store.connection import Connection
from kinbase.store.names import find, named


@dataclass(frozen=True, slots=True)
class RunRows:
    """A run as it is stored: `children` are rows of CHILD, `tops` the ids of the k best by generation with their kinship.

    `models` has name and bytes of every model that these number; one that is missing is not there any more.
    """

    run_id: int
    config: str
    status: str
    reason: str | None
    children: list[tuple[Any, ...]]
    tops: list[tuple[list[int], float | None]]
    models: dict[int, tuple[str, int]]


CHILD = (
    "generation", "position", "child", "child_id", "parent_ids", "role", "method", "seed", "reason", "kinship", "status",
    "problem", "score", "folder", "deleted",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class PlannedChild:
    """A child that a generation is to make; `problem` says why it is skipped (None: it is not)."""

    name: str
    parents: Sequence[str]
    role: str
    method: str
    seed: int
    reason: str
    kinship: float | None
    problem: str | None


def read(con: Connection, name: str) -> RunRows:
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
    children = con.execute(
        f"select {', '.join(CHILD)} from raw.offspring where run_id = ? order by generation, position",
        [run_id],
    ).fetchall()
    tops = con.execute(
        "select top_ids, top_kinship from raw.generation where run_id = ? and ended_at is not null order by generation",
        [run_id],
    ).fetchall()
    # Names by hand: the views' joins take a tenth of a second, and a run reads itself at every step.
    ids = {i for child in children for i in [child[3], *child[4]] if i is not None}
    ids |= {i for top, _ in tops for i in top}
    models = con.execute(
        "select model_id, name, coalesce(bytes, 0) from raw.model where list_contains($1, model_id)",
        [list(ids)],
    ).fetchall()
    sizes = {id_: (model, size) for id_, model, size in models}
    return RunRows(run_id, config, status, reason, children, tops, sizes)


def begin(con: Connection, name: str, strategy: str, config: str, models: Sequence[str]) -> None:
    """A new run, with the models it starts from as its generation 0. Raises KinbaseError when the name is taken."""
    row = con.execute("select status from raw.run where name = ?", [name]).fetchone()
    if row is not None:
        goes_on = f"`kinbase evolve --resume {name}` goes on with it, " if row[0] != "finished" else ""
        raise KinbaseError(
            f"there is a run {name} already ({row[0]}): {goes_on}--name gives this one another name"
        )
    con.execute(
        "insert into raw.run (name, strategy, status, config) values (?, ?, 'running', ?)",
        [name, strategy, config],
    )
    ((run_id,),) = con.execute("select run_id from raw.run where name = ?", [name]).fetchall()
    for position, model in enumerate(models):
        con.execute(
            """
            insert into raw.offspring (run_id, generation, position, child, child_id, parent_ids, role, reason, status)
            values (?, 0, ?, ?, ?, [], 'start', 'the configuration names it', 'planned')
            """,
            [run_id, position, model, named(con, model)],
        )


def resume(con: Connection, name: str) -> None:
    """Say that a run is going on again."""
    con.execute(
        "update raw.run set status = 'running', reason = null, ended_at = null where name = ?", [name]
    )


def end(con: Connection, name: str, status: str, reason: str) -> None:
    """Say how a run ended, or what stopped it."""
    con.execute(
        """
        update raw.run set status = ?, reason = ?, ended_at = now() at time zone 'UTC' where name = ? and status = 'running'
        """,
        [status, reason, name],
    )


def plan(
    con: Connection, run_id: int, generation: int, children: Sequence[PlannedChild], left_out: str | None
) -> None:
    """The children of a new generation, and what the strategy left out."""
    con.execute(
        "insert into raw.generation (run_id, generation, plan) values (?, ?, ?)",
        [run_id, generation, left_out],
    )
    for position, child in enumerate(children):
        con.execute(
            """
            insert into raw.offspring (run_id, generation, position, child, parent_ids, role, method, seed, reason, kinship,
                status, problem)
            values (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)
            """,
            [
                run_id, generation, position, child.name, [named(con, p) for p in child.parents], child.role, child.method,
                child.seed, child.reason, child.kinship, "skipped" if child.problem else "planned", child.problem,
            ],
        )  # fmt: skip


def mark(con: Connection, run_id: int, generation: int, position: int, **values: Any) -> None:
    """Set columns of a child's row; `model` names the model it became."""
    if "model" in values:
        values["child_id"] = find(con, values.pop("model"))
    columns = ", ".join(f"{column} = ?" for column in values)
    con.execute(
        f"update raw.offspring set {columns} where run_id = ? and generation = ? and position = ?",
        [*values.values(), run_id, generation, position],
    )


def close(
    con: Connection,
    run_id: int,
    generation: int,
    top: Sequence[str],
    top_kinship: float | None,
    reason: str,
    dropped: Sequence[str],
) -> None:
    """Close a generation: who is among the best, and the children whose weights are to be deleted."""
    ids = [named(con, model) for model in top]
    con.execute(
        """
        insert or replace into raw.generation (run_id, generation, plan, top_ids, top_kinship, reason, ended_at)
        select $1, $2, (select plan from raw.generation where run_id = $1 and generation = $2), $3, $4, $5,
            now() at time zone 'UTC'
        """,
        [run_id, generation, ids, top_kinship, reason],
    )
    con.execute(
        """
        update raw.offspring set kept = coalesce(list_contains($3, child_id), false)
        where run_id = $1 and generation = $2
        """,
        [run_id, generation, ids],
    )
    con.execute(
        "update raw.offspring set deleted = true where run_id = $1 and list_contains($2, child)",
        [run_id, list(dropped)],
    )
