"""Kinship among models: of pairs, of a square of them in the order of their clusters, by block and layer.

By model_id where that is known: a view would join the names of all pairs first.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from kinbase.errors import UsageError
from kinbase.query.clustering import cluster
from kinbase.query.models import Model, meant, original
from kinbase.store import Connection, names

if TYPE_CHECKING:  # Polars is slow to import, and the terminal UI does without
    import polars as pl

METRICS = ("pcc", "cs", "ed")
WHOLE_FROM = 0.995
"""Coverage that reads 1.00: no word is lost on what is missing."""
ENOUGH = 0.5
"""Coverage below which a pair takes part in no rank: as the macro covers_enough."""
BLOCKS = ("all", "attn", "mlp", "norm", "embed", "head", "other")
GROUPINGS = {"tensor": "kinship_by_tensor", "layer": "kinship_by_layer", "block": "kinship_by_block"}

WHOLE = """
select a_id, b_id, pcc, cs, ed, stderr, coverage, method from raw.best_kinship
where a_id < b_id and list_contains($1, a_id) and list_contains($1, b_id)
"""

# The values of a part of the tensors, from the sums over them: a mean of ratios would be something else.
PARTS = """
select model_a, model_b,
    pearson(sum(numel), sum(sum_a), sum(sum_b), sum(sumsq_a), sum(sumsq_b), sum(dot)),
    cosine(sum(sumsq_a), sum(sumsq_b), sum(dot)),
    euclidean(sum(sumsq_a), sum(sumsq_b), sum(dot)),
    0.0, null, 'exact'
from kinship_by_tensor
where model_a < model_b and list_contains($1, model_a) and list_contains($1, model_b)
    and ($2 = 'all' or tensor_block(tensor) = $2) and ($3 is null or tensor_layer(tensor) = $3)
group by model_a, model_b
"""

NEAREST = """
with near as (from raw.best_kinship where a_id = $1)
select b_id, name, pcc, cs, ed, stderr, coverage, method
from near join raw.model on model_id = b_id
where covers_enough(coverage)
order by pcc desc nulls last, name limit $2
"""

LEFT_OUT = """
select name, coverage from raw.best_kinship join raw.model on model_id = b_id
where a_id = $1 and not covers_enough(coverage) order by coverage desc, name
"""

LAYERS_OF = """
select coalesce(max(tensor_layer(name)) + 1, 0) from raw.tensor
where base_id in (select base_id from raw.model where list_contains(?, model_id))
"""

BY_LAYER = """
select base, layer, block, pcc, cs, ed, numel from kinship_by_layer
where model_a = ? and model_b = ? order by block, layer
"""

SUMS = """
select a.name, b.name, p.base_id, p.numel, p.dot, p.sum_a, p.sum_b, p.sumsq_a, p.sumsq_b
from raw.pair p join raw.model a on a.model_id = p.a_id join raw.model b on b.model_id = p.b_id
where list_contains($1, a.name) and list_contains($1, b.name)
"""

MEMBERS = """
select model_id, name from raw.model
where base_id = $1 and (
    model_id in (select a_id from raw.pair union select b_id from raw.pair)
    or model_id in (select a_id from raw.estimate union select b_id from raw.estimate)
)
order by name limit $2
"""

MEMBERS_NEAREST = """
select m.model_id, any_value(m.name) from raw.model m join deltas d on d.model = m.name
where m.base_id = $1 and d.base = (select name from raw.model where model_id = $1)
group by m.model_id order by sum(d.l2 * d.l2), any_value(m.name) limit $2
"""

WITH_KINSHIP = """
with known as (
    select a_id as id from raw.pair union select b_id from raw.pair
    union select a_id from raw.estimate union select b_id from raw.estimate
)
select model_id, name from raw.model where model_id in (from known) order by name limit $1
"""

LARGEST = """
select base_id from raw.pair group by base_id order by count(*) desc, base_id limit 1
"""

# Where nothing is measured: the models with the most estimates.
MOST_ESTIMATED = """
with best as (select a_id as id from raw.estimated group by a_id order by count(distinct b_id) desc, a_id limit ?)
select model_id, name from raw.model where model_id in (from best) order by name
"""


@dataclass(frozen=True)
class Kinship:
    """Kinship of two models; `stderr` is of pcc and cs, `coverage` of the base's parameters."""

    pcc: float | None
    cs: float | None
    ed: float | None
    stderr: float | None
    coverage: float | None
    method: str

    @property
    def is_partial(self) -> bool:
        """Whether less than the whole base was compared."""
        return self.coverage is not None and self.coverage < WHOLE_FROM

    @property
    def is_doubtful(self) -> bool:
        """Whether so little was compared that the figure says little of the two models."""
        return self.coverage is not None and self.coverage < ENOUGH

    def value(self, metric: str) -> float | None:
        known: float | None = getattr(self, metric)
        return known


@dataclass
class KinshipMatrix:
    """A square of kinship in the order of its clusters; `pairs` has each known pair once, by positions, the lower first.

    `links` is how the models were joined (see `clustering`), `layers` how many there are to choose from.
    """

    models: list[Model]
    pairs: dict[tuple[int, int], Kinship]
    links: np.ndarray = field(default_factory=lambda: np.zeros((0, 4)))
    layers: int = 0

    @property
    def names(self) -> list[str]:
        return [model.name for model in self.models]

    @property
    def possible(self) -> int:
        """How many pairs there would be, were all known."""
        return len(self.models) * (len(self.models) - 1) // 2

    def pair(self, i: int, j: int) -> Kinship | None:
        return self.pairs.get((min(i, j), max(i, j)))

    def known(self, metric: str) -> dict[tuple[int, int], Kinship]:
        """The pairs that have a value."""
        return {place: pair for place, pair in self.pairs.items() if pair.value(metric) is not None}

    def values(self, metric: str) -> np.ndarray:
        """float64[n, n], NaN where nothing is known and on the diagonal."""
        square = np.full((len(self.models), len(self.models)), np.nan)
        for (i, j), pair in self.pairs.items():
            value = pair.value(metric)
            square[i, j] = square[j, i] = np.nan if value is None else value
        return square


def matrix(
    con: Connection, models: Sequence[Model], block: str = "all", layer: int | None = None
) -> KinshipMatrix:
    """Kinship among `models`, of all tensors or of a block and a layer of them.

    The order is that of the clusters of the whole models' PCC (of their cosine where that is undefined), whatever
    metric, block or layer is looked at, and whoever looks: the command line, the terminal UI, a plot.
    """
    models = sorted(
        {model.id: Model(model.id, model.name) for model in models}.values(), key=lambda m: m.name
    )
    ids = [model.id for model in models]
    place = {id_: i for i, id_ in enumerate(ids)}
    whole = {(place[a], place[b]): Kinship(*pair) for a, b, *pair in con.execute(WHOLE, [ids]).fetchall()}
    similar = np.full((len(ids), len(ids)), np.nan)
    for (i, j), pair in whole.items():
        known = pair.pcc if pair.pcc is not None else pair.cs
        similar[i, j] = similar[j, i] = np.nan if known is None else known
    clustering = cluster(similar)
    if block != "all" or layer is not None:
        by_name = {model.name: i for i, model in enumerate(models)}
        rows = con.execute(PARTS, [list(by_name), block, layer]).fetchall()
        whole = {(by_name[a], by_name[b]): Kinship(*pair) for a, b, *pair in rows}
    at = {old: new for new, old in enumerate(clustering.order)}
    pairs = {(min(at[i], at[j]), max(at[i], at[j])): pair for (i, j), pair in whole.items()}
    ((layers,),) = con.execute(LAYERS_OF, [ids]).fetchall()
    return KinshipMatrix([models[i] for i in clustering.order], pairs, clustering.links, layers)


def matrix_of(con: Connection, models: Sequence[str], block: str, layer: int | None) -> KinshipMatrix:
    """`matrix` of models that are named; of none, of all that have kinship. Raises KinbaseError for an unknown one."""
    if block not in BLOCKS:
        raise UsageError(f"there is no block {block!r}: choose of {', '.join(BLOCKS)}")
    return matrix(
        con, [original(con, meant(con, model)) for model in models] or with_kinship(con, None), block, layer
    )


def relatives(con: Connection, model: int, limit: int) -> list[Model]:
    """What to compare when one model is named: its family if it is a base, else it and its nearest kin; `limit` at most.

    Nobody when there is no kinship of it.
    """
    members = [Model(*row) for row in con.execute(MEMBERS, [model, limit]).fetchall()]
    if members:
        return members
    kin = [Model(*row[:2]) for row in con.execute(NEAREST, [model, limit - 1]).fetchall()]
    rows = (
        con.execute("select model_id, name from raw.model where model_id = ?", [model]).fetchall()
        if kin
        else []
    )
    return [*(Model(*row) for row in rows), *kin]


def members_nearest(con: Connection, base: int, limit: int) -> list[Model]:
    """The `limit` members of a base's family that moved least from it, by the length of their change, the nearest first."""
    return [Model(*row) for row in con.execute(MEMBERS_NEAREST, [base, limit]).fetchall()]


def with_kinship(con: Connection, limit: int | None) -> list[Model]:
    """Models of which some kinship is known; `limit` at most, None: all."""
    return [Model(*row) for row in con.execute(WITH_KINSHIP, [limit]).fetchall()]


def best_measured(con: Connection, limit: int) -> list[Model]:
    """The family of which most pairs are measured; without any, the models of most estimates. `limit` at most."""
    for (base,) in con.execute(LARGEST).fetchall():
        return relatives(con, base, limit)
    return [Model(*row) for row in con.execute(MOST_ESTIMATED, [limit]).fetchall()]


def nearest(con: Connection, model: int, k: int) -> list[tuple[Model, Kinship]]:
    """The k models most akin to one by PCC."""
    rows = con.execute(NEAREST, [model, k]).fetchall()
    return [(Model(*row[:2]), Kinship(*row[2:])) for row in rows]


def left_out(con: Connection, model: str) -> list[tuple[str, float]]:
    """The models, with their coverage, that were compared with one by too little to be ranked."""
    return con.execute(LEFT_OUT, [original(con, meant(con, model)).id]).fetchall()


def by_layer(con: Connection, model_a: str, model_b: str) -> list[dict[str, Any]]:
    """The kinship of two models by layer and block: base, layer, block, pcc, cs, ed, numel."""
    found = con.execute(BY_LAYER, [model_a, model_b])
    columns = [column[0] for column in found.description or []]
    return [dict(zip(columns, row, strict=True)) for row in found.fetchall()]


def of_pair(con: Connection, model_a: str, model_b: str) -> Kinship | None:
    """The kinship of two models by the best method."""
    found = con.execute(
        "select pcc, cs, ed, stderr, coverage, method from kinship where model_a = ? and model_b = ?",
        [model_a, model_b],
    ).fetchall()
    return Kinship(*found[0]) if found else None


def known_pairs(con: Connection, models: Sequence[str], metric: str) -> dict[frozenset[str], float]:
    """The known kinship among the models named, by pair; `metric` is one of METRICS."""
    rows = con.execute(
        f"""
        select model_a, model_b, {metric} from kinship
        where model_a < model_b and {metric} is not null and list_contains($1, model_a) and list_contains($1, model_b)
        """,
        [list(models)],
    ).fetchall()
    return {frozenset((a, b)): value for a, b, value in rows}


def in_family(con: Connection, base: str) -> list[tuple[str, str, float, bool]]:
    """The known correlation of each pair measured against a base, both ways round, and whether it covers enough to count."""
    return con.execute(
        "select model_a, model_b, pcc, covers_enough(coverage) from kinship where base = ? and pcc is not null",
        [base],
    ).fetchall()


def measured_sums(con: Connection, models: Sequence[str]) -> list[tuple[Any, ...]]:
    """The sums over the deltas of each measured pair among the models named: two names, base_id, numel, dot, sum_a, sum_b,
    sumsq_a, sumsq_b.
    """
    return con.execute(SUMS, [list(models)]).fetchall()


# As frames.


def pairs(con: Connection, models: Sequence[str], by: str | None) -> "pl.DataFrame":
    """Rows of the view `kinship` among `models` (none: all), each pair once; `by` one of GROUPINGS."""
    from kinbase.query.frames import frame

    resolved = [names.resolve(con, model) for model in models]
    chosen = "" if not resolved else "and list_contains($1, model_a) and list_contains($1, model_b)"
    order = "order by all" if by else "order by model_a, model_b"
    query = f"from {GROUPINGS[by] if by else 'kinship'} where model_a < model_b {chosen} {order}"
    return frame(con, query, [resolved] if resolved else [])


def nearest_kin(con: Connection, model: str, k: int) -> "pl.DataFrame":
    """The k models most akin to one: model, pcc, cs, ed, stderr, coverage, method."""
    from polars import DataFrame

    from kinbase.query.frames import KIN

    found = nearest(con, original(con, meant(con, model)).id, k)
    rows = [(m.name, kin.pcc, kin.cs, kin.ed, kin.stderr, kin.coverage, kin.method) for m, kin in found]
    return DataFrame(rows, schema=KIN, orient="row")


def group(con: Connection, models: Sequence[str]) -> "pl.DataFrame":
    """Mean kinship over all pairs of `models`: pcc, cs, ed, pairs (known ones), models."""
    from kinbase.query.frames import frame

    return frame(con, "from group_kinship(?)", [[names.resolve(con, model) for model in models]])
