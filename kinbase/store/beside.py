"""Stored folders that hold weights beside those that were read, marked to be read again.

Earlier versions took the digest of a folder's model alone; since, parts that lie beside it belong to its identity.
"""

from pathlib import Path

import duckdb

from kinbase.checkpoint.files import listing
from kinbase.errors import CheckpointError
from kinbase.importers.beside import parts

Connection = duckdb.DuckDBPyConnection

STORED = """
select m.model_id, m.source, list(f.path)
from raw.model m join raw.file f on f.model_id = m.model_id
where m.digest is not null and m.source is not null and not coalesce(m.to_reread, false)
group by all
"""

_COPIES = ("adapter_", "consolidated", "optimizer", "scheduler", ".")
"""How files of headers begin that are no parts of a model."""


def mark(con: Connection) -> None:
    """Mark the models whose folders hold parts that were not read; those that are not here any more stay as they are."""
    found = [
        [model_id]
        for model_id, source, paths in con.execute(STORED).fetchall()
        if _has_parts(Path(source), set(paths))
    ]
    if found:
        con.executemany("update raw.model set to_reread = true where model_id = ?", found)


def _has_parts(folder: Path, read: set[str]) -> bool:
    """Whether a folder holds a known part, or tensors with a header beside those that were `read`, by their real paths."""
    try:
        names = listing(str(folder)) if folder.is_dir() else []
        places = {name: str((folder / name).resolve()) for name in names}
    except (CheckpointError, OSError, ValueError):
        return False
    headed = [name for name in names if name.endswith(".safetensors") and not name.startswith(_COPIES)]
    if not any(places[name] in read for name in headed):
        headed = []  # other files hold the same weights once more
    return any(places[name] not in read for name in {*headed, *parts(names)})
