"""A checkpoint folder: config.json and the weights in one file, in shards, or in loose files."""

import json
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

from kinbase.checkpoint import Checkpoint, Record
from kinbase.checkpoint.files import (
    KEPT_OPEN,
    absolute,
    below,
    inside,
    is_folder,
    listing,
    read_bounded,
    read_json,
    shown,
    snapshot_sha,
)
from kinbase.checkpoint.tensors import records
from kinbase.errors import CheckpointError
from kinbase.importers import beside, pytorch, safetensors, training_folders
from kinbase.importers.metadata import told
from kinbase.importers.state_dict import NoWeightsError

ADAPTER_CONFIG = "adapter_config.json"

Opener = Callable[[], Checkpoint]
"""Opens one file of weights that is not on this disk."""

_KINDS = (
    (".safetensors", (".safetensors",), ("model.safetensors", "diffusion_pytorch_model.safetensors")),
    (".bin", (".bin", ".pt", ".pth", ".ckpt"), ("pytorch_model.bin", "diffusion_pytorch_model.bin")),
)
"""For each kind, in the order of preference: what its index ends in before `.index.json`, the ends of
its files' names, and the names of a whole checkpoint in one file."""

_NOT_WEIGHTS = ("adapter_", "training_args", "optimizer", "scheduler", "scaler", "rng_state", "random_states")
"""How files begin that lie beside weights and are none."""

_OPTIMISER = re.compile(r"optim_states?\b")

_SHARD = re.compile(r"(.+)-(\d{5})-of-(\d{5})\.\w+")


def recognises(source: str) -> bool:
    """Whether `source` is a folder with weights or a config.json that is no snapshot and no adapter."""
    return is_folder(source) and snapshot_sha(source) is None and holds_weights(source)


def holds_weights(folder: str, elsewhere: Iterable[str] = ()) -> bool:
    """Whether `folder` and the files `elsewhere` hold full weights, or at least a config.json and no adapter."""
    try:
        names = [*listing(folder), *elsewhere]
    except CheckpointError:
        return False
    if ADAPTER_CONFIG not in names:
        return "config.json" in names or any(
            _indexes(names, kind) or _loose(names, ends) for kind, ends, _ in _KINDS
        )
    # Trainers leave heads and optimiser states beside an adapter: only what is surely a model counts.
    return any(
        _indexes(names, kind)
        or any(name in singles or _SHARD.fullmatch(name) for name in _loose(names, ends))
        for kind, ends, singles in _KINDS
    )


def open(source: str) -> Iterator[Record]:
    """The Checkpoint of a folder, and what its config.json says; raises CheckpointError."""
    name = absolute(source).name
    yield from open_as(source, name)


def open_as(
    folder: str,
    name: str,
    elsewhere: Mapping[str, Opener] = MappingProxyType({}),
    enough: int | None = None,
) -> Iterator[Record]:
    """As `open`, for a folder whose model is called `name` (a snapshot's is not the folder's).

    `elsewhere` opens files that are not on this disk; `enough` is as in plain.records.
    """
    config = _config(folder)
    weights = checkpoint(folder, elsewhere)
    weights.name = name
    yield from records(weights, config, enough)
    yield from told(weights.metadata, name)


def _config(folder: str) -> dict[str, Any] | None:
    """What config.json says, or else the params.json of Llama's and Mistral's own files, in the words of the first."""
    names = listing(folder)
    if "config.json" in names:
        return read_json(inside(folder, "config.json"))
    if "params.json" not in names:
        return None
    said = read_json(inside(folder, "params.json"))
    heads = said.get("n_heads")
    return {
        "model_type": "llama",
        "num_attention_heads": heads,
        "num_key_value_heads": said.get("n_kv_heads") or heads,
    }


def advice(source: str) -> str | None:
    """What to say of a folder that no model can be read from; None where there is nothing to say."""
    return training_folders.advice(source) if is_folder(source) else None


def checkpoint(folder: str, elsewhere: Mapping[str, Opener] = MappingProxyType({})) -> Checkpoint:
    """All weights of `folder` as one Checkpoint.

    `elsewhere` opens, by name, files of the folder that are not on this disk. Raises CheckpointError when
    there are no weights, when files and index disagree, or when a file is not what its format allows.
    """
    names = [*listing(folder), *elsewhere]
    modules = _modules(folder) if "modules.json" in names else {}
    own = [path for path, _ in modules.values() if path != "."]
    try:
        if own and not any(_loose(names, ends) for _, ends, _ in _KINDS):
            whole = Checkpoint(absolute(folder).name, folder, [])
        else:
            whole = _plain(folder, names, elsewhere)
    except CheckpointError as error:
        said = training_folders.advice(folder)
        raise CheckpointError(said) if said else error from None
    return _with_modules(whole, folder, modules)


def _plain(folder: str, names: list[str], elsewhere: Mapping[str, Opener]) -> Checkpoint:
    """The weights that lie in `folder` itself, with what lies beside them."""
    files, index = chosen(names, folder)
    wanted = shards(folder, index) if index else None
    whole, read = _model(folder, names, files, index, wanted, elsewhere)
    # Safetensors alone have headers; pickles are opened where their names say that they are part of the model.
    has_headers = any(file.endswith(_KINDS[0][1]) for file in read)
    others = {*(_loose(names, _KINDS[0][1]) if has_headers else ()), *beside.parts(names)} - set(read)
    beside.join(whole, names, sorted(others), lambda file: opened(folder, file, elsewhere))
    return whole


def _model(
    folder: str, names: list[str], files: list[str], index: str | None, wanted: dict[str, set[str]] | None,
    elsewhere: Mapping[str, Opener],
) -> tuple[Checkpoint, list[str]]:  # fmt: skip
    """The model that `files`, or an index of what is `wanted`, are; and the files that were read."""
    if index is None or wanted is None:
        _all_shards_there(folder, files)
        return _join(folder, files, None, elsewhere), files
    gone = [f for f in wanted if f not in elsewhere and not os.path.lexists(below(folder, f))]
    others = [name for _, ends, _ in _KINDS[:1] for name in _loose(names, ends)]
    if len(gone) == len(wanted) and others:
        _all_shards_there(folder, others)
        whole = _join(folder, others, None, elsewhere)
        whole.notes.append(
            f"{shown(Path(folder) / index)} is stale: it names {shown(gone[0])} and no file that is there; read "
            f"{', '.join(map(shown, others[:4]))} instead"
        )
        return whole, others
    if gone:
        raise CheckpointError(
            f"{shown(Path(folder) / index)} names the shard {shown(min(gone))}, which is missing; download it"
        )
    return _join(folder, sorted(wanted), wanted, elsewhere), sorted(wanted)


def opened(
    folder: str, file: str, elsewhere: Mapping[str, Opener] = MappingProxyType({}), *, kept: bool = True
) -> Checkpoint:
    """One file of weights of a folder; raises CheckpointError."""
    if file in elsewhere:
        return elsewhere[file]()
    module = safetensors if file.endswith(".safetensors") else pytorch
    found: Checkpoint = module.checkpoint(below(folder, file), kept=kept)
    return found


def _modules(folder: str) -> dict[str, tuple[str, str]]:
    """{name before a tensor's: (folder, kind)} of the modules of a sentence-transformers model, in their order."""
    try:
        listed = json.loads(read_bounded(inside(folder, "modules.json")))
    except ValueError:
        raise CheckpointError(f"{shown(folder)}: modules.json is not valid JSON; download it again") from None
    found: dict[str, tuple[str, str]] = {}
    for module in listed if isinstance(listed, list) else []:
        path = module.get("path") if isinstance(module, dict) else None
        if isinstance(path, str) and path:
            first = not found and str(module.get("type", "")).endswith("Transformer")
            found["" if first else path.strip("/") + "."] = (path.strip("/"), str(module.get("type")))
    return found


def _with_modules(whole: Checkpoint, folder: str, modules: Mapping[str, tuple[str, str]]) -> Checkpoint:
    """`whole` with the weights that lie in folders of their own: the transformer of old versions, dense layers."""
    parts = []
    for prefix, (path, _) in modules.items():
        home = inside(folder, path)
        names = listing(home) if is_folder(str(home)) else []
        if not any(_indexes(names, kind) or _loose(names, ends) for kind, ends, _ in _KINDS):
            continue
        part = _plain(str(home), names, {})
        parts.append(part)
        whole.tensors += [replace(t, name=prefix + t.name) for t in part.tensors]
        whole.blobs += [replace(b, name=prefix + b.name) for b in part.blobs]
        whole.skipped |= {prefix + name: reason for name, reason in part.skipped.items()}
        whole.files += part.files
    if not parts:
        return whole
    closes = [whole.close, *(part.close for part in parts)]

    def close() -> None:
        for each in closes:
            each()

    whole.close = close
    return whole


def chosen(names: list[str], folder: str) -> tuple[list[str], str | None]:
    """The files of a folder that hold its weights, or the index that names them.

    As in transformers a whole file comes before shards and safetensors before pickles; loose files
    count together, last of their kind. Raises CheckpointError, calling the folder `folder`, when there are
    none or several indexes.
    """
    for kind, ends, singles in _KINDS:
        whole = [name for name in singles if name in names]
        indexes = _indexes(names, kind)
        loose = _loose(names, ends)
        if whole:
            return whole[:1], None
        if len(indexes) > 1:
            raise CheckpointError(
                f"{shown(folder)} has several indexes ({', '.join(map(shown, indexes[:4]))}); leave one in it"
            )
        if indexes:
            return [], indexes[0]
        if loose:
            return loose, None
    raise CheckpointError(
        f"{shown(folder)} holds no weights: looked for .safetensors, .bin, .pt and .pth files and for "
        "an index of shards; download them, or give the folder that has them"
    )


def _indexes(names: list[str], kind: str) -> list[str]:
    found = [
        name
        for name in names
        if name.endswith(kind + ".index.json") and not name.startswith((".", "adapter_"))
    ]
    usual = [name for name in found if name in (f"model{kind}.index.json", f"pytorch_model{kind}.index.json")]
    return usual or found


def _loose(names: list[str], ends: tuple[str, ...]) -> list[str]:
    found = [
        name
        for name in sorted(names)
        if name.endswith(ends) and not name.startswith((".", *_NOT_WEIGHTS)) and not _OPTIMISER.search(name)
    ]
    # Mistral and Llama repos hold the weights once more under their makers' own names.
    return [name for name in found if not name.startswith("consolidated")] or found


def _all_shards_there(folder: str, files: list[str]) -> None:
    """Raises CheckpointError when files called `x-00001-of-00003` are not all three there."""
    found: dict[tuple[str, int], set[int]] = {}
    for name in files:
        match = _SHARD.fullmatch(name)
        if match:
            found.setdefault((match[1], int(match[3])), set()).add(int(match[2]))
    for (stem, count), numbers in found.items():
        if len(numbers) != count:
            raise CheckpointError(
                f"{shown(folder)} has {len(numbers)} of the {count} shards of {shown(stem)}; download the rest"
            )


def shards(folder: str, index: str) -> dict[str, set[str]]:
    """The files that an index in `folder` names, each with its tensors; raises CheckpointError."""
    what = shown(Path(folder) / index)
    weight_map = read_json(inside(folder, index), strict=True).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise CheckpointError(f"{what} has no weight_map; download the index again")
    wanted: dict[str, set[str]] = {}
    for tensor, file in weight_map.items():
        if not isinstance(file, str):
            raise CheckpointError(f"{what} gives {shown(tensor)} no file; download the index again")
        wanted.setdefault(file, set()).add(tensor)
    return wanted


def _join(
    folder: str, files: list[str], wanted: Mapping[str, set[str]] | None, elsewhere: Mapping[str, Opener]
) -> Checkpoint:
    """The tensors of several files as one Checkpoint; `wanted` says which tensors an index gives each file.

    As in transformers, what the files hold counts; where the index says otherwise there is a note.
    """
    whole = Checkpoint(absolute(folder).name, folder, [])
    origin: dict[str, str] = {}
    parts: list[Checkpoint] = []
    for number, file in enumerate(files):
        try:
            part = opened(folder, file, elsewhere, kept=number < KEPT_OPEN)
        except NoWeightsError as error:
            if wanted is not None or (not parts and file == files[-1]):
                raise
            whole.notes.append(str(error))  # what trainers leave: a scheduler, counters
            continue
        parts.append(part)
        for name in [tensor.name for tensor in part.tensors] + list(part.skipped):
            if name in origin:
                raise CheckpointError(
                    f"{shown(folder)}: {shown(origin[name])} and {shown(file)} both hold {shown(name)}; "
                    "import the one you mean by its own path"
                )
            origin[name] = file
        whole.tensors += part.tensors
        whole.skipped |= part.skipped
        whole.blobs += part.blobs
        whole.metadata |= part.metadata
        whole.notes += part.notes
        whole.files += part.files
    whole.notes += _index_notes(folder, wanted, origin)

    def close() -> None:
        for part in parts:
            part.close()

    whole.close = close
    return whole


def _index_notes(
    folder: str, wanted: Mapping[str, set[str]] | None, origin: Mapping[str, str]
) -> Iterator[str]:
    """What an index says against its files."""
    if wanted is None:
        return
    listed = set[str]().union(*wanted.values())
    for words, odd in (
        ("lists {} that its files do not hold", listed - origin.keys()),
        ("leaves out {} that its files hold: they were read", origin.keys() - listed),
        ("gives {} to another file than the one that holds them",
         {n for f, names in wanted.items() for n in names if origin.get(n, f) != f}),
    ):  # fmt: skip
        if odd:
            yield f"the index of {shown(folder)} {words.format(f'{len(odd)} tensors')} (first {shown(min(odd))})"
