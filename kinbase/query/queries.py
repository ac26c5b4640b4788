"""The SQL of those verbs of `kinbase.database` that ask more than one view."""

SHOW = """
select
    m.*,
    (select list({'alias': alias, 'kind': kind} order by alias) from aliases where model = m.name and alias <> m.name) as aliases,
    (select list({'parent': parent, 'relation': relation, 'method': method, 'weight': weight, 'evidence': evidence}
        order by parent, evidence) from lineage where child = m.name) as parents,
    (select list({'child': child, 'relation': relation, 'method': method, 'weight': weight, 'evidence': evidence}
        order by child, evidence) from lineage where parent = m.name) as children,
    (select list({'benchmark': benchmark, 'metric': metric, 'value': value, 'stderr': stderr, 'n_shot': n_shot, 'source': source}
        order by benchmark, metric) from scores where model = m.name) as scores,
    (select list({'model': model, 'pcc': pcc, 'cs': cs, 'ed': ed, 'stderr': stderr, 'method': method})
        from nearest_kin($1, 5)) as kin,
    (select list({'tensor': tensor, 'reason': reason} order by tensor) from skipped where model = m.name) as skipped,
    (select sum(numel) / nullif((select sum(t.numel) from raw.tensor t where t.base_id = any_value(d.base_id)), 0)
        from raw.delta d join raw.model using (model_id) where name = m.name and d.nonfinite = 0) as coverage,
    (select list({'tensor': tensor, 'nonfinite': nonfinite} order by tensor)
        from deltas where model = m.name and nonfinite > 0) as nonfinite
from models m where m.name = $1
"""

ACCURACIES = """
pivot (
    select model, benchmark, 100 * value as value from scores where metric like 'acc%'
    union all
    select model, 'average', 100 * avg(value) from scores where metric like 'acc%' group by model
)
on benchmark using round(any_value(value), 1) order by average desc
"""

AVERAGE_GAINS = """
select
    child, method, array_to_string(parents, ' + ') as parents, round(kinship, 3) as kinship,
    round(100 * score, 1) as average, round(100 * gain, 1) as gain, round(100 * over_best, 1) as over_best
from merge_gains where benchmark = 'average' order by gain desc
"""
