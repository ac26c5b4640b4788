"""Benchmark results to rows, what the benchmarks are about, and which models were trained for them.

All functions take a connection of `Store.writing()` and are part of its one transaction.
"""

from collections.abc import Sequence

from kinbase.checkpoint import Score, Task, Training
from kinbase.errors import KinbaseError
from kinbase.store import Connection, utc
from kinbase.store.names import named


def put_scores(con: Connection, subject: str | None, scores: Sequence[Score]) -> None:
    """Add benchmark results; one that is stored already is not stored twice."""
    ids: dict[str, int] = {}  # a leaderboard has a dozen scores a model and thousands of models
    rows = []
    for score in scores:
        model = score.model or subject
        if model is None:
            raise KinbaseError("the results do not say of which model they are: name it with --name")
        if model not in ids:
            ids[model] = named(con, model)
        rows.append([
            ids[model], score.benchmark, score.metric, score.value, score.stderr,
            score.n_shot, score.split, score.source, utc(score.evaluated_at),
        ])  # fmt: skip
    if not rows:
        return
    con.execute(
        """
        insert into raw.score (model_id, benchmark, metric, value, stderr, n_shot, split, source, evaluated_at)
        select distinct on (model_id, benchmark, metric, value, n_shot, split, source, evaluated_at) *
        from (
            select unnest($1::integer[]) as model_id, unnest($2::varchar[]) as benchmark, unnest($3::varchar[]) as metric,
                unnest($4::double[]) as value, unnest($5::double[]) as stderr, unnest($6::integer[]) as n_shot,
                unnest($7::varchar[]) as split, unnest($8::varchar[]) as source, unnest($9::timestamp[]) as evaluated_at
        ) new
        where not exists (
            select 1 from raw.score old
            where old.model_id = new.model_id and old.benchmark = new.benchmark and old.metric = new.metric
                and old.value = new.value and old.n_shot is not distinct from new.n_shot
                and old.split is not distinct from new.split and old.source is not distinct from new.source
                and old.evaluated_at is not distinct from new.evaluated_at
        )
        """,
        [list(column) for column in zip(*rows, strict=True)],
    )


def put_tasks(con: Connection, tasks: Sequence[Task]) -> None:
    """Store what benchmarks are about; the last word on each counts."""
    for task in tasks:
        con.execute("insert or replace into raw.task values (?, ?)", [task.benchmark, task.category])


def put_trainings(con: Connection, subject: str | None, trainings: Sequence[Training]) -> None:
    """Add the benchmarks models were trained for; one that is stored already is not stored twice."""
    for training in trainings:
        model = training.model or subject
        if model is None:
            raise KinbaseError("the table does not say which model was trained: name it with --name")
        con.execute(
            """
            insert into raw.training select $1, $2
            where not exists (select 1 from raw.training where model_id = $1 and benchmark = $2)
            """,
            [named(con, model), training.benchmark],
        )
