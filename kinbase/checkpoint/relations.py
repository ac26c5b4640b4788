"""How one model was made from another: the words that are known, and how copies of other models' files are told.

A quantiser publishes its copy with the tags, the recipe and the merge configuration of what it quantised. So one
base and a quantiser's mark make a quantised copy, whatever else lies beside; and a model with one base is no merge
of the two that a copied recipe names.
"""

import re
from collections.abc import Iterable, Mapping
from pathlib import Path

HUB = ("finetune", "merge", "adapter", "quantized")
"""The Hub's words of `base_model_relation`."""

OTHERS = {
    "base": "what the deltas of a merge are taken against, or what a model is measured against",
    "distillation": "trained on the outputs of the parent",
    "pretraining": "trained further on raw text",
    "pruning": "parts of the parent left out",
    "upscaling": "layers of the parent added or repeated",
    "conversion": "the same weights in another format or dtype",
    "revision": "another commit of one repository",
    "checkpoint": "a later step of one run of training",
    "tokenizer": "only the tokenizer comes from the parent",
    "draft": "made to guess for the parent in speculative decoding",
    "reward": "made to judge the parent's answers",
}
"""Words that others use, and what they mean here."""

KNOWN = (*HUB, *OTHERS)

_SPELLINGS = {
    "finetune": (
        "finetuned",
        "finetuning",
        "fine-tune",
        "fine-tuned",
        "fine_tune",
        "fine_tuned",
        "fine-tuning",
        "sft",
    ),
    "merge": ("merged", "merging"),
    "adapter": ("adapters", "lora", "qlora", "peft"),
    "quantized": ("quantised", "quantization", "quantisation", "quantize", "quantise", "quant"),
}
_MEANT = {spelling: word for word, spellings in _SPELLINGS.items() for spelling in spellings}

_QUANTISER_TAGS = re.compile(
    r"gguf|ggml|exl[23]|exllama(v[23])?|gptq|awq|hqq|aqlm|quip#?|quanto|eetq|vptq|bnb|bitsandbytes|mlx|"
    r"compressed-tensors|imatrix|quantized|quantised|quantization|[2-8]-?bits?|[1-8](\.\d+)?[-_ ]?bpw|"
    r"(fp|nf|mxfp|nvfp|int)[48]|w[48]a(4|8|16)|i?q[1-8]_.*",
    re.IGNORECASE,
)
_QUANTISER_LIBRARIES = (
    "gguf",
    "ggml",
    "exllamav2",
    "exllamav3",
    "mlx",
    "llama.cpp",
    "llama-cpp",
    "ctranslate2",
    "mlc-llm",
)
_QUANTISER_KEYS = ("quantized_by", "quantised_by", "quantization_config", "quantize_version")
_MERGE_TAGS = ("merge", "mergekit", "lazymergekit", "model_stock", "mergekit-moe")
_ADAPTER_LIBRARIES = ("peft", "adapter-transformers", "adapters")


def stated(value: object) -> str | None:
    """A relation as it was said, in lower case; spellings of the Hub's own words are those words."""
    if not isinstance(value, str) or not value.strip():
        return None
    word = " ".join(value.split()).lower()
    return _MEANT.get(word, word)


def of_card(header: Mapping[str, object], bases: int, tags: Iterable[str]) -> str | None:
    """How a model with so many base models was made, by the Hub's rule, where the header of its card does not say it."""
    lower = {tag.strip().lower() for tag in tags}
    if bases == 1 and marks_of_quantiser(header, lower):
        return "quantized"
    if lower.intersection(_MERGE_TAGS) or bases > 1:
        return "merge"
    if not bases:
        return None
    library = str(header.get("library_name") or "").strip().lower()
    # A trainer of whole models may tag how it trained; a library of parts of models tags what it holds.
    is_adapter = library in _ADAPTER_LIBRARIES or ("lora" in lower and library != "transformers")
    return "adapter" if is_adapter else "finetune"


def marks_of_quantiser(header: Mapping[str, object], tags: Iterable[str]) -> bool:
    """Whether a card's header bears marks that programs and people who quantise leave."""
    library = header.get("library_name")
    return (
        (isinstance(library, str) and library.strip().lower() in _QUANTISER_LIBRARIES)
        or any(header.get(key) for key in _QUANTISER_KEYS)
        or any(_QUANTISER_TAGS.fullmatch(tag) for tag in tags)
    )


def is_merged_by_tags(tags: Iterable[str]) -> bool:
    """Whether tags say that a model is a merge."""
    return bool({tag.strip().lower() for tag in tags}.intersection(_MERGE_TAGS))


def files_of_quantiser(folder: Path) -> bool:
    """Whether the files of a folder are a quantiser's: GGUF weights and no others, or exl2's measurements."""
    try:
        names = [entry.name.lower() for entry in folder.iterdir()]
    except OSError:
        return False
    plain = any(name.endswith((".safetensors", ".bin", ".pt", ".pth")) for name in names)
    return (any(name.endswith(".gguf") for name in names) and not plain) or "quantize_config.json" in names
