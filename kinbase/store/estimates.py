"""Kinship that no pass over the weights measured, to rows: what others report, and estimates from samples.

All functions take a connection of `Store.writing()` and are part of its one transaction.
"""

from collections.abc import Iterable, Sequence

from kinbase.checkpoint import ReportedKinship
from kinbase.store import Connection
from kinbase.store.names import named_all


def put_reported(con: Connection, source: str, pairs: Sequence[ReportedKinship]) -> None:
    """Store kinship that somebody else measured, in place of what the same source reported before."""
    drop_reported(con, [source])
    ids = named_all(con, [name for pair in pairs for name in (pair.model_a, pair.model_b, pair.base) if name])
    said: dict[tuple[int, int, str], list[object]] = {}
    for pair in pairs:
        a, b = sorted((ids[pair.model_a], ids[pair.model_b]))
        if a == b:  # two names of one model
            continue
        told = pair.source or source
        base_id = ids[pair.base] if pair.base else None
        said[a, b, told] = [a, b, base_id, pair.pcc, pair.cs, pair.ed, told]
    if not said:
        return
    columns = [list(column) for column in zip(*said.values(), strict=True)]
    new = """
        select unnest($1::integer[]) as a_id, unnest($2::integer[]) as b_id, unnest($3::integer[]) as base_id,
            unnest($4::double[]) as pcc, unnest($5::double[]) as cs, unnest($6::double[]) as ed,
            unnest($7::varchar[]) as source
    """
    con.execute(
        f"delete from raw.estimate e using ({new}) n where e.a_id = n.a_id and e.b_id = n.b_id and e.source = n.source "
        "and e.method = 'reported'",
        columns,
    )
    con.execute(
        f"""
        insert into raw.estimate (a_id, b_id, base_id, method, pcc, cs, ed, source)
        select a_id, b_id, base_id, 'reported', pcc, cs, ed, source from ({new})
        """,
        columns,
    )


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
