"""Model cards: README.md with a YAML header (hub-docs modelcard.md) and, from mergekit, its recipe.

From the header come the licence, `base_model` with its relation, the parents that LazyMergekit
writes as tags, and the scores of `model-index`. Fenced mergekit configurations say more than
the header: mergekit writes into `base_model` every model the recipe mentions, the base of a TIES
merge and adapters included, so what the recipes that made the model mention is claimed by them alone.
What they do not mention is claimed by the header: a recipe that is not read covers nothing.
Recipes in the card of a quantised copy, and those that mention none of the header's base models, were
copied from the card of another model and are not read. `library_name`, `datasets` and `new_version`
have no place in the contract and are not read.
"""

import re
from collections.abc import Iterator
from pathlib import Path

from kinbase.checkpoint import Edge, Facts, Problem, Record, relations
from kinbase.checkpoint import yaml as safe_yaml
from kinbase.checkpoint.files import is_file, shown
from kinbase.checkpoint.untrusted import decoded, head, model_id, name, problems
from kinbase.errors import CheckpointError
from kinbase.importers import card_header, fences, mergekit, model_index
from kinbase.importers.card_header import Card, listed

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
    bases = list(card.bases)
    covered: set[str] = set()
    recipe = None
    try:
        recipe = _recipe(card)
    except CheckpointError as error:
        yield Problem(str(error))
    if recipe is not None:
        yield from mergekit.claims(recipe.configs, "card", path.name, recipe)
        covered = recipe.mentioned
    elif not card.is_copy and relations.is_merged_by_tags(card.tags):
        parents = [model_id(tag, []) for tag in sorted(card.tags) if _REPO.fullmatch(tag)]
        bases = list(dict.fromkeys([*bases, *(parent for parent in parents if parent)]))
    for base in bases:
        if base not in covered:
            yield Edge(base, card.relation or "merge", "card", method=None)
    yield from model_index.scores(card.header.get("model-index"), refused)
    yield from problems(path.name, refused)


def _recipe(card: Card) -> mergekit.Recipe | None:
    """The mergekit configurations in the body that made this model, not the one it was copied from."""
    if card.header.get("base_model_relation") and card.relation != "merge":
        return None
    configs: list[dict[str, object]] = []
    captions: list[str] = []
    end = 0
    for block in fences.blocks(card.body):
        info = block.info.strip().lower()
        if info and not info.startswith(("yaml", "yml")):
            continue
        if "merge_method" not in block.text and "experts" not in block.text:
            continue
        try:
            documents = safe_yaml.load(block.text, "")
        except CheckpointError:
            continue  # an example for the reader, which nobody promised to be YAML
        told = [each for each in documents if isinstance(each, dict) and mergekit.is_config(each)]
        configs += told
        captions += [card.body[end : block.start]] * len(told)
        end = block.end
    if not configs or card.is_copy:
        return None
    recipe = mergekit.Recipe(configs, captions)
    return recipe if not card.bases or recipe.everything & set(card.bases) else None


def _license(header: dict[str, object], refused: list[str]) -> str | None:
    """The licence's identifier; "other" is told by its name where the card gives one."""
    stated = [each for each in (name(item, refused) for item in listed(header.get("license"))) if each]
    if stated == ["other"]:
        return name(header.get("license_name"), refused) or "other"
    return ", ".join(stated) or None
