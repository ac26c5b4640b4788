"""Attention heads of two models matched by what they compute, then the units inside them.

Of a head with queries Q, keys K, values V and outputs O, Q^T K and O V say all there is, whatever the order, signs and
scales of the units inside. Their inner products follow from products of the rows of the four: <Q_a^T K_a, Q_b^T K_b> =
sum (Q_a Q_b^T) o (K_a K_b^T). Query heads that share a key-value head are matched within it, then those groups.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from kinbase.matching.architecture import Architecture
from kinbase.matching.assignment import IN_PLACE, Matrix, along_diagonal, assign, unit_rows
from kinbase.matching.reading import Couple
from kinbase.matching.scales import balanced
from kinbase.matching.symmetry import Factors, Indices, Units

Pair = tuple[Matrix, Matrix]
Blocks = tuple[NDArray[np.float32], NDArray[np.float32]]
"""Of both models: [groups, units, features]."""


@dataclass(slots=True)
class Attention:
    """The rows of one layer's queries, keys, values and outputs in both models: [heads * units, features]."""

    q: Pair
    k: Pair
    v: Pair
    o: Pair

    def pairs(self) -> tuple[Pair, ...]:
        """All four."""
        return self.q, self.k, self.v, self.o


def match_heads(couple: Couple, layer: int) -> None:
    """Order the heads of a layer and the units inside them; nothing where the heads are not known."""
    model = couple.a
    if not model.groups:
        return
    found = couple.symmetry.layers[layer]
    q, k, v = (couple.inputs(role, layer) for role in "qkv")
    both = Attention(q, k, v, couple.outputs("o", layer))
    is_same = all(along_diagonal(*pair).min() > IN_PLACE for pair in both.pairs())
    groups, queries = np.arange(model.groups), Units.same(model.groups, model.queries).index
    if not is_same:
        groups, queries = _order(both, model)
    found.groups = Units(groups, np.ones(len(groups)))
    found.queries = Units(queries, np.ones(queries.shape))
    heads = groups[:, None] * model.queries + queries
    keys = _inner(both.q, both.k, model, heads, model.head)
    values = _inner(both.o, both.v, model, heads, model.value)
    found.values = _units(values[1], values[0], is_fixed=is_same, has_signs=True)
    if model.has_head_norms:  # they take away what scale there is
        found.keys = Units.same(model.groups, model.head)
    elif model.is_rotary and model.has_pairs and model.head % 2 == 0:
        found.keys.factor = _rotary_factors(*keys)
    else:
        found.keys = _units(*keys, is_fixed=is_same or model.is_rotary, has_signs=True)


def _rotary_factors(queries: Blocks, keys: Blocks) -> Factors:
    """Factors [G, h] of the units of keys: one for the two of a rotary pair, and more only where they evidently differ."""
    halves = [np.concatenate(np.split(x, 2, axis=1), axis=2) for x in (*queries, *keys)]
    both = _factors((halves[0], halves[1]), (halves[2], halves[3]))
    both = np.concatenate([both, both], axis=1)
    factor = both.astype(np.float32)[:, :, None]
    return both * _factors((queries[0], queries[1] * factor), (keys[0], keys[1] / factor))


def _factors(first: Blocks, second: Blocks, *, has_signs: bool = True) -> Factors:
    """`balanced` of the units inside all heads together: [G, n]."""
    flat = [x.reshape(-1, x.shape[2]) for x in (*first, *second)]
    found = balanced((flat[0], flat[1]), (flat[2], flat[3]), has_signs=has_signs)
    return found.reshape(first[0].shape[:2])


def _order(both: Attention, model: Architecture) -> tuple[Indices, Indices]:
    """(group [G], query in it [G, r]) of the second model for each of the first's."""
    groups, queries = model.groups, model.queries
    likeness = _circuits(both.q, both.k, model, model.head) + _circuits(both.o, both.v, model, model.value)
    blocks = likeness.reshape(groups, queries, groups, queries).transpose(0, 2, 1, 3)
    inner = np.zeros((groups, groups, queries), np.int64)
    total = np.zeros((groups, groups))
    at = np.arange(queries)
    for i in range(groups):
        for j in range(groups):
            inner[i, j] = assign(blocks[i, j])
            total[i, j] = blocks[i, j][at, inner[i, j]].sum()
    order = assign(total)
    return order, inner[np.arange(groups), order]


def _circuits(many: Pair, few: Pair, model: Architecture, width: int) -> NDArray[np.float64]:
    """Cosine [H, H] of the circuits of each query head with each of the other's; `few` are rows of key-value heads."""
    groups, queries = model.groups, model.queries
    outer = np.asarray(many[0] @ many[1].T).reshape(groups, queries, width, groups, queries, width)
    inner = np.asarray(few[0] @ few[1].T).reshape(groups, width, groups, width)
    products = np.einsum("aqibpj,aibj->aqbp", outer, inner, dtype=np.float64, optimize=False)
    lengths = [_lengths(many[k], few[k], model, width) for k in (0, 1)]
    with np.errstate(divide="ignore", invalid="ignore"):
        cosines = products.reshape(groups * queries, -1) / (lengths[0][:, None] * lengths[1])
    return np.asarray(np.nan_to_num(cosines, nan=0.0, posinf=0.0, neginf=0.0))


def _lengths(many: Matrix, few: Matrix, model: Architecture, width: int) -> NDArray[np.float64]:
    """Frobenius length [H] of each head's circuit."""
    heads = many.reshape(model.groups, model.queries, width, -1)
    keys = few.reshape(model.groups, width, -1)
    outer = np.einsum("gqif,gqjf->gqij", heads, heads, optimize=True)
    inner = np.einsum("gif,gjf->gij", keys, keys, optimize=True)
    squares = np.einsum("gqij,gij->gq", outer, inner, dtype=np.float64)
    return np.asarray(np.sqrt(np.maximum(squares, 0))).reshape(-1)


def _inner(many: Pair, few: Pair, model: Architecture, heads: Indices, width: int) -> tuple[Blocks, Blocks]:
    """The units inside key-value heads [G, width, features], of query heads together and of key-value heads, in order."""
    groups = model.groups
    mine = many[0].reshape(groups, model.queries, width, -1)
    other = many[1].reshape(groups * model.queries, width, -1)[heads]
    outer = tuple(x.transpose(0, 2, 1, 3).reshape(groups, width, -1) for x in (mine, other))
    kept = few[0].reshape(groups, width, -1), few[1].reshape(groups, width, -1)[heads[:, 0] // model.queries]
    return (outer[0], outer[1]), kept


def _units(first: Blocks, second: Blocks, *, is_fixed: bool, has_signs: bool) -> Units:
    """The order [G, n] and factors of units inside heads, of which `first` are multiplied; `is_fixed`: they keep theirs."""
    found = Units.same(*first[0].shape[:2])
    if not is_fixed:
        for group, (a, b, c, d) in enumerate(zip(*first, *second, strict=True)):
            likeness = unit_rows(a) @ unit_rows(b).T + unit_rows(c) @ unit_rows(d).T
            found.index[group] = assign(np.abs(likeness) if has_signs else likeness)
    at = found.index[:, :, None]
    ordered = [(a, np.take_along_axis(b, at, 1)) for a, b in (first, second)]
    found.factor = _factors(*ordered, has_signs=has_signs)
    return found
