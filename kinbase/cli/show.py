"""The commands that show what the database holds."""

import os
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING

import click

from kinbase.cli.options import Models, device_option, rows_out
from kinbase.cli.rows import format_of, parquet_path, write, write_frame
from kinbase.errors import KinbaseError, UsageError

if TYPE_CHECKING:
    import polars as pl

    from kinbase.database import Kinbase

METRICS = ("pcc", "cs", "ed")

DRAWN = 2000
"""Descendants that a tree draws unless all are asked for: more than anybody reads, and drawn in a moment."""

PARTIAL = 5
"""Pairs of which a matrix says how much was compared; of more it counts them."""


@click.command()
@click.argument("pattern", default="")
@rows_out
@click.pass_obj
def ls(db: "Callable[[], Kinbase]", pattern: str, form: str | None, output: str | None) -> None:
    """List the models whose name contains PATTERN, family by family."""
    import polars as pl

    from kinbase.cli import terminal
    from kinbase.text import count

    models = db().models(pattern)
    if pattern and not models.height:
        from kinbase.cli.console import say

        say(
            f"no model's name holds {pattern!r}: `kinbase ls` lists all, `kinbase show` takes other names too"
        )
    if format_of(form, output) == "table":
        models = models.with_columns(
            parameters=pl.Series([count(n) or None for n in models["parameters"]], dtype=pl.String),
            imported_at=models["imported_at"].dt.date(),
        )
        fit = terminal.width()
        shown = [name for name, least in LISTED.items() if fit is None or fit >= least]
        headings = {"parameters": "params", "has_weights": "weights", "imported_at": "imported"}
        write_frame(models.select(shown).rename(headings, strict=False), form, output)
    else:
        write_frame(models, form, output)


LISTED = {
    "name": 0, "base": 0, "relation": 0, "parameters": 0, "dtype": 90, "license": 0, "has_weights": 0, "imported_at": 110,
}  # fmt: skip
"""The columns that `ls` shows, and how wide a terminal has to be for that."""


@click.command()
@click.argument("model", type=Models())
@rows_out
@click.pass_obj
def show(db: "Callable[[], Kinbase]", model: str, form: str | None, output: str | None) -> None:
    """Everything about one MODEL: facts, names, parents, children, scores, nearest kin."""
    if format_of(form, output) != "table":
        write_frame(db().show(model), form, output)
        return
    from kinbase.cli import terminal
    from kinbase.cli.pages import CHILDREN, model_page

    about = db().show(model, most=CHILDREN + 1)
    terminal.page(model_page(about.row(0, named=True), terminal.width()))


@click.command()
@click.argument("model", type=Models())
@click.option("--up", is_flag=True, help="Only what it was made from.")
@click.option("--down", is_flag=True, help="Only what was made from it.")
@click.option("--depth", metavar="N", default=1000, help="At most N generations away.")
@click.option("--all", "whole", is_flag=True, help=f"Draw all descendants, not the nearest {DRAWN:,} alone.")
@rows_out
@click.pass_obj
def tree(
    db: "Callable[[], Kinbase]",
    model: str,
    up: bool,
    down: bool,
    depth: int,
    whole: bool,
    form: str | None,
    output: str | None,
) -> None:
    """The family tree of MODEL: its ancestors and descendants, each drawn once."""
    from kinbase.cli.console import say

    both = up == down
    is_drawn = format_of(form, output) == "table"
    most = DRAWN if is_drawn and not whole else None
    graph = db().tree(model, up=up or both, down=down or both, depth=depth, most=most)
    if graph.graph["is_part"]:
        say(f"only the nearest {most:,} descendants are drawn: --all draws all, -f csv lists them")
    for parent, child in graph.graph["cut"]:
        say(f"the claims go in a circle: {parent} -> {child} is left out")
    if not is_drawn:
        columns = ("parent", "child", "relation", "method", "weight", "evidence")
        rows = [
            (p, c, *(claim[k] for k in columns[2:]))
            for p, c, claims in graph.edges(data="claims")
            for claim in claims
        ]
        write(columns, rows, form, output)
        return
    from kinbase.cli import terminal
    from kinbase.text import family_tree

    terminal.page(family_tree(graph, upwards=up and not down), is_drawing=True)


@click.command()
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
@click.option("--exact", is_flag=True, help="Measure what is only estimated by sketches, too.")
@click.option("--aligned", is_flag=True, help="Of two or more: match their units first (docs/alignment.md).")
@click.option(
    "--save",
    metavar="FILE",
    type=click.Path(dir_okay=False),
    help="With --aligned: write the order found, for merge.",
)
@device_option
@rows_out
@click.pass_obj
def kin(
    db: "Callable[[], Kinbase]", models: tuple[str, ...], metric: str, by: str | None, k: int, exact: bool, aligned: bool,
    save: str | None, device: str, form: str | None, output: str | None,
) -> None:  # fmt: skip
    """Kinship: of one MODEL its nearest kin, of several a matrix and the group's kinship; of none, all of it.

    What is missing is measured first, if the files are still there.

    --aligned compares two models whose units may lie in another order: MLP units, attention heads and channels are
    matched, the weights and the deltas correlated before and after, and a p-value tells whether they are related at
    all. The MODELs may then be folders too, and nothing is stored.
    """
    from kinbase.cli.console import progress, say

    metrics = _metrics(metric)
    base = db()
    if aligned:
        _aligned(base, models, by, save, form, output)
        return
    if save:
        raise UsageError("--save is of --aligned")
    if models:
        with progress("measuring") as report:
            for note in base.measure(models, exact=exact, device=device, report=report):
                say(note)
    if len(models) == 1 and not by:
        nearest = base.nearest_kin(models[0], k)
        weak = base.left_out(models[0])
        if not nearest.height and not weak:
            say(base.why_without_kin(models[0]))
        if weak:
            told = ", ".join(f"{name} ({share:.1%})" for name, share in weak[:5])
            say(
                f"left out, compared by less than half of the base's parameters: {told}{', ...' * (len(weak) > 5)}"
            )
        write_frame(nearest, form, output)
        return
    names = list(models) or base.names()
    if len(models) == 1:
        names += base.nearest_kin(models[0], k)["model"].to_list()
    pairs = base.kinship(names, by=by)
    if by or format_of(form, output) != "table":
        pairs = pairs.drop([m for m in METRICS if m not in metrics and by])
        write_frame(pairs, form, output)
        return
    _matrices(base, pairs, names, metrics, bool(models))


def _aligned(
    base: "Kinbase",
    models: Sequence[str],
    by: str | None,
    save: str | None,
    form: str | None,
    output: str | None,
) -> None:
    """Print what is found of models whose units are matched; what is said of a pair goes to stderr."""
    from kinbase.cli.console import progress, say

    with progress("matching", unit="steps") as report:
        found = base.kin(models, aligned=True, by=by, save=save, report=report)
    if "notes" in found.columns:
        for note in dict.fromkeys(note for notes in found["notes"].to_list() for note in notes):
            say(note)
        if format_of(form, output) == "table":
            found = found.drop("notes", "layers")
    write_frame(found, form, output)
    if save:
        say(f"wrote {save}: `kinbase merge CONFIG OUT --alignment {save}` reads it")


def _matrices(
    base: "Kinbase", pairs: "pl.DataFrame", names: Sequence[str], metrics: Sequence[str], chosen: bool
) -> None:
    from kinbase.cli import terminal
    from kinbase.cli.pages import matrix
    from kinbase.query.kinship import ENOUGH, WHOLE_FROM
    from kinbase.text import cell

    if not pairs.height:
        raise KinbaseError(
            "no kinship is known among these models: two of them need a common base, see `kinbase import --help` "
            "(a base itself has none: nothing of it changed)"
        )
    names = base.matrix(base.resolved(names) if chosen else ()).names
    partial = {
        frozenset((a, b)): share
        for a, b, share in pairs.select("model_a", "model_b", "coverage").iter_rows()
        if share is not None and share < WHOLE_FROM
    }
    weak = [pair for pair, share in partial.items() if share < ENOUGH]
    marks = {(a, b): "?" for pair in weak for a in pair for b in pair}
    lines = []
    for metric in metrics:
        values = {(a, b): value for a, b, value in pairs.select("model_a", "model_b", metric).iter_rows()}
        both = values | {(b, a): value for (a, b), value in values.items()}
        lines += [*matrix(names, both, metric, marks, fit=terminal.width()), ""]
    group = base.group_kinship(names).row(0, named=True)
    possible = len(names) * (len(names) - 1) // 2
    figures = ", ".join(f"{m} {cell(group[m])}" for m in METRICS)
    lines.append(
        f"group kinship of {len(names)} models: {figures} (mean of {group['pairs']} of {possible} pairs)"
    )
    lines += _coverage(partial, len(weak))
    terminal.show("".join(f"{line}\n" for line in lines))


def _coverage(partial: dict[frozenset[str], float], weak: int) -> Iterator[str]:
    """What was compared of the pairs that were not compared whole, the least first."""
    from kinbase.text import safe

    for pair, share in sorted(partial.items(), key=lambda item: (item[1], sorted(item[0])))[:PARTIAL]:
        yield safe(f"{' and '.join(sorted(pair))}: compared by {share:.1%} of the base's parameters")
    if len(partial) > PARTIAL:
        yield f"and {len(partial) - PARTIAL} more pairs by less than all of them: -f json has every coverage"
    if weak:
        yield "? compared by less than half: it says little of the models, and the group's kinship leaves it out"


def _metrics(text: str) -> list[str]:
    names = [name.strip() for name in text.split(",") if name.strip()]
    for name in names:
        if name not in METRICS:
            raise UsageError(f"there is no metric {name!r}: choose of {', '.join(METRICS)}")
    return names or ["pcc"]


@click.command()
@click.argument("models", nargs=-1, type=Models(), metavar="[MODEL...]")
@click.option("-o", "--output", metavar="FILE", help="Its ending says what is written.")
@click.option(
    "--sketches", metavar="FILE", is_flag=False, flag_value="", default=None,
    help="Write the sketches of the MODELs, or of all bases, for `kinbase scan`.",
)  # fmt: skip
@click.pass_obj
def export(
    db: "Callable[[], Kinbase]", models: tuple[str, ...], output: str | None, sketches: str | None
) -> None:
    """Write the lineage of the MODELs, or of all, for another program; or the whole database; or sketches.

    .graphml (NetworkX, Gephi), .dot (Graphviz), .mmd or .md (Mermaid, GitHub), .json (node-link) hold the graph.
    A folder FILE.kinbase holds the whole database, a Parquet file a table; `kinbase import` reads it
    again, into an empty database or beside what another holds.
    """
    from kinbase.cli.console import say

    target = sketches or output
    if not target or (sketches and output):
        raise UsageError("name one file with -o, or with --sketches")
    if sketches is not None:
        count = db().export_sketches(target, models)
        say(f"wrote {target}: the sketches of {count} model{'s' * (count != 1)}")
        return
    db().export(target, models)
    say(f"wrote {target}")


@click.command()
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
    form = format_of(form, output)
    target = parquet_path(output) if form == "parquet" else output
    root = click.get_current_context().find_root().params
    from kinbase.cli.apart import ANSWERED, OPEN, apart
    from kinbase.store import Store  # and not the frames, which a query does without

    store = Store(root["db"], wait=root["wait"])

    def answer(tell: Callable[[bytes], None]) -> None:
        with store.bounded(timeout) as con:
            tell(OPEN)
            if form == "parquet":
                store.write_parquet(con, query, str(target))
                return
            result = con.execute(query)
            columns = [column[0] for column in result.description or []]
            write(columns, store.stream(result), form, target, on_answer=lambda: tell(ANSWERED))

    apart(answer, seconds=timeout, leftovers=[f"{target}.part"] if target else [])


@click.command()
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
        from kinbase.tui.web import serve

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
