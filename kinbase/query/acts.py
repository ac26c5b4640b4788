"""What was said by hand or imported, as the journal keeps it."""

from typing import TYPE_CHECKING

from kinbase.store import Connection

if TYPE_CHECKING:  # Polars is slow to import, and the terminal UI does without
    import polars as pl

LOG = "select act, acted_at, verb, said, changed, can_be_undone from acts order by act desc limit ?"


def log(con: Connection, limit: int) -> "pl.DataFrame":
    """The newest acts, at most so many: act, acted_at, verb, said, changed, can_be_undone."""
    from kinbase.query.frames import frame

    return frame(con, LOG, [limit])
