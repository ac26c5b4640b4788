-- What benchmarks are about and which of them an expert was trained for: the normalised scores of studies
-- such as arXiv 2410.03617 need both. Whether a benchmark is held in or held out follows for each merge from
-- its parents; the rest of such a grid (experts, method, base) is lineage.

create table raw.task (
    benchmark varchar primary key,
    category  varchar not null
);

create table raw.training (                 -- no key: two rows may become one model's when an alias joins them
    model_id  integer not null,
    benchmark varchar not null
);
