"""Values out of files nobody vouches for, made into what the contract takes, or refused.

A name stays data whatever it looks like (markup and escapes are made harmless where names are
shown), but what no label can hold is refused: NUL, a line break, half a surrogate pair, and
U+FFFD, which stands for bytes that nobody could read. A number that is not one ("N/A", NaN,
infinity) is no value.
"""

import contextlib
import itertools
import math
import re
from collections.abc import Iterable, Iterator
from datetime import UTC, date, datetime
from pathlib import Path

from kinbase.checkpoint import Problem
from kinbase.checkpoint.files import opened, shown
from kinbase.checkpoint.ids import canonical, says_nothing
from kinbase.errors import CheckpointError

MAX_NAME = 1000
_NEVER_IN_A_NAME = re.compile("[\x00\n\r\x85\u2028\u2029\ufffd\ud800-\udfff]")
_NUMBER = re.compile(r"\s*([-+]?[0-9.]+(?:[eE][-+]?[0-9]+)?)\s*(?:%|±.*)?\s*")


def read_text(path: Path, limit: int) -> tuple[str, bool]:
    """The first `limit` bytes of a file as text, and whether that was all of it.

    Lines end in a line feed, whatever they end in there (Windows, old Macs). What is not UTF-8, or UTF-16 that says
    so, becomes U+FFFD: the YAML and JSON around it can still be read.
    """
    with opened(path) as file:
        try:
            data = file.read(limit + 1)
        except OSError as error:
            raise CheckpointError(f"cannot read {shown(path)}: {error.strerror}") from None
    return decoded(data[:limit]), len(data) <= limit


def decoded(data: bytes) -> str:
    """Text of a stranger's file, without byte order marks and with line feeds as the ends of lines."""
    encoding = "utf-16" if data.startswith((b"\xff\xfe", b"\xfe\xff")) else "utf-8"
    text = data.decode(encoding, errors="replace").lstrip("\ufeff")
    return text.replace("\r\n", "\n").replace("\r", "\n")


def head(source: str, length: int) -> bytes:
    """The first bytes of a regular file, for recognising it; none where there is no such file."""
    try:
        with opened(source) as file:
            return file.read(length)
    except (CheckpointError, OSError):
        return b""


def name(value: object, refused: list[str]) -> str | None:
    """`value` as a name; None when there is none, or when it had to be refused (said in `refused`)."""
    if value is None or value == "":
        return None
    if not isinstance(value, str):
        refused.append(f"{shown(value)} is not a name")
        return None
    value = value.strip()
    if _NEVER_IN_A_NAME.search(value) or len(value) > MAX_NAME:
        refused.append(f"{shown(value)} cannot be a name")
        return None
    return value or None


def model_id(value: object, refused: list[str]) -> str | None:
    """A model's name; all spellings of an id of the Hub are one, and null in words is none."""
    if says_nothing(value):
        return None
    label = name(value, refused)
    return canonical(label) if label else None


def number(value: object) -> float | None:
    """A finite number, from a number or its text ("71.2%" and "20.0 ± 1.2" too), or None."""
    if isinstance(value, str):
        text = _NUMBER.fullmatch(value[:100])
        value = text.group(1) if text else "nan"
    elif isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        result = float(value)
    except (ValueError, OverflowError):
        return None
    return result if math.isfinite(result) else None


def count(value: object, below: int = 2**53) -> int | None:
    """A whole number that is not negative and fits the database, or None."""
    result = number(value)
    return int(result) if result is not None and result == int(result) and 0 <= result < below else None


def shots(value: object) -> int | None:
    """A number of examples in the prompt: a count of this order, or None."""
    return count(value, 100_000)


def moment(value: object) -> datetime | None:
    """A time in UTC from seconds since 1970, a date, or ISO 8601 text; without a zone it is UTC."""
    with contextlib.suppress(ValueError, OverflowError, OSError):
        if isinstance(value, str):
            value = datetime.fromisoformat(value.strip())
        elif isinstance(value, int | float) and not isinstance(value, bool):
            return datetime.fromtimestamp(value, UTC) if value > 0 else None
        if isinstance(value, date) and not isinstance(value, datetime):
            value = datetime(value.year, value.month, value.day, tzinfo=UTC)
        if isinstance(value, datetime):
            return value.astimezone(UTC) if value.tzinfo else value.replace(tzinfo=UTC)
    return None


def problems(where: str, refused: Iterable[str]) -> Iterator[Problem]:
    """One Problem for all that was refused in a file: the first three in words, the rest counted."""
    every = list(dict.fromkeys(refused))
    if every:
        more = f"; and {len(every) - 3} more" if len(every) > 3 else ""
        yield Problem(f"{where}: left out: {'; '.join(itertools.islice(every, 3))}{more}")
