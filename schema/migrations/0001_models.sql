-- The tables. They live in the schema `raw`; the public surface is the views and macros
-- of the schema `main`.
-- Times are UTC. No foreign keys: DuckDB refuses updates of referenced rows. Integrity is a query (kinbase check).

create sequence raw.model_ids start 1;

create table raw.model (
    model_id     integer primary key default nextval('raw.model_ids'),
    name         varchar not null unique,
    digest       varchar unique,            -- of names, shapes, dtypes and bytes; NULL: known only by name
    base_id      integer,                   -- the family's base; NULL: none known, or a base itself
    architecture varchar,
    parameters   bigint,
    dtype        varchar,                   -- of most parameters, a safetensors code
    bytes        bigint,
    license      varchar,
    source       varchar,                   -- where an importer can open it again
    revision     varchar,
    relation     varchar,                   -- as its own files say it
    created_at   timestamp,
    imported_at  timestamp not null default (now() at time zone 'UTC'),
    check (base_id <> model_id)
);

create table raw.alias (
    alias    varchar primary key,
    model_id integer not null,
    kind     varchar not null               -- name, path, revision, redirect
);

create table raw.file (                     -- what the weights were read from
    model_id integer not null,
    path     varchar not null,
    size     bigint not null,
    mtime_ns bigint not null
);

create table raw.tensor (                   -- the base's floating-point tensors, in the order of raw.pair.dots
    base_id  integer not null,
    position integer not null,              -- from 1, as DuckDB counts lists
    name     varchar not null,
    numel    bigint not null,
    primary key (base_id, position)
);

create table raw.delta (                    -- sums over the aligned elements of one tensor's delta, float64
    model_id  integer not null,
    base_id   integer not null,
    position  integer not null,
    numel     bigint not null,
    sum       double,                       -- NULL when an element is not finite
    sumsq     double,
    max_abs   double,
    zeros     bigint not null,
    nonfinite bigint not null
);

create table raw.skipped (                  -- tensors without a delta, and why
    model_id integer not null,
    tensor   varchar not null,
    reason   varchar not null
);

-- One row a measured pair. The totals repeat what the lists and raw.delta hold, because the kinship of
-- one model among half a million pairs must come in milliseconds; one insert writes both.
create table raw.pair (
    a_id    integer not null,
    b_id    integer not null,
    base_id integer not null,
    numel   bigint not null,                -- elements aligned in both
    sum_a   double not null,
    sum_b   double not null,
    sumsq_a double not null,
    sumsq_b double not null,
    dot     double not null,
    dots    double[] not null,              -- <d_a, d_b> by tensor position; NULL: not aligned in both
    check (a_id < b_id)
);

create table raw.pair_part (                -- tensors of which the two models share fewer rows than either has
    a_id     integer not null,
    b_id     integer not null,
    base_id  integer not null,
    position integer not null,
    numel    bigint not null,
    sum_a    double not null,
    sum_b    double not null,
    sumsq_a  double not null,
    sumsq_b  double not null
);

create table raw.estimate (                 -- kinship that does not come from sums: sampled, sketched, reported
    a_id     integer not null,
    b_id     integer not null,
    base_id  integer,
    method   varchar not null check (method in ('sketch', 'sampled', 'reported')),
    pcc      double,
    cs       double,
    ed       double,
    stderr   double,
    coverage double,
    source   varchar,
    check (a_id < b_id)
);

create table raw.claim (                    -- who says what a model was made from
    child_id   integer not null,
    parent_id  integer not null,
    relation   varchar not null,
    method     varchar,
    weight     double,
    evidence   varchar not null
        check (evidence in ('config', 'card', 'adapter', 'gguf', 'user', 'run', 'weights', 'reported')),
    detail     json,
    source     varchar,
    claimed_at timestamp not null default (now() at time zone 'UTC')
);

create table raw.score (
    model_id     integer not null,
    benchmark    varchar not null,
    metric       varchar not null,
    value        double not null,
    stderr       double,
    n_shot       integer,
    split        varchar,
    source       varchar,
    evaluated_at timestamp,
    imported_at  timestamp not null default (now() at time zone 'UTC')
);

create table raw.pass (                     -- finished tensors of an interrupted kinship pass
    pass_key varchar not null,              -- what was being measured: the files, their stamps, the order
    position integer not null,
    sums     blob not null,
    kept_at  timestamp not null default (now() at time zone 'UTC')
);
