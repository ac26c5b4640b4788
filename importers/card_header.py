"""The header of a model card, as the Hub reads it: YAML between two lines of three dashes at the top of README.md."""

import re
from dataclasses import dataclass, field
from pathlib import Path

from kinbase.checkpoint import relations
from kinbase.checkpoint import yaml as safe_yaml
from kinbase.checkpoint.files import CONFIG_LIMIT, is_file, read_json, shown
from kinbase.checkpoint.ids import says_nothing
from kinbase.checkpoint.limits import LIMITS
from kinbase.checkpoint.untrusted import model_id, read_text
from kinbase.errors import CheckpointError

LIMIT = 4 * 1024 * 1024
"""Bytes of a card that are read: the header comes first, and real cards are far shorter."""

# huggingface_hub.repocard's pattern, with line ends made one; spaces behind the dashes are let through as well.
_HEADER = re.compile(r"\s*---[ \t]*\n+(?P<yaml>.*?)^---[ \t]*$", re.DOTALL | re.MULTILINE)
_BEGINS = re.compile(r"\s*---[ \t]*\n")
_TAG = re.compile(r"base_model:(?:(?P<relation>[a-z_]+):)?(?P<base>[^:\s]+(?:/[^:\s]+)?)")


@dataclass
class Card:
    """A card's header, what is said in it of base models, and the text below it."""

    header: dict[str, object] = field(default_factory=dict)
    body: str = ""
    tags: set[str] = field(default_factory=set)
    bases: list[str] = field(default_factory=list)
    relation: str | None = None
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
    card.tags = {tag for tag in listed(card.header.get("tags")) if isinstance(tag, str)}
    _bases(card)
    card.relation = relations.of_card(card.header, len(card.bases), card.tags)
    if card.relation is None or not card.header.get("base_model_relation"):
        _by_the_files(card, path.parent)
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


def _bases(card: Card) -> None:
    """The base models of the header; or else of the tags that the Hub and PEFT make of them."""
    told = [each for each in listed(card.header.get("base_model")) if not says_nothing(each)]
    if len(told) > LIMITS.parents:
        card.refused.append(f"all but {LIMITS.parents:,} of {len(told):,} base models")
    some = told[: LIMITS.parents]
    card.bases = list(dict.fromkeys(base for base in (model_id(each, card.refused) for each in some) if base))
    for match in filter(None, (_TAG.fullmatch(tag) for tag in sorted(card.tags))):
        base = model_id(match["base"], [])
        if base and not card.bases and not says_nothing(match["base"]):
            card.bases.append(base)
            if match["relation"] in relations.HUB:
                card.header.setdefault("base_model_relation", match["relation"])


def _by_the_files(card: Card, folder: Path) -> None:
    """Judge by the files that lie beside a card with one base whether the model is a quantised copy or an adapter of it."""
    if len(card.bases) != 1 or card.relation not in ("finetune", "merge"):
        return
    config = folder / "config.json"
    quantised = relations.files_of_quantiser(folder)
    if not quantised and is_file(str(config)) and config.stat().st_size <= CONFIG_LIMIT:
        try:
            quantised = isinstance(read_json(config).get("quantization_config"), dict)
        except CheckpointError:
            quantised = False
    if quantised:
        card.relation = "quantized"
    elif card.relation == "finetune" and is_file(str(folder / "adapter_config.json")):
        # A trainer leaves the settings of an adapter beside weights into which it was merged, too.
        whole = (*folder.glob("model*.safetensors"), *folder.glob("pytorch_model*.bin"))
        card.relation = "finetune" if whole else "adapter"


def said_of_copy(card: Card, what: str) -> str:
    """The line that tells why a recipe is not read."""
    return f"{what}: the recipe of {shown(', '.join(card.bases))}, which this is a quantised copy of, is not this model's"
