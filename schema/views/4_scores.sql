-- Benchmark results.

create or replace view scores_all as
select
    m.name as model, s.benchmark, s.metric, s.value, s.stderr, s.n_shot, s.split, s.source, s.evaluated_at,
    s.imported_at
from raw.score s join raw.model m using (model_id);

create or replace view scores as
select * exclude imported_at
from scores_all
qualify row_number() over (
    partition by model, benchmark, metric, n_shot, split, source
    order by evaluated_at desc nulls last, imported_at desc
) = 1;

comment on view scores is
    'The latest result of each model, benchmark, metric, n-shot, split and source; scores_all keeps every run.';
comment on view scores_all is 'Every result that was imported.';
comment on column scores.value is 'in the unit of its source: a fraction or percent';
comment on column scores.stderr is 'standard error, as its source says it';
comment on column scores.n_shot is 'examples shown before the question';
comment on column scores.evaluated_at is 'when it was measured, as its source says it';
