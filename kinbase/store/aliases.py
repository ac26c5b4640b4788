"""Other names of models, to rows: what a name that is known already becomes, and two rows that turn out to be one."""

from collections.abc import Mapping, Sequence

from kinbase.checkpoint import Alias
from kinbase.errors import KinbaseError
from kinbase.store import Connection
from kinbase.store.names import find, named, named_all

MOST_JOINS = 1000
"""Names that are models already and are made one with others in one import: each costs a dozen statements."""


def put_alias(con: Connection, model_id: int, alias: Alias) -> None:
    """Add a name for a model. A row known only by that name becomes one with the model."""
    known = find(con, alias.alias)
    if known == model_id:
        return
    if known is not None:
        row = con.execute("select name, digest from raw.model where model_id = ?", [known]).fetchone()
        assert row
        if row[1] is not None or row[0] != alias.alias:
            # A path, or a branch, moves to whatever is there now; any other name stays with whom it was given to.
            if alias.kind in ("path", "revision") and row[0] != alias.alias:
                con.execute("update raw.alias set model_id = ? where alias = ?", [model_id, alias.alias])
                return
            raise KinbaseError(
                f"{alias.alias!r} is a name of {row[0]!r} already: it cannot be another model's too"
            )
        _join(con, known, model_id)
    con.execute("insert into raw.alias values (?, ?, ?)", [alias.alias, model_id, alias.kind])


def put_aliases(con: Connection, aliases: Sequence[tuple[str, Alias]]) -> list[tuple[Alias, str]]:
    """Add names of models, which are told by a label each; the names that could not be, and why.

    A name may make two rows one, after which an id that was looked up before leads nowhere: so what is not simply
    new is resolved by its label, one after the other.
    """
    ids = named_all(con, [label for label, _ in aliases])
    refused = []
    rest = _put_new_aliases(con, ids, aliases)
    for label, alias in rest[:MOST_JOINS]:
        try:
            put_alias(con, named(con, label), alias)
        except KinbaseError as error:
            refused.append((alias, str(error)))
    if len(rest) > MOST_JOINS:
        more = f"{len(rest) - MOST_JOINS:,} more names stand for models already: import them {MOST_JOINS:,} at a time"
        refused.append((rest[MOST_JOINS][1], more))
    return refused


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
    if fresh:
        con.execute(
            "insert into raw.alias select unnest($1::varchar[]), unnest($2::integer[]), unnest($3::varchar[])",
            [
                list(fresh),
                [model_id for model_id, _ in fresh.values()],
                [alias.kind for _, alias in fresh.values()],
            ],
        )
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


def _join(con: Connection, old: int, new: int) -> None:
    """Give all that was said of a row without weights to another model, and drop the row."""
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
    ):
        con.execute(f"update raw.{table} set {column} = ? where {column} = ?", [new, old])
    con.execute(
        "delete from raw.claim where child_id = parent_id and child_id = ?", [new]
    )  # what was said of the two names
    con.execute(
        """
        create or replace temp table joined as
        select if(a_id = $1, $2, a_id) as x, if(b_id = $1, $2, b_id) as y, * exclude (a_id, b_id)
        from raw.estimate where $1 in (a_id, b_id)
        """,
        [old, new],
    )
    con.execute("delete from raw.estimate where ? in (a_id, b_id)", [old])
    con.execute(
        "insert into raw.estimate select least(x, y), greatest(x, y), * exclude (x, y) from joined where x <> y"
    )
    con.execute("update raw.estimate set base_id = ? where base_id = ?", [new, old])
    con.execute("update raw.model set base_id = nullif($1, model_id) where base_id = $2", [new, old])
    for table, column in (("offspring", "parent_ids"), ("generation", "top_ids")):
        con.execute(
            f"""
            update raw.{table} set {column} = list_transform({column}, lambda x: if(x = $1, $2, x))
            where list_contains({column}, $1)
            """,
            [old, new],
        )
    _join_said(con, old, new)
    con.execute("delete from raw.model where model_id = ?", [old])


def _join_said(con: Connection, old: int, new: int) -> None:
    """Give a model what was said by hand of another row, where nothing was said of itself; no tag twice."""
    con.execute(
        "create or replace temp table tags as select distinct model_id, tag from raw.tag where model_id = ?",
        [new],
    )
    con.execute("delete from raw.tag where model_id = ?", [new])
    con.execute("insert into raw.tag from tags")
    con.execute("drop table tags")
    told = ", ".join(
        f"{name} = if(list_contains(old.by_hand, '{name}') and not coalesce(list_contains(model.by_hand, '{name}'), false), "
        f"old.{name}, model.{name})"
        for name in ("architecture", "license", "relation", "created_at")
    )
    con.execute(
        f"""
        update raw.model set {told}, notes = coalesce(model.notes, old.notes),
            by_hand = nullif(list_sort(list_distinct(coalesce(model.by_hand, []) || coalesce(old.by_hand, []))), [])
        from (from raw.model where model_id = $1) old where model.model_id = $2
        """,
        [old, new],
    )
