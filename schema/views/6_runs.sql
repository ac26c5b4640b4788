-- Evolution runs.

create or replace view raw.kin_of_run as       -- what runs made, with their names
select
    r.name as run, o.* exclude (run_id), coalesce(m.name, o.child) as model,
    (select list(p.name order by u.position)
        from (select unnest(o.parent_ids) as model_id, generate_subscripts(o.parent_ids, 1) as position) u
        join raw.model p using (model_id)) as parents
from raw.offspring o
join raw.run r using (run_id)
left join raw.model m on m.model_id = o.child_id;

create or replace view offspring as
select
    run, generation, model as child, parents, role, method, seed, reason, kinship, status, problem, score, kept,
    folder, deleted, merge_s, evaluate_s, position
from raw.kin_of_run
where role <> 'start';

comment on view offspring is 'One row a child that a run planned, made or scored, and why.';
comment on column offspring.run is 'the run''s name';
comment on column offspring.generation is 'from 1; generation 0 are the models it started from, in the view generations';
comment on column offspring.child is 'its name; planned ones need not be models yet';
comment on column offspring.parents is 'names of the parents, in the order of the merge';
comment on column offspring.role is 'pair (of the k best), explore or grid';
comment on column offspring.method is 'of the merge';
comment on column offspring.seed is 'of the choice of parents and of the merge, where they draw anything';
comment on column offspring.reason is 'why these parents';
comment on column offspring.kinship is 'of the parents (mean over pairs), when they were chosen';
comment on column offspring.status is 'planned, merged, scored, unrecorded (a replay without its record), skipped or failed';
comment on column offspring.problem is 'what went wrong, or why it was skipped';
comment on column offspring.score is 'mean over the run''s benchmarks';
comment on column offspring.kept is 'whether it was among the k best when its generation ended';
comment on column offspring.folder is 'where its weights were written; NULL in a replay';
comment on column offspring.deleted is 'whether its weights were deleted after their generation';
comment on column offspring.merge_s is 'seconds of merging';
comment on column offspring.evaluate_s is 'seconds of evaluating';
comment on column offspring.position is 'order of planning within the generation';

create or replace view runs as
select
    r.name as run, r.strategy, r.status, r.config, r.reason,
    (select max(generation) from raw.generation g where g.run_id = r.run_id and ended_at is not null) as generations,
    count(*) filter (o.folder is not null and (o.status in ('merged', 'scored') or o.child_id is not null)) as merges,
    count(o.score) filter (o.role <> 'start') as scored,
    arg_max(o.model, o.score) as best,
    max(o.score) as best_score,
    r.started_at, r.ended_at
from raw.run r
left join raw.kin_of_run o on o.run = r.name
group by all;

comment on view runs is 'One row an evolution run.';
comment on column runs.run is 'its name';
comment on column runs.strategy is 'greedy, kinship or grid';
comment on column runs.status is 'running, interrupted, finished or failed; all but finished can be resumed';
comment on column runs.config is 'JSON: everything it was asked, defaults filled in';
comment on column runs.reason is 'why it ended, or what stopped it';
comment on column runs.generations is 'generations completed';
comment on column runs.merges is 'children that were really merged';
comment on column runs.scored is 'children with a score';
comment on column runs.best is 'the model of the best score, those it started from included';
comment on column runs.best_score is 'of the best model';

create or replace view generations as
with scored as (
    select run, generation, max(score) as best_score, arg_max(model, score) as best, avg(score order by position) as mean_score,
        count(score) as scored, count(*) as children
    from raw.kin_of_run group by run, generation
)
select
    r.name as run, g.generation, coalesce(s.children, 0) as children, coalesce(s.scored, 0) as scored, s.best,
    s.best_score, s.mean_score,
    max(s.best_score) over (partition by g.run_id order by g.generation) as best_so_far,
    (select list(m.name order by p.position)
        from (select unnest(g.top_ids) as model_id, generate_subscripts(g.top_ids, 1) as position) p join raw.model m using (model_id)) as top,
    g.top_kinship, g.plan, g.reason, g.ended_at
from raw.generation g
join raw.run r using (run_id)
left join scored s on s.run = r.name and s.generation = g.generation
where g.ended_at is not null;

comment on view generations is 'One row a finished generation of a run; generation 0 are the models it started from.';
comment on column generations.run is 'the run''s name';
comment on column generations.generation is '0: the models it started from';
comment on column generations.children is 'how many were planned';
comment on column generations.scored is 'how many of them have a score';
comment on column generations.best is 'the best child of the generation';
comment on column generations.best_score is 'of the best child';
comment on column generations.best_so_far is 'the best score up to this generation, the start included';
comment on column generations.mean_score is 'of the generation''s children';
comment on column generations.top is 'the k best models so far, best first';
comment on column generations.top_kinship is 'their mean pairwise kinship; NULL unless all pairs are known';
comment on column generations.plan is 'what the strategy left out, and why';
comment on column generations.reason is 'what the stop rules said';
