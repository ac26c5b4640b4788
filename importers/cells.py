"""The cells of a table as the contract wants them, and one line for all rows that had to be refused alike."""

from collections.abc import Callable, Iterable, Iterator
from datetime import datetime
from typing import TypeVar

from kinbase.checkpoint import Problem
from kinbase.checkpoint.untrusted import count, model_id, moment, name, number, shots

Value = TypeVar("Value")

_SAYS_NOTHING = ("", "n/a", "na", "nan", "none", "null", "-")
_SHOWN = 5


def is_empty(value: object) -> bool:
    """Whether a cell says nothing: empty, NaN, "N/A"."""
    if isinstance(value, str):
        return value.strip().lower() in _SAYS_NOTHING
    return value is None or value != value


def _truth(value: object) -> bool | None:
    word = str(value).strip().lower()
    return (
        True
        if word in ("true", "1", "1.0", "yes")
        else False
        if word in ("false", "0", "0.0", "no")
        else None
    )


class Rows:
    """Cells of one table as the contract wants them, and the rows refused, by reason."""

    def __init__(self, where: str) -> None:
        self.where = where
        self.row = 0
        self._refused: dict[str, list[int]] = {}

    def of(self, rows: Iterable[dict[str, object]]) -> Iterator[dict[str, object]]:
        """Each row, remembering its number: counted from 1, the header not counted."""
        for self.row, row in enumerate(rows, start=1):
            yield row

    def refuse(self, reason: str) -> None:
        """Remember that the current row, or a cell of it, was left out."""
        self._refused.setdefault(reason, []).append(self.row)

    def problems(self) -> Iterator[Problem]:
        """One line for the table: the rows by reason."""
        parts = []
        for reason, numbers in self._refused.items():
            numbers = sorted(set(numbers))
            listed = ", ".join(map(str, numbers[:_SHOWN]))
            more = f" and {len(numbers) - _SHOWN} more" if len(numbers) > _SHOWN else ""
            parts.append(f"row{'s' * (len(numbers) > 1)} {listed}{more}: {reason}")
        if parts:
            yield Problem(f"{self.where}: {'; '.join(parts)}")

    def text(self, row: dict[str, object], column: str) -> str | None:
        """A text cell, or None where it says nothing."""
        value = row.get(column)
        if is_empty(value):
            return None
        refused: list[str] = []
        result = name(value if isinstance(value, str) else str(value), refused)
        if refused:
            self.refuse(f"a {column} with a line break, NUL or too long, left out")
        return result

    def names(self, row: dict[str, object], *columns: str) -> list[str] | None:
        """The required names of a row; None, refused, if one is missing."""
        found = []
        for column in columns:
            value = row.get(column)
            label = model_id(value if isinstance(value, str) else None if value is None else str(value), [])
            if label is None:
                self.refuse(f"no {column} that can be a name, left out")
                return None
            found.append(label)
        return found

    def truth_in(self, row: dict[str, object], column: str) -> bool | None:
        """A yes or no, likewise."""
        return self._converted(row, column, _truth, "yes or no")

    def number_in(self, row: dict[str, object], column: str) -> float | None:
        """A number, or None where the cell says nothing; other text is refused."""
        return self._converted(row, column, number, "number")

    def moment_in(self, row: dict[str, object], column: str) -> datetime | None:
        """A time in UTC, likewise."""
        return self._converted(row, column, moment, "date or time")

    def count_in(self, row: dict[str, object], column: str) -> int | None:
        """A whole number, likewise."""
        return self._converted(row, column, count, "whole number")

    def shots_in(self, row: dict[str, object], column: str) -> int | None:
        """A number of examples in the prompt, likewise."""
        return self._converted(row, column, shots, "number of examples")

    def _converted(
        self, row: dict[str, object], column: str, convert: Callable[[object], Value | None], what: str
    ) -> Value | None:
        value = row.get(column)
        if is_empty(value):
            return None
        result = convert(value)
        if result is None:
            self.refuse(f"{column} is no {what}, cell left out")
        return result
