-- Claims recomputed from their parts: what of it SQL can say (kinbase.checking adds what it cannot).

-- How much a licence leaves free, by its id on the Hub. The longest pattern that fits counts. An order, not the
-- law: two licences of one level may still contradict each other.
create or replace view licenses as
select * from (values
    ('cc0%', 0, false, 'public domain: no terms'),
    ('unlicense', 0, false, 'public domain: no terms'),
    ('wtfpl', 0, false, 'public domain: no terms'),
    ('pddl', 0, false, 'public domain: no terms'),
    ('mit', 1, false, 'permissive: the notice is kept'),
    ('apache-2.0', 1, false, 'permissive: the notice is kept'),
    ('bsd', 1, false, 'permissive: the notice is kept'),
    ('bsd-%', 1, false, 'permissive: the notice is kept'),
    ('isc', 1, false, 'permissive: the notice is kept'),
    ('zlib', 1, false, 'permissive: the notice is kept'),
    ('bsl-1.0', 1, false, 'permissive: the notice is kept'),
    ('afl-3.0', 1, false, 'permissive: the notice is kept'),
    ('artistic-2.0', 1, false, 'permissive: the notice is kept'),
    ('ms-pl', 1, false, 'permissive: the notice is kept'),
    ('ncsa', 1, false, 'permissive: the notice is kept'),
    ('postgresql', 1, false, 'permissive: the notice is kept'),
    ('odc-by', 1, false, 'permissive: attribution'),
    ('etalab-2.0', 1, false, 'permissive: attribution'),
    ('cdla-permissive-%', 1, false, 'permissive: attribution'),
    ('cc-by-_.0', 1, false, 'permissive: attribution'),
    ('cc-by-sa-%', 2, false, 'share alike: what is made of it keeps the licence'),
    ('gpl%', 2, false, 'share alike: what is made of it keeps the licence'),
    ('agpl%', 2, false, 'share alike: what is made of it keeps the licence'),
    ('lgpl%', 2, false, 'share alike: what is made of it keeps the licence'),
    ('mpl-2.0', 2, false, 'share alike: what is made of it keeps the licence'),
    ('epl-%', 2, false, 'share alike: what is made of it keeps the licence'),
    ('eupl-%', 2, false, 'share alike: what is made of it keeps the licence'),
    ('osl-3.0', 2, false, 'share alike: what is made of it keeps the licence'),
    ('odbl', 2, false, 'share alike: what is made of it keeps the licence'),
    ('cdla-sharing-1.0', 2, false, 'share alike: what is made of it keeps the licence'),
    ('openrail', 3, false, 'restricted use: the restrictions travel with the weights'),
    ('openrail++', 3, false, 'restricted use: the restrictions travel with the weights'),
    ('%-openrail-m', 3, false, 'restricted use: the restrictions travel with the weights'),
    ('bigscience-bloom-rail-1.0', 3, false, 'restricted use: the restrictions travel with the weights'),
    ('llama2', 3, false, 'restricted use: community licence and use policy travel with the weights'),
    ('llama3%', 3, false, 'restricted use: community licence and use policy travel with the weights'),
    ('llama4', 3, false, 'restricted use: community licence and use policy travel with the weights'),
    ('gemma', 3, false, 'restricted use: terms and use policy travel with the weights'),
    ('cc-by-nc-%', 4, true, 'no commercial use'),
    ('fair-noncommercial-research-license', 4, true, 'no commercial use: research only'),
    ('intel-research', 4, true, 'no commercial use: research only'),
    ('apple-amlr', 4, true, 'no commercial use: research only'),
    ('deepfloyd-if-license', 4, true, 'no commercial use: research only'),
    ('cc-by-nd-%', 5, false, 'no derivatives: nothing made of it may be passed on'),
    ('cc-by-nc-nd-%', 5, true, 'no derivatives and no commercial use')
) t(pattern, strictness, noncommercial, reason);

comment on view licenses is 'How strict a licence is, by its id on the Hub; the longest pattern that fits counts.';
comment on column licenses.pattern is 'as LIKE takes it';
comment on column licenses.strictness is '0 public domain, 1 permissive, 2 share alike, 3 restricted use, 4 no commercial use, 5 no derivatives';
comment on column licenses.noncommercial is 'whether commercial use is forbidden';

create or replace view raw.licensed as
select model_id, name, license, pattern, strictness, noncommercial, reason
from raw.model m left join licenses l on lower(m.license) like l.pattern
where m.license is not null
qualify row_number() over (partition by model_id order by length(pattern) desc) = 1;

-- Down every edge goes the strictest licence met so far; a stricter one overtakes, so a cycle ends too.
create or replace view inherited_licenses as
with recursive flow(model_id, strictness, origin) using key (model_id) as (
    select model_id, strictness, model_id from raw.licensed where strictness is not null
    union
    select e.child_id, max(flow.strictness), arg_max(flow.origin, {'a': flow.strictness, 'b': -flow.origin})
    from flow
    join raw.edge e on e.parent_id = flow.model_id
    left join recurring.flow seen on seen.model_id = e.child_id
    where seen.model_id is null or flow.strictness > seen.strictness
    group by e.child_id
),
above as (
    select e.child_id as model_id, arg_max(flow.origin, {'a': flow.strictness, 'b': -flow.origin}) as origin
    from flow join raw.edge e on e.parent_id = flow.model_id
    where flow.origin <> e.child_id
    group by e.child_id
)
select
    m.name as model, m.license, own.strictness,
    o.license as inherited, o.name as inherited_from, o.strictness as inherited_strictness, o.noncommercial, o.reason
from above a
join raw.model m using (model_id)
join raw.licensed o on o.model_id = a.origin
left join raw.licensed own on own.model_id = a.model_id;

comment on view inherited_licenses is
    'One row a model with an ancestor of known licence: the strictest licence among them, and whose it is.';
comment on column inherited_licenses.license is 'the model''s own';
comment on column inherited_licenses.strictness is 'of its own; NULL when none is said or it is not in the view licenses';
comment on column inherited_licenses.inherited is 'the strictest licence among its ancestors';
comment on column inherited_licenses.noncommercial is 'whether that one forbids commercial use';

-- The task scores of one source, one a benchmark (raw.compared says which counts of several).
create or replace view raw.part as
select model, setting.source as source, benchmark, setting.metric as metric, value
from raw.reading
where benchmark <> 'average'
qualify row_number() over (
    partition by model, setting.source, benchmark
    order by setting.metric <> 'normalised', setting.metric desc, setting.n_shot desc nulls last, setting.split nulls first,
        setting.template nulls first
) = 1;

create or replace macro check_averages(tolerance) as table
select
    s.model as subject,
    'average ' || s.value as claim,
    case
        when count(p.value) < 2 then 'undecidable'
        when abs(s.value - avg(p.value)) <= tolerance / if(max(abs(p.value)) <= 1, 100, 1) + 1e-9 then 'supported'
        else 'contradicted'
    end as verdict,
    case when count(p.value) < 2 then 'the scores it is the average of are not here'
        else round(avg(p.value), 4) || ' from ' || string_agg(p.benchmark, ', ' order by p.benchmark) end
        || coalesce(' (' || s.source || ')', '') as detail
from scores s
left join raw.part p on p.model = s.model and p.source is not distinct from s.source
where s.benchmark = 'average' and s.metric <> 'gain'
group by s.model, s.value, s.source, s.metric, s.n_shot, s.split;

comment on macro table check_averages is
    'check_averages(tolerance): printed averages against the mean of the same source''s scores; the tolerance in percent';

create or replace macro check_gains(tolerance) as table
with reported as (
    select model, benchmark, value, source, parents, row_number() over () as claim_id
    from scores s left join raw.merge using (model)
    where s.metric = 'gain'
),
compared as (  -- one row a claim, benchmark and parent
    select r.claim_id, c.benchmark, c.value as score, p.value as parent_score, g.parent
    from reported r
    join (select model, parents, unnest(parents) as parent from raw.merge) g using (model)
    join raw.part c
        on c.model = r.model and c.source is not distinct from r.source and r.benchmark in ('average', c.benchmark)
    left join raw.part p
        on p.model = g.parent and p.source is not distinct from r.source and p.benchmark = c.benchmark
        and p.metric = c.metric
),
whole as (
    select claim_id, benchmark, any_value(score) as score, avg(parent_score) as parents_mean,
        greatest(abs(any_value(score)), max(abs(parent_score))) as largest
    from compared
    group by claim_id, benchmark having count(*) >= 2 and count(parent_score) = count(*)
),
recomputed as (
    select claim_id, avg(score) - avg(parents_mean) as gain, count(*) as benchmarks,
        if(max(largest) <= 1, 100, 1) as divisor
    from whole group by claim_id
)
select
    r.model as subject,
    'gain ' || r.value || if(r.benchmark = 'average', '', ' on ' || r.benchmark) as claim,
    case when c.gain is null then 'undecidable'
        when abs(r.value - c.gain) <= tolerance / c.divisor + 1e-9 then 'supported'
        else 'contradicted' end as verdict,
    case
        when r.parents is null then 'its parents are not known'
        when len(r.parents) < 2 then 'only one of its parents is known: ' || r.parents[1]
        when c.gain is null then 'the scores are not here of all of ' || r.model || ', ' || array_to_string(r.parents, ', ')
        else round(c.gain, 4) || ' from ' || c.benchmarks || if(c.benchmarks = 1, ' benchmark', ' benchmarks')
            || ' of it and its parents ' || array_to_string(r.parents, ', ')
    end || coalesce(' (' || r.source || ')', '') as detail
from reported r left join recomputed c using (claim_id);

comment on macro table check_gains is
    'check_gains(tolerance): printed merge gains against the same source''s scores of merge and parents; the tolerance in percent';

create or replace view raw.check_lineage as
-- A child older than its parent.
select c.name as subject, 'created ' || c.created_at as claim, 'contradicted' as verdict,
    'its parent ' || p.name || ' is younger: created ' || p.created_at as detail
from raw.edge e
join raw.model c on c.model_id = e.child_id
join raw.model p on p.model_id = e.parent_id
where c.created_at < p.created_at
union all
-- A licence looser than an ancestor's, and one that cannot be compared.
select model, 'license ' || license,
    case when strictness is null then 'undecidable' when strictness < inherited_strictness then 'contradicted'
        else 'supported' end,
    case when strictness is null then license || ' is not in the view licenses; its strictest ancestor is '
        else 'the strictest licence above it is that of ' end
    || inherited_from || ': ' || inherited || ' (' || reason || ')'
from inherited_licenses where license is not null
union all
select l.name, 'license ' || l.license, 'undecidable', l.license || ' is not in the view licenses'
from raw.licensed l
where l.strictness is null and l.name not in (select model from inherited_licenses)
    and l.model_id in (select parent_id from raw.edge)
union all
-- A parent of which nothing but the name is known.
select m.name, 'parent of ' || string_agg(distinct c.name, ', ' order by c.name), 'undecidable',
    'known by its name alone: import it, or give it its other name as an alias'
from raw.model m
join raw.edge e on e.parent_id = m.model_id
join raw.model c on c.model_id = e.child_id
where m.digest is null and m.source is null and m.license is null and m.parameters is null and m.architecture is null
    and m.model_id not in (select model_id from raw.alias)
    and m.model_id not in (select model_id from raw.score)
    and m.model_id not in (select child_id from raw.claim)
group by m.name;

create or replace macro findings(tolerance) as table
select subject, claim, verdict, detail from (
    from check_averages(tolerance) union all from check_gains(tolerance) union all from raw.check_lineage
)
order by case verdict when 'contradicted' then 0 when 'undecidable' then 1 else 2 end, subject, claim, detail;

comment on macro table findings is
    'findings(tolerance): printed averages and gains, ages and licences against what they follow from; the tolerance in percent';
