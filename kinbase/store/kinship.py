"""What the kinship pass found, to rows: a base's tensors, members' deltas, pairs.

All functions take a connection of `Store.writing()` and are part of its one transaction.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

from kinbase.store import Connection

if TYPE_CHECKING:  # importing numpy for an annotation would slow down every command
    from kinbase.kinship.sums import FloatArray, Pair, Weights


def put_tensors(con: Connection, base_id: int, names: Sequence[str], numels: Sequence[int]) -> bool:
    """Store a base's tensors in the order of the pass; whether they were others before.

    Sums by the positions of other tensors are dropped: they are measured again when they are asked for.
    """
    stored = con.execute(
        "select name, numel from raw.tensor where base_id = ? order by position", [base_id]
    ).fetchall()
    are_others = bool(stored) and stored != list(zip(names, numels, strict=True))
    if are_others:
        for table in ("tensor", "delta", "pair", "pair_part"):
            con.execute(f"delete from raw.{table} where base_id = ?", [base_id])
    if are_others or not stored:
        con.execute(
            "insert into raw.tensor select $1, unnest(range(1, len($2) + 1)), unnest($2), unnest($3)",
            [base_id, list(names), list(numels)],
        )
    return are_others


def put_deltas(con: Connection, model_id: int, base_id: int, columns: "Mapping[str, FloatArray]") -> None:
    """Store one member's sums by tensor position [T]: numel, sum, sumsq, max_abs, zeros, nonfinite.

    Tensors with numel 0 are left out; NaN becomes NULL.
    """
    con.execute("delete from raw.delta where model_id = ?", [model_id])
    con.execute(
        """
        insert into raw.delta
        select $1, $2, position, numel, nullif(sum, 'nan'), nullif(sumsq, 'nan'), nullif(max_abs, 'nan'), zeros, nonfinite
        from (
            select unnest(range(1, len($3) + 1)) as position, unnest($3) as numel, unnest($4) as sum,
                unnest($5) as sumsq, unnest($6) as max_abs, unnest($7) as zeros, unnest($8) as nonfinite
        )
        where numel > 0
        """,
        [
            model_id,
            base_id,
            *(columns[name] for name in ("numel", "sum", "sumsq", "max_abs", "zeros", "nonfinite")),
        ],
    )


def put_skipped(con: Connection, model_id: int, reasons: Mapping[str, str]) -> None:
    """Store why tensors took no part, in place of what was known."""
    con.execute("delete from raw.skipped where model_id = ?", [model_id])
    if reasons:
        con.execute(
            "insert into raw.skipped select $1, unnest($2), unnest($3)",
            [model_id, list(reasons), list(reasons.values())],
        )


def put_pairs(con: Connection, base_id: int, pairs: "Iterable[Pair]") -> None:
    """Store measured pairs, in place of earlier measurements of the same pairs."""
    ordered = [pair if pair.a_id < pair.b_id else pair.swapped() for pair in pairs]
    if not ordered:
        return
    ids = [[pair.a_id for pair in ordered], [pair.b_id for pair in ordered]]
    for table in ("pair", "pair_part"):
        con.execute(f"delete from raw.{table} where (a_id, b_id) in (select (unnest($1), unnest($2)))", ids)
    con.execute(
        """
        insert into raw.pair
        select a_id, b_id, $3, numel, sum_a, sum_b, sumsq_a, sumsq_b,
            list_sum(list_filter(dots, lambda x: not isnan(x))),
            list_transform(dots, lambda x: if(isnan(x), null, x))
        from (
            select unnest($1) as a_id, unnest($2) as b_id, unnest($4) as numel, unnest($5) as sum_a,
                unnest($6) as sum_b, unnest($7) as sumsq_a, unnest($8) as sumsq_b, unnest($9) as dots
        )
        """,
        [
            *ids, base_id, [p.numel for p in ordered], [p.sum_a for p in ordered], [p.sum_b for p in ordered],
            [p.sumsq_a for p in ordered], [p.sumsq_b for p in ordered], [p.dots for p in ordered],
        ],
    )  # fmt: skip
    parts = [[pair.a_id, pair.b_id, base_id, *part] for pair in ordered for part in pair.parts]
    if parts:
        con.executemany("insert into raw.pair_part values (?, ?, ?, ?, ?, ?, ?, ?, ?)", parts)


def put_weights(con: Connection, model_id: int, weights: "Weights") -> None:
    """Store what a model's weights say by themselves, in place of what was known."""
    con.execute("delete from raw.weight where model_id = ?", [model_id])
    con.execute(
        """
        insert into raw.weight
        select $1, tensor, dtype, numel, nullif(sum, 'nan'), nullif(sumsq, 'nan'), nullif(ulpsq, 'nan')
        from (
            select unnest($2::varchar[]) as tensor, unnest($3::varchar[]) as dtype, unnest($4::bigint[]) as numel,
                unnest($5::double[]) as sum, unnest($6::double[]) as sumsq, unnest($7::double[]) as ulpsq
        )
        """,
        [model_id, weights.tensors, weights.dtypes, weights.numels, *weights.moments.T],
    )


def weights(con: Connection, model_id: int) -> list[tuple[str, str, int]]:
    """Name, dtype and number of elements of a model's floating-point tensors."""
    rows = con.execute(
        "select tensor, dtype, numel from raw.weight where model_id = ? order by tensor", [model_id]
    ).fetchall()
    return [(str(tensor), str(dtype), int(numel)) for tensor, dtype, numel in rows]


def grid_noise(con: Connection, model_ids: Iterable[int]) -> dict[int, float]:
    """The squared rounding error that is expected of each of these models that was quantised."""
    query = "select model_id, noise from raw.grid where list_contains(?, model_id)"
    return dict(con.execute(query, [list(model_ids)]).fetchall())


def grid_error(con: Connection, numel: int, cosine: float, share_a: float, share_b: float) -> float:
    """What noise that is such shares of two squared lengths may cost their cosine; see the macro of this name."""
    if not share_a and not share_b:
        return 0.0
    row = con.execute("select grid_error(?, ?, ?, ?)", [numel, cosine, share_a, share_b]).fetchone()
    assert row
    return float(row[0])


# Finished tensors of a pass that is not over, packed by kinbase.ingest.family_pass.


def keep(con: Connection, key: str, packed: Mapping[int, bytes]) -> None:
    """Save finished tensors by position, and forget those of passes that nobody took up for a month."""
    con.execute("delete from raw.pass where kept_at < now() at time zone 'UTC' - interval 30 days")
    con.executemany(
        "insert into raw.pass (pass_key, position, sums) values (?, ?, ?)",
        [[key, position, blob] for position, blob in packed.items()],
    )


def kept(con: Connection, key: str) -> list[bytes]:
    """The finished tensors of the pass with this key."""
    return [blob for (blob,) in con.execute("select sums from raw.pass where pass_key = ?", [key]).fetchall()]


def kept_keys(con: Connection) -> set[str]:
    """The keys of the passes that have finished tensors."""
    return {key for (key,) in con.execute("select distinct pass_key from raw.pass").fetchall()}


def drop_kept(con: Connection, key: str) -> None:
    """Forget a pass that is over."""
    con.execute("delete from raw.pass where pass_key = ?", [key])
