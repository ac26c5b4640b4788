"""What a tensor is called without what wrappers, trainers, model classes and library versions add to its name.

The rules look at the parts of a name between its dots: a wrapper's part is dropped wherever it stands, a class's or
trainer's only at the front, and a norm's `gamma` and `beta` (TensorFlow's words) are its `weight` and `bias`.
"""

import re
from functools import lru_cache

WRAPPERS = frozenset(
    (
        "_orig_mod", "_checkpoint_wrapped_module", "_fsdp_wrapped_module", "_fpw_module", "_forward_module",
        "_ddp_module", "_module", "module", "base_layer", "_wrapped_module",
    )
)  # fmt: skip
"""What stands in a name for a module around a module: torch.compile, activation checkpointing, FSDP, DDP, PEFT, Opacus."""

PREFIXES = frozenset(
    (
        "base_model", "language_model", "text_model", "model", "transformer", "pretrained_model", "auto_model", "llm",
        "albert", "bert", "big_bird", "bloom", "camembert", "convbert", "data2vec_text", "deberta", "distilbert",
        "electra", "ernie", "esm", "gpt_neox", "gptj", "llama", "longformer", "mistral", "mpnet", "nomic_bert", "opt",
        "rembert", "roberta", "roberta_prelayernorm", "xlm_roberta", "xlm_roberta_xl",
        "beit", "convnext", "convnextv2", "deit", "dinov2", "hubert", "swin", "unispeech", "vit", "wav2vec2", "wavlm",
    )
)  # fmt: skip
"""Where a model class, a trainer (TRL, sentence-transformers) or a multimodal model keeps the model inside it."""

_TOWER = re.compile(r"vision|visual|image|audio|speech|video", re.IGNORECASE)
"""Parts that tell which of several models of one build a tensor belongs to: text is no picture."""

_NORM = re.compile(r"norm|(^|_)ln(_|\d|$)", re.IGNORECASE)
_TERMS = {"gamma": "weight", "beta": "bias"}
_NUMBERED = re.compile(r"\d{1,9}")

TOKENS_KEY = ".token_adapter.trainable_tokens_delta"
"""End of the name of the rows that an adapter puts in place of an embedding's, as PEFT saves them."""
TOKENS = "trainable_token_indices"
"""The Blob of an adapter that says which rows those are: JSON, a list of numbers by the end of a module's name."""


@lru_cache(maxsize=1 << 17)
def bare(name: str) -> str:
    """A name without the parts that wrappers, trainers and model classes add to it."""
    parts = [part for part in name.split(".") if part not in WRAPPERS]
    for at, part in enumerate(parts):
        if part == "modules_to_save" and at + 1 < len(parts) - 1:  # PEFT's trained copy of a whole module
            del parts[at : at + 2]
            break
        if part == "parametrizations" and parts[-1] == "original" and at + 2 == len(parts) - 1:
            parts = [*parts[:at], parts[at + 1]]  # torch.nn.utils.parametrize
            break
    if len(parts) > 1 and parts[-1] in _TERMS and _NORM.search(parts[-2]):
        parts[-1] = _TERMS[parts[-1]]
    if len(parts) > 2 and parts[0] == "0" and parts[1] in PREFIXES:  # the first of torch's Sequential
        parts = parts[1:]
    start = 0
    while start < len(parts) - 1 and parts[start] in PREFIXES:
        start += 1
    return ".".join(parts[start:])


def is_other_tower(prefix: str) -> bool:
    """Whether what stands before a name says that it belongs to a model of pictures or sound."""
    return _TOWER.search(prefix) is not None


def is_norm(name: str) -> bool:
    """Whether a tensor is the gain of a norm, by the name of its module."""
    parts = name.split(".")
    return (
        len(parts) > 1 and parts[-1] in ("weight", "gamma", "scale") and _NORM.search(parts[-2]) is not None
    )


def layer_of(name: str) -> tuple[str, int, str] | None:
    """(stack, number, rest) of a tensor in a numbered stack of layers: `("layers", 3, "mlp.up_proj.weight")`."""
    parts = name.split(".")
    for at, part in enumerate(parts[:-1]):
        if at and _NUMBERED.fullmatch(part):
            return ".".join(parts[:at]), int(part), ".".join(parts[at + 1 :])
    return None
