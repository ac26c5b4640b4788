"""The evaluator of this example: the share of held-out exercises a model answers without a fault, task by task."""

from pathlib import Path

import torch

from kinbase.demo.model import TASKS, evaluate, load

EXERCISES = 8000
"""Of each task: a standard error of at most 0.6 points a task, 0.25 points of the mean of five. They are the same
exercises for every model, so that two models' difference is surer than that."""


def measure(folder: str, exercises: int = EXERCISES) -> dict[str, dict[str, float]]:
    """Accuracy in percent and its standard error by task; what `kinbase evolve` calls for each child."""
    torch.set_num_threads(1)  # the same sums on every machine, and no quarrel over cores
    model = load(Path(folder))
    found = {task: evaluate(model, task, exercises) for task in TASKS}
    return {
        task: {"acc": 100 * accuracy, "acc_stderr": 100 * stderr}
        for task, (accuracy, stderr) in found.items()
    }
