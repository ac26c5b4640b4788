"""What several commands take: a model's name, the form of the rows, the device."""

import os
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import click

from kinbase.errors import KinbaseError

if TYPE_CHECKING:
    from kinbase.database import Kinbase


class Models(click.ParamType[str]):
    """A model's name, completed from the database."""

    name = "model"

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> list[Any]:
        from click.shell_completion import CompletionItem

        root = ctx.find_root()
        path = root.params.get("db") or os.environ.get("KINBASE_DB") or "kinbase.duckdb"
        try:
            return [
                CompletionItem(n) for n in open_database(path, wait=0.5).names() if n.startswith(incomplete)
            ]
        except KinbaseError:
            return []


def open_database(path: str, *, wait: float) -> "Kinbase":
    from kinbase.cli.console import say
    from kinbase.database import Kinbase

    return Kinbase(path, wait=wait, log=say)


def _keep_wide(ctx: click.Context, param: click.Parameter, value: bool) -> None:
    ctx.meta["wide"] = value


def rows_out(command: Callable[..., None]) -> Callable[..., None]:
    """Options of a command that prints rows."""
    command = click.option(
        "--wide",
        is_flag=True,
        expose_value=False,
        callback=_keep_wide,
        help="Do not fit a table to the terminal.",
    )(command)
    command = click.option(
        "-o", "--output", metavar="FILE", type=click.Path(dir_okay=False), help="Write to FILE."
    )(command)
    return click.option("-f", "--format", "form", type=click.Choice(["table", "csv", "json", "jsonl", "parquet"]),
                        default=None, help="Default: table, or what FILE's ending says.")(command)  # fmt: skip


device_option = click.option("--device", type=click.Choice(["auto", "cpu", "cuda", "mps"]), default="auto", show_default=True,
                             help="Where kinship is computed.")  # fmt: skip


def elsewhere_options(command: Callable[..., None]) -> Callable[..., None]:
    """Options of how much is read of what lies elsewhere, and of whose relatives come with it."""
    for option in reversed((
        click.option("--sample", metavar="F", type=float,
                     help="Estimate kinship from the share F of the bytes (0.001 to 0.01), read here and there."),
        click.option("--stderr", metavar="S", type=float, help="Stop a sample when every estimate is this sure."),
        click.option("--stream", is_flag=True, help="Read weights elsewhere without keeping the files."),
        click.option("--children", is_flag=True, help="And the models made from it, as metadata (or as --sample, --stream say)."),
        click.option("--parents", is_flag=True, help="And the models it was made from, likewise."),
        click.option("--depth", metavar="N", default=1, show_default=True, help="So many generations of relatives."),
        click.option("--limit", metavar="N", default=1000, show_default=True, help="At most so many relatives."),
        click.option("--relation", "relations", metavar="NAME", multiple=True,
                     help="Only these relatives: finetune, adapter, merge, quantized."),
    )):  # fmt: skip
        command = option(command)
    return command
