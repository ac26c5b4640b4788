"""Trains this example's families: a base that knows a little of five tasks, and a specialist in each of three.

    python examples/evolution/family.py FOLDER [SEED ...]

makes FOLDER/seed-N/{base,reverse,sort,rank}; a model that is there already is not made again. The recipes are
those of `kinbase demo`: the same small Llama, exercises and steps.
"""

import sys
from pathlib import Path

import torch

from kinbase.demo.family import BASE, CONFIG, FAMILY, REHEARSAL, Trained
from kinbase.demo.model import TASKS, Transformer, load, save, train

SPECIALISTS = ("reverse", "sort", "rank")


def make(folder: Path, seed: int) -> list[Path]:
    """The folders of one family, the base first."""
    torch.set_num_threads(1)
    recipes = {recipe.name: recipe for recipe in FAMILY if isinstance(recipe, Trained)}
    base = folder / "base"
    if not base.exists():
        recipe = recipes[BASE]
        model = Transformer(CONFIG, seed)
        train(model, recipe.mix, recipe.steps, recipe.lr, 1000 * seed)
        _save(model, base)
    found = [base]
    for order, task in enumerate(SPECIALISTS, 1):
        found.append(folder / task)
        if found[-1].exists():
            continue
        recipe = recipes[f"digits-{task}"]
        rest = REHEARSAL / (len(TASKS) - 1)
        model = load(base)
        train(
            model,
            {t: 1 - REHEARSAL if t == task else rest for t in TASKS},
            recipe.steps,
            recipe.lr,
            1000 * seed + order,
        )
        _save(model, found[-1])
    return found


def _save(model: Transformer, folder: Path) -> None:
    """Write a model to its folder whole, so that an interrupted run leaves no half one."""
    part = folder.with_name(f".{folder.name}.part")
    save(model, part)
    part.rename(folder)


if __name__ == "__main__":
    for seed in map(int, sys.argv[2:] or ["0", "1", "2"]):
        for path in make(Path(sys.argv[1], f"seed-{seed}"), seed):
            sys.stdout.write(f"{path}\n")
