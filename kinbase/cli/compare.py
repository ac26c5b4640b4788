"""The commands that compare: two models, and what is stored with what lies on the disk."""

from collections import Counter
from collections.abc import Callable
from typing import TYPE_CHECKING

import click

from kinbase.cli.options import Models, rows_out
from kinbase.cli.rows import format_of, write, write_frame

if TYPE_CHECKING:
    from kinbase.database import Kinbase


@click.command()
@click.argument("a", type=Models(), metavar="A")
@click.argument("b", type=Models(), metavar="B")
@click.option("--stat", is_flag=True, help="Count: tensors by layer, the rest by part.")
@click.option("--all", "everything", is_flag=True, help="List equal tensors and files too.")
@rows_out
@click.pass_obj
def diff(
    db: "Callable[[], Kinbase]", a: str, b: str, stat: bool, everything: bool, form: str | None, output: str | None
) -> None:  # fmt: skip
    """What differs between A and B: facts, parents, scores, configuration, tokenizer files, tensors.

    A and B are models of the database, or folders that need not be in it. Of a changed tensor, `relative` is
    |B - A| / |A|, `max_abs` the largest change of an element and `changed` the share of elements that differ.
    """
    from kinbase.cli.console import progress, say

    with progress("comparing") as report:
        rows, notes = db().diff(a, b, stat=stat, report=report)
    for note in notes:
        say(note)
    if stat:
        write_frame(rows, form, output)
        return
    equal = int((rows["difference"] == "equal").sum())
    shown = rows if everything else rows.filter(rows["difference"] != "equal")
    if format_of(form, output) == "table":
        columns = ["part", "item", "difference", "a", "b", "relative", "max_abs", "changed"]
        write(columns, shown.select(columns).iter_rows(), form, output)
    else:
        write_frame(shown, form, output)
    if not shown.height:
        say(f"no difference was found between {a} and {b}")
    elif equal and not everything:
        say(f"and {equal} tensors and files are equal: --all lists them")


@click.command()
@click.option(
    "--relocate",
    metavar="FOLDER",
    type=click.Path(file_okay=False),
    help="Find what is gone or changed under FOLDER, by its content.",
)
@rows_out
@click.pass_obj
def status(db: "Callable[[], Kinbase]", relocate: str | None, form: str | None, output: str | None) -> None:
    """Where the files of the models are: there, moved, changed, gone, elsewhere; and what has to be measured again."""
    from kinbase.cli.console import progress, say

    with progress("searching") as report:
        found = db().status(relocate, report=report, log=say)
    write_frame(found, form, output)
    counts = Counter(found["state"].to_list())
    say(", ".join(f"{number} {state}" for state, number in counts.items()) or "no model has weights here")
