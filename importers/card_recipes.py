"""mergekit's recipes in the text of a model card: those that made its model, and those of the model it is a copy of.

A recipe is a fenced block of YAML or JSON, also within a list or a quotation. One that mentions none of the base models
in the header was copied from elsewhere. What looks like a recipe and cannot be read is told.
"""

import re
from collections.abc import Iterator
from dataclasses import replace

from kinbase.checkpoint import Edge, Problem, Record
from kinbase.checkpoint import yaml as safe_yaml
from kinbase.checkpoint.files import shown
from kinbase.errors import CheckpointError
from kinbase.importers import fences, mergekit
from kinbase.importers.card_header import Card

_METHOD = re.compile(r"^[ \t>]*merge_method[ \t]*:", re.MULTILINE)
_LANGUAGES = ("yaml", "yml", "json")


def claims(card: Card, where: str) -> Iterator[Record]:
    """What the recipes in a card say, of the card's model or of the one that it is a copy of.

    What they mention is covered: it is not claimed by the header once more. A parent that the header names as well has
    in `alone` the relation that the header gives it.
    """
    if card.is_stated and card.relation not in ("merge", "quantized"):
        return
    configs, captions = _told(card)
    if not configs:
        return
    try:
        recipe = mergekit.Recipe(configs, captions)
        if card.is_copy:
            yield from mergekit.of_copied(card, configs, where)
            return
    except CheckpointError as error:
        yield Problem(str(error))
        return
    if card.bases and not recipe.everything & set(card.bases):
        inputs = ", ".join(sorted(recipe.everything)[:3])
        card.refused.append(f"a merge of {shown(inputs)}, which takes none of the base models")
        return
    for record in mergekit.claims(recipe.configs, "card", where, recipe):
        if isinstance(record, Edge) and record.child is None and record.parent in card.bases:
            record = replace(record, alone=card.relation)
        yield record
    card.covered |= recipe.mentioned


def _told(card: Card) -> tuple[list[dict[str, object]], list[str]]:
    """The configurations in the text of a card, and the text before each; what cannot be read goes to what is refused."""
    configs: list[dict[str, object]] = []
    captions: list[str] = []
    unread: list[str] = []
    others: list[str] = []
    last = recipe = 0
    for block in fences.blocks(card.body):
        others.append(card.body[last : block.start])
        last = block.end
        language = block.info.strip("{}. \t").lower()
        if language and not language.startswith(_LANGUAGES):
            others.append(block.text)
        elif "merge_method" in block.text or "experts" in block.text:
            try:
                documents = safe_yaml.load(block.text, "a recipe in the text")
            except CheckpointError as error:
                # An example for the reader need not be YAML; a recipe is meant to be.
                unread += [str(error)] if _METHOD.search(block.text) else []
                continue
            told = [each for each in documents if isinstance(each, dict) and mergekit.is_config(each)]
            configs += told
            captions += [card.body[recipe : block.start]] * len(told)
            recipe = block.end
    others.append(card.body[last:])
    if not configs and not unread and any(_METHOD.search(text) for text in others):
        unread.append("a merge_method that stands in no block of YAML")
    card.refused += unread
    return configs, captions
