"""Folders that hold weights in a form that no single model is read from: what they are, and what to import instead."""

import os
import re
from collections.abc import Sequence
from pathlib import Path

from kinbase.checkpoint.files import is_file, is_folder, listing, shown
from kinbase.errors import CheckpointError

_PART = re.compile(r"(consolidated|mp_rank|model)[._-](\d{1,3})(_model_states|-model_states)?\.(pth|pt|bin)")
_RANK = re.compile(r"(model|fsdp_model|pytorch_model)[._-](world_size_\d+_)?rank_?\d+\.(pt|pth|bin)")
_ZERO = re.compile(r"(bf16_|fp16_)?zero_pp_rank_\d+_mp_rank_\d+_(optim|model)_states\.pt")
_WEIGHTS = (".safetensors", ".bin", ".pt", ".pth", ".ckpt", ".gguf", ".distcp")
_ADAPTER_CONFIG = "adapter_config.json"
_ADAPTERS = ("adapter_model.safetensors", "adapter_model.bin")
_SPLIT = re.compile(r"-\d{5}-of-\d{5}\.gguf$")
_MOST = 64
"""Folders that are looked into at each level."""
_FOREIGN = {
    ".h5": "TensorFlow", ".msgpack": "Flax", ".onnx": "ONNX", ".ot": "rust-bert", ".tflite": "TensorFlow Lite",
    ".nemo": "NeMo", ".mlmodel": "Core ML",
}  # fmt: skip


def advice(folder: str) -> str | None:
    """One line on what lies in `folder` instead of one model's weights; None where there is nothing to say."""
    try:
        names = listing(folder)
    except CheckpointError:
        return None
    here = shown(folder)
    below = [name for name in names if is_folder(str(Path(folder, name)))]
    if told := _of_processes(here, folder, names, below):
        return told
    if "model_index.json" in names:
        return _several(here, "a diffusers pipeline of several models", folder, below)
    if _ADAPTER_CONFIG not in names and (alone := [name for name in names if name in _ADAPTERS]):
        return (
            f"{here} holds {alone[0]} without its {_ADAPTER_CONFIG}, which says what it is applied to and how: download it, or "
            f"keep what the file says by importing {Path(folder, alone[0])}"
        )
    if packed := sorted(name for name in names if name.endswith(".gguf")):
        return _of_gguf_files(here, folder, packed)
    deeper = [f"{one}/{two}" for one in below[:_MOST] for two in _names(Path(folder, one))[:_MOST]]
    below += [name for name in deeper if is_folder(str(Path(folder, name)))]
    holding = [name for name in below if _ends(str(Path(folder, name)), _WEIGHTS)]
    if holding:
        return _several(here, f"no weights itself, folders below it do ({len(holding)})", folder, below)
    foreign = [name for name in names if Path(name).suffix in _FOREIGN]
    if foreign:
        kind = _FOREIGN[Path(foreign[0]).suffix]
        return f"{here} holds weights in {kind}'s format ({shown(foreign[0])}): save them as .safetensors and import those"
    return None


def _of_processes(here: str, folder: str, names: Sequence[str], below: Sequence[str]) -> str | None:
    """A line on what several processes of a training wrote, each a piece; None where they did not."""
    distributed = [name for name in ["", *below] if _ends(str(Path(folder, name)), (".distcp",))]
    if distributed:
        part = str(Path(folder, distributed[0]))
        return (
            f"{here} holds a checkpoint of torch.distributed (FSDP) in parts: join them with `accelerate merge-weights "
            f"{part} OUT` and import OUT"
        )
    if any(_ZERO.fullmatch(n) for part in ["", *below] for n in _names(Path(folder, part))):
        return (
            f"{here} holds DeepSpeed ZeRO partitions, a piece of every tensor a file: join them with the "
            "zero_to_fp32.py that lies beside them (`python zero_to_fp32.py . OUT`) and import OUT"
        )
    ranks = sorted(name for name in names if _RANK.fullmatch(name))
    if len(ranks) > 1:
        return (
            f"{here} holds the parts that {len(ranks)} processes had of one model under FSDP ({shown(ranks[0])}, ...), a slice "
            "of every tensor each: join them with the tool that wrote them (verl: `python -m verl.model_merger merge --backend "
            f"fsdp --local_dir {folder} --target_dir OUT`) and import OUT"
        )
    parts = [name for name in names if (m := _PART.fullmatch(name)) and m[1] != "model"]
    if len(parts) > 1:
        return (
            f"{here} holds {len(parts)} model-parallel parts ({', '.join(map(shown, parts[:2]))}, ...), each with a "
            "slice of every tensor: convert them to one checkpoint (transformers has a script for each model family) and "
            "import that"
        )
    return None


def _of_gguf_files(here: str, folder: str, packed: Sequence[str]) -> str:
    if all(_SPLIT.search(name) for name in packed):
        return f"{here} holds a GGUF file in {len(packed)} parts: join them with `llama-gguf-split --merge` and import the whole"
    more = f" and {len(packed) - 4} more" if len(packed) > 4 else ""
    return (
        f"{here} holds {'GGUF files, each a model of its own' if len(packed) > 1 else 'its weights in a GGUF file'}: import "
        f"{', '.join(str(Path(folder, name)) for name in packed[:4])}{more}{' by themselves' * (len(packed) > 1)}"
    )


def _several(here: str, what: str, folder: str, below: Sequence[str]) -> str:
    holding = [str(Path(folder, name)) for name in below if _ends(str(Path(folder, name)), _WEIGHTS)]
    beneath = {os.path.relpath(path, folder) for path in holding}
    if len(holding) > 1 and beneath == {name for name in _names(Path(folder)) if not name.startswith(".")}:
        return f"{here} holds {what}: import {Path(folder, '*')} takes each by itself"
    more = f" and {len(holding) - 4} more" if len(holding) > 4 else ""
    return f"{here} holds {what}: import {', '.join(holding[:4]) or 'its parts'}{more} by themselves"


def _ends(folder: str, ends: tuple[str, ...]) -> bool:
    return any(name.endswith(ends) and is_file(str(Path(folder, name))) for name in _names(Path(folder)))


def _names(folder: Path) -> list[str]:
    try:
        return listing(folder)
    except CheckpointError:
        return []
