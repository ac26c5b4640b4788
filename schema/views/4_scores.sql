-- Benchmark results, and what merging gained.

-- The latest statement of each source: of two about one model, tested the same way, the later test, or else the
-- later import, or else the later row.
create or replace view raw.latest as
select
    s.model_id, s.benchmark, s.metric, s.value, s.stderr, s.n_shot, s.split, s.template, s.source, s.evaluated_at,
    coalesce(s.higher_is_better, k.higher_is_better) as higher_is_better,
    if(k.is_known or s.higher_is_better is null or s.higher_is_better, k.best, null) as best
from (
    select *, rowid as place from raw.score
    qualify row_number() over (
        partition by model_id, benchmark, metric, n_shot, split, template, source
        order by evaluated_at desc nulls last, imported_at desc, rowid desc
    ) = 1
) s
join raw.metric k on k.benchmark = s.benchmark and k.metric = s.metric;

create or replace view scores_all as
select
    m.name as model, s.benchmark, s.metric, s.value, s.stderr, s.n_shot, s.split, s.template,
    coalesce(s.higher_is_better, k.higher_is_better) as higher_is_better, s.source, s.evaluated_at, s.imported_at
from raw.score s
join raw.metric k on k.benchmark = s.benchmark and k.metric = s.metric
join raw.model m on m.model_id = s.model_id;

create or replace view scores as
select
    m.name as model, s.benchmark, s.metric, s.value, s.stderr, s.n_shot, s.split, s.template, s.higher_is_better, s.source,
    s.evaluated_at
from raw.latest s join raw.model m on m.model_id = s.model_id;

comment on view scores is
    'The latest result of each model, benchmark, metric, n-shot, split, template and source; scores_all keeps every run. '
    'A revision, a GGUF file or an adapter is a model of its own. '
    'What a source prints of its own arithmetic is kept too: the benchmark "average", and the metric "gain" (of a merge over the mean of its parents).';
comment on view scores_all is 'Every result that was imported.';
comment on column scores.value is 'in the unit of its source: a fraction or percent';
comment on column scores.stderr is 'standard error, as its source says it';
comment on column scores.n_shot is 'examples shown before the question';
comment on column scores.split is 'of the benchmark; of a run with a limit also what was tested, test[:100], and of a dataset the revision, test@abc123';
comment on column scores.template is 'chat template, system prompt, examples as turns and settings of generation, each by a digest, and the version of the task; NULL: none, or not said';
comment on column scores.higher_is_better is 'as the file says, else by the view metrics; NULL: not known, and taken as true';
comment on column scores.evaluated_at is 'when it was measured, as its source says it';

-- Whether a source is a model's own card or results file, written by its author, and no program or table.
create or replace macro raw.is_by_author(source) as coalesce(regexp_matches(source, '^(card|eval_results)($| \()|://'), false);

-- Measured results of which more is better, with the scale they are on. A program or a table has one scale for each metric;
-- cards are written by their models' authors, each of whom has one scale for all metrics that are fractions or percent.
create or replace view raw.scaled as
select
    *,
    if(by_author,
        coalesce(max(abs(value)) filter (best = 1) over (partition by model_id, by_author, source), abs(value)),
        max(abs(value)) over (partition by benchmark, metric, by_author, source)) <= 1 as is_fraction
from (
    select *, raw.is_by_author(source) as by_author
    from raw.latest
    where metric <> 'gain' and coalesce(higher_is_better, true)
);

create or replace view raw.reading as
select
    m.name as model, s.benchmark, s.value,
    {'metric': s.metric, 'n_shot': s.n_shot, 'split': s.split, 'template': s.template, 'source': s.source} as setting,
    s.best, s.is_fraction, s.by_author
from raw.scaled s join raw.model m on m.model_id = s.model_id;

-- What a model's score is, everywhere: the average that a source prints, or else a mean over benchmarks tested alike.

create or replace view raw.model_score as
with reading as (from raw.scaled),
printer as (select source, count(distinct model_id) as models from reading where benchmark = 'average' group by source),
printed as (  -- of several the one whose source prints most
    select r.model_id, r.source, r.value, r.is_fraction
    from reading r join printer p on p.source is not distinct from r.source
    where r.benchmark = 'average'
    qualify row_number() over (partition by r.model_id order by p.models desc, r.source, r.metric, r.n_shot nulls first) = 1
),
printed_parts as (
    select p.model_id, count(distinct r.benchmark) as benchmarks
    from printed p join reading r on r.model_id = p.model_id and r.source is not distinct from p.source and r.benchmark <> 'average'
    group by p.model_id
),
task as (  -- of those without: each test once, of the source that tested most
    select
        r.model_id, coalesce(f.base_id, if(r.model_id in (select base_id from raw.placed), r.model_id, null), 0) as family,
        {'benchmark': r.benchmark, 'metric': r.metric, 'n_shot': r.n_shot, 'split': r.split, 'template': r.template} as test,
        r.value, r.is_fraction, r.best
    from reading r
    join raw.placed f on f.model_id = r.model_id
    join (
        select benchmark, metric, n_shot, split, template, source, count(*) as models from reading group by all
    ) n on n.benchmark = r.benchmark and n.metric = r.metric and n.n_shot is not distinct from r.n_shot
        and n.split is not distinct from r.split and n.template is not distinct from r.template
        and n.source is not distinct from r.source
    where r.benchmark <> 'average' and r.model_id not in (select model_id from printed)
    qualify row_number() over (
        partition by r.model_id, r.benchmark, r.metric, r.n_shot, r.split, r.template order by n.models desc, r.source
    ) = 1
),
lead_test as (  -- the test that most of a family took: who took it is compared
    select family, test, count(*) as models, any_value(best) as best
    from task group by family, test
    qualify row_number() over (
        partition by family
        order by any_value(best) = 1 desc nulls last, count(*) desc, test['benchmark'], test['metric'] desc, test['n_shot'] desc nulls last,
            test['split'] nulls first, test['template'] nulls first
    ) = 1
),
member as (
    select t.family, t.model_id from task t join lead_test l on l.family = t.family and l.test is not distinct from t.test
),
shared as (  -- one test a benchmark, of those that all compared took
    select t.family, t.test, bool_and(t.is_fraction) as is_fraction
    from task t
    join member m on m.model_id = t.model_id
    join lead_test l on l.family = t.family
    where t.test is not distinct from l.test or (t.best = 1 and l.best = 1 and abs(t.value) <= 100)
    group by t.family, t.test, l.models having count(*) = l.models
    qualify row_number() over (
        partition by t.family, t.test['benchmark']
        order by t.test['metric'] <> 'normalised', t.test['metric'] desc, t.test['n_shot'] desc nulls last, t.test['split'] nulls first,
            t.test['template'] nulls first
    ) = 1
),
scale as (select family, bool_and(is_fraction) as all_fractions from shared group by family),
mean as (
    select
        t.model_id, avg(t.value * if(t.is_fraction and not c.all_fractions, 100, 1) order by t.test['benchmark']) as score,
        count(*) as benchmarks, list(t.test['benchmark'] order by t.test['benchmark']) as names
    from task t
    join member m on m.model_id = t.model_id
    join shared s on s.family = t.family and s.test is not distinct from t.test
    join scale c on c.family = t.family
    group by t.model_id
)
select
    p.model_id, p.value * if(p.is_fraction and not (select bool_and(is_fraction) from printed), 100, 1) as score,
    coalesce(n.benchmarks, 0) as benchmarks, 'average printed by ' || coalesce(p.source, 'a source without a name') as source
from printed p left join printed_parts n on n.model_id = p.model_id
union all
select
    m.model_id, m.score, m.benchmarks,
    'mean over ' || array_to_string(m.names[:6], ', ') || if(m.benchmarks > 6, ' and ' || (m.benchmarks - 6) || ' more', '')
from mean m
union all
select distinct
    t.model_id, null::double, 0,
    'none: it lacks ' || l.test['benchmark'] || ' (' || concat_ws(', ', l.test['metric'], l.test['n_shot'] || '-shot', l.test['split'], l.test['template'])
    || '), which ' || l.models || if(l.models = 1, ' model', ' models') || ' of its family took alike'
from task t join lead_test l on l.family = t.family
where t.model_id not in (select model_id from mean);

create or replace view model_scores as
select m.name as model, s.score, s.benchmarks, s.source
from raw.model_score s join raw.model m on m.model_id = s.model_id;

comment on view model_scores is
    'One row a model with results: its score. The average that a source prints (of several the source that prints most); for models '
    'without one the mean over the benchmarks that all compared models of their family have, tested alike (metric, n-shot, split, template), '
    'on one scale (percent where any is). Compared are those that took the test most of the family took; for others the score is NULL. '
    'Never a gain, never a metric of which less is better.';
comment on column model_scores.score is 'NULL where the model took none of the tests that its family is compared on';
comment on column model_scores.benchmarks is 'how many the score is over; 0: none, or a printed average of unknown parts';
comment on column model_scores.source is 'who prints the average, or which benchmarks the mean is over, or why there is none';

-- Parents by what lies with the merge, its user and its weights; by what others report of it only where these say nothing.
create or replace view raw.merge as
select child_id as model_id, c.name as model, coalesce(near, every) as parents, coalesce(near_method, method) as method
from (
    select
        child_id, list(distinct p.name order by p.name) as every, min(method) as method,
        list(distinct p.name order by p.name) filter (k.evidence <> 'reported') as near,
        min(method) filter (k.evidence <> 'reported') as near_method
    from raw.claim k join raw.model p on p.model_id = k.parent_id
    where k.relation = 'merge'
    group by child_id
)
join raw.model c on c.model_id = child_id;

-- What the benchmarks are about, and who was trained for them.

create or replace view tasks as select benchmark, category from raw.task;

create or replace view experts as
select distinct m.name as model, t.benchmark from raw.training t join raw.model m using (model_id);

comment on view tasks is 'The category of each benchmark, for means by category.';
comment on view experts is 'The benchmarks a fine-tuned model was trained for.';

-- The base a merge departs from: that of its family, else the one claimed, else what all its parents were tuned from.
create or replace view raw.merge_base as
select model_id, coalesce(b.name, claimed.name, tuned.name) as base
from raw.merge g
join raw.model m using (model_id)
left join raw.model b on b.model_id = m.base_id
left join (
    select child_id as model_id, any_value(p.name) as name
    from raw.claim k join raw.model p on p.model_id = k.parent_id
    where k.relation = 'base'
    group by child_id having count(distinct parent_id) = 1
) claimed using (model_id)
left join (
    select g.child_id as model_id, any_value(p.name) as name
    from raw.claim g
    join raw.claim f on f.child_id = g.parent_id and f.relation = 'finetune'
    join raw.model p on p.model_id = f.parent_id
    where g.relation = 'merge'
    group by g.child_id having count(distinct f.parent_id) = 1
) tuned using (model_id);

-- For each merge and benchmark: the parents that were trained for it.
create or replace view raw.held as
select
    g.model, t.benchmark, t.category,
    list(e.model order by e.model) filter (e.model is not null) as experts
from raw.merge g
cross join raw.task t
left join experts e on e.benchmark = t.benchmark and list_contains(g.parents, e.model)
group by g.model, t.benchmark, t.category;

-- With whom a merge is compared: with its parents on every benchmark; and, to normalise, with the experts of
-- a benchmark held in, and with the base on one held out.
create or replace view raw.counterpart as
select model, 'parents' as role, null::varchar as benchmark, unnest(parents) as other from raw.merge
union all
select model, 'expert', benchmark, unnest(experts) from raw.held
union all
select h.model, 'base', h.benchmark, b.base
from raw.held h
join raw.merge g using (model)
join raw.merge_base b using (model_id)
where h.experts is null and b.base is not null;

-- Which result counts when a benchmark has several: the one that most counterparts have as well, under the same
-- metric, n-shot, split and template; then one whose source tested most of them; then normalised before raw; then the
-- last metric in the alphabet, which prefers acc_norm to acc, mc2 to mc1 and strict-match to flexible-extract.
-- Results of two sources, or of two authors, meet only when both are fractions or neither is, and averages never: what
-- they are averages of is not said.
-- The aliases of readings are words: DuckDB takes `r.setting.metric` in a file r.duckdb for a table of it.
create or replace view raw.compared as
with candidate as (
    select
        c.model, c.role, c.other, own_reading.benchmark, own_reading.setting, own_reading.best, own_reading.is_fraction,
        own_reading.value as score,
        arg_min(their_reading.value, {'foreign': their_reading.setting['source'] is distinct from own_reading.setting['source'], 'source': their_reading.setting['source']})
            as value,
        min(their_reading.setting['source'] is distinct from own_reading.setting['source'])::integer as foreign_source
    from raw.counterpart c
    join raw.reading own_reading on own_reading.model = c.model and (c.benchmark is null or c.benchmark = own_reading.benchmark)
    left join raw.reading their_reading
        on their_reading.model = c.other and their_reading.benchmark = own_reading.benchmark
        and their_reading.setting['metric'] = own_reading.setting['metric']
        and their_reading.setting['n_shot'] is not distinct from own_reading.setting['n_shot']
        and their_reading.setting['split'] is not distinct from own_reading.setting['split']
        and their_reading.setting['template'] is not distinct from own_reading.setting['template']
        and ((their_reading.setting['source'] is not distinct from own_reading.setting['source'] and not own_reading.by_author)
            or (own_reading.benchmark <> 'average' and their_reading.is_fraction = own_reading.is_fraction))
    group by
        c.model, c.role, c.other, own_reading.benchmark, own_reading.setting, own_reading.best, own_reading.is_fraction,
        own_reading.value
)
select
    model, role, benchmark, setting, best, is_fraction, score,
    count(*) as others,
    count(value) as known,
    list({'model': other, 'score': value} order by other) filter (value is not null) as results
from candidate
group by model, role, benchmark, setting, best, is_fraction, score
qualify row_number() over (
    partition by model, role, benchmark
    order by
        count(*) - count(value), sum(foreign_source), setting['metric'] <> 'normalised', setting['metric'] desc,
        setting['n_shot'] desc nulls last, setting['split'] nulls first, setting['template'] nulls first, setting['source'] nulls last
) = 1;

-- Sums go in a fixed order, so that the same scores give the same bits.
create or replace view merge_gains as
with benchmark_row as (
    select
        model, benchmark, setting['metric'] as metric, score, best = 1 and abs(score) <= 100 as on_scale,
        if(others >= 2 and known = others, results, null) as results,  -- one named parent is no merge: another is missing
        is_fraction as fraction
    from raw.compared
    where role = 'parents'
),
shared as (
    select
        model, benchmark, score, results,
        if(fraction and not bool_and(fraction) over (partition by model), 100, 1) as scale
    from benchmark_row
    where results is not null and benchmark <> 'average' and on_scale
),
parent_average as (
    select model, result.model as parent, avg(result.score * scale order by benchmark) as score
    from (select model, benchmark, scale, unnest(results) as result from shared)
    group by model, result.model
),
average as (
    select
        model, avg(score * scale order by benchmark) as score, count(*) as benchmarks,
        (select list(p.score order by p.parent) from parent_average p where p.model = s.model) as parent_scores
    from shared s
    group by model
),
line as (
    select
        model, benchmark, metric, score, list_transform(results, lambda r: r.score) as parent_scores,
        null::bigint as benchmarks
    from benchmark_row
    where benchmark <> 'average'
    union all
    select
        g.model, 'average', null, coalesce(a.score, printed.score),
        coalesce(a.parent_scores, list_transform(printed.results, lambda r: r.score)), coalesce(a.benchmarks, 0)
    from raw.merge g
    left join average a using (model)
    left join benchmark_row printed on printed.model = g.model and printed.benchmark = 'average'
),
parents_kinship as (
    select p.model, if(count(k.pcc) = count(*), avg(k.pcc order by p.parent, p.other), null) as kinship
    from (
        select model, parent, unnest(parents) as other
        from (select model, parents, unnest(parents) as parent from raw.merge)
    ) p
    left join kinship k on k.model_a = p.parent and k.model_b = p.other
    where p.parent < p.other
    group by p.model
),
reported as (
    select model, benchmark, arg_min(value, coalesce(source, '')) as gain
    from scores where metric = 'gain' group by model, benchmark
)
select
    g.model as child,
    g.method,
    g.parents,
    k.kinship,
    l.benchmark,
    l.metric,
    l.score,
    list_avg(l.parent_scores) as parents_mean,
    l.score - list_avg(l.parent_scores) as gain,
    list_max(l.parent_scores) as best_parent,
    l.score - list_max(l.parent_scores) as over_best,
    l.benchmarks,
    r.gain as reported_gain
from line l
join raw.merge g using (model)
left join parents_kinship k using (model)
left join reported r on r.model = l.model and r.benchmark = l.benchmark;

comment on view merge_gains is
    'One row a merge and benchmark, and one for its average: the score less the mean of its parents'' (arXiv 2410.12613, '
    'equation 6). The average is over the benchmarks that the merge and all its parents have, or the printed one where they '
    'share none; only metrics that are fractions or percent are averaged, and those of which less is better are no gains. '
    'Of several results the one counts that merge and parents have alike: same metric, n-shot, split and template, '
    'if possible of one source, and otherwise, as of two cards, both fractions or both percent; then normalised before raw, acc_norm before acc, mc2 before mc1.';
comment on column merge_gains.parents is 'by claims of relation merge, each once, reported ones where there are no others; a base is none';
comment on column merge_gains.kinship is 'mean PCC over all pairs of parents; NULL unless all are known';
comment on column merge_gains.benchmark is 'or average';
comment on column merge_gains.metric is 'that was compared; NULL for the average';
comment on column merge_gains.score is 'of the merge; a fraction is taken as percent in an average with percents';
comment on column merge_gains.parents_mean is 'NULL unless two parents or more are named and all have a score';
comment on column merge_gains.gain is 'score - parents_mean';
comment on column merge_gains.best_parent is 'score of the best parent on this benchmark, or on average';
comment on column merge_gains.over_best is 'score - best_parent';
comment on column merge_gains.benchmarks is 'how many the average is over; 0: a printed one, of unknown parts';
comment on column merge_gains.reported_gain is 'the gain as it was published';

-- Normalised scores (What Matters for Model Merging at Scale, arXiv 2410.03617): a benchmark that one of the
-- experts merged was trained for is held in, and its score is divided by that expert's own (the mean, if
-- several were); any other is held out, and divided by the base's.

create or replace view normalised_by_task as
select
    compared.model as merge, b.base, g.method, len(g.parents) as experts,
    compared.benchmark, h.category, compared.role = 'expert' as held_in, compared.setting['metric'] as metric, compared.score,
    list_transform(compared.results, lambda r: r.model) as reference,
    list_avg(list_transform(compared.results, lambda r: r.score)) as reference_score,
    compared.score / nullif(list_avg(list_transform(compared.results, lambda r: r.score)), 0) as normalised
from raw.compared
join raw.held h on h.model = compared.model and h.benchmark = compared.benchmark
join raw.merge g on g.model = compared.model
join raw.merge_base b using (model_id)
where compared.role in ('expert', 'base') and compared.known = compared.others;

comment on view normalised_by_task is
    'One row a merge and benchmark of known category: its score over that of the expert trained for it (held in) or of the base.';
comment on column normalised_by_task.experts is 'how many models were merged';
comment on column normalised_by_task.held_in is 'whether one of them was trained for the benchmark';
comment on column normalised_by_task.reference is 'whose score it is divided by: the experts trained for it, or the base';

create or replace macro normalised_scores(b) as table
with category_mean as (
    select merge, base, method, experts, held_in, category, avg(normalised order by benchmark) as score
    from normalised_by_task
    where b is null or base = (select model from raw.called where alias = b limit 1)
    group by merge, base, method, experts, held_in, category
),
merge_mean as (
    select merge, base, method, experts, held_in, avg(score order by category) as score, count(score) as categories
    from category_mean
    group by merge, base, method, experts, held_in
)
select
    base, method, experts, held_in, avg(score order by merge) as score, stddev_samp(score order by merge) as spread,
    count(score) as merges, min(categories) as categories
from merge_mean
group by base, method, experts, held_in
order by base, method, experts, held_in desc;

comment on macro table normalised_scores is
    'normalised_scores(base): held-in and held-out scores by base (NULL: all), method and number of experts; the mean by '
    'category, then across categories, then over the merges of one cell (the seeds), with their standard deviation';
