"""Everything an evolution run evaluated by lm-evaluation-harness needs, made offline: models, tokenizer, tasks.

    python examples/lm-eval/prepare.py FOLDER

writes FOLDER/models (the demo's family, about a minute of training), gives each model the tokenizer that
transformers loads, writes the exercises of three tasks with their lm-eval task files to FOLDER/tasks, and copies
evolve.yaml there.
"""

import json
import shutil
import sys
from pathlib import Path

import torch

from kinbase.demo.family import make_family
from kinbase.demo.model import DIGITS, TASKS, draw

WORDS = [*map(str, range(10)), "=", *TASKS]
"""The vocabulary, in the order of the model's tokens."""

TASK = """\
task: {task}
dataset_path: json
dataset_kwargs:
  data_files:
    test: {file}
test_split: test
output_type: generate_until
doc_to_text: "{{{{question}}}}"
doc_to_target: "{{{{answer}}}}"
target_delimiter: ""
generation_kwargs: {{until: ["="], max_gen_toks: {digits}, do_sample: false}}
metric_list:
  - {{metric: exact_match, aggregation: mean, higher_is_better: true}}
metadata: {{version: 1.0}}
"""


def prepare(
    folder: Path,
    *,
    tasks: tuple[str, ...] = ("reverse", "sort", "rank"),
    exercises: int = 500,
    steps_scale: float = 1.0,
) -> list[Path]:
    """The model folders, the base first; see the module."""
    models = make_family(folder, steps_scale=steps_scale)
    for model in models:
        if (model / "config.json").exists():  # an adapter has none
            write_tokenizer(model)
    (folder / "tasks").mkdir(exist_ok=True)
    for task in tasks:
        write_task(folder / "tasks", task, exercises)
    shutil.copy(Path(__file__).with_name("evolve.yaml"), folder)
    return models


def write_tokenizer(model: Path) -> None:
    """A tokenizer of whole words, as `tokenizers` and transformers read it."""
    tokenizer = {
        "version": "1.0", "truncation": None, "padding": None, "added_tokens": [], "normalizer": None,
        "pre_tokenizer": {"type": "WhitespaceSplit"}, "post_processor": None, "decoder": None,
        "model": {"type": "WordLevel", "vocab": {word: i for i, word in enumerate(WORDS)}, "unk_token": "="},
    }  # fmt: skip
    (model / "tokenizer.json").write_text(json.dumps(tokenizer, indent=1) + "\n")
    # An answer never holds "=": it serves as the end, and nothing is ever padded.
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "eos_token": "=",
        "pad_token": "=",
        "clean_up_tokenization_spaces": False,
    }
    (model / "tokenizer_config.json").write_text(json.dumps(settings, indent=1) + "\n")


def write_task(folder: Path, task: str, exercises: int) -> None:
    """The held-out exercises that `kinbase.demo.model.evaluate` examines, as questions and answers."""
    generator = torch.Generator().manual_seed(list(TASKS).index(task))
    file = folder / f"{task}.jsonl"
    with file.open("w") as out:
        for tokens in draw(task, exercises, generator, held_out=True).tolist():
            words = [WORDS[token] for token in tokens]
            record = {"question": " ".join(words[:-DIGITS]), "answer": " ".join(words[-DIGITS:])}
            out.write(json.dumps(record) + "\n")
    (folder / f"{task}.yaml").write_text(
        TASK.format(task=f"digits_{task}", file=file.resolve(), digits=DIGITS)
    )


if __name__ == "__main__":
    for path in prepare(Path(sys.argv[1])):
        sys.stdout.write(f"{path}\n")
