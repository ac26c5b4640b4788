-- Who was made from whom, and who says so.

create or replace view lineage as
select
    p.name as parent,
    c.name as child,
    k.relation,
    k.method,
    k.weight,
    k.evidence,
    k.detail,
    k.source
from raw.claim k
join raw.model p on p.model_id = k.parent_id
join raw.model c on c.model_id = k.child_id
union all
-- A model of which no parent is claimed, but by reports, still descends from the base it is measured against.
select b.name, m.name, 'base', null, null, 'user', null, null
from raw.model m
join raw.model b on b.model_id = m.base_id
where not exists (select 1 from raw.claim k where k.child_id = m.model_id and k.evidence <> 'reported');

comment on view lineage is 'One row a claimed or measured edge; several claims about one edge stay apart.';
comment on column lineage.parent is 'what the child was made from';
comment on column lineage.child is 'what was made';
comment on column lineage.relation is 'finetune, merge, adapter, quantized: the Hub''s words; base: what the deltas were taken against; distillation, pretraining, '
    'pruning, upscaling, conversion (another format), revision, checkpoint, tokenizer, draft, reward, or whatever was stated';
comment on column lineage.method is 'of a merge: linear, slerp, ties, ...';
comment on column lineage.weight is 'the parent''s coefficient, where it is one number';
comment on column lineage.evidence is 'who says so: config, card, adapter, gguf, user, run, weights or reported';
comment on column lineage.detail is 'JSON: gradients, density, t, revision and whatever else was said';
comment on column lineage.source is 'the file that said it';

-- The same edges by id, once each.
create or replace view raw.edge as
select distinct parent_id, child_id from raw.claim
union all
select base_id, model_id from raw.model
where base_id is not null and not exists (select 1 from raw.claim k where k.child_id = model_id);

create or replace macro resolve(m) as (
    select model_id from raw.model where name = (select model from raw.called where alias = m limit 1)
);

comment on macro resolve is 'resolve(m): the model_id behind a name or alias';

create or replace macro ancestors(m) as table
with recursive up(model_id, generation) using key (model_id) as (
    select model_id, 0 from raw.model where model_id = resolve(m)
    union
    select e.parent_id, e.generation
    from (
        -- Its claims, or the base of a model that has none: over the tables, which a step then reads by key.
        select coalesce(k.parent_id, m.base_id) as parent_id, up.generation + 1 as generation
        from up
        join raw.model m on m.model_id = up.model_id
        left join raw.claim k on k.child_id = up.model_id
    ) e
    left join recurring.up seen on seen.model_id = e.parent_id
    where e.parent_id is not null and seen.model_id is null     -- met already, by a path no longer: also what ends a cycle
)
select name as model, generation
from up join raw.model using (model_id)
where generation > 0
order by generation, model;

comment on macro table ancestors is
    'ancestors(m): everything m was made from, with the fewest steps to it; the base a merge''s deltas were taken against counts';

create or replace macro descendants(m) as table
with recursive down(model_id, generation) using key (model_id) as (
    -- From the table: beginning with the bare value, DuckDB 2.0.1 crashes on a hub of 190,000 children.
    select model_id, 0 from raw.model where model_id = resolve(m)
    union
    select e.child_id, e.generation
    from (
        select k.child_id, down.generation + 1 as generation
        from down join raw.claim k on k.parent_id = down.model_id
        union all
        select m.model_id, down.generation + 1
        from down join raw.model m on m.base_id = down.model_id
        where not exists (select 1 from raw.claim k where k.child_id = m.model_id)
    ) e
    left join recurring.down seen on seen.model_id = e.child_id
    where seen.model_id is null
)
select name as model, generation
from down join raw.model using (model_id)
where generation > 0
order by generation, model;

comment on macro table descendants is
    'descendants(m): everything made from m, with the fewest steps to it';
