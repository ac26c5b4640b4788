"""What the runner itself costs: a generation's time less merging and evaluating, on examples/evolution.

    python benchmarks/evolution.py [--exercises N] [--steps N]

The family is trained for a few steps only (how good it is changes nothing here), then evolved with both strategies and the
example's own evaluator. `own` is everything else: planning, importing the children and measuring their kinship with
the whole family, the transactions. Then comes its share; the first generation also pays the imports. `cpu_s` is the CPU
seconds of the runner's process, which a busy machine does not stretch: `own` and the merging (`evaluating` is in
another process).
"""

import argparse
import shutil
import sys
import tempfile
import time
from functools import partial
from itertools import pairwise
from pathlib import Path

import polars as pl
import torch

import kinbase
from kinbase.demo import CONFIG
from kinbase.demo_model import TASKS, Transformer, load, save, train

EXAMPLE = Path(__file__).parent.parent / "examples" / "evolution"

SHARES = """
with spent as (
    select run, generation, count(*) as children, sum(merge_s) as merging, coalesce(sum(evaluate_s), 0) as evaluating
    from offspring where folder is not null group by run, generation
),
lasted as (
    select run, generation, epoch(ended_at - lag(ended_at) over (partition by run order by generation)) as wall from generations
)
select run, generation, children, round(wall, 2) as wall_s, round(merging, 2) as merging_s, round(evaluating, 2) as evaluating_s,
    round(wall - merging - evaluating, 2) as own_s, round(100 * (wall - merging - evaluating) / wall, 1) as own_percent
from spent join lasted using (run, generation) order by run, generation
"""


def make(folder: Path, steps: int) -> list[Path]:
    """A base and three models tuned from it, hardly trained."""
    torch.set_num_threads(1)
    save(Transformer(CONFIG, 0), folder / "base")
    for seed, task in enumerate(("reverse", "sort", "rank"), 1):
        model = load(folder / "base")
        train(model, {task: 1.0}, steps, 1e-3, seed)
        save(model, folder / task)
    return [folder / name for name in ("base", "reverse", "sort", "rank")]


def said(line: str, *, run: str, spent: list[tuple[str, int, float]]) -> None:
    """Show the runner's line, and note the CPU seconds of this process at the end of a generation."""
    sys.stderr.write(line + "\n")
    words = line.replace(":", " ").split()
    if words[0] == "generation":
        spent.append((run, int(words[1]), time.process_time()))


def main() -> None:
    """Print one row a generation."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument(
        "--exercises", type=int, default=2000, help="of each of the five tasks; the example takes 2000"
    )
    parser.add_argument("--steps", type=int, default=5)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        db = kinbase.open(folder / "kinbase.duckdb")
        db.import_(make(folder, given.steps), base="base")
        shutil.copy(EXAMPLE / "accuracy.py", folder)
        spent: list[tuple[str, int, float]] = []
        settings = f"evaluate:\n  settings: {{exercises: {given.exercises}}}\n"
        for strategy in ("greedy", "kinship"):
            text = (
                (EXAMPLE / f"{strategy}.yaml")
                .read_text()
                .replace("generations: 6", "generations: 3\n  unchanged: null")
            )
            # each strategy by a source of its own: neither takes the other's scores
            text = text.replace("evaluate:\n", f"{settings}  source: {strategy}\n")
            (folder / f"{strategy}.yaml").write_text(text)
            db.evolve(folder / f"{strategy}.yaml", tell=partial(said, run=strategy, spent=spent))
        print(f"{len(TASKS)} tasks x {given.exercises} exercises a model")
        since = [b[2] - a[2] for a, b in pairwise(spent)]
        cpu = [(run, number, round(s, 2)) for (run, number, _), s in zip(spent[1:], since, strict=True)]
        columns = {"run": pl.String, "generation": pl.Int32, "cpu_s": pl.Float64}
        shares = db.sql(SHARES).join(
            pl.DataFrame(cpu, schema=columns, orient="row"), on=["run", "generation"], maintain_order="left"
        )
        with pl.Config(tbl_cols=-1, tbl_width_chars=120):
            print(shares)


if __name__ == "__main__":
    main()
