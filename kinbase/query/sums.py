"""What was summed over weights and deltas, as it is stored: by model, by tensor, by pair. Arithmetic is for who asks.

Large answers are columns, float64 with NaN for NULL: rows as Python tuples would be most of the time they take.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kinbase.store import Connection

FloatArray = NDArray[np.float64]
BATCH = 10_000
"""Pairs read at a time: of a thousand models all at once would be gigabytes of Python floats."""

MEASURED = """
select m.name, m.model_id, b.model_id, b.name from raw.model m join raw.model b on b.model_id = m.base_id
where m.digest is not null and m.model_id in (select model_id from raw.delta)
    and m.model_id in (select model_id from raw.weight) and (len($1) = 0 or list_contains($1, m.name))
order by b.model_id, m.name
"""

STATE = """
select m.model_id, m.base_id, b.name, m.digest is not null, m.model_id in (select model_id from raw.delta),
    m.model_id in (select model_id from raw.weight), m.model_id in (select base_id from raw.model),
    coalesce(m.relation = 'adapter', false) or m.model_id in (select child_id from raw.claim where relation = 'adapter')
from raw.model m left join raw.model b on b.model_id = m.base_id where m.name = ?
"""

ADAPTERS = """
select m.name from raw.model m where m.digest is not null
    and (m.model_id in (select child_id from raw.claim where evidence = 'adapter')
        or (m.parameters is null and m.model_id in (select model_id from raw.delta)))
"""

UNMEASURED = """
select name from models
where base = ? and digest is not null and same_as is null and name not in (select distinct model from deltas) order by name
"""

CHOSEN_PAIRS = """
semi join (select unnest($2::integer[]) as a_id, unnest($3::integer[]) as b_id) using (a_id, b_id) where base_id = $1
"""


def columns(con: Connection, query: str, parameters: Sequence[object]) -> list[FloatArray]:
    """The columns of a query as arrays."""
    found = con.execute(query, list(parameters)).fetchnumpy()
    return [
        np.ma.filled(column.astype(np.float64), np.nan) if np.ma.isMaskedArray(column) else column
        for column in found.values()
    ]


# Which models have any.


def measured_models(con: Connection, names: Sequence[str]) -> list[tuple[str, int, int, str]]:
    """Of the models named (none: of all) those with sums of their deltas and of their weights: name, id, base's id and name."""
    return con.execute(MEASURED, [list(names)]).fetchall()


def unmeasured_members(con: Connection, base: str) -> list[str]:
    """Members that have weights and no sums, as after --stream and --sketch; copies are no members of their own."""
    return [name for (name,) in con.execute(UNMEASURED, [base]).fetchall()]


def state(con: Connection, name: str) -> tuple[int, int | None, str | None, bool, bool, bool, bool, bool]:
    """Of a stored model: its id, its base's id and name, whether it has weights, sums of its deltas, sums of its weights,
    is a base itself, is an adapter.
    """
    row = con.execute(STATE, [name]).fetchone()
    assert row
    model_id, base_id, base, *flags = row
    has_weights, measured, weighed, is_base, is_adapter = map(bool, flags)
    return model_id, base_id, base, has_weights, measured, weighed, is_base, is_adapter


def adapters(con: Connection) -> set[str]:
    """The names of adapters that are stored by their deltas."""
    return {name for (name,) in con.execute(ADAPTERS).fetchall()}


def members_with_dates(con: Connection, base_id: int) -> dict[int, Any]:
    """The members of a family with sums of their deltas, by id, and when they were made."""
    query = """
        select model_id, created_at from raw.model
        where base_id = ? and digest is not null and model_id in (select model_id from raw.delta) order by model_id
    """
    return dict(con.execute(query, [base_id]).fetchall())


def seconds_of(con: Connection, ids: Sequence[int]) -> dict[int, float | None]:
    """When models were made, in seconds since 1970."""
    query = "select model_id, epoch(created_at) from raw.model where list_contains(?, model_id)"
    return dict(con.execute(query, [list(ids)]).fetchall())


def names_of(con: Connection, ids: Sequence[int]) -> dict[int, str]:
    """The names of models."""
    query = "select model_id, name from raw.model where list_contains(?, model_id)"
    return dict(con.execute(query, [list(ids)]).fetchall())


# By tensor.


def tensors(con: Connection, base_id: int) -> list[tuple[str, int]]:
    """The tensors of a base in their order, and how many elements each has."""
    query = "select name, numel from raw.tensor where base_id = ? order by position"
    return con.execute(query, [base_id]).fetchall()


def deltas(con: Connection, base_id: int, ids: Sequence[int]) -> list[FloatArray]:
    """Columns model_id, position, numel, sumsq, zeros of the deltas from a base."""
    query = "select model_id, position, numel, sumsq, zeros from raw.delta where base_id = $1 and list_contains($2, model_id)"
    return columns(con, query, [base_id, list(ids)])


def lengths(con: Connection, base_id: int, ids: Sequence[int]) -> list[tuple[int, str, float | None]]:
    """Id, name and squared length of the whole delta of members of a family, by id."""
    query = """
        select m.model_id, m.name, sum(d.sumsq)
        from raw.model m join raw.delta d on d.model_id = m.model_id and d.base_id = m.base_id
        where m.base_id = $1 and list_contains($2, m.model_id) group by all order by m.model_id
    """
    return con.execute(query, [base_id, list(ids)]).fetchall()


# By pair.


def dots(con: Connection, base_id: int) -> list[FloatArray]:
    """Columns a_id, b_id, dot of all pairs measured against a base."""
    return columns(con, "select a_id, b_id, dot from raw.pair where base_id = ?", [base_id])


def dots_by_tensor(con: Connection, base_id: int, pairs: Sequence[tuple[int, int]]) -> list[FloatArray]:
    """Columns a_id, b_id, dot: of each of `pairs` that is measured as many rows as the base has tensors, in their order."""
    query = f"select a_id, b_id, unnest(dots) from raw.pair {CHOSEN_PAIRS}"
    return columns(con, query, [base_id, *map(list, zip(*pairs, strict=True))])


def partial(con: Connection, base_id: int, pairs: Sequence[tuple[int, int]]) -> list[tuple[int, int, int]]:
    """The pairs and the positions of tensors that were compared in part only."""
    query = f"select a_id, b_id, position from raw.pair_part {CHOSEN_PAIRS}"
    return con.execute(query, [base_id, *map(list, zip(*pairs, strict=True))]).fetchall()


def dots_among(
    con: Connection, base_id: int, ids: Sequence[int]
) -> Iterator[tuple[int, int, list[float | None]]]:
    """The measured pairs among models of a family: two ids, and the inner product of each tensor."""
    query = "select a_id, b_id, dots from raw.pair where base_id = $1 and list_contains($2, a_id) and list_contains($2, b_id)"
    result = con.execute(query, [base_id, list(ids)])
    while rows := result.fetchmany(BATCH):
        yield from rows


def distance_and_length(con: Connection, one: int, other: int | None) -> tuple[float, float] | None:
    """How far two measured models are apart, and the length of the delta of the first; None of a pair not measured."""
    query = """
        select sqrt(greatest(sumsq_a + sumsq_b - 2 * dot, 0)), sqrt(if(a_id = $1, sumsq_a, sumsq_b))
        from raw.pair where a_id = least($1, $2) and b_id = greatest($1, $2)
    """
    rows: list[tuple[float, float]] = con.execute(query, [one, other]).fetchall()
    return rows[0] if rows else None


def cosines(con: Connection, model_id: int, ids: Sequence[int]) -> dict[int, float]:
    """The absolute cosine of a model's delta with those of others, where it is known by any method."""
    query = """
        select b_id, abs(cs) from raw.best_kinship where a_id = $1 and list_contains($2, b_id) and cs is not null
    """
    return dict(con.execute(query, [model_id, list(ids)]).fetchall())


# Of the weights themselves.


def main_dtypes(con: Connection, ids: Sequence[int]) -> dict[int, str]:
    """The dtype of most elements of each model."""
    query = "select model_id, dtype from raw.weight where list_contains(?, model_id) group by all order by sum(numel), dtype"
    return dict(con.execute(query, [list(ids)]).fetchall())


def weight_names(con: Connection, ids: Sequence[int]) -> list[str]:
    """The names of all tensors that any of the models has."""
    query = "select distinct tensor from raw.weight where list_contains(?, model_id)"
    return [tensor for (tensor,) in con.execute(query, [list(ids)]).fetchall()]


def weights_at(
    con: Connection, ids: Sequence[int], places: Mapping[str, int], bits: Mapping[str, int]
) -> list[FloatArray]:
    """Columns model_id, position, numel, sumsq, ulpsq, sum and significant bits of the tensors that have a place.

    `places` are positions by tensor, `bits` the significant bits by dtype; tensors that are not finite are left out.
    """
    known = " ".join(f"when '{code}' then {number}" for code, number in bits.items())
    query = f"""
        select model_id, position, numel, sumsq, ulpsq, sum, (case dtype {known} end)::double from raw.weight
        join (select unnest($2::varchar[]) as tensor, unnest($3::integer[]) as position) using (tensor)
        where list_contains($1, model_id) and sumsq is not null
    """
    return columns(con, query, [list(ids), list(places), list(places.values())])


def weights(con: Connection, ids: Sequence[int]) -> list[tuple[Any, ...]]:
    """Rows of model_id, tensor, dtype, numel, sum, sumsq, ulpsq; sums are None where an element is not finite."""
    query = "select model_id, tensor, dtype, numel, sum, sumsq, ulpsq from raw.weight where list_contains(?, model_id)"
    return con.execute(query, [list(ids)]).fetchall()


def sketches_of_one_scheme(con: Connection, ids: Sequence[int]) -> dict[int, Any]:
    """The sketches of models by the first scheme that all of them have; none when there is no such."""
    query = """
        select model_id, sums from raw.sketch where list_contains($1, model_id) and scheme = (
            select scheme from raw.sketch where list_contains($1, model_id) group by scheme
            having count(*) = len($1) order by scheme limit 1
        )
    """
    return dict(con.execute(query, [list(ids)]).fetchall())


# What is said.


def children_by_claims(con: Connection) -> list[tuple[int, int]]:
    """Parent and child of every claim but the weights' own."""
    query = "select distinct parent_id, child_id from raw.claim where evidence <> 'weights'"
    return con.execute(query).fetchall()


def claims(con: Connection) -> list[tuple[Any, ...]]:
    """Every claim but the weights' own: child, evidence, source, parent, relation, method, weight, the parent's id where it
    has weights, and its base's.
    """
    return con.execute(
        """
        select c.name, k.evidence, k.source, p.name, k.relation, k.method, k.weight,
            if(p.digest is null, null, p.model_id), p.base_id
        from raw.claim k join raw.model c on c.model_id = k.child_id join raw.model p on p.model_id = k.parent_id
        where k.evidence <> 'weights' order by c.name, k.evidence, k.source, k.weight desc nulls last, p.name
        """
    ).fetchall()


def files_of(
    con: Connection, names: Sequence[str], model: str
) -> tuple[dict[str, str], dict[str, str], str | None]:
    """Where models lie; of adapters also where lies what they are of; and the dtype of `model`."""
    places = dict(
        con.execute(
            "select name, source from raw.model where list_contains($1, name)", [list(names)]
        ).fetchall()
    )
    of = dict(
        con.execute(
            """
            select c.name, p.source from raw.claim k
            join raw.model c on c.model_id = k.child_id join raw.model p on p.model_id = k.parent_id
            where k.relation = 'adapter' and list_contains($1, c.name)
            """,
            [list(names)],
        ).fetchall()
    )
    row = con.execute("select dtype from raw.model where name = ?", [model]).fetchone()
    return places, of, row[0] if row else None


def copies(con: Connection, names: Sequence[str] = ()) -> list[tuple[str, str, str]]:
    """Copies among models of these names, or all: name, original, and the original's base, itself where it has none."""
    return con.execute(
        """
        select m.name, m.same_as, coalesce(o.base, m.same_as) from models m join models o on o.name = m.same_as
        where m.same_as is not null and (len($1) = 0 or list_contains($1, m.name)) order by m.name
        """,
        [list(names)],
    ).fetchall()
