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
    r"^[ \t]*(FROM|ADAPTER|LICENSE|SYSTEM|TEMPLATE|MESSAGE[ \t]+\w+)[ \t]+(?=[^\s])",
    re.IGNORECASE | re.MULTILINE,
)
_LONG = '"""'


def recognises(source: str) -> bool:
    """A file called Modelfile, or *.modelfile, with a FROM in it."""
    path = Path(source)
    named = (
        path.name.lower() == "modelfile"
        or path.suffix.lower() == ".modelfile"
        or path.stem.lower() == "modelfile"
    )
    return (
        named
        and is_file(source)
        and re.search(rb"^[ \t]*FROM\s", head(source, _LIMIT), re.M | re.I) is not None
    )


def open(source: str) -> Iterator[Record]:
    """The claims of one Modelfile on the model it makes."""
    path = Path(source)
    text, _ = read_text(path, _LIMIT)
    refused: list[str] = []
    said = _said(text)
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


def _said(text: str) -> dict[str, str]:
    """The first value of each instruction: to the end of its line, or between two threes of quotes.

    Each character is looked at a few times, whatever is opened and not closed.
    """
    said: dict[str, str] = {}
    at, is_closed = 0, True
    while match := _LINE.search(text, at):
        start = match.end()
        end = -1
        if is_closed and text.startswith(_LONG, start):
            start += len(_LONG)
            end = text.find(_LONG, start)
            is_closed = end >= 0
        if end < 0:
            end = text.find("\n", start)
            end = end if end >= 0 else len(text)
        said.setdefault(match[1].upper(), text[start:end].strip().strip('"').strip())
        at = end
    return said


def _tagged(label: str | None) -> str | None:
    """A name of Ollama's library without the tag that says no more than the name."""
    plain, _, tag = (label or "").rpartition(":")
    return plain if plain and tag in MAIN else label
