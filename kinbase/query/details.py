"""Everything the detail pane tells of one model, read in one go.

By model_id and over the tables, for the reason `models` gives.
"""

from dataclasses import dataclass, field
from datetime import datetime

from kinbase.errors import KinbaseError
from kinbase.query.models import Model
from kinbase.store import Connection

KIN = 12
"""Nearest kin shown."""

# Scalar subqueries, no joins: to find no base that would read all models. One statement: on a file just opened each
# costs milliseconds of its own.
FACTS = """
select model_id, name, digest, architecture, parameters, dtype, bytes, license, source, revision, relation, created_at,
    imported_at,
    (select list(alias order by alias) from (select alias from raw.alias where model_id = $1 order by alias limit 4)),
    (select count(distinct child_id) from raw.claim where parent_id = $1 and relation <> 'base'),
    (select count(*) from raw.model where base_id = $1),
    base_id, (select name from raw.model where model_id = (select base_id from raw.model where model_id = $1))
from raw.model where model_id = $1
"""

PARENTS = """
select p.model_id, p.name, c.relation, c.method, c.weight, c.evidence, c.source
from raw.claim c join raw.model p on p.model_id = c.parent_id
where c.child_id = ? order by p.name, c.evidence
"""

# The best of several estimates of a pair, as the view kinship has it.
NEAREST = """
with near as (
    select b_id, pcc, cs, ed, stderr, coverage, method, source from (from raw.exact union all from raw.estimated) where a_id = $1
)
select b_id, name, pcc, cs, ed, stderr, coverage, method
from near join raw.model on model_id = b_id
qualify row_number() over (
    partition by b_id
    order by case method when 'exact' then 0 when 'reported' then 2 else 1 end, stderr nulls last, method, near.source nulls last
) = 1
order by pcc desc nulls last, name limit $2
"""

# Gain: how much better than its parents are on average; the base a merge was measured from is no parent.
SCORES = """
with concerned as materialized (
    select $1::integer as id union select parent_id from raw.claim where child_id = $1 and relation <> 'base'
),
latest as (
    select model_id, benchmark, metric, n_shot, arg_max(value, coalesce(evaluated_at, imported_at)) as value,
        arg_max(stderr, coalesce(evaluated_at, imported_at)) as stderr
    from raw.score where model_id in (from concerned)
    group by all
)
select own.benchmark, own.metric, own.n_shot, own.value, own.stderr,
    own.value - avg(theirs.value) as gain, count(theirs.value) as parents
from latest own
left join latest theirs on theirs.model_id <> $1 and own.metric <> 'gain'   -- printed gains are none to compare
    and theirs.benchmark = own.benchmark and theirs.metric = own.metric
    and theirs.n_shot is not distinct from own.n_shot
where own.model_id = $1
group by own.benchmark, own.metric, own.n_shot, own.value, own.stderr
order by own.benchmark, own.metric, own.n_shot
"""

LAYERS = """
select tensor_layer(t.name) as layer, tensor_block(t.name) as block, sqrt(sum(d.sumsq) / sum(d.numel)) as rms
from raw.delta d join raw.tensor t on t.base_id = d.base_id and t.position = d.position
where d.model_id = ? and d.sumsq is not null
group by all order by block, layer
"""


@dataclass(frozen=True)
class Claim:
    """Someone's word, or the weights', on one parent."""

    parent: Model
    relation: str
    method: str | None
    weight: float | None
    evidence: str
    source: str | None


@dataclass(frozen=True)
class Kin:
    """A model akin to another, and how that is known."""

    model: Model
    pcc: float | None
    cs: float | None
    ed: float | None
    stderr: float | None
    coverage: float | None
    method: str


@dataclass(frozen=True)
class Score:
    """A benchmark's result beside those of the parents."""

    benchmark: str
    metric: str
    n_shot: int | None
    value: float
    stderr: float | None
    gain: float | None
    parents: int


@dataclass
class Portrait:
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
    parents: list[Claim] = field(default_factory=list)
    scores: list[Score] = field(default_factory=list)
    kin: list[Kin] = field(default_factory=list)
    layers: list[tuple[int | None, str, float]] = field(default_factory=list)
    children: int = 0
    members: int = 0


def portrait(con: Connection, model: int) -> Portrait:
    """Raises KinbaseError when the model is gone."""
    rows = con.execute(FACTS, [model]).fetchall()
    if not rows:
        raise KinbaseError("this model is no longer in the database: press r to read it again")
    (id_, name, digest, *facts, aliases, children, members, base_id, base) = rows[0]
    found = Portrait(Model(id_, name), digest, None if base_id is None else Model(base_id, base), *facts)
    found.aliases, found.children, found.members = aliases or [], children, members
    found.parents = [Claim(Model(*row[:2]), *row[2:]) for row in con.execute(PARENTS, [model]).fetchall()]
    found.scores = [Score(*row) for row in con.execute(SCORES, [model]).fetchall()]
    found.kin = [Kin(Model(*row[:2]), *row[2:]) for row in con.execute(NEAREST, [model, KIN]).fetchall()]
    found.layers = con.execute(LAYERS, [model]).fetchall()
    return found
