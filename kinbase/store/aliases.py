"""Other names of models, to rows: what a name that is known already becomes, and two rows that turn out to be one."""

from collections.abc import Collection, Mapping, Sequence

from kinbase.checkpoint import Alias, Table
from kinbase.errors import KinbaseError
from kinbase.store import Connection
from kinbase.store.columns import rows
from kinbase.store.labels import meant, put_fresh
from kinbase.store.names import find_all, name_of, named_all


def put_alias(con: Connection, model_id: int, alias: Alias) -> None:
    """Add a name for a model. A row known only by that name becomes one with the model.

    Raises KinbaseError when the name is another model's.
    """
    for _, problem in put_aliases(con, [(name_of(con, model_id), alias)]):
        raise KinbaseError(problem)


def put_aliases(con: Connection, aliases: Sequence[tuple[str, Alias]]) -> list[tuple[Alias, str]]:
    """Add names of models, which are told by a label each; the names that could not be, and why.

    A name may make two rows one, after which an id that was looked up before leads nowhere: so ids follow the rows
    that they became, and all rows are joined at once in the end.
    """
    ids = named_all(con, [label for label, _ in aliases])
    rest = _put_new_aliases(con, ids, aliases)
    known = find_all(con, [alias.alias for _, alias in rest])
    rows = _names_and_digests(con, {*known.values(), *(ids[label] for label, _ in rest)})
    became: dict[int, int] = {}

    def now(model_id: int) -> int:
        passed = []
        while model_id in became:
            passed.append(model_id)
            model_id = became[model_id]
        became.update(dict.fromkeys(passed, model_id))
        return model_id

    refused, joined, moved = [], [], []
    for label, alias in rest:
        model_id, holder = now(ids[label]), now(known[alias.alias])
        name, digest = rows[holder]
        if model_id == holder:
            continue
        if digest is None and name == alias.alias:
            became[holder] = model_id
            joined.append((alias, model_id))
        elif alias.kind in ("path", "revision") and name != alias.alias:
            # A path, or a branch, moves to whatever is there now; any other name stays with whom it was given to.
            known[alias.alias] = model_id
            moved.append((alias, model_id))
        else:
            refused.append(
                (alias, f"{alias.alias!r} is a name of {name!r} already: it cannot be another model's too")
            )
    _join(con, [(old, now(old)) for old in list(became)])
    _insert(con, [(alias, now(model_id)) for alias, model_id in joined])
    for alias, model_id in moved:
        con.execute("update raw.alias set model_id = ? where alias = ?", [now(model_id), alias.alias])
    return refused


def put_alias_table(con: Connection, table: Table, file: str) -> list[Alias]:
    """Add the names in a table that stand for nothing yet, as said by a file; those that are other models' already."""
    with (
        meant(con, table.rows, model="model_id") as told,
        rows(con, told.with_row_index("place")),
    ):
        put_fresh(con)
        con.execute("create or replace temp table told as from new_rows")
    con.execute(
        """
        insert into raw.alias
        select alias, model_id, kind from told
        anti join raw.model on model.name = told.alias anti join raw.alias on alias.alias = told.alias
        qualify row_number() over (partition by told.alias order by place) = 1 order by place
        """
    )
    con.execute(
        """
        insert into raw.name_said (alias, source)
        select distinct alias, $1 from told
        where not exists (from raw.name_said old where old.alias = told.alias and old.source = $1)
        """,
        [file],
    )
    rest = con.execute(
        """
        select told.alias, told.model, told.kind from told
        left join raw.model m on m.name = told.alias left join raw.alias a on a.alias = told.alias
        where coalesce(m.model_id, a.model_id) is distinct from told.model_id order by place
        """
    ).fetchall()
    con.execute("drop table told")
    return [Alias(*row) for row in rest]


def _names_and_digests(con: Connection, model_ids: Collection[int]) -> dict[int, tuple[str, str | None]]:
    rows = con.execute(
        "select model_id, name, digest from raw.model where list_contains($1::integer[], model_id)",
        [list(model_ids)],
    ).fetchall()
    return {model_id: (name, digest) for model_id, name, digest in rows}


def _insert(con: Connection, aliases: Sequence[tuple[Alias, int]]) -> None:
    if aliases:
        con.execute(
            "insert into raw.alias select unnest($1::varchar[]), unnest($2::integer[]), unnest($3::varchar[])",
            [
                [alias.alias for alias, _ in aliases],
                [model_id for _, model_id in aliases],
                [alias.kind for alias, _ in aliases],
            ],
        )


def _put_new_aliases(
    con: Connection, ids: Mapping[str, int], aliases: Sequence[tuple[str, Alias]]
) -> list[tuple[str, Alias]]:
    """Add those names that stand for nothing yet; the others."""
    labels = [alias.alias for _, alias in aliases]
    rows = con.execute(
        "select name from raw.model where list_contains($1::varchar[], name) "
        "union all select alias from raw.alias where list_contains($1::varchar[], alias)",
        [labels],
    ).fetchall()
    taken = {label for (label,) in rows}
    fresh: dict[str, tuple[int, Alias]] = {}
    rest = []
    for label, alias in aliases:
        if alias.alias in taken or alias.alias in fresh:
            rest.append((label, alias))
        else:
            fresh[alias.alias] = ids[label], alias
    _insert(con, [(alias, model_id) for model_id, alias in fresh.values()])
    return rest


def put_speakers(con: Connection, said: Sequence[tuple[str, str]]) -> None:
    """Remember who says names: pairs of a name and the file or page that says it."""
    if said:
        con.execute(
            """
            insert into raw.name_said (alias, source)
            select distinct * from (select unnest($1::varchar[]) as alias, unnest($2::varchar[]) as source) new
            where not exists (from raw.name_said old where old.alias = new.alias and old.source = new.source)
            """,
            [[alias for alias, _ in said], [source for _, source in said]],
        )


def _join(con: Connection, pairs: Sequence[tuple[int, int]]) -> None:
    """Give all that was said of rows without weights to other models, and drop the rows: pairs of the old and the new."""
    if not pairs:
        return
    con.execute(
        "create or replace temp table became as select unnest($1::integer[]) as old_id, unnest($2::integer[]) as new_id",
        [[old for old, _ in pairs], [new for _, new in pairs]],
    )
    for table, column in (
        ("alias", "model_id"),
        ("score", "model_id"),
        ("training", "model_id"),
        ("claim", "child_id"),
        ("claim", "parent_id"),
        ("offspring", "child_id"),
        ("sketch", "onto_id"),
        ("model", "same_id"),
        ("tag", "model_id"),
        ("estimate", "base_id"),
        ("model", "base_id"),
    ):
        con.execute(f"update raw.{table} set {column} = new_id from became where {column} = old_id")
    con.execute("update raw.model set base_id = null where base_id = model_id")
    # What was said of two names of one model.
    con.execute(
        "delete from raw.claim where child_id = parent_id and child_id in (select new_id from became)"
    )
    con.execute(
        """
        create or replace temp table joined as
        select coalesce(a.new_id, a_id) as x, coalesce(b.new_id, b_id) as y, * exclude (a_id, b_id, old_id, new_id)
        from raw.estimate left join became a on a.old_id = a_id left join became b on b.old_id = b_id
        where a.old_id is not null or b.old_id is not null
        """
    )
    con.execute(
        "delete from raw.estimate where a_id in (select old_id from became) or b_id in (select old_id from became)"
    )
    con.execute(
        "insert into raw.estimate select least(x, y), greatest(x, y), * exclude (x, y) from joined where x <> y"
    )
    for table, column in (("offspring", "parent_ids"), ("generation", "top_ids")):
        for old, new in con.execute(
            f"from became where old_id in (select unnest({column}) from raw.{table})"
        ).fetchall():
            con.execute(
                f"update raw.{table} set {column} = list_transform({column}, lambda x: if(x = $1, $2, x)) "
                f"where list_contains({column}, $1)",
                [old, new],
            )
    _join_said(con)
    con.execute("delete from raw.model where model_id in (select old_id from became)")
    con.execute("drop table joined; drop table became")


def _join_said(con: Connection) -> None:
    """Give models what was said by hand of the rows they became, where nothing was said of themselves; no tag twice."""
    con.execute("""
        create or replace temp table tags as
        select distinct model_id, tag from raw.tag where model_id in (select new_id from became)
        """)
    con.execute("delete from raw.tag where model_id in (select new_id from became)")
    con.execute("insert into raw.tag from tags")
    con.execute("drop table tags")
    told = ", ".join(
        f"{name} = if(list_contains(old.by_hand, '{name}') and not coalesce(list_contains(model.by_hand, '{name}'), false), "
        f"old.{name}, model.{name})"
        for name in ("architecture", "license", "relation", "created_at")
    )
    for old, new in con.execute(
        "select became.* from became join raw.model on model_id = old_id where by_hand is not null or notes is not null"
    ).fetchall():
        con.execute(
            f"""
            update raw.model set {told}, notes = coalesce(model.notes, old.notes),
                by_hand = nullif(list_sort(list_distinct(coalesce(model.by_hand, []) || coalesce(old.by_hand, []))), [])
            from (from raw.model where model_id = $1) old where model.model_id = $2
            """,
            [old, new],
        )
