"""The commands that bring something into the database."""

import re
import signal
from collections.abc import Callable
from typing import TYPE_CHECKING

import click

from kinbase.cli.options import Models, device_option, elsewhere_options, open_database
from kinbase.errors import KinbaseError

if TYPE_CHECKING:
    import polars as pl

    from kinbase.database import Kinbase

MANY = 50
"""Sources of which each is told; of more, only what needs a word."""


@click.command("import")
@click.argument("sources", nargs=-1, required=True, metavar="SOURCE...")
@click.option("--base", metavar="MODEL", help="What the family was tuned from: a model or a source.")
@click.option("--name", metavar="NAME", help="Call the model NAME, not after its folder.")
@device_option
@click.option("--metadata-only", is_flag=True, help="Read everything but the weights.")
@click.option(
    "--no-kinship", is_flag=True, help="Read weights for their identity only; `kin` measures later."
)
@click.option(
    "--sketch", is_flag=True, help="Read the SOURCEs only; kinship with all others is estimated by sketches."
)
@click.option(
    "--key", metavar="NAME", help="Of several state dicts in a torch file, the one under NAME (an EMA)."
)
@click.option(
    "--replace", is_flag=True, help="New weights take the name of a model here, which stays as NAME@DATE."
)
@click.option(
    "--engine", metavar="ray[:ADDRESS]", help="Measure families on a Ray cluster (docs/cluster.md)."
)
@click.option(
    "--address", metavar="ADDRESS", help="Of --engine ray: where it is; default: $RAY_ADDRESS, or here."
)
@click.option(
    "--trust",
    is_flag=True,
    help="Take what a FILE.kinbase of others was sure of as found here, not as reported.",
)
@elsewhere_options
@click.pass_obj
def import_(
    db: "Callable[[], Kinbase]", sources: tuple[str, ...], base: str | None, name: str | None, device: str,
    metadata_only: bool, no_kinship: bool, sketch: bool, key: str | None, replace: bool, engine: str | None,
    address: str | None, trust: bool, sample: float | None,
    stderr: float | None, stream: bool, children: bool, parents: bool, depth: int, limit: int, relations: tuple[str, ...],
) -> None:  # fmt: skip
    """Bring in checkpoints and what is written beside them.

    SOURCE is a checkpoint folder (safetensors or PyTorch shards, a PEFT LoRA adapter, a snapshot of the
    local Hub cache), a single .safetensors, .bin or .pt file, the folder of a training run (its checkpoint-* become
    NAME@STEP), a model of the Hub (hf:ORG/NAME[@REVISION]), the URL of a .safetensors file or of a folder (https://,
    s3://, ...), or a file of records: a model card, a merge config, results, what a trainer leaves, a table; or a whole database
    (FILE.kinbase, of `export`), which is joined with this one. Kinship is
    measured in one pass over the family of --base. Interrupted, the same command goes on where it stopped.

    A table (.csv, .tsv, .parquet, .json, .jsonl) has the columns of a view: parent, child, relation (lineage); model,
    benchmark, value and, if there, metric, n_shot, split, revision (scores); model_a, model_b, pcc (kinship); name and
    facts (models); alias, model (aliases). Other tools' names for them are in docs/tables.md. The files of all parts
    that `kinbase measure` wrote are the family they were measured of.
    """
    from kinbase.cli.console import progress, say

    counted = (children or parents or metadata_only) and sample is None and not stream
    with progress("reading" if counted else "measuring", unit="" if counted else "bytes") as report:
        found = db().import_(sources, base=base, name=name, device=device, metadata_only=metadata_only,
                             kinship=not no_kinship, sketch=sketch, sample=sample, stderr=stderr, stream=stream,
                             children=children, parents=parents, depth=depth, limit=limit, relations=relations, key=key,
                             replace=replace, engine=engine, address=address, trust=trust,
                             report=report, tell=lambda what, done, total: report(done, total, what))  # fmt: skip
    tally = _told(found)
    if found.height > 1:
        say(", ".join(f"{number} {status}" for status, number in tally.items()))
    bases = set(found["base"])
    waiting = [
        row["model"]
        for row in found.iter_rows(named=True)
        if row["status"] in ("imported", "sampled") and not row["base"] and row["model"] not in bases
    ]
    if waiting:
        say(
            f"no base is known for {', '.join(waiting)}: what were they tuned from? Import them again with --base"
        )
    if tally.get("failed") or tally.get("refused"):
        raise SystemExit(1)


def _told(found: "pl.DataFrame") -> dict[str, int]:
    """Say of each source what became of it; how many there are of each status."""
    from kinbase.cli.console import say

    tally: dict[str, int] = {}
    for source, model, status, base, notes in found.iter_rows():
        tally[status] = tally.get(status, 0) + 1
        if found.height > MANY and status in ("metadata", "unchanged") and not notes:
            continue
        against = f" against {base}" if base and base != model else ""
        say(
            {
                "imported": f"imported {model}{against}",
                "unchanged": f"{model} is unchanged",
                "alias": f"{source} is {model} again",
                "copy": f"imported {model}",
                "records": f"read {source}",
                "metadata": f"{model}, without its weights",
                "sampled": f"sampled {model}{against}",
                "refused": f"{model}: what is said of it was stored, its weights were refused",
                "failed": f"{source} failed: {notes[-1] if notes else ''}",
            }[status]
        )
        for note in notes[:-1] if status == "failed" else notes:
            say(f"  {note}")
    return tally


class _Part(click.ParamType[tuple[int, int]]):
    name = "part"

    def convert(
        self, value: object, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[int, int]:
        found = re.fullmatch(r"(\d{1,6})/(\d{1,6})", str(value))
        part, parts = map(int, found.groups()) if found else (0, 0)
        if not 1 <= part <= parts:
            self.fail(f"{value} is no part: give I/N with I from 1 to N, as in 3/8", param, ctx)
        return part, parts


@click.command()
@click.argument("sources", nargs=-1, required=True, metavar="SOURCE...")
@click.option(
    "--base", metavar="MODEL", help="What the family was tuned from: one of the SOURCEs, or another."
)
@click.option("--part", metavar="I/N", type=_Part(), default="1/1", help="Part I of N; default: all of it.")
@click.option("-o", "--output", metavar="FILE", required=True, type=click.Path(dir_okay=False),
              help="Where its sums go: a .parquet file a part.")  # fmt: skip
@device_option
@click.option("--stream", is_flag=True, help="Read weights elsewhere without keeping the files.")
@click.pass_obj
def measure(
    db: "Callable[[], Kinbase]", sources: tuple[str, ...], base: str | None, part: tuple[int, int], output: str,
    device: str, stream: bool,
) -> None:  # fmt: skip
    """Measure part I of N of a family's pass, without a database; `kinbase import` of all N files stores the family.

    Each part reads other tensors of all SOURCEs, about as many bytes as any other part, wherever it runs: a job of a
    Slurm array, a machine of a cluster, a process of `make -j`. All have to see the same files. Interrupted, the same
    command goes on where it stopped; a part that is there is not measured again. See docs/cluster.md.
    """
    from kinbase.cli.console import progress, say

    if not output.endswith(".parquet"):
        raise click.BadParameter(
            f"{output} does not end in .parquet, by which import knows it", param_hint="-o"
        )
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # a scheduler's: what is finished is kept
    with progress("measuring") as report:
        done = db().measure_part(
            sources, output, part=part[0], parts=part[1], base=base, device=device, stream=stream,
            report=report, tell=lambda what, done, total: report(done, total, what),
        )  # fmt: skip
    what = f"part {done.part} of {done.parts} of {done.base} and {done.members} members"
    if done.is_old:
        say(f"{what} is in {output} already")
    else:
        say(
            f"{what} is in {output}: {done.tensors} of {done.of_tensors} tensors, {done.nbytes / 1e6:.1f} MB read"
        )


@click.command()
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
    from kinbase.cli.console import say

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


@click.command()
@click.argument("child", type=Models())
@click.argument("parents", nargs=-1, type=Models(), metavar="[PARENT...]")
@click.pass_obj
def unlink(db: "Callable[[], Kinbase]", child: str, parents: tuple[str, ...]) -> None:
    """Take back what `link` said of CHILD and the PARENTs, or all of it. What files claim stays."""
    from kinbase.cli.console import say

    for parent in db().unlink(child, parents):
        say(f"{child} is no longer linked to {parent}")


@click.command()
@click.pass_obj
def repair(db: "Callable[[], Kinbase]") -> None:
    """Mend what is certain in the database: rows about models that are not there go, foreign views are made anew.

    The file as it was is copied beside itself first. What is only doubtful is told by `kinbase check --deep`.
    """
    from kinbase.cli.console import say

    mended = db().repair(on_backup=lambda path: say(f"the file as it was is {path}"))
    for line in mended or ["there is nothing to mend"]:
        say(line)


@click.command()
@click.option("--no-backup", is_flag=True, help="Do not copy the file before its tables change.")
@click.pass_obj
def migrate(db: "Callable[[], Kinbase]", no_backup: bool) -> None:
    """Bring the database to this version's schema. Nothing is changed if that fails, or if the file is not Kinbase's.

    Before tables change, the file as it was is copied beside itself. Views that are not Kinbase's are made anew.
    """
    from kinbase.cli.console import say

    ran = db().migrate(backup=not no_backup, on_backup=lambda path: say(f"the file as it was is {path}"))
    say(f"ran {', '.join(ran)}" if ran else "the schema is up to date")


@click.command()
@click.option(
    "--dir", "folder", metavar="FOLDER", default="kinbase-demo", show_default=True, help="Where it is made."
)
@click.option("--seed", metavar="N", default=0, show_default=True, help="Of all training.")
@click.pass_context
def demo(ctx: click.Context, folder: str, seed: int) -> None:
    """Make a real family offline in about a minute: train, merge, import and evolve it, show who is related to whom.

    The models stay in FOLDER, and the database, unless --db names another, in FOLDER/kinbase.duckdb.
    """
    from pathlib import Path

    from kinbase.cli.console import progress, say
    from kinbase.cli.pages import demo_page, evolution_page
    from kinbase.query import runs

    root = ctx.find_root()
    say("training a family of tiny language models on six-digit exercises, for real: about a minute")
    with progress("training", unit="") as report:
        from kinbase.demo.family import EVOLUTION, make_family

        folders = make_family(
            Path(folder), seed=seed, progress=lambda name, share: report(round(1000 * share), 1000)
        )
    chosen = root.get_parameter_source("db") is not click.core.ParameterSource.DEFAULT
    path = root.params["db"] if chosen else str(Path(folder, "kinbase.duckdb"))
    base = open_database(path, wait=root.params["wait"])
    with progress("measuring") as report:
        found = base.import_(folders, base=folders[0].name, report=report)
    for source, status, notes in found.select("source", "status", "notes").iter_rows():
        if status == "failed":
            raise KinbaseError(f"{source}: {notes[-1]}; a family of another seed wants another --dir")
    for line in demo_page(base, folders[0].name):
        click.echo(line)
    config = Path(folder, "evolve.yaml")
    config.write_text(EVOLUTION)
    begun = base.store.ask(runs.exists, "digits")
    with progress("evolving") as report:
        base.evolve(None if begun else config, resume="digits" if begun else None, tell=say, report=report)
    for line in evolution_page(base, "digits", folder):
        click.echo(line)
