"""Model cards: README.md with a YAML header (hub-docs modelcard.md) and, from mergekit, its recipe.

From the header come the licence, `base_model` with its relation, the parents that LazyMergekit
writes as tags, and the scores of `model-index`. A fenced mergekit configuration says more than
the header: mergekit writes into `base_model` every model the recipe mentions, the base of a TIES
merge and adapters included, so what the recipe mentions is claimed by the recipe alone. A recipe
that mentions none of the header's base models was copied from the card of another model (the
usual thing in quantised copies) and is not read. `library_name`, `datasets` and `new_version`
have no place in the contract and are not read.
"""

import re
from collections.abc import Iterator
from pathlib import Path

from kinbase.checkpoint import Edge, Facts, Problem, Record
from kinbase.checkpoint import yaml as safe_yaml
from kinbase.checkpoint.files import is_file
from kinbase.checkpoint.untrusted import head, model_id, name, problems, read_text
from kinbase.errors import CheckpointError
from kinbase.importers import mergekit, model_index

_LIMIT = 4 * 1024 * 1024
"""Bytes of a card that are read: the header comes first, and real cards are far shorter."""

_HEADER = re.compile(r"\s*---[ \t]*\r?\n(.*?)^---[ \t]*$", re.DOTALL | re.MULTILINE)
_FENCED = re.compile(r"^```[ \t]*ya?ml[ \t]*\r?\n(.*?)^```", re.DOTALL | re.MULTILINE | re.IGNORECASE)
_REPO = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
_MERGE_TAGS = {"merge", "mergekit", "lazymergekit"}
_RELATIONS = ("finetune", "merge", "adapter", "quantized")


def recognises(source: str) -> bool:
    """README.md, or any Markdown file that begins with a YAML header."""
    path = Path(source)
    if path.suffix.lower() != ".md" or not is_file(source):
        return False
    begins = head(source, 16).lstrip(b"\xef\xbb\xbf \r\n")
    return path.name.lower() == "readme.md" or begins.startswith(b"---")


def open(source: str) -> Iterator[Record]:
    """What the card says of the model it lies beside."""
    path = Path(source)
    text, whole = read_text(path, _LIMIT)
    if not whole:
        yield Problem(f"{path.name}: only the first {_LIMIT:,} bytes of the card were read")
    refused: list[str] = []
    header: dict[str, object] = {}
    found = _HEADER.match(text)
    if found:
        try:
            documents = safe_yaml.load(found.group(1), f"{path.name}: the card's header")
            header = next((each for each in documents if isinstance(each, dict)), {})
            if not header and any(documents):
                refused.append("the card's header, which is no mapping")
        except CheckpointError as error:
            yield Problem(str(error))
    elif re.match(r"\s*---[ \t]*\r?\n", text):
        refused.append("the card's header, which does not end with ---")

    bases = [
        label for label in (model_id(each, refused) for each in _list(header.get("base_model"))) if label
    ]
    tags = {tag for tag in _list(header.get("tags")) if isinstance(tag, str)}
    recipe = _recipe(text[found.end() if found else 0 :], bases, header)
    relation = _relation(header, bases, tags)
    yield Facts(license=_license(header, refused), relation=relation)
    covered: set[str] = set()
    if recipe:
        try:
            yield from mergekit.claims(recipe, "card", path.name)
        except CheckpointError as error:
            yield Problem(str(error))
        covered = set().union(*(mergekit.models(each) for each in recipe))
    elif _MERGE_TAGS & {tag.lower() for tag in tags}:
        bases += [tag for tag in sorted(tags) if _REPO.fullmatch(tag) and tag not in bases]
    for base in dict.fromkeys(bases):
        if base not in covered:
            yield Edge(base, relation or "merge", "card", method=None)
    yield from model_index.scores(header.get("model-index"), refused)
    yield from problems(path.name, refused)


def _recipe(body: str, bases: list[str], header: dict[str, object]) -> list[dict[str, object]]:
    """The mergekit configurations in the body that made this model, not the one it was copied from."""
    configs: list[dict[str, object]] = []
    for block in _FENCED.finditer(body):
        if "merge_method" not in block.group(1) and "experts" not in block.group(1):
            continue
        try:
            documents = safe_yaml.load(block.group(1), "")
        except CheckpointError:
            continue  # an example for the reader, which nobody promised to be YAML
        configs += [each for each in documents if isinstance(each, dict) and mergekit.is_config(each)]
    mentioned = set().union(*(mergekit.models(config) for config in configs))
    own = header.get("base_model_relation") in (None, "merge") and (not bases or mentioned & set(bases))
    return configs if own else []


def _relation(header: dict[str, object], bases: list[str], tags: set[str]) -> str | None:
    """How the model was made from its base models; what the card leaves out, by the Hub's own rule."""
    stated = header.get("base_model_relation")
    if stated in _RELATIONS:
        return str(stated)
    if _MERGE_TAGS & {tag.lower() for tag in tags} or len(bases) > 1:
        return "merge"
    if not bases:
        return None
    if header.get("library_name") in ("peft", "adapter-transformers", "adapters"):
        return "adapter"
    return "quantized" if header.get("library_name") == "gguf" or "gguf" in tags else "finetune"


def _license(header: dict[str, object], refused: list[str]) -> str | None:
    """The licence's identifier; "other" is told by its name where the card gives one."""
    stated = [each for each in (name(item, refused) for item in _list(header.get("license"))) if each]
    if stated == ["other"]:
        return name(header.get("license_name"), refused) or "other"
    return ", ".join(stated) or None


def _list(value: object) -> list[object]:
    return value if isinstance(value, list) else [] if value is None else [value]
