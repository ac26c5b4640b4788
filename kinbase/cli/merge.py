"""The commands that make new models."""

from collections.abc import Callable
from typing import TYPE_CHECKING

import click

from kinbase.cli.options import device_option, rows_out
from kinbase.cli.rows import write_frame
from kinbase.errors import UsageError

if TYPE_CHECKING:
    from kinbase.database import Kinbase


@click.command()
@click.argument("config", type=click.Path(dir_okay=False))
@click.argument("out", type=click.Path())
@click.option("--name", metavar="NAME", help="Call the model NAME, not after its folder.")
@click.option(
    "--backend", type=click.Choice(["kinbase", "mergekit"]), default="kinbase", show_default=True,
    help="mergekit (an extra) does the methods that are not built in.",
)  # fmt: skip
@click.option(
    "--seed",
    metavar="N",
    type=click.IntRange(0, 2**32 - 1),
    default=0,
    show_default=True,
    help="Of random masks.",
)
@device_option
@click.option(
    "--align", is_flag=True, help="Put the parents' units into one order first (docs/alignment.md)."
)
@click.option(
    "--alignment", "alignments", metavar="FILE", multiple=True, type=click.Path(dir_okay=False, exists=True),
    help="An order that `kinbase kin --aligned --save` found; it implies --align.",
)  # fmt: skip
@click.option("--no-import", is_flag=True, help="Write the folder and leave the database as it is.")
@click.pass_obj
def merge(
    db: "Callable[[], Kinbase]",
    config: str,
    out: str,
    name: str | None,
    backend: str,
    seed: int,
    device: str,
    align: bool,
    alignments: tuple[str, ...],
    no_import: bool,
) -> None:
    """Merge models as CONFIG (mergekit's YAML) says into the new checkpoint folder OUT, and import it.

    In place of CONFIG, MODEL+ADAPTER merges a LoRA adapter into its model. Models are folders, or names in the
    database. Built in are linear, slerp, task_arithmetic, ties, dare_linear and dare_ties, with gradients and filters.
    With --align, models whose MLP units, heads or channels lie in another order than the base's, or the first model's, are
    put into that order as they are read (Git Re-Basin). Nothing is left of a merge that fails or is interrupted.
    """
    from kinbase.cli.console import progress, say

    with progress("merging") as report:
        (row,) = db().merge(config, out, name=name, backend=backend, seed=seed, device=device, import_=not no_import,
                            align=alignments or align, report=report).to_dicts()  # fmt: skip
    against = f" against {row['base']}" if row["base"] else ""
    say(f"merged into {out}" + (f", imported as {row['model']}{against}" if row["model"] else ""))
    for note in row["notes"]:
        say(f"  {note}")


@click.command()
@click.argument("config", required=False, type=click.Path(dir_okay=False))
@click.option("--resume", metavar="RUN", help="Go on with a run that was stopped, killed or failed.")
@click.option(
    "--trust", is_flag=True, help="Resume RUN though it was not begun on this machine: what it names is run."
)
@click.option("--name", metavar="NAME", help="Call the run NAME, not as CONFIG or its file is called.")
@click.option("--dry-run", is_flag=True, help="Print the first generation's plan and do nothing.")
@rows_out
@click.pass_obj
def evolve(
    db: "Callable[[], Kinbase]", config: str | None, resume: str | None, trust: bool, name: str | None, dry_run: bool,
    form: str | None, output: str | None,
) -> None:  # fmt: skip
    """Merge models over generations as CONFIG (YAML) says: choose parents, merge, import, evaluate, judge.

    Every choice and its reason is a row (views runs, generations, offspring). A run can be killed at any time
    and resumed: nothing that was finished is done again. CONFIG may name programs, which are run: do not run a
    stranger's. docs/evolution.md lists its keys.
    """
    from kinbase.cli.console import progress, say

    if (config is None) == (resume is None) or (resume and (name or dry_run)) or (config and trust):
        raise UsageError(
            "name a CONFIG (with --name or --dry-run, if you like), or a run with --resume (and --trust)"
        )
    base = db()
    if dry_run:
        assert config is not None
        plan = base.first_generation(config, name=name, tell=say)
        write_frame(plan, form, output)
        return
    with progress("working") as report:
        generations = base.evolve(config, name=name, resume=resume, trust=trust, tell=say, report=report)
    columns = (
        "generation",
        "children",
        "scored",
        "best",
        "best_score",
        "best_so_far",
        "top_kinship",
        "reason",
    )
    write_frame(
        generations.select(columns) if (form or "table") == "table" and not output else generations,
        form,
        output,
    )
