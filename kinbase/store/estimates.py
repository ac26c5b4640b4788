"""Kinship that no pass over the weights measured, to rows: what others report, and estimates from samples.

All functions take a connection of `Store.writing()` and are part of its one transaction.
"""

from collections.abc import Iterable, Sequence

from kinbase.checkpoint import ReportedKinship, Table
from kinbase.store import Connection
from kinbase.store.columns import filled, rows
from kinbase.store.labels import meant, put_fresh


def put_reported(con: Connection, source: str, pairs: Sequence[ReportedKinship] | Table) -> None:
    """Store kinship that somebody else measured, in place of what the same source reported before."""
    from kinbase.checkpoint import tables

    drop_reported(con, [source])
    table = pairs if isinstance(pairs, Table) else tables.of(ReportedKinship, pairs)
    frame = filled(table.rows, source=source)
    if frame.is_empty():
        return
    with (
        meant(
            con, frame, model_a="x", model_b="y", **({"base": "z"} if "base" in frame.columns else {})
        ) as told,
        rows(con, told.with_row_index("place"), kind=ReportedKinship),
    ):
        put_fresh(con)
        # Two names of one model are no pair; of several words of one source on a pair the last counts.
        con.execute(
            f"""
            create or replace temp table reported as
            select least(x, y) as a_id, greatest(x, y) as b_id, {"z" if "z" in told.columns else "null"} as base_id,
                pcc, cs, ed, source
            from new_rows where x <> y
            qualify row_number() over (partition by a_id, b_id, source order by place desc) = 1
            order by place
            """
        )
    con.execute(
        "delete from raw.estimate e using reported n where e.a_id = n.a_id and e.b_id = n.b_id and e.source = n.source "
        "and e.method = 'reported'"
    )
    con.execute(
        """
        insert into raw.estimate (a_id, b_id, base_id, method, pcc, cs, ed, source)
        select a_id, b_id, base_id, 'reported', pcc, cs, ed, source from reported
        """
    )
    con.execute("drop table reported")


def drop_reported(con: Connection, sources: Sequence[str]) -> None:
    """Forget the kinship that these sources reported."""
    con.execute(
        "delete from raw.estimate where method = 'reported' and list_contains($1::varchar[], source)",
        [list(sources)],
    )


def put_sampled(con: Connection, base_id: int, rows: Iterable[Sequence[object]]) -> None:
    """Store estimates from samples, in place of earlier ones of the same pairs.

    A row is (model, model, pcc, cs, ed, stderr, coverage, what was read), models by their model_id.
    """
    for a, b, *values in rows:
        ids = sorted((int(str(a)), int(str(b))))
        con.execute("delete from raw.estimate where a_id = ? and b_id = ? and method = 'sampled'", ids)
        con.execute(
            """
            insert into raw.estimate (a_id, b_id, base_id, method, pcc, cs, ed, stderr, coverage, source)
            values (?, ?, ?, 'sampled', ?, ?, ?, ?, ?, ?)
            """,
            [*ids, base_id, *values],
        )


def put_sketched(con: Connection, base_id: int, rows: Sequence[tuple[object, ...]]) -> None:
    """Store estimates from sketches, in place of earlier ones of the same pairs.

    A row is (model, model, pcc, cs, ed, stderr, coverage), models by their model_id, the lower first.
    """
    columns = [list(column) for column in zip(*rows, strict=True)]
    con.execute(
        "delete from raw.estimate where method = 'sketch' and (a_id, b_id) in (select (unnest($1), unnest($2)))",
        columns[:2],
    )
    con.execute(
        """
        insert into raw.estimate (a_id, b_id, base_id, method, pcc, cs, ed, stderr, coverage)
        select a_id, b_id, $1, 'sketch', pcc, cs, ed, stderr, coverage
        from (
            select unnest($2::integer[]) as a_id, unnest($3::integer[]) as b_id, unnest($4::double[]) as pcc,
                unnest($5::double[]) as cs, unnest($6::double[]) as ed, unnest($7::double[]) as stderr,
                unnest($8::double[]) as coverage
        )
        """,
        [base_id, *columns],
    )
