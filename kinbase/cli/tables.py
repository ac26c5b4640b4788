"""Tables no wider than a terminal: names cut in their middles, sentences on lines of their own, columns in blocks."""

from collections.abc import Iterator, Sequence
from datetime import datetime

from kinbase.text import Row, aligned, fitted, layout, middle, safe, text_width, texts_of

NULL = "·"
"""What a fitted table shows for a value that is not there, which is not an empty text."""

SENTENCE = 4
"""Words from which on a text is read as a sentence, which is never cut."""

KEYS = 3
"""Columns at most that each block of a table begins with."""


def fitted_table(columns: Sequence[str], rows: Sequence[Row], fit: int) -> Iterator[str]:
    """The lines of a table of at most `fit` characters.

    Where it is wider, columns that hold sentences go beneath their rows, the longest first, and are wrapped; then the
    longest names are cut in their middles; what still does not fit goes in blocks of columns, each of which begins with
    the columns that tell the rows apart.
    """
    right, places = layout(columns, rows)
    heads = [safe(column) for column in columns]
    cells = [texts_of(row, places, NULL) for row in rows]
    widths = [max(map(text_width, column)) for column in zip(heads, *cells, strict=True)]
    keys = _keys(cells, len(heads))
    below = _sentences(cells, widths, right, fit, keys)
    beside = [i for i in range(len(heads)) if i not in below]
    fixed = [
        right[i] or all(isinstance(row[i], datetime | bool) for row in rows if row[i] is not None)
        for i in beside
    ]
    for i, width in zip(beside, fitted([widths[i] for i in beside], fixed, fit, keys), strict=True):
        widths[i] = width
    blocks = blocks_of([widths[i] for i in beside], fit, keys)
    for number, block in enumerate(blocks):
        shown = [beside[i] for i in block]
        under = below if number == len(blocks) - 1 else []
        if number:
            yield ""
        yield _line(heads, shown, widths, right)
        if len(under) == 1:
            yield f"  {heads[under[0]]}"
        yield "  ".join("-" * widths[i] for i in shown)
        for texts in cells:
            yield _line(texts, shown, widths, right)
            yield from _beneath(heads, texts, under, fit)


def _line(texts: Sequence[str], shown: Sequence[int], widths: Sequence[int], right: Sequence[bool]) -> str:
    return aligned(
        [texts[i] if right[i] else middle(texts[i], widths[i]) for i in shown],
        [widths[i] for i in shown],
        [right[i] for i in shown],
    )


def _beneath(heads: Sequence[str], texts: Sequence[str], columns: Sequence[int], fit: int) -> Iterator[str]:
    """The texts of `columns` on lines of their own, with their names where there are several."""
    label = max((text_width(heads[i]) for i in columns), default=0) + 2 if len(columns) > 1 else 0
    for i in columns:
        if texts[i] not in ("", NULL):
            head = f"  {heads[i]:<{label}}" if label else "  "
            yield from wrapped(texts[i], fit, head, " " * len(head))


def wrapped(text: str, fit: int, first: str = "", later: str = "") -> Iterator[str]:
    """Lines of at most `fit` characters, broken at blanks alone, so that a path stays whole; `first` and `later` begin them."""
    line, used = first, text_width(first)
    is_empty = True
    for word in text.split(" "):
        width = text_width(word)
        if not is_empty and used + 1 + width > fit:
            yield line.rstrip()
            line, used, is_empty = later, text_width(later), True
        line += word if is_empty else f" {word}"
        used += width if is_empty else 1 + width
        is_empty = False
    yield line.rstrip()


def _sentences(
    cells: Sequence[Sequence[str]], widths: Sequence[int], right: Sequence[bool], fit: int, keys: int
) -> list[int]:
    """The columns that go beneath their rows, so that the others fit side by side: none where all do, and never a key."""
    found: list[int] = []
    known = [
        i
        for i in range(keys, len(widths))
        if not right[i] and any(len(texts[i].split()) >= SENTENCE for texts in cells)
    ]
    for i in sorted(known, key=lambda i: -widths[i]):
        beside = [width for j, width in enumerate(widths) if j not in found]
        if sum(beside) + 2 * (len(beside) - 1) <= fit:
            break
        found.append(i)
    return sorted(found)


def _keys(cells: Sequence[Sequence[str]], number: int) -> int:
    """How many of the first columns, of `number`, tell the rows apart; one where not even KEYS of them do."""
    for keys in range(1, min(KEYS, number) + 1):
        if len({tuple(texts[:keys]) for texts in cells}) == len(cells):
            return keys
    return 1


def blocks_of(widths: Sequence[int], fit: int, keys: int = 1) -> list[list[int]]:
    """Columns, by their numbers, in blocks no wider than `fit`, where one column allows it; each begins with the first `keys`."""
    blocks: list[list[int]] = [[]]
    used = 0
    for i, width in enumerate(widths):
        if len(blocks[-1]) > keys and used + 2 + width > fit:
            blocks.append(list(range(keys)))
            used = sum(widths[:keys]) + 2 * (keys - 1)
        used += width + 2 * bool(blocks[-1])
        blocks[-1].append(i)
    return blocks
