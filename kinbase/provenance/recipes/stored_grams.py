"""Stored sums to Gram matrices: what recipes, claims and trees are computed from, read from the database.

All functions take an open connection of the store and are part of its unit of work.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import combinations

import numpy as np
from numpy.typing import NDArray

from kinbase.checkpoint.names import bare
from kinbase.provenance.recipes.least_squares import BITS, FloatArray, Grams, Normal
from kinbase.query import sums as stored
from kinbase.store import Connection

UNROUNDED = "F64"
"""What the product of an adapter's factors counts as."""


@dataclass(frozen=True, slots=True)
class Totals:
    """Inner products of a family's deltas over all tensors, M models by id: `gram` [M, M], NaN where not measured."""

    ids: list[int]
    names: list[str]
    gram: FloatArray

    def normal(self, child: int, candidates: Sequence[int], floor: float, numel: float) -> Normal:
        """Normal equations of one model on others, by row; what was not measured counts as 0."""
        rows = list(candidates)
        return Normal(
            np.nan_to_num(self.gram[np.ix_(rows, rows)]),
            self.gram[rows, child],
            float(self.gram[child, child]),
            floor,
            numel,
        )


@dataclass(slots=True)
class Sums:
    """What is stored of a family tensor by tensor, T tensors of the base: by model_id, NaN where it is lacking.

    `deltas` [3, T] are of each delta the elements, the squared length, and how many are as in the base; `weights`
    [5, T] of each model's own weights, the base's too, numel, sumsq, ulpsq, sum and significant bits; `dtypes` the
    main ones. A model without `weights` is an adapter, a change and no whole model.
    `pairs` [T], by two ids in order, are inner products of deltas as far as `fetch` was asked for them: None where
    they were not measured, NaN where a tensor is not whole.
    """

    base_id: int
    names: dict[int, str]
    tensors: list[str]
    sizes: FloatArray
    deltas: dict[int, FloatArray]
    weights: dict[int, FloatArray]
    dtypes: dict[int, str]
    pairs: dict[tuple[int, int], FloatArray | None] = field(default_factory=dict)


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
    rows = stored.lengths(con, base_id, ids)
    known = np.array([model_id for model_id, _, _ in rows], dtype=np.int64)
    gram = np.full((len(rows), len(rows)), np.nan)
    np.fill_diagonal(gram, [sumsq if sumsq is not None else np.nan for _, _, sumsq in rows])
    a, b, dot = stored.dots(con, base_id)
    ours = np.isin(a, known) & np.isin(b, known)
    i, j = (np.searchsorted(known, column[ours]) for column in (a, b))
    gram[i, j] = gram[j, i] = dot[ours]
    return Totals(known.tolist(), [name for _, name, _ in rows], gram)


def load(con: Connection, base_id: int, ids: Sequence[int]) -> Sums:
    """The sums of the base and of models of its family, without any of their pairs."""
    names = stored.names_of(con, [base_id, *ids])
    rows = stored.tensors(con, base_id)
    tensors = [name for name, _ in rows]
    deltas = _by_model(*stored.deltas(con, base_id, ids), count=len(tensors))
    weights, dtypes = _weights(con, [base_id, *ids], tensors)
    sizes = np.array([numel for _, numel in rows], dtype=np.float64)
    return Sums(base_id, names, tensors, sizes, deltas, weights, dtypes)


def fetch(con: Connection, sums: Sums, groups: Iterable[Sequence[int]]) -> None:
    """Read the inner products of all pairs within each group of models that are not here yet, in one go."""
    wanted = {pair for ids in groups for pair in combinations(sorted(ids), 2)} - sums.pairs.keys()
    if not wanted:
        return
    sums.pairs.update(dict.fromkeys(wanted))
    pairs = list(wanted)
    a, b, dot = stored.dots_by_tensor(con, sums.base_id, pairs)
    count = len(sums.tensors)
    for i, found in enumerate(dot.reshape(-1, count)):
        sums.pairs[int(a[i * count]), int(b[i * count])] = found
    for one, other, position in stored.partial(con, sums.base_id, pairs):
        partly = sums.pairs[one, other]
        if partly is not None:
            partly[position - 1] = np.nan


def read(con: Connection, sums: Sums, child_id: int, candidates: Sequence[int]) -> Stored | None:
    """The sums of a child and of candidates of its family, over the tensors that all of them have whole.

    None when a pair among them was not measured, or no tensor is common to all.
    """
    ids = [child_id, *candidates]
    fetch(con, sums, [ids])
    count, size, base_id = len(sums.tensors), len(ids), sums.base_id
    nothing = np.full((4, count), np.nan)
    numel, sumsq, zeros = (
        np.stack([sums.deltas.get(i, nothing)[row] for i in ids], axis=1) for row in range(3)
    )
    gram = np.full((count, size, size), np.nan)
    gram[:, np.arange(size), np.arange(size)] = sumsq
    for (i, a), (j, b) in combinations(enumerate(ids), 2):
        found = sums.pairs[min(a, b), max(a, b)]
        if found is not None:
            gram[:, i, j] = gram[:, j, i] = found
    if np.isnan(gram).all(axis=0).any():
        return None
    whole = ~np.isnan(gram).any(axis=(1, 2)) & (numel == numel[:, :1]).all(axis=1)
    own = sums.weights
    noise = own[ids[0]][2] / 12 * numel[:, 0] / np.maximum(own[ids[0]][0], 1) if ids[0] in own else None
    if noise is not None:
        whole &= np.isfinite(noise)
    along = _along_base(sums, ids, gram, numel)
    if along is not None:
        # A relative of other shape has no product with the base: that tensor says nothing of it beside the others.
        whole &= np.isfinite(along).all(axis=1)
    if not whole.any():
        return None
    kept = np.flatnonzero(whole)
    lacking = [sums.names[i] for i in [base_id, *ids] if i not in own]
    columns = np.zeros((len(kept), size, size))  # the candidates, then the base's weights
    columns[:, :-1, :-1] = gram[kept][:, 1:, 1:]
    cross = np.zeros((len(kept), size))
    cross[:, :-1] = gram[kept][:, 1:, 0]
    centre = None
    if along is not None:
        base_numel, base_square, _, base_sum, _ = own[base_id]
        centre = np.nan_to_num((base_sum / np.maximum(base_numel, 1))[kept])
        columns[:, -1, -1] = np.where(base_numel[kept] == numel[kept, 0], base_square[kept], 0.0)
        cross[:, -1] = along[kept, 0]
        columns[:, :-1, -1] = columns[:, -1, :-1] = along[kept, 1:]
    grams = Grams(
        [sums.names[i] for i in candidates], [sums.tensors[k] for k in kept], numel[kept, 0], columns, cross,
        gram[kept, 0, 0], np.zeros(len(kept)) if noise is None else noise[kept], along is not None,
        [sums.dtypes.get(i, UNROUNDED) for i in (*candidates, base_id, child_id)], centre,
        np.stack([_bits(sums, i)[kept] for i in (*candidates, base_id, child_id)], axis=1),
        frozenset(sums.names[i] for i in candidates if i not in own),
    )  # fmt: skip
    share = zeros[kept] / np.maximum(numel[kept], 1)
    coverage = float(numel[kept, 0].sum()) / max(float(sums.sizes.sum()), 1)
    return Stored(grams, np.roll(share, -1, axis=1), coverage, lacking)


def _along_base(sums: Sums, ids: Sequence[int], gram: FloatArray, numel: FloatArray) -> FloatArray | None:
    """Inner products [T, M + 1] of deltas with the base's weights: (|theta|^2 - |theta_0|^2 - |d|^2) / 2.

    NaN where a model has more or fewer elements than the base, 0 for all where the child itself has. An adapter's
    weights are nowhere: its delta counts as if it were across the base's. None without sums of the base's own weights.
    """
    own = sums.weights
    if sums.base_id not in own or ids[0] not in own:
        return None
    base_numel, base_square, *_ = own[sums.base_id]
    result = np.zeros((len(sums.tensors), len(ids)))
    for i, model_id in enumerate(ids):
        if model_id in own:
            own_numel, square, *_ = own[model_id]
            found = (square - base_square - gram[:, i, i]) / 2
            result[:, i] = np.where(own_numel == base_numel, found, np.nan)
    resized = np.isnan(result[:, 0]) | (base_numel != numel[:, 0])
    result[resized] = 0.0
    return result


def _bits(sums: Sums, model_id: int) -> "NDArray[np.int64]":
    """Significant bits of a model's tensors [T]; of an adapter those of numbers that were not rounded."""
    if model_id not in sums.weights:
        return np.full(len(sums.tensors), BITS[UNROUNDED])
    usual = BITS.get(sums.dtypes[model_id], BITS["F32"])
    return np.where(np.isfinite(sums.weights[model_id][4]), sums.weights[model_id][4], usual).astype(np.int64)


def _weights(
    con: Connection, ids: Sequence[int], tensors: Sequence[str]
) -> tuple[dict[int, FloatArray], dict[int, str]]:
    """By model: numel, sumsq, ulpsq, sum and significant bits of each tensor of the base [5, T], NaN where it is lacking;
    and the main dtype."""
    at: dict[str, int] = {}
    for position, name in enumerate(tensors, 1):
        at[bare(name)] = position
    at |= {name: position for position, name in enumerate(tensors, 1)}
    dtypes = stored.main_dtypes(con, ids)
    placed = {tensor: at.get(tensor, at.get(bare(tensor))) for tensor in stored.weight_names(con, ids)}
    known = {tensor: position for tensor, position in placed.items() if position is not None}
    columns = stored.weights_at(con, ids, known, BITS)
    found = _by_model(*columns, count=len(tensors))
    nothing = np.full((5, len(tensors)), np.nan)
    return {model_id: found.get(model_id, nothing) for model_id in dtypes}, dtypes


def _by_model(
    ids: FloatArray, positions: FloatArray, *columns: FloatArray, count: int
) -> dict[int, FloatArray]:
    """Values of tensors by position as arrays [K, count] by model, NaN where there are none."""
    models, rows = np.unique(ids, return_inverse=True)
    found = np.full((len(models), len(columns), count), np.nan)
    for k, column in enumerate(columns):
        found[rows, k, positions - 1] = column
    return dict(zip(models.tolist(), found, strict=True))
