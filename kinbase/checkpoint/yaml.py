"""YAML from strangers: the YAML 1.2 core schema as plain Python values, or one clear refusal.

The document is built from libyaml's event stream, not by a constructor, so that no tag can name a
class and so that size, depth and alias expansion are bounded while it is read: an alias costs as
much as the nodes it stands for (billion laughs), and what a node contains cannot contain it.
It is scanned in C: the longest cards (a thousand results) take a tenth of a second.
`on` and `yes` are text as YAML 1.2 says, `1e-3` is a number, dates stay text, keys are text, and
`<<` merges mappings because hand-written merge configs use it.
"""

import re
from dataclasses import dataclass, field

import yaml
from yaml import YAMLError, events

from kinbase.checkpoint.limits import LIMITS
from kinbase.errors import CheckpointError

MAX_CHARS = LIMITS.yaml_chars
"""The longest real card headers (a thousand evaluation results) are half of this."""
MAX_NODES = LIMITS.yaml_nodes
MAX_DEPTH = LIMITS.depth

_CORE_TAGS = {"tag:yaml.org,2002:" + kind for kind in ("str", "int", "float", "bool", "null", "map", "seq")}
_WORDS: dict[str, bool | None] = {
    **dict.fromkeys(["", "~", "null", "Null", "NULL"], None),
    **dict.fromkeys(["true", "True", "TRUE"], True),
    **dict.fromkeys(["false", "False", "FALSE"], False),
}
_INT = re.compile(r"[-+]?[0-9]{1,18}")
_BASED = re.compile(r"0o[0-7]{1,20}|0x[0-9a-fA-F]{1,15}")
_FLOAT = re.compile(
    r"[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)"
)
_SURROGATES = re.compile("[\ud800-\udfff]|\\\\u[dD][89a-fA-F][0-9a-fA-F]{2}")
"""Halves of characters, as they are or as JSON escapes them: libyaml refuses a document for one."""

_EVENTS = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
"""What scans: libyaml, or where PyYAML was built without it, its own copy of the same scanner."""


class _RefusedError(Exception):
    """Legal YAML that is not read here; the text says why."""


@dataclass(slots=True)
class _Node:
    """A collection being read: its value, its anchor, and what it costs to expand it."""

    value: dict[str, object] | list[object]
    anchor: str | None
    size: int = 1
    height: int = 1
    key: str | None = None
    merged: list[dict[str, object]] = field(default_factory=list)


def load(text: str, where: str) -> list[object]:
    """The documents in `text`; CheckpointError, one line beginning with `where`, if it is not safe YAML."""
    if len(text) > MAX_CHARS:
        raise CheckpointError(f"{where}: {len(text):,} characters of YAML; at most {MAX_CHARS:,} are read")
    try:
        return _documents(text)
    except _RefusedError as error:
        raise CheckpointError(f"{where}: YAML that is not read: {error}") from error
    except YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f" at line {mark.line + 1}" if mark else ""
        what = getattr(error, "problem", None) or "characters that YAML forbids"
        raise CheckpointError(f"{where}: not YAML: {' '.join(str(what).split())[:120]}{line}") from error
    except (
        ValueError,
        OverflowError,
        AssertionError,
        IndexError,
        KeyError,
        AttributeError,
        TypeError,
    ) as error:
        # Not the parser's own errors, but what it raises on some broken input.
        raise CheckpointError(f"{where}: not YAML: {type(error).__name__} in its parser") from error


def _documents(text: str) -> list[object]:
    building = _Building()
    for event in yaml.parse(_SURROGATES.sub("\ufffd", text), Loader=_EVENTS):
        building.take(event)
        if building.nodes > MAX_NODES:
            raise _RefusedError(f"more than {MAX_NODES:,} nodes once its aliases are expanded")
    return building.documents


class _Building:
    """The documents as far as their events have come."""

    def __init__(self) -> None:
        self.documents: list[object] = []
        self.nodes = 0
        self._anchors: dict[str, tuple[object, int, int]] = {}
        self._stack: list[_Node] = []

    def take(self, event: events.Event) -> None:
        """The next event. Raises _RefusedError for what no document of ours needs."""
        if isinstance(event, events.DocumentStartEvent):
            self._anchors.clear()
        elif isinstance(event, events.AliasEvent):
            if event.anchor not in self._anchors:
                raise _RefusedError(f"the alias *{event.anchor[:40]} names nothing that is complete")
            self._put(*self._anchors[event.anchor])
            self.nodes += self._anchors[event.anchor][1]
        elif isinstance(event, events.CollectionStartEvent):
            self._begin({} if isinstance(event, events.MappingStartEvent) else [], event)
        elif isinstance(event, events.CollectionEndEvent):
            self._end()
        elif isinstance(event, events.ScalarEvent):
            self._scalar(event)

    def _begin(self, value: "dict[str, object] | list[object]", event: events.CollectionStartEvent) -> None:
        _check_tag(event.tag)
        self._stack.append(_Node(value, event.anchor))
        self.nodes += 1
        if len(self._stack) > MAX_DEPTH:
            raise _RefusedError(f"deeper than {MAX_DEPTH} levels")

    def _end(self) -> None:
        node = self._stack.pop()
        if isinstance(node.value, dict) and node.merged:
            node.value = _merged(node.merged, node.value)
        if node.anchor:
            self._anchors[node.anchor] = (node.value, node.size, node.height)
        self._put(node.value, node.size, node.height)

    def _scalar(self, event: events.ScalarEvent) -> None:
        _check_tag(event.tag)
        top = self._stack[-1] if self._stack else None
        is_key = top is not None and isinstance(top.value, dict) and top.key is None
        plain = event.style in (None, "") and not event.tag
        value = _resolved(event.value) if plain and not is_key else event.value
        self.nodes += 1
        if event.anchor:
            self._anchors[event.anchor] = (value, 1, 0)
        self._put(value, 1, 0)

    def _put(self, value: object, size: int, height: int) -> None:
        """A whole value, into what is open: of so many nodes and levels."""
        if len(self._stack) + height > MAX_DEPTH:
            raise _RefusedError(f"deeper than {MAX_DEPTH} levels")
        if not self._stack:
            self.documents.append(value)
            return
        node = self._stack[-1]
        node.size += size
        node.height = max(node.height, height + 1)
        if isinstance(node.value, list):
            node.value.append(value)
        elif node.key is None:
            if isinstance(value, list | dict):
                raise _RefusedError("a mapping key that is a collection")
            node.key = str(value)
        else:
            if node.key == "<<" and _mappings(value):
                node.merged += _mappings(value)
            else:
                node.value[node.key] = value
            node.key = None


def _merged(others: list[dict[str, object]], own: dict[str, object]) -> dict[str, object]:
    """A mapping with what `<<` adds to it; of several the first wins. In time linear in their sizes."""
    result: dict[str, object] = {}
    for other in others:
        for key, value in other.items():
            result.setdefault(key, value)
    return {**result, **own}


def _check_tag(tag: object) -> None:
    """Nothing but the core types: a tag is how YAML names code."""
    if tag and str(tag) not in _CORE_TAGS and str(tag) != "!":
        raise _RefusedError(f"the tag {str(tag)[:60]!r}")


def _mappings(value: object) -> list[dict[str, object]]:
    """What `<<` merges: a mapping, or several of which the first wins; nothing otherwise."""
    several = value if isinstance(value, list) else [value]
    return [item for item in several if isinstance(item, dict)] if several else []


def _resolved(text: str) -> object:
    if text in _WORDS:
        return _WORDS[text]
    if _INT.fullmatch(text):
        return int(text)
    if _BASED.fullmatch(text):
        return int(text, 0)
    if _FLOAT.fullmatch(text):
        return float(text.lower().replace(".inf", "inf").replace(".nan", "nan"))
    return text
