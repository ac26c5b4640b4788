"""Merges: of whom they are, what they gained, and who can be merged with others."""

from collections.abc import Sequence

from kinbase.store import Connection

MERGEABLE = """
select m.name from models m join models b on b.name = $1
where m.family = $1 and m.name <> $1 and coalesce(m.relation, '') not in ('adapter', 'quantized')
    and (m.parameters is null or b.parameters is null or m.parameters = b.parameters)
    and (m.architecture is null or b.architecture is null or m.architecture = b.architecture)
order by m.name
"""

GAINS = """
select if(abs(score) <= 1, 100, 1) * over_best, if(abs(score) <= 1, 100, 1) * gain from merge_gains
where benchmark = 'average' and over_best is not null and child in (select name from models where family = ?)
"""

OF_PARENTS = """
select model from raw.merge
where parents = list_sort($1::varchar[]) and coalesce(method, $2) = $2 order by method nulls last, model
"""


def of_parents(con: Connection, parents: Sequence[str], method: str) -> list[str]:
    """The merges of exactly these parents that are in the lineage, by this method or by one that is not said."""
    return [model for (model,) in con.execute(OF_PARENTS, [list(parents), method]).fetchall()]


def recomputed(con: Connection, tolerance: float) -> list[tuple[str, str, str, str]]:
    """What sources print of merges, held against what follows from what is stored: subject, claim, verdict, detail."""
    return con.execute("from findings(?)", [tolerance]).fetchall()


def mergeable(con: Connection, base: str) -> list[str]:
    """Members of a family that can be merged with others: of the base's shape, no adapters, no copies in fewer bits."""
    return [name for (name,) in con.execute(MERGEABLE, [base]).fetchall()]


def gains(con: Connection, base: str) -> list[tuple[float, float]]:
    """What each scored merge of a family gained in points: over its better parent, and over its parents' mean."""
    return con.execute(GAINS, [base]).fetchall()
