"""Everything about one model, read in one go: what the terminal UI's pane tells, and the row that `kinbase show` prints.

By model_id and over the tables, for the reason `models` gives.
"""

from dataclasses import dataclass, field
from datetime import datetime
from typing import TYPE_CHECKING

from kinbase.errors import KinbaseError
from kinbase.query.kinship import Kinship, nearest
from kinbase.query.models import Model, meant
from kinbase.store import Connection

if TYPE_CHECKING:  # Polars is slow to import, and the terminal UI does without
    import polars as pl

KIN = 12
"""Nearest kin of the details."""
SHOWN = 5
"""Nearest kin that `show` lists."""

# Scalar subqueries, no joins: to find no base that would read all models. One statement: on a file just opened each
# costs milliseconds of its own.
FACTS = """
select model_id, name, digest, architecture, parameters, dtype, bytes, license, source, revision, relation, created_at,
    imported_at,
    (select list({'alias': alias, 'kind': kind} order by alias) from raw.alias where model_id = $1 and alias <> name),
    (select count(distinct child_id) from raw.claim where parent_id = $1 and relation <> 'base'),
    (select count(*) from raw.model where base_id = $1),
    base_id, (select name from raw.model where model_id = (select base_id from raw.model where model_id = $1))
from raw.model where model_id = $1
"""

# A model nobody names a parent of still descends from the base it is measured against: as the view lineage has it.
PARENTS = """
select p.model_id, p.name, c.relation, c.method, c.weight, c.evidence, c.source
from raw.claim c join raw.model p on p.model_id = c.parent_id
where c.child_id = $1
union all
select b.model_id, b.name, 'base', null, null, 'user', null
from raw.model b
where b.model_id = (select base_id from raw.model where model_id = $1)
    and not exists (select 1 from raw.claim where child_id = $1)
order by 2, 6
"""

# Gain: how much better than its parents are on average, tested alike, whichever way the metric goes; the base a
# merge was measured from is no parent.
SCORES = """
with concerned as materialized (
    select $1::integer as id union select parent_id from raw.claim where child_id = $1 and relation <> 'base'
),
latest as (
    select
        model_id, benchmark, metric, n_shot, split, template, source, value, stderr, higher_is_better
    from raw.score where model_id in (from concerned)
    qualify row_number() over (
        partition by model_id, benchmark, metric, n_shot, split, template
        order by evaluated_at desc nulls last, imported_at desc, rowid desc
    ) = 1
),
own as (
    select *, coalesce(higher_is_better, (
        select arg_min(p.higher_is_better, p.rank) from metrics p
        where regexp_matches(lower(latest.metric), p.pattern)
            and (p.benchmark is null or regexp_matches(lower(latest.benchmark), p.benchmark))
    ), true) as is_better_higher
    from latest where model_id = $1
)
select own.benchmark, own.metric, own.n_shot, own.value, own.stderr,
    (own.value - avg(theirs.value)) * if(own.is_better_higher, 1, -1) as gain, count(theirs.value) as parents
from own
left join latest theirs on theirs.model_id <> $1 and own.metric <> 'gain'   -- printed gains are none to compare
    and theirs.benchmark = own.benchmark and theirs.metric = own.metric
    and theirs.n_shot is not distinct from own.n_shot and theirs.split is not distinct from own.split
    and theirs.template is not distinct from own.template
    -- As in raw.compared: a program has one scale, of two sources both must be fractions or both percent, and averages of
    -- two never meet.
    and ((theirs.source is not distinct from own.source and not raw.is_by_author(own.source))
        or (own.benchmark <> 'average' and (abs(theirs.value) <= 1) = (abs(own.value) <= 1)))
group by own.benchmark, own.metric, own.n_shot, own.split, own.template, own.value, own.stderr, own.is_better_higher
order by own.benchmark, own.metric, own.n_shot, own.split, own.template
"""

LAYERS = """
select tensor_layer(t.name) as layer, tensor_block(t.name) as block, sqrt(sum(d.sumsq) / sum(d.numel)) as rms
from raw.delta d join raw.tensor t on t.base_id = d.base_id and t.position = d.position
where d.model_id = ? and d.sumsq is not null
group by all order by block, layer
"""

# What is not in the details, for the whole row. Lists of a model's own rows, so by id.
SHOW = """
select
    m.*,
    (select list({'alias': alias, 'kind': kind, 'source': source} order by alias)
        from aliases where model = $2 and alias <> $2) as aliases,
    $3::struct(parent varchar, relation varchar, method varchar, weight double, evidence varchar)[] as parents,
    (select list({'child': child, 'relation': relation, 'method': method, 'weight': weight, 'evidence': evidence}
        order by child, evidence) from (from lineage where parent = $2 order by child, evidence limit $5)) as children,
    (select list({'benchmark': benchmark, 'metric': metric, 'value': value, 'stderr': stderr, 'n_shot': n_shot, 'split': split,
        'template': template, 'source': source} order by benchmark, metric, n_shot, split, template, source)
        from scores where model = $2) as scores,
    $4::struct(model varchar, pcc double, cs double, ed double, stderr double, coverage double, method varchar)[] as kin,
    (select list({'tensor': tensor, 'reason': reason} order by tensor) from raw.skipped where model_id = $1) as skipped,
    (select sum(numel) / nullif((select sum(t.numel) from raw.tensor t where t.base_id = any_value(d.base_id)), 0)
        from raw.delta d where model_id = $1 and d.nonfinite = 0) as coverage,
    (select list({'tensor': t.name, 'nonfinite': nonfinite} order by t.name) from raw.delta d
        join raw.tensor t on t.base_id = d.base_id and t.position = d.position
        where d.model_id = $1 and nonfinite > 0) as nonfinite
from models m where m.name = $2
"""


@dataclass(frozen=True)
class ParentClaim:
    """Someone's word, or the weights', on one parent."""

    parent: Model
    relation: str
    method: str | None
    weight: float | None
    evidence: str
    source: str | None


@dataclass(frozen=True)
class ComparedScore:
    """A benchmark's result beside those of the parents."""

    benchmark: str
    metric: str
    n_shot: int | None
    value: float
    stderr: float | None
    gain: float | None
    parents: int


@dataclass
class Details:
    """One model with what belongs to it."""

    model: Model
    digest: str | None
    base: Model | None
    architecture: str | None
    parameters: int | None
    dtype: str | None
    bytes: int | None
    license: str | None
    source: str | None
    revision: str | None
    relation: str | None
    created_at: datetime | None
    imported_at: datetime
    aliases: list[str] = field(default_factory=list)
    parents: list[ParentClaim] = field(default_factory=list)
    scores: list[ComparedScore] = field(default_factory=list)
    kin: list[tuple[Model, Kinship]] = field(default_factory=list)
    layers: list[tuple[int | None, str, float]] = field(default_factory=list)
    children: int = 0
    members: int = 0


def details(con: Connection, model: int) -> Details:
    """Raises KinbaseError when the model is gone."""
    rows = con.execute(FACTS, [model]).fetchall()
    if not rows:
        raise KinbaseError("this model is no longer in the database: press r to read it again")
    (id_, name, digest, *facts, aliases, children, members, base_id, base) = rows[0]
    found = Details(Model(id_, name), digest, None if base_id is None else Model(base_id, base), *facts)
    found.aliases, found.children, found.members = [a["alias"] for a in aliases or []], children, members
    found.parents = parents(con, model)
    found.scores = [ComparedScore(*row) for row in con.execute(SCORES, [model]).fetchall()]
    found.kin = nearest(con, model, KIN)
    found.layers = con.execute(LAYERS, [model]).fetchall()
    return found


def parents(con: Connection, model: int) -> list[ParentClaim]:
    """What is said of a model's parents, by name and evidence."""
    return [ParentClaim(Model(*row[:2]), *row[2:]) for row in con.execute(PARENTS, [model]).fetchall()]


def show(con: Connection, label: str, most: int | None = None) -> "pl.DataFrame":
    """A model's row of `models`, with aliases, parents, children, scores, kin, skipped, coverage, nonfinite.

    The children are the first `most` by name, if it is given.
    """
    from kinbase.query.frames import frame

    model = meant(con, label)
    said = [
        {"parent": p.parent.name, "relation": p.relation, "method": p.method, "weight": p.weight, "evidence": p.evidence}
        for p in parents(con, model.id)
    ]  # fmt: skip
    kin = [
        {
            "model": m.name,
            "pcc": k.pcc,
            "cs": k.cs,
            "ed": k.ed,
            "stderr": k.stderr,
            "coverage": k.coverage,
            "method": k.method,
        }
        for m, k in nearest(con, model.id, SHOWN)
    ]
    return frame(con, SHOW, [model.id, model.name, said or None, kin or None, most])
