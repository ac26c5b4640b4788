"""Kinbase: a lineage database and query tool for neural-network checkpoints.

`open(path)` gives the verbs of `kinbase.database.Kinbase`; importing this package loads nothing else.
"""

from typing import TYPE_CHECKING, Any

from kinbase.errors import CheckpointError, DatabaseError, KinbaseError, UsageError

if TYPE_CHECKING:
    from kinbase.database import Kinbase

__all__ = ["CheckpointError", "DatabaseError", "Kinbase", "KinbaseError", "UsageError", "open"]


def open(
    path: str = "kinbase.duckdb", *, wait: float = 60.0
) -> "Kinbase":  # the module's verb, as in gzip.open
    """The database at `path`; the file is made by the first import."""
    from kinbase.database import Kinbase

    return Kinbase(path, wait=wait)


def __getattr__(name: str) -> Any:
    if name == "Kinbase":
        from kinbase.database import Kinbase

        return Kinbase
    raise AttributeError(f"module 'kinbase' has no attribute {name!r}")
