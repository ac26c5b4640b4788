"""What the tensors say without their bytes: whether they are plain weights, and which are one weight."""

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from kinbase.checkpoint import FLOAT_DTYPES, Checkpoint, Facts, Problem, Record, Tensor
from kinbase.checkpoint.files import shown
from kinbase.checkpoint.lora import factors, is_adapter
from kinbase.checkpoint.packed import BYTE_FLOATS, config_method, packed
from kinbase.checkpoint.untrusted import count, name
from kinbase.errors import CheckpointError

ADAPTER = "adapter_model"
"""How PEFT calls the file of an adapter, of whatever method."""

HEADS = ("lm_head.weight", "embed_out.weight", "cls.predictions.decoder.weight")
"""Names (ends of names) of the output head, which many models tie to their embedding."""

EMBEDDINGS = (
    "embed_tokens.weight",
    "wte.weight",
    "embed_in.weight",
    "word_embeddings.weight",
    "tok_embeddings.weight",
    "shared.weight",
)
"""Names (ends of names) of the input embedding."""

_LAID_BY_HEADS = (
    "gpt_neox", "bloom", "falcon", "internlm2", "persimmon", "gpt_neox_japanese", "llama", "mistral", "mixtral",
)  # fmt: skip
"""Architectures whose fused qkv is cut by heads, or whose makers' own files have the rows of a head in another order."""

_TORCH_NAMES = {
    "F64": "float64",
    "F32": "float32",
    "F16": "float16",
    "BF16": "bfloat16",
    "F8_E4M3": "float8_e4m3fn",
    "F8_E5M2": "float8_e5m2",
}


def records(
    weights: Checkpoint, config: Mapping[str, Any] | None = None, enough: int | None = None
) -> Iterator[Record]:
    """What an importer yields of `weights`: the Checkpoint with tied tensors dropped, and Facts.

    `enough`: how many bytes of two tensors must agree for them to be tied; all, unless reading them costs much.

    Quantised weights are dequantised as they are read. Those in a format that is not read, or not as it should be,
    yield Facts and a Problem and no Checkpoint. Raises CheckpointError when tied tensors cannot be read.
    """
    config = config or {}
    architectures = config.get("architectures")
    architecture = name(architectures[0], []) if isinstance(architectures, list) and architectures else None
    stored = config.get("torch_dtype", config.get("dtype"))
    stored = (name(stored, []) or "").removeprefix("torch.") or None
    codes = packed(weights.tensors, config, _narrow(weights))
    relation = "quantized" if codes else None
    if codes:
        from kinbase.checkpoint.formats import dequantise  # loads NumPy, which plain weights need not

        try:
            dequantise(weights, config, codes)
        except CheckpointError as error:
            weights.close()
            yield Facts(weights.name, architecture=architecture, dtype=stored, relation=relation)
            yield Problem(
                f"{shown(weights.source)} has no weights to compare and is kept for lineage: {error}"
            )
            return
        weights.notes.append(_dequantised(weights))
    weights.notes += _unscaled(weights, config)
    if first := _first_of_adapter(weights):
        weights.close()
        yield Facts(weights.name, dtype=torch_dtype(weights.tensors), relation="adapter")
        yield Problem(
            f"{shown(weights.source)} holds an adapter ({shown(first)}) without a PEFT config, and is kept for lineage: "
            "merge it into its base to compare it"
        )
        return
    if unmerged := factors(weights.tensors):
        weights.notes.append(
            f"adapters lie beside the weights and are not merged into them: {len(unmerged)} factors, first "
            f"{shown(unmerged[0].name)}"
        )
    weights.heads = _heads(config)
    try:
        drop_tied(weights, config, enough)
    finally:
        weights.close()  # until the pass reads it
    parameters = sum(tensor.numel for tensor in weights.tensors if tensor.dtype in FLOAT_DTYPES)
    yield weights
    dtype = stored or torch_dtype(weights.tensors)
    yield Facts(architecture=architecture, dtype=dtype, parameters=parameters, relation=relation)
    for note in weights.notes:
        yield Problem(note)


def _first_of_adapter(weights: Checkpoint) -> str | None:
    """The first factor of a file that is an adapter by its name or its tensors; None for weights."""
    if not weights.tensors or not (Path(weights.source).stem == ADAPTER or is_adapter(weights.tensors)):
        return None
    return [*factors(weights.tensors), *weights.tensors][0].name


def _unscaled(weights: Checkpoint, config: Mapping[str, Any]) -> list[str]:
    """A line on 8-bit floats that are read without scales, where the config says that there were some."""
    unscaled = [t for t in weights.tensors if t.dtype in BYTE_FLOATS and len(t.shape) > 1]
    if not unscaled or config_method(config) is None:
        return []
    return [
        f"its config says that it is quantised, and {len(unscaled)} tensors of 8-bit floats have no scales (first "
        f"{shown(unscaled[0].name)}): they are read as weights as they are"
    ]


def _dequantised(weights: Checkpoint) -> str:
    """What was dequantised, for the person: of which forms, and how much of the model."""
    sizes: dict[str, int] = {}
    for tensor in weights.tensors:
        if tensor.grid:
            sizes[tensor.grid.name] = sizes.get(tensor.grid.name, 0) + tensor.numel
    whole = sum(tensor.numel for tensor in weights.tensors if tensor.dtype in FLOAT_DTYPES)
    forms = " and ".join(sorted(sizes, key=lambda form: -sizes[form]))
    return f"quantised: {sum(sizes.values()) / max(whole, 1):.0%} of its weights are dequantised from {forms} as they are read"


def _heads(config: Mapping[str, Any]) -> tuple[int, int] | None:
    """Heads of queries and of keys, for the architectures whose layout depends on them."""
    if config.get("model_type") not in _LAID_BY_HEADS:
        return None
    heads = count(config.get("num_attention_heads", config.get("n_head")), 1 << 16)
    groups = count(config.get("num_key_value_heads", config.get("num_kv_heads", heads)), 1 << 16)
    if config.get("model_type") == "falcon" and not config.get("new_decoder_architecture"):
        groups = 1 if config.get("multi_query", True) else heads
    return (heads, groups) if heads and groups else None


_CODES = {name: code for code, name in _TORCH_NAMES.items()} | {
    "fp64": "F64", "double": "F64", "fp32": "F32", "float": "F32", "fp16": "F16", "half": "F16", "bf16": "BF16",
}  # fmt: skip


def dtype_code(said: str) -> str:
    """A dtype as safetensors writes it, however it was `said`: BF16 of bfloat16, torch.bfloat16 or bf16; else as it was."""
    return _CODES.get(said.lower().removeprefix("torch."), said)


def torch_dtype(tensors: Iterable[Tensor]) -> str | None:
    """torch's name of the floating-point dtype that most elements have; None when there are none."""
    sizes: dict[str, int] = {}
    for tensor in tensors:
        if tensor.dtype in FLOAT_DTYPES:
            sizes[tensor.dtype] = sizes.get(tensor.dtype, 0) + tensor.numel
    return _TORCH_NAMES[max(sizes, key=lambda code: sizes[code])] if sizes else None


def _narrow(weights: Checkpoint) -> list[str]:
    """The tensors in dtypes of less than 8 bits, which are not read."""
    return [n for n, reason in weights.skipped.items() if reason.startswith(("dtype 'F4", "dtype 'F6"))]


def drop_tied(
    weights: Checkpoint, config: Mapping[str, Any] | None = None, enough: int | None = None
) -> None:
    """Move an output head that is the embedding itself to `skipped`; T5's copies of `shared` likewise.

    The bytes decide, whatever the config says, but where it says that heads are not tied; untied ones differ in the
    first few bytes. A head that differs though the config says tied was trained: it is a weight like any other, as
    transformers has it. Raises CheckpointError when they cannot be read.
    """
    says = _says_tied(config)
    embeddings = [tensor for tensor in weights.tensors if tensor.name.endswith(EMBEDDINGS)]
    embeddings.sort(key=lambda tensor: (not tensor.name.endswith("shared.weight"), len(tensor.name)))
    copies = {tensor.name for tensor in embeddings[1:]} if _shares(embeddings) else set()
    for tensor in list(weights.tensors):
        head = tensor.name.endswith(HEADS) and says is not False
        if not head and tensor.name not in copies:
            continue
        untied = head and says
        for other in embeddings:
            if other.name == tensor.name:
                break
            if other.shape == tensor.shape and same_bytes(tensor, other, enough):
                weights.tensors.remove(tensor)
                weights.skipped[tensor.name] = f"tied to {other.name}"
                untied = False
                break
        if untied and embeddings:
            weights.notes.append(
                f"its config says that the output head is the embedding, but {shown(tensor.name)} holds other numbers: "
                "it is read as a head of its own"
            )


def _shares(embeddings: list[Tensor]) -> bool:
    return bool(embeddings) and embeddings[0].name.endswith("shared.weight")


def _says_tied(config: Mapping[str, Any] | None) -> bool | None:
    for part in (config or {}, (config or {}).get("text_config")):
        if isinstance(part, dict) and isinstance(part.get("tie_word_embeddings"), bool):
            return bool(part["tie_word_embeddings"])
    return None


def same_bytes(a: Tensor, b: Tensor, enough: int | None = None) -> bool:
    """Whether two tensors of one shape hold the same bytes, the first `enough` of them if given.

    Stops at the first piece that differs; the pieces grow, because what differs does so early.
    """
    if a.dtype != b.dtype:
        return False
    piece, start = 4 << 10, 0
    nbytes = a.nbytes if enough is None else min(enough, a.nbytes)
    while start < nbytes:
        length = min(piece, nbytes - start)
        mine, other = bytearray(length), bytearray(length)
        a.read(start, memoryview(mine))
        b.read(start, memoryview(other))
        if mine != other:
            return False
        start, piece = start + length, min(2 * piece, 1 << 20)
    return True
