"""A command's rows, in the form that was asked for: to stdout or to a file."""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from kinbase.cli import terminal
from kinbase.errors import UsageError

if TYPE_CHECKING:
    import polars as pl


def format_of(form: str | None, output: str | None) -> str:
    if form:
        return form
    ending = (output or "").rpartition(".")[2]
    return ending if ending in ("csv", "json", "jsonl", "parquet") else "table"


def parquet_path(output: str | None) -> str:
    if not output:
        raise UsageError("parquet is not for the terminal: name a file with -o")
    return output


def write_frame(frame: "pl.DataFrame", form: str | None, output: str | None) -> None:
    if format_of(form, output) == "parquet":
        from kinbase.text import made_whole

        with made_whole(parquet_path(output)) as part:
            frame.write_parquet(part)
        return
    write(frame.columns, frame.iter_rows(), form, output)


def write(
    columns: Sequence[str],
    rows: Any,
    form: str | None,
    output: str | None,
    *,
    on_answer: Callable[[], None] = lambda: None,
) -> None:
    """Write rows; `on_answer` hears when the last was taken that is shown on a terminal, before a person reads them."""
    from kinbase.text import made_whole, write_rows, written

    form = format_of(form, output)
    if form == "parquet":
        import polars as pl

        with made_whole(parquet_path(output)) as part:
            pl.DataFrame(list(rows), schema=list(columns), orient="row").write_parquet(part)
    elif output:
        with written(output) as out:
            write_rows(columns, rows, form, out)
    elif form == "table" and terminal.is_read():
        text = terminal.table(columns, rows)
        on_answer()
        terminal.show(text)
    else:
        write_rows(columns, rows, form)
