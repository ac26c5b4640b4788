"""What trainers leave of a run's settings: axolotl's and LLaMA-Factory's YAML, and wandb's config.yaml.

They name the model that training began from; the data and the kind of training are the edge's detail.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path

from kinbase.checkpoint import UNSAID, Edge, Facts, Record
from kinbase.checkpoint import yaml as safe_yaml
from kinbase.checkpoint.files import is_file, shown
from kinbase.checkpoint.ids import revised, says_nothing
from kinbase.checkpoint.untrusted import head, model_id, problems, read_text
from kinbase.errors import CheckpointError

_LIMIT = 1 << 20
_BASES = ("base_model", "model_name_or_path", "base_model_name_or_path", "pretrained_model_name_or_path", "_name_or_path",
          "model_name", "model_id", "model")  # fmt: skip
_ADAPTERS = ("lora", "qlora", "dora", "ia3", "oft", "adapter")
_KEPT = (
    "adapter", "finetuning_type", "stage", "lora_r", "lora_alpha", "lora_rank", "lora_target", "num_epochs",
    "num_train_epochs", "learning_rate", "max_steps", "sequence_len", "cutoff_len", "template", "chat_template", "rl", "seed",
)  # fmt: skip
_DATA = ("datasets", "dataset", "pretraining_dataset", "dataset_name", "train_file", "eval_dataset")


def recognises(source: str) -> bool:
    """A YAML file with the keys of one of the three near its top."""
    path = Path(source)
    if path.suffix.lower() not in (".yml", ".yaml") or not is_file(source):
        return False
    begins = b"\n" + head(source, 65536).replace(b"\r", b"\n")
    if b"\nmerge_method:" in begins or b"\nexperts:" in begins:
        return False

    def has(*keys: str) -> bool:
        return any(f"\n{key}:".encode() in begins for key in keys)

    axolotl = has("base_model") and has("datasets", "pretraining_dataset", "adapter", "sequence_len", "rl")
    factory = has("model_name_or_path") and has("finetuning_type", "stage", "dataset", "do_train")
    return axolotl or factory or (has("_wandb", "wandb_version") and path.name.startswith("config"))


def open(source: str) -> Iterator[Record]:
    """The claim of one run's settings on the model it made."""
    path = Path(source)
    text, whole = read_text(path, _LIMIT)
    documents = safe_yaml.load(text, shown(source)) if whole else []
    settings = next((each for each in documents if isinstance(each, dict)), None)
    if settings is None:
        raise CheckpointError(f"{shown(source)} is no configuration of a training run")
    tool = (
        "wandb"
        if {"_wandb", "wandb_version"} & settings.keys()
        else "axolotl"
        if "base_model" in settings
        else "llamafactory"
    )
    if tool == "wandb":
        settings = {
            key: _value(value) for key, value in settings.items() if key not in ("_wandb", "wandb_version")
        }
    refused: list[str] = []
    stated = next(
        (
            settings[key]
            for key in _BASES
            if isinstance(settings.get(key), str) and not says_nothing(settings[key])
        ),
        None,
    )
    parent = model_id(stated, refused)
    revision = next(
        (settings[k] for k in ("revision_of_model", "model_revision") if isinstance(settings.get(k), str)),
        None,
    )
    relation = _relation(settings)
    detail = (
        {"tool": tool}
        | {k: settings[k] for k in _KEPT if isinstance(settings.get(k), str | int | float)}
        | _data(settings)
    )
    yield Facts(relation=relation)
    label = revised(parent, revision) if parent else UNSAID
    yield Edge(
        label, relation, "config", method=_text(settings.get("rl") or settings.get("stage")), detail=detail
    )
    if before := model_id(settings.get("adapter_name_or_path") or settings.get("lora_model_dir"), refused):
        yield Edge(before, "adapter", "config", detail={"tool": tool, "resumed": True})
    yield from problems(path.name, refused)


def _relation(settings: Mapping[str, object]) -> str:
    kind = str(
        settings.get("adapter") or settings.get("finetuning_type") or settings.get("peft_type") or ""
    ).lower()
    return "adapter" if kind in _ADAPTERS else "finetune"


def _data(settings: Mapping[str, object]) -> dict[str, object]:
    """The data sets by name, as far as they are named."""
    found: list[str] = []
    for key in _DATA:
        told = settings.get(key)
        for each in told if isinstance(told, list) else str(told).split(",") if isinstance(told, str) else []:
            path = each.get("path") if isinstance(each, dict) else each
            if isinstance(path, str) and not says_nothing(path):
                found.append(path.strip()[:200])
    return {"datasets": list(dict.fromkeys(found))[:100]} if found else {}


def _value(entry: object) -> object:
    """A setting of wandb, which stands beside its description."""
    return entry.get("value") if isinstance(entry, dict) and "value" in entry else entry


def _text(value: object) -> str | None:
    return value if isinstance(value, str) and 0 < len(value) <= 40 else None
