"""Sketches and power sums of weights, to rows and back.

All functions take a connection of the store and are part of its unit of work.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from kinbase.checkpoint import Checkpoint
from kinbase.store import Connection
from kinbase.store import kinship as sums
from kinbase.store import names as naming
from kinbase.store.columns import rows

if TYPE_CHECKING:  # importing numpy for an annotation would slow down every command
    import numpy as np
    from numpy.typing import NDArray

    from kinbase.kinship.sums import FamilySums

COARSE = 128
"""Buckets of a folded sketch: 100,000 of them are looked through in DuckDB in a few hundredths of a second."""


@dataclass(frozen=True, slots=True)
class Delta:
    """The sketch [BUCKETS] of a model's change to its base, and of its elements the number and the sum."""

    sums: "NDArray[np.float32]"
    numel: int
    sum: float


def put_own(con: Connection, family: "FamilySums", ids: Mapping[str, int | None]) -> None:
    """Store what the pass over a family found in each checkpoint by itself; `ids` are their rows by name.

    An adapter has no weights of its own: its sketch is that of its change. So is that of a model whose
    tensors do not all fit the base's. Where a weight is not finite there is a row without sums.
    """
    own = {
        model_id: checkpoint
        for checkpoint in (family.base, *family.members[: family.new])
        if (model_id := ids.get(checkpoint.name)) is not None and checkpoint.name in family.weights
    }
    whole = {model_id: c for model_id, c in own.items() if c.delta_of is None}
    sums.put_weights(con, {model_id: family.weights[c.name] for model_id, c in whole.items()})
    misfits = [model_id for model_id, c in whole.items() if c.name in family.changes]
    drop(con, own)
    _put(con, [_own(family, model_id, c) for model_id, c in own.items() if model_id not in misfits])
    if misfits:  # compared with the base's sketch, which may have come with the others
        base_id = naming.find(con, family.fitted_to)
        base = vector(con, base_id) if base_id is not None else None
        changes = [_misfit(family, model_id, own[model_id].name, base) for model_id in misfits]
        _put(con, [change for change in changes if change is not None])


@dataclass(frozen=True, slots=True)
class Own:
    """A row of raw.sketch: of a model's weights, or of its change to the model `onto`; None for `numel`: as that one's."""

    model_id: int
    onto: str | None
    numel: int | None
    sum: float
    sketch: "NDArray[np.float64]"


def _own(family: "FamilySums", model_id: int, checkpoint: Checkpoint) -> Own:
    weights, onto = family.weights[checkpoint.name], checkpoint.delta_of
    numel = sum(weights.numels) if onto is None else None
    return Own(model_id, onto, numel, float(weights.moments[:, 0].sum()), family.sketches[checkpoint.name])


def _misfit(family: "FamilySums", model_id: int, name: str, base: Delta | None) -> Own | None:
    """A model's change to a base that its tensors do not all fit; None where that cannot be told."""
    change = family.changes[name]
    if change is None or base is None:
        return None
    total = float(family.weights[name].moments[:, 0].sum()) + (change.sum - base.sum)
    sketch = family.sketches[name] + change.sums - base.sums
    return Own(model_id, family.fitted_to, change.numel, total, sketch)


def _blob(sketch: "NDArray[np.float64]") -> bytes | None:
    """A sketch in float32; None where a sum is not finite, or too large for it."""
    import numpy as np

    with np.errstate(over="ignore"):
        narrow = sketch.astype("<f4")
    return narrow.tobytes() if np.isfinite(narrow).all() else None


def _put(con: Connection, sketched: Sequence[Own]) -> None:

    from kinbase.kinship.sketch import SCHEME

    if not sketched:
        return
    onto = naming.named_all(con, [own.onto for own in sketched if own.onto])
    table = {
        "model_id": [own.model_id for own in sketched],
        "onto_id": [onto[own.onto] if own.onto else None for own in sketched],
        "numel": [own.numel for own in sketched],
        "total": [own.sum for own in sketched],
        "blob": [_blob(own.sketch) for own in sketched],
    }
    with rows(con, table) as new:
        con.execute(
            f"insert into raw.sketch select model_id, $1, onto_id, numel, nullif(total, 'nan'), blob from {new}",
            [SCHEME],
        )


def drop(con: Connection, model_ids: Iterable[int]) -> None:
    """Forget models' sketches, and what follows from them."""
    ids = list(model_ids)
    con.execute("delete from raw.sketch where model_id in (select unnest($1::integer[]))", [ids])
    con.execute(
        "delete from raw.direction where model_id in (select unnest($1::integer[])) or base_id in (select unnest($1::integer[]))",
        [ids],
    )


def has(con: Connection, model_id: int) -> bool:
    """Whether a model has a sketch of its weights."""
    from kinbase.kinship.sketch import SCHEME

    query = "select 1 from raw.sketch where model_id = ? and scheme = ? and onto_id is null"
    return con.execute(query, [model_id, SCHEME]).fetchone() is not None


def any_of(con: Connection, names: Iterable[str]) -> set[str]:
    """Those of the models `names` that have a sketch, of their weights or of their change."""
    from kinbase.kinship.sketch import SCHEME

    rows = con.execute(
        """
        select label from (select unnest($1::varchar[]) as label)
        where label in (select name from raw.model join raw.sketch using (model_id) where scheme = $2)
            or label in (select alias from raw.alias join raw.sketch using (model_id) where scheme = $2)
        """,
        [list(names), SCHEME],
    ).fetchall()
    return {name for (name,) in rows}


def sketched(con: Connection) -> set[int]:
    """The models whose change to their base is sketched."""
    rows = con.execute(
        "select model_id from raw.direction join raw.model m using (model_id, base_id)"
    ).fetchall()
    return {model_id for (model_id,) in rows}


def lacking(con: Connection, names: Iterable[str]) -> set[str]:
    """Those of the models `names` whose weights were read before there were sketches, or sketches of this scheme."""
    from kinbase.kinship.sketch import SCHEME

    rows = con.execute(
        """
        select name from raw.model left join raw.sketch using (model_id)
        where list_contains($1, name) and digest is not null
            and case when scheme is null then model_id not in (select model_id from raw.weight) else scheme <> $2 end
        """,
        [list(names), SCHEME],
    ).fetchall()
    return {name for (name,) in rows}


def vector(con: Connection, model_id: int) -> Delta | None:
    """The sketch of a model's weights themselves; None when there is none of this scheme."""
    row = _rows(con, [model_id]).get(model_id)
    return Delta(row[3], row[1], row[2]) if row and row[0] is None else None


def deltas(con: Connection, base_id: int, model_ids: Iterable[int]) -> dict[int, Delta]:
    """The sketches of models' changes to a base, of those that have one.

    The sketch of an adapter of another model is added to that one's.
    """
    base = vector(con, base_id)
    rows = _rows(con, model_ids)
    known, more = dict(rows), rows
    while others := {onto for onto, *_ in more.values() if onto is not None} - {base_id, *known}:
        more = _rows(con, others)
        known |= more
        if not more:
            break
    found = {}
    for model_id in rows:
        delta = _delta(known, base, base_id, model_id)
        if delta is not None:
            found[model_id] = delta
    return found


def _delta(
    known: dict[int, tuple[Any, ...]], base: Delta | None, base_id: int, model_id: int, depth: int = 0
) -> Delta | None:
    onto, numel, total, own = known[model_id]
    if onto is None:
        if base is None or numel != base.numel:
            return None
        return Delta(own - base.sums, numel, total - base.sum)
    if onto == base_id or onto not in known:
        # An adapter of a model nobody here knows counts as the base's, on the word of whoever chose the base.
        whole = numel if numel is not None else base.numel if base else 0
        return Delta(own, whole, total)
    below = _delta(known, base, base_id, onto, depth + 1) if depth < 8 else None
    # One of a model that cannot be compared with the base cannot be either.
    return None if below is None else Delta(own + below.sums, below.numel, total + below.sum)


def _rows(con: Connection, model_ids: Iterable[int]) -> dict[int, tuple[Any, ...]]:
    """onto_id, numel, sum and sums [BUCKETS] of the models that have a sketch of this scheme, by model_id."""
    import numpy as np

    from kinbase.kinship.sketch import SCHEME

    ids = list(map(int, model_ids))
    found = {}
    # Numbers in the text: only so does DuckDB look them up by the key.
    for start in range(0, len(ids), 500):
        part = ids[start : start + 500]
        rows = con.execute(
            "select model_id, scheme, onto_id, numel, sum, sums from raw.sketch "
            f"where model_id in ({', '.join(map(str, part))})"
        ).fetchall()
        for model_id, scheme, onto, numel, total, blob in rows:
            if scheme == SCHEME and blob is not None:
                found[model_id] = (onto, numel, total, np.frombuffer(blob, "<f4"))
    return found


def fill_directions(con: Connection, base_id: int) -> None:
    """Fold the sketches of all members of a family that were not folded yet."""
    from kinbase.kinship.sketch import SCHEME, folded

    missing = con.execute(
        """
        select model_id from raw.model join raw.sketch using (model_id)
        where base_id = $1 and scheme = $2
            and model_id not in (select model_id from raw.direction where base_id = $1 and scheme = $2)
        """,
        [base_id, SCHEME],
    ).fetchall()
    rows = []
    for start in range(0, len(missing), 500):
        for model_id, delta in deltas(con, base_id, [m for (m,) in missing[start : start + 500]]).items():
            coarse = folded(delta.sums, COARSE)
            if coarse is not None:
                rows.append((model_id, coarse))
    if rows:
        con.execute("delete from raw.direction where list_contains($1, model_id)", [[m for m, _ in rows]])
        con.execute(
            f"insert into raw.direction select unnest($1), $2, $3, unnest($4)::float[{COARSE}]",
            [[m for m, _ in rows], base_id, SCHEME, [c.tolist() for _, c in rows]],
        )


def nearest_directions(
    con: Connection, base_id: int, model_id: int, scheme: str, *, whole: int, chosen: int
) -> list[int]:
    """Members of a family not measured with a model: all of up to `whole`, else the `chosen` nearest by folded sketches."""
    row = con.execute(
        "select coarse, (select count(*) from raw.direction where base_id = $2) from raw.direction "
        "where model_id = $1 and base_id = $2 and scheme = $3",
        [model_id, base_id, scheme],
    ).fetchone()
    if row is None:
        return []
    coarse, members = row
    rows = con.execute(
        f"""
        select model_id from raw.direction
        where base_id = $1 and scheme = $2 and model_id <> $3
            and model_id not in (select b_id from raw.pair where a_id = $3 union all select a_id from raw.pair where b_id = $3)
        order by array_inner_product(coarse, $4::float[{COARSE}]) desc limit $5
        """,
        [base_id, scheme, model_id, coarse, whole if members <= whole else chosen],
    ).fetchall()
    return [other for (other,) in rows]


def comparable(con: Connection, model_id: int, scheme: str, numel: int, most: int = 2000) -> list[int]:
    """Bases and models without one whose weights are of the same number within a tenth, and sketched by the same scheme."""
    rows = con.execute(
        """
        select model_id from raw.sketch s join raw.model m using (model_id)
        where model_id <> $1 and scheme = $2 and onto_id is null and numel between 0.9 * $3 and 1.1 * $3
            and (m.base_id is null or model_id in (select base_id from raw.model))
        order by model_id limit $4
        """,
        [model_id, scheme, numel, most],
    ).fetchall()
    return [other for (other,) in rows]


@dataclass(frozen=True, slots=True)
class Known:
    """A model whose weights are sketched: its row (None: it is of a file), elements, digest, and the sketch [BUCKETS]."""

    name: str
    digest: str | None
    numel: int
    sums: "NDArray[np.float32]"
    model_id: int | None = None


def known(con: Connection, names: Sequence[str] = ()) -> Iterator[Known]:
    """The models of which there is a sketch of the weights: `names`, or all bases and models without one, by name."""
    rows = con.execute(
        """
        select model_id, name, digest from raw.model m
        where case when len($1::varchar[]) > 0 then list_contains($1, name)
            else m.base_id is null or model_id in (select base_id from raw.model) end
        order by name
        """,
        [list(names)],
    ).fetchall()
    for model_id, name, digest in rows:
        own = vector(con, model_id)
        if own is not None:
            yield Known(name, digest, own.numel, own.sums, model_id)


def unmet(con: Connection, base_id: int, model_ids: Iterable[int]) -> list[int]:
    """Those of the models that were not measured with every other sketched member of their family."""
    ids = list(model_ids)
    rows = con.execute(
        """
        with new as (select unnest($2::integer[]) as model_id),
        pairs as (
            select a_id as model_id, b_id as other from raw.pair where a_id in (from new)
            union all select b_id, a_id from raw.pair where b_id in (from new)
        ),
        sketched as (select model_id from raw.direction where base_id = $1)
        select model_id from new left join pairs using (model_id)
        group by model_id
        having count(*) filter (other in (from sketched))
            < (select count(*) from sketched) - (model_id in (from sketched))::integer
        """,
        [base_id, ids],
    ).fetchall()
    left = {model_id for (model_id,) in rows}
    return [model_id for model_id in ids if model_id in left]
