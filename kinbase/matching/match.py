"""Two models' units matched: channels by the embeddings of the same tokens, then layer by layer heads and MLP units.

Tokens are the same on both sides, so their embeddings match the channels of the residual stream, and those the rest:
weight matching (Git Re-Basin, arXiv 2209.04836) for MLP units; query-key and value-output circuits, which do not hang
on the order of units inside a head, for heads (Elhage et al. 2021, "A mathematical framework for transformer
circuits"). Where the embeddings leave a doubt, channels are matched anew by all weights until nothing changes.

Read is a piece at a time. In memory are two of a layer's matrices in float32, and the products of its units: three
squares of the MLP's width, or four of the heads'.
"""

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from kinbase.errors import KinbaseError
from kinbase.matching.architecture import Architecture
from kinbase.matching.assignment import IN_PLACE, Matrix, along_diagonal, assign, unit_rows
from kinbase.matching.heads import match_heads
from kinbase.matching.independence import Independence, combined, layer_test, same_order
from kinbase.matching.reading import Couple, matrix, some_rows
from kinbase.matching.scales import balanced, gain_factors
from kinbase.matching.symmetry import Symmetry, Units

SWEEPS = 8
"""How often channels are matched anew at most."""

OnProgress = Callable[[int, int], None]


@dataclass(slots=True)
class Matched:
    """How the units of one model lie in another's order, whether the two are independent, and lines on doubts."""

    symmetry: Symmetry
    test: Independence
    is_converged: bool
    notes: list[str] = field(default_factory=list)


def match(a: Architecture, b: Architecture, on_progress: OnProgress = lambda done, total: None) -> Matched:
    """Match the units of `b` with those of `a`. `on_progress` is told layers.

    Raises KinbaseError for models of different sizes, and CheckpointError when they cannot be read.
    """
    refuse_misfit(a, b)
    couple = Couple(a, b, Symmetry.identity(b))
    tokens = _token_cosines(couple)
    is_plain = _set_channels(couple, tokens)
    tests = []
    for layer in range(a.layers):
        on_progress(layer, a.layers)
        test = _match_units(couple, layer)
        tests += [test] if test else []
        match_heads(couple, layer)
    found = Matched(
        couple.symmetry, combined(tests), True, [*a.notes, *(n for n in b.notes if n not in a.notes)]
    )
    if not is_plain and found.test.is_related:
        found.is_converged = _sweep(couple, tokens)
    for layer in range(a.layers):
        _match_gains(couple, layer)
    _match_last(couple)
    if found.test.is_related and couple.symmetry.breaks():
        found.notes.append("scales differ within rotary pairs: what the two compute is not the same")
    on_progress(a.layers, a.layers)
    return found


def independence(
    a: Architecture, b: Architecture, on_progress: OnProgress = lambda done, total: None
) -> Independence:
    """The test of `match` by itself: whether two models were trained independently; raises as it does."""
    refuse_misfit(a, b)
    couple = Couple(a, b, Symmetry.identity(b))
    _set_channels(couple, _token_cosines(couple))
    tests = []
    for layer in range(a.layers):
        on_progress(layer, a.layers)
        test, _ = _test_units(couple, layer)
        tests += [test] if test else []
    return combined(tests)


def refuse_misfit(a: Architecture, b: Architecture) -> None:
    """Raise KinbaseError, naming the first size in which two models differ."""
    other = b.shape()
    for what, size in a.shape().items():
        if other[what] != size:
            raise KinbaseError(
                f"{a.name} and {b.name} cannot be aligned, for they have {size} and {other[what]} {what}: their sizes must agree"
            )


def _token_cosines(couple: Couple) -> Matrix:
    """Correlation [d, d] of each channel with each of the other's over the tokens that both have.

    An output head of its own adds the sizes of its correlations to those of the embedding, which has the sign.
    """
    total = np.zeros((couple.a.hidden, couple.a.hidden), np.float32)
    for role in ("embed", "unembed"):
        pair = couple.both(role, None)
        if pair is None:
            continue
        a, b = some_rows(pair[0].tensor, pair[1].tensor)
        found = unit_rows((a - a.mean(0)).T) @ unit_rows((b - b.mean(0)).T).T
        total = (
            np.where(total < 0, total - np.abs(found), total + np.abs(found)) if role == "unembed" else found
        )
    return total


def _set_channels(couple: Couple, cosines: Matrix) -> bool:
    """Order the second's channels by their cosines; whether each is plainly the other's best, and the other way round."""
    has_signs = couple.a.has_signs and couple.b.has_signs
    likeness = np.abs(cosines) if has_signs else cosines
    index = assign(likeness)
    at = np.arange(len(index))
    sign = np.where(cosines[at, index] < 0, -1.0, 1.0) if has_signs else np.ones(len(index))
    couple.symmetry.residual = Units(index, sign)
    return bool((likeness.argmax(1) == index).all() and (likeness.argmax(0)[index] == at).all())


Sides = tuple[Matrix, Matrix]
"""Cosines [m, m] of the MLP units of both models by each of the two sides that are tested."""


def _test_units(couple: Couple, layer: int) -> tuple[tuple[float, float] | None, Sides | None]:
    """A layer's part of the test of independence, and the cosines it was computed from; None where all are in place."""
    if _in_place(*_first(couple, layer)) and _in_place(*_second(couple, layer)):
        return same_order(couple.a.units), None
    sides = _sides(couple, layer)
    return layer_test(*sides), sides


def _sides(couple: Couple, layer: int) -> Sides:
    return _cosines(*_first(couple, layer)), _cosines(*_second(couple, layer))


def _first(couple: Couple, layer: int) -> tuple[Matrix, Matrix]:
    return couple.inputs("gate", layer)


def _second(couple: Couple, layer: int) -> tuple[Matrix, Matrix]:
    return couple.inputs("up", layer) if couple.a.is_gated else couple.outputs("down", layer)


def _in_place(a: Matrix, b: Matrix) -> bool:
    return bool(along_diagonal(a, b).min() > IN_PLACE)


def _match_units(couple: Couple, layer: int) -> tuple[float, float] | None:
    """Order the MLP units of a layer; its part of the test of independence."""
    test, sides = _test_units(couple, layer)
    index = np.arange(couple.a.units)
    factor = np.ones(len(index))
    if not couple.a.is_gated:
        if sides is not None:
            index = assign(sides[0] + sides[1])
        couple.symmetry.layers[layer].units = Units(index, factor)
        return test
    down = couple.outputs("down", layer)
    if sides is None and not _in_place(*down):
        sides = _sides(couple, layer)
    if sides is not None:
        likeness, rest = sides
        del sides
        rest += _cosines(*down)
        likeness += np.abs(rest, out=rest)
        del rest
        index = assign(likeness)
        del likeness
    up = _second(couple, layer)
    factor = balanced((up[0], up[1][index]), (down[0], down[1][index]))
    couple.symmetry.layers[layer].units = Units(index, factor)
    return test


def _cosines(a: Matrix, b: Matrix) -> Matrix:
    return np.asarray(unit_rows(a) @ unit_rows(b).T)


def _match_gains(couple: Couple, layer: int) -> None:
    """Find what moved between the gains of a layer's norms and the columns that read them."""
    found = couple.symmetry.layers[layer]
    second = ("gate", "up") if couple.a.is_gated else ("gate",)
    shared = not couple.both("second", layer)
    for role, readers in (("first", ("q", "k", "v", *(second if shared else ()))), ("second", second)):
        if couple.both(role, layer) is None:
            continue
        gains = couple.gains(role, layer)
        if not _differ(*gains):
            continue
        columns = []
        for reader in readers:
            a, b = couple.inputs(reader, layer, is_folded=False)
            axis = couple.b.pieces[reader, layer, False].out
            if axis is not None:
                index, factor = couple.symmetry.along(axis)
                b = b[index] * factor.astype(np.float32)[:, None]
            columns.append((a.T, b.T))
        both = np.hstack([a for a, _ in columns]), np.hstack([b for _, b in columns])
        units = found.first if role == "first" else found.second
        units.factor = gain_factors(gains, both)


def _match_last(couple: Couple) -> None:
    """As `_match_gains`, of the norm before an output head that is no embedding."""
    pair, head = couple.both("last", None), couple.both("unembed", None)
    if pair is None or head is None:
        return
    gains = couple.gains("last", None)
    if _differ(*gains):
        a, b = some_rows(head[0].tensor, head[1].tensor)
        b = b[:, couple.symmetry.residual.index] * couple.symmetry.residual.factor.astype(np.float32)
        couple.symmetry.last.factor = gain_factors(gains, (a.T, b.T))


def _differ(a: Matrix, b: Matrix) -> bool:
    """Whether gains differ so much that something may have moved out of them."""
    return bool((np.abs(a - b) > 0.01 * np.abs(a)).any())


def _sweep(couple: Couple, tokens: Matrix) -> bool:
    """Match channels by all weights, and layers anew by them, until nothing changes; whether it came to that."""
    for _ in range(SWEEPS):
        before = couple.symmetry.residual
        _set_channels(couple, tokens + _layer_cosines(couple))
        after = couple.symmetry.residual
        if (before.index == after.index).all() and (before.factor == after.factor).all():
            return True
        for layer in range(couple.a.layers):
            _match_units(couple, layer)
            match_heads(couple, layer)
    return False


def _layer_cosines(couple: Couple) -> Matrix:
    """Products [d, d] of channels over the units of all layers; the second's channels are in its own order.

    Each matrix adds 1 on the mean to channels that are the same, as the embedding does.
    """
    total = np.zeros((couple.a.hidden, couple.a.hidden), np.float32)
    for key in couple.a.pieces.keys() & couple.b.pieces.keys():
        role, layer, is_bias = key
        if is_bias or layer is None or role not in ("q", "k", "v", "o", "gate", "up", "down"):
            continue
        mine, other = couple.a.pieces[key], couple.b.pieces[key]
        a, b = matrix(mine), matrix(other)
        if role in ("o", "down"):
            a, b = a.T, b.T
        axis = other.into if role in ("o", "down") else other.out
        if axis is not None:
            index, factor = couple.symmetry.along(axis)
            b = b[index] * factor.astype(np.float32)[:, None]
        lengths = float(np.linalg.norm(a)) * float(np.linalg.norm(b))
        if np.isfinite(lengths) and lengths > 0:
            total += (a.T @ b) * (couple.a.hidden / lengths)
    return total
