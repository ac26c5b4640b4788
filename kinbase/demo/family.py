"""The demo family: a base, its fine-tunes, an adapter and merges, trained here in under a minute.

Nothing is faked: every model is trained or merged, saved, and examined on exercises it never saw. The
base learns five kinds of exercise at once and is stopped half-way; each specialist then practises one
kind and forgets some of the others; merges of specialists win back what their parents forgot, or not.
Folders look as they do on the Hub: config.json, safetensors, a model card, mergekit_config.yml, and results
as lm-evaluation-harness writes them. The same seed gives the same bytes on the same machine.
"""

import io
import json
import shutil
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any

import torch
from ruamel.yaml import YAML

from kinbase import merging
from kinbase.demo.model import (
    EQUALS,
    FIRST_TASK,
    TASKS,
    Config,
    Transformer,
    add_lora,
    evaluate,
    load,
    save,
    save_adapter,
    train,
)
from kinbase.errors import UsageError

CONFIG = Config()
EXAMPLES = 1000
"""Held-out exercises of each task: a standard error of at most 1.6 points."""
REHEARSAL = 0.1
"""The share of a specialist's training spent on the other tasks; without any it forgets them altogether."""
LORA_RANK, LORA_ALPHA = 8, 16
LORA_TARGETS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
MEASURING = 15
"""What saving and examining a model costs, in training steps; for the progress bar only."""
FIRST_DATE = datetime(2025, 1, 1, tzinfo=UTC)
"""The date of the base's results; each later model's are a day later, so that files are the same every time."""


@dataclass(frozen=True)
class Trained:
    """A model trained on a mixture of tasks: the base, a fine-tune of `parent`, or an adapter on it."""

    name: str
    story: str
    mix: Mapping[str, float]
    steps: int
    lr: float
    parent: str | None = None
    lora: bool = False


@dataclass(frozen=True)
class Merged:
    """A merge: `weights` has one number a parent (linear, task_arithmetic), or t alone (slerp)."""

    name: str
    story: str
    method: str
    parents: tuple[str, ...]
    weights: tuple[float, ...]
    base: str | None = None


BASE = "digits-base"

EVOLUTION = """\
# Two generations from three specialists: the best pairs, and the best with its least kin (docs/evolution.md).
strategy: kinship
name: digits
models: [digits-reverse, digits-sort, digits-rank]
base: digits-base
k: 2
merge: {method: linear}
evaluate: {by: python, function: "kinbase.demo.family:accuracies"}
stop: {generations: 2}
"""


def _specialist(name: str, task: str, story: str, *, lr: float = 1e-3, lora: bool = False) -> Trained:
    """A model that goes on from the base with nine parts of one task and one part of all the others."""
    rest = REHEARSAL / (len(TASKS) - 1)
    mix = {other: 1 - REHEARSAL if other == task else rest for other in TASKS}
    return Trained(name, story, mix, 120, lr, BASE, lora)


FAMILY: tuple[Trained | Merged, ...] = (
    Trained(
        BASE,
        "The base: five tasks at once, stopped half-way.",
        {"reverse": 0.8, "sort": 0.6, "rank": 1.6, "total": 2.0, "peak": 0.2},
        280,
        3e-3,
    ),
    _specialist("digits-reverse", "reverse", "Fine-tuned to reverse."),
    _specialist("digits-sort", "sort", "Fine-tuned to sort."),
    _specialist("digits-sort-twin", "sort", "Fine-tuned to sort, on other exercises than digits-sort."),
    _specialist("digits-rank", "rank", "Fine-tuned to rank."),
    _specialist("digits-rank-lora", "rank", "A low-rank adapter that ranks.", lr=5e-3, lora=True),
    Merged(
        "digits-reverse-sort",
        "Two specialists that are little kin.",
        "linear",
        ("digits-reverse", "digits-sort"),
        (0.6, 0.4),
    ),
    Merged(
        "digits-sort-twins",
        "Two specialists in the same task.",
        "slerp",
        ("digits-sort", "digits-sort-twin"),
        (0.5,),
    ),
    Merged(
        "digits-reverse-rank",
        "Two task vectors, each added whole to the base.",
        "task_arithmetic",
        ("digits-reverse", "digits-rank"),
        (1.0, 1.0),
        base=BASE,
    ),
    Merged(
        "digits-all",
        "The second generation: a merge, merged with the specialist it lacks.",
        "linear",
        ("digits-reverse-sort", "digits-rank"),
        (0.5, 0.5),
    ),
)
"""The family in import order: parents before children."""


def make_family(
    folder: Path,
    *,
    seed: int = 0,
    steps_scale: float = 1.0,
    progress: Callable[[str, float], None] | None = None,
) -> list[Path]:
    """Make the family in `folder`/models and return the model folders: the base first, parents before children.

    A model that is already there whole is not made again, so an interrupted run goes on where it was. A
    demo of another seed or of an older recipe is replaced; a folder with anything else in it is refused.
    `steps_scale` scales the training; `progress` hears what is being made and the share done of the whole.
    """
    _claim(folder, seed, steps_scale)
    models = folder / "models"
    models.mkdir(exist_ok=True)
    costs = [
        MEASURING + (_steps(recipe, steps_scale) if isinstance(recipe, Trained) else 0) for recipe in FAMILY
    ]

    def report(order: int, share: float) -> None:
        done = sum(costs[:order]) + share * (costs[order] - MEASURING)
        if progress is not None:
            progress(FAMILY[order].name, done / sum(costs))

    threads = torch.get_num_threads()
    # One thread: on tensors this small a second one gains a fifth, loses many times that when another
    # process wants its core, and makes the last bits depend on the number of cores.
    torch.set_num_threads(1)
    try:
        for order, recipe in enumerate(FAMILY):
            report(order, 0.0)
            if (models / recipe.name).exists():
                continue
            unfinished = models / f".{recipe.name}.part"
            shutil.rmtree(unfinished, ignore_errors=True)
            unfinished.mkdir()
            if isinstance(recipe, Trained):
                steps = _steps(recipe, steps_scale)
                model = _train(recipe, models, unfinished, steps, 1000 * seed + order, partial(report, order))
            else:
                model = _merge(recipe, models, unfinished)
            scores = {task: evaluate(model, task, EXAMPLES) for task in TASKS}
            _write_results(recipe, unfinished, order, scores)
            _write_card(recipe, unfinished, scores)
            unfinished.rename(models / recipe.name)
    finally:
        torch.set_num_threads(threads)
    if progress is not None:
        progress(FAMILY[-1].name, 1.0)
    return [models / recipe.name for recipe in FAMILY]


def accuracies(folder: str) -> dict[str, dict[str, float]]:
    """Accuracy and its standard error by task of the model in `folder`: the evaluator of the demo's evolution."""
    torch.set_num_threads(1)
    model = load(Path(folder))
    found = {task: evaluate(model, task, EXAMPLES) for task in TASKS}
    return {task: {"acc": accuracy, "acc_stderr": stderr} for task, (accuracy, stderr) in found.items()}


def _claim(folder: Path, seed: int, steps_scale: float) -> None:
    """Mark the folder as holding this very family, after clearing away another demo's models."""
    marker = folder / ".kinbase-demo.json"
    recipe = {
        "seed": seed,
        "steps_scale": steps_scale,
        "examples": EXAMPLES,
        "config": asdict(CONFIG),
        "family": [asdict(recipe) for recipe in FAMILY],
    }
    wanted = json.dumps(recipe, indent=2) + "\n"
    if marker.exists():
        if marker.read_text() == wanted:
            return
        for model in FAMILY:
            shutil.rmtree(folder / "models" / model.name, ignore_errors=True)
    elif folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UsageError(f"{folder} exists and is not a demo: name a folder that is empty or not there yet")
    folder.mkdir(parents=True, exist_ok=True)
    marker.write_text(wanted)


# Training.


def _steps(recipe: Trained, scale: float) -> int:
    return max(1, round(recipe.steps * scale))


def _train(
    recipe: Trained, family: Path, folder: Path, steps: int, seed: int, report: Callable[[float], None]
) -> Transformer:
    """Train the model or adapter, write it to `folder` and return it as it was written."""
    model = Transformer(CONFIG, seed) if recipe.parent is None else load(family / recipe.parent)
    if recipe.lora:
        assert recipe.parent is not None
        add_lora(model, LORA_TARGETS, LORA_RANK, LORA_ALPHA, seed)
        train(model, recipe.mix, steps, recipe.lr, seed, progress=report)
        save_adapter(model, folder, base=recipe.parent, targets=LORA_TARGETS, r=LORA_RANK, alpha=LORA_ALPHA)
        return model  # an adapter is written in float32, so this is what was written
    train(model, recipe.mix, steps, recipe.lr, seed, progress=report)
    save(model, folder)
    return load(folder)


# Merging.


def _merge(recipe: Merged, family: Path, folder: Path) -> Transformer:
    """Merge the parents into `folder` and return the child as it was written."""
    config = _mergekit_config(recipe)
    made = folder / "merged"
    names = [*recipe.parents, *([recipe.base] if recipe.base else [])]
    merging.merge(
        merging.parse(config, recipe.name), made, sources={name: str(family / name) for name in names}
    )
    for file in ("config.json", "model.safetensors"):
        (made / file).rename(folder / file)
    shutil.rmtree(made)
    _write_yaml(config, folder / "mergekit_config.yml")  # names, not paths: the family can be moved
    return load(folder)


# What lies beside the weights.


def _mergekit_config(recipe: Merged) -> dict[str, Any]:
    """The mergekit configuration that gives this child from its parents."""
    precision = {"dtype": "float32", "out_dtype": "bfloat16"}
    if recipe.method == "slerp":
        layers = [0, CONFIG.layers]
        sources = [{"model": parent, "layer_range": layers.copy()} for parent in recipe.parents]
        return {
            "slices": [{"sources": sources}],
            "merge_method": "slerp",
            "base_model": recipe.parents[0],
            "parameters": {"t": recipe.weights[0]},
            **precision,
        }
    models = [
        {"model": parent, "parameters": {"weight": weight}}
        for parent, weight in zip(recipe.parents, recipe.weights, strict=True)
    ]
    base = {} if recipe.base is None else {"base_model": recipe.base}
    return {"models": models, "merge_method": recipe.method, **base, **precision}


def _write_results(
    recipe: Trained | Merged, folder: Path, order: int, scores: Mapping[str, tuple[float, float]]
) -> None:
    """Write the scores as lm-evaluation-harness does, under its file name."""
    date = FIRST_DATE + timedelta(days=order)
    lora = isinstance(recipe, Trained) and recipe.lora
    record = {
        "results": {
            task: {"alias": task, "acc,none": accuracy, "acc_stderr,none": stderr}
            for task, (accuracy, stderr) in scores.items()
        },
        "group_subtasks": {task: [] for task in scores},
        "configs": {
            task: {
                "task": task,
                "num_fewshot": 0,
                "output_type": "generate_until",
                "metadata": {"version": 1.0},
            }
            for task in scores
        },
        "versions": dict.fromkeys(scores, 1.0),
        "n-shot": dict.fromkeys(scores, 0),
        "higher_is_better": {task: {"acc": True} for task in scores},
        "n-samples": {task: {"original": EXAMPLES, "effective": EXAMPLES} for task in scores},
        "config": {
            "model": "kinbase-demo",
            "model_args": f"pretrained={recipe.parent},peft={recipe.name}"
            if isinstance(recipe, Trained) and lora
            else f"pretrained={recipe.name}",
            "model_dtype": "torch.bfloat16",
            "model_revision": "main",
            "batch_size": 256,
        },
        "date": date.timestamp(),
        "model_source": "kinbase-demo",
        "model_name": recipe.name,
        "model_name_sanitized": recipe.name,
    }
    path = folder / f"results_{date:%Y-%m-%dT%H-%M-%S.%f}.json"
    path.write_text(json.dumps(record, indent=2) + "\n")


def _write_card(recipe: Trained | Merged, folder: Path, scores: Mapping[str, tuple[float, float]]) -> None:
    """Write README.md: what the Hub reads in the header, what a person reads below it."""
    header: dict[str, Any] = {
        "license": "apache-2.0",
        "library_name": "transformers",
        "tags": ["kinbase-demo"],
    }
    body = f"# {recipe.name}\n\n{recipe.story}\n"
    if isinstance(recipe, Merged):
        # mergekit's own cards name every model of the configuration, a task vector's base among them.
        header["base_model"] = [*recipe.parents, *([recipe.base] if recipe.base else [])]
        header["base_model_relation"] = "merge"
        header["tags"] += ["mergekit", "merge"]
        config = (folder / "mergekit_config.yml").read_text()
        body += f"\nThe following YAML configuration was used:\n\n```yaml\n{config}```\n"
    elif recipe.parent is not None:
        header["base_model"] = recipe.parent
        header["base_model_relation"] = "adapter" if recipe.lora else "finetune"
        if recipe.lora:
            header["library_name"] = "peft"
    rows = "".join(
        f"| {task} | {accuracy:.1%} | {stderr:.1%} |\n" for task, (accuracy, stderr) in scores.items()
    )
    marks = ", ".join(f"{FIRST_TASK + order} {task}" for order, task in enumerate(TASKS))
    body += "\nAn exercise is a task token, six digits, an equals sign and the six digits of the answer.\n"
    body += f"Tokens: 0-9 the digits, {EQUALS} the equals sign, {marks}.\n"
    body += (
        f"\nHeld-out exercises answered without a fault:\n\n| task | share | stderr |\n|---|---|---|\n{rows}"
    )
    path = folder / "README.md"
    _write_yaml(header, path)
    path.write_text(f"---\n{path.read_text()}---\n\n{body}")


def _write_yaml(record: Mapping[str, Any], path: Path) -> None:
    text = io.StringIO()
    YAML().dump(dict(record), text)
    path.write_text(text.getvalue())
