"""What models scored, and what merging gained."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from kinbase.errors import KinbaseError
from kinbase.store import Connection, names

if TYPE_CHECKING:  # Polars is slow to import, and the terminal UI does without
    import polars as pl

MEAN_OVER = """
with reading as (
    select benchmark, value from raw.reading
    where model = $1 and benchmark <> 'average' and ($2 is null or setting.source = $2)
        and (len($3::varchar[]) = 0 or list_contains($3::varchar[], benchmark)) and ($4 is null or setting.metric = $4)
    qualify row_number() over (
        partition by benchmark
        order by setting.metric <> 'normalised', setting.metric desc, setting.n_shot desc nulls last,
            setting.split nulls first, setting.template nulls first, setting.source nulls last
    ) = 1
)
select avg(value order by benchmark), list(benchmark order by benchmark) from reading
"""

READINGS = """
with taken as (
    select
        model, benchmark, value, coalesce(is_fraction and best = 1, false) as is_fraction, setting.source as source,
        {'metric': setting.metric, 'n_shot': setting.n_shot, 'split': setting.split, 'template': setting.template,
         'printed_by': if(benchmark = 'average', setting.source, null)} as test
    from raw.reading where list_contains($1::varchar[], model)
),
counted as (select *, count(*) over (partition by benchmark, test, source) as models from taken),
one as (  -- of several sources of one test the one that tested most
    from counted qualify row_number() over (partition by model, benchmark, test order by models desc, source) = 1
),
lead_test as (
    select benchmark, test from one group by benchmark, test
    qualify row_number() over (
        partition by benchmark
        order by count(*) desc, test['metric'] <> 'normalised', test['metric'] desc, test['n_shot'] desc nulls last,
            test['split'] nulls first, test['template'] nulls first, test['printed_by'] nulls last
    ) = 1
)
select
    one.model, one.benchmark,
    one.value * if(is_fraction and not bool_and(is_fraction) over (partition by one.benchmark), 100, 1)
from one join lead_test on lead_test.benchmark = one.benchmark and lead_test.test is not distinct from one.test
order by all
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

# {metric} is one of kinship.METRICS.
GAINS_AND_KINSHIP = """
with chosen as (
    select g.child, g.method, g.parents, g.gain, g.reported_gain, s.value as printed
    from merge_gains g
    left join (
        select model, benchmark, any_value(value) as value from scores where metric = 'gain' and source = $3 group by all
    ) s on s.model = g.child and s.benchmark = g.benchmark
    where g.benchmark = $1
        and ($2 is null or g.child in (select name from models where family = $2))
        and ($3 is null or s.value is not null)
),
pair as (
    select c.child, p.a, q.b from chosen c, unnest(c.parents) p(a), unnest(c.parents) q(b) where p.a < q.b
),
akin as (
    select child, if(count(k.{metric}) = count(*), avg(k.{metric} order by a, b), null) as kinship
    from pair left join kinship k on k.model_a = a and k.model_b = b group by child
)
select child, method, parents, kinship, coalesce(printed, if($3 is null, gain, null), reported_gain) as value,
    printed is not null or gain is null as as_printed
from chosen join akin using (child)
where kinship is not null and value is not null
order by child
"""


def model_scores(con: Connection, models: Sequence[str]) -> dict[str, tuple[float, str]]:
    """The score of each of `models` that has one, and what it is of: as the view `model_scores` says."""
    rows = con.execute(
        "select model, score, source from model_scores where score is not null and list_contains(?, model)",
        [list(models)],
    )
    return {model: (score, source) for model, score, source in rows.fetchall()}


def readings(con: Connection, models: Sequence[str]) -> list[tuple[str, str, float]]:
    """One value a model and benchmark, all of a benchmark tested alike: (model, benchmark, value).

    Of several tests of one benchmark (metric, n-shot, split, template; of an average its source) the one counts that most
    of `models` took, then acc_norm before acc, mc2 before mc1; fractions are percent where others are.
    """
    return con.execute(READINGS, [list(models)]).fetchall()


def mean_over(
    con: Connection, model: str, benchmarks: Sequence[str], *, source: str | None, metric: str | None
) -> tuple[float | None, list[str]]:
    """A model's mean over those of `benchmarks` (none: all) that it has, and which these are.

    Only results of `source` and by `metric`, where they are named; of several of one benchmark one counts, as in the
    view `merge_gains`.
    """
    row = con.execute(MEAN_OVER, [model, source, list(benchmarks), metric]).fetchone()
    assert row
    return row[0], row[1] or []


def gains_and_kinship(
    con: Connection, family: str | None, metric: str, benchmark: str, source: str | None
) -> tuple[str | None, list[dict[str, Any]]]:
    """The merges whose gain on `benchmark` and whose parents' mean kinship by `metric` are both known, and their family.

    Of the family that `family` is a member of, or of all; `source` takes those whose gain that source printed, and
    its figures. Rows of child, method, parents, kinship, value, as_printed. Raises KinbaseError for a model without
    a family.
    """
    base = None
    if family is not None:
        name = names.resolve(con, family)
        ((base,),) = con.execute("select family from models where name = ?", [name]).fetchall()
        if base is None:
            raise KinbaseError(f"{name} is of no family: no base of it is known")
    found = con.execute(GAINS_AND_KINSHIP.format(metric=metric), [benchmark, base, source])
    columns = [column[0] for column in found.description or []]
    return base, [dict(zip(columns, row, strict=True)) for row in found.fetchall()]


def of_test(con: Connection, model: str, benchmark: str, metric: str) -> "pl.DataFrame":
    """A model's rows of `scores` of one benchmark by one metric."""
    from kinbase.query.frames import frame

    query = "from scores where model = ? and benchmark = ? and metric = ? order by n_shot nulls first"
    return frame(con, query, [model, benchmark, metric])


def accuracies(con: Connection) -> "pl.DataFrame":
    """Accuracies in percent, a row a model and a column a benchmark, with their plain mean, best first."""
    from kinbase.query.frames import frame

    return frame(con, ACCURACIES)


def average_gains(con: Connection) -> "pl.DataFrame":
    """What each merge gained on average, in percent, with its parents' kinship."""
    from kinbase.query.frames import frame

    return frame(con, AVERAGE_GAINS)
