"""The command line: reads argv, calls the library, prints. `kinbase COMMAND --help` says the rest.

Exit codes: 0 done; 1 the request failed; 2 usage; 3 the database is locked, unreadable or of another
schema; 130 interrupted. Data goes to stdout, talk and progress to stderr. Everything heavy is imported
inside the commands.
"""

import contextlib
import sys

import click

from kinbase.cli import compare, config, correct, import_, infer, merge, plot, show
from kinbase.cli.edge import finish
from kinbase.cli.options import open_database


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--db", metavar="FILE", envvar="KINBASE_DB", default="kinbase.duckdb", show_default=True,
              help="The database; also $KINBASE_DB.")  # fmt: skip
@click.option(
    "--wait", metavar="SECONDS", default=60.0, show_default=True, help="How long a lock is waited for."
)
@click.option(
    "--width",
    metavar="COLUMNS",
    type=click.IntRange(20),
    help="Fit tables and pages; default: as wide as the terminal.",
)
@click.version_option(package_name="kinbase")
@click.pass_context
def cli(ctx: click.Context, db: str, wait: float, width: int | None) -> None:
    """A lineage database for neural-network checkpoints: what came from what, and how near they are."""
    ctx.obj = lambda: open_database(db, wait=wait)


for command in (
    import_.import_, import_.measure, import_.link, import_.unlink, show.ls, show.show, show.tree, show.kin, show.sql,
    infer.recipe, infer.check, infer.infer, infer.scan, infer.suggest, merge.merge, merge.evolve, plot.plot,
    correct.rm, correct.rename, correct.alias, correct.set_, correct.tag, correct.score, correct.log,
    correct.undo, compare.diff, compare.status, show.export, show.tui, config.config, import_.migrate,
    import_.repair, import_.demo,
):  # fmt: skip
    cli.add_command(command)


def _allow_many_files() -> None:
    """A family of hundreds of checkpoints is read at once; the usual limit of 1,024 open files is a soft one."""
    if sys.platform != "win32":
        import resource

        hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
        with contextlib.suppress(OSError, ValueError):  # some systems have a lower limit than they say
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def main() -> None:
    """Run the command line and exit with its code."""
    _allow_many_files()
    sys.exit(finish(lambda: cli.main(standalone_mode=False)))
