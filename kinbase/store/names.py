"""Names to models: what a label means, and what is stored of the models behind it.

All functions take an open connection of the store and are part of its unit of work.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from difflib import get_close_matches

from kinbase.checkpoint import ADDRESS, FileStamp
from kinbase.checkpoint.ids import canonical, folded, hub_id
from kinbase.errors import KinbaseError
from kinbase.store import Connection


@dataclass(frozen=True, slots=True)
class Member:
    """A stored model with weights: where an importer finds it, and the files as they were."""

    model_id: int
    name: str
    digest: str
    source: str
    base_id: int | None
    measured: bool
    files: frozenset[FileStamp]


def find(con: Connection, label: str) -> int | None:
    """The model_id behind a name or alias, or an id of the Hub in any spelling; or None."""
    rows = con.execute(
        "select model_id from raw.model where name = $1 union all select model_id from raw.alias where alias = $1",
        [label],
    ).fetchall()
    return rows[0][0] if rows else _spelled(con, [label]).get(label)


def _spelled(con: Connection, labels: Iterable[str]) -> dict[str, int]:
    """The model_ids behind ids of the Hub that are stored in another spelling: in another case, or without an address."""
    wanted = {label: folded(label) for label in labels if hub_id(label) is not None}
    if not wanted:
        return {}
    rows = con.execute(
        """
        select name, model_id from raw.model where lower(name) in (select unnest($1::varchar[]))
        union all
        select alias, model_id from raw.alias where kind <> 'path' and lower(alias) in (select unnest($1::varchar[]))
        order by model_id
        """,
        [sorted({name.lower() for name in wanted.values()})],
    ).fetchall()
    known: dict[str, int] = {}
    for name, model_id in rows:
        known.setdefault(folded(name), model_id)
    return {label: known[name] for label, name in wanted.items() if name in known}


def resolve(con: Connection, label: str) -> str:
    """The name of the model meant by a name, an alias, or the only prefix of a name or digest.

    Raises KinbaseError naming the near ones when it is unknown or ambiguous.
    """
    known_as = meant(con, label)
    if known_as is not None:
        return known_as
    known = _likely(con, label)
    if not known:
        raise KinbaseError(
            f"there is no model {label!r}: the database has none yet, `kinbase import` adds some"
        )
    near = get_close_matches(label, known, n=3, cutoff=0.4) or _containing(con, label)
    hint = f"did you mean {', '.join(near)}?" if near else "`kinbase ls` lists them"
    raise KinbaseError(f"there is no model {label!r}: {hint}")


LIKELY = 1000
"""Names that an unknown one is compared with: of millions, to compare all in Python takes minutes."""


def _likely(con: Connection, label: str) -> list[str]:
    """The names and aliases that are most like a label, all of them if there are few."""
    rows = con.execute(
        f"select alias from raw.called order by jaro_winkler_similarity(alias, $1) desc limit {LIKELY}",
        [label],
    ).fetchall()
    return [name for (name,) in rows]


def _containing(con: Connection, label: str) -> list[str]:
    rows = con.execute(
        "select alias from raw.called where contains(lower(alias), lower($1)) order by alias limit 3", [label]
    ).fetchall()
    return [name for (name,) in rows]


def meant(con: Connection, label: str) -> str | None:
    """`resolve` for a label that may be new: None when nothing is called so. Raises KinbaseError when it is ambiguous."""
    if (known := find(con, label)) is not None:
        return name_of(con, known)
    rows = con.execute(
        """
        select distinct model from (
            select model, 0 as rank from raw.called where alias = $1
            union all
            select name, 1 from raw.model where starts_with(name, $1) or (length($1) >= 6 and starts_with(digest, $1))
        )
        qualify rank = min(rank) over ()
        order by model limit 6
        """,
        [label],
    ).fetchall()
    names = [str(name) for (name,) in rows]
    if len(names) > 1:
        raise KinbaseError(
            f"{label!r} could be {', '.join(names[:5])}{', ...' if len(names) > 5 else ''}: say more of the name"
        )
    return names[0] if names else None


def ids(con: Connection, labels: Iterable[str]) -> dict[str, int]:
    """The model_ids behind names and aliases, of those that stand for a model."""
    wanted = list(dict.fromkeys(labels))
    rows = con.execute(
        """
        select label, coalesce(m.model_id, a.model_id)
        from (select unnest($1::varchar[]) as label)
        left join raw.model m on m.name = label
        left join raw.alias a on a.alias = label
        where coalesce(m.model_id, a.model_id) is not null
        """,
        [wanted],
    ).fetchall()
    found = dict(rows)
    return found | _spelled(con, [label for label in wanted if label not in found])


def named(con: Connection, label: str) -> int:
    """The model_id behind a name or alias; a row without weights is made for a name not met before."""
    found = find(con, label)
    if found is not None:
        return found
    row = con.execute(
        "insert into raw.model (name) values (?) returning model_id", [canonical(label)]
    ).fetchone()
    assert row
    return int(row[0])


def find_all(con: Connection, labels: Iterable[str]) -> dict[str, int]:
    """`find` for many labels at once: the model_ids of those that are known."""
    wanted = list(dict.fromkeys(labels))
    rows = con.execute(
        """
        select label, coalesce(m.model_id, a.model_id)
        from (select unnest($1::varchar[]) as label)
        left join raw.model m on m.name = label
        left join raw.alias a on a.alias = label
        """,
        [wanted],
    ).fetchall()
    found = {label: model_id for label, model_id in rows if model_id is not None}
    return found | _spelled(con, [label for label in wanted if label not in found])


def named_all(con: Connection, labels: Iterable[str]) -> dict[str, int]:
    """`named` for many labels at once."""
    wanted = list(dict.fromkeys(labels))
    found = find_all(con, wanted)
    # Of several spellings of a new name the first is how it is called.
    missing: dict[str, list[str]] = {}
    for label in wanted:
        if label not in found:
            missing.setdefault(folded(label), []).append(label)
    if missing:
        new = {canonical(spellings[0]): spellings for spellings in missing.values()}
        rows = con.execute(
            "insert into raw.model (name) select unnest($1::varchar[]) returning name, model_id", [list(new)]
        ).fetchall()
        found |= {label: model_id for name, model_id in rows for label in new[name]}
    return found


def name_of(con: Connection, model_id: int) -> str:
    """The name of a stored model."""
    ((name,),) = con.execute("select name from raw.model where model_id = ?", [model_id]).fetchall()
    return str(name)


def address_without_weights(con: Connection, model_id: int) -> str | None:
    """Where a model lies elsewhere whose weights were never read whole; None for any other."""
    row = con.execute(
        "select source from raw.model where model_id = ? and digest is null", [model_id]
    ).fetchone()
    return row[0] if row and row[0] and ADDRESS.match(row[0]) else None


def by_base(con: Connection, model_ids: Sequence[int]) -> dict[int, list[int]]:
    """Models by the base that they are measured against, or are to be, in the order given."""
    bases = dict(
        con.execute(
            "select model_id, base_id from raw.model "
            "where model_id in (select unnest($1::integer[])) and base_id is not null",
            [list(model_ids)],
        ).fetchall()
    )
    families: dict[int, list[int]] = {}
    for model_id in model_ids:
        if model_id in bases:
            families.setdefault(bases[model_id], []).append(model_id)
    return families


def place_of(con: Connection, model_id: int) -> tuple[str, str | None, int]:
    """A model's name, that of the base it is measured against, and how many are measured against it."""
    ((name, base, members),) = con.execute(
        """
        select m.name, b.name, (select count(*) from raw.model where base_id = m.model_id)
        from raw.model m left join raw.model b on b.model_id = m.base_id where m.model_id = ?
        """,
        [model_id],
    ).fetchall()
    return str(name), base, int(members)


def base_or_parents(con: Connection, label: str) -> tuple[str | None, list[str]] | None:
    """For a known label: the base its model is measured against or is itself, or else its parents' names."""
    model_id = find(con, label)
    if model_id is None:
        return None
    row = con.execute(
        """
        select coalesce(b.name, case when m.digest is not null then m.name end), m.name
        from raw.model m left join raw.model b on b.model_id = m.base_id where m.model_id = ?
        """,
        [model_id],
    ).fetchone()
    assert row
    parents = con.execute(
        "select distinct parent from lineage where child = ? order by parent", [row[1]]
    ).fetchall()
    return row[0], [parent for (parent,) in parents]


def parents(con: Connection, name: str) -> list[tuple[str, str]]:
    """What a model is said to be made from, and how: (parent, relation)."""
    return con.execute(
        "select distinct parent, relation from lineage where child = ? order by all", [name]
    ).fetchall()


def members(con: Connection) -> list[Member]:
    """The models with weights, in the order they came."""
    rows = con.execute(
        """
        select model_id, m.name, digest, source, base_id, model_id in (select model_id from raw.delta),
            list({'path': f.path, 'size': f.size, 'mtime_ns': f.mtime_ns}) filter (f.path is not null)
        from raw.model m left join raw.file f using (model_id)
        where digest is not null
        group by all order by model_id
        """
    ).fetchall()
    return [
        Member(
            model_id,
            name,
            digest,
            source,
            base_id,
            measured,
            frozenset(FileStamp(**file) for file in files or []),
        )
        for model_id, name, digest, source, base_id, measured, files in rows
    ]


@dataclass(frozen=True, slots=True)
class Version:
    """A stored model of which an importer can tell the version: its commit, and how far it was measured."""

    name: str
    revision: str | None
    base: str | None
    has_weights: bool
    measured: bool
    has_parents: bool


def versions(con: Connection) -> dict[str, Version]:
    """The models with a revision, by each of their names but paths."""
    rows = con.execute(
        """
        select a.alias, m.name, m.revision, b.name, m.digest is not null,
            m.model_id in (select model_id from raw.delta),
            m.model_id in (select child_id from raw.claim where parent_id <> child_id)
        from raw.model m
        join (select name as alias, model_id from raw.model
              union all select alias, model_id from raw.alias where kind <> 'path') a using (model_id)
        left join raw.model b on b.model_id = m.base_id
        where m.revision is not null
        """
    ).fetchall()
    return {alias: Version(*rest) for alias, *rest in rows}


def files(con: Connection, name: str) -> list[FileStamp]:
    """What a model's weights were read from."""
    rows = con.execute(
        "select path, size, mtime_ns from raw.file join raw.model using (model_id) where name = ?", [name]
    ).fetchall()
    return [FileStamp(*row) for row in rows]


def missing_pairs(
    con: Connection, names: Sequence[str], *, exact: bool = True
) -> dict[str, list[tuple[str, str]]]:
    """Pairs of one family without kinship, by base: among `names`, or of the only one with its family.

    An estimate by sketches counts as none if `exact`. Otherwise a model that met all others by its sketch lacks
    none of those that were too far to be stored.
    """
    found: dict[str, list[tuple[str, str]]] = {}
    for base_id, members in by_base(con, list(ids(con, names).values())).items():
        rows = con.execute(_missing(exact=exact, is_one=len(names) == 1), [members, base_id]).fetchall()
        for base, a, b in rows:
            found.setdefault(base, []).append((a, b))
    return found


def _missing(*, exact: bool, is_one: bool) -> str:
    """The query of `missing_pairs` for models $1 of the base $2: of their own pairs alone, whatever else is stored."""
    others = "raw.model where base_id = $2 and digest is not null" if is_one else "one"
    sketched = f"""
        and (a_id, b_id) not in (
            select (a_id, b_id) from raw.estimate where method = 'sketch' and {_TOUCHES}
        )"""
    met = """
        and not (
            x.model_id in (from direction) and y.model_id in (from direction)
            and (x.model_id in (from estimated) or y.model_id in (from estimated))
        )"""
    return f"""
        with one as (select unnest($1::integer[]) as model_id),
        direction as (select model_id from raw.direction where base_id = $2),
        estimated as (
            select unnest([a_id, b_id]) as model_id from raw.estimate where method = 'sketch' and base_id = $2
        ),
        pairs as (
            select distinct least(o.model_id, one.model_id) as a_id, greatest(o.model_id, one.model_id) as b_id
            from one, (select model_id from {others}) o where o.model_id <> one.model_id
        )
        select b.name, x.name, y.name
        from pairs join raw.model x on x.model_id = a_id join raw.model y on y.model_id = b_id
        join raw.model b on b.model_id = $2 and b.digest is not null
        where x.digest is not null and y.digest is not null
            and (a_id, b_id) not in (select (a_id, b_id) from raw.pair where {_TOUCHES})
            {"" if exact else sketched} {met if is_one and not exact else ""}
        order by all
    """


_TOUCHES = "(a_id in (from one) or b_id in (from one))"


def sketched_pairs(con: Connection, pairs: Sequence[tuple[str, str]]) -> set[tuple[str, str]]:
    """Those of `pairs` whose kinship is estimated by sketches, whichever way round they are named."""
    rows = con.execute(
        """
        select x, y from (select unnest($1::varchar[]) as x, unnest($2::varchar[]) as y) p
        join raw.model a on a.name = x join raw.model b on b.name = y
        join raw.estimate e on e.method = 'sketch'
            and e.a_id = least(a.model_id, b.model_id) and e.b_id = greatest(a.model_id, b.model_id)
        """,
        [[a for a, _ in pairs], [b for _, b in pairs]],
    ).fetchall()
    return set(rows)


def members_beside(con: Connection, base_id: int, model_ids: Sequence[int]) -> list[str]:
    """The names of a family's members with weights but for some, in the order they came."""
    rows = con.execute(
        "select name from raw.model where base_id = $1 and digest is not null "
        "and model_id not in (select unnest($2::integer[])) order by model_id",
        [base_id, list(model_ids)],
    ).fetchall()
    return [name for (name,) in rows]
