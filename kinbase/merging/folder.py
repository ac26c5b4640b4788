"""What lies beside merged weights: config.json, tokenizer, the configuration of the merge, a model card."""

import json
import re
import shutil
from collections.abc import Mapping, Sequence
from io import StringIO
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

from kinbase.checkpoint.files import inside, is_file, read_bounded, shown
from kinbase.checkpoint.merge_config import BASE_IS_PARENT, Reference, uses
from kinbase.checkpoint.tensors import HEADS
from kinbase.errors import KinbaseError
from kinbase.merging.config import MergeConfig
from kinbase.merging.plan import Parent, Target, layer_count

COPIED = (
    "tokenizer.json", "tokenizer.model", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json",
    "vocab.json", "vocab.txt", "merges.txt", "spiece.model", "chat_template.jinja", "chat_template.json",
    "generation_config.json", "preprocessor_config.json", "processor_config.json",
)  # fmt: skip
"""Files of the donor that the child has unchanged."""

LAYERS_KEYS = ("num_hidden_layers", "n_layer", "num_layers", "n_layers")
QUANTISED = ("quantization_config", "quantization", "compression_config")
"""What a config.json says of how its weights are packed: a merge is written plain."""

TORCH_NAMES = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16"}
FILE_LIMIT = 256 << 20
_PART = re.compile(r"model(-\d{5}-of-\d{5})?\.safetensors(\.index\.json)?")
MARKED = ".kinbase-"
"""How the names of marks begin."""

_OURS = (*COPIED, "config.json", "mergekit_config.yml", "README.md")


def is_abandoned(folder: Path) -> bool:
    """Whether a folder holds nothing but what an interrupted merge leaves."""
    return folder.is_dir() and all(
        entry.name in _OURS or entry.name.startswith(MARKED) or _PART.fullmatch(entry.name)
        for entry in folder.iterdir()
    )


def write_beside(
    folder: Path, config: MergeConfig, parents: Mapping[Reference, Parent], targets: Sequence[Target]
) -> None:
    """Write config.json and copy the tokenizer; raises OSError, and KinbaseError for a file that is unreadable."""
    donor = parents[config.donor]
    home = Path(donor.checkpoint.source)
    if donor.config:
        record = child_config(config, donor.config, targets)
        (folder / "config.json").write_text(json.dumps(record, indent=2, ensure_ascii=False) + "\n")
    tokens = home
    if isinstance(config.tokenizer, Reference):
        tokens = Path(parents[config.tokenizer].checkpoint.source)
    for file in COPIED:
        origin = (home if file == "generation_config.json" else tokens) / file
        if is_file(str(origin)):
            # Not what a link out of the parent's folder leads to: the child may be published.
            (folder / file).write_bytes(read_bounded(inside(origin.parent, file), FILE_LIMIT))


def write_record(
    folder: Path, name: str, config: MergeConfig, labels: Mapping[str, str], written_as: Mapping[str, str],
    licenses: Sequence[str | None],
) -> None:  # fmt: skip
    """Write mergekit_config.yml and the model card of the model `name`; raises OSError.

    `written_as` maps what the configuration calls a model to what the file does (the absolute path of
    a local one, so that the file is good from anywhere), `labels` to what the card does.
    """
    (folder / "mergekit_config.yml").write_text(_yaml(renamed(config.document, written_as)))
    (folder / "README.md").write_text(card(name, config, labels, licenses))


def write_marks(folder: Path, marks: Mapping[str, str] | None) -> None:
    """Write what the maker of a child wants to find in its folder again; raises OSError."""
    for name, text in (marks or {}).items():
        (folder / name).write_text(text)


def child_config(config: MergeConfig, donor: Mapping[str, Any], targets: Sequence[Target]) -> dict[str, Any]:
    """The donor's config.json with the child's dtype, layers and head; what is merged is quantised no longer."""
    record = {key: value for key, value in donor.items() if key not in QUANTISED}
    if isinstance(record.get("text_config"), dict):
        record["text_config"] = {k: v for k, v in record["text_config"].items() if k not in QUANTISED}
    sizes: dict[str, int] = {}
    for target in targets:
        if not target.buffer:
            sizes[target.out] = sizes.get(target.out, 0) + target.numel
    dtype = TORCH_NAMES[max(sizes, key=lambda code: sizes[code])] if sizes else None
    for holder in (record, record.get("text_config")):
        if not isinstance(holder, dict):
            continue
        for key in ("torch_dtype", "dtype"):
            if key in holder and dtype:
                holder[key] = dtype
        layers = layer_count(config)
        for key in LAYERS_KEYS:
            if layers is not None and key in holder:
                holder[key] = layers
    if dtype and not {"torch_dtype", "dtype"} & record.keys():
        record["torch_dtype"] = dtype
    if any(target.name.endswith(HEADS) for target in targets):
        for part in ("", "text_config"):
            holder = record.get(part) if part else record
            if isinstance(holder, dict) and holder.get("tie_word_embeddings"):
                holder = holder | {"tie_word_embeddings": False}
                record = record | {part: holder} if part else holder
    return record


def renamed(document: object, names: Mapping[str, str], key: str = "") -> object:
    """The configuration with every model called by its new name, where one is given."""
    if isinstance(document, dict):
        return {k: renamed(value, names, str(k)) for k, value in document.items()}
    if isinstance(document, list):
        return [renamed(item, names, key) for item in document]
    if isinstance(document, str) and key in (
        "model",
        "base_model",
        "path",
        "models",
        "tokenizer_source",
        "source",
        "lora",
    ):
        if document in names:
            return names[document]
        return "+".join(names.get(part, part) for part in document.split("+"))  # a model and its adapter
    return document


def card(name: str, config: MergeConfig, labels: Mapping[str, str], licenses: Sequence[str | None]) -> str:
    """A model card: parents, method and configuration; a licence only where all of `licenses` are the same.

    The parents are the merged models, as the importer reads them: the base of a delta method is not one.
    """
    found = uses(dict(config.document), [])
    merged = [use.reference for use in found if not use.is_base(config.method)]
    bases = dict.fromkeys(use.base for use in found if use.base)
    if config.method in BASE_IS_PARENT:
        merged += [base for base in bases if base not in merged]
    parents = list(
        dict.fromkeys(labels.get(n, n) for model in merged for n in (model.model, model.lora) if n)
    )
    on = [labels.get(base.model, base.model) for base in bases if base not in merged]
    header: dict[str, object] = {
        "base_model": parents,
        "base_model_relation": "merge",
        "library_name": "transformers",
    }
    if len(set(licenses)) == 1 and licenses[0]:
        header["license"] = licenses[0]
    header["tags"] = ["mergekit", "merge"]
    recipe = _yaml(renamed(config.document, labels))
    return (
        f"---\n{_yaml(header)}---\n\n# {name}\n\nA merge of {', '.join(parents)} by {config.method}"
        f"{' on the base ' + ', '.join(on) if on else ''}, made with kinbase.\n\n"
        f"## Configuration\n\nIn mergekit's YAML:\n\n```yaml\n{recipe}```\n"
    )


def _yaml(value: object) -> str:
    text = StringIO()
    yaml = YAML(typ="safe", pure=True)
    yaml.default_flow_style = False
    yaml.sort_base_mapping_type_on_output = False  # type: ignore[assignment]
    yaml.width = 1000
    yaml.dump(value, text)
    return text.getvalue()


def check_vocabularies(
    config: MergeConfig, parents: Mapping[Reference, Parent], targets: Sequence[Target]
) -> None:
    """Raise KinbaseError when the tokenizer asked for would need embeddings to be rearranged, which mergekit does."""
    if config.tokenizer is None:
        return
    vocabularies = {parent.label: _vocabulary(Path(parent.checkpoint.source)) for parent in parents.values()}
    first, *others = vocabularies.items()
    for label, vocabulary in others:
        if vocabulary != first[1]:
            raise KinbaseError(
                f"the tokenizers of {first[0]} and {label} differ: --backend mergekit aligns vocabularies, the built-in "
                "methods merge embeddings row by row (leave out tokenizer_source if that is meant)"
            )
    rows = next((t.shape[0] for t in targets if t.name.endswith("embed_tokens.weight")), None)
    if isinstance(first[1], dict) and rows is not None and rows != len(first[1]):
        raise KinbaseError(
            f"the embedding has {rows} rows and the tokenizer {len(first[1])} tokens, to which mergekit's "
            "tokenizer_source would cut it: leave out tokenizer_source to keep them, or use --backend mergekit"
        )


def _vocabulary(folder: Path) -> dict[str, object] | bytes | None:
    """A tokenizer's token ids, or the bytes of a model whose format is not read here; None without a tokenizer."""
    if is_file(str(folder / "tokenizer.json")):
        try:
            record = json.loads(read_bounded(folder / "tokenizer.json", FILE_LIMIT))
            ids = record["model"]["vocab"]
            ids = dict(ids) if isinstance(ids, dict) else {token: i for i, (token, _) in enumerate(ids)}
            return {**ids, **{token["content"]: token["id"] for token in record.get("added_tokens", [])}}
        except (ValueError, KeyError, TypeError):
            raise KinbaseError(
                f"{shown(folder / 'tokenizer.json')} cannot be read: leave out tokenizer_source"
            ) from None
    if is_file(str(folder / "tokenizer.model")):
        return read_bounded(folder / "tokenizer.model", FILE_LIMIT)
    return None


def remove(folder: Path) -> None:
    """Take away an unfinished folder, whatever is in the way."""
    shutil.rmtree(folder, ignore_errors=True)
