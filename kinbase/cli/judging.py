"""The commands that draw conclusions from what the database holds."""

from collections.abc import Callable
from typing import TYPE_CHECKING

import click

from kinbase.cli.options import Models, rows_out
from kinbase.cli.rows import write_frame

if TYPE_CHECKING:
    from kinbase.database import Kinbase


@click.command()
@click.argument("models", nargs=-1, type=Models(), metavar="[MODEL...]")
@click.option(
    "--tolerance", metavar="T", default=0.02, show_default=True, help="What rounding explains, in percent."
)
@rows_out
@click.pass_obj
def check(
    db: "Callable[[], Kinbase]", models: tuple[str, ...], tolerance: float, form: str | None, output: str | None
) -> None:  # fmt: skip
    """Hold what is claimed of the MODELs, or of all, against what it follows from.

    Printed averages and merge gains are recomputed from their scores, licences and ages compared along the
    lineage, circles and bare names told. A verdict is contradicted, undecidable (what would decide it is not
    here) or supported; the exit code is 0 whatever they are.
    """
    write_frame(db().check(models, tolerance=tolerance), form, output)
