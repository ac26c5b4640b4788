"""Migrations, views and macros of the store, as .sql files.

`migrations/` is append-only: each file runs once, in the order of its number, and is recorded with
its checksum. `views/` is the public surface: it is laid anew whenever one of its files changed.
"""

from functools import cache
from hashlib import blake2b
from importlib.resources import files

if __name__ != "kinbase.schema":
    # From the repository root `import schema` would make a second copy of the same modules.
    raise ImportError("import kinbase.schema, not schema")


@cache
def scripts(kind: str) -> tuple[tuple[str, str, str], ...]:
    """Name, SQL text and checksum of each file of `kind` ("migrations" or "views"), in order; read once a process."""
    found = []
    for entry in (files(__name__) / kind).iterdir():
        if entry.name.endswith(".sql"):
            text = entry.read_text(encoding="utf-8")
            found.append((f"{kind}/{entry.name}", text, blake2b(text.encode(), digest_size=16).hexdigest()))
    return tuple(sorted(found))
