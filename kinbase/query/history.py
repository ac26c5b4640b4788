"""The history of merging that is stored: the generations of a run, or a path of merges.

A path is a chain of merges, each made from the one before: the steps that a source numbers (`path 1` of the
published family), or a model's own best ancestors.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from kinbase.errors import KinbaseError
from kinbase.query import runs
from kinbase.query.kinship import known_pairs
from kinbase.store import Connection, names

GENERATIONS = """
select g.generation, count(*) filter (o.status in ('merged', 'scored')), count(*) filter (o.score is not null),
    avg(o.kinship), max(o.kinship), any_value(g.best_so_far), any_value(g.top), any_value(g.top_kinship)
from generations g left join offspring o on o.run = g.run and o.generation = g.generation
where g.run = ? group by g.generation order by g.generation
"""

NUMBERED = """
select child from lineage
where relation = 'merge' and replace(lower(detail ->> 'table'), ' ', '-') = replace(lower($1), ' ', '-')
    and detail ->> 'step' is not null
group by child order by min((detail ->> 'step')::integer)
"""

BEST_MERGED_PARENT = """
select p.child from merge_gains c, unnest(c.parents) t(parent) join merge_gains p on p.child = t.parent
where c.child = $1 and c.benchmark = 'average' and p.benchmark = 'average' and not list_contains($2, p.child)
order by p.score desc nulls last, p.child limit 1
"""

SCORE_AND_KINSHIP = """
select child, score, coalesce(kinship, (
    select avg(try_cast(detail -> 'parents' ->> 'pcc' as double)) from lineage l where l.child = g.child
))
from merge_gains g where benchmark = 'average' and list_contains(?, child)
"""


@dataclass(frozen=True, slots=True)
class Generation:
    """One generation: how many were merged and evaluated, mean kinship of the parents, what one has by then.

    `score` is of the model that stopping here leaves one with: a path's own, a run's best so far. None: not known.
    """

    number: int
    merges: int
    evaluations: int
    kinship: float | None
    highest: float | None
    score: float | None
    best_so_far: float | None
    top: tuple[str, ...]
    top_kinship: float | None


def load(con: Connection, name: str, k: int = 3) -> list[Generation]:
    """The generations of a run, of a numbered path, or of the chain of merges that ends in a model.

    Raises KinbaseError when there is none of that name.
    """
    if runs.exists(con, name):
        return _run(con, name)
    try:
        children = _numbered(con, name) or _chain(con, names.resolve(con, name))
    except KinbaseError as error:
        known = sorted(run.name for run in runs.runs(con))[:5]
        there = f"there is no run {name!r} (of {', '.join(known)}), and " if known else ""
        raise KinbaseError(f"{there}{error}") from None
    if len(children) < 2:
        raise KinbaseError(
            f"{name} is no run, and no path of merges ends in it: `kinbase sql 'from runs'` lists the runs"
        )
    return _path(con, children, k)


def _run(con: Connection, run: str) -> list[Generation]:
    return [
        Generation(number, merges, evaluations, mean, highest, best, best, tuple(top or ()), kinship if number else None)
        for number, merges, evaluations, mean, highest, best, top, kinship in con.execute(GENERATIONS, [run]).fetchall()
    ]  # fmt: skip


def _numbered(con: Connection, path: str) -> list[str]:
    return [child for (child,) in con.execute(NUMBERED, [path]).fetchall()]


def _chain(con: Connection, model: str) -> list[str]:
    """The merges that led to a model, oldest first: of two merged parents the better, by its average."""
    chain = [model]
    while row := con.execute(BEST_MERGED_PARENT, [chain[-1], chain]).fetchone():
        chain.append(row[0])
    return chain[::-1]


def _path(con: Connection, children: Sequence[str], k: int) -> list[Generation]:
    facts = {child: facts for child, *facts in con.execute(SCORE_AND_KINSHIP, [list(children)]).fetchall()}
    pairs = known_pairs(con, children, "pcc")
    found: list[Generation] = []
    best: float | None = None
    for number, child in enumerate(children, 1):
        score, kinship = facts.get(child, (None, None))
        best = max((s for s in (best, score) if s is not None), default=None)
        scores = {c: s for c in children[:number] if (s := facts.get(c, (None, None))[0]) is not None}
        top = tuple(sorted(scores, key=lambda c: -scores[c])[:k])
        among = [pairs.get(frozenset((a, b))) for i, a in enumerate(top) for b in top[i + 1 :]]
        known = [p for p in among if p is not None]
        is_whole = len(top) == k and among and len(known) == len(among)
        mean = sum(known) / len(known) if is_whole else None
        found.append(Generation(number, 1, 1, kinship, kinship, score, best, top, mean))
    return found
