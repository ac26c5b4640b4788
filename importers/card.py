"""Model cards: README.md with a YAML header (hub-docs modelcard.md) and, from mergekit, its recipe.

From the header come the licence, `base_model` with its relation, the parents that LazyMergekit
writes as tags, and the scores of `model-index`. Fenced mergekit configurations say more than
the header: mergekit writes into `base_model` every model the recipe mentions, the base of a TIES
merge and adapters included, so what the recipes that made the model mention is claimed by them alone.
What they do not mention is claimed by the header: a recipe that is not read covers nothing.
Recipes in the card of a quantised copy are of its source, and reported of that; those that mention none of the header's
base models were copied from the card of another model, which is told. `library_name`, `datasets` and `new_version`
have no place in the contract and are not read.
"""

import re
from collections.abc import Iterator
from pathlib import Path

from kinbase.checkpoint import Edge, Facts, Problem, Record, relations
from kinbase.checkpoint.files import is_file, shown
from kinbase.checkpoint.untrusted import decoded, head, model_id, name, problems
from kinbase.importers import card_header, card_recipes, model_index
from kinbase.importers.card_header import listed

_REPO = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")


def recognises(source: str) -> bool:
    """README.md, or any Markdown file that begins with a YAML header."""
    path = Path(source)
    if path.suffix.lower() != ".md" or not is_file(source):
        return False
    begins = decoded(head(source, 64)).lstrip("\ufeff \n")
    return path.name.lower() == "readme.md" or begins.startswith("---")


def open(source: str) -> Iterator[Record]:
    """What the card says of the model it lies beside."""
    path = Path(source)
    card = card_header.read(path)
    refused = card.refused
    yield from map(Problem, card.problems)
    yield Facts(license=_license(card.header, refused), relation=card.relation)
    if card.relation is not None and card.relation not in relations.KNOWN:
        refused.append(
            f"nothing, but base_model_relation {shown(card.relation)} is none of {', '.join(relations.HUB)}; kept as stated"
        )
    yield from card_recipes.claims(card, path.name)
    bases = list(card.bases)
    if not card.covered and not card.is_copy and relations.is_merged_by_tags(card.tags):
        parents = [model_id(tag, []) for tag in sorted(card.tags) if _REPO.fullmatch(tag)]
        bases = list(dict.fromkeys([*bases, *(parent for parent in parents if parent)]))
    for base in bases:
        if base not in card.covered:
            yield Edge(base, card.relation or "merge", "card", alone=card.alone)
    yield from model_index.scores(card.header.get("model-index"), refused)
    yield from problems(path.name, refused)


def _license(header: dict[str, object], refused: list[str]) -> str | None:
    """The licence's identifier; "other" is told by its name where the card gives one."""
    stated = [each for each in (name(item, refused) for item in listed(header.get("license"))) if each]
    if stated == ["other"]:
        return name(header.get("license_name"), refused) or "other"
    return ", ".join(stated) or None
