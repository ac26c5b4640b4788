"""Ollama's Modelfiles: what a model is made FROM, and the ADAPTER it is run with.

Without an adapter the weights are those of the parent, packed anew with a prompt or in another quantisation (relation
"conversion"); with one, they are the base and the adapter applied to it.
"""

import re
from collections.abc import Iterator
from pathlib import Path

from kinbase.checkpoint import Edge, Facts, Record
from kinbase.checkpoint.files import is_file, shown
from kinbase.checkpoint.ids import MAIN
from kinbase.checkpoint.untrusted import head, model_id, name, problems, read_text
from kinbase.errors import CheckpointError

_LIMIT = 1 << 20
_LINE = re.compile(
    r"^[ \t]*(FROM|ADAPTER|LICENSE)[ \t]+(\"\"\"(?:.|\n)*?\"\"\"|[^\n]+)$", re.IGNORECASE | re.MULTILINE
)
_TEXTS = re.compile(
    r"^[ \t]*(?:SYSTEM|TEMPLATE|MESSAGE[ \t]+\w+)[ \t]+\"\"\"(?:.|\n)*?\"\"\"", re.IGNORECASE | re.MULTILINE
)


def recognises(source: str) -> bool:
    """A file called Modelfile, or *.modelfile, with a FROM in it."""
    path = Path(source)
    named = (
        path.name.lower() == "modelfile"
        or path.suffix.lower() == ".modelfile"
        or path.stem.lower() == "modelfile"
    )
    return (
        named and is_file(source) and re.search(rb"^\s*FROM\s", head(source, _LIMIT), re.M | re.I) is not None
    )


def open(source: str) -> Iterator[Record]:
    """The claims of one Modelfile on the model it makes."""
    path = Path(source)
    text, _ = read_text(path, _LIMIT)
    refused: list[str] = []
    said: dict[str, str] = {}
    for match in _LINE.finditer(_TEXTS.sub("", text)):
        said.setdefault(match[1].upper(), match[2].strip().strip('"').strip())
    parent = _tagged(model_id(said.get("FROM"), refused))
    if parent is None:
        raise CheckpointError(f"{shown(source)} does not say what it is made FROM")
    adapter = model_id(said.get("ADAPTER"), refused)
    licence = said.get("LICENSE", "")
    yield Facts(license=name(licence, []) if 0 < len(licence) <= 60 else None)
    yield Edge(parent, "base" if adapter else "conversion", "config", detail={"tool": "ollama"})
    if adapter:
        yield Edge(adapter, "adapter", "config", detail={"tool": "ollama"})
    yield from problems(path.name, refused)


def _tagged(label: str | None) -> str | None:
    """A name of Ollama's library without the tag that says no more than the name."""
    plain, _, tag = (label or "").rpartition(":")
    return plain if plain and tag in MAIN else label
