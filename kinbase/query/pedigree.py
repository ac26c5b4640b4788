"""The lineage around one model, or of two: who stands in it, in which generation, and how it is drawn.

Level by level, by id and within bounds: a base with a hundred thousand descendants is shown by its
nearest ones.
"""

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field

from kinbase.errors import KinbaseError
from kinbase.query.details import ParentClaim
from kinbase.query.models import Model
from kinbase.store import Connection

MOST_UP = 300
MOST_DOWN = 300
"""Ancestors and descendants shown."""

# The base a merge was measured from is no parent of it.
UP = """
with claimed as materialized (
    select child_id, parent_id, relation <> 'base' as told from raw.claim where child_id in (select unnest($1))
)
select child_id, parent_id from claimed where told or child_id not in (select child_id from claimed where told)
union
select model_id, base_id from raw.model m where model_id in (select unnest($1)) and base_id is not null
    and model_id not in (select child_id from claimed)
"""

CLAIMS_OF = """
select c.child_id, p.model_id, p.name, c.relation, c.method, c.weight, c.evidence, c.source
from raw.claim c join raw.model p on p.model_id = c.parent_id
where c.child_id in (select unnest($1)) order by p.name, c.evidence
"""

BASES_OF = """
select m.model_id, b.model_id, b.name from raw.model m join raw.model b on b.model_id = m.base_id
where m.model_id in (select unnest($1))
"""

CHILDREN_OF = """
select distinct child_id from raw.claim where parent_id in (select unnest($1)) and relation <> 'base' order by child_id limit $2
"""

MEASURED_AGAINST = """
with measured as materialized (select model_id from raw.model where base_id in (select unnest($1)))
select model_id from measured where model_id not in (select child_id from raw.claim where child_id in (from measured))
order by model_id limit $2
"""


@dataclass
class Pedigree:
    """Models with their generation (below 0: ancestors of the focus) and the claims on the edges among them."""

    focus: list[int]
    names: dict[int, str]
    generation: dict[int, int]
    claims: dict[int, list[ParentClaim]]
    common: dict[int, tuple[int, ...]] = field(default_factory=dict)
    """Of two models: their common ancestors with the steps from each; the nearest ones are in `nearest`."""
    nearest: set[int] = field(default_factory=set)
    more_up: bool = False
    more_down: bool = False

    def model(self, id_: int) -> Model:
        return Model(id_, self.names[id_])

    def parents(self, child: int) -> list[int]:
        """Shown models it was made from: not the base its merge was measured from, when others are named."""
        claims = self.claims.get(child, [])
        real = [c for c in claims if c.relation != "base"] or claims
        return list(dict.fromkeys(c.parent.id for c in real if c.parent.id in self.generation))


def around(con: Connection, model: int, depth: int = 3) -> Pedigree:
    """Ancestors of `model`, all of them within bounds, and its descendants `depth` generations down."""
    above, more_up = _ancestors(con, model)
    below: dict[int, int] = {}
    front, more_down = [model], False
    for generation in range(1, depth + 1):
        room = MOST_DOWN - len(below)
        found = [row[0] for row in con.execute(CHILDREN_OF, [front, room + len(front) + 1]).fetchall()]
        found += [row[0] for row in con.execute(MEASURED_AGAINST, [front, room + 1]).fetchall()]
        fresh = [id_ for id_ in dict.fromkeys(found) if id_ not in below and id_ not in above]
        more_down = more_down or len(fresh) > room
        below |= dict.fromkeys(fresh[:room], generation)
        front = fresh[:room]
        if not front:
            break
    else:
        more_down = more_down or bool(con.execute(CHILDREN_OF, [front, 1]).fetchall())
    generations = {id_: -steps for id_, steps in above.items()} | below
    return _pedigree(con, [model], generations, more_up=more_up, more_down=more_down)


def common(con: Connection, one: int, other: int) -> Pedigree:
    """The ancestors of two models, with those they share."""
    first, more_first = _ancestors(con, one)
    second, more_second = _ancestors(con, other)
    shared: dict[int, tuple[int, ...]] = {id_: (first[id_], second[id_]) for id_ in first if id_ in second}
    generation = {id_: -min(first.get(id_, 1000), second.get(id_, 1000)) for id_ in first | second}
    pedigree = _pedigree(con, [one, other], generation, more_up=more_first or more_second)
    pedigree.common = shared
    above = {parent for id_ in shared for parent in pedigree.parents(id_)}
    pedigree.nearest = set(shared) - above or set(shared)
    return pedigree


def _ancestors(con: Connection, model: int) -> tuple[dict[int, int], bool]:
    """Fewest steps up by model, itself included."""
    steps, front, generation = {model: 0}, [model], 0
    while front and len(steps) < MOST_UP:
        generation += 1
        parents = sorted({row[1] for row in con.execute(UP, [front]).fetchall()} - steps.keys())
        steps |= dict.fromkeys(parents, generation)
        front = parents
    return steps, bool(front)


def _pedigree(
    con: Connection,
    focus: list[int],
    generation: dict[int, int],
    *,
    more_up: bool = False,
    more_down: bool = False,
) -> Pedigree:
    ids = list(generation)
    names = dict(
        con.execute(
            "select model_id, name from raw.model where model_id in (select unnest(?))", [ids]
        ).fetchall()
    )
    if not names.keys() >= set(focus):
        raise KinbaseError("this model is no longer in the database")
    claims: dict[int, list[ParentClaim]] = defaultdict(list)
    for child, parent, name, *claim in con.execute(CLAIMS_OF, [ids]).fetchall():
        claims[child].append(ParentClaim(Model(parent, name), *claim))
    for child, base, name in con.execute(BASES_OF, [ids]).fetchall():
        if child not in claims:
            claims[child].append(ParentClaim(Model(base, name), "base", None, None, "user", None))
    known = {id_: steps for id_, steps in generation.items() if id_ in names}
    return Pedigree(focus, names, known, dict(claims), more_up=more_up, more_down=more_down)


@dataclass(frozen=True)
class Row:
    """One line of the drawing: the rails left of a model, and the model."""

    id: int
    rails: str


def draw(pedigree: Pedigree) -> list[Row]:
    """The models from the oldest down, each with the lanes of the parents whose children still come.

    A circle of claims, which only wrong cards make, is cut where it closes.
    """
    rows: list[Row] = []
    lanes: list[int | None] = []
    ordered = list(_ordered(pedigree))
    place = {id_: i for i, id_ in enumerate(ordered)}
    waiting: dict[int, int] = defaultdict(int)
    parents: dict[int, list[int]] = {}
    for id_ in ordered:
        parents[id_] = [p for p in pedigree.parents(id_) if place[p] < place[id_]]
        for parent in parents[id_]:
            waiting[parent] += 1
    for id_ in ordered:
        from_ = sorted(lanes.index(parent) for parent in parents[id_])
        ending = set()
        for column in from_:
            ended = lanes[column]
            assert ended is not None
            waiting[ended] -= 1
            if not waiting[ended]:
                ending.add(column)
        start = from_[0] + 1 if from_ else 0
        own = next((i for i in range(start, len(lanes)) if lanes[i] is None), len(lanes))
        rows.append(Row(id_, _rails(lanes, from_, ending, own)))
        for column in ending:
            lanes[column] = None
        if waiting[id_]:
            lanes += [None] * (own + 1 - len(lanes))
            lanes[own] = id_
        while lanes and lanes[-1] is None:
            lanes.pop()
    return rows


def _rails(lanes: list[int | None], from_: list[int], ending: set[int], own: int) -> str:
    first, last = (min(*from_, own), max(*from_, own)) if from_ else (own, own)
    drawn = []
    for column in range(max(last + 1, len(lanes))):
        live = column < len(lanes) and lanes[column] is not None
        if column == own:
            mark = "●"
        elif column in from_:
            inner = first < column < last
            if column in ending:
                mark = "┴" if inner else "╰" if column < own else "╯"
            else:
                mark = "┼" if inner else "├" if column < own else "┤"
        elif live:
            mark = "│"
        else:
            mark = "─" if first < column < last else " "
        drawn.append(mark + ("─" if first <= column < last else " "))
    return "".join(drawn)


def _ordered(pedigree: Pedigree) -> Iterable[int]:
    """Parents before children; among those that may come, the oldest generation and then the name."""
    children: dict[int, list[int]] = defaultdict(list)
    left: dict[int, int] = {}
    for id_ in pedigree.generation:
        found = pedigree.parents(id_)
        left[id_] = len(found)
        for parent in found:
            children[parent].append(id_)
    while left:
        ready = [id_ for id_, number in left.items() if number <= 0] or [
            min(left, key=lambda i: (pedigree.generation[i], i))
        ]
        for id_ in sorted(ready, key=lambda i: (pedigree.generation[i], pedigree.names[i])):
            del left[id_]
            yield id_
            for child in children[id_]:
                if child in left:
                    left[child] -= 1
