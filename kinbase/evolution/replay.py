"""What each rule of stopping would have saved and lost on a history that is stored: a run, or a path of merges.

A path is a chain of merges, each made from the one before: the steps that a source numbers (`path 1` of the
published family), or a model's own best ancestors. Rules after arXiv 2410.12613, section 5.2: the literal one stops
at the first merge of parents more akin than the threshold; the others wait.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from kinbase.errors import KinbaseError
from kinbase.store import Connection
from kinbase.store import names as naming

COLUMNS = (
    "rule", "stops_after", "generations", "score", "lost", "best_so_far", "merges_saved", "merges", "evaluations_saved",
    "evaluations", "reason",
)  # fmt: skip


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
    if con.execute("select 1 from runs where run = ?", [name]).fetchone():
        return _run(con, name)
    try:
        children = _numbered(con, name) or _chain(con, name)
    except KinbaseError as error:
        runs = [run for (run,) in con.execute("select run from runs order by run limit 5").fetchall()]
        there = f"there is no run {name!r} (of {', '.join(runs)}), and " if runs else ""
        raise KinbaseError(f"{there}{error}") from None
    if len(children) < 2:
        raise KinbaseError(
            f"{name} is no run, and no path of merges ends in it: `kinbase sql 'from runs'` lists the runs"
        )
    return _path(con, children, k)


def _run(con: Connection, run: str) -> list[Generation]:
    rows = con.execute(
        """
        select g.generation, count(*) filter (o.status in ('merged', 'scored')),
            count(*) filter (o.score is not null), avg(o.kinship), max(o.kinship), any_value(g.best_so_far),
            any_value(g.top), any_value(g.top_kinship)
        from generations g left join offspring o on o.run = g.run and o.generation = g.generation
        where g.run = ? group by g.generation order by g.generation
        """,
        [run],
    ).fetchall()
    return [
        Generation(
            number,
            merges,
            evaluations,
            mean,
            highest,
            best,
            best,
            tuple(top or ()),
            top_kinship if number else None,
        )
        for number, merges, evaluations, mean, highest, best, top, top_kinship in rows
    ]


def _numbered(con: Connection, name: str) -> list[str]:
    rows = con.execute(
        """
        select child from lineage
        where relation = 'merge' and replace(lower(detail ->> 'table'), ' ', '-') = replace(lower($1), ' ', '-')
            and detail ->> 'step' is not null
        group by child order by min((detail ->> 'step')::integer)
        """,
        [name],
    ).fetchall()
    return [child for (child,) in rows]


def _chain(con: Connection, name: str) -> list[str]:
    """The merges that led to a model, oldest first: of two merged parents the better, by its average."""
    chain = [naming.resolve(con, name)]
    while True:
        row = con.execute(
            """
            select p.child from merge_gains c, unnest(c.parents) t(parent) join merge_gains p on p.child = t.parent
            where c.child = $1 and c.benchmark = 'average' and p.benchmark = 'average'
                and not list_contains($2, p.child)
            order by p.score desc nulls last, p.child limit 1
            """,
            [chain[-1], chain],
        ).fetchone()
        if row is None:
            return chain[::-1]
        chain.append(row[0])


def _path(con: Connection, children: Sequence[str], k: int) -> list[Generation]:
    rows = con.execute(
        """
        select child, score, coalesce(kinship, (
            select avg(try_cast(detail -> 'parents' ->> 'pcc' as double)) from lineage l where l.child = g.child
        ))
        from merge_gains g where benchmark = 'average' and list_contains(?, child)
        """,
        [list(children)],
    ).fetchall()
    facts = {child: (score, kinship) for child, score, kinship in rows}
    pairs = {
        (a, b): pcc
        for a, b, pcc in con.execute(
            "select model_a, model_b, pcc from kinship where list_contains($1, model_a) and list_contains($1, model_b)",
            [list(children)],
        ).fetchall()
    }
    found, best = [], None
    for number, child in enumerate(children, 1):
        score, kinship = facts.get(child, (None, None))
        best = score if best is None else max(best, score if score is not None else best)
        scored = [c for c in children[:number] if facts.get(c, (None,))[0] is not None]
        top = tuple(sorted(scored, key=lambda c: -facts[c][0])[:k])
        among = [pairs.get((a, b)) for a in top for b in top if a < b]
        mean = (
            sum(p for p in among if p is not None) / len(among)
            if len(top) == k and among and None not in among
            else None
        )
        found.append(Generation(number, 1, 1, kinship, kinship, score, best, top, mean))
    return found


def replay(
    history: Sequence[Generation], *, threshold: float = 0.9, patience: int = 2
) -> list[tuple[object, ...]]:
    """A row of COLUMNS for each rule: where it stops, what one has there, and what not going on saves."""
    rules: list[tuple[str, Callable[[int], bool], bool, str]] = [
        (
            "literal", lambda i: (history[i].highest or 0) > threshold, any(g.highest is not None for g in history),
            f"parents more akin than {threshold:g}, once",
        ),
        (
            "sustained", lambda i: _lasting([g.kinship for g in history[: i + 1]], threshold, patience),
            any(g.kinship is not None for g in history), f"parents more akin than {threshold:g}, {patience} generations running",
        ),
        (
            "top-k mean", lambda i: _lasting([g.top_kinship for g in history[: i + 1]], threshold, patience),
            any(g.top_kinship is not None for g in history), f"mean kinship of the best above {threshold:g}, {patience} running",
        ),
        (
            "unchanged top-k", lambda i: i > 0 and bool(history[i].top) and set(history[i].top) == set(history[i - 1].top),
            any(g.top for g in history), "the best are the same as a generation before",
        ),
    ]  # fmt: skip
    rows = []
    for rule, stops, known, words in rules:
        at = next((i for i in range(len(history)) if stops(i)), None) if known else None
        rows.append(_outcome(history, rule, at, words if known else f"{words}: not known here"))
    return rows


def _lasting(values: Sequence[float | None], threshold: float, patience: int) -> bool:
    last = values[-patience:]
    return len(last) == patience and all(value is not None and value > threshold for value in last)


def _outcome(history: Sequence[Generation], rule: str, at: int | None, words: str) -> tuple[object, ...]:
    merges, evaluations = sum(g.merges for g in history), sum(g.evaluations for g in history)
    if at is None:
        return (rule, None, history[-1].number, history[-1].score, 0.0, history[-1].best_so_far, 0, merges, 0, evaluations,
                f"never stops: {words}")  # fmt: skip
    here, end = history[at], history[-1]
    lost = round(here.score - end.score, 6) if here.score is not None and end.score is not None else None
    rest = history[at + 1 :]
    return (
        rule, here.number, end.number, here.score, lost, here.best_so_far, sum(g.merges for g in rest), merges,
        sum(g.evaluations for g in rest), evaluations, words,
    )  # fmt: skip
