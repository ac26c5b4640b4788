"""`kinbase infer`: families, copies, merges, parents and directions of checkpoints that come without words.

Models measured against one base need no reading: their distances follow from stored Grams. Others are read in one
pass over each group of like shapes, any of them as the reference: |theta_i - theta_j| does not depend on it.
Families are what correlates weight by weight; unrelated trainings do not. What the distances then tell is
kinbase.provenance.phylogeny.merges's business.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import networkx as nx
import numpy as np

from kinbase.checkpoint import FLOAT_DTYPES, Checkpoint
from kinbase.checkpoint.names import bare
from kinbase.checkpoint.open import read
from kinbase.errors import CheckpointError, KinbaseError
from kinbase.ingest.missing import measure_missing
from kinbase.ingest.steps import OnProgress as Report
from kinbase.provenance.phylogeny.distances import Points
from kinbase.provenance.phylogeny.merges import Family, infer_family
from kinbase.provenance.recipes.least_squares import BITS, FloatArray
from kinbase.provenance.recipes.sampled_elements import ElementReader
from kinbase.query import sums as stored_sums
from kinbase.query.graph import descends_from
from kinbase.query.kinship import ENOUGH
from kinbase.store import Connection, Store, journal
from kinbase.store import kinship as sums
from kinbase.store import names as naming
from kinbase.store.lineage import drop_claims_of, put_weights_claim
from kinbase.store.names import Member

if TYPE_CHECKING:
    from kinbase.kinship.sums import FamilySums

RELATED = 0.3
"""Correlation of weights from which two models are of one family: the same trainings lie above 0.8, others near 0."""

ALIKE = 0.5
"""Share of tensors of equal names and shapes that two checkpoints must have to be compared at all."""

SOURCE = "kinbase infer"

Weights = dict[str, tuple[str, float, float, float, float]]
"""Of one model by tensor: dtype, numel, sum, sum of squares, squared units in the last place."""


@dataclass(frozen=True)
class Measured:
    """Points; `means` [N, N], what the tensors' means add to inner products of weights; `base`, the index of their base."""

    points: Points
    means: FloatArray
    base: int | None = None


def infer(
    store: Store,
    models: Sequence[str] = (),
    *,
    among: Sequence[str] = (),
    blind: bool = False,
    quick: bool = False,
    aligned: bool = False,
    device: str = "auto",
    report: Report = lambda done, total: None,
) -> tuple[list[Family], list[str]]:
    """The families of `models` (none: all that have weights) and `among`, and lines on what could not be compared.

    `blind` leaves out dates and known bases; `quick` compares sketches where no Grams are stored, instead of reading
    weights; `aligned` reads all, and puts units that lie in another order into one first. Raises KinbaseError for an
    unknown model, or when there are fewer than two to compare.
    """
    with store.reading() as con:
        names = {naming.resolve(con, label) for label in (*models, *among)} if models else None
        stored = [m for m in naming.members(con) if names is None or m.name in names]
        adapters = stored_sums.adapters(con)
    notes = [
        f"{m.name} is an adapter: its parent is the model it was made for"
        for m in stored
        if m.name in adapters
    ]
    stored = [m for m in stored if m.name not in adapters]
    if names is not None:
        lacking = sorted(names - {m.name for m in stored} - adapters)
        notes += [f"{name} is known without its weights" for name in lacking]
    if len(stored) < 2:
        more = "name more, or others with --among" if models else "`kinbase import` brings them in"
        raise KinbaseError(f"there are no two models with weights to compare: {more}")
    found: list[Family] = []
    for group, base in [(stored, None)] if aligned else _groups(stored):
        if aligned:
            parts = _read(store, group, device, report, notes, aligned=True)
        else:
            parts = _measure(store, group, base, quick, device, report, notes)
        for measured in parts:
            reader = ElementReader({m.name: m for m in group}, measured.points.names[0])
            for cluster in clusters(measured):
                part = replace(measured.points.of(cluster), sampler=reader.of)
                if blind:
                    part = replace(part, dates=[None] * len(cluster))
                known = cluster.index(measured.base) if measured.base in cluster and not blind else None
                found.append(infer_family(part, root=known))
    return sorted(found, key=lambda family: (-len(family.members), family.root)), notes


def _groups(stored: list[Member]) -> list[tuple[list[Member], int | None]]:
    """What is measured together: a stored family, or, when any model has no base, everything."""
    bases = {m.base_id for m in stored if m.base_id is not None}
    loose = [m for m in stored if m.base_id is None and m.model_id not in bases]
    if loose:
        return [(stored, None)]
    return [([m for m in stored if base in (m.base_id, m.model_id)], base) for base in sorted(bases)]


def _measure(
    store: Store,
    group: list[Member],
    base: int | None,
    quick: bool,
    device: str,
    report: Report,
    notes: list[str],
) -> list[Measured]:
    """Distances within a group: stored ones, else by sketches if `quick`, else by reading."""
    if base is not None:
        group = _covering(store, group, base, notes)
        others = [m.name for m in group if m.model_id != base]
        if len(others) > 1:
            notes += measure_missing(store, others, exact=not quick, device=device, on_progress=report)
        with store.reading() as con:
            known = _stored(con, group, base)
        if known is not None:
            return [known]
    if not quick:
        found = _read(store, group, device, report, notes)
        if found:
            return found
    with store.reading() as con:
        sketched = _sketched(con, group)
    if sketched is not None:
        notes.append("compared by sketches: copies and merges are not looked for")
        return [sketched]
    raise KinbaseError(
        "not all of these models have sketches: leave out --quick, and their weights are read"
        if quick
        else "no two of these models can be compared: their files are gone, or they share no tensors"
    )


def _covering(store: Store, group: list[Member], base: int, notes: list[str]) -> list[Member]:
    """The members of a family that were compared by half of the base or more; the others are told."""
    with store.reading() as con:
        covered = sums.covered(con, base)
    weak = [m for m in group if covered.get(m.model_id, 1.0) < ENOUGH]
    notes += [
        f"{m.name} was compared by {covered[m.model_id]:.1%} of the base's parameters, too little to place it"
        for m in weak
    ]
    return [m for m in group if m not in weak]


def clusters(measured: Measured) -> list[list[int]]:
    """Indices of the models of each family: those whose weights correlate, directly or through others."""
    points = measured.points
    length = points.sumsq.sum(axis=0)
    products = (length[:, None] + length[None, :] - points.squared.sum(axis=0)) / 2 - measured.means
    variance = np.maximum(length - np.diagonal(measured.means), 0)
    alike = products / np.sqrt(np.maximum(np.outer(variance, variance), 1e-300))
    graph = nx.Graph(list(zip(*np.nonzero(np.triu(alike > RELATED, 1)), strict=True)))
    graph.add_nodes_from(range(len(points.names)))
    return sorted(sorted(int(i) for i in part) for part in nx.connected_components(graph))


# Stored sums.


def _stored(con: Connection, group: list[Member], base: int) -> Measured | None:
    """Points from stored Grams; None where a pair or a model's own sums are missing."""
    ids = [m.model_id for m in group]
    at = {model_id: i for i, model_id in enumerate(ids)}
    tensors = stored_sums.tensors(con, base)
    count = len(tensors)
    lengths, numel = np.zeros((count, len(ids))), np.zeros((count, len(ids)))
    zeros = np.zeros((count, len(ids)))
    for model_id, position, n, sumsq, same in zip(*stored_sums.deltas(con, base, ids), strict=True):
        position = int(position)
        zeros[position - 1, at[model_id]] = np.nan_to_num(same)
        lengths[position - 1, at[model_id]] = sumsq
        numel[position - 1, at[model_id]] = n
    dots = np.full((count, len(ids), len(ids)), np.nan)
    for a, b, values in stored_sums.dots_among(con, base, ids):
        row = np.array([np.nan if value is None else value for value in values])
        dots[:, at[a], at[b]] = dots[:, at[b], at[a]] = row
    if base in at:
        numel[:, at[base]] = [n for _, n in tensors]
        dots[:, at[base], :] = dots[:, :, at[base]] = 0.0
    dots[:, range(len(ids)), range(len(ids))] = lengths
    weights: dict[int, Weights] = {model_id: {} for model_id in ids}
    for model_id, tensor, *facts in stored_sums.weights(con, ids):
        weights[model_id][tensor] = tuple(np.nan if fact is None else fact for fact in facts)  # type: ignore[assignment]
    whole = (numel == np.array([[n] for _, n in tensors])).all(axis=1)
    return _measured(
        [m.name for m in group], [name for name, _ in tensors], dots, whole, [weights[i] for i in ids],
        _dates(con, ids), at.get(base), zeros, at.get(base),
    )  # fmt: skip


def _dates(con: Connection, ids: Sequence[int]) -> list[float | None]:
    known = stored_sums.seconds_of(con, ids)
    return [known[i] for i in ids]


def _measured(
    names: list[str], tensors: list[str], dots: FloatArray, whole: FloatArray, weights: list[Weights],
    dates: list[float | None], base: int | None, zeros: FloatArray | None = None, reference: int | None = None,
) -> Measured | None:  # fmt: skip
    """Points from inner products [T, N, N] of deltas, of the tensors that all models have whole and finite.

    `zeros` [T, N] are how many elements of each are those of the model at `reference`, from which the deltas are.
    """
    own = np.full((4, len(tensors), len(names)), np.nan)
    for i, facts in enumerate(weights):
        for t, tensor in enumerate(tensors):
            found = facts.get(bare(tensor)) or facts.get(tensor)
            if found:
                own[:, t, i] = found[1:]
    usable = whole & np.isfinite(own).all(axis=(0, 2)) & np.isfinite(dots).all(axis=(1, 2))
    if usable.sum() * 2 < len(tensors):
        return None
    length = np.diagonal(dots, axis1=1, axis2=2)
    squared = np.maximum(length[:, :, None] + length[:, None, :] - 2 * dots, 0)[usable]
    numel, total, sumsq, ulpsq = own[:, usable]
    dtypes = [_dtype(facts) for facts in weights]
    kept = [tensor for tensor, use in zip(tensors, usable, strict=True) if use]
    bits = np.array(
        [[BITS.get((facts.get(bare(t)) or facts[t])[0], BITS["F32"]) for facts in weights] for t in kept]
    )
    share = zeros[usable] / np.maximum(numel[:, :1], 1) if zeros is not None else None
    points = Points(
        names, squared, sumsq, ulpsq / 12, numel[:, 0], dtypes, dates, bits=bits, zeros=share, reference=reference,
        tensors=kept,
    )  # fmt: skip
    return Measured(points, (total / numel).T @ total, base)


def _dtype(weights: Weights) -> str:
    """The dtype of most of a model's weights."""
    numel: dict[str, float] = {}
    for dtype, n, *_ in weights.values():
        numel[dtype] = numel.get(dtype, 0) + n
    return max(numel, key=lambda dtype: numel[dtype], default="F32")


def _sketched(con: Connection, group: list[Member]) -> Measured | None:
    """Points from sketches: one distance a pair, with an error of 1 / sqrt(k) of it; None where one has none."""
    ids = [m.model_id for m in group]
    rows = stored_sums.sketches_of_one_scheme(con, ids)
    own = [
        (model_id, tensor, numel, total, square, ulp, dtype)
        for model_id, tensor, dtype, numel, total, square, ulp in stored_sums.weights(con, ids)
        if square is not None
    ]
    if rows.keys() != set(ids) or {row[0] for row in own} != set(ids):
        return None
    tensors = {tensor: t for t, tensor in enumerate(dict.fromkeys(row[1] for row in own))}
    at = {model_id: i for i, model_id in enumerate(ids)}
    facts = np.zeros((4, len(tensors), len(ids)))
    dtypes: list[Weights] = [{} for _ in ids]
    for model_id, tensor, *values, dtype in own:
        facts[:, tensors[tensor], at[model_id]] = values
        dtypes[at[model_id]][tensor] = (dtype, *values)
    numel, total, sumsq, ulpsq = facts
    sketches = np.stack([np.frombuffer(rows[i], np.float32) for i in ids]).astype(np.float64)
    products = sketches @ sketches.T
    length = np.diagonal(products)
    squared = np.maximum(length[:, None] + length[None, :] - 2 * products, 0)[None]
    points = Points(
        [m.name for m in group], squared, sumsq.sum(axis=0)[None], ulpsq.sum(axis=0)[None] / 12,
        numel.max(axis=1).sum(keepdims=True), [_dtype(facts) for facts in dtypes], _dates(con, ids), exact=False,
    )  # fmt: skip
    return Measured(points, (total / np.maximum(numel.max(axis=1), 1)[:, None]).T @ total)


# Reading.


def _read(
    store: Store, group: list[Member], device: str, report: Report, notes: list[str], *, aligned: bool = False
) -> list[Measured]:
    """Points of a group, a pass over each part of like shapes, whose units are put into one order if `aligned`."""
    opened: list[Checkpoint] = []
    found: list[Measured] = []
    try:
        for member in group:
            source = (
                read(member.source, member.name) if all(file.as_it_was for file in member.files) else None
            )
            if source is None or source.checkpoint is None:
                notes.append(f"{member.name}: its files are gone or changed, so it is left out")
            elif source.checkpoint.delta_of is not None:
                notes.append(f"{member.name} is an adapter: its parent is the model it was made for")
            else:
                opened.append(source.checkpoint)
        for part in _alike(opened):
            if len(part) == 1:
                notes.append(f"{part[0].name} stands alone: no other model has tensors like its")
            else:
                if aligned:
                    from kinbase.provenance.identity.one_order import in_one_order

                    part, lines = in_one_order(part, report)
                    notes += lines
                found += _pass(store, part, device, report, notes)
    finally:
        for checkpoint in opened:
            checkpoint.close()
    return found


def _alike(opened: list[Checkpoint]) -> list[list[Checkpoint]]:
    """Checkpoints by shape: with whom they share half of their tensors, by name and shape, first come first served."""
    parts: list[list[Checkpoint]] = []
    shapes: list[set[tuple[str, tuple[int, ...]]]] = []
    for checkpoint in opened:
        own = {(bare(t.name), t.shape) for t in checkpoint.tensors if t.dtype in FLOAT_DTYPES}
        for part, theirs in zip(parts, shapes, strict=True):
            if len(own & theirs) >= ALIKE * len(own | theirs):
                part.append(checkpoint)
                break
        else:
            parts.append([checkpoint])
            shapes.append(own)
    return parts


def _pass(
    store: Store, part: list[Checkpoint], device: str, report: Report, notes: list[str]
) -> list[Measured]:
    """One reading of checkpoints, the first of them standing for the base."""
    from kinbase.ingest.family_pass import measure
    from kinbase.kinship.gpu import resolve_device

    reference, *members = part
    try:
        found = measure(
            store, reference, members, new=len(members), hash_base=True,
            device=resolve_device(device), on_progress=report,
        )  # fmt: skip
    except CheckpointError as error:
        notes.append(str(error))
        return []
    with store.writing() as con:
        sums.drop_kept(con, found.key)
    with store.reading() as con:
        ids = [naming.find(con, checkpoint.name) for checkpoint in part]
        dates = _dates(con, [i for i in ids if i is not None])
    measured = _of_pass(found, dates)
    if measured is None:
        notes.append(f"{', '.join(c.name for c in part)} share too few tensors of equal shape to be compared")
        return []
    return [measured]


def _of_pass(found: "FamilySums", dates: list[float | None]) -> Measured | None:
    tensors, count = len(found.tensors), len(found.members)
    dots = np.zeros((tensors, count + 1, count + 1))
    dots[:, 1:, 1:] = found.dots.rows(0, count)
    whole = (found.columns["numel"] == np.array([[numel] for _, numel in found.tensors])).all(axis=1)
    names = [found.base.name, *(member.name for member in found.members)]
    weights: list[Weights] = []
    for name in names:
        own = found.weights[name]
        total, sumsq, ulpsq = own.moments.T
        facts = zip(own.dtypes, own.numels, total.tolist(), sumsq.tolist(), ulpsq.tolist(), strict=True)
        weights.append(dict(zip(own.tensors, facts, strict=True)))
    zeros = np.concatenate([np.zeros((tensors, 1)), found.columns["zeros"]], axis=1)
    return _measured(names, [name for name, _ in found.tensors], dots, whole, weights, dates, None, zeros, 0)


# What is kept of it.


def record(store: Store, edges: Sequence[tuple[str, str, str, float, float | None, str]]) -> list[str]:
    """Store edges (parent, child, relation, confidence, weight, words) as claims of the weights; lines on those left out.

    They replace what was inferred of the same children before. An edge that would close a circle with other
    claims is left out.
    """
    notes = []
    with store.writing() as con, journal.act(con, "infer", f"--record, {len(edges)} edges"):
        ids = {name: naming.named(con, name) for edge in edges for name in edge[:2]}
        drop_claims_of(con, SOURCE, [ids[edge[1]] for edge in edges])
        for parent, child, relation, confidence, weight, words in edges:
            if descends_from(con, parent, child):
                notes.append(f"{parent} descends from {child} by other claims: the edge is not recorded")
                continue
            detail = json.dumps({"confidence": round(confidence, 4), "evidence": words})
            put_weights_claim(con, ids[child], ids[parent], relation, weight, detail, SOURCE)
    return notes
