"""The cells of a table as the contract wants them, and one line for all rows that had to be refused alike."""

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import polars as pl

from kinbase.checkpoint import Problem
from kinbase.checkpoint.tables import asked, model_ids
from kinbase.checkpoint.untrusted import count, moment, name, number, shots

_SAYS_NOTHING = ("", "n/a", "na", "nan", "none", "null", "-")
_SHOWN = 5
_REASONS = 20
"""Reasons that are told of one table; a stranger's can have one for each row."""


def is_empty(value: object) -> bool:
    """Whether a cell says nothing: empty, NaN, "N/A"."""
    if isinstance(value, str):
        return value.strip().lower() in _SAYS_NOTHING
    return value is None or value != value


def truth(value: object) -> bool | None:
    """A yes or no in words, or None."""
    word = str(value).strip().lower()
    return (
        True
        if word in ("true", "1", "1.0", "yes")
        else False
        if word in ("false", "0", "0.0", "no")
        else None
    )


_KINDS: dict[str, tuple[Callable[[Any], Any], Any]] = {
    "yes or no": (truth, pl.Boolean),
    "number": (number, pl.Float64),
    "date or time": (lambda value: (when := moment(value)) and when.replace(tzinfo=None), pl.Datetime("us")),
    "whole number": (count, pl.Int64),
    "number of examples": (shots, pl.Int64),
}
"""What a column can be of, as its refusal calls it: the rule for one value, and the dtype it gives."""


class Cells:
    """The cells of one table, a batch of its rows at a time.

    `frame` is the batch: `row` is the number of each row, counted from 1, and the other columns are as the file has
    them until one of the methods, all of which work on it, has made them what the contract takes.
    """

    def __init__(self, where: str) -> None:
        self.where = where
        self.rows = 0
        self.frame = pl.DataFrame()
        self._refused: dict[str, tuple[tuple[int, int], int, list[int]]] = {}
        self._asked = 0

    def of(self, batches: Iterable[pl.DataFrame]) -> Iterator["Cells"]:
        """This object for every batch, whose rows are counted on."""
        for batch in batches:
            self.frame = batch.with_row_index("row", self.rows + 1)
            self.rows += len(batch)
            yield self

    def refuse(self, mask: pl.Series | pl.Expr, reason: str) -> None:
        """Remember that rows, or a cell of each, were left out."""
        self._asked += 1
        numbers = self.frame.filter(mask)["row"]
        if len(numbers):
            first, known, shown = self._refused.get(reason, ((int(numbers[0]), self._asked), 0, []))
            shown = [*shown, *numbers.head(_SHOWN).to_list()][:_SHOWN]
            self._refused[reason] = (first, known + len(numbers), shown)

    def drop(self, mask: pl.Series | pl.Expr, reason: str | None = None) -> None:
        """Leave rows out; those that say something wrong with their reason."""
        if reason is not None:
            self.refuse(mask, reason)
        self.frame = self.frame.remove(mask)

    def problems(self) -> Iterator[Problem]:
        """One line for the table: the rows by reason, in the order in which they were met."""
        parts = []
        for reason, (_, number_of, shown) in sorted(self._refused.items(), key=lambda item: item[1][0])[
            :_REASONS
        ]:
            more = f" and {number_of - _SHOWN} more" if number_of > _SHOWN else ""
            parts.append(f"row{'s' * (number_of > 1)} {', '.join(map(str, shown))}{more}: {reason}")
        if len(self._refused) > _REASONS:
            parts.append(f"and {len(self._refused) - _REASONS} more reasons")
        if parts:
            yield Problem(f"{self.where}: {'; '.join(parts)}")

    def has(self, column: str) -> bool:
        """Whether the table has a column."""
        return column in self.frame.columns

    def names(self, *columns: str) -> None:
        """The models that rows must name; a row that lacks one is left out."""
        for column in columns:
            labels = model_ids(self.frame[column])
            self.frame = self.frame.with_columns(labels)
            self.drop(labels.is_null(), f"no {column} that can be a name, left out")

    def texts(self, *columns: str) -> None:
        """Columns of text; a cell that no label can hold is left out."""
        for column in columns:
            if self.has(column):
                self._convert(
                    column, _text, pl.String, f"a {column} with a line break, NUL or too long, left out"
                )

    def values(self, kind: str, *columns: str) -> None:
        """Columns of one of the kinds that have a rule; a cell that is not of it is left out."""
        rule, dtype = _KINDS[kind]
        for column in columns:
            if self.has(column):
                self._convert(column, rule, dtype, f"{column} is no {kind}, cell left out")

    def number(self, column: str) -> None:
        """A column of numbers where what is none is the row's fault: nothing is said of the cell."""
        self.frame = self.frame.with_columns(asked(self.frame[column], number, pl.Float64))

    def _convert(self, column: str, rule: Callable[[Any], Any], dtype: Any, reason: str) -> None:
        """Put what a rule makes of a column in its place, and refuse what says something that is nothing by the rule."""
        cells = self.frame[column]
        said = asked(cells, lambda cell: None if is_empty(cell) else rule(cell), dtype)
        lacking = said.is_null() & cells.is_not_null()
        self.frame = self.frame.with_columns(said)
        if lacking.any():
            self.refuse(lacking & ~asked(cells, is_empty, pl.Boolean), reason)


def _text(value: object) -> str | None:
    return name(value if isinstance(value, str) else str(value), [])
