"""The commands that draw conclusions from what the database holds."""

import math
from collections.abc import Callable
from typing import TYPE_CHECKING

import click

from kinbase.cli.options import Models, device_option, rows_out
from kinbase.cli.rows import format_of, write_frame
from kinbase.errors import UsageError

if TYPE_CHECKING:
    from kinbase.database import Kinbase


@click.command()
@click.argument("models", nargs=-1, type=Models(), metavar="[MODEL...]")
@click.option(
    "--tolerance", metavar="T", default=0.02, show_default=True, help="What rounding explains, in percent."
)
@click.option(
    "--replay", is_flag=True, help="Run the claimed recipe of each MODEL again and compare its bits."
)
@click.option(
    "--config",
    metavar="FILE",
    type=click.Path(dir_okay=False, exists=True),
    help="The merge configuration that --replay runs; default: the one beside the weights.",
)
@click.option(
    "--seed",
    metavar="N",
    type=click.IntRange(0, 2**32 - 1),
    default=0,
    help="Of the masks that --replay draws.",
)
@click.option("--strict", is_flag=True, help="Exit with 1 when anything is contradicted.")
@click.option("--all", "everything", is_flag=True, help="In the table of all models also what is supported.")
@click.option(
    "--deep",
    is_flag=True,
    help="And sums and digests made again from the files, and rows against each other.",
)
@device_option
@rows_out
@click.pass_obj
def check(
    db: "Callable[[], Kinbase]", models: tuple[str, ...], tolerance: float, replay: bool, config: str | None, seed: int,
    strict: bool, deep: bool, everything: bool, device: str, form: str | None, output: str | None,
) -> None:  # fmt: skip
    """Hold what is claimed of the MODELs, or of all, against what it follows from.

    Printed averages and merge gains are recomputed from their scores, licences and ages compared along the
    lineage, circles and bare names told; claimed parents, coefficients and relations held against the weights.
    A verdict is contradicted, undecidable (what would decide it is not here) or supported; the exit code is 0
    whatever they are, but for --strict. For MODELs that are named, kinship that is missing is measured first.

    --replay proves instead: the merge configuration beside the weights (or --config, or the adapter that was merged) is run
    again, stretch by stretch, and nothing is written. A MODEL is proved, proved up to rounding, or differs: then
    the tensors are named, and how.
    """
    from kinbase.cli.console import progress, say

    if not 0 <= tolerance < math.inf:
        raise UsageError(f"--tolerance is a number of percent from 0, not {tolerance:g}")
    if (config or seed) and not replay:
        raise UsageError("--config and --seed are of --replay")
    if replay and (not models or (config and len(models) > 1)):
        raise UsageError("--replay is of models that are named, with --config of one")
    if replay:
        with progress("replaying") as report:
            found = db().prove(models, config=config, seed=seed, report=report)
    elif models:
        with progress("measuring") as report:
            found = db().check(models, tolerance=tolerance, device=device, deep=deep, report=report)
    else:
        with progress("checking", unit="models") as looked:
            found = db().check(tolerance=tolerance, deep=deep, looked=looked)
    counts = {
        verdict: found.filter(verdict=verdict).height
        for verdict in ("contradicted", "undecidable", "supported")
    }
    whole = bool(models) or everything or output is not None or (form or "table") != "table"
    write_frame(found if whole else found.filter(found["verdict"] != "supported"), form, output)
    hidden = " (--all shows them)" if not whole and counts["supported"] else ""
    say(", ".join(f"{count} {verdict}" for verdict, count in counts.items()) + hidden)
    if strict and counts["contradicted"]:
        click.get_current_context().exit(1)


@click.command()
@click.argument("models", nargs=-1, type=Models(), metavar="[MODEL...]")
@click.option(
    "--among", metavar="M,...", default="", help="Others that may be parents; default: none but the MODELs."
)
@click.option("--record", is_flag=True, help="Store the edges in the lineage, with evidence weights.")
@click.option(
    "--least", metavar="P", default=0.0, show_default=True, help="Leave out edges of a lower confidence."
)
@click.option("--blind", is_flag=True, help="Do without dates and known bases.")
@click.option("--quick", is_flag=True, help="Compare sketches instead of reading weights.")
@click.option(
    "--aligned",
    is_flag=True,
    help="Read weights, and match units in another order first (docs/alignment.md).",
)
@device_option
@rows_out
@click.pass_obj
def infer(
    db: "Callable[[], Kinbase]", models: tuple[str, ...], among: str, record: bool, least: float, blind: bool,
    quick: bool, aligned: bool, device: str, form: str | None, output: str | None,
) -> None:  # fmt: skip
    """Find out from weights alone who was made from whom: of the MODELs, or of all that have weights.

    Checkpoints are sorted into families; rounded copies and merges are told by their rounding floors, the rest
    becomes the likeliest tree. Each edge has a confidence; docs/inferring.md says how far it is to be trusted.
    """
    from kinbase.cli.console import progress, say

    if not 0 <= least <= 1:
        raise UsageError(f"--least is a confidence from 0 to 1, not {least:g}")
    if quick and aligned:
        raise UsageError("--aligned reads weights and --quick does without: leave one out")
    others = [name.strip() for name in among.split(",") if name.strip()]
    with progress("reading") as report:
        rows, notes = db().infer(models, among=others, record=record, least=least, blind=blind, quick=quick, aligned=aligned,
                                 device=device, report=report)  # fmt: skip
    for note in notes:
        say(note)
    if format_of(form, output) == "table" and rows["family"].n_unique() == 1:
        say(f"all of the family of {rows['family'][0]}")
        rows = rows.drop("family")
    write_frame(rows, form, output)


@click.command()
@click.argument("model", type=Models())
@click.option(
    "--sketches", "--against", "against", metavar="FILE", type=click.Path(dir_okay=False),
    help="Known are the models of FILE, which `kinbase export --sketches` wrote; default: the database's bases.",
)  # fmt: skip
@click.option("-k", "k", metavar="N", default=5, show_default=True, help="How many of the likeliest.")
@rows_out
@click.pass_obj
def scan(
    db: "Callable[[], Kinbase]", model: str, against: str | None, k: int, form: str | None, output: str | None
) -> None:
    """Which known base is MODEL, a stored model or a folder? By its weights alone; nothing is imported.

    Sketches give the kinship of the weights with its standard error; where files are here, a p-value tells whether the two were
    trained independently (docs/alignment.md). Which of two was made from the other is undecided, but where one is
    the other rounded.
    """
    from kinbase.cli.console import progress, say

    if k < 1:
        raise UsageError("-k must be 1 or more")
    with progress("reading") as report:
        rows, notes = db().scan(model, against=against, k=k, report=report)
    for note in notes:
        say(note)
    write_frame(rows, form, output)


@click.command()
@click.argument("model", type=Models())
@click.option("--among", metavar="M,...", default="", help="Only these candidates; default: its family.")
@click.option("--config", metavar="FILE", type=click.Path(dir_okay=False),
              help="Write the mergekit configuration that would make it again.")  # fmt: skip
@click.option("--record", is_flag=True, help="Store the parents in the lineage, with evidence `weights`.")
@device_option
@click.option(
    "-f",
    "--format",
    "form",
    type=click.Choice(["table", "json"]),
    default=None,
    help="Default: a short page.",
)
@click.option("-o", "--output", metavar="FILE", type=click.Path(dir_okay=False),
              help="Write to FILE; .yaml or .yml: as --config.")  # fmt: skip
@click.pass_obj
def recipe(
    db: "Callable[[], Kinbase]", model: str, among: str, config: str | None, record: bool, device: str,
    form: str | None, output: str | None,
) -> None:  # fmt: skip
    """Of which models MODEL was made, and with what coefficients, by the weights alone.

    The verdict is merge, adapter merged, copy, fine-tune, unrelated or undecidable (docs/recipes.md). Only models
    of one family can be told from each other; pairs that were not measured yet are measured first.
    """
    import json

    from kinbase.cli import terminal
    from kinbase.cli.console import progress, say
    from kinbase.cli.pages import recipe_page
    from kinbase.provenance.recipes import mergekit_config as remaking
    from kinbase.provenance.recipes import search as finding
    from kinbase.text import written

    base = db()
    if output and output.endswith((".yaml", ".yml")):
        config, output = output, None
    if output and output.endswith(".json"):
        form = form or "json"
    names = [name.strip() for name in among.split(",") if name.strip()]
    with progress("measuring") as report:
        found = finding.recover(base.store, model, among=names, device=device, report=report)
    if config:
        text = remaking.config(found, *finding.places(base.store, [found.base, *found.named()], found.model))
        with written(config) as out:
            out.write(text)
        say(f"wrote {config}")
    if record:
        for line in finding.record(base.store, found):
            say(line)
    lines = [json.dumps(found.as_dict(), indent=2)] if form == "json" else recipe_page(found.as_dict())
    if output:
        with written(output) as out:
            out.writelines(f"{line}\n" for line in lines)
        return
    terminal.page(lines)


@click.command()
@click.argument("family", required=False, type=Models())
@click.option("-k", "k", metavar="N", default=10, show_default=True, help="How many merges.")
@click.option(
    "--top", metavar="N", default=3, show_default=True, help="How many of the best are judged for saturation."
)
@click.option(
    "--threshold", metavar="PCC", default=0.9, show_default=True, help="Kinship that counts as saturated."
)
@click.option("--patience", metavar="N", default=2, show_default=True, help="For how many generations.")
@click.option(
    "--replay", metavar="RUN", help="What stop rules would have saved and lost on a stored run or path."
)
@rows_out
@click.pass_obj
def suggest(
    db: "Callable[[], Kinbase]", family: str | None, k: int, top: int, threshold: float, patience: int,
    replay: str | None, form: str | None, output: str | None,
) -> None:  # fmt: skip
    """Which merges of a FAMILY (its base, or any member) are worth making next, and whether to go on at all.

    For every pair that nobody merged: how akin the child would be to what there is, computed from stored sums, and
    what its parents' scores leave room for. Heuristics: kinship tells how much a merge may change, not for better or worse.
    --replay holds the rules of stopping against a run, `path 1`, or the merges that led to a model.
    """
    from kinbase.cli.console import say

    if top < 2 or patience < 1 or k < 1:
        raise UsageError("--top must be 2 or more, --patience and -k 1 or more")
    if not -1 <= threshold <= 1:
        raise UsageError(f"--threshold is a correlation from -1 to 1, not {threshold:g}")
    if replay:
        if family:
            raise UsageError(f"--replay {replay} says what to look at: leave out {family}")
        write_frame(db().replay(replay, top=top, threshold=threshold, patience=patience), form, output)
        return
    rows, notes = db().suggest(family, k=k, top=top, threshold=threshold, patience=patience)
    for note in notes:
        say(note)
    if rows.height:
        say("heuristics, no promises: the columns are the evidence (docs/inferring.md)")
    else:
        say("no pair of unmerged models with known kinship is left")
    write_frame(rows, form, output)
