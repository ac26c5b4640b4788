"""What the names in a table mean, by sets: `names.named_all` for millions of names at once."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

from kinbase.checkpoint.ids import folded
from kinbase.store.columns import rows
from kinbase.store.connection import Connection

if TYPE_CHECKING:
    import numpy as np
    import polars as pl
    from numpy.typing import NDArray


def in_order(frame: "pl.DataFrame", columns: Sequence[str]) -> "pl.Series":
    """The labels in some columns of a table, each once, in the order in which its rows say them."""
    import polars as pl

    there = [pl.col(column) for column in columns if column in frame.columns]
    if len(there) == 1:
        return frame.select(there).to_series().drop_nulls().unique(maintain_order=True)
    by_row = frame.select(pl.concat_list(there).explode()).to_series()
    return by_row.drop_nulls().unique(maintain_order=True)


@contextmanager
def meant(con: Connection, frame: "pl.DataFrame", **columns: str) -> Iterator["pl.DataFrame"]:
    """Within the block, a table with the model_ids that its labels stand for: by its columns what theirs are called.

    A label is a name, an alias or an id of the Hub in any spelling. The table `fresh` has the model_ids and names of
    models not met before, which are yet to be put into raw.model (`put_fresh`): of several spellings of a new name the
    first is how it is called.
    """
    import numpy as np
    import polars as pl

    listed = pl.DataFrame({"label": in_order(frame, list(columns))}).with_row_index("position")
    with rows(con, listed, "labels"):
        found = con.execute(
            """
            select position, coalesce(m.model_id, a.model_id) as model_id
            from labels left join raw.model m on m.name = label left join raw.alias a on a.alias = label
            where m.model_id is not null or a.model_id is not null
            """
        ).fetchnumpy()
    ids = np.zeros(len(listed), np.int32)
    ids[found["position"]] = found["model_id"]
    fresh = _tell_unknown(con, listed.filter(pl.Series(ids == 0)), ids)
    told = listed.select("label", model_id=pl.Series(ids))
    # Joined here and not in SQL, where nothing is known of how many rows a frame has.
    for column, called in columns.items():
        named = told.rename({"model_id": called})
        frame = frame.join(named, left_on=column, right_on="label", how="left", maintain_order="left")
    with rows(con, fresh, "fresh"):
        yield frame


def _tell_unknown(con: Connection, unknown: "pl.DataFrame", ids: "NDArray[np.int32]") -> "pl.DataFrame":
    """Tell in `ids` of labels that are neither names nor aliases as they stand; the table `fresh`."""
    import polars as pl

    from kinbase.checkpoint.tables import spelled_alike

    unknown = unknown.with_columns(spelled_alike(unknown["label"]))
    for position, model_id in _spelled(con, unknown).items():
        ids[position] = model_id
    unknown = unknown.filter(pl.Series(ids[unknown["position"].to_numpy()] == 0))
    is_first = unknown["folded"].is_first_distinct()
    fresh = unknown.filter(is_first).select("folded", name="canonical")
    ((start,),) = con.execute("select min(nextval('raw.model_ids')) from range($1)", [len(fresh)]).fetchall()
    fresh = fresh.with_columns(model_id=pl.int_range(pl.len(), dtype=pl.Int32) + (start or 0))
    told = fresh["model_id"]
    if not is_first.all():
        told = unknown.join(fresh, on="folded", how="left", maintain_order="left")["model_id"]
    ids[unknown["position"].to_numpy()] = told.to_numpy()
    return fresh.select("model_id", "name")


def _spelled(con: Connection, unknown: "pl.DataFrame") -> dict[int, int]:
    """By the position of a label, the model that is stored in another spelling; the few that may be are compared."""
    with rows(con, unknown.select("position", "folded"), "unknown"):
        likely = con.execute(
            """
            select position, folded, known.name, known.model_id
            from unknown join (
                select name, model_id from raw.model
                union all select alias, model_id from raw.alias where kind <> 'path'
            ) known on lower(known.name) = lower(folded)
            order by known.model_id
            """
        ).fetchall()
    found: dict[int, int] = {}
    for position, label, name, model_id in likely:
        if folded(name) == label:
            found.setdefault(position, model_id)
    return found


def put_fresh(con: Connection) -> None:
    """Make a row without weights of each name not met before."""
    con.execute("insert into raw.model (model_id, name) select model_id, name from fresh order by model_id")
