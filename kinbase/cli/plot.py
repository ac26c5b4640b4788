"""The command that draws: a kind of plot a subcommand, a file's ending the format."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import click

from kinbase.cli.options import Models

if TYPE_CHECKING:
    from kinbase.database import Kinbase


@click.group()
def plot() -> None:
    """Draw kinship, lineage, layers, evolution or gains, as .svg, .png or one .html page.

    The page needs no network, and tells names and values under the pointer.
    """


metric_option = click.option(
    "--metric", type=click.Choice(["pcc", "cs", "ed"]), default="pcc", show_default=True, help="Of kinship."
)
output_option = click.option(
    "-o", "--output", metavar="FILE", required=True, help="Its ending says the format: .svg, .png or .html."
)


def _write(db: "Kinbase", output: str, kind: str, *names: str, **options: Any) -> None:
    from kinbase.cli.console import say
    from kinbase.plotting.figure import check_ending

    check_ending(output)  # before the work, not after it
    db.plot(kind, *names, **options).save(output)
    say(f"wrote {output}")


@plot.command(short_help="kinship of every pair, clustered")
@click.argument("models", nargs=-1, type=Models(), metavar="[MODEL...]")
@metric_option
@click.option("--block", type=click.Choice(["all", "attn", "mlp", "norm", "embed", "head", "other"]), default="all",
              show_default=True, help="Of tensors.")  # fmt: skip
@click.option("--layer", metavar="N", type=click.IntRange(0), help="Of one layer, counted from 0.")
@click.option(
    "--nearest",
    metavar="N",
    type=int,
    help="Of one MODEL: so many of its kin; of a base: of its nearest members.",
)
@output_option
@click.pass_obj
def heatmap(
    db: "Callable[[], Kinbase]", models: tuple[str, ...], metric: str, block: str, layer: int | None, nearest: int | None,
    output: str
) -> None:  # fmt: skip
    """Kinship of every pair of the MODELs, or of all, clustered, with its dendrogram.

    One MODEL: with its nearest kin; a base: its family.
    """
    _write(db(), output, "heatmap", *models, metric=metric, block=block, layer=layer, nearest=nearest)


@plot.command(short_help="a family, a column a generation")
@click.argument("model", type=Models(), metavar="MODEL|FAMILY")
@click.option(
    "--depth", metavar="N", type=click.IntRange(1), default=1000, help="At most N generations away."
)
@click.option("--nearest", metavar="N", type=int, help="Of its descendants the N nearest.")
@output_option
@click.pass_obj
def tree(db: "Callable[[], Kinbase]", model: str, depth: int, nearest: int | None, output: str) -> None:
    """Ancestors and descendants of a MODEL, a column a generation, with relation and score; of a base, its FAMILY."""
    _write(db(), output, "tree", model, depth=depth, nearest=nearest)


@plot.command(short_help="kinship of two models, layer by layer")
@click.argument("model_a", type=Models(), metavar="MODEL")
@click.argument("model_b", type=Models(), metavar="MODEL")
@metric_option
@output_option
@click.pass_obj
def layers(db: "Callable[[], Kinbase]", model_a: str, model_b: str, metric: str, output: str) -> None:
    """Kinship of two MODELs layer by layer: attention, mlp and norms, and the blocks outside of the layers."""
    _write(db(), output, "layers", model_a, model_b, metric=metric)


@plot.command(short_help="scores and kinship of runs, by generation")
@click.argument("runs", nargs=-1, metavar="[RUN...]")
@output_option
@click.pass_obj
def evolution(db: "Callable[[], Kinbase]", runs: tuple[str, ...], output: str) -> None:
    """Best and mean score of the RUNs, or of all, and the kinship of the k best, by generation."""
    _write(db(), output, "evolution", *runs)


@plot.command(short_help="kinship of parents against merge gain")
@click.argument("family", type=Models(), required=False)
@metric_option
@click.option(
    "--benchmark", metavar="NAME", default="average", show_default=True, help="Of which the gain is taken."
)
@click.option("--source", metavar="NAME", help="Only merges whose gain this source printed, and its figures.")
@output_option
@click.pass_obj
def gains(
    db: "Callable[[], Kinbase]", family: str | None, metric: str, benchmark: str, source: str | None, output: str
) -> None:  # fmt: skip
    """Kinship of the parents against what merging gained, in a FAMILY or everywhere, with its fit, r, n and p."""
    names = (family,) if family else ()
    _write(db(), output, "gains", *names, metric=metric, benchmark=benchmark, source=source)
