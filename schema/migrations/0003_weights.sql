-- What a model's weights say by themselves, whatever base it is measured against: sums a tensor, and a seeded
-- linear sketch of all of them. By linearity the difference of two sketches is the sketch of the delta, so a
-- model meets every other one, against any base, by reading only itself.

create table raw.weight (                   -- sums over the elements of one tensor, as stored, in float64
    model_id integer not null,
    tensor   varchar not null,              -- without the prefixes that files of one model differ in
    dtype    varchar not null,              -- a safetensors code
    numel    bigint not null,
    sum      double,                        -- NULL when an element is not finite, like the sums below
    sumsq    double,
    sum3     double,
    sum4     double,
    ulpsq    double                         -- squared distances from each element to the next: the rounding floor
);

-- A key on the model alone and no compression: DuckDB then fetches one sketch without reading its neighbours.
create table raw.sketch (
    model_id integer primary key,
    scheme   varchar not null,              -- algorithm, seed and size: only sketches of one scheme compare
    onto_id  integer,                       -- NULL: of all its weights; else of its change to that model, where they meet
    numel    bigint,                        -- elements it is of; NULL: as many as that model's, of which it changes some
    sum      double,                        -- of those elements, or changes
    sums     blob using compression uncompressed  -- float32, little-endian; NULL: an element is not finite
);

create table raw.direction (                -- sketches of deltas, folded: who is near, at a glance
    model_id integer not null,
    base_id  integer not null,
    scheme   varchar not null,
    coarse   float[128] not null            -- of length 1
);
