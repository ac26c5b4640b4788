"""Kinship by sketches: new models meet all others of their family without anybody's weights being read.

All functions take a connection of `Store.writing()` and are part of its one transaction.
"""

import math
from collections.abc import Iterable, Sequence

from kinbase.store import Connection, sketches
from kinbase.store import names as naming
from kinbase.store.estimates import put_sketched
from kinbase.store.kinship import grid_error, grid_noise

EVERYBODY = 1000
"""Members up to which a new one is compared with all by whole sketches; of more, with those the folded ones choose."""

CHOSEN = 64
"""How many the folded sketches choose."""

RELATED = 0.5
"""Cosine of the weights themselves above which two models are taken to come from one: strangers' are near 0."""


def meet(con: Connection, base_id: int, model_ids: Iterable[int]) -> int:
    """Estimate the kinship of new members with all others of their family that were not measured; the pairs stored."""
    sketches.fill_directions(con, base_id)
    stored = 0
    met: list[int] = []
    for model_id in sketches.unmet(con, base_id, model_ids):
        near = [other for other in nearest(con, base_id, model_id) if other not in met]
        stored += estimate(con, base_id, [(model_id, other) for other in near])
        met.append(model_id)
    return stored


def meanwhile(con: Connection, base_id: int, known: Sequence[int]) -> str | None:
    """A line on the members that another import brought into a family beside those that this one knew of."""
    others = naming.members_beside(con, base_id, known)
    if not others:
        return None
    some = ", ".join(others[:3]) + (f" and {len(others) - 3} more" if len(others) > 3 else "")
    return (
        f"kinship with {some} is estimated by sketches, for they were imported at the same time: "
        "`kinbase kin MODEL --exact` measures it"
    )


def nearest(con: Connection, base_id: int, model_id: int) -> list[int]:
    """Members of a family to compare a model with: not measured with it, all or the nearest by folded sketches."""
    from kinbase.kinship.sketch import SCHEME

    return sketches.nearest_directions(con, base_id, model_id, SCHEME, whole=EVERYBODY, chosen=CHOSEN)


def estimate(con: Connection, base_id: int, pairs: Sequence[tuple[int, int]]) -> int:
    """Store the kinship of pairs of one family as their sketches tell it, in place of earlier estimates; the pairs stored."""
    import numpy as np

    from kinbase.kinship.sketch import compare

    rows = []
    whole = sketches.vector(con, base_id)
    by_first: dict[int, list[int]] = {}
    for a, b in pairs:
        by_first.setdefault(a, []).append(b)
    noise = grid_noise(con, {model_id for pair in pairs for model_id in pair})
    for a, others in by_first.items():
        for start in range(0, len(others), 250):
            found = sketches.deltas(con, base_id, [a, *others[start : start + 250]])
            one = found.pop(a, None)
            if one is None or not found:
                continue
            cosine, stderr, dot, xx, yy = compare(one.sums, np.stack([d.sums for d in found.values()]))
            for k, (b, other) in enumerate(found.items()):
                if math.isnan(cosine[k]):
                    continue
                n = max(min(one.numel, other.numel), 1)
                pcc = _pearson(n, one.sum, other.sum, float(xx[k]), float(yy[k]), float(dot[k]))
                ed = math.sqrt(max(float(xx[k] + yy[k] - 2 * dot[k]), 0.0))
                coverage = min(n / whole.numel, 1.0) if whole else None
                shares = [noise.get(m, 0.0) / max(float(of), 1e-300) for m, of in ((a, xx[k]), (b, yy[k]))]
                error = math.hypot(float(stderr[k]), grid_error(con, n, float(cosine[k]), *shares))
                rows.append((min(a, b), max(a, b), pcc, float(cosine[k]), ed, min(error, 1.0), coverage))
    if not rows:
        return 0
    put_sketched(con, base_id, rows)
    return len(rows)


def _pearson(n: int, sum_a: float, sum_b: float, aa: float, bb: float, ab: float) -> float | None:
    """PCC from sketched products and exact sums; None where a delta does not vary."""
    var_a, var_b = aa - sum_a * sum_a / n, bb - sum_b * sum_b / n
    if not (var_a > 1e-12 * aa and var_b > 1e-12 * bb):
        return None
    return max(-1.0, min(1.0, (ab - sum_a * sum_b / n) / math.sqrt(var_a * var_b)))


def placed(con: Connection, model_id: int, k: int = 3) -> list[tuple[str, str | None, float, float]]:
    """The models whose weights themselves are nearest to a model's: name, base, cosine, standard error.

    Compared are bases and models without one, of the same number of weights within a tenth; of the family of
    the nearest base, its members too.
    """
    import numpy as np

    from kinbase.kinship.sketch import SCHEME, compare

    own = sketches.vector(con, model_id)
    if own is None:
        return []
    candidates = sketches.comparable(con, model_id, SCHEME, own.numel)
    scored: list[tuple[float, float, int]] = []
    for start in range(0, len(candidates), 250):
        found = {m: sketches.vector(con, m) for m in candidates[start : start + 250]}
        vectors = {m: v.sums for m, v in found.items() if v is not None}
        if vectors:
            cosine, stderr, *_ = compare(own.sums, np.stack(list(vectors.values())))
            scored += [
                (float(c), float(e), m)
                for c, e, m in zip(cosine, stderr, vectors, strict=True)
                if not math.isnan(c)
            ]
    scored.sort(reverse=True)
    result = []
    for cosine_, error, m in scored[:k]:
        name, base, _ = naming.place_of(con, m)
        result.append((name, base, cosine_, error))
    return result


def suggestion(con: Connection, model_id: int) -> str | None:
    """A line on what an unknown model's weights are nearest to, and the base that suggests; None when nobody is here."""
    near = [each for each in placed(con, model_id) if each[2] >= RELATED]
    if not near:
        return None
    listed = ", ".join(f"{name} ({cosine:.4f})" for name, _, cosine, _ in near)
    name, base, _, _ = near[0]
    return f"by its weights it is nearest to {listed}: is {base or name} its base? If so, import it again with --base"


def why_without_kin(con: Connection, name: str) -> str:
    """Why a stored model has no kinship, and what would give it some, in a line."""
    model_id = naming.find(con, name)
    assert model_id is not None
    _, base, members = naming.place_of(con, model_id)
    if base is not None:
        return f"{name} has no kin yet: of those tuned from {base} no other was measured or sketched"
    if members:
        of = "1 model" if members == 1 else f"{members} models"
        return f"{name} is the base of {of}: nothing of it changed, so it has no kinship itself"
    return f"{name} has no known base; {suggestion(con, model_id) or 'import it again with --base'}"


def estimate_named(con: Connection, base: str, pairs: Sequence[tuple[str, str]]) -> int:
    """Estimate named pairs of one family by their sketches; the pairs stored."""
    base_id = naming.find(con, base)
    ids = [(naming.find(con, a), naming.find(con, b)) for a, b in pairs]
    known = [(a, b) for a, b in ids if a is not None and b is not None]
    return estimate(con, base_id, known) if base_id is not None else 0
