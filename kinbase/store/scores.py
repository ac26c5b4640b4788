"""Benchmark results to rows, what the benchmarks are about, and which models were trained for them.

All functions take a connection of `Store.writing()` and are part of its one transaction.
"""

from collections.abc import Sequence

from kinbase.checkpoint import Score, Task, Training
from kinbase.errors import KinbaseError
from kinbase.store import Connection, utc
from kinbase.store.names import named_all


def put_scores(con: Connection, subject: str | None, scores: Sequence[Score]) -> None:
    """Add benchmark results. What a source says again is not stored twice; what it says otherwise is a later statement.

    Of several results of one test in `scores`, of one time, the last counts.
    """
    labels = dict.fromkeys(score.model or subject for score in scores)
    if None in labels:
        raise KinbaseError("the results do not say of which model they are: name it with --name")
    ids = named_all(con, [str(label) for label in labels])
    rows: dict[tuple[object, ...], list[object]] = {}
    for score in scores:
        said = (
            ids[str(score.model or subject)], score.benchmark, score.metric, score.n_shot, score.split, score.template,
            score.source, utc(score.evaluated_at),
        )  # fmt: skip
        rows[said] = [*said, score.value, score.stderr, score.higher_is_better]
    if not rows:
        return
    con.execute(
        """
        insert into raw.score (
            model_id, benchmark, metric, n_shot, split, template, source, evaluated_at, value, stderr, higher_is_better
        )
        with new as (
            select unnest($1::integer[]) as model_id, unnest($2::varchar[]) as benchmark, unnest($3::varchar[]) as metric,
                unnest($4::integer[]) as n_shot, unnest($5::varchar[]) as split, unnest($6::varchar[]) as template,
                unnest($7::varchar[]) as source, unnest($8::timestamp[]) as evaluated_at, unnest($9::double[]) as value,
                unnest($10::double[]) as stderr, unnest($11::boolean[]) as higher_is_better
        ),
        last as (  -- what each source said last of each test and time
            select * from raw.score where model_id in (select model_id from new)
            qualify row_number() over (
                partition by model_id, benchmark, metric, n_shot, split, template, source, evaluated_at
                order by imported_at desc, rowid desc
            ) = 1
        )
        select new.* from new left join last
            on last.model_id = new.model_id and last.benchmark = new.benchmark and last.metric = new.metric
            and last.n_shot is not distinct from new.n_shot and last.split is not distinct from new.split
            and last.template is not distinct from new.template and last.source is not distinct from new.source
            and last.evaluated_at is not distinct from new.evaluated_at
        where last.value is distinct from new.value
            or last.higher_is_better is distinct from coalesce(new.higher_is_better, last.higher_is_better)
        """,
        [list(column) for column in zip(*rows.values(), strict=True)],
    )


def put_tasks(con: Connection, tasks: Sequence[Task]) -> None:
    """Store what benchmarks are about; the last word on each counts."""
    said = {task.benchmark: task.category for task in tasks}
    if said:
        con.execute(
            "insert or replace into raw.task select unnest($1::varchar[]), unnest($2::varchar[])",
            [list(said), list(said.values())],
        )


def put_trainings(con: Connection, subject: str | None, trainings: Sequence[Training]) -> None:
    """Add the benchmarks models were trained for; one that is stored already is not stored twice."""
    said: dict[tuple[str, str], None] = {}
    for training in trainings:
        model = training.model or subject
        if model is None:
            raise KinbaseError("the table does not say which model was trained: name it with --name")
        said[model, training.benchmark] = None
    if not said:
        return
    ids = named_all(con, [model for model, _ in said])
    con.execute(
        """
        insert into raw.training
        select distinct new.model_id, new.benchmark
        from (select unnest($1::integer[]) as model_id, unnest($2::varchar[]) as benchmark) new
        where not exists (
            select 1 from raw.training old where old.model_id = new.model_id and old.benchmark = new.benchmark
        )
        """,
        [[ids[model] for model, _ in said], [benchmark for _, benchmark in said]],
    )
