-- Evolution runs.

create or replace view runs as
select
    r.name as run, r.strategy, r.status, r.config, r.reason,
    (select max(generation) from raw.generation g where g.run_id = r.run_id) as generations,
    (select count(*) from raw.offspring o where o.run_id = r.run_id and o.merge_s is not null) as merges,
    (select arg_max(child, score) from raw.offspring o where o.run_id = r.run_id) as best,
    (select max(score) from raw.offspring o where o.run_id = r.run_id) as best_score,
    r.started_at, r.ended_at
from raw.run r;

comment on view runs is 'One row an evolution run.';
comment on column runs.run is 'its name';
comment on column runs.strategy is 'greedy, kinship or grid';
comment on column runs.status is 'running, interrupted, finished or failed';
comment on column runs.config is 'JSON: everything it was asked, defaults filled in';
comment on column runs.reason is 'why it ended';
comment on column runs.generations is 'generations completed';
comment on column runs.merges is 'children that were really merged';
comment on column runs.best is 'the child of the best score';

create or replace view offspring as
select
    r.name as run, o.generation, coalesce(m.name, o.child) as child,
    (select list(m.name order by p.position)
        from (select unnest(o.parent_ids) as model_id, generate_subscripts(o.parent_ids, 1) as position) p join raw.model m using (model_id)) as parents,
    o.role, o.method, o.reason, o.kinship, o.status, o.problem, o.score, o.kept, o.merge_s, o.evaluate_s, o.position
from raw.offspring o
join raw.run r using (run_id)
left join raw.model m on m.model_id = o.child_id;

comment on view offspring is 'One row a child that a run planned, made or scored, and why.';
comment on column offspring.parents is 'names of the parents, in the order of the merge';
comment on column offspring.role is 'pair, explore or grid';
comment on column offspring.reason is 'why these parents';
comment on column offspring.kinship is 'of the parents, when they were chosen';
comment on column offspring.status is 'planned, merged, scored, unrecorded (a replay without its record), skipped or failed';
comment on column offspring.problem is 'what went wrong, or why it was skipped';
comment on column offspring.kept is 'whether it was among the k best when its generation ended';
comment on column offspring.merge_s is 'seconds of merging';
comment on column offspring.evaluate_s is 'seconds of evaluating';

create or replace view generations as
with scored as (
    select run_id, generation, max(score) as best_score, arg_max(child, score) as best, avg(score) as mean_score,
        count(*) as children
    from raw.offspring where score is not null group by run_id, generation
)
select
    r.name as run, g.generation, coalesce(s.children, 0) as children, s.best, s.best_score, s.mean_score,
    max(s.best_score) over (partition by g.run_id order by g.generation) as best_so_far,
    (select list(m.name order by p.position)
        from (select unnest(g.top_ids) as model_id, generate_subscripts(g.top_ids, 1) as position) p join raw.model m using (model_id)) as top,
    g.top_kinship, g.reason, g.ended_at
from raw.generation g
join raw.run r using (run_id)
left join scored s on s.run_id = g.run_id and s.generation = g.generation;

comment on view generations is 'One row a finished generation of a run; generation 0 are the models it started from.';
comment on column generations.best is 'the best child of the generation';
comment on column generations.best_so_far is 'the best child''s score up to this generation';
comment on column generations.mean_score is 'of the generation''s children';
comment on column generations.top is 'the k best models so far, best first';
comment on column generations.top_kinship is 'their mean pairwise kinship';
comment on column generations.reason is 'what the stop rules said of it';
