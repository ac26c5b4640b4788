-- Evolution runs: what was tried, generation by generation, and why.

create sequence raw.run_ids start 1;

create table raw.run (
    run_id     integer primary key default nextval('raw.run_ids'),
    name       varchar not null unique,
    strategy   varchar not null,
    status     varchar not null check (status in ('running', 'interrupted', 'finished', 'failed')),
    config     json not null,               -- whole, defaults filled in: a run resumes from its row
    reason     varchar,                     -- why it ended, or what stopped it
    started_at timestamp not null default (now() at time zone 'UTC'),
    ended_at   timestamp
);

create table raw.generation (               -- a row from planning on
    run_id      integer not null,
    generation  integer not null,           -- 0: the models it starts from
    plan        varchar,                    -- what the strategy left out, and why
    top_ids     integer[],                  -- when it is over: the k best so far, best first
    top_kinship double,                     -- their mean pairwise kinship; NULL unless all pairs are known
    reason      varchar,                    -- what the stop rules said
    ended_at    timestamp,                  -- NULL: not over
    primary key (run_id, generation)
);

create table raw.offspring (                -- one row a planned child, kept whatever becomes of it
    run_id     integer not null,
    generation integer not null,            -- 0: a model the run starts from, with the role 'start'
    position   integer not null,            -- order of planning within the generation
    child      varchar not null,            -- its name, before there is a model
    child_id   integer,
    parent_ids integer[] not null,
    role       varchar not null,            -- start, pair, explore, grid
    method     varchar,
    seed       integer,                     -- of the choice and of the merge, where it draws anything
    reason     varchar not null,            -- why these parents
    kinship    double,                      -- of the parents
    status     varchar not null
        check (status in ('planned', 'merged', 'scored', 'unrecorded', 'skipped', 'failed')),
    problem    varchar,                     -- of a child that failed, was skipped or has no record
    score      double,
    kept       boolean,                     -- in the top k when its generation ended
    folder     varchar,                     -- where its weights were written; NULL: none were, as in a replay
    deleted    boolean not null default false,  -- whether its weights were deleted again
    merge_s    double,                      -- seconds
    evaluate_s double,
    primary key (run_id, generation, position)
);
