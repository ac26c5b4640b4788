-- What metrics mean: of which less is better, and on which scale they are.

create or replace view metrics as
select * from (values
    -- Less is better.
    (1, 'perplexity|(^|[^a-z])ppl($|[^a-z])', null, false, null),
    (1, 'bits_per_|^(bpb|bpc)($|[^a-z])', null, false, null),
    (1, '(^|[^a-z])(loss|nll|cross.?entropy|kl|kld|kl_div|divergence)($|[^a-z])|_loss', null, false, null),
    (1, 'error|(^|[^a-z])err($|[^a-z])', null, false, null),
    (1, 'brier|calibration_error|(^|[^a-z])ece($|[^a-z])', null, false, null),
    (1, '(^|[^a-z])(wer|cer|ter|mer|eer|der|fer)($|[^a-z])', null, false, null),
    (1, '(^|[^a-z])(mae|mse|rmse|mape|smape|rmsle)($|[^a-z])', null, false, null),
    (1, '(^|[^a-z])(fid|kid|lpips|fvd)($|[^a-z])', null, false, null),
    (1, 'likelihood_diff|pct_stereotype|stereotype|(^|[^a-z])bias', null, false, null),
    (1, 'toxicity|toxic_|hallucination|unsafe|attack_success|violation|contamination', null, false, null),
    (1, 'latency|ttft|tpot|(^|[^a-z])(seconds|duration|runtime|time|vram|cost|flops)($|[^a-z])', null, false, null),
    (1, 'edit_distance|levenshtein|(^|[^a-z])distance($|[^a-z])', null, false, null),
    -- More is better, on a scale of its own.
    (2, '(^|[^a-z])(elo|rating)($|[^a-z])', null, true, null),
    (2, 'throughput|per_second|tokens_per|(^|[^a-z])tps($|[^a-z])|likelihood|logprob|reward', null, true, null),
    (3, '', 'mt[_ -]?bench', true, 10),
    -- More is better, a fraction or percent.
    (4, 'acc|exact|(^|[^a-z])(em|f1|f|mc1|mc2|iou|map|mrr|auc|roc|mcc|hit|hits)($|[^a-z])', null, true, 1),
    (4, 'bleu|chrf|rouge|meteor|bert_?score|comet|pass.?@|pass_at|maj@|avg@|precision|recall|ndcg|win.?rate|match', null, true, 1),
    (4, 'correlation|spearman|pearson|kendall|matthews|similarity|coverage|success|correct', null, true, 1),
    (5, '(^|[^a-z])(score|average|avg|mean|value|raw|normalised|normalized|norm|gain|quality|judge|percentage)($|[^a-z])',
        null, true, 1)
) t(rank, pattern, benchmark, higher_is_better, best);

comment on view metrics is
    'Which way metrics go where no file says it, and on what scale. The lowest rank that matches counts; a metric that none matches is taken as one of which more is better.';
comment on column metrics.rank is 'of several patterns that match, the lowest counts';
comment on column metrics.pattern is 'regular expression, found in the metric''s name in lower case';
comment on column metrics.benchmark is 'regular expression for the benchmark''s name, where the metric''s alone does not tell; NULL: any';
comment on column metrics.higher_is_better is 'whether more is better';
comment on column metrics.best is '1: a fraction, or as well percent; 10: up to ten; NULL: a scale of its own, never averaged with others';

-- The metrics that are stored, each once: patterns are matched a few hundred times, however many results there are.
create or replace view raw.metric as
select k.benchmark, k.metric, p.pattern is not null as is_known, p.higher_is_better, if(p.pattern is null, 1, p.best) as best
from (select distinct benchmark, metric from raw.score) k
left join metrics p
    on regexp_matches(lower(k.metric), p.pattern)
    and (p.benchmark is null or regexp_matches(lower(k.benchmark), p.benchmark))
qualify row_number() over (partition by k.benchmark, k.metric order by p.rank) = 1;
