"""Two databases made one: another's rows, in temporary tables `theirs_TABLE`, put among those that are here.

Models join by the digest of their weights, then by name where their weights do not differ. What is here is never
replaced: what disagrees is told, and kept apart under a name, or a source, that says where it came from. All functions
take a connection of `Store.writing()` and are part of its one transaction.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from kinbase.checkpoint import FileStamp
from kinbase.checkpoint.ids import is_path
from kinbase.errors import KinbaseError
from kinbase.store import Connection
from kinbase.store import names as naming
from kinbase.store.joined_rows import Joined, columns_of, put_all

FACTS = ("architecture", "license", "revision", "relation", "created_at", "notes")
"""Facts of which a difference is told."""


@dataclass(frozen=True, slots=True)
class _Row:
    """A model on either side; `weights` is the digest of its own weights, or of those that it is a copy of."""

    model_id: int
    name: str
    digest: str | None
    weights: str | None


_ROWS = """
select m.model_id, m.name, m.digest, coalesce(m.digest, if(m.same_how = 'copy', o.digest, null), m.removed_digest)
from {table} m left join {table} o on o.model_id = m.same_id order by m.model_id
"""


def join(con: Connection, origin: str) -> Joined:
    """Put the rows of `theirs_*` among those that are here; `origin` is how their database is called.

    Raises KinbaseError for rows that no Kinbase wrote.
    """
    _refuse_damaged(con)
    done = Joined()
    places = _placed(con, origin, done)
    con.execute("create or replace temp table place (theirs integer, ours integer)")
    con.execute(
        "insert into place select unnest($1::integer[]), unnest($2::integer[])",
        [list(places), list(places.values())],
    )
    _put_models(con, done)
    _put_names(con, done)
    put_all(con, origin, _placed_runs(con, origin, done), done)
    con.execute("drop table place")
    return done


def _refuse_damaged(con: Connection) -> None:
    ((is_sound,),) = con.execute(
        """
        select count(model_id) = count(*) and count(distinct model_id) = count(*) and count(name) = count(*)
            and count(distinct name) = count(*) and count(distinct digest) = count(digest)
        from theirs_model
        """
    ).fetchall()
    if not is_sound:
        raise KinbaseError("two of the models to join have one number, name or digest: the export is damaged")


def _placed(con: Connection, origin: str, done: Joined) -> dict[int, int]:
    """Which row here each of their models is; of one that is new, a new row's number, and the row."""
    theirs = [_Row(*row) for row in con.execute(_ROWS.format(table="theirs_model")).fetchall()]
    here = {row[0]: _Row(*row) for row in con.execute(_ROWS.format(table="raw.model")).fetchall()}
    by_digest = {row.digest: row.model_id for row in here.values() if row.digest}
    places = {t.model_id: by_digest[t.digest] for t in theirs if t.digest in by_digest}
    done.by_weights = len(places)
    taken = set(places.values())
    rest = [t for t in theirs if t.model_id not in places]
    apart = {t.name: f"{t.name}@{origin}" for t in rest}
    named = naming.ids(con, [*apart, *apart.values()])

    def joins(t: _Row, model_id: int) -> bool:
        ours = here[model_id].weights
        return model_id not in taken and (t.weights is None or ours is None or t.weights == ours)

    fresh: list[tuple[int, str]] = []
    used: set[str] = set()
    for t in rest:
        # A path means something to its author alone.
        names = [apart[t.name]] if is_path(t.name) and t.digest is None else [t.name, apart[t.name]]
        found = next((named[n] for n in names if n in named and joins(t, named[n])), None)
        if found is not None:
            places[t.model_id] = found
            taken.add(found)
            done.by_name += 1
            continue
        name = next(n for n in _candidates(names) if n not in used and naming.find(con, n) is None)
        used.add(name)
        fresh.append((t.model_id, name))
        if name != t.name and t.name in named:
            done.apart.append(f"{t.name} is another model here than there: theirs is {name}")
    done.new = len(fresh)
    numbers = con.execute("select nextval('raw.model_ids') from range(?)", [len(fresh)]).fetchall()
    con.execute("create or replace temp table fresh (theirs integer, ours integer, name varchar)")
    ids = [int(number) for (number,) in numbers]
    con.execute(
        "insert into fresh select unnest($1::integer[]), unnest($2::integer[]), unnest($3::varchar[])",
        [[theirs_id for theirs_id, _ in fresh], ids, [name for _, name in fresh]],
    )
    return places | dict(zip([theirs_id for theirs_id, _ in fresh], ids, strict=True))


def _candidates(names: Sequence[str]) -> Iterable[str]:
    yield from names
    number = 2
    while True:
        yield f"{names[-1]}-{number}"
        number += 1


def _put_models(con: Connection, done: Joined) -> None:
    """Rows for models that are new; of the others what nobody here said, and the weights of a mere name."""
    columns = columns_of(con, "model")
    values = {name: f"t.{name}" for name in columns} | {
        "model_id": "f.ours", "name": "f.name", "base_id": "base.ours", "same_id": "same.ours",
    }  # fmt: skip
    lookups = (
        "left join place base on base.theirs = t.base_id left join place same on same.theirs = t.same_id"
    )
    _tell_facts(con, done)
    con.execute(
        f"""
        create or replace temp table known as
        select p.ours, t.* exclude (model_id, name, base_id, same_id, same_how), base.ours as base_id,
            target.model_id as same_id, if(target.model_id is null, null, t.same_how) as same_how
        from theirs_model t join place p on p.theirs = t.model_id {lookups}
        left join raw.model target on target.model_id = same.ours and target.same_id is null and target.model_id <> p.ours
        where p.ours not in (select ours from fresh)
        """
    )
    con.execute(
        f"""
        insert into raw.model ({", ".join(columns)}) select {", ".join(values[name] for name in columns)}
        from theirs_model t join fresh f on f.theirs = t.model_id {lookups}
        """
    )
    whole = "model.digest is null and known.digest is not null"
    same = f"({whole} or model.same_id is null and (model.digest is null or known.same_how <> 'copy'))"
    filled = [f"{name} = coalesce(model.{name}, known.{name})" for name in (*FACTS, "digest")]
    filled += [
        f"{name} = if({whole}, known.{name}, coalesce(model.{name}, known.{name}))"
        for name in ("source", "parameters", "dtype", "bytes", "to_reread")
    ]
    filled += [f"{name} = if({same}, known.{name}, model.{name})" for name in ("same_id", "same_how")]
    told = " || ".join(f"if(model.{name} is null, ['{name}'], []::varchar[])" for name in FACTS)
    con.execute(
        f"""
        update raw.model set {", ".join(filled)}, base_id = coalesce(model.base_id, nullif(known.base_id, model.model_id)),
            removed_digest = if(coalesce(model.digest, known.digest) is null,
                coalesce(model.removed_digest, known.removed_digest), null),
            by_hand = nullif(list_sort(list_distinct(
                coalesce(model.by_hand, []) || list_intersect(coalesce(known.by_hand, []), {told}))), [])
        from known where model.model_id = known.ours
        """
    )
    con.execute("drop table known")


def _tell_facts(con: Connection, done: Joined) -> None:
    parts = " union all ".join(
        f"""
        select m.name, '{fact}', m.{fact}::varchar, t.{fact}::varchar
        from theirs_model t join place p on p.theirs = t.model_id join raw.model m on m.model_id = p.ours
        where m.{fact} <> t.{fact}
        """
        for fact in FACTS
    )
    for name, fact, ours, theirs in con.execute(f"{parts} order by all").fetchall():
        done.apart.append(
            f"{name}: {fact} is {_short(ours)} here and {_short(theirs)} there; it stays as here"
        )
    rows = con.execute(
        """
        select m.name, ours.name, there.name from theirs_model t
        join place p on p.theirs = t.model_id join raw.model m on m.model_id = p.ours
        join raw.model ours on ours.model_id = m.base_id join theirs_model there on there.model_id = t.base_id
        join place base on base.theirs = t.base_id where base.ours <> m.base_id order by all
        """
    ).fetchall()
    for name, ours, theirs in rows:
        done.apart.append(
            f"{name} is measured against {ours} here and against {theirs} there; what was measured there is left out"
        )


def _short(text: str) -> str:
    return repr(text if len(text) <= 40 else text[:37] + "...")


def _put_names(con: Connection, done: Joined) -> None:
    """Their other names, and their own names of models that are called otherwise here; a taken one is told.

    Paths lead to models only where the files lie as they were read: on this machine.
    """
    there = _there(con)
    rows = con.execute(
        """
        select p.ours, t.name, 'name' from theirs_model t join place p on p.theirs = t.model_id
        where t.model_id not in (select theirs from fresh)
        union all
        select p.ours, a.alias, a.kind from theirs_alias a join place p on p.theirs = a.model_id
        order by 1, 3, 2
        """
    ).fetchall()
    said = [row for row in rows if row[0] in there or not (row[2] == "path" or is_path(row[1]))]
    known = naming.ids(con, [name for _, name, _ in said])
    for model_id, name, kind in said:
        if name not in known:
            known[name] = model_id
            con.execute("insert into raw.alias values (?, ?, ?)", [name, model_id, kind])
        elif known[name] != model_id and kind != "path":
            done.apart.append(
                f"{name} is another model here: there it is a name of {naming.name_of(con, model_id)}"
            )


def _there(con: Connection) -> set[int]:
    """The models of theirs, by their rows here, all of whose files lie on this machine as they were read."""
    rows = con.execute(
        "select p.ours, path, size, mtime_ns from theirs_file f join place p on p.theirs = f.model_id"
    ).fetchall()
    moved = {ours for ours, *stamp in rows if (file := FileStamp(*stamp)).elsewhere or not file.as_it_was}
    return {ours for ours, *_ in rows} - moved


def _placed_runs(con: Connection, origin: str, done: Joined) -> dict[int, tuple[int, str]]:
    """Their runs that are new: a number here, and a name. One of the same name, settings and beginning is here."""
    rows = con.execute(
        """
        select t.run_id, t.name, r.run_id is not null, r.config::varchar = t.config::varchar and r.started_at = t.started_at
        from theirs_run t left join raw.run r on r.name = t.name order by t.run_id
        """
    ).fetchall()
    placed: dict[int, tuple[int, str]] = {}
    taken = {name for (name,) in con.execute("select name from raw.run").fetchall()}
    for run_id, name, is_known, is_same in rows:
        if is_same or (is_known and f"{name}@{origin}" in taken):
            continue
        called = next(n for n in _candidates([name, f"{name}@{origin}"]) if n not in taken)
        taken.add(called)
        if called != name:
            done.apart.append(f"the run {name} is another one here than there: theirs is {called}")
        ((number,),) = con.execute("select nextval('raw.run_ids')").fetchall()
        placed[run_id] = int(number), called
    return placed
