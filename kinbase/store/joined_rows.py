"""Rows of another database, but its models', put among those that are here: see `kinbase.store.joining`.

All functions take a connection of `Store.writing()` with the temporary tables `theirs_TABLE`, and `place`, which tells
of each of their models which row it is here.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

from kinbase.store import Connection
from kinbase.store.journal import references

ONCE = {
    "file": ("model_id",), "weight": ("model_id",), "sketch": ("model_id",), "skipped": ("model_id",),
    "unfinished": ("model_id",), "tensor": ("base_id",), "delta": ("model_id",), "direction": ("model_id",),
    "pair_part": ("a_id", "b_id"), "pair": ("a_id", "b_id"), "estimate": ("a_id", "b_id", "method"),
    "task": ("benchmark",), "training": ("model_id", "benchmark"), "tag": ("model_id", "tag"),
}  # fmt: skip
"""What tells of which models and tests a table speaks already: their rows here stay, and theirs are left out."""

AGAINST = {
    "delta": ("model_id",), "direction": ("model_id",), "pair_part": ("a_id", "b_id"), "pair": ("a_id", "b_id"),
    "estimate": ("a_id", "b_id"),
}  # fmt: skip
"""Tables of what was measured against a base, and whose rows they are: only that against the base they have here."""

SYMMETRIC = ("pair", "pair_part", "estimate")
"""Tables of pairs, the smaller id first; columns that end in _a and _b turn with them."""

MOST_TOLD = 20
"""Differences that are told one by one."""


@dataclass(slots=True)
class Joined:
    """What became of another database: its models by how they came in, rows added by table, and what disagrees."""

    by_weights: int = 0
    by_name: int = 0
    new: int = 0
    rows: dict[str, int] = field(default_factory=dict)
    apart: list[str] = field(default_factory=list)

    def notes(self) -> list[str]:
        """The lines to tell."""
        known = self.by_weights + self.by_name
        words = {
            "claim": "claims", "score": "scores", "pair": "measured pairs", "estimate": "estimates of kinship", "run": "runs",
        }  # fmt: skip
        counts = ", ".join(
            f"{self.rows[table]} {word}" for table, word in words.items() if self.rows.get(table)
        )
        told = self.apart[:MOST_TOLD]
        if len(self.apart) > MOST_TOLD:
            told.append(f"and {len(self.apart) - MOST_TOLD} more that disagree in such ways")
        return [
            f"joined: {known} models were here ({self.by_weights} by their weights, {self.by_name} by name), {self.new} are "
            f"new; {counts or 'nothing else'} added",
            *told,
        ]


def put_all(con: Connection, origin: str, runs: Mapping[int, tuple[int, str]], done: Joined) -> None:
    """Put the rows of all tables in, but those of models and names; `runs` are the numbers and names of new runs."""
    # In this order: the parts of a pair belong to pairs that are not here yet.
    for table in ("claim", "score", *ONCE, "name_said", "run", "generation", "offspring"):
        _map_ids(con, table, runs)
        for kind in (_CLAIMS, _SCORES):
            if kind.table == table:
                _set_apart(con, kind, origin, done)
        if table == "tensor":
            _leave_out_other_tensors(con, done)
        done.rows[table] = _put_rows(con, table)


def columns_of(con: Connection, table: str) -> list[str]:
    """The columns of a raw table, in their order."""
    rows = con.execute(
        "select column_name from duckdb_columns() where schema_name = 'raw' and table_name = ? order by column_index",
        [table],
    ).fetchall()
    return [str(name) for (name,) in rows]


def _map_ids(con: Connection, table: str, runs: Mapping[int, tuple[int, str]]) -> None:
    """Make `coming` of their rows of a table, with the ids that models and runs have here; rows of others go."""
    columns = columns_of(con, table)
    chosen, joins = {name: f"t.{name}" for name in columns}, ""
    for of_table, column, is_list in references(con):
        if of_table != table:
            continue
        if is_list:
            chosen[column] = (
                f"(select list(p.ours order by u.position) from (select unnest(t.{column}) as id, "
                f"generate_subscripts(t.{column}, 1) as position) u join place p on p.theirs = u.id)"
            )
            chosen[column] = f"coalesce({chosen[column]}, if(t.{column} is null, null, []))"
            continue
        optional = (table, column) in (
            ("estimate", "base_id"),
            ("offspring", "child_id"),
            ("sketch", "onto_id"),
        )
        joins += f" {'left' if optional else ''} join place {column}_ on {column}_.theirs = t.{column}"
        chosen[column] = f"{column}_.ours"
    if "run_id" in columns:
        con.execute("create or replace temp table run_place (theirs integer, ours integer, name varchar)")
        for run_id, (number, name) in runs.items():
            con.execute("insert into run_place values (?, ?, ?)", [run_id, number, name])
        joins += " join run_place on run_place.theirs = t.run_id"
        chosen |= {"run_id": "run_place.ours"} | ({"name": "run_place.name"} if table == "run" else {})
    if table in SYMMETRIC:
        chosen = _turned(chosen)
    listed = ", ".join(f"{value} as {name}" for name, value in chosen.items())
    con.execute(f"create or replace temp table coming as select {listed} from theirs_{table} t {joins}")


def _turned(chosen: dict[str, str]) -> dict[str, str]:
    """The columns of a pair whose models may stand the other way round here."""
    is_turned = f"{chosen['a_id']} > {chosen['b_id']}"
    turned = dict(chosen)
    for name in chosen:
        ends = {"a_id": "b_id", "b_id": "a_id"}.get(name) or {
            "_a": f"{name[:-1]}b",
            "_b": f"{name[:-1]}a",
        }.get(name[-2:])
        if ends:
            turned[name] = f"if({is_turned}, {chosen[ends]}, {chosen[name]})"
    return turned


@dataclass(frozen=True, slots=True)
class _Statements:
    """Rows that state something, and what each is about: of two about one thing, either says the same or differs."""

    table: str
    about: tuple[str, ...]
    """SQL of what they are about; first the model. What is about one thing belongs together."""
    said: str
    """SQL of what they say of it, together."""
    words: str
    """SQL of what differs, by about_0, about_1, ..."""
    becomes: str
    """What is set of those that differ, beside their source."""


# What one kind of evidence says of a child's parents belongs together: two recipes are not added up to one.
_CLAIMS = _Statements(
    "claim",
    ("child_id", "evidence", "if(evidence = 'reported', source, null)"),
    "list_sort(list(distinct concat_ws(' ', parent_id, relation, coalesce(method, '-'), weight)))",
    "'parents by ' || about_1 || coalesce(' of ' || about_2, '') || ' are others'",
    "evidence = 'reported', ",
)
_SCORES = _Statements(
    "score",
    ("model_id", "benchmark", "metric", "n_shot", "split", "template", "source", "evaluated_at"),
    "list_sort(list(distinct value))",
    "about_1 || ' ' || about_2 || coalesce(' of ' || about_6, '') || ' is another'",
    "",
)


def _set_apart(con: Connection, kind: _Statements, origin: str, done: Joined) -> None:
    """Leave out of `coming` what is here already; what says otherwise comes as what `origin` reports, and is told."""
    about = ", ".join(f"{sql} as about_{i}" for i, sql in enumerate(kind.about))
    both = " and ".join(f"o.about_{i} is not distinct from c.about_{i}" for i in range(len(kind.about)))
    is_it = " and ".join(f"{sql} is not distinct from about_{i}" for i, sql in enumerate(kind.about))
    con.execute(
        f"""
        create or replace temp table met as
        select c.*, o.said = c.said as is_same
        from (select {about}, {kind.said} as said from coming group by all) c
        join (select {about}, {kind.said} as said from raw.{kind.table} group by all) o on {both}
        """
    )
    con.execute(f"delete from coming using met where is_same and {is_it}")
    con.execute(
        f"""
        update coming set {kind.becomes} source = concat($1::varchar, ': ', coalesce(source, about_1))
        from met where not is_same and {is_it}
        """,
        [origin],
    )
    rows = con.execute(
        f"""
        select m.name, {kind.words} from met join raw.model m on m.model_id = about_0
        where not is_same group by all order by all
        """
    ).fetchall()
    done.apart += [
        f"{name}: {words} here than there; theirs stand beside as what {origin} says" for name, words in rows
    ]
    con.execute("drop table met")


def _leave_out_other_tensors(con: Connection, done: Joined) -> None:
    """Note the bases whose tensors stand in another order here, and tell them: sums by position do not fit together."""
    listed = "list((position, name, numel) order by position) as tensors"
    con.execute(
        f"""
        create or replace temp table other_base as
        select base_id from (select base_id, {listed} from coming group by all) c
        join (select base_id, {listed} from raw.tensor group by all) o using (base_id) where c.tensors <> o.tensors
        """
    )
    for (name,) in con.execute(
        "select name from raw.model where model_id in (from other_base) order by all"
    ).fetchall():
        done.apart.append(
            f"{name} was measured over other tensors there: what was measured against it is left out"
        )


def _put_rows(con: Connection, table: str) -> int:
    """Add the rows of `coming` that say something new; how many."""
    columns = columns_of(con, table)
    key = ONCE.get(table) or [
        name for name in columns if name not in ("claimed_at", "imported_at", "said_at")
    ]
    same = " and ".join(f"o.{name} is not distinct from n.{name}" for name in key)
    where = ["true"]
    for column in AGAINST.get(table, ()):
        where.append(f"n.base_id = (select base_id from raw.model where model_id = n.{column})")
    if where[1:]:
        where.append("n.base_id not in (from other_base)")
        if table == "estimate":
            where = [f"(n.method = 'reported' or n.base_id is null or {' and '.join(where)})"]
    listed = ", ".join(columns)
    rows = con.execute(
        f"""
        insert into raw.{table} ({listed}) select {listed} from coming n anti join raw.{table} o on {same}
        where {" and ".join(where)} returning 1
        """
    ).fetchall()
    con.execute("drop table coming")
    return len(rows)
