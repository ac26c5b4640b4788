"""What the kinship pass found, to rows: a base's tensors, members' deltas, pairs.

All functions take a connection of `Store.writing()` and are part of its one transaction.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from kinbase.store import Connection
from kinbase.store.columns import rows

if TYPE_CHECKING:  # importing numpy for an annotation would slow down every command
    from kinbase.kinship.sums import FloatArray, PairBlock, Weights


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


def covered(con: Connection, base_id: int) -> dict[int, float]:
    """The share of a base's parameters that each model measured against it was compared by, by model_id."""
    rows = con.execute(
        """
        select model_id, sum(numel) / (select sum(numel) from raw.tensor where base_id = $1)
        from raw.delta where base_id = $1 group by model_id
        """,
        [base_id],
    ).fetchall()
    return {int(model_id): float(share) for model_id, share in rows}


def put_deltas(
    con: Connection, base_id: int, model_ids: "Sequence[int]", columns: "Mapping[str, FloatArray]"
) -> None:
    """Store members' sums by tensor position [T, M], in place of what was known: numel, sum, sumsq, ...

    Tensors with numel 0 are left out; NaN becomes NULL.
    """
    import numpy as np

    if not len(model_ids):
        return
    ids = np.asarray(model_ids, np.int32)
    con.execute("delete from raw.delta where model_id in (select unnest($1::integer[]))", [ids])
    position, member = np.nonzero(columns["numel"] > 0)
    order = np.lexsort((position, member))
    position, member = position[order], member[order]
    table: dict[str, Any] = {name: values[position, member] for name, values in columns.items()}
    table |= {"model_id": ids[member], "position": position + 1}
    with rows(con, table) as new:
        con.execute(
            f"""
            insert into raw.delta
            select model_id, $1, position, numel, nullif(sum, 'nan'), nullif(sumsq, 'nan'), nullif(max_abs, 'nan'),
                zeros, nonfinite
            from {new}
            """,
            [base_id],
        )


def put_skipped(con: Connection, reasons: "Mapping[int, Mapping[str, str]]") -> None:
    """Store why tensors of models took no part, by model_id, in place of what was known."""
    if not reasons:
        return
    con.execute("delete from raw.skipped where model_id in (select unnest($1::integer[]))", [list(reasons)])
    listed = [(model_id, *item) for model_id, known in reasons.items() for item in known.items()]
    if listed:
        con.execute(
            "insert into raw.skipped select unnest($1::integer[]), unnest($2::varchar[]), unnest($3::varchar[])",
            [list(column) for column in zip(*listed, strict=True)],
        )


def put_pairs(con: Connection, base_id: int, block: "PairBlock") -> None:
    """Store measured pairs, in place of earlier measurements of the same pairs."""
    import numpy as np

    is_missing = bool(np.isnan(block.dots).any())
    dots = "list_transform(dots, lambda x: if(isnan(x), null, x))" if is_missing else "dots::double[]"
    names = ("a_id", "b_id", "numel", "sum_a", "sum_b", "sumsq_a", "sumsq_b", "dots")
    table = {name: getattr(block, name) for name in names}
    table["dot"] = np.nansum(block.dots, axis=1)
    with rows(con, table) as new:
        for name in ("pair", "pair_part"):
            con.execute(f"delete from raw.{name} where (a_id, b_id) in (select (a_id, b_id) from {new})")
        con.execute(
            f"""
            insert into raw.pair
            select a_id, b_id, $1, numel, sum_a, sum_b, sumsq_a, sumsq_b, dot, {dots} from {new}
            """,
            [base_id],
        )
    if block.parts:
        columns = zip(*block.parts, strict=True)
        con.execute(
            """
            insert into raw.pair_part
            select unnest($2::integer[]), unnest($3::integer[]), $1, unnest($4::integer[]), unnest($5::bigint[]),
                unnest($6::double[]), unnest($7::double[]), unnest($8::double[]), unnest($9::double[])
            """,
            [base_id, *map(list, columns)],
        )


def put_unfinished(con: Connection, model_ids: Sequence[int]) -> None:
    """Remember models whose pairs are yet to be stored."""
    con.execute("insert or ignore into raw.unfinished select unnest($1::integer[])", [list(model_ids)])


def drop_unfinished(con: Connection, model_ids: Sequence[int]) -> None:
    """Forget that the pairs of models were yet to be stored: all of them are."""
    con.execute(
        "delete from raw.unfinished where model_id in (select unnest($1::integer[]))", [list(model_ids)]
    )


def unfinished(con: Connection) -> set[int]:
    """The models whose pairs an import that was killed did not store."""
    return {model_id for (model_id,) in con.execute("select model_id from raw.unfinished").fetchall()}


def put_weights(con: Connection, known: "Mapping[int, Weights]") -> None:
    """Store what models' weights say by themselves, by model_id, in place of what was known."""
    import numpy as np

    if not known:
        return
    con.execute("delete from raw.weight where model_id in (select unnest($1::integer[]))", [list(known)])
    total, sumsq, ulpsq = np.concatenate([weights.moments for weights in known.values()]).T
    table = {
        "model_id": np.repeat(
            np.array(list(known), np.int32), [len(weights.tensors) for weights in known.values()]
        ),
        "tensor": [name for weights in known.values() for name in weights.tensors],
        "dtype": [dtype for weights in known.values() for dtype in weights.dtypes],
        "numel": [numel for weights in known.values() for numel in weights.numels],
        "sum": total, "sumsq": sumsq, "ulpsq": ulpsq,
    }  # fmt: skip
    with rows(con, table) as new:
        con.execute(
            f"""
            insert into raw.weight
            select model_id, tensor, dtype, numel, nullif(sum, 'nan'), nullif(sumsq, 'nan'), nullif(ulpsq, 'nan')
            from {new}
            """
        )


def weights(con: Connection, model_id: int) -> list[tuple[str, str, int]]:
    """Name, dtype and number of elements of a model's floating-point tensors."""
    listed = con.execute(
        "select tensor, dtype, numel from raw.weight where model_id = ? order by tensor", [model_id]
    ).fetchall()
    return [(str(tensor), str(dtype), int(numel)) for tensor, dtype, numel in listed]


def mean_squares(con: Connection, model_id: int) -> dict[str, float]:
    """The mean square of each of a model's floating-point tensors; those with elements that are not finite are left out."""
    query = (
        "select tensor, sumsq / numel from raw.weight where model_id = ? and sumsq is not null and numel > 0"
    )
    return {str(tensor): float(value) for tensor, value in con.execute(query, [model_id]).fetchall()}


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


# What a pass that is not over has finished, packed by kinbase.ingest.finished.


def keep(con: Connection, key: str, packed: Iterable[tuple[int, bytes]]) -> None:
    """Save rows by position, and forget those of passes that nobody took up for a month."""
    con.execute("delete from raw.pass where kept_at < now() at time zone 'UTC' - interval 30 days")
    con.executemany(
        "insert into raw.pass (pass_key, position, sums) values (?, ?, ?)",
        [[key, position, data] for position, data in packed],
    )


def kept(con: Connection, key: str) -> Iterator[tuple[int, bytes]]:
    """The rows of the pass with this key, a few at a time: first those at negative positions."""
    for which in ("position < 0", "position >= 0"):
        result = con.execute(f"select position, sums from raw.pass where pass_key = ? and {which}", [key])
        while rows := result.fetchmany(16):
            yield from rows


def kept_keys(con: Connection) -> set[str]:
    """The keys of the passes that have finished tensors."""
    return {key for (key,) in con.execute("select distinct pass_key from raw.pass").fetchall()}


def drop_kept(con: Connection, key: str) -> None:
    """Forget a pass that is over."""
    con.execute("delete from raw.pass where pass_key = ?", [key])
