"""From distances between the weights of a family to its edges: copies, merges, and a tree of the rest.

A copy lies as far from its original as rounding to its dtype puts it. A merge is an affine combination of its
parents but for rounding (provenance.recipes.verdict). Both say in which direction they were made. What is left becomes the
likeliest tree (kinbase.provenance.phylogeny.tree_search). Everything is computed from `Points`; no weights are read here.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from kinbase.provenance.phylogeny.distances import SAME, Points, find_copies
from kinbase.provenance.phylogeny.tree_search import MODEL, Model, Tree, hung
from kinbase.provenance.recipes import verdict as verdicts
from kinbase.provenance.recipes.elements import Sampler
from kinbase.provenance.recipes.judgement import DIFFERENCE, Judgement, plausibility
from kinbase.provenance.recipes.least_squares import BITS, LIMIT, Grams
from kinbase.provenance.recipes.stacks import STACK

ROOTS = 3
"""Roots that are tried at most, where none is known."""

FEW = 3
"""Parents of an equation that is taken for a merge though its residual does not prove it."""

FAR = 3.0
"""How far its nearest parent must be from it, in limits of a merge's residual."""

LEAST_SHARE = 0.02
"""A parent of a smaller coefficient is not told."""

SMALL = 500
"""A tensor of fewer elements has no say in how cosines vary from tensor to tensor."""

CONFIDENCE = {
    "merge": 0.96,
    "undecided": 0.8,
    "selected": 0.85,
    "elements": 0.98,
    "quantized": 0.97,
    "duplicate": 0.5,
}
"""Of edges that rounding floors decide, by their share of right ones in generated families; the direction of
equal weights of one dtype is not decidable."""

CALIBRATION = (-1.20, 1.96)
"""Confidence of an edge of the tree: logistic(a + b log(1 + m)), m how much better its tree is than the best without it."""


@dataclass(slots=True)
class Inferred:
    """One edge. `relation` is finetune, merge, quantized or duplicate; `weight` a merge's coefficient, `margin` by how
    much the tree is better than the best without this edge."""

    parent: str
    child: str
    relation: str
    confidence: float
    distance: float
    evidence: str
    weight: float | None = None
    margin: float | None = None


@dataclass(slots=True)
class Family:
    """What was inferred of one cluster: its root, and edges to every other member."""

    root: str
    members: list[str]
    edges: list[Inferred] = field(default_factory=list)


def infer_family(points: Points, *, root: int | None = None, model: Model = MODEL) -> Family:
    """The likeliest history of the models of one family; `root` is the index of a base that is known."""
    copies = find_copies(points, root) if points.exact else {}
    keep = [i for i in range(len(points.names)) if i not in copies]
    kept = points.of(keep)
    family = Family(kept.names[0], list(points.names))
    if len(keep) > 1:
        tree, merges = _grow(kept, keep.index(root) if root is not None else None, model)
        family.root = kept.names[tree.root]
        family.edges = _tree_edges(kept, tree) + _merge_edges(kept, merges)
    apart = points.distance
    for copy, original in copies.items():
        same = apart[copy, original] ** 2 <= SAME * points.sumsq[:, original].sum()
        dtypes = points.dtypes[original], points.dtypes[copy]
        relation = "quantized" if BITS.get(dtypes[1], 0) < BITS.get(dtypes[0], 0) else "duplicate"
        certain = CONFIDENCE["duplicate" if dtypes[0] == dtypes[1] else "quantized"]
        evidence = (
            f"the same weights in {dtypes[1]}"
            if same
            else f"{dtypes[0]} rounded to {dtypes[1]}, nothing else"
        )
        family.edges.append(
            Inferred(
                points.names[original],
                points.names[copy],
                relation,
                certain,
                float(apart[copy, original]),
                evidence,
            )
        )
    return family


@dataclass(frozen=True, slots=True)
class Merge:
    """A merge's parents with their coefficients, what is known of it in words, and how certain it is.

    `is_plain` tells whether it is an average, a sum or a selection: a difference reads as well with another of its models as
    the child.
    """

    parents: dict[int, float]
    confidence: float
    words: str
    is_plain: bool


def _grow(points: Points, root: int | None, model: Model) -> tuple[Tree, dict[int, Merge]]:
    """The tree and the merges: merges are told in coordinates of the root, the root among what is no merge.

    What does not add up to 1 holds from its base alone, and an average of models is told less surely from one of them,
    where it is a share of the others. So where the root is not known the next likely ones are tried too, and the one
    counts from which most models are merges, differences aside, then the one of the likelier tree.
    """
    tree = _likeliest(points, {}, root, model)
    if not points.exact or len(points.names) < 3:
        return tree, {}
    best: tuple[tuple[int, float], Tree, dict[int, Merge]] | None = None
    todo, seen = [tree.root, *tree.roots()[: ROOTS - 1]], set[int]()
    while todo:
        at = todo.pop(0)
        if at in seen:
            continue
        seen.add(at)
        merges = find_merges(points, at)
        tree = _likeliest(points, merges, root, model)
        if tree.root != at:
            if root is None and len(seen) < 2 * ROOTS:
                todo.append(tree.root)
            if any(abs(sum(merge.parents.values()) - 1) > LEAST_SHARE for merge in merges.values()):
                tree = _likeliest(points, merges, at, model)
        worth = (sum(merge.is_plain for merge in merges.values()), tree.score(tree.parents))
        if best is None or worth > best[0]:
            best = worth, tree, merges
    assert best
    _, tree, merges = best
    free = _tree(points, merges, root, model)  # other roots count among an edge's rivals
    free.parents = tree.parents
    return free, merges


def _likeliest(points: Points, merges: dict[int, Merge], root: int | None, model: Model) -> Tree:
    """The best tree of a few searches, each from another root."""
    best = _tree(points, merges, root, model)
    best.search()
    for at in best.roots()[:ROOTS]:
        tree = _tree(points, merges, root, model)
        tree.parents = hung(best.parents, at)
        tree.search()
        if tree.score(tree.parents) > best.score(best.parents):
            best = tree
    return best


def _tree(points: Points, merges: dict[int, Merge], root: int | None, model: Model) -> Tree:
    large = points.numel >= min(SMALL, float(points.numel.max()))
    total = points.squared.sum(axis=0)
    length = points.sumsq.sum(axis=0)
    growth = np.tanh((length[None, :] - length[:, None]) / np.maximum(total, 1e-300))
    dates = np.array([np.nan if date is None else date for date in points.dates])
    late = dates[:, None] > dates[None, :] + 86400
    return Tree(
        points.squared[large],
        growth,
        {child: list(merge.parents) for child, merge in merges.items()},
        total=total,
        late=late,
        root=root,
        model=model,
    )


# Merges.


def find_merges(points: Points, root: int) -> dict[int, Merge]:
    """The models that are made of others by the one judgement of the family (kinbase.provenance.recipes.judgement).

    Differences of models, which read as well in other directions, come last, and none closes a circle.
    """
    judgement = judged(points, root)
    everybody = [i for i in range(len(points.names)) if i != root]
    findings = {i: finding for i in everybody if (finding := judgement.of(i)) is not None}
    found: dict[int, Merge] = {}
    for child in sorted(findings, key=lambda i: plausibility(findings[i])):
        merge = _told(points, root, child, findings[child])
        if merge is not None and not any(_descends(found, parent, child) for parent in merge.parents):
            found[child] = merge
    return found


def judged(points: Points, root: int) -> Judgement:
    """The judgement of a family by its distances, seen from one of its models."""
    count = len(points.names)

    def read(child: int, without: frozenset[int]) -> verdicts.Finding | None:
        others = [i for i in range(count) if i not in (child, root) and i not in without]
        zeros = None
        if points.zeros is not None and points.reference == root:
            zeros = points.zeros[:, [*others, child]]
        return verdicts.judge(grams_of(points, root, child, others), zeros, sampler_of(points, root, child))

    def fit(child: int, others: list[int]) -> verdicts.Finding:
        return verdicts.fitted(grams_of(points, root, child, others), range(len(others)))

    ids = {name: i for i, name in enumerate(points.names) if i != root}
    return Judgement(read, fit, lambda child: [i for i in ids.values() if i != child], ids)


def sampler_of(points: Points, root: int, child: int) -> Sampler | None:
    """What reads elements of a child and its candidates; None where nothing can be read."""
    read = points.sampler
    return None if read is None else lambda names: read(points.names[child], points.names[root], names)


def _descends(merges: dict[int, Merge], child: int, origin: int) -> bool:
    """Whether `child` is `origin` or made from it by merges."""
    return child == origin or (
        child in merges and any(_descends(merges, p, origin) for p in merges[child].parents)
    )


def _told(points: Points, root: int, child: int, finding: verdicts.Finding) -> Merge | None:
    """A finding as a merge; None where it is none."""
    sure = finding.verdict in verdicts.MERGES
    if finding.verdict == verdicts.SELECTED:
        kind, words = "selected", "elements of its parents' changes, others left out"
        if finding.explained is not None:
            kind, words = "elements", f"{words}: they make {finding.explained:.1%} of those sampled"
    elif sure:
        kind, words = (
            "merge",
            f"a combination of {len(finding.parents)} that leaves {finding.ratio:.2f} of what rounding would",
        )
    elif _is_plain(points, root, child, finding):
        kind = "undecided"
        words = f"a combination of {len(finding.nearest)} that leaves {finding.ratio:.2f} of what rounding would, unevenly"
    else:
        return None
    at = {name: i for i, name in enumerate(points.names)}
    listed = finding.parents or finding.nearest
    parents = {at[p.parent]: p.coefficient for p in listed if abs(p.coefficient) >= LEAST_SHARE}
    if len(parents) == 1 and LEAST_SHARE < next(iter(parents.values())) < 1 - LEAST_SHARE and sure:
        parents[root] = 1 - next(iter(parents.values()))
    alone = finding.explained is not None  # elements of one parent, others left out
    if len(parents) < 2 and not (parents and alone):
        return None
    return Merge(parents, CONFIDENCE[kind], words, plausibility(finding)[0] < DIFFERENCE)


def _is_plain(points: Points, root: int, child: int, finding: verdicts.Finding) -> bool:
    """Whether an undecided equation can hardly be anything else: positive, within rounding, and far from one parent alone.

    Whole coefficients (task vectors added as they are) hardly round, so what is left tells nothing.
    """
    if finding.verdict != verdicts.UNDECIDABLE or finding.rho is None or finding.rho > LIMIT:
        return False
    if finding.method == STACK:
        return False
    if not 2 <= len(finding.nearest) <= FEW or min(p.coefficient for p in finding.nearest) < LEAST_SHARE:
        return False
    apart = points.squared[:, child].sum(axis=0)
    nearest = min(float(apart[i]) for i in range(len(points.names)) if i not in (child, root))
    return bool(nearest > (FAR * LIMIT) ** 2 * points.noise[:, child].sum())


def grams_of(points: Points, root: int, child: int, others: Sequence[int]) -> Grams:
    """Inner products of deltas from `root`, by the law of cosines, and of its own weights: <a, b> from |a - b|."""
    rows = [*others, child]
    d = points.squared
    gram = (d[:, rows, root][:, :, None] + d[:, rows, root][:, None, :] - d[:, rows][:, :, rows]) / 2
    along = (points.sumsq[:, rows] - points.sumsq[:, [root]] - d[:, rows, root]) / 2
    count = len(others)
    full = np.zeros((len(d), count + 1, count + 1))
    full[:, :count, :count] = gram[:, :count, :count]
    full[:, count, :count] = full[:, :count, count] = along[:, :count]
    full[:, count, count] = points.sumsq[:, root]
    cross = np.concatenate([gram[:, count, :count], along[:, count:]], axis=1)
    return Grams(
        [points.names[i] for i in others], points.tensors or [str(t) for t in range(len(d))], points.numel, full, cross,
        gram[:, count, count], points.noise[:, child],
        dtypes=[points.dtypes[i] for i in (*others, root, child)],
        bits=None if points.bits is None else points.bits[:, [*others, root, child]],
    )  # fmt: skip


# Edges.


def _merge_edges(points: Points, merges: dict[int, Merge]) -> list[Inferred]:
    apart = points.distance
    return [
        Inferred(
            points.names[parent], points.names[child], "merge", merge.confidence, float(apart[parent, child]), merge.words,
            float(weight),
        )
        for child, merge in merges.items()
        for parent, weight in sorted(merge.parents.items(), key=lambda item: -item[1])
    ]  # fmt: skip


def _tree_edges(points: Points, tree: Tree) -> list[Inferred]:
    apart = points.distance
    edges = []
    for child, (margin, rival) in tree.margins().items():
        parent = int(tree.parents[child])
        cosine = tree.cosine(child)
        if cosine is not None:
            how = f"cosine {cosine:+.2f} with its parent's own change"
        else:
            how = "nothing between it and the root" if parent == tree.root else "trained from a merge"
        second = "" if rival is None else f"; next best: {rival_words(points, rival)}"
        better = f"better by {margin:.1f}" if np.isfinite(margin) else "no other tree is possible"
        edges.append(
            Inferred(
                points.names[parent], points.names[child], "finetune", confidence_of(margin), float(apart[parent, child]),
                f"{how}, {better}{second}", margin=margin,
            )
        )  # fmt: skip
    return edges


def rival_words(points: Points, rival: int) -> str:
    """The best tree without an edge, in words: the parent its child has there."""
    return "as the root" if rival < 0 else f"from {points.names[rival]}"


def confidence_of(margin: float) -> float:
    """The calibrated confidence of an edge whose tree is better by `margin` than the best one without it."""
    a, b = CALIBRATION
    return float(1 / (1 + np.exp(-(a + b * np.log1p(max(margin, 0.0))))))
