"""Whether the rows hang together: ids that lead nowhere, sums that cannot be, views that are not ours; and mending.

The tables have no foreign keys (DuckDB refuses updates of rows that are referred to), so integrity is asked here.
Which columns hold the ids of models follows from their names.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from kinbase.schema import scripts
from kinbase.store import Connection, surface

MODELS = ("model_id", "base_id", "a_id", "b_id", "child_id", "parent_id", "onto_id", "same_id")
"""Columns that hold the id of a model."""
MANY = ("parent_ids", "top_ids")
"""Columns that hold several."""
OPTIONAL = {("model", "base_id"), ("model", "same_id"), ("offspring", "child_id"), ("estimate", "base_id")}
"""Columns of rows that say something without the id."""
SEQUENCES = ("model", "run")


@dataclass(frozen=True, slots=True)
class Dangling:
    """Rows of a table whose `column` leads to models, or runs, that are not there."""

    table: str
    column: str
    rows: int
    first: int


def dangling(con: Connection) -> list[Dangling]:
    """All ids that lead nowhere."""
    found = []
    for table, column, kind in _columns(con):
        lost = _lost(table, column, kind)
        row = con.execute(
            f"select count(*), min({_first(column, kind)}) from raw.{table} where {lost}"
        ).fetchone()
        assert row
        if row[0]:
            found.append(Dangling(table, column, *map(int, row)))
    return found


def impossible(con: Connection) -> list[tuple[str, str, str]]:
    """Pairs whose product is larger than their lengths allow (Cauchy and Schwarz), or is not the sum of its parts."""
    rows = con.execute(
        """
        select a.name, b.name, case
            when abs(p.dot) > sqrt(p.sumsq_a * p.sumsq_b) * (1 + 1e-6)
                then 'their product is larger than their lengths allow'
            when p.sumsq_a < 0 or p.sumsq_b < 0 then 'a sum of squares is negative'
            else 'their product is not the sum over its tensors' end
        from raw.pair p
        join raw.model a on a.model_id = p.a_id
        join raw.model b on b.model_id = p.b_id
        where abs(p.dot) > sqrt(greatest(p.sumsq_a, 0) * greatest(p.sumsq_b, 0)) * (1 + 1e-6)
            or p.sumsq_a < 0 or p.sumsq_b < 0
            or abs(p.dot - coalesce(list_sum(p.dots), 0)) > 1e-6 * sqrt(greatest(p.sumsq_a, 0) * greatest(p.sumsq_b, 0))
        order by 1, 2 limit 1000
        """
    ).fetchall()
    return [(str(a), str(b), str(why)) for a, b, why in rows]


def grams(con: Connection) -> list[tuple[str, NDArray[np.float64]]]:
    """The Gram matrix of each family whose pairs are all measured over the same elements, [N, N], by the base's name."""
    rows = con.execute(
        """
        select b.name, list({'a': p.a_id, 'b': p.b_id, 'n': p.numel, 'qa': p.sumsq_a, 'qb': p.sumsq_b, 'dot': p.dot})
        from raw.pair p join raw.model b on b.model_id = p.base_id group by b.name order by b.name
        """
    ).fetchall()
    found = []
    for base, pairs in rows:
        ids = sorted({pair[side] for pair in pairs for side in "ab"})
        if len({pair["n"] for pair in pairs}) > 1 or len(pairs) != len(ids) * (len(ids) - 1) // 2:
            continue
        at = {model_id: i for i, model_id in enumerate(ids)}
        gram = np.zeros((len(ids), len(ids)))
        for pair in pairs:
            i, j = at[pair["a"]], at[pair["b"]]
            gram[i, j] = gram[j, i] = pair["dot"]
            gram[i, i], gram[j, j] = pair["qa"], pair["qb"]
        found.append((str(base), gram))
    return found


def scripts_changed(con: Connection) -> list[str]:
    """Scripts whose checksums in the file are not those of this program, and definitions that are not ours."""
    known = {name: checksum for kind in ("migrations", "views") for name, _, checksum in scripts(kind)}
    told = dict(con.execute("select name, checksum from raw.migration").fetchall())
    tables, others = surface.differences(con)
    return sorted(
        {name for name in {*known, *told} if known.get(name) != told.get(name)} | {*tables, *others}
    )


def stored_sums(
    con: Connection, model_id: int
) -> list[tuple[str, int, float | None, float | None, int, int]]:
    """A member's sums: tensor, its position, sum and sum of squares of its delta, elements, elements not finite."""
    return con.execute(
        """
        select t.name, t.position, d.sum, d.sumsq, d.numel, d.nonfinite
        from raw.delta d join raw.tensor t using (base_id, position)
        where d.model_id = ? and d.numel > 0 order by t.position
        """,
        [model_id],
    ).fetchall()


def stored_dots(con: Connection, model_id: int) -> dict[int, list[float | None]]:
    """A member's products with others, by their ids: one a tensor of the base, from position 1 on."""
    rows = con.execute(
        "select if(a_id = $1, b_id, a_id), dots from raw.pair where $1 in (a_id, b_id)", [model_id]
    ).fetchall()
    return dict(rows)


def mend(con: Connection) -> list[str]:
    """Mend what is certain, and say what was: rows about nothing go, ids that are free are handed out."""
    said = []
    for lost in dangling(con):
        kind = "list" if lost.column in MANY else "one"
        where = _lost(lost.table, lost.column, kind)
        rows = f"{lost.rows:,} row{'s' * (lost.rows > 1)} of {lost.table}"
        if (lost.table, lost.column) in OPTIONAL:
            con.execute(f"update raw.{lost.table} set {lost.column} = null where {where}")
            said.append(f"{rows}: {lost.column} led nowhere and says nothing now")
        elif lost.column == "top_ids":
            con.execute(f"update raw.generation set top_ids = null where {where}")
            said.append(f"{rows}: the best of a generation are not all there, and are not told any more")
        else:
            con.execute(f"delete from raw.{lost.table} where {where}")
            said.append(f"{rows} spoke of what is not there ({lost.column}) and went")
    for table in SEQUENCES:
        ((last,),) = con.execute(f"select coalesce(max({table}_id), 0) from raw.{table}").fetchall()
        ((at,),) = con.execute(
            f"select coalesce(last_value, 0) from duckdb_sequences() where schema_name = 'raw' and sequence_name = '{table}_ids'"
        ).fetchall()
        if at < last <= 10_000_000:
            con.execute(f"select max(nextval('raw.{table}_ids')) from range(?)", [last - at]).fetchall()
            said.append(f"the numbers of {table}s were counted on from {last}")
    return said


def _columns(con: Connection) -> list[tuple[str, str, str]]:
    """Table, column and whether it holds one id or a list, of all columns that hold ids."""
    ours = [name for name in surface.expected() if name.startswith("table raw.")]
    tables = sorted(name.removeprefix("table raw.") for name in ours)
    rows = con.execute(
        "select table_name, column_name from duckdb_columns() "
        "where schema_name = 'raw' and list_contains($1, table_name) order by all",
        [tables],
    ).fetchall()
    found = []
    for table, column in rows:
        if (table, column) in {("model", "model_id"), ("run", "run_id")}:
            continue
        if column in (*MODELS, "run_id") or column in MANY:
            found.append((str(table), str(column), "list" if column in MANY else "one"))
    return found


def _lost(table: str, column: str, kind: str) -> str:
    """The condition of a row whose column leads nowhere."""
    key = "run" if column == "run_id" else "model"
    there = f"(select {key}_id from raw.{key})"
    if kind == "list":
        return f"exists (select 1 from (select unnest({column}) as x) u where x is not null and x not in {there})"
    return f"{column} is not null and {column} not in {there}"


def _first(column: str, kind: str) -> str:
    return f"list_min({column})" if kind == "list" else column
