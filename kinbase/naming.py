"""Names to models: what a label means, and what is stored of the models behind it.

All functions take an open connection of the store and are part of its unit of work.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from difflib import get_close_matches

from kinbase.checkpoint import FileStamp
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
    """The model_id behind an exact name or alias, or None."""
    row = con.execute(
        "select model_id from raw.model where name = $1 union all select model_id from raw.alias where alias = $1",
        [label],
    ).fetchone()
    return row[0] if row else None


def resolve(con: Connection, label: str) -> str:
    """The name of the model meant by a name, an alias, or the only prefix of a name or digest.

    Raises KinbaseError naming the near ones when it is unknown or ambiguous.
    """
    known_as = meant(con, label)
    if known_as is not None:
        return known_as
    known = [name for (name,) in con.execute("select alias from aliases").fetchall()]
    if not known:
        raise KinbaseError(
            f"there is no model {label!r}: the database has none yet, `kinbase import` adds some"
        )
    near = (
        get_close_matches(label, known, n=3, cutoff=0.4)
        or [n for n in known if label.lower() in n.lower()][:3]
    )
    hint = f"did you mean {', '.join(near)}?" if near else "`kinbase ls` lists them"
    raise KinbaseError(f"there is no model {label!r}: {hint}")


def meant(con: Connection, label: str) -> str | None:
    """`resolve` for a label that may be new: None when nothing is called so. Raises KinbaseError when it is ambiguous."""
    rows = con.execute(
        """
        select distinct model from (
            select model, 0 as rank from aliases where alias = $1
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


def named(con: Connection, label: str) -> int:
    """The model_id behind a name or alias; a row without weights is made for a name not met before."""
    found = find(con, label)
    if found is not None:
        return found
    row = con.execute("insert into raw.model (name) values (?) returning model_id", [label]).fetchone()
    assert row
    return int(row[0])


def name_of(con: Connection, model_id: int) -> str:
    """The name of a stored model."""
    row = con.execute("select name from raw.model where model_id = ?", [model_id]).fetchone()
    assert row
    return str(row[0])


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


def missing_pairs(con: Connection, names: Sequence[str]) -> dict[str, list[tuple[str, str]]]:
    """Pairs of one family without exact kinship, by base: among `names`, or of the only one with its family."""
    rows = con.execute(
        """
        with member as (
            select m.model_id, m.name, b.name as base from raw.model m join raw.model b on b.model_id = m.base_id
            where m.digest is not null and b.digest is not null
        )
        select a.base, a.name, b.name
        from member a join member b on a.base = b.base and a.model_id < b.model_id
        where if(len($1) = 1, $1[1] in (a.name, b.name), list_contains($1, a.name) and list_contains($1, b.name))
            and (a.model_id, b.model_id) not in (select (a_id, b_id) from raw.pair)
        order by all
        """,
        [list(names)],
    ).fetchall()
    found: dict[str, list[tuple[str, str]]] = {}
    for base, a, b in rows:
        found.setdefault(base, []).append((a, b))
    return found
