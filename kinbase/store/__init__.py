"""The DuckDB file: guarded handles (`connection`), names, and one writer module for each kind of row."""

from kinbase.store.connection import Connection, Store, utc

__all__ = ["Connection", "Store", "utc"]
