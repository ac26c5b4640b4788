"""Both strategies on three families of real models, measured; and the same runs stopped early, replayed from their records.

    python examples/evolution/experiment.py FOLDER [SEED ...]

trains the families (family.py), evolves each with greedy.yaml and kinship.yaml in FOLDER/seed-N/kinbase.duckdb, and
writes results/generations.csv, children.csv, stopped.csv and winners.csv beside this file. What is done already is
not done again.
"""

import csv
import shutil
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

import torch
from accuracy import EXERCISES
from family import make

import kinbase
from kinbase.database import Kinbase
from kinbase.demo.model import TASKS, evaluate, load

HERE = Path(__file__).parent
FRESH = 8000
"""Further exercises of each task for the models that runs chose, drawn after those that chose them."""

GENERATIONS = """
select run as strategy, generation, scored, best, best_score, best_so_far, top_kinship, reason from generations
where run in ('greedy', 'kinship') order by strategy, generation
"""
CHILDREN = """
select run as strategy, generation, o.child, o.parents[1] as parent_a, o.parents[2] as parent_b, role,
    round(o.kinship, 6) as kinship, round(o.score, 4) as score, round(g.gain, 4) as gain, round(g.over_best, 4) as over_best,
    round(merge_s, 3) as merge_s, round(evaluate_s, 3) as evaluate_s
from offspring o left join merge_gains g on g.child = o.child and g.benchmark = 'average'
where run in ('greedy', 'kinship')
order by run, o.generation, position
"""
STOPPED = """
select strategy, (select count(*) from offspring o where o.run = r.run and o.status = 'scored') as children,
    best_score, generations
from runs r where run = ?
"""


def run(folder: Path, seed: int) -> Kinbase:
    """One family with both strategies, in its own database."""
    models = make(folder, seed)
    db = kinbase.open(folder / "kinbase.duckdb")
    db.import_(models, base="base")
    for name in ("accuracy.py", "greedy.yaml", "kinship.yaml"):
        shutil.copy(HERE / name, folder)
    for strategy in ("greedy", "kinship"):
        begun = db.sql("select status from runs where run = ?", [strategy])
        if begun.is_empty():
            db.evolve(folder / f"{strategy}.yaml", tell=_say)
        elif begun.item() != "finished":
            db.evolve(resume=strategy, tell=_say)
    return db


def stopped(db: Kinbase, folder: Path) -> Iterable[tuple[object, ...]]:
    """Each run again from its records, stopped at a mean kinship of the best above 0.9: at once, or after two generations."""
    for strategy in ("greedy", "kinship"):
        text = (folder / f"{strategy}.yaml").read_text()
        text = text.replace("by: python", "by: recorded").replace(
            "function: accuracy:measure", "source: accuracy:measure"
        )
        for rule, patience in (("none", None), ("0.9 at once", 1), ("0.9 for two generations", 2)):
            name = f"{strategy}-{patience or 'none'}"
            stop = "kinship: null" if patience is None else f"kinship: 0.9\n  patience: {patience}"
            (folder / "replay.yaml").write_text(
                text.replace("kinship: null", stop) + f"score: {{benchmarks: [{', '.join(TASKS)}]}}\n"
            )
            if db.sql("from runs where run = ?", [name]).is_empty():
                db.evolve(folder / "replay.yaml", name=name)
            ((_, children, best, generations),) = db.sql(STOPPED, [name]).rows()
            yield strategy, rule, generations, children, best


def winners(db: Kinbase) -> Iterable[tuple[object, ...]]:
    """The best specialist and the best of each run, on exercises that chose neither."""
    best = dict(db.sql("select run, best from runs where run in ('greedy', 'kinship')").rows())
    start = db.sql("select best from generations where run = 'greedy' and generation = 0").item()
    for role, model in {"best specialist": start, **best}.items():
        source = db.sql("select source from models where name = ?", [model]).item()
        chosen = db.sql(
            "select avg(value) from scores where model = ? and source = 'accuracy:measure'", [model]
        ).item()
        yield role, model, round(chosen, 4), round(unseen(Path(source)), 4)


def unseen(folder: Path, seen: int = EXERCISES) -> float:
    """Mean accuracy in percent over the exercises after the first `seen`, which evaluate draws in a fixed order."""
    torch.set_num_threads(1)
    model = load(folder)
    rights = [
        evaluate(model, task, seen + FRESH)[0] * (seen + FRESH) - evaluate(model, task, seen)[0] * seen
        for task in TASKS
    ]
    return 100 * sum(rights) / (FRESH * len(TASKS))


def _write(name: str, columns: Sequence[str], rows: list[tuple[object, ...]]) -> None:
    (HERE / "results").mkdir(exist_ok=True)
    with (HERE / "results" / f"{name}.csv").open("w", newline="") as out:
        csv.writer(out, lineterminator="\n").writerows([columns, *rows])


def _say(line: str) -> None:
    sys.stderr.write(line + "\n")


def main() -> None:
    """All seeds, one after the other."""
    folder, seeds = Path(sys.argv[1]), [int(seed) for seed in sys.argv[2:] or ("0", "1", "2")]
    found: dict[str, list[tuple[object, ...]]] = {
        "generations": [],
        "children": [],
        "stopped": [],
        "winners": [],
    }
    columns: dict[str, Sequence[str]] = {
        "stopped": ("seed", "strategy", "rule", "generations", "children", "best"),
        "winners": ("seed", "role", "model", "chosen_by", "unseen"),
    }  # fmt: skip
    for seed in seeds:
        place = folder / f"seed-{seed}"
        db = run(place, seed)
        for name, query in (("generations", GENERATIONS), ("children", CHILDREN)):
            frame = db.sql(query)
            columns[name] = ("seed", *frame.columns)
            found[name] += [(seed, *row) for row in frame.rows()]
        found["stopped"] += [(seed, *row) for row in stopped(db, place)]
        found["winners"] += [(seed, *row) for row in winners(db)]
    for name, rows in found.items():
        _write(name, columns[name], rows)


if __name__ == "__main__":
    main()
