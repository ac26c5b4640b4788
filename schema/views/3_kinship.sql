-- Kinship: similarity of weight deltas (Model Kinship, arXiv 2410.12613, equations 3 and 4), from stored
-- sums. A sum over several tensors is the sum of their sums; a ratio is taken once, at the end.

-- Pearson correlation of two deltas; NULL where one of them does not vary. The variance is a difference
-- of sums, so below 1e-12 of the second moment it is rounding, not variation.
create or replace macro pearson(n, sum_a, sum_b, sumsq_a, sumsq_b, dot) as
    case
        when sumsq_a - sum_a * sum_a / n > 1e-12 * sumsq_a and sumsq_b - sum_b * sum_b / n > 1e-12 * sumsq_b
        then greatest(-1.0, least(1.0, (dot - sum_a * sum_b / n)
            / sqrt(sumsq_a - sum_a * sum_a / n) / sqrt(sumsq_b - sum_b * sum_b / n)))
    end;
comment on macro pearson is 'pearson(n, sum_a, sum_b, sumsq_a, sumsq_b, dot): PCC from sums; NULL if undefined';

-- Signed, unlike the published tool's.
create or replace macro cosine(sumsq_a, sumsq_b, dot) as
    case when sumsq_a > 0 and sumsq_b > 0
        then greatest(-1.0, least(1.0, dot / sqrt(sumsq_a) / sqrt(sumsq_b)))
    end;
comment on macro cosine is 'cosine(sumsq_a, sumsq_b, dot): cosine similarity from sums; NULL for a zero delta';

create or replace macro euclidean(sumsq_a, sumsq_b, dot) as sqrt(greatest(sumsq_a + sumsq_b - 2 * dot, 0));
comment on macro euclidean is 'euclidean(sumsq_a, sumsq_b, dot): distance from sums';

-- Every measured pair in both directions.
create or replace view raw.both_ways as
select a_id, b_id, base_id, numel, sum_a, sum_b, sumsq_a, sumsq_b, dot, dots from raw.pair
union all
select b_id, a_id, base_id, numel, sum_b, sum_a, sumsq_b, sumsq_a, dot, dots from raw.pair;

-- The squared rounding error that is expected of the models that were quantised, whole: a twelfth of the squared steps
-- of their grids, of the tensors that are on one. Plain dtypes round too, but what they hold is what was published.
create or replace view raw.grid as
select model_id, sum(ulpsq) / 12 as noise
from raw.weight
where dtype not in ('F64', 'F32', 'F16', 'BF16', 'F8_E4M3', 'F8_E5M2')
group by model_id;

-- How far the cosine of two deltas may be from that of the models that were quantised, given the share of each squared
-- length that is noise. Independent noise makes deltas longer, so cosines smaller, by the root of what is left; and by
-- chance it has a product with the other delta, of variance 1/n.
create or replace macro grid_error(n, cosine, share_a, share_b) as
    case
        when share_a is null and share_b is null then 0.0
        when coalesce(share_a, 0) >= 1 or coalesce(share_b, 0) >= 1 then 1.0
        else least(1.0, sqrt(
            pow(abs(cosine) * (1 / sqrt((1 - coalesce(share_a, 0)) * (1 - coalesce(share_b, 0))) - 1), 2)
            + (coalesce(share_a, 0) + coalesce(share_b, 0)) / n
        ))
    end;
comment on macro grid_error is
    'grid_error(n, cosine, share_a, share_b): error of a cosine of deltas whose shares of noise are these; NULL: none';

create or replace view raw.exact as
select
    p.a_id, p.b_id, p.base_id,
    pearson(numel, sum_a, sum_b, sumsq_a, sumsq_b, dot) as pcc,
    cosine(sumsq_a, sumsq_b, dot) as cs,
    euclidean(sumsq_a, sumsq_b, dot) as ed,
    grid_error(numel, cosine(sumsq_a, sumsq_b, dot), ga.noise / nullif(sumsq_a, 0), gb.noise / nullif(sumsq_b, 0))
        as stderr,
    numel / t.parameters as coverage,
    'exact' as method,
    null::varchar as source
from raw.both_ways p
left join raw.grid ga on ga.model_id = p.a_id
left join raw.grid gb on gb.model_id = p.b_id
join (select base_id, sum(numel)::double as parameters from raw.tensor group by base_id) t using (base_id);

create or replace view raw.estimated as
select a_id, b_id, base_id, pcc, cs, ed, stderr, coverage, method, source from raw.estimate
union all
select b_id, a_id, base_id, pcc, cs, ed, stderr, coverage, method, source from raw.estimate;

create or replace view kinship_all as
select
    a.name as model_a, b.name as model_b, base.name as base, pcc, cs, ed, stderr, coverage, method, k.source
from (from raw.exact union all from raw.estimated) k
join raw.model a on a.model_id = k.a_id
join raw.model b on b.model_id = k.b_id
left join raw.model base on base.model_id = k.base_id;

-- The best that is known of each ordered pair, by id. Ranked among the estimates alone: a rank over all pairs would
-- be computed for all of them, whoever is asked for.
create or replace view raw.best_kinship as
from raw.exact
union all
(
    from raw.estimated e
    where not exists (
        from raw.pair p where p.a_id = least(e.a_id, e.b_id) and p.b_id = greatest(e.a_id, e.b_id)
    )
    qualify row_number() over (
        partition by a_id, b_id order by method = 'reported', stderr nulls last, method, source
    ) = 1
);

create or replace view kinship as
select
    a.name as model_a, b.name as model_b, base.name as base, pcc, cs, ed, stderr, coverage, method
from raw.best_kinship k
join raw.model a on a.model_id = k.a_id
join raw.model b on b.model_id = k.b_id
left join raw.model base on base.model_id = k.base_id;

create or replace view kinship_by_tensor as
with tensor_pair as (
    select a_id, b_id, base_id, unnest(dots) as dot, generate_subscripts(dots, 1) as position
    from raw.both_ways
),
sums as (
    select
        p.a_id, p.b_id, p.base_id, p.position, p.dot,
        coalesce(x.numel, least(da.numel, db.numel)) as numel,
        coalesce(x.sum_a, da.sum) as sum_a,
        coalesce(x.sum_b, db.sum) as sum_b,
        coalesce(x.sumsq_a, da.sumsq) as sumsq_a,
        coalesce(x.sumsq_b, db.sumsq) as sumsq_b
    from tensor_pair p
    join raw.delta da on da.model_id = p.a_id and da.base_id = p.base_id and da.position = p.position
    join raw.delta db on db.model_id = p.b_id and db.base_id = p.base_id and db.position = p.position
    left join (
        select a_id, b_id, base_id, position, numel, sum_a, sum_b, sumsq_a, sumsq_b from raw.pair_part
        union all
        select b_id, a_id, base_id, position, numel, sum_b, sum_a, sumsq_b, sumsq_a from raw.pair_part
    ) x on x.a_id = p.a_id and x.b_id = p.b_id and x.base_id = p.base_id and x.position = p.position
    where p.dot is not null
)
select
    a.name as model_a,
    b.name as model_b,
    base.name as base,
    t.name as tensor,
    pearson(s.numel, sum_a, sum_b, sumsq_a, sumsq_b, dot) as pcc,
    cosine(sumsq_a, sumsq_b, dot) as cs,
    euclidean(sumsq_a, sumsq_b, dot) as ed,
    s.numel, sum_a, sum_b, sumsq_a, sumsq_b, dot
from sums s
join raw.model a on a.model_id = s.a_id
join raw.model b on b.model_id = s.b_id
join raw.model base on base.model_id = s.base_id
join raw.tensor t on t.base_id = s.base_id and t.position = s.position;

-- Which layer and block of a transformer a tensor belongs to, by the naming of the common architectures.
create or replace macro tensor_layer(tensor) as
    try_cast(regexp_extract(tensor, '(?:^|\.)(?:layers?|h|blocks?)\.(\d+)\.', 1) as integer);
comment on macro tensor_layer is 'tensor_layer(name): number of the layer, from 0; NULL outside the layers';

create or replace macro tensor_block(tensor) as
    case
        when regexp_matches(tensor, '(^|\.)(lm_head|embed_out|output|score|classifier)\.(weight|bias)$') then 'head'
        when regexp_matches(tensor, 'norm[^.]*\.(weight|bias)$|(^|\.)ln_[^.]*\.(weight|bias)$', 'i') then 'norm'
        when regexp_matches(tensor, 'attn|attention|\.(q|k|v|o)_proj\.') then 'attn'
        when regexp_matches(tensor, 'mlp|moe|feed_forward|ffn|experts|\.fc\d|intermediate|_proj\.|\.output\.dense')
            then 'mlp'
        when regexp_matches(tensor, 'embed|wte|wpe') then 'embed'
        else 'other'
    end;
comment on macro tensor_block is 'tensor_block(name): attn, mlp, norm, embed, head or other';

create or replace view kinship_by_layer as
select
    model_a, model_b, base, layer, block,
    pearson(sum(numel), sum(sum_a), sum(sum_b), sum(sumsq_a), sum(sumsq_b), sum(dot)) as pcc,
    cosine(sum(sumsq_a), sum(sumsq_b), sum(dot)) as cs,
    euclidean(sum(sumsq_a), sum(sumsq_b), sum(dot)) as ed,
    sum(numel)::bigint as numel
from (select *, tensor_layer(tensor) as layer, tensor_block(tensor) as block from kinship_by_tensor)
group by model_a, model_b, base, layer, block;

create or replace view kinship_by_block as
select
    model_a, model_b, base, block,
    pearson(sum(numel), sum(sum_a), sum(sum_b), sum(sumsq_a), sum(sumsq_b), sum(dot)) as pcc,
    cosine(sum(sumsq_a), sum(sumsq_b), sum(dot)) as cs,
    euclidean(sum(sumsq_a), sum(sumsq_b), sum(dot)) as ed,
    sum(numel)::bigint as numel
from (select *, tensor_block(tensor) as block from kinship_by_tensor)
group by model_a, model_b, base, block;

comment on view kinship is
    'One row an ordered pair: similarity of their deltas, by the best method known (exact, sampled or sketch, reported).';
comment on view kinship_all is 'Kinship by every method known, in both directions.';
comment on view kinship_by_tensor is 'Kinship tensor by tensor, with the sums any other grouping is made from.';
comment on view kinship_by_layer is 'Kinship by layer and block (attn, mlp, norm, embed, head, other), from sums.';
comment on view kinship_by_block is 'Kinship of all layers'' blocks of one kind together, from sums.';
comment on column kinship.pcc is 'Pearson correlation of the deltas; NULL when one is constant';
comment on column kinship.cs is 'cosine of the deltas, signed; NULL when one is zero';
comment on column kinship.ed is 'Euclidean distance of the deltas, so of the weights';
comment on column kinship.stderr is 'standard error of pcc and cs; 0 for exact, but for quantised models what their grid''s noise costs; NULL when not said';
comment on column kinship.coverage is 'parameters compared over parameters of the base; below 0.5 no rank counts the pair';
comment on column kinship.method is 'exact, sampled, sketch or reported';
comment on column kinship_all.source is 'who reported it';
comment on column kinship_by_tensor.numel is 'elements compared';
comment on column kinship_by_layer.layer is 'from 0; NULL outside the layers';

-- A correlation over a small part of two models says little of them: NULL, which is not said, counts as enough.
create or replace macro covers_enough(coverage) as coalesce(coverage, 1) >= 0.5;
comment on macro covers_enough is 'covers_enough(coverage): whether a pair was compared by half of the base or more';

create or replace macro nearest_kin(m, k) as table
select model_b as model, pcc, cs, ed, stderr, coverage, method
from kinship
where model_a = (
    select coalesce(same.name, own.name)
    from raw.model own left join raw.model same on same.model_id = own.same_id and own.digest is null
    where own.name = (select model from raw.called where alias = m limit 1)
) and covers_enough(coverage)
order by pcc desc nulls last, model_b
limit k;
comment on macro table nearest_kin is
    'nearest_kin(m, k): the k models most akin to m by PCC, of those compared by half of the base or more';

create or replace macro group_kinship(members) as table
with named as (select distinct model from raw.called where list_contains(members, alias))
select
    avg(pcc) as pcc,
    avg(cs) as cs,
    avg(ed) as ed,
    count(*) as pairs,
    (select count(*) from named) as models
from kinship
where model_a in (from named) and model_b in (from named) and model_a < model_b and covers_enough(coverage);
comment on macro table group_kinship is
    'group_kinship([m, ...]): mean kinship over all pairs (arXiv 2410.12613, equation 4); pairs: how many are known';
