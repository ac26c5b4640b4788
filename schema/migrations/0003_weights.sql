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

create table raw.sketch (
    model_id integer not null,
    scheme   varchar not null,              -- algorithm, seed and size: only sketches of one scheme compare
    sums     blob not null,                 -- float32, little-endian
    primary key (model_id, scheme)
);
