"""The commands that say something of models, correct it, and take it back."""

import sys
from collections.abc import Callable
from typing import TYPE_CHECKING

import click

from kinbase.cli.options import Models, rows_out
from kinbase.cli.rows import format_of, write, write_frame
from kinbase.errors import KinbaseError, UsageError

if TYPE_CHECKING:
    from kinbase.database import Kinbase


@click.command()
@click.argument("models", nargs=-1, required=True, type=Models(), metavar="MODEL...")
@click.option("--yes", is_flag=True, help="Do not ask.")
@click.pass_obj
def rm(db: "Callable[[], Kinbase]", models: tuple[str, ...], yes: bool) -> None:
    """Remove MODELs from the database: what is stored of them, never their files. `undo` brings them back.

    A model that others were made from, or are measured against, stays as a name without weights.
    """
    from kinbase.cli.console import say
    from kinbase.text import safe

    base = db()
    standings = base.standings(models)
    if not yes:
        for standing in standings:
            if told := _hanging(standing.name, standing.children, standing.members, standing.copies):
                say(told)
        names = ", ".join(safe(s.name) for s in standings[:5]) + (", ..." if len(standings) > 5 else "")
        _ask(f"Remove {names} from {safe(base.store.path)}? No file is touched.", "nothing was removed")
    removed = base.rm([standing.name for standing in standings])
    for name in removed.gone:
        say(f"removed {name}")
    for name in removed.kept:
        say(f"removed {name}: its name stays, because others speak of it")
    if removed.orphans:
        say(f"and names that nothing speaks of any more: {', '.join(removed.orphans)}")


def _hanging(name: str, children: int, members: int, copies: tuple[str, ...]) -> str:
    parts = []
    if children:
        were = "model was made from it and goes" if children == 1 else "models were made from it and go"
        parts.append(f"{children} {were} on naming it")
    if members:
        parts.append(
            f"{members} {'is' if members == 1 else 'are'} measured against it: what is known stays, no more is measured "
            "without it"
        )
    if copies:
        parts.append(f"{', '.join(copies)} have its weights: import them again for kinship of their own")
    return f"{name}: {'; '.join(parts)}" if parts else ""


def _ask(question: str, otherwise: str) -> None:
    """Ask on a terminal; without one, `--yes` has to be said. Raises KinbaseError for a no."""
    if not sys.stdin.isatty():
        raise UsageError("this asks first: say --yes where there is no terminal")
    if not click.confirm(question, err=True):
        raise KinbaseError(otherwise)


@click.command()
@click.argument("model", type=Models())
@click.argument("name")
@click.option("--forget", is_flag=True, help="Do not keep the old name as an alias.")
@click.pass_obj
def rename(db: "Callable[[], Kinbase]", model: str, name: str, forget: bool) -> None:
    """Call MODEL NAME. The old name still leads to it."""
    from kinbase.cli.console import say

    old = db().rename(model, name, forget=forget)
    say(f"{old} is {name} now" + ("" if forget else f", and still answers to {old}"))


@click.command()
@click.argument("words", nargs=-1, required=True, type=Models(), metavar="MODEL NAME")
@click.option("--rm", "remove", is_flag=True, help="Forget NAME, which is all that is named then.")
@click.pass_obj
def alias(db: "Callable[[], Kinbase]", words: tuple[str, ...], remove: bool) -> None:
    """Give MODEL one more NAME. A model known by that name only becomes one with it."""
    from kinbase.cli.console import say

    if len(words) != (1 if remove else 2):
        raise UsageError("say `alias MODEL NAME`, or `alias --rm NAME`")
    if remove:
        say(f"{words[0]} is no name of {db().unalias(words[0])} any more")
    else:
        say(f"{words[1]} is a name of {db().alias(*words)} now")


@click.command("set")
@click.argument("model", type=Models())
@click.argument("facts", nargs=-1, required=True, metavar="KEY=VALUE...")
@click.pass_obj
def set_(db: "Callable[[], Kinbase]", model: str, facts: tuple[str, ...]) -> None:
    """Set license, created_at, architecture, relation or notes of MODEL; KEY= takes it back.

    What is set stays, whatever files that are imported later say.
    """
    from kinbase.cli.console import say

    told: dict[str, str] = {}
    for fact in facts:
        key, equals, value = fact.partition("=")
        if not equals:
            raise UsageError(f"{fact!r} sets nothing: write KEY=VALUE, as in license=mit")
        told[key] = value
    row = db().set(model, **told).row(0, named=True)
    say(
        f"{row['name']}: "
        + ", ".join(f"{key} is {row[key] if row[key] is not None else 'not set'}" for key in told)
    )


@click.command()
@click.argument("model", type=Models())
@click.argument("tags", nargs=-1, metavar="TAG...")
@click.option("--rm", "remove", is_flag=True, help="Take the TAGs, or all, from it.")
@click.pass_obj
def tag(db: "Callable[[], Kinbase]", model: str, tags: tuple[str, ...], remove: bool) -> None:
    """Tag MODEL: the view models has a list `tags`, and `tag:TAG` is a filter in the terminal UI."""
    from kinbase.cli.console import say

    if remove:
        say(f"{model} lost {', '.join(db().untag(model, tags))}")
        return
    if not tags:
        raise UsageError("name a tag, or more")
    say(f"{model} has {', '.join(db().tag(model, tags))}")


@click.command(context_settings={"ignore_unknown_options": True})
@click.argument("model", type=Models())
@click.argument("benchmark")
@click.argument("value", type=float)
@click.option(
    "--metric", metavar="NAME", help="What was measured; default: what it is measured by here, or acc."
)
@click.option("--n-shot", metavar="N", type=int, help="Examples shown before the question.")
@click.option("--date", metavar="DATE", help="When it was measured: 2026-01-31.")
@click.pass_obj
def score(
    db: "Callable[[], Kinbase]", model: str, benchmark: str, value: float, metric: str | None, n_shot: int | None,
    date: str | None,
) -> None:  # fmt: skip
    """Say what MODEL scores on BENCHMARK. Said again, it replaces what was said before."""
    from kinbase.cli.console import say

    test = db().score(model, benchmark, value, metric=metric, n_shot=n_shot, date=date).row(0, named=True)
    say(f"{test['model']}: {test['benchmark']} {test['metric']} is {value:g}")


@click.command()
@click.option(
    "-n", "limit", metavar="N", type=click.IntRange(1), default=30, show_default=True, help="The last N."
)
@rows_out
@click.pass_obj
def log(db: "Callable[[], Kinbase]", limit: int, form: str | None, output: str | None) -> None:
    """List what was said by hand and imported, newest first, with what it changed."""
    acts = db().log(limit)
    if format_of(form, output) != "table":
        write_frame(acts, form, output)
        return
    columns = ("act", "at", "verb", "said", "changed", "undo")
    rows = [(*row[:5], "" if row[5] else "no: use rm") for row in acts.iter_rows()]
    write(columns, rows, form, output)


@click.command()
@click.argument("number", type=click.IntRange(1), default=1, metavar="[N]")
@click.pass_obj
def undo(db: "Callable[[], Kinbase]", number: int) -> None:
    """Take back the last act that `log` lists, or the last N: all of them or none.

    Imports of weights are not undone, and skipped; `rm` takes their models out.
    """
    from kinbase.cli.console import say

    for line in db().undo(number):
        say(line)
