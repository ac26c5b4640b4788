"""What the runner itself costs: a generation's time during which nothing is merged or evaluated, on examples/evolution.

    python benchmarks/evolution.py [--exercises N] [--steps N] [--generations N]

The family is trained for a few steps only (how good it is changes nothing here), then evolved with both strategies and the
example's own evaluator, which notes when each evaluation began and ended. `own` is the rest of a generation's time, from the
end of the one before: planning, importing the children and measuring their kinship with the whole family, and the
transactions, as far as no evaluation runs beside them. `cpu_s` and `cpu_percent` say the same in CPU seconds, of the
runner's process and the evaluator's, which a busy machine stretches less; `all_cpu_s` is the runner's process with what
runs beside evaluations, and with the merging.
"""

import argparse
import shutil
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any, Self

import numpy as np
import polars as pl
import torch

import kinbase
from kinbase import merging
from kinbase.demo.family import CONFIG
from kinbase.demo.model import TASKS, Transformer, load, save, train

EXAMPLE = Path(__file__).parent.parent / "examples" / "evolution"

JUDGE = """
import time
from pathlib import Path
import accuracy

def measure(folder, exercises):
    began, cpu = time.time(), time.process_time()
    try:
        return accuracy.measure(folder, exercises)
    finally:
        with Path(__file__).with_name("spans").open("a") as out:
            out.write(f"{began} {time.time()} {time.process_time() - cpu}\\n")
"""

COLUMNS = (
    "generation", "children", "wall_s", "merging_s", "evaluating_s", "own_s", "own_percent", "cpu_s", "cpu_percent", "all_cpu_s",
)  # fmt: skip


def make(folder: Path, steps: int) -> list[Path]:
    """A base and three models tuned from it, hardly trained."""
    torch.set_num_threads(1)
    save(Transformer(CONFIG, 0), folder / "base")
    for seed, task in enumerate(("reverse", "sort", "rank"), 1):
        model = load(folder / "base")
        train(model, {task: 1.0}, steps, 1e-3, seed)
        save(model, folder / task)
    return [folder / name for name in ("base", "reverse", "sort", "rank")]


class Clock:
    """The CPU seconds of this process by the time of day, looked up every few milliseconds; a thread of its own."""

    def __init__(self) -> None:
        self.at: list[tuple[float, float]] = []
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._over.set()
        self._thread.join()
        self._note()

    def _note(self) -> None:
        self.at.append((time.time(), time.process_time()))

    def _run(self) -> None:
        while not self._over.wait(0.005):
            self._note()

    def cpu(self, moment: float) -> float:
        """CPU seconds used up to a time of day."""
        return float(np.interp(moment, *zip(*self.at, strict=True)))


@contextmanager
def merges_noted(spans: list[tuple[float, float]]) -> Iterator[None]:
    """Note when each merge begins and ends."""
    merge = merging.merge

    def noted(*arguments: Any, **options: Any) -> merging.Merged:
        began = time.time()
        try:
            return merge(*arguments, **options)
        finally:
            spans.append((began, time.time()))

    merging.merge = noted
    try:
        yield
    finally:
        merging.merge = merge


def said(line: str, *, ends: list[float]) -> None:
    """Show the runner's line, and note the end of a generation."""
    sys.stderr.write(line + "\n")
    if line.startswith("generation"):
        ends.append(time.time())


def evolved(
    db: kinbase.Kinbase, folder: Path, strategy: str, given: argparse.Namespace
) -> Iterator[tuple[float, ...]]:
    """Evolve by one strategy; a row of COLUMNS a generation."""
    text = (EXAMPLE / f"{strategy}.yaml").read_text()
    text = text.replace("generations: 6", f"generations: {given.generations}\n  unchanged: null")
    # each strategy by a source of its own: neither takes the other's scores
    wanted = f"judge:measure\n  settings: {{exercises: {given.exercises}}}\n  source: {strategy}"
    (folder / f"{strategy}.yaml").write_text(text.replace("accuracy:measure", wanted))
    ends: list[float] = []
    merges: list[tuple[float, float]] = []
    (folder / "spans").unlink(missing_ok=True)
    with Clock() as clock, merges_noted(merges):
        db.evolve(folder / f"{strategy}.yaml", tell=partial(said, ends=ends))
    judged = [tuple(map(float, line.split())) for line in (folder / "spans").read_text().splitlines()]
    for number, (since, until) in enumerate(pairwise(ends), 1):
        # one evaluation runs at a time, and none while anything is merged
        merged = [span for span in merges if since <= span[0] and span[1] <= until]
        evaluated = [span for span in judged if since <= span[0] and span[1] <= until]
        wall, used = until - since, clock.cpu(until) - clock.cpu(since)
        spent = sum(ended - began for began, ended in merged)
        evaluating = sum(ended - began for began, ended, _ in evaluated)
        own = wall - spent - evaluating
        busy = [clock.cpu(span[1]) - clock.cpu(span[0]) for span in (*merged, *evaluated)]
        cpu = used - sum(busy)
        others = sum(busy[: len(merged)]) + sum(seconds for *_, seconds in evaluated)
        shares = 100 * own / wall, 100 * cpu / (cpu + others)
        yield number, len(merged), wall, spent, evaluating, own, shares[0], cpu, shares[1], used


def main() -> None:
    """Print one row a generation, and the medians."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument(
        "--exercises", type=int, default=8000, help="of each of the five tasks; the example takes 8000"
    )
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--generations", type=int, default=4)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        db = kinbase.open(folder / "kinbase.duckdb")
        db.import_(make(folder, given.steps), base="base")
        shutil.copy(EXAMPLE / "accuracy.py", folder)
        (folder / "judge.py").write_text(JUDGE)
        frames = [
            pl.DataFrame(list(evolved(db, folder, strategy, given)), COLUMNS, orient="row").select(
                pl.lit(strategy).alias("run"), pl.all()
            )
            for strategy in ("greedy", "kinship")
        ]
    print(f"{len(TASKS)} tasks x {given.exercises} exercises a model")
    found = pl.concat(frames)
    with pl.Config(tbl_cols=-1, tbl_rows=-1, tbl_width_chars=140, float_precision=2):
        print(found)
        print(found.select(pl.median("own_s", "own_percent", "cpu_s", "cpu_percent")))


if __name__ == "__main__":
    main()
