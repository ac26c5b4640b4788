"""Models to rows: identity and files, names, what is said of them, and whose family they are in.

All functions take a connection of `Store.writing()` and are part of its one transaction.
"""

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import PurePath
from typing import TYPE_CHECKING

from kinbase.checkpoint import Alias, Edge, Facts, FileStamp, Table
from kinbase.checkpoint.tensors import dtype_code
from kinbase.errors import KinbaseError
from kinbase.store import Connection, utc
from kinbase.store.aliases import put_alias
from kinbase.store.columns import SLICE, rows
from kinbase.store.labels import meant
from kinbase.store.names import find, ids, name_of, named

if TYPE_CHECKING:
    import polars as pl

FACTS = ("architecture", "license", "revision", "relation", "parameters", "dtype", "created_at")


@dataclass(frozen=True, slots=True)
class Put:
    """A model's row: its id and name, of a copy with a card of its own whose weights it has, and what is to be said of it."""

    model_id: int
    name: str
    same_as: str | None = None
    note: str | None = None


def put_model(
    con: Connection,
    name: str,
    digest: str,
    source: str,
    files: Collection[FileStamp],
    said: Sequence[Edge | Facts] = (),
) -> Put:
    """Store a model's identity.

    A row known only by name becomes whole. Weights that are stored already only gain a name, where nothing is said of
    it that is not said of them; else the name has a row of its own, which is the same as theirs. Where they were read
    first stays their place while the files there are as they were, so that a copy may come and go. Files that are read
    otherwise than before keep their row, with another digest.
    Raises KinbaseError when the name stands for other weights.
    """
    known = con.execute("select model_id, name from raw.model where digest = ?", [digest]).fetchone()
    holder, note = find(con, name), None
    row = con.execute("select name, digest, to_reread from raw.model where model_id = ?", [holder]).fetchone()
    if row is not None and holder is not None and row[1] is not None and row[1] != digest:
        if row[0] == name and known is None and _are_read_anew(con, holder, files):
            note = _reread(con, holder, digest, source)
        elif row[0] != name and row[2] and known is None:
            # It was called a copy by a digest that did not cover all of it.
            con.execute("delete from raw.alias where alias = ?", [name])
        else:
            raise KinbaseError(
                f"{name!r} is the name of other weights already ({row[1][:12]}): give this one another with --name, or the name "
                "to these with --replace"
            )
    _refuse_other_base(con, name, digest)
    if known is not None:
        is_own_name = holder == known[0] and known[1] == name
        if not is_own_name and (_says_more(con, known[0], said) or _is_spoken_of(con, holder, known[0])):
            con.execute("delete from raw.alias where alias = ? and model_id = ?", [name, known[0]])
            return _put_copy(con, name, known, source, files)
        put_alias(con, known[0], Alias(name))
        model_id, name = known
    else:
        model_id = named(con, name)
        con.execute(
            "update raw.model set digest = ?, same_id = null, same_how = null, to_reread = false, removed_digest = null "
            "where model_id = ?",
            [digest, model_id],
        )
    if known is None or not _still_there(con, model_id):
        put_source(con, model_id, source)
        put_files(con, model_id, files)
    if known is not None:
        con.execute("update raw.model set to_reread = false where model_id = ?", [model_id])
    return Put(model_id, name, note=note)


def _refuse_other_base(con: Connection, name: str, digest: str) -> None:
    """Raise KinbaseError for weights under the name of a base that was removed, and that others are measured against."""
    rows = con.execute(
        """
        select name, removed_digest from raw.model
        where name = ? and digest is null and removed_digest <> ? and model_id in (select base_id from raw.delta)
        """,
        [name, digest],
    ).fetchall()
    for base, former in rows:
        raise KinbaseError(
            f"{base} was removed, and what is measured against it had other weights for their base ({former[:12]}): "
            "give these another name with --name"
        )


def _put_copy(
    con: Connection, name: str, original: tuple[int, str], source: str, files: Collection[FileStamp]
) -> Put:
    """A row for a name that says something of its own of weights that are stored already."""
    model_id = named(con, name)
    con.execute(
        "update raw.model set same_id = ?, same_how = 'copy' where model_id = ?", [original[0], model_id]
    )
    put_source(con, model_id, source)
    put_files(con, model_id, files)
    return Put(model_id, name, same_as=original[1])


def _says_more(con: Connection, original: int, said: Sequence[Edge | Facts]) -> bool:
    """Whether something is said that is not said of the original: other parents, another licence, relation or date."""
    row = con.execute(
        "select license, relation, created_at from raw.model where model_id = ?", [original]
    ).fetchone()
    assert row
    stored = set(
        con.execute("select parent_id, relation from raw.claim where child_id = ?", [original]).fetchall()
    )
    if any((find(con, e.parent), e.relation) not in stored for e in said if isinstance(e, Edge)):
        return True
    return any(
        value is not None and value != known
        for facts in said
        if isinstance(facts, Facts)
        for value, known in zip((facts.license, facts.relation, utc(facts.created_at)), row, strict=True)
    )


def _without(said: Sequence[Edge | Facts], known: Sequence[Edge | Facts]) -> list[Edge | Facts]:
    """What of `said` is not in `known`: parents, and licence, relation and date, whichever name they are said of."""
    parents = {(edge.parent, edge.relation) for edge in known if isinstance(edge, Edge)}
    facts = [record for record in known if isinstance(record, Facts)]
    licenses, relations, dates = (
        {getattr(f, key) for f in facts} for key in ("license", "relation", "created_at")
    )
    return [
        record
        if isinstance(record, Edge)
        else replace(
            record,
            license=None if record.license in licenses else record.license,
            relation=None if record.relation in relations else record.relation,
            created_at=None if record.created_at in dates else record.created_at,
        )
        for record in said
        if not (isinstance(record, Edge) and (record.parent, record.relation) in parents)
    ]


def _is_spoken_of(con: Connection, holder: int | None, original: int) -> bool:
    """Whether a name that has no weights yet has parents, a licence or scores of its own."""
    if holder in (None, original):
        return False
    query = """
        select 1 from raw.model m where model_id = $1 and digest is null and (
            license is not null or relation is not null or created_at is not null
            or exists (from raw.claim where child_id = $1) or exists (from raw.score where model_id = $1)
        )
    """
    return con.execute(query, [holder]).fetchone() is not None


def _are_read_anew(con: Connection, model_id: int, files: Collection[FileStamp]) -> bool:
    """Whether a model's files are as they were and among these: then its digest differs by how they are read."""
    rows = con.execute("select path, size, mtime_ns from raw.file where model_id = ?", [model_id]).fetchall()
    return bool(rows) and {FileStamp(*row) for row in rows} <= set(files)


def _reread(con: Connection, model_id: int, digest: str, source: str) -> str:
    """Give a model the digest of all that its files hold, and free the names that other files gave it."""
    rows = con.execute(
        "select alias from raw.alias where model_id = ? and kind = 'path' and alias <> ?", [model_id, source]
    ).fetchall()
    freed = [label for path in rows for label in (path[0], PurePath(path[0]).stem, PurePath(path[0]).name)]
    dropped = con.execute(
        "delete from raw.alias where model_id = ? and list_contains(?, alias) returning alias, kind",
        [model_id, freed],
    ).fetchall()
    con.execute("update raw.model set digest = ? where model_id = ?", [digest, model_id])
    names = sorted(alias for alias, kind in dropped if kind == "name")
    others = f"; {', '.join(names)} may be of other weights: import them again" if names else ""
    return f"read again: its identity now covers all that its files hold{others}"


def copies(con: Connection) -> dict[tuple[frozenset[FileStamp], str], str]:
    """The names of copies with a card of their own, by the files and the source they were read from."""
    rows = con.execute(
        """
        select m.name, m.source, list({'path': f.path, 'size': f.size, 'mtime_ns': f.mtime_ns})
        from raw.model m join raw.file f using (model_id) where m.same_id is not null and m.digest is null group by all
        """
    ).fetchall()
    return {(frozenset(FileStamp(**file) for file in files), source): name for name, source, files in rows}


def stale(con: Connection) -> set[str]:
    """The models that are to be read again, because their digests do not cover all that their files hold."""
    return {name for (name,) in con.execute("select name from raw.model where to_reread").fetchall()}


def put_same(con: Connection, model_id: int, original: int, how: str) -> None:
    """Say that a model has the weights of another one, in another layout, dtype, or under other names."""
    con.execute(
        "update raw.model set same_id = ?, same_how = ? where model_id = ?", [original, how, model_id]
    )


@dataclass(frozen=True, slots=True)
class Read:
    """A model whose weights were read: what `put_model` takes."""

    name: str
    digest: str
    source: str
    files: Collection[FileStamp]
    said: Sequence[Edge | Facts] = ()


def put_models(con: Connection, read: Sequence[Read]) -> dict[str, Put | KinbaseError]:
    """`put_model` of many: by name what it returns, or the error it raises."""
    known = ids(con, [model.name for model in read])
    rows = con.execute(
        "select digest from raw.model where digest in (select unnest($1::varchar[]))",
        [[model.digest for model in read]],
    ).fetchall()
    stored = {digest for (digest,) in rows}
    taken = set(stored)
    first: dict[str, Sequence[Edge | Facts]] = {}
    fresh: list[Read] = []
    rest: list[Read] = []
    for model in read:
        is_fresh = model.name not in known and model.digest not in taken
        (fresh if is_fresh else rest).append(model)
        taken.add(model.digest)
        first.setdefault(model.digest, () if model.digest in stored else model.said)
    result: dict[str, Put | KinbaseError] = dict(_put_fresh(con, fresh))
    for model in rest:
        # What the first of equal weights says of itself is stored only after all of their rows are.
        said = _without(model.said, first[model.digest])
        try:
            result[model.name] = put_model(con, model.name, model.digest, model.source, model.files, said)
        except KinbaseError as error:
            result[model.name] = error
    return result


def _put_fresh(con: Connection, read: Sequence[Read]) -> dict[str, Put]:
    """Rows of models of which neither name nor digest is known, and of their files."""
    if not read:
        return {}
    rows = con.execute(
        """
        insert into raw.model (name, digest, source)
        select unnest($1::varchar[]), unnest($2::varchar[]), unnest($3::varchar[]) returning name, model_id
        """,
        [[model.name for model in read], [model.digest for model in read], [model.source for model in read]],
    ).fetchall()
    made = dict(rows)
    files = [
        (made[model.name], file.path, file.size, file.mtime_ns) for model in read for file in model.files
    ]
    if files:
        con.execute(
            "insert into raw.file "
            "select unnest($1::integer[]), unnest($2::varchar[]), unnest($3::bigint[]), unnest($4::bigint[])",
            [list(column) for column in zip(*files, strict=True)],
        )
    return {name: Put(model_id, name) for name, model_id in made.items()}


def _still_there(con: Connection, model_id: int) -> bool:
    """Whether a model's files lie on this machine as they were read."""
    rows = con.execute("select path, size, mtime_ns from raw.file where model_id = ?", [model_id]).fetchall()
    files = [FileStamp(*row) for row in rows]
    return bool(files) and all(not file.elsewhere and file.as_it_was for file in files)


def places(con: Connection, model_ids: Sequence[int]) -> dict[int, str | None]:
    """Where an importer finds models' weights again."""
    rows = con.execute(
        "select model_id, source from raw.model where model_id in (select unnest($1::integer[]))",
        [list(model_ids)],
    ).fetchall()
    return dict(rows)


def put_source(con: Connection, model_id: int, source: str) -> None:
    """Remember where an importer finds the model again."""
    con.execute("update raw.model set source = ? where model_id = ?", [source, model_id])


def put_first_sources(con: Connection, sources: Mapping[int, str]) -> None:
    """Remember where models without weights are found; one with weights is found where they were read."""
    if sources:
        con.execute(
            """
            update raw.model set source = new.source
            from (select unnest($1::integer[]) as model_id, unnest($2::varchar[]) as source) new
            where model.model_id = new.model_id and model.digest is null
            """,
            [list(sources), list(sources.values())],
        )


def put_files(con: Connection, model_id: int, files: Iterable[FileStamp]) -> None:
    """Remember what a model's weights were read from, in place of what was known."""
    con.execute("delete from raw.file where model_id = ?", [model_id])
    rows = [[model_id, file.path, file.size, file.mtime_ns] for file in files]
    if rows:
        con.executemany("insert into raw.file values (?, ?, ?, ?)", rows)


def put_facts(con: Connection, model_id: int, facts: Facts) -> None:
    """Fill in what a source says of a model; what it does not say stays as it was."""
    put_many_facts(con, [replace(facts, model=name_of(con, model_id))])


def put_many_facts(con: Connection, said: Sequence[Facts] | Table, *, is_new_only: bool = False) -> None:
    """Fill in what is said of models, each by a name, or only what was not said yet; of several words the last counts.

    What was set by hand stays. A model not met before comes with its facts: to change a row costs ten times as much.
    """
    from kinbase.checkpoint import tables

    frame = said.rows if isinstance(said, Table) else tables.of(Facts, said).rows
    for part in frame.iter_slices(SLICE):
        _put_slice(con, part, is_new_only=is_new_only)


def _put_slice(con: Connection, frame: "pl.DataFrame", *, is_new_only: bool) -> None:
    import polars as pl

    from kinbase.checkpoint.tables import asked

    columns = [name for name in FACTS if name in frame.columns]
    if "dtype" in columns:
        frame = frame.with_columns(asked(frame["dtype"], lambda said: said and dtype_code(said), pl.String))
    with meant(con, frame, model="model_id") as told:
        facts = told.select("model_id", *columns)
        if facts["model_id"].is_duplicated().any():
            facts = facts.group_by("model_id").agg(pl.col(name).drop_nulls().last() for name in columns)
        with rows(con, facts, "facts"):
            con.execute(
                f"""
                insert into raw.model ({", ".join(["model_id", "name", *columns])})
                select {", ".join(["fresh.model_id", "name", *columns])} from fresh join facts using (model_id)
                """
            )
            if columns:
                _fill_in(con, columns, is_new_only=is_new_only)


def _fill_in(con: Connection, columns: Sequence[str], *, is_new_only: bool) -> None:
    """Change the rows of models met before of which `facts` says anything else."""
    order = "coalesce(model.{name}, new.{name})" if is_new_only else "coalesce(new.{name}, model.{name})"
    order = f"if(list_contains(model.by_hand, '{{name}}'), model.{{name}}, {order})"
    told = {name: order.format(name=name) for name in columns}
    differs = " or ".join(f"model.{name} is distinct from {value}" for name, value in told.items())
    con.execute(
        f"""
        update raw.model set {", ".join(f"{name} = {value}" for name, value in told.items())}
        from (from facts anti join fresh using (model_id)) new
        where model.model_id = new.model_id and ({differs})
        """
    )


def put_sizes(con: Connection, rows: Sequence[tuple[int, int, str | None, int]]) -> None:
    """Store what the tensors themselves say of models' sizes: (model_id, parameters, dtype, bytes)."""
    if rows:
        con.execute(
            """
            update raw.model set parameters = new.parameters, dtype = new.dtype, bytes = new.bytes
            from (
                select unnest($1::integer[]) as model_id, unnest($2::bigint[]) as parameters,
                    unnest($3::varchar[]) as dtype, unnest($4::bigint[]) as bytes
            ) new
            where model.model_id = new.model_id
            """,
            [list(column) for column in zip(*{row[0]: row for row in rows}.values(), strict=True)],
        )


def put_bases(con: Connection, bases: Mapping[int, int]) -> None:
    """Make models members of the families measured against their bases; what was measured against another goes."""
    if not bases:
        return
    con.execute(
        "create or replace temp table moved as select unnest($1::integer[]) as model_id, unnest($2::integer[]) as base_id",
        [list(bases), list(bases.values())],
    )
    con.execute(
        "update raw.model set base_id = moved.base_id from moved "
        "where model.model_id = moved.model_id and model.base_id is distinct from moved.base_id"
    )
    for table in ("delta", "direction"):
        con.execute(
            f"delete from raw.{table} old using moved m where old.model_id = m.model_id and old.base_id <> m.base_id"
        )
    for table in ("estimate", "pair", "pair_part"):
        kind = "old.method in ('sampled', 'sketch') and" if table == "estimate" else ""
        for side in ("a_id", "b_id"):
            con.execute(
                f"delete from raw.{table} old using moved m where {kind} old.{side} = m.model_id and old.base_id <> m.base_id"
            )
    con.execute("drop table moved")
