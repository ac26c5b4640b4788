"""Stored sums to Gram matrices: what recipes, claims and trees are computed from, read from the database.

All functions take an open connection of the store and are part of its unit of work.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from kinbase.alignment import bare
from kinbase.recovery import FloatArray, Grams, Normal
from kinbase.store import Connection


@dataclass(frozen=True, slots=True)
class Totals:
    """Inner products of a family's deltas over all tensors, M models by id: `gram` [M, M], NaN where not measured."""

    ids: list[int]
    names: list[str]
    gram: FloatArray

    def of(self, ids: Sequence[int]) -> "Totals":
        """The same of some of the models only."""
        wanted = set(ids)
        rows = [i for i, model_id in enumerate(self.ids) if model_id in wanted]
        names = [self.names[i] for i in rows]
        return Totals([self.ids[i] for i in rows], names, self.gram[np.ix_(rows, rows)])

    def normal(self, child: int, candidates: Sequence[int], floor: float, numel: float) -> Normal:
        """Normal equations of one model on others, by row."""
        rows = list(candidates)
        return Normal(
            self.gram[np.ix_(rows, rows)],
            self.gram[rows, child],
            float(self.gram[child, child]),
            floor,
            numel,
        )


@dataclass(frozen=True, slots=True)
class Stored:
    """Grams of a child and candidates from the database, and what they leave out.

    `zeros` [T, M + 1] is the share of elements equal to the base's, the child's last; `coverage` the elements
    used over the base's; `lacking` the names of models without sums of their own weights.
    """

    grams: Grams
    zeros: FloatArray
    coverage: float
    lacking: list[str]


def totals(con: Connection, base_id: int, ids: Sequence[int]) -> Totals:
    """The measured inner products among models of one family."""
    rows = con.execute(
        """
        select m.model_id, m.name, sum(d.sumsq)
        from raw.model m join raw.delta d on d.model_id = m.model_id and d.base_id = m.base_id
        where m.base_id = $1 and list_contains($2, m.model_id) group by all order by m.model_id
        """,
        [base_id, list(ids)],
    ).fetchall()
    at = {model_id: i for i, (model_id, _, _) in enumerate(rows)}
    gram = np.full((len(rows), len(rows)), np.nan)
    np.fill_diagonal(gram, [sumsq if sumsq is not None else np.nan for _, _, sumsq in rows])
    pairs = con.execute(
        "select a_id, b_id, dot from raw.pair where base_id = $1 and list_contains($2, a_id) and list_contains($2, b_id)",
        [base_id, list(at)],
    ).fetchall()
    for a, b, dot in pairs:
        gram[at[a], at[b]] = gram[at[b], at[a]] = dot
    return Totals(list(at), [name for _, name, _ in rows], gram)


def floors(con: Connection, ids: Sequence[int]) -> dict[int, float]:
    """Expected squared rounding error of each model's weights that has sums of its own: sum of ulp^2 / 12."""
    rows = con.execute(
        "select model_id, sum(ulpsq) / 12 from raw.weight where list_contains($1, model_id) group by model_id",
        [list(ids)],
    ).fetchall()
    return {model_id: float(noise) for model_id, noise in rows if noise is not None}


def read(con: Connection, base_id: int, child_id: int, candidates: Sequence[int]) -> Stored | None:
    """The sums of a child and of candidates of its family, over the tensors that all of them have whole.

    None when a pair among them was not measured, or no tensor is common to all.
    """
    ids = [child_id, *candidates]
    names = dict(con.execute("select model_id, name from raw.model").fetchall())
    tensors = con.execute(
        "select position, name, numel from raw.tensor where base_id = ? order by position", [base_id]
    ).fetchall()
    count, size = len(tensors), len(ids)
    at = {model_id: i for i, model_id in enumerate(ids)}
    numel, sumsq, zeros = (np.full((count, size), np.nan) for _ in range(3))
    for model_id, position, n, square, same in con.execute(
        "select model_id, position, numel, sumsq, zeros from raw.delta where base_id = $1 and list_contains($2, model_id)",
        [base_id, ids],
    ).fetchall():
        row = (position - 1, at[model_id])
        numel[row], zeros[row] = n, same
        sumsq[row] = np.nan if square is None else square
    gram = np.full((count, size, size), np.nan)
    gram[:, np.arange(size), np.arange(size)] = sumsq
    for a, b, dots in con.execute(
        "select a_id, b_id, dots from raw.pair where base_id = $1 and list_contains($2, a_id) and list_contains($2, b_id)",
        [base_id, ids],
    ).fetchall():
        found = np.array([np.nan if dot is None else dot for dot in dots], dtype=np.float64)
        gram[:, at[a], at[b]] = gram[:, at[b], at[a]] = found
    if np.isnan(gram).all(axis=0).any():
        return None
    for a, b, position in con.execute(
        """
        select a_id, b_id, position from raw.pair_part
        where base_id = $1 and list_contains($2, a_id) and list_contains($2, b_id)
        """,
        [base_id, ids],
    ).fetchall():
        gram[position - 1, at[a], at[b]] = np.nan
    whole = ~np.isnan(gram).any(axis=(1, 2)) & (numel == numel[:, :1]).all(axis=1)
    own, dtypes = _weights(con, [base_id, *ids], [name for _, name, _ in tensors])
    noise = own[ids[0]][2] / 12 * numel[:, 0] / np.maximum(own[ids[0]][0], 1) if ids[0] in own else None
    if noise is not None:
        whole &= np.isfinite(noise)
    if not whole.any():
        return None
    kept = np.flatnonzero(whole)
    lacking = [names[i] for i in [base_id, *ids] if i not in own]
    columns = np.zeros((len(kept), size, size))  # the candidates, then the base's weights
    columns[:, :-1, :-1] = gram[kept][:, 1:, 1:]
    cross = np.zeros((len(kept), size))
    cross[:, :-1] = gram[kept][:, 1:, 0]
    based = base_id in own and child_id in own
    centre = None
    if based:
        base_numel, base_square, _, base_sum = own[base_id]
        centre = np.nan_to_num((base_sum / np.maximum(base_numel, 1))[kept])
        full = base_numel[kept] == numel[kept, 0]
        columns[:, -1, -1] = np.where(full, base_square[kept], 0.0)
        for i, model_id in enumerate(ids):
            if model_id not in own:
                continue  # an adapter's weights are nowhere: its delta counts as if it were across the base's
            own_numel, square, *_ = own[model_id]
            along = (square[kept] - base_square[kept] - gram[kept, i, i]) / 2
            along = np.where(full & (own_numel[kept] == base_numel[kept]), along, 0.0)
            if i == 0:
                cross[:, -1] = along
            else:
                columns[:, i - 1, -1] = columns[:, -1, i - 1] = along
    grams = Grams(
        [names[i] for i in candidates], [tensors[k][1] for k in kept], numel[kept, 0], columns, cross,
        gram[kept, 0, 0], np.zeros(len(kept)) if noise is None else noise[kept], based,
        [dtypes.get(i, dtypes.get(base_id, "F32")) for i in (*candidates, base_id, child_id)], centre,
    )  # fmt: skip
    share = zeros[kept] / np.maximum(numel[kept], 1)
    whole_size = sum(n for _, _, n in tensors)
    return Stored(
        grams, np.roll(share, -1, axis=1), float(numel[kept, 0].sum()) / max(whole_size, 1), lacking
    )


def _weights(
    con: Connection, ids: Sequence[int], tensors: Sequence[str]
) -> tuple[dict[int, FloatArray], dict[int, str]]:
    """By model: numel, sumsq, ulpsq and sum of each tensor of the base [4, T], NaN where it is lacking; and the main dtype."""
    at: dict[str, int] = {}
    for position, name in enumerate(tensors):
        at[bare(name)] = position
    at |= {name: position for position, name in enumerate(tensors)}
    found: dict[int, FloatArray] = {}
    sizes: dict[int, dict[str, int]] = {}
    for model_id, tensor, dtype, numel, sumsq, ulpsq, total in con.execute(
        "select model_id, tensor, dtype, numel, sumsq, ulpsq, sum from raw.weight where list_contains($1, model_id)",
        [list(ids)],
    ).fetchall():
        values = found.setdefault(model_id, np.full((4, len(tensors)), np.nan))
        of_dtype = sizes.setdefault(model_id, {})
        of_dtype[dtype] = of_dtype.get(dtype, 0) + numel
        place = at.get(tensor, at.get(bare(tensor)))
        if place is not None and sumsq is not None:
            values[:, place] = numel, sumsq, ulpsq, total
    return found, {model_id: max(of, key=lambda d: of[d]) for model_id, of in sizes.items()}
