-- Models, their names and the sums of their deltas.

-- Every name that leads to a model, for looking up.
create or replace view raw.called as
select name as alias, name as model from raw.model
union all
select alias, name from raw.alias join raw.model using (model_id);

create or replace view aliases as
select name as alias, name as model, 'name' as kind, null::varchar as source from raw.model
union all
select a.alias, m.name, a.kind, s.source
from raw.alias a
join raw.model m using (model_id)
left join (
    select alias, string_agg(distinct source, ', ' order by source) as source from raw.name_said group by alias
) s on s.alias = a.alias;

comment on view aliases is 'Every name that leads to a model: its own, paths, revisions, redirects.';
comment on column aliases.alias is 'the other name';
comment on column aliases.model is 'the model''s name';
comment on column aliases.kind is 'name, path, revision, redirect or signed (a digest that somebody signed)';
comment on column aliases.source is 'who says so: files and pages; NULL for its own name, and where nobody noted it';

-- Each model's base: the one it is measured against, or else the only one its claims or its reported
-- kinship name.
create or replace view raw.placed as
select m.model_id, coalesce(m.base_id, said.base_id) as base_id
from raw.model m
left join (
    select model_id, min(base_id) as base_id
    from (
        select child_id as model_id, parent_id as base_id from raw.claim where relation = 'base'
        union all
        select unnest([a_id, b_id]), base_id from raw.estimate where method = 'reported' and base_id is not null
    )
    group by model_id having min(base_id) = max(base_id)
) said on said.model_id = m.model_id and said.base_id <> m.model_id;

create or replace view models as
select
    m.name,
    coalesce(m.digest, s.digest) as digest,
    b.name as base,
    coalesce(b.name, case when m.model_id in (select base_id from raw.placed) then m.name end) as family,
    m.architecture,
    m.parameters,
    m.dtype,
    m.bytes,
    m.license,
    m.source,
    m.revision,
    -- Subqueries, which are asked for the models that are wanted; groups in a join are made of all of them first.
    coalesce(m.relation, (
        select arg_min(c.relation, c.claimed_at) from raw.claim c where c.relation <> 'base' and c.child_id = m.model_id
    )) as relation,
    m.digest is not null or s.digest is not null as has_weights,
    m.created_at,
    m.imported_at,
    s.name as same_as,
    m.same_how,
    coalesce(m.to_reread, false) as to_reread,
    (select list(t.tag order by t.tag) from raw.tag t where t.model_id = m.model_id) as tags,
    m.notes
from raw.model m
left join raw.model s on s.model_id = m.same_id
left join raw.placed p on p.model_id = m.model_id
left join raw.model b on b.model_id = p.base_id;

comment on view models is 'One row a model, those known only by name included.';
comment on column models.name is 'label; see aliases for the others';
comment on column models.digest is 'content: made from tensor names, shapes, dtypes and bytes';
comment on column models.base is 'the model its deltas are measured against, or are to be, as its source says';
comment on column models.family is 'name of the base shared by all members, the base itself included';
comment on column models.parameters is 'number of weights, tied ones once';
comment on column models.dtype is 'dtype of most weights, as safetensors writes it';
comment on column models.bytes is 'bytes of weights';
comment on column models.source is 'where it was imported from';
comment on column models.revision is 'commit of the source, where it has one';
comment on column models.relation is 'how it was made: finetune, merge, adapter, quantized';
comment on column models.has_weights is 'false for a model known only by name';
comment on column models.created_at is 'when it was made, as its source says';
comment on column models.imported_at is 'when it came into this database';
comment on column models.tags is 'list of what `kinbase tag` says; NULL: none';
comment on column models.notes is 'what `kinbase set` says in notes';
comment on column models.same_as is 'another model of the same weights: an earlier one, of which kinship is known';
comment on column models.same_how is 'copy: the same bytes under a card of its own; layout: fused, split, stacked or turned; dtype; names';
comment on column models.to_reread is 'read by a version that did not cover all its files hold: import it again';

create or replace view deltas as
select
    m.name as model,
    b.name as base,
    t.name as tensor,
    d.numel,
    d.sum / d.numel as mean,
    sqrt(greatest(d.sumsq / d.numel - (d.sum / d.numel) ** 2, 0)) as std,
    sqrt(d.sumsq) as l2,
    d.max_abs,
    d.zeros,
    d.nonfinite
from raw.delta d
join raw.model m using (model_id)
join raw.model b on b.model_id = d.base_id
join raw.tensor t on t.base_id = d.base_id and t.position = d.position;

comment on view deltas is 'Each tensor''s weights minus the base''s: one row a model and tensor.';
comment on column deltas.numel is 'elements compared';
comment on column deltas.mean is 'of the delta; NULL when an element is not finite, like std, l2 and max_abs';
comment on column deltas.std is 'standard deviation of the delta';
comment on column deltas.l2 is 'Euclidean length of the delta';
comment on column deltas.max_abs is 'largest change of one element';
comment on column deltas.zeros is 'elements equal to the base''s';
comment on column deltas.nonfinite is 'elements that are NaN or infinite';

create or replace view skipped as
select m.name as model, s.tensor, s.reason from raw.skipped s join raw.model m using (model_id);

comment on view skipped is 'Tensors that took no part in kinship, and why.';

create or replace macro family(m) as table
with home as materialized (
    select coalesce(base_id, model_id) as base_id from raw.placed
    where model_id = (select model_id from raw.model where name = (select model from raw.called where alias = m limit 1))
),
below as materialized (select model_id from raw.placed where base_id in (from home)),
members as (
    from below
    union all
    -- The base, where it has members and no base of its own.
    select model_id from raw.placed
    where model_id in (from home) and base_id is null and exists (from below)
)
select f.* from models f
where f.name in (select name from raw.model where model_id in (from members))
order by f.name;

comment on macro table family is 'family(m): every model measured against the same base as m, the base included';
