"""The command line: reads argv, calls the library, prints. `kinbase COMMAND --help` says the rest.

Exit codes: 0 done; 1 the request failed; 2 usage; 3 the database is locked, unreadable or of another
schema; 130 interrupted. Data goes to stdout, talk and progress to stderr. Everything heavy is imported
inside the commands.
"""

import contextlib
import os
import sys
from collections.abc import Callable

import click

from kinbase.cli import (
    compare as comparing,
)
from kinbase.cli import (
    config as settings,
)
from kinbase.cli import (
    correct as correcting,
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
    correcting.rm, correcting.rename, correcting.alias, correcting.set_, correcting.tag, correcting.score, correcting.log,
    correcting.undo, comparing.diff, comparing.status, looking.export, looking.tui, settings.config, bringing.migrate,
    bringing.repair, bringing.demo,
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


def finish(call: Callable[[], object]) -> int:
    """Call, tell in a line what went wrong, and return the exit code."""
    try:
        try:
            call()
            sys.stdout.flush()
        except KinbaseError as error:
            from kinbase.text import safe

            sys.stdout.flush()
            sys.stderr.write(f"kinbase: {safe(error)}\n")
            return error.exit_code
    except click.ClickException as error:
        error.show()
        return error.exit_code
    except (KeyboardInterrupt, click.Abort):
        sys.stderr.write("kinbase: interrupted\n")
        return 130
    except BrokenPipeError:
        # The reader of a pipe has seen enough.
        _abandon_output()
        return 0
    except OSError as error:
        from kinbase.text import safe

        where = (
            f"{error.filename} cannot be read or written"
            if error.filename
            else "the output cannot be written"
        )
        sys.stderr.write(f"kinbase: {safe(where)}: {(error.strerror or str(error)).lower()}\n")
        _abandon_output()
        return 1
    return 0


def _abandon_output() -> None:
    """Keep Python from flushing once more, at exit, into what takes nothing."""
    with contextlib.suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
