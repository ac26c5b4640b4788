-- What was said by hand and imported.

create or replace view acts as
select act_id as act, acted_at, verb, said, changed, columns is not null as can_be_undone from raw.act;

comment on view acts is 'One row an act by hand, or an import, that changed something; `kinbase undo` takes the last ones back.';
comment on column acts.act is 'its number';
comment on column acts.acted_at is 'when, in UTC';
comment on column acts.verb is 'the command: import, link, unlink, rename, alias, set, tag, score, rm, ...';
comment on column acts.said is 'what it was told';
comment on column acts.changed is 'how many rows of what it added, changed and took away';
comment on column acts.can_be_undone is 'false for imports of weights: `kinbase rm` takes models out';
