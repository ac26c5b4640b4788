"""Kinship among chosen models, for the heatmap: what is measured, by block or layer, and in which order to show it."""

from dataclasses import dataclass

import numpy as np

from kinbase.query.models import Model
from kinbase.store import Connection

MOST = 200
"""Models one heatmap takes."""
FEW = 40
"""Models shown when nobody chose any."""
METRICS = ("pcc", "cs", "ed")
BLOCKS = ("all", "attn", "mlp", "norm", "embed", "head", "other")

# The best of a pair comes last, by the order of the view kinship, and stays.
# The pairs are found by id, so that the view below joins only the asked-for names.
WHOLE = """
select a_id, b_id, pcc, cs, ed, stderr, coverage, method from (from raw.exact union all from raw.estimated)
where a_id < b_id and list_contains($1, a_id) and list_contains($1, b_id)
order by case method when 'exact' then 2 when 'reported' then 0 else 1 end, stderr desc nulls first, method desc,
    source desc nulls first
"""

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


@dataclass(frozen=True)
class Pair:
    """Kinship of two models; `coverage` is of the base's parameters."""

    pcc: float | None
    cs: float | None
    ed: float | None
    stderr: float | None
    coverage: float | None
    method: str

    def value(self, metric: str) -> float | None:
        found: float | None = getattr(self, metric)
        return found


@dataclass
class Table:
    """A square of kinship; `pairs` has each known pair once, by positions in `models`, the lower first."""

    models: list[Model]
    pairs: dict[tuple[int, int], Pair]
    layers: int = 0

    def pair(self, i: int, j: int) -> Pair | None:
        return self.pairs.get((min(i, j), max(i, j)))

    def values(self, metric: str) -> np.ndarray:
        """The square as numbers, NaN where nothing is known."""
        square = np.full((len(self.models), len(self.models)), np.nan)
        for (i, j), pair in self.pairs.items():
            value = pair.value(metric)
            square[i, j] = square[j, i] = np.nan if value is None else value
        return square


def table(con: Connection, models: list[Model], block: str = "all", layer: int | None = None) -> Table:
    """Kinship among `models`, clustered by the kinship of the whole, so that blocks do not reorder them."""
    models = list({model.id: Model(model.id, model.name) for model in models}.values())[:MOST]
    known: dict[tuple[int, int], Pair] = {}
    for a, b, *pair in con.execute(WHOLE, [[model.id for model in models]]).fetchall():
        known[a, b] = Pair(*pair)
    names = {model.id: model for model in models}
    place = {model.id: i for i, model in enumerate(models)}
    rough = Table(models, {_sorted(place[a], place[b]): pair for (a, b), pair in known.items()})
    models = [models[i] for i in order(rough.values("pcc"))]
    if block != "all" or layer is not None:
        by_name = {model.name: model.id for model in names.values()}
        rows = con.execute(PARTS, [[model.name for model in models], block, layer]).fetchall()
        known = {(by_name[a], by_name[b]): Pair(*pair) for a, b, *pair in rows}
    place = {model.id: i for i, model in enumerate(models)}
    pairs = {_sorted(place[a], place[b]): pair for (a, b), pair in known.items()}
    ((layers,),) = con.execute(
        "select coalesce(max(tensor_layer(name)) + 1, 0) from raw.tensor "
        "where base_id in (select base_id from raw.model where list_contains(?, model_id))",
        [[model.id for model in models]],
    ).fetchall()
    return Table(models, pairs, layers)


def suggested(con: Connection, model: int | None) -> list[Model]:
    """What to show when nobody chose: a model with its nearest measured kin, or the best measured family."""
    if (
        model is not None
        and not con.execute("select 1 from raw.pair where base_id = ? limit 1", [model]).fetchall()
    ):
        return _with_nearest(con, model)
    # A base has no kinship itself: what is measured against it is shown.
    rows = con.execute(
        """
        with best as (
            select base_id from raw.pair where $1 is null or base_id = $1 group by base_id order by count(*) desc, base_id limit 1
        ),
        member as (
            select a_id as id from raw.pair where base_id = (from best)
            union select b_id from raw.pair where base_id = (from best)
        )
        select model_id, name from raw.model where model_id in (from member) order by model_id limit $2
        """,
        [model, FEW],
    ).fetchall()
    if not rows:
        rows = con.execute(
            """
            with best as (
                select a_id as id from raw.estimated group by a_id order by count(distinct b_id) desc, a_id limit ?
            )
            select model_id, name from raw.model where model_id in (from best) order by model_id
            """,
            [FEW],
        ).fetchall()
    return [Model(*row) for row in rows]


def _with_nearest(con: Connection, model: int) -> list[Model]:
    rows = con.execute(
        """
        with near as (
            select b_id, pcc from raw.exact where a_id = $1 union all select b_id, pcc from raw.estimated where a_id = $1
        ),
        best as (select b_id, max(pcc) as pcc from near group by b_id order by pcc desc nulls last limit $2)
        select model_id, name, pcc from best join raw.model on model_id = b_id
        union all select model_id, name, 2 from raw.model where model_id = $1
        order by 3 desc nulls last
        """,
        [model, FEW - 1],
    ).fetchall()
    found = [Model(*row[:2]) for row in rows]
    return found if len(found) > 1 else []


def order(similar: np.ndarray) -> list[int]:
    """An order that puts the alike side by side: average linkage, each cluster turned to meet the other.

    Unknown pairs count as unrelated.
    """
    number = len(similar)
    if number < 3:
        return list(range(number))
    near = np.nan_to_num(similar, nan=0.0)
    between = near.copy()
    np.fill_diagonal(between, -np.inf)
    leaves: dict[int, list[int]] = {i: [i] for i in range(number)}
    while len(leaves) > 1:
        i, j = divmod(int(np.argmax(between)), number)
        i, j = min(i, j), max(i, j)
        left, right = leaves[i], leaves.pop(j)
        m, n = len(left), len(right)
        # Of the four ways to join them, the one whose ends are most alike.
        ways = [(a, b) for a in (left, left[::-1]) for b in (right, right[::-1])]
        best = max(range(4), key=lambda way: near[ways[way][0][-1], ways[way][1][0]])
        leaves[i] = ways[best][0] + ways[best][1]
        merged = (m * between[i] + n * between[j]) / (m + n)
        between[i, :] = between[:, i] = merged
        between[j, :] = between[:, j] = -np.inf
        between[i, i] = -np.inf
        gone = [k for k in range(number) if k not in leaves]
        between[i, gone] = between[gone, i] = -np.inf
    return next(iter(leaves.values()))


def _sorted(i: int, j: int) -> tuple[int, int]:
    return (i, j) if i < j else (j, i)
