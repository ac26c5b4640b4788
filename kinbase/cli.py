"""The command line: reads argv, calls the library, prints. `kinbase COMMAND --help` says the rest.

Exit codes: 0 done; 1 the request failed; 2 usage; 3 the database is locked, unreadable or of another
schema; 130 interrupted. Data goes to stdout, talk and progress to stderr. Everything heavy is imported
inside the commands.
"""

import contextlib
import os
import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import click

from kinbase.errors import KinbaseError, UsageError

if TYPE_CHECKING:
    import polars as pl

    from kinbase.database import Kinbase

METRICS = ("pcc", "cs", "ed")


class Models(click.ParamType[str]):
    """A model's name, completed from the database."""

    name = "model"

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> list[Any]:
        from click.shell_completion import CompletionItem

        root = ctx.find_root()
        path = root.params.get("db") or os.environ.get("KINBASE_DB") or "kinbase.duckdb"
        try:
            return [CompletionItem(n) for n in _database(path, wait=0.5).names() if n.startswith(incomplete)]
        except KinbaseError:
            return []


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--db", metavar="FILE", envvar="KINBASE_DB", default="kinbase.duckdb", show_default=True,
              help="The database; also $KINBASE_DB.")  # fmt: skip
@click.option(
    "--wait", metavar="SECONDS", default=10.0, show_default=True, help="How long a lock is waited for."
)
@click.version_option(package_name="kinbase")
@click.pass_context
def cli(ctx: click.Context, db: str, wait: float) -> None:
    """A lineage database for neural-network checkpoints: what came from what, and how near they are."""
    ctx.obj = lambda: _database(db, wait=wait)


def _database(path: str, *, wait: float) -> "Kinbase":
    from kinbase.database import Kinbase

    return Kinbase(path, wait=wait)


def rows_out(command: Callable[..., None]) -> Callable[..., None]:
    """Options of a command that prints rows."""
    command = click.option(
        "-o", "--output", metavar="FILE", type=click.Path(dir_okay=False), help="Write to FILE."
    )(command)
    return click.option("-f", "--format", "form", type=click.Choice(["table", "csv", "json", "jsonl", "parquet"]),
                        default=None, help="Default: table, or what FILE's ending says.")(command)  # fmt: skip


device_option = click.option("--device", type=click.Choice(["auto", "cpu", "cuda", "mps"]), default="auto", show_default=True,
                             help="Where kinship is computed.")  # fmt: skip


@cli.command("import")
@click.argument("sources", nargs=-1, required=True, metavar="SOURCE...")
@click.option("--base", metavar="MODEL", help="What the family was tuned from: a model or a source.")
@click.option("--name", metavar="NAME", help="Call the model NAME, not after its folder.")
@device_option
@click.option("--metadata-only", is_flag=True, help="Read everything but the weights.")
@click.option(
    "--no-kinship", is_flag=True, help="Read weights for their identity only; `kin` measures later."
)
@click.pass_obj
def import_(
    db: "Callable[[], Kinbase]", sources: tuple[str, ...], base: str | None, name: str | None, device: str,
    metadata_only: bool, no_kinship: bool,
) -> None:  # fmt: skip
    """Bring in checkpoints and what is written beside them.

    SOURCE is a checkpoint folder (safetensors or PyTorch shards, a PEFT LoRA adapter, a snapshot of the
    local Hub cache), a single .safetensors, .bin or .pt file, or a file of records: a model card, a merge
    config, results, a table. Kinship is measured in one pass over the family of --base. Interrupted, the
    same command goes on where it stopped.
    """
    from kinbase.output import progress, say

    with progress("measuring") as report:
        found = db().import_(sources, base=base, name=name, device=device, metadata_only=metadata_only,
                             kinship=not no_kinship, report=report)  # fmt: skip
    tally: dict[str, int] = {}
    for source, model, status, base_name, notes in found.iter_rows():
        tally[status] = tally.get(status, 0) + 1
        against = f" against {base_name}" if base_name and base_name != model else ""
        say(
            {
                "imported": f"imported {model}{against}",
                "unchanged": f"{model} is unchanged",
                "alias": f"{source} is {model} again",
                "records": f"read {source}",
                "metadata": f"{model}, without its weights",
                "failed": f"{source} failed: {notes[-1] if notes else ''}",
            }[status]
        )
        for note in notes[:-1] if status == "failed" else notes:
            say(f"  {note}")
    if found.height > 1:
        say(", ".join(f"{number} {status}" for status, number in tally.items()))
    bases = set(found["base"])
    waiting = [
        row["model"] for row in found.iter_rows(named=True) if row["status"] == "imported" and not row["base"]
    ]
    waiting = [model for model in waiting if model not in bases]
    if waiting:
        say(
            f"no base is known for {', '.join(waiting)}: what were they tuned from? Import them again with --base"
        )
    if tally.get("failed"):
        raise SystemExit(1)


@cli.command()
@click.argument("pattern", default="")
@rows_out
@click.pass_obj
def ls(db: "Callable[[], Kinbase]", pattern: str, form: str | None, output: str | None) -> None:
    """List the models whose name contains PATTERN, family by family."""
    from kinbase.output import count

    models = db().models(pattern)
    if _format(form, output) == "table":
        models = models.select(
            "name", "base", "relation", "parameters", "dtype", "license", "has_weights", "imported_at"
        )
        rows = [(*row[:3], count(row[3]), *row[4:]) for row in models.iter_rows()]
        _rows(
            ["name", "base", "relation", "params", "dtype", "license", "weights", "imported"],
            rows,
            form,
            output,
        )
    else:
        _frame(models, form, output)


@cli.command()
@click.argument("model", type=Models())
@rows_out
@click.pass_obj
def show(db: "Callable[[], Kinbase]", model: str, form: str | None, output: str | None) -> None:
    """Everything about one MODEL: facts, names, parents, children, scores, nearest kin."""
    about = db().show(model)
    if _format(form, output) != "table":
        _frame(about, form, output)
        return
    from kinbase.output import model_page

    for line in model_page(about.row(0, named=True)):
        click.echo(line)


@cli.command()
@click.argument("model", type=Models())
@click.option("--up", is_flag=True, help="Only what it was made from.")
@click.option("--down", is_flag=True, help="Only what was made from it.")
@click.option("--depth", metavar="N", default=1000, help="At most N generations away.")
@rows_out
@click.pass_obj
def tree(
    db: "Callable[[], Kinbase]",
    model: str,
    up: bool,
    down: bool,
    depth: int,
    form: str | None,
    output: str | None,
) -> None:
    """The family tree of MODEL: its ancestors and descendants, each drawn once."""
    from kinbase.output import say

    both = up == down
    graph = db().tree(model, up=up or both, down=down or both, depth=depth)
    for parent, child in graph.graph["cut"]:
        say(f"the claims go in a circle: {parent} -> {child} is left out")
    if _format(form, output) != "table":
        columns = ("parent", "child", "relation", "method", "weight", "evidence")
        rows = [
            (p, c, *(claim[k] for k in columns[2:]))
            for p, c, claims in graph.edges(data="claims")
            for claim in claims
        ]
        _rows(columns, rows, form, output)
        return
    from kinbase.output import family_tree

    for line in family_tree(graph, upwards=up and not down):
        click.echo(line)


@cli.command()
@click.argument("models", nargs=-1, type=Models(), metavar="[MODEL...]")
@click.option(
    "--metric", metavar="NAMES", default="pcc", show_default=True, help="Of pcc, cs, ed; several with commas."
)
@click.option(
    "--by", type=click.Choice(["tensor", "layer", "block"]), help="Tensor by tensor, layer by layer, ..."
)
@click.option(
    "-k", "k", metavar="N", default=10, show_default=True, help="How many nearest kin of one model."
)
@device_option
@rows_out
@click.pass_obj
def kin(
    db: "Callable[[], Kinbase]", models: tuple[str, ...], metric: str, by: str | None, k: int, device: str,
    form: str | None, output: str | None,
) -> None:  # fmt: skip
    """Kinship: of one MODEL its nearest kin, of several a matrix and the group's kinship; of none, all of it.

    What is missing is measured first, if the files are still there.
    """
    from kinbase.output import progress, say

    metrics = _metrics(metric)
    base = db()
    if models:
        with progress("measuring") as report:
            for note in base.measure(models, device=device, report=report):
                say(note)
    if len(models) == 1 and not by:
        _frame(base.nearest_kin(models[0], k), form, output)
        return
    names = list(models) or base.names()
    if len(models) == 1:
        names += base.nearest_kin(models[0], k)["model"].to_list()
    pairs = base.kinship(names, by=by)
    if by or _format(form, output) != "table":
        pairs = pairs.drop([m for m in METRICS if m not in metrics and by])
        _frame(pairs, form, output)
        return
    _matrices(base, pairs, names, metrics, bool(models))


def _matrices(
    base: "Kinbase", pairs: "pl.DataFrame", names: Sequence[str], metrics: Sequence[str], chosen: bool
) -> None:
    from kinbase.output import cell, matrix

    if not pairs.height:
        raise KinbaseError(
            "no kinship is known among these models: two of them need a common base, see `kinbase import --help` "
            "(a base itself has none: nothing of it changed)"
        )
    names = base.resolved(names) if chosen else sorted({*pairs["model_a"], *pairs["model_b"]})
    for metric in metrics:
        values = {(a, b): value for a, b, value in pairs.select("model_a", "model_b", metric).iter_rows()}
        for line in matrix(names, values | {(b, a): value for (a, b), value in values.items()}, metric):
            click.echo(line)
        click.echo()
    group = base.group_kinship(names).row(0, named=True)
    possible = len(names) * (len(names) - 1) // 2
    figures = ", ".join(f"{m} {cell(group[m])}" for m in METRICS)
    click.echo(
        f"group kinship of {len(names)} models: {figures} (mean of {group['pairs']} of {possible} pairs)"
    )


def _metrics(text: str) -> list[str]:
    names = [name.strip() for name in text.split(",") if name.strip()]
    for name in names:
        if name not in METRICS:
            raise UsageError(f"there is no metric {name!r}: choose of {', '.join(METRICS)}")
    return names or ["pcc"]


@cli.command()
@click.argument("child", type=Models())
@click.argument("parents", nargs=-1, required=True, type=Models(), metavar="PARENT...")
@click.option(
    "--relation",
    metavar="NAME",
    help="finetune, merge, adapter, quantized or base; default: by the number of parents.",
)
@click.option("--method", metavar="NAME", help="Of a merge: linear, slerp, ties, ...")
@click.option(
    "--weight",
    "weights",
    type=float,
    multiple=True,
    metavar="W",
    help="A parent's coefficient; once for each.",
)
@click.pass_obj
def link(
    db: "Callable[[], Kinbase]", child: str, parents: tuple[str, ...], relation: str | None, method: str | None,
    weights: tuple[float, ...],
) -> None:  # fmt: skip
    """Say that CHILD was made from the PARENTs. A parent not known yet becomes a name without weights."""
    from kinbase.output import say

    base = db()
    known = set(base.names())
    rows = base.link(child, parents, relation=relation, method=method, weights=weights)
    for row in rows.filter(evidence="user").iter_rows(named=True):
        new = "" if row["parent"] in known else " (known by name only)"
        say(
            " ".join(
                w for w in (row["parent"] + new, "->", row["child"], row["relation"], row["method"]) if w
            )
        )


@cli.command()
@click.argument("child", type=Models())
@click.argument("parents", nargs=-1, type=Models(), metavar="[PARENT...]")
@click.pass_obj
def unlink(db: "Callable[[], Kinbase]", child: str, parents: tuple[str, ...]) -> None:
    """Take back what `link` said of CHILD and the PARENTs, or all of it. What files claim stays."""
    from kinbase.output import say

    for parent in db().unlink(child, parents):
        say(f"{child} is no longer linked to {parent}")


@cli.command()
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
    _frame(db().check(models, tolerance=tolerance), form, output)


@cli.command()
@click.argument("models", nargs=-1, type=Models(), metavar="[MODEL...]")
@click.option("-o", "--output", metavar="FILE", required=True, help="Its ending says what is written.")
@click.pass_obj
def export(db: "Callable[[], Kinbase]", models: tuple[str, ...], output: str) -> None:
    """Write the lineage of the MODELs, or of all, for another program; or the whole database.

    .graphml (NetworkX, Gephi), .dot (Graphviz), .mmd or .md (Mermaid, GitHub), .json (node-link) hold the graph.
    A folder FILE.kinbase holds the whole database, a Parquet file a table, and `kinbase import` reads it again.
    """
    from kinbase.output import say

    db().export(output, models)
    say(f"wrote {output}")


@cli.command()
@click.argument("query")
@click.option(
    "--timeout", metavar="SECONDS", default=300.0, show_default=True, help="Stop the query after; 0: never."
)
@rows_out
@click.pass_obj
def sql(
    db: "Callable[[], Kinbase]", query: str, timeout: float, form: str | None, output: str | None
) -> None:
    """Run a read-only QUERY (- reads it from stdin) over the views models, lineage, kinship, scores, ...

    It sees the database and nothing else: no files, no settings, no writing. `from duckdb_views()` and
    `describe kinship` list what there is.
    """
    query = sys.stdin.read() if query == "-" else query
    if not query.strip():
        raise UsageError("the query is empty")
    store = db().store
    with store.bounded(timeout) as con:
        form = _format(form, output)
        if form == "parquet":
            store.write_parquet(con, query, _parquet_path(output))
            return
        result = con.execute(query)
        columns = [column[0] for column in result.description or []]
        _rows(columns, store.stream(result), form, output)


@cli.command()
@click.pass_obj
def migrate(db: "Callable[[], Kinbase]") -> None:
    """Bring the database to this version's schema. Nothing is changed if that fails."""
    from kinbase.output import say

    ran = db().migrate()
    say(f"ran {', '.join(ran)}" if ran else "the schema is up to date")


@cli.command()
@click.option("--web", is_flag=True, help="In a browser instead of this terminal.")
@click.option(
    "--host",
    default="localhost",
    show_default=True,
    help="With --web: whoever reaches it reads the database.",
)
@click.option("--port", default=8000, show_default=True, help="With --web.")
@click.pass_obj
def tui(db: "Callable[[], Kinbase]", web: bool, host: str, port: int) -> None:
    """Explore the database: families, kinship, lineage, SQL. F1 helps, Ctrl+Q leaves."""
    path = db().store.path
    if web:
        from kinbase.tui.serving import serve

        serve(path, host, port)
        return
    if not (sys.stdout.isatty() or os.environ.get("TEXTUAL_DRIVER")):
        raise UsageError(
            "the terminal UI needs a terminal: see `kinbase ls` and `kinbase sql`, or `kinbase tui --web`"
        )
    from kinbase.tui.app import KinbaseApp

    app = KinbaseApp(path)
    app.run()
    if app.return_code:
        raise SystemExit(app.return_code)


@cli.command()
@click.option(
    "--dir", "folder", metavar="FOLDER", default="kinbase-demo", show_default=True, help="Where it is made."
)
@click.option("--seed", metavar="N", default=0, show_default=True, help="Of all training.")
@click.pass_context
def demo(ctx: click.Context, folder: str, seed: int) -> None:
    """Make a real family offline in about a minute: train, merge and measure it, import it, show who is related to whom.

    The models stay in FOLDER, and the database, unless --db names another, in FOLDER/kinbase.duckdb.
    """
    from pathlib import Path

    from kinbase.output import demo_page, progress, say

    root = ctx.find_root()
    say("training a family of tiny language models on six-digit exercises, for real: about a minute")
    with progress("training", unit="") as report:
        from kinbase.demo import make_family

        folders = make_family(
            Path(folder), seed=seed, progress=lambda name, share: report(round(1000 * share), 1000)
        )
    chosen = root.get_parameter_source("db") is not click.core.ParameterSource.DEFAULT
    path = root.params["db"] if chosen else str(Path(folder, "kinbase.duckdb"))
    base = _database(path, wait=root.params["wait"])
    with progress("measuring") as report:
        found = base.import_(folders, base=folders[0].name, report=report)
    for source, status, notes in found.select("source", "status", "notes").iter_rows():
        if status == "failed":
            raise KinbaseError(f"{source}: {notes[-1]}; a family of another seed wants another --dir")
    for line in demo_page(base, folders[0].name, folder):
        click.echo(line)


# Rows out.


def _format(form: str | None, output: str | None) -> str:
    if form:
        return form
    ending = (output or "").rpartition(".")[2]
    return ending if ending in ("csv", "json", "jsonl", "parquet") else "table"


def _parquet_path(output: str | None) -> str:
    if not output:
        raise UsageError("parquet is not for the terminal: name a file with -o")
    return output


def _frame(frame: "pl.DataFrame", form: str | None, output: str | None) -> None:
    if _format(form, output) == "parquet":
        frame.write_parquet(_parquet_path(output))
        return
    _rows(frame.columns, frame.iter_rows(), form, output)


def _rows(columns: Sequence[str], rows: Any, form: str | None, output: str | None) -> None:
    from kinbase.output import write_rows, written

    form = _format(form, output)
    if form == "parquet":
        import polars as pl

        pl.DataFrame(list(rows), schema=list(columns), orient="row").write_parquet(_parquet_path(output))
    elif output:
        with written(output) as out:
            write_rows(columns, rows, form, out)
    else:
        write_rows(columns, rows, form)


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
        from kinbase.output import safe

        sys.stderr.write(f"kinbase: {safe(error)}\n")
        sys.exit(error.exit_code)
    except (KeyboardInterrupt, click.Abort):
        sys.stderr.write("kinbase: interrupted\n")
        sys.exit(130)
    except BrokenPipeError:
        # The reader of a pipe has seen enough; Python must not flush into it again at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(0)
