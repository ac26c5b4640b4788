"""A PEFT LoRA folder: the change it makes to its base's weights, scale * B @ A for each module.

The deltas are float64: rounding them to float32 would cost the distance of near twins its accuracy.
PEFT's fan_in_fan_out is one flag for the whole adapter, so a model that mixes Conv1D and Linear
targets is read as the flag says.
"""

import json
import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import lru_cache
from types import MappingProxyType
from typing import Any

from kinbase.checkpoint import UNSAID, Blob, Checkpoint, Edge, Factors, Facts, Problem, Record, Tensor
from kinbase.checkpoint.files import (
    absolute,
    inside,
    is_file,
    is_folder,
    listing,
    read_json,
    shown,
    snapshot_sha,
    stamp,
)
from kinbase.checkpoint.ids import revised
from kinbase.checkpoint.names import TOKENS, TOKENS_KEY
from kinbase.checkpoint.tensors import torch_dtype
from kinbase.checkpoint.untrusted import model_id, number, problems
from kinbase.errors import CheckpointError
from kinbase.importers import beside
from kinbase.importers.folder import ADAPTER_CONFIG, Opener, holds_weights, opened
from kinbase.importers.low_rank import FACTOR_DTYPES, Prepared, prepare, reader

FILES = ("adapter_model.safetensors", "adapter_model.bin")

_FACTOR = re.compile(
    r"(?P<module>.+)\.lora_(?:(?P<side>[AB])(?:\.[^.]+)?\.weight|embedding_(?P<table>[AB])(?:\.[^.]+)?)"
)
"""Names of factors; files of old versions have the adapter's name in them."""

_PLAIN_INITS = (None, True, False, "gaussian", "eva", "orthogonal", "mica")
"""Values of init_lora_weights that leave the base as it was."""

_REFUSED = {
    "use_dora": "DoRA rescales the base's own weights",
    "use_qalora": "QA-LoRA pools its input first",
    "use_bdlora": "block-diagonal factors are used",
    "alora_invocation_tokens": "it applies only after its invocation tokens",
    "arrow_config": "a router mixes several adapters",
    "kasa_config": "KaSA removes part of the base",
    "monteclora_config": "its factors are random variables",
    "layer_replication": "it copies layers of the base",
    "target_parameters": "it changes parameters that are no module's weight",
    "lora_bias": "it trains biases of its own",
}
"""Settings whose adapter is more than scale * B @ A, and why."""

_TOLD = {
    "peft_type": str, "r": int, "lora_alpha": int | float, "alpha": int | float, "use_rslora": bool, "use_dora": bool,
    "init_r": int, "target_r": int, "oft_block_size": int, "boft_block_size": int, "n_frequency": int,
    "num_virtual_tokens": int, "revision": str, "peft_version": str, "task_type": str,
}  # fmt: skip
"""What configs of PEFT's methods say that describes the adapter, and of what kind it is."""

_LARGEST_DELTA = 1 << 34
"""Elements; two thin factors of a few megabytes can claim any product."""


def recognises(source: str) -> bool:
    """Whether `source` is a folder with an adapter_config.json and no full weights, outside the Hub cache.

    Or the file of its weights.
    """
    if _is_file_of_folder(source):
        return True
    return is_folder(source) and snapshot_sha(source) is None and holds_adapter(source)


def holds_adapter(folder: str, elsewhere: Iterable[str] = ()) -> bool:
    """Whether `folder` and the files `elsewhere` hold an adapter and no full weights."""
    try:
        return ADAPTER_CONFIG in listing(folder) and not holds_weights(folder, elsewhere)
    except CheckpointError:
        return False


def open(source: str) -> Iterator[Record]:
    """The deltas of an adapter, its base and its facts; raises CheckpointError."""
    folder = str(absolute(source).parent) if _is_file_of_folder(source) else source
    yield from open_as(folder, absolute(folder).name)


def _is_file_of_folder(source: str) -> bool:
    """Whether `source` is an adapter's weights with its config beside them."""
    path = absolute(source)
    return path.name in FILES and is_file(source) and is_file(str(path.with_name(ADAPTER_CONFIG)))


def open_as(
    folder: str, name: str, elsewhere: Mapping[str, Opener] = MappingProxyType({})
) -> Iterator[Record]:
    """As `open`, for an adapter called `name`; `elsewhere` opens files that are not on this disk.

    Raises CheckpointError when the adapter is no LoRA whose delta is scale * B @ A, or when its
    files are malformed.
    """
    config_path = inside(folder, ADAPTER_CONFIG)
    config = read_json(config_path)
    what = shown(folder)
    refused: list[str] = []
    revision = config.get("revision")
    stated = model_id(config.get("base_model_name_or_path"), refused)
    parent = revised(stated, revision if isinstance(revision, str) else None) if stated else UNSAID
    kind = config.get("peft_type")
    method = kind.lower() if isinstance(kind, str) and kind else None
    # What it adapts and how is told before its weights are opened, which may have to be refused.
    yield Edge(parent, "adapter", "adapter", method=method, detail=_detail(config))
    yield from problems(ADAPTER_CONFIG, refused)
    try:
        factors, whole = _weights(folder, config, elsewhere, what)
    except CheckpointError:
        yield Facts(relation="adapter")
        raise
    whole.name, whole.source, whole.delta_of = name, folder, parent
    whole.files.append(stamp(config_path))  # the scale is in there
    yield whole
    yield Facts(
        relation="adapter",
        parameters=sum(tensor.numel for tensor in factors.tensors if tensor.name not in whole.skipped),
        dtype=torch_dtype(factors.tensors),
    )
    if whole.skipped:
        first = min(whole.skipped)
        yield Problem(
            f"{what}: tensors left out of its delta: {len(whole.skipped)}, among them {shown(first)} "
            f"({whole.skipped[first]})"
        )
    for note in whole.notes:
        yield Problem(note)


def _weights(
    folder: str, config: Mapping[str, Any], elsewhere: Mapping[str, Opener], what: str
) -> tuple[Checkpoint, Checkpoint]:
    """The factors of an adapter, and the deltas they make; raises CheckpointError."""
    _refuse_other_methods(config, what)
    there = {*listing(folder), *elsewhere}
    file = next((file for file in FILES if file in there), None)
    if file is None:
        raise CheckpointError(f"{what} holds no {FILES[0]} and no {FILES[1]}; download the adapter's weights")
    factors = opened(folder, file, elsewhere)
    whole = _deltas(factors, config, what)
    whole.files += factors.files
    for part in beside.parts(there):
        beside.add(whole, opened(folder, part, elsewhere), part)
    return factors, whole


def _refuse_other_methods(config: Mapping[str, Any], what: str) -> None:
    kind = config.get("peft_type")
    if kind != "LORA":
        raise CheckpointError(
            f"{what} is a PEFT adapter of type {shown(kind)}; only LoRA adapters have a delta to read: "
            "merge it into its base with PEFT and import the merged model"
        )
    init = config.get("init_lora_weights")
    reasons = [reason for key, reason in _REFUSED.items() if config.get(key)]
    if not any(init is plain or (isinstance(plain, str) and init == plain) for plain in _PLAIN_INITS):
        reasons.append(f"init_lora_weights {shown(init)} changed the base")
    if reasons:
        raise CheckpointError(
            f"{what}: its delta is not scale * B @ A, because {reasons[0]}; merge it into its base with "
            "PEFT and import the merged model"
        )


def _deltas(factors: Checkpoint, config: Mapping[str, Any], what: str) -> Checkpoint:
    """A Checkpoint of the deltas; the tensors that are no factors go to `skipped`."""
    sides: dict[str, dict[str, Tensor]] = {}
    skipped = dict(factors.skipped)
    blobs = list(factors.blobs)
    for tensor in factors.tensors:
        match = _FACTOR.fullmatch(tensor.name)
        if match is None:
            if re.search(r"\.lora_", tensor.name):
                raise CheckpointError(
                    f"{what} holds {shown(tensor.name)}, which plain LoRA has not; merge it into its base "
                    "with PEFT and import the merged model"
                )
            skipped[tensor.name] = (
                "rows of an embedding, not a change of the base's"
                if tensor.name.endswith(TOKENS_KEY)
                else "a whole weight, not a change of the base's"
            )
            blobs.append(Blob.of(tensor))
            continue
        if tensor.dtype not in FACTOR_DTYPES:
            raise CheckpointError(
                f"{what}: the factor {shown(tensor.name)} is {tensor.dtype}; save it as float32"
            )
        side = match["side"] or "embedding_" + match["table"]
        pair = sides.setdefault(match["module"].removeprefix("base_model.model."), {})
        if side in pair:
            raise CheckpointError(
                f"{what} holds two adapters for {shown(match['module'])}; save one by itself"
            )
        pair[side] = tensor
    if any(name.endswith(TOKENS_KEY) for name in skipped):
        blobs.append(_tokens(config, what))
    if not sides:
        raise CheckpointError(f"{what} holds no LoRA factors (lora_A, lora_B); it is no LoRA adapter")
    # A tensor is read tile by tile, by a few threads at once: so many factors are in memory.
    prepared = lru_cache(maxsize=4)(prepare)

    def close() -> None:
        prepared.cache_clear()
        factors.close()

    tensors = [_delta(module, pair, config, what, prepared) for module, pair in sides.items()]
    return Checkpoint("", "", tensors, skipped=skipped, blobs=blobs, close=close)


def _tokens(config: Mapping[str, Any], what: str) -> Blob:
    """Which rows of which embeddings an adapter trained: part of what it is, and what merging it needs."""
    told = config.get("trainable_token_indices")
    by_module = told if isinstance(told, Mapping) else {"embed_tokens": told}
    for module, rows in by_module.items():
        if not (
            isinstance(module, str)
            and isinstance(rows, list)
            and all(isinstance(row, int) and not isinstance(row, bool) and row >= 0 for row in rows)
        ):
            raise CheckpointError(
                f"{what} holds trained tokens, and its {ADAPTER_CONFIG} does not say of which rows: trainable_token_indices "
                "is a list of numbers, or one for each module"
            )
    data = json.dumps(by_module, sort_keys=True).encode()

    def read(start: int, out: memoryview) -> None:
        out[:] = data[start : start + len(out)]

    return Blob(TOKENS, "JSON", (len(data),), len(data), read)


def _delta(
    module: str,
    pair: Mapping[str, Tensor],
    config: Mapping[str, Any],
    what: str,
    prepared: Callable[[Factors], Prepared],
) -> Tensor:
    """The delta of one module's weight from its factors."""
    embedding = "embedding_A" in pair
    a, b = (pair.get("embedding_" + side if embedding else side) for side in "AB")
    if a is None or b is None or len(pair) != 2:
        raise CheckpointError(f"{what} holds only one factor of {shown(module)}; download it again")
    fits = (
        len(a.shape) >= 2 and len(b.shape) >= 2 and a.numel > 0 and b.numel > 0 and b.shape[1] == a.shape[0]
    )
    if not fits or math.prod(b.shape[2:]) != 1 or (embedding and len(a.shape) > 2):
        raise CheckpointError(
            f"{what}: the factors of {shown(module)} have shapes {a.shape} and {b.shape}, which do not "
            "multiply; download it again"
        )
    rank = a.shape[0]
    if not config.get("rank_pattern") and config.get("r") != rank:
        raise CheckpointError(
            f"{what}: the factors of {shown(module)} have rank {rank}, its config says r={shown(config.get('r'))}; "
            "the config is not this adapter's"
        )
    transposed = len(a.shape) == 2 and (embedding or config.get("fan_in_fan_out") is True)
    shape = (a.shape[1], b.shape[0]) if transposed else (b.shape[0], *a.shape[1:])
    if math.prod(shape) > _LARGEST_DELTA:
        raise CheckpointError(
            f"{what}: the delta of {shown(module)} has {math.prod(shape)} elements; it is refused"
        )
    scale = _alpha(module, config, what) / (math.sqrt(rank) if config.get("use_rslora") else rank)
    left, right = (a, b) if transposed else (b, a)
    product = Factors(left, right, rank, scale, transposed, is_rounded=embedding)
    return Tensor(f"{module}.weight", "F64", shape, reader(shape, product, prepared), factors=product)


def _alpha(module: str, config: Mapping[str, Any], what: str) -> float:
    """lora_alpha of a module: that of the first alpha_pattern that matches the end of its name."""
    patterns = config.get("alpha_pattern") or {}
    if not isinstance(patterns, dict):
        raise CheckpointError(f"{what}: alpha_pattern is no object; the config is damaged")
    alpha = config.get("lora_alpha")
    for pattern, value in patterns.items():
        if _matches(pattern, module, what):
            alpha = value
            break
    plain = number(alpha) if isinstance(alpha, int | float) else None
    if plain is None:
        raise CheckpointError(f"{what}: lora_alpha {shown(alpha)} is no number; the config is damaged")
    return plain


def _matches(pattern: str, module: str, what: str) -> bool:
    """Whether PEFT applies `pattern` to `module`: a regular expression for the end of its name, from a dot on.

    Expressions that could take for ever are refused: a repeated group, many repetitions, or many choices.
    """
    repeats = len(re.findall(r"(?<!\()[*+?{]", pattern))
    # Each repetition costs a factor of the name's length: what is left to try stays below ten million steps.
    refused = max(len(pattern), len(module)) > 300 or re.search(r"\)[*+?{]", pattern) is not None
    refused = refused or repeats > 3 or len(module) ** (repeats + 1) * _choices(pattern) > 2 * 10**7
    try:
        if not refused:
            return re.match(rf"(.*\.)?({pattern})$", module) is not None
    except (re.error, OverflowError, RecursionError):
        pass
    raise CheckpointError(
        f"{what}: the pattern {shown(pattern)} is no simple expression; write module names instead"
    )


def _choices(pattern: str) -> int:
    """How many ways there are through the alternatives of an expression without repeated groups, at most."""
    ways, opened = 1, [1]
    for mark in re.sub(r"\\.", "", pattern):
        if mark == "(":
            opened.append(1)
        elif mark == "|":
            opened[-1] += 1
        elif mark == ")" and len(opened) > 1:
            ways *= opened.pop()
    return ways * math.prod(opened)


def _detail(config: Mapping[str, Any]) -> dict[str, object]:
    """What of the config describes the edge: JSON values of the kinds PEFT writes there."""
    detail: dict[str, object] = {
        key: config[key] for key, kind in _TOLD.items() if isinstance(config.get(key), kind)
    }
    for key in ("target_modules", "feedforward_modules", "modules_to_save"):
        targets = config.get(key)
        targets = [targets] if isinstance(targets, str) else targets
        if isinstance(targets, list) and targets and all(isinstance(target, str) for target in targets):
            detail[key] = sorted(targets)
    return detail
