"""The command line: reads argv, calls the library, prints. `kinbase COMMAND --help` says the rest.

Exit codes: 0 done; 1 the request failed; 2 usage; 3 the database is locked, unreadable or of another
schema; 130 interrupted. Data goes to stdout, talk and progress to stderr. Everything heavy is imported
inside the commands.
"""

import contextlib
import os
import sys

import click

from kinbase.cli import (
    config as settings,
)
from kinbase.cli import (
    import_ as bringing,
)
from kinbase.cli import (
    infer as judging,
)
from kinbase.cli import (
    merge as making,
)
from kinbase.cli import (
    plot as plotting,
)
from kinbase.cli import (
    show as looking,
)
from kinbase.cli.options import open_database
from kinbase.errors import KinbaseError


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--db", metavar="FILE", envvar="KINBASE_DB", default="kinbase.duckdb", show_default=True,
              help="The database; also $KINBASE_DB.")  # fmt: skip
@click.option(
    "--wait", metavar="SECONDS", default=60.0, show_default=True, help="How long a lock is waited for."
)
@click.version_option(package_name="kinbase")
@click.pass_context
def cli(ctx: click.Context, db: str, wait: float) -> None:
    """A lineage database for neural-network checkpoints: what came from what, and how near they are."""
    ctx.obj = lambda: open_database(db, wait=wait)


for command in (
    bringing.import_, bringing.link, bringing.unlink, looking.ls, looking.show, looking.tree, looking.kin, looking.sql,
    judging.recipe, judging.check, judging.infer, judging.suggest, making.merge, making.evolve, plotting.plot,
    looking.export, looking.tui, settings.config, bringing.migrate, bringing.demo,
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
    try:
        cli.main(standalone_mode=False)
        sys.stdout.flush()
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except KinbaseError as error:
        sys.stdout.flush()
        from kinbase.text import safe

        sys.stderr.write(f"kinbase: {safe(error)}\n")
        sys.exit(error.exit_code)
    except (KeyboardInterrupt, click.Abort):
        sys.stderr.write("kinbase: interrupted\n")
        sys.exit(130)
    except BrokenPipeError:
        # The reader of a pipe has seen enough; Python must not flush into it again at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(0)
