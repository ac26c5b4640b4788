"""MLflow's local store: a logged model's MLmodel file, and the folders of runs and logged models (meta.yaml).

A logged model names what it was made from (`source_model_name`) and its run; the run's parameters tell the model that
training began from, and its metrics are scores.
"""

from collections.abc import Iterator, Mapping
from datetime import datetime
from pathlib import Path

from kinbase.checkpoint import Edge, Facts, Record, Score
from kinbase.checkpoint import yaml as safe_yaml
from kinbase.checkpoint.files import is_file, is_folder, read_bounded, shown
from kinbase.checkpoint.untrusted import decoded, head, model_id, moment, name, number, problems
from kinbase.errors import CheckpointError

_LIMIT = 1 << 20
_MOST = 1000
_BASES = (
    "base_model",
    "model_name_or_path",
    "base_model_name_or_path",
    "_name_or_path",
    "pretrained",
    "model_name",
)
_ADAPTERS = ("lora", "qlora", "adapter", "peft")


def recognises(source: str) -> bool:
    """An MLmodel file, or the folder of a run or of a logged model."""
    if is_file(source):
        return Path(source).name == "MLmodel"
    meta = Path(source, "meta.yaml")
    return (
        is_folder(source)
        and is_file(str(meta))
        and any(k in head(str(meta), 65536) for k in (b"run_id:", b"source_run_id:"))
    )


def open(source: str) -> Iterator[Record]:
    """What the store says of one model."""
    refused: list[str] = []
    if is_file(source):
        yield from _logged(_document(Path(source)), Path(source), refused)
    else:
        yield from _stored(Path(source), refused)
    yield from problems(Path(source).name, refused)


def _logged(model: Mapping[str, object], path: Path, refused: list[str]) -> Iterator[Record]:
    flavours = model.get("flavors")
    kept = {
        k: model[k]
        for k in ("run_id", "model_uuid", "model_id", "mlflow_version")
        if isinstance(model.get(k), str)
    }
    yield Facts(created_at=moment(_iso(model.get("utc_time_created"))))
    for flavour in flavours.values() if isinstance(flavours, dict) else ():
        stated = flavour.get("source_model_name") if isinstance(flavour, dict) else None
        if parent := model_id(stated, refused):
            relation = "adapter" if flavour.get("peft_adaptor") else "finetune"
            yield Edge(parent, relation, "config", detail={"tool": "mlflow", **kept})


def _stored(folder: Path, refused: list[str]) -> Iterator[Record]:
    """A run's folder, or a logged model's, which says of which run it is."""
    meta = _document(folder / "meta.yaml")
    label = name(meta.get("name") or meta.get("run_name"), refused) or folder.name
    run = name(meta.get("source_run_id"), refused)
    of_run = folder.parent.parent / run if run and "/" not in run and run not in (".", "..") else None
    places = [folder, *([of_run] if of_run and is_folder(str(of_run)) else [])]
    when = meta.get("end_time") or meta.get("creation_timestamp") or meta.get("start_time")
    created = moment(when / 1000) if isinstance(when, int | float) else None
    yield Facts(label, created_at=created)
    settings: dict[str, str] = {}
    for place in reversed(places):
        settings |= dict(_entries(place / "params"))
    parent = next((p for p in (model_id(settings.get(key), refused) for key in _BASES) if p), None)
    if parent:
        kind = f"{settings.get('adapter', '')} {settings.get('peft_type', '')} {settings.get('finetuning_type', '')}".lower()
        relation = "adapter" if any(word in kind for word in _ADAPTERS) else "finetune"
        detail: dict[str, object] = {"tool": "mlflow", "run_id": run or name(meta.get("run_id"), [])}
        if settings.get("dataset"):
            detail["datasets"] = [settings["dataset"]]
        yield Edge(parent, relation, "config", label, detail={k: v for k, v in detail.items() if v})
    for place in places:
        for metric, text in _entries(place / "metrics"):
            # Lines of "time value step", the last of which is the latest.
            parts = text.splitlines()[-1].split() if text else []
            value = number(parts[1]) if len(parts) > 1 else None
            if value is not None:
                at = moment(number(parts[0]) / 1000) if number(parts[0]) else None  # type: ignore[operator]
                yield Score(metric, "value", value, label, source="mlflow", evaluated_at=at)


def _entries(folder: Path) -> Iterator[tuple[str, str]]:
    """The files of a folder of parameters or metrics, by name."""
    if not is_folder(str(folder)):
        return
    for path in sorted(folder.iterdir())[:_MOST]:
        key = name(path.name, [])
        if key and is_file(str(path)) and not path.is_symlink():
            yield key, decoded(read_bounded(path, _LIMIT)).strip()


def _document(path: Path) -> Mapping[str, object]:
    documents = safe_yaml.load(decoded(read_bounded(path, _LIMIT)), shown(path))
    found = next((each for each in documents if isinstance(each, dict)), None)
    if found is None:
        raise CheckpointError(f"{shown(path)} is no file of MLflow's")
    return found


def _iso(stated: object) -> str | datetime | None:
    return stated.replace(" ", "T") if isinstance(stated, str) else None
