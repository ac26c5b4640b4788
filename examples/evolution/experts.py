"""The scale study's grid (after arXiv 2410.03617) in small: eight experts of one base, and what they are judged on.

    python examples/evolution/experts.py FOLDER

makes FOLDER/{base,reverse,...}, FOLDER/tasks.csv (what each task is about), FOLDER/experts.csv (who was trained for
what) and FOLDER/scores.csv (the base's own scores, by which held-out ones are divided). Then `grid.yaml` merges.
"""

import csv
import sys
from pathlib import Path

import torch

from kinbase.demo.model import FIRST_TASK, TASKS, Config, Transformer, evaluate, load, save, train

MORE = {
    "rotate": lambda digits: digits.roll(-1, 1),
    "mirror": lambda digits: 9 - digits,
    "swap": lambda digits: digits.view(-1, 3, 2).flip(2).flatten(1),
    "double": lambda digits: digits * 2 % 10,
    "valley": lambda digits: digits.cummin(1).values,
    "down": lambda digits: digits.sort(1, descending=True).values,
    "even": lambda digits: (digits % 2).cumsum(1),
}
"""rotate: the first digit last. mirror: nine's complement. swap: neighbours exchanged. double: modulo 10.
valley: the smallest digit so far. down: descending. even: how many odd digits so far."""
TASKS.update(MORE)  # of this process: the trainer draws from what is there

CATEGORIES = {
    "order": ("reverse", "rotate", "swap"), "sorting": ("sort", "rank", "down"), "arithmetic": ("mirror", "double", "even"),
    "running": ("peak", "valley"),
}  # fmt: skip
JUDGED = tuple(task for tasks in CATEGORIES.values() for task in tasks)
"""Not `total`, of which so small a base knows nothing: a score cannot be divided by nothing."""
HELD_OUT = ("down", "valley", "even")
EXPERTS = tuple(task for task in JUDGED if task not in HELD_OUT)
EASY = ("rotate", "mirror", "double", "peak", "valley")
MIX = {task: 0.2 if task in EASY else 1.5 for task in JUDGED}
"""What the base practises: little of what is soon learnt, so that it is good at nothing yet."""
CONFIG = Config(vocab_size=FIRST_TASK + len(TASKS))
EXERCISES = 500
BASE_STEPS, STEPS, REHEARSAL = 160, 60, 0.1


def measure(folder: str, exercises: int = EXERCISES) -> dict[str, dict[str, float]]:
    """Accuracy in percent and its standard error by task; what `kinbase evolve` calls for each child."""
    torch.set_num_threads(1)
    model = load(Path(folder))
    found = {task: evaluate(model, task, exercises) for task in JUDGED}
    return {
        task: {"acc": 100 * accuracy, "acc_stderr": 100 * stderr}
        for task, (accuracy, stderr) in found.items()
    }


def make(folder: Path) -> None:
    """Train the base on all tasks, stopped early, and an expert in each held-in one."""
    torch.set_num_threads(1)
    if not (folder / "base").exists():
        model = Transformer(CONFIG, 0)
        train(model, MIX, BASE_STEPS, 3e-3, 0, batch=96)
        save(model, folder / "base")
    for order, task in enumerate(EXPERTS, 1):
        if not (folder / task).exists():
            model = load(folder / "base")
            rest = REHEARSAL / (len(JUDGED) - 1)
            train(
                model, {t: 1 - REHEARSAL if t == task else rest for t in JUDGED}, STEPS, 1e-3, order, batch=96
            )
            save(model, folder / task)
    rows = [(task, category) for category, tasks in CATEGORIES.items() for task in tasks]
    _write(folder / "tasks.csv", ("benchmark", "category"), rows)
    _write(folder / "experts.csv", ("model", "benchmark"), [(task, task) for task in EXPERTS])
    scores = [
        ("base", task, "acc", said["acc"], "experts:measure")
        for task, said in measure(str(folder / "base")).items()
    ]
    _write(folder / "scores.csv", ("model", "benchmark", "metric", "value", "source"), scores)


def _write(path: Path, columns: tuple[str, ...], rows: list[tuple[object, ...]]) -> None:
    with path.open("w", newline="") as out:
        csv.writer(out).writerows([columns, *rows])


if __name__ == "__main__":
    make(Path(sys.argv[1]))
