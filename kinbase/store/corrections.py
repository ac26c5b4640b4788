"""What people say of models by hand: names, facts, notes, tags, scores.

All functions take a connection of `Store.writing()` and are part of its one transaction.
"""

from collections.abc import Mapping, Sequence
from datetime import datetime

from kinbase.checkpoint import Alias, Score
from kinbase.errors import KinbaseError, UsageError
from kinbase.store import Connection, utc
from kinbase.store.aliases import put_alias
from kinbase.store.names import find, name_of, named
from kinbase.store.scores import put_scores

SETTABLE = ("license", "created_at", "architecture", "relation", "notes")
"""What `set` takes."""

HAND = "user"
"""The source of scores that were given by hand."""


def rename(con: Connection, model: str, name: str, *, forget: bool = False) -> None:
    """Give a model another name; the old one stays an alias, unless it is to be forgotten.

    Raises KinbaseError when the name is another model's.
    """
    _refuse_empty(name, "name")
    if name == model:
        raise KinbaseError(f"{model!r} is called that already")
    model_id, holder = named(con, model), find(con, name)
    if holder is not None and holder != model_id:
        other = name_of(con, holder)
        (row,) = con.execute("select digest from raw.model where model_id = ?", [holder]).fetchall()
        raise KinbaseError(
            f"{name!r} is a name of {other!r} already: "
            + (
                "rename that one first"
                if row[0] is not None or other != name
                else f"if they are one model, say `kinbase alias {model} {name}`"
            )
        )
    con.execute("delete from raw.alias where alias = ? and model_id = ?", [name, model_id])
    con.execute("update raw.model set name = ? where model_id = ?", [name, model_id])
    if not forget:
        con.execute("insert into raw.alias values (?, ?, 'name')", [model, model_id])


def add_alias(con: Connection, model: str, name: str) -> None:
    """Give a model one more name; a row that is known by that name only becomes one with it."""
    _refuse_empty(name, "name")
    put_alias(con, named(con, model), Alias(name))


def drop_alias(con: Connection, name: str) -> str:
    """Forget one of a model's other names; the model's own. Raises KinbaseError when it is none."""
    rows = con.execute("delete from raw.alias where alias = ? returning model_id", [name]).fetchall()
    if not rows:
        own = find(con, name)
        raise KinbaseError(
            f"{name!r} is the model's own name: `kinbase rename` gives it another"
            if own is not None
            else f"{name!r} is no model's other name: `kinbase show MODEL` lists them"
        )
    return name_of(con, rows[0][0])


def put_said(con: Connection, model: str, facts: Mapping[str, str]) -> None:
    """Set facts of a model, which no file's word replaces from now on; an empty one takes the word back.

    Raises UsageError for a fact that there is none of, or a date that is none.
    """
    model_id = named(con, model)
    for key, text in facts.items():
        if key not in SETTABLE:
            raise UsageError(f"{key!r} cannot be set: choose of {', '.join(SETTABLE)}")
        value: object = text.strip() or None
        if key == "created_at" and text.strip():
            value = date(text)
        con.execute(f"update raw.model set {key} = ? where model_id = ?", [value, model_id])
        if key != "notes":
            con.execute(
                """
                update raw.model set by_hand = nullif(list_sort(list_distinct(
                    if($2, list_append(coalesce(by_hand, []), $3), list_filter(coalesce(by_hand, []), lambda k: k <> $3))
                )), []) where model_id = $1
                """,
                [model_id, value is not None, key],
            )


def date(text: str) -> datetime:
    """A day or a moment as ISO 8601 writes it, UTC where no zone is said. Raises UsageError for anything else."""
    try:
        moment = utc(datetime.fromisoformat(text.strip()))
    except ValueError:
        raise UsageError(f"{text!r} is no date: write 2026-01-31, or 2026-01-31T12:00") from None
    assert moment
    return moment


def put_tags(con: Connection, model: str, tags: Sequence[str]) -> None:
    """Add tags to a model. Raises UsageError for an empty one, or one with blanks."""
    model_id = named(con, model)
    for tag in tags:
        if not tag or not tag.isprintable() or any(c.isspace() for c in tag):
            raise UsageError(f"{tag!r} is no tag: one word, without blanks")
        con.execute(
            """
            insert into raw.tag select $1, $2
            where not exists (select 1 from raw.tag where model_id = $1 and tag = $2)
            """,
            [model_id, tag],
        )


def drop_tags(con: Connection, model: str, tags: Sequence[str]) -> list[str]:
    """Take tags from a model (of none given: all); those it had."""
    rows = con.execute(
        "delete from raw.tag where model_id = $1 and (len($2) = 0 or list_contains($2::varchar[], tag)) returning tag",
        [named(con, model), list(tags)],
    ).fetchall()
    return sorted(tag for (tag,) in rows)


def test_meant(con: Connection, benchmark: str, metric: str | None) -> tuple[str, str]:
    """A benchmark as it is spelled here, in whatever case it was typed, and its metric: by default the one it has, or acc.

    Raises UsageError where it has several, and none of them is acc.
    """
    rows = con.execute(
        """
        select benchmark, list_sort(list(distinct metric)) from raw.score
        where lower(benchmark) = lower($1) and metric <> 'gain' group by benchmark order by count(*) desc, benchmark
        """,
        [benchmark.strip()],
    ).fetchall()
    known = {str(name): [str(m) for m in metrics] for name, metrics in rows}
    name = benchmark if benchmark in known or not known else next(iter(known))
    metrics = known.get(name, [])
    if metric is not None:
        return name, metric
    if len(metrics) > 1 and "acc" not in metrics:
        raise UsageError(f"{name} is measured by {' and by '.join(metrics)} here: say which with --metric")
    return name, metrics[0] if len(metrics) == 1 else "acc"


def put_score(con: Connection, model: str, score: Score) -> None:
    """Store a result that was given by hand, in place of one that was given so before."""
    _refuse_empty(score.benchmark, "benchmark")
    con.execute(
        """
        delete from raw.score where model_id = $1 and benchmark = $2 and metric = $3 and n_shot is not distinct from $4
            and split is null and template is null and source = $5
        """,
        [named(con, model), score.benchmark, score.metric, score.n_shot, HAND],
    )
    put_scores(con, model, [score])


def _refuse_empty(text: str, what: str) -> None:
    if not text.strip() or not text.isprintable():
        raise UsageError(f"{text!r} is no {what}: it needs letters that can be seen")


def day_of(con: Connection, model: str) -> str:
    """The day a model was made, as its source says, or else came in: 2026-01-31."""
    ((moment,),) = con.execute(
        "select coalesce(created_at, imported_at) from raw.model where name = ?", [model]
    ).fetchall()
    return f"{moment:%Y-%m-%d}"
