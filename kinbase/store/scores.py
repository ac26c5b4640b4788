"""Benchmark results to rows, what the benchmarks are about, and which models were trained for them.

All functions take a connection of `Store.writing()` and are part of its one transaction.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from kinbase.checkpoint import Row, Score, Table, Task, Training
from kinbase.errors import KinbaseError
from kinbase.store import Connection
from kinbase.store.columns import filled, rows
from kinbase.store.labels import meant, put_fresh

if TYPE_CHECKING:
    import polars as pl


def put_scores(con: Connection, subject: str | None, scores: Sequence[Score] | Table) -> None:
    """Add benchmark results. What a source says again is not stored twice; what it says otherwise is a later statement.

    Of several results of one test in `scores`, of one time, the last counts.
    """
    frame = _rows_of(
        Score, subject, scores, "the results do not say of which model they are: name it with --name"
    )
    if frame.is_empty():
        return
    with (
        meant(con, frame, model="model_id") as told,
        rows(con, told.with_row_index("place"), kind=Score),
    ):
        put_fresh(con)
        con.execute(
            f"""
            insert into raw.score ({_TEST}, value, stderr, higher_is_better)
            with new as (
                select {_TEST}, value, stderr, higher_is_better, place from new_rows
                qualify row_number() over (partition by {_TEST} order by place desc) = 1
            ),
            last as (  -- what each source said last of each test and time
                select * from raw.score where model_id in (select model_id from new)
                qualify row_number() over (partition by {_TEST} order by imported_at desc, rowid desc) = 1
            )
            select new.* exclude (place) from new left join last
                on last.model_id = new.model_id and last.benchmark = new.benchmark and last.metric = new.metric
                and last.n_shot is not distinct from new.n_shot and last.split is not distinct from new.split
                and last.template is not distinct from new.template and last.source is not distinct from new.source
                and last.evaluated_at is not distinct from new.evaluated_at
            where last.value is distinct from new.value
                or last.higher_is_better is distinct from coalesce(new.higher_is_better, last.higher_is_better)
            order by place
            """
        )


_TEST = "model_id, benchmark, metric, n_shot, split, template, source, evaluated_at"
"""What makes two results two statements on one test."""


def _rows_of(
    kind: type[Row], subject: str | None, said: Sequence[Row] | Table, silent: str
) -> "pl.DataFrame":
    """Records as columns, with the subject as their model where they name none; KinbaseError, `silent`, where there is none."""
    from kinbase.checkpoint import tables

    table = said if isinstance(said, Table) else tables.of(kind, said)
    frame = filled(table.rows, model=subject)
    if frame["model"].has_nulls():
        raise KinbaseError(silent)
    return frame


def put_tasks(con: Connection, tasks: Sequence[Task] | Table) -> None:
    """Store what benchmarks are about; the last word on each counts."""
    from kinbase.checkpoint import tables

    table = tasks if isinstance(tasks, Table) else tables.of(Task, tasks)
    with rows(con, table.rows.unique("benchmark", keep="last", maintain_order=True)):
        con.execute("insert or replace into raw.task select benchmark, category from new_rows")


def put_trainings(con: Connection, subject: str | None, trainings: Sequence[Training] | Table) -> None:
    """Add the benchmarks models were trained for; one that is stored already is not stored twice."""
    frame = _rows_of(
        Training, subject, trainings, "the table does not say which model was trained: name it with --name"
    )
    if frame.is_empty():
        return
    with meant(con, frame, model="model_id") as told, rows(con, told):
        put_fresh(con)
        con.execute(
            """
            insert into raw.training
            select distinct model_id, benchmark from new_rows
            where not exists (
                select 1 from raw.training old where old.model_id = new_rows.model_id and old.benchmark = new_rows.benchmark
            )
            """
        )
