"""Rows and graphs to text, for people and for programs.

Names come from files nobody vouches for: `safe` stands between them and every terminal.
"""

import csv
import errno
import json
import math
import re
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import date, datetime
from io import StringIO
from itertools import chain, islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO
from unicodedata import category, east_asian_width

if TYPE_CHECKING:
    import networkx as nx


FORMATS = ("table", "csv", "json", "jsonl")
WIDTHS_FROM = 1000
"""Rows a table's column widths are taken from; later rows only stream."""

NARROWEST = 12
"""Characters that a column of a fitted table keeps."""

MERMAID = re.compile(r'["#&<>`*~]|(?<![^\W_])_|_(?![^\W_])|^[-+]|(?<=^\d)[.)]|(?<=^\d\d)[.)]')
"""What a Mermaid label must write as an entity: the end of the label, HTML, and what Markdown would read."""

Row = Sequence[Any]


def safe(text: object) -> str:
    """`text` with control, bidirectional and other invisible characters written as escapes."""
    text = str(text)
    if text.isprintable() and text.isascii():
        return text
    return "".join(
        character if category(character) not in ("Cc", "Cf", "Cs", "Co", "Zl", "Zp") else _escape(character)
        for character in text
    )


def _escape(character: str) -> str:
    code = ord(character)
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"


def write_rows(columns: Sequence[str], rows: Iterable[Row], form: str, out: TextIO | None = None) -> None:
    """Write rows as `form` (one of FORMATS), streaming: nothing is held but what widths are taken from."""
    out = out or sys.stdout
    # A terminal obeys what a name says to it; a file or a program gets the data as they are.
    shown = out.isatty()
    if form == "csv":
        writer = csv.writer(out, lineterminator="\n")
        tamed = _tamed if shown else _plain
        writer.writerow([tamed(column) for column in columns])
        writer.writerows([tamed(value) for value in row] for row in rows)
    elif form == "jsonl":
        for row in rows:
            out.write(_json(columns, row, shown) + "\n")
    elif form == "json":
        out.write("[")
        for number, row in enumerate(rows):
            out.write((",\n " if number else "\n ") + _json(columns, row, shown))
        out.write("\n]\n")
    else:
        _write_table(columns, rows, out)


def _write_table(columns: Sequence[str], rows: Iterable[Row], out: TextIO) -> None:
    stream = iter(rows)
    first = list(islice(stream, WIDTHS_FROM))
    right, places = layout(columns, first)
    cells = [texts_of(row, places) for row in first]
    heads = [safe(column) for column in columns]
    widths = [max(text_width(text) for text in column) for column in zip(heads, *cells, strict=True)]
    out.write(aligned(heads, widths, right) + "\n")
    out.write("  ".join("-" * width for width in widths) + "\n")
    for texts in chain(cells, (texts_of(row, places) for row in stream)):
        out.write(aligned(texts, widths, right) + "\n")


def layout(columns: Sequence[str], rows: Sequence[Row]) -> tuple[list[bool], list[int]]:
    """Which columns hold nothing but numbers, and stand at the right, and the decimals that each is shown with."""
    values = [[value for value in column if value is not None] for column in zip(*rows, strict=True)]
    right = [bool(column) and all(map(_is_number, column)) for column in values] or [False] * len(columns)
    return right, [decimals(column) if numbers else 4 for column, numbers in zip(values, right, strict=False)]


def texts_of(row: Row, places: Sequence[int], null: str = "") -> list[str]:
    """The cells of a row."""
    return [null if value is None else cell(value, number) for value, number in zip(row, places, strict=True)]


def aligned(texts: Sequence[str], widths: Sequence[int], right: Sequence[bool]) -> str:
    """One line of a table: cells in columns of `widths`, two blanks between them."""
    return "  ".join(
        " " * (width - text_width(t)) + t if is_right else t + " " * (width - text_width(t))
        for t, width, is_right in zip(texts, widths, right, strict=True)
    ).rstrip()


def fitted(widths: Sequence[int], fixed: Sequence[bool], fit: int, keys: int = 1) -> list[int]:
    """Widths of columns that take `fit` with two blanks between them: the widest that are not `fixed` give way first.

    The first `keys` tell the rows apart, and count as half as wide.

    None is made narrower than NARROWEST. A table of too many columns for that is wider, and goes in blocks: then those
    that are not fixed take no more than let each of `keys` stand beside another.
    """
    found = list(widths)
    least = sum(w if is_fixed else min(w, NARROWEST) for w, is_fixed in zip(widths, fixed, strict=True))
    if least + 2 * (len(found) - 1) > fit:
        share = max(NARROWEST, fit // (keys + 1) - 2)
        return [w if is_fixed else min(w, share) for w, is_fixed in zip(widths, fixed, strict=True)]
    movable = [i for i, is_fixed in enumerate(fixed) if not is_fixed and found[i] > NARROWEST]
    for _ in range(max(0, sum(found) + 2 * (len(found) - 1) - fit)):
        at = max(movable, key=lambda i: found[i] if i >= keys else found[i] / 2)
        found[at] -= 1
        if found[at] == NARROWEST:
            movable.remove(at)
    return found


def middle(text: str, width: int) -> str:
    """`text` cut in its middle to `width` columns: the ends of names tell more than their middles."""
    if text_width(text) <= width:
        return text
    left, right = text[: (width - 1) // 2 + (width - 1) % 2], text[len(text) - (width - 1) // 2 :]
    while text_width(left) + text_width(right) > width - 1:
        left, right = (left[:-1], right) if text_width(left) >= text_width(right) else (left, right[1:])
    return f"{left}…{right}"


def decimals(numbers: Iterable[int | float]) -> int:
    """Decimals a column is shown with: as few as tell its numbers apart from rounded ones, at most four."""
    return next((d for d in (1, 2, 3) if all(round(n, d) == n for n in numbers if math.isfinite(n))), 4)


def cell(value: Any, decimals: int = 4) -> str:
    """One value as a person reads it: floats with `decimals`, or in four digits far from 1; nothing for NULL."""
    if value is None:
        return ""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        if math.isnan(value) or math.isinf(value):
            return str(value)
        return f"{value:.{decimals}f}" if 1e-3 <= abs(value) < 1e6 or value == 0 else f"{value:.4g}"
    if isinstance(value, datetime):
        return value.strftime("%Y-%m-%d %H:%M")
    if isinstance(value, list):
        return ", ".join(cell(item) for item in value)
    return safe(value)


def count(number: int | None) -> str:
    """A number of parameters: 494.9M, 7.0B."""
    return "" if number is None else _prefixed(number, ("", "K", "M", "B", "T"))


def size(nbytes: int | float | None) -> str:
    """A number of bytes: 49.5 KB, 14.0 GB; powers of 1000, as disks and the Hub count."""
    return "" if nbytes is None else _prefixed(nbytes, (" B", " KB", " MB", " GB", " TB"))


def _prefixed(number: int | float, units: Sequence[str]) -> str:
    value, at = float(number), 0
    while abs(value) >= 999.95 and at < len(units) - 1:
        value, at = value / 1000, at + 1
    return f"{value:.1f}{units[at]}" if at else f"{value:g}{units[0]}"


def text_width(text: str) -> int:
    """The columns that a text takes on a terminal."""
    return (
        len(text)
        if text.isascii()
        else sum(2 if east_asian_width(c) in "WF" else category(c) != "Mn" for c in text)
    )


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _plain(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, dict):
        return {str(_plain(key)): _plain(item) for key, item in value.items()}
    if isinstance(value, datetime | date):
        return value.isoformat()
    if isinstance(value, bytes):
        return value.hex()
    return value


def _tamed(value: Any) -> Any:
    """`_plain`, with what a terminal would obey written as escapes."""
    plain = _plain(value)
    return plain if plain is None or isinstance(plain, int | float) else safe(plain)


def _json(columns: Sequence[str], row: Row, shown: bool = False) -> str:
    # NaN is not JSON; what JSON has no type for is written as text. Keys that are no texts become some.
    keys: dict[str, Any] = {}
    for column, value in zip(columns, row, strict=True):
        name, number = column, 1
        while name in keys:  # two columns of one name are two values
            number += 1
            name = f"{column}_{number}"
        keys[name] = _plain(value)
    text = json.dumps(keys, ensure_ascii=False, default=str)
    if shown and not (text.isascii() and text.isprintable()):
        # JSON has escapes of its own: what is read from a terminal is the same document.
        text = "".join(c if safe(c) == c else json.dumps(c)[1:-1] for c in text)
    return text


def family_tree(graph: "nx.DiGraph", *, upwards: bool = False) -> Iterator[str]:
    """Lines of a lineage graph (`kinbase.query.graph.around`) as trees; `upwards` has the children for roots.

    A model with several parents is drawn once, under the parent with the longest way down to it, and
    referred to under the others. Behind each name stands how it came from the model above it, and from
    which others. The base that a merge's deltas were taken against is not a parent, and only named.
    """
    from networkx import topological_generations

    shown = graph.copy()
    bases: dict[str, list[str]] = {}
    for node in graph:
        above = [parent for parent in graph.predecessors(node) if _is_base(graph, parent, node)]
        if len(above) < graph.in_degree(node):
            bases[node] = sorted(above)
            shown.remove_edges_from((parent, node) for parent in above)
    shown = shown.reverse(copy=True) if upwards else shown
    depth: dict[str, int] = {}
    for generation, nodes in enumerate(topological_generations(shown)):
        depth |= dict.fromkeys(nodes, generation)
    roots = sorted(node for node in shown if not shown.in_degree(node))
    home = {n: max(shown.predecessors(n), key=lambda p: (depth[p], p)) for n in shown if shown.in_degree(n)}
    # An explicit stack: a chain of claims may be longer than Python's recursion.
    todo: list[tuple[str, str | None, str, str]] = [(root, None, "", "") for root in reversed(roots)]
    while todo:
        node, parent, indent, branch = todo.pop()
        words = [_how(shown, parent, node)] if parent is not None else []
        elsewhere = parent is not None and home[node] != parent
        if elsewhere:
            words.append(f"(see under {safe(home[node])})")
        elif parent is not None and not upwards:
            others = sorted(p for p in shown.predecessors(node) if p != parent)
            words += (
                ["with " + ", ".join(f"{safe(p)} {_weight(shown, p, node)}".strip() for p in others)]
                if others
                else []
            )
            words += ["on " + ", ".join(map(safe, bases[node]))] if bases.get(node) else []
        yield f"{indent}{branch}{safe(node)}  {' '.join(words)}".rstrip()
        if not elsewhere:
            below = indent + {"": "", "├── ": "│   ", "└── ": "    "}[branch]
            children = sorted(shown.successors(node), reverse=True)
            todo += [(c, node, below, "└── " if c == children[0] else "├── ") for c in children]


def _claims(graph: "nx.DiGraph", parent: str, child: str) -> list[dict[str, Any]]:
    claims: list[dict[str, Any]] = graph.edges[parent, child]["claims"]
    return claims


def _is_base(graph: "nx.DiGraph", parent: str, child: str) -> bool:
    return all(claim["relation"] == "base" for claim in _claims(graph, parent, child))


def _how(graph: "nx.DiGraph", parent: str, child: str) -> str:
    claims = _claims(graph, parent, child)
    words = dict.fromkeys(
        safe(word) for c in claims for word in (c["relation"], c.get("method")) if word and word != "base"
    )
    return " ".join((*words, _weight(graph, parent, child))).strip()


def _weight(graph: "nx.DiGraph", parent: str, child: str) -> str:
    weights = dict.fromkeys(c["weight"] for c in _claims(graph, parent, child) if c.get("weight") is not None)
    return "/".join(f"{weight:g}" for weight in weights)


def dot(graph: "nx.DiGraph") -> Iterator[str]:
    """Lines of a lineage graph (`kinbase.query.graph.whole`) for Graphviz."""
    number = {name: f"n{i}" for i, name in enumerate(graph)}

    def quoted(text: str) -> str:
        text = re.sub(r"&(?=#?\w+;)", "&amp;", safe(text))  # Graphviz knows HTML's entities
        return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'

    yield "digraph lineage {"
    yield "  node [shape=box];"
    for name, node in number.items():
        yield f"  {node} [label={quoted(name)}];"
    for parent, child in graph.edges:
        style = ", style=dashed" if _is_base(graph, parent, child) else ""
        yield f"  {number[parent]} -> {number[child]} [label={quoted(_how(graph, parent, child))}{style}];"
    yield "}"


def mermaid(graph: "nx.DiGraph") -> Iterator[str]:
    """Lines of a lineage graph (`kinbase.query.graph.whole`) as a Mermaid flowchart."""
    number = {name: f"n{i}" for i, name in enumerate(graph)}

    def quoted(text: str) -> str:
        return '"' + MERMAID.sub(lambda found: f"#{ord(found[0])};", safe(text)) + '"'

    yield "flowchart TD"
    for name, node in number.items():
        yield f"  {node}[{quoted(name)}]"
    for parent, child in graph.edges:
        line = "-.->" if _is_base(graph, parent, child) else "-->"
        how = _how(graph, parent, child)
        yield f"  {number[parent]} {line}{f'|{quoted(how)}|' if how else ''} {number[child]}"


def table_lines(columns: Sequence[str], rows: Iterable[Row]) -> Iterator[str]:
    """The lines of rows as a table."""
    out = StringIO()
    write_rows(columns, rows, "table", out)
    yield from out.getvalue().splitlines()


@contextmanager
def made_whole(path: str | Path) -> Iterator[Path]:
    """Where a file is written first, beside its place; it is moved there when it is whole, and no half is left.

    Nothing lies there, nor a link that leads somewhere else. Raises OSError, also where the place is a device or a pipe.
    """
    if Path(path).exists() and not Path(path).is_file():
        raise OSError(errno.EEXIST, "it is no regular file", str(path))
    part = Path(f"{path}.part")
    part.unlink(missing_ok=True)
    try:
        yield part
        part.replace(path)
    finally:
        with suppress(OSError):
            part.unlink(missing_ok=True)


@contextmanager
def written(path: str) -> Iterator[TextIO]:
    """A text file that is there only when it is whole: written beside its place and moved there.

    A device or a pipe is written to as it is. Raises OSError, which names it, when there is no room, or no such folder.
    """
    if Path(path).exists() and not Path(path).is_file():
        try:
            with open(path, "w", encoding="utf-8", newline="") as out:
                yield out
        except OSError as error:
            raise OSError(error.errno, error.strerror or str(error), path) from None
        return
    try:
        with made_whole(path) as part, part.open("x", encoding="utf-8", newline="") as out:
            yield out
    except OSError as error:
        raise OSError(error.errno, error.strerror or str(error), path) from None
