"""Fenced blocks of Markdown, found in one pass: a card of a megabyte of openings costs no more than one of text."""

import re
from collections.abc import Iterator
from dataclasses import dataclass

# A fence as CommonMark has it: three marks or more, closed by as many. Items of lists indent it, quotes set > before it.
_OPENS = re.compile(r"^(?P<lead>[ \t>]*)(?P<marks>`{3,}|~{3,})[ \t]*(?P<info>[^\n`]*)$")
_CLOSES = re.compile(r"^[ \t>]*(?P<marks>[`~]{3,})[ \t]*$")


@dataclass(frozen=True, slots=True)
class Block:
    """One fenced block: what stands behind its opening marks, its text, and where it lies in the body."""

    info: str
    text: str
    start: int
    end: int


def blocks(body: str) -> Iterator[Block]:
    """The blocks of a text whose lines end with line feeds; an opening that nothing closes is none."""
    lines = _lines(body)
    starts = [0]
    for line in lines:
        starts.append(starts[-1] + len(line))
    closers = [
        (number, found["marks"])
        for number, line in enumerate(lines)
        if (found := _CLOSES.match(line.rstrip("\n")))
    ]
    open_for_good: set[str] = set()
    number = at = 0
    while number < len(lines):
        line = lines[number].rstrip("\n")
        opening = _OPENS.match(line) if line.lstrip(" \t>")[:3] in ("```", "~~~") else None
        number += 1
        if opening is None or opening["marks"] in open_for_good:
            continue
        while at < len(closers) and closers[at][0] < number:
            at += 1
        close = _closing(closers, at, opening["marks"])
        if close is None:
            open_for_good.add(opening["marks"])
            continue
        text = "".join(_without_lead(each, opening["lead"]) for each in lines[number:close])
        yield Block(opening["info"], text, starts[number - 1], starts[close] + len(lines[close].rstrip("\n")))
        number = close + 1


def _closing(closers: list[tuple[int, str]], at: int, marks: str) -> int | None:
    """The first line from the closer `at` on that begins with these marks."""
    for i in range(at, len(closers)):
        if closers[i][1].startswith(marks):
            return closers[i][0]
    return None


def _without_lead(line: str, lead: str) -> str:
    """A line of a block without what stands before the block's marks: as many marks of quotes, and as much space."""
    for _ in range(lead.count(">")):
        line = re.sub(r"^[ \t]*>", "", line, count=1)
    space = len(lead) - len(lead.rstrip(" \t"))
    return line[min(space, len(line) - len(line.lstrip(" \t"))) :]


def _lines(body: str) -> list[str]:
    """Lines by line feeds alone: splitlines knows a dozen more ends."""
    return [line + "\n" for line in body.split("\n")]
