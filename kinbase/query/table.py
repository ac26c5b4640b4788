"""A family, or what a filter lets through, as a table: a row a model, with what models are compared by."""

from dataclasses import dataclass, field

from kinbase.query import orders, scores
from kinbase.query.filters import Filter
from kinbase.query.models import Model
from kinbase.query.orders import Orders
from kinbase.store import Connection

MOST = 5000
"""Models one table takes."""
BENCHMARKS = 12
"""Benchmarks that have a column: those of most models."""

FAMILY_OF = """
select coalesce(base_id, case when exists (from raw.model where base_id = $1) then $1 end) from raw.model where model_id = $1
"""

# A parent is what a claim tells, not the base that a merge's deltas were taken against. Kin: the mean over those of $2
# that the model has a kinship with, itself left out.
ROWS = """
with member as materialized (select unnest($1::integer[]) as id),
told as (
    select c.child_id, list(distinct p.name order by p.name) as parents
    from raw.claim c join raw.model p on p.model_id = c.parent_id
    where c.child_id in (from member) and c.relation <> 'base' group by c.child_id
),
covered as (
    select d.model_id, sum(d.numel) / nullif(any_value(b.parameters), 0) as coverage
    from raw.delta d
    join (select base_id, sum(numel) as parameters from raw.tensor group by base_id) b on b.base_id = d.base_id
    where d.model_id in (from member) and d.nonfinite = 0 group by d.model_id
),
near as (
    select a_id as id, avg(pcc) as kin from raw.best_kinship
    where list_contains($2::integer[], b_id) and a_id in (from member) group by a_id
),
made as (
    select c.model_id, g.gain from merge_gains g join raw.model c on c.name = g.child
    where g.benchmark = 'average' and c.model_id in (from member)
)
select m.model_id, m.name, coalesce(m.relation, said.relation), gain, kin, coverage, parents, m.parameters, m.license,
    strftime(coalesce(m.created_at, m.imported_at), '%Y-%m-%d')
from raw.model m
left join told on told.child_id = m.model_id
left join covered on covered.model_id = m.model_id
left join near on near.id = m.model_id
left join made on made.model_id = m.model_id
left join (
    select child_id, arg_min(relation, claimed_at) as relation from raw.claim
    where relation <> 'base' and child_id in (from member) group by child_id
) said on said.child_id = m.model_id
where m.model_id in (from member) order by m.name
"""

FIXED = (
    "name",
    "relation",
    "score",
    "gain",
    "kin",
    "coverage",
    "parents",
    "parameters",
    "license",
    "created",
)


@dataclass
class ModelTable:
    """Rows by name, each with a value a column: FIXED, then a benchmark each. `more` says that there are others."""

    title: str
    models: list[Model] = field(default_factory=list)
    columns: list[str] = field(default_factory=lambda: list(FIXED))
    rows: list[tuple[object, ...]] = field(default_factory=list)
    more: bool = False


def model_table(
    con: Connection, current: Model | None, wanted: Filter | None, marked: list[int], known: Orders | None
) -> ModelTable:
    """What `wanted` lets through, or else the family of `current` (of no family: all models), MOST at most.

    `kin` is the mean PCC with the marked models, or with `current`; `score` is that of the view `model_scores`.
    """
    ids, title = _scope(con, current, wanted, known)
    found = ModelTable(title, more=len(ids) > MOST)
    ids = ids[:MOST]
    to = marked or ([current.id] if current is not None else [])
    score = known.scores.get("score") if known is not None else None
    score = orders.read_scores(con) if score is None else score
    rows = con.execute(ROWS, [ids, to]).fetchall()
    results: dict[str, dict[str, float]] = {}
    for model, benchmark, value in scores.readings(con, [name for _, name, *_ in rows]):
        results.setdefault(benchmark, {})[model] = value
    tested = sorted(results, key=lambda name: (-len(results[name]), name))[:BENCHMARKS]
    found.columns += tested
    for id_, name, relation, gain, kin, coverage, parents, *rest in rows:
        own = float(score[id_]) if score[id_] == score[id_] else None
        found.models.append(Model(id_, name))
        found.rows.append((
            name, relation, own, gain, kin, coverage, " + ".join(parents or []) or None, *rest,
            *(results[benchmark].get(name) for benchmark in tested),
        ))  # fmt: skip
    return found


def _scope(
    con: Connection, current: Model | None, wanted: Filter | None, known: Orders | None
) -> tuple[list[int], str]:
    """The ids of the models, one more than MOST at most, and what they are."""
    if wanted is not None:
        query = f"select model_id from raw.model m where {wanted.where} order by name limit {MOST + 1}"
        return [id_ for (id_,) in con.execute(query, wanted.values(con, known)).fetchall()], wanted.typed
    family = con.execute(FAMILY_OF, [current.id]).fetchall() if current is not None else []
    base = family[0][0] if family else None
    if base is None:
        query = f"select model_id from raw.model order by name limit {MOST + 1}"
        return [id_ for (id_,) in con.execute(query).fetchall()], "all models"
    ((name,),) = con.execute("select name from raw.model where model_id = ?", [base]).fetchall()
    query = (
        f"select model_id from raw.model where base_id = $1 or model_id = $1 order by name limit {MOST + 1}"
    )
    return [id_ for (id_,) in con.execute(query, [base]).fetchall()], f"family of {name}"
