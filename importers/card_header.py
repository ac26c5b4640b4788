"""The header of a model card, as the Hub reads it: YAML between two lines of three dashes at the top of README.md."""

import re
from dataclasses import dataclass, field
from pathlib import Path

from kinbase.checkpoint import relations
from kinbase.checkpoint import yaml as safe_yaml
from kinbase.checkpoint.files import CONFIG_LIMIT, is_file, read_json, shown
from kinbase.checkpoint.ids import says_nothing
from kinbase.checkpoint.untrusted import read_text
from kinbase.errors import CheckpointError
from kinbase.importers import card_bases

LIMIT = 4 * 1024 * 1024
"""Bytes of a card that are read: the header comes first, and real cards are far shorter."""

# huggingface_hub.repocard's pattern, with line ends made one; spaces behind the dashes are let through as well.
_HEADER = re.compile(r"\s*---[ \t]*\n+(?P<yaml>.*?)^---[ \t]*$", re.DOTALL | re.MULTILINE)
_BEGINS = re.compile(r"\s*---[ \t]*\n")
_FURTHER_DOWN = re.compile(
    r"^---[ \t]*\n(?:[ \t#-].*\n|\w[\w -]*:.*\n){0,200}?(?:base_model|license|tags|library_name|model-index)[ \t]*:",
    re.MULTILINE,
)
_LOOKED_THROUGH = 64 << 10
"""Characters of a card without a header in which one further down is looked for."""


@dataclass
class Card:
    """A card's header, what is said in it of base models, and the text below it.

    `alone` is what the relation would be if only one of several base models were one: a card may name its own model
    among them. None where the number of base models does not matter. `is_stated` tells a relation that the card says from
    one that is inferred. `covered` are the models that recipes in the text speak of.
    """

    header: dict[str, object] = field(default_factory=dict)
    body: str = ""
    tags: set[str] = field(default_factory=set)
    bases: list[str] = field(default_factory=list)
    relation: str | None = None
    is_stated: bool = False
    alone: str | None = None
    covered: set[str] = field(default_factory=set)
    refused: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)

    @property
    def is_copy(self) -> bool:
        """Whether the model is a quantised copy: recipes in or beside the card are then of what was quantised."""
        return self.relation == "quantized" and bool(self.bases)


def read(path: Path) -> Card:
    """The card in a file; raises CheckpointError when it cannot be read at all."""
    text, whole = read_text(path, LIMIT)
    card = Card(body=text)
    if not whole:
        card.problems.append(f"{path.name}: only the first {LIMIT:,} bytes of the card were read")
    found = _HEADER.match(text)
    if found:
        card.body = text[found.end() :]
        try:
            documents = safe_yaml.load(found["yaml"], f"{path.name}: the card's header")
            card.header = next((each for each in documents if isinstance(each, dict)), {})
            if not card.header and any(documents):
                card.refused.append("the card's header, which is no mapping")
        except CheckpointError as error:
            card.problems.append(str(error))
    elif _BEGINS.match(text):
        card.refused.append("the card's header, which does not end with ---")
    elif _FURTHER_DOWN.search(text[:_LOOKED_THROUGH]):
        card.refused.append(
            "the card's header, which is not at the top: the Hub does not read it there either"
        )
    card.tags = {tag for tag in listed(card.header.get("tags")) if isinstance(tag, str)}
    card.bases = card_bases.named(card.header, card.tags, card.refused)
    stated = _stated(card)
    card.relation, card.is_stated = stated, stated is not None
    if stated is None:
        card.relation = _inferred(card, len(card.bases), path.parent)
        alone = _inferred(card, 1, path.parent)
        card.alone = alone if len(card.bases) > 1 and alone != card.relation else None
    return card


def beside(path: Path) -> Card | None:
    """The card in the folder of a file; None where there is none that can be read."""
    readme = next(
        (p for p in (path.parent / "README.md", path.parent / "readme.md") if is_file(str(p))), None
    )
    try:
        return read(readme) if readme else None
    except CheckpointError:
        return None


def listed(value: object) -> list[object]:
    """A value of YAML that may be one or several."""
    return value if isinstance(value, list) else [] if value is None else [value]


def _stated(card: Card) -> str | None:
    """How the model was made, where the header or the tags say it."""
    said = card.header.get("base_model_relation")
    said = said[0] if isinstance(said, list) and len(said) == 1 else said
    relation = relations.stated(said)
    if relation is None and not says_nothing(said):
        card.refused.append(f"base_model_relation {shown(said)}, which is no word")
    return relation or card_bases.relation_of_tags(card.bases, card.tags)


def _inferred(card: Card, bases: int, folder: Path) -> str | None:
    """How a model with so many base models was made, by its header and the files beside it."""
    relation = relations.of_card(card.header, bases, card.tags)
    return _by_the_files(relation, folder) if bases == 1 else relation


def _by_the_files(relation: str | None, folder: Path) -> str | None:
    """What the files beside a card with one base make of an inferred relation: a quantised copy, an adapter, or neither."""
    whole = (*folder.glob("model*.safetensors"), *folder.glob("pytorch_model*.bin"))
    weights = (*folder.glob("adapter_model.*"), *folder.glob("pytorch_lora_weights.*"))
    if relation in ("finetune", "merge") and _is_quantised(folder):
        return "quantized"
    if relation == "adapter" and whole and not weights:
        return "finetune"
    # A trainer leaves the settings of an adapter beside weights into which it was merged, too.
    if relation == "finetune" and not whole and is_file(str(folder / "adapter_config.json")):
        return "adapter"
    return relation


def _is_quantised(folder: Path) -> bool:
    """Whether the files of a folder are those of a quantised model."""
    config = folder / "config.json"
    if relations.files_of_quantiser(folder):
        return True
    if not is_file(str(config)) or config.stat().st_size > CONFIG_LIMIT:
        return False
    try:
        return isinstance(read_json(config).get("quantization_config"), dict)
    except CheckpointError:
        return False


def said_of_copy(card: Card, what: str, *, is_kept: bool) -> str:
    """The line that tells why a recipe is not this model's, and what becomes of it."""
    source = shown(", ".join(card.bases))
    made = "which this is a quantised copy of" if card.is_copy else "which this was made from"
    kept = f", and is kept as reported of {source}" if is_kept else ""
    return f"{what}: the recipe of {source}, {made}, is not this model's{kept}"
