"""The base models that a card's header names, in the forms that people write them.

The Hub takes an id or a list of ids. People also write a link of Markdown, several ids with commas between them, a list
within quotes, or an id with words behind it; each is read as the ids in it. What stands for a name and is none (the
placeholder of a template, a data set) is refused.
"""

import re
from collections.abc import Iterable, Iterator, Mapping

from kinbase.checkpoint import relations
from kinbase.checkpoint.files import shown
from kinbase.checkpoint.ids import folded, hub_id, says_nothing
from kinbase.checkpoint.limits import LIMITS
from kinbase.checkpoint.untrusted import MAX_NAME, model_id

_TAG = re.compile(r"base_model:(?:(?P<relation>[a-z_]+):)?(?P<base>[^:\s]+(?:/[^:\s]+)?)")
_LONGEST = 4 * MAX_NAME
"""Characters of a text that is looked through for ids; a longer one is no name."""
_LINK = re.compile(r"\[(?P<text>[^\]\n]*)\]\((?P<address>[^)\s]+)\)")
_QUOTED = re.compile(r"""["']([^"']+)["']""")
_BETWEEN = re.compile(r"[ \t]*[,;+&][ \t]*|[ \t]+and[ \t]+")
_WITH_WORDS = re.compile(r"(?P<id>[\w.-]+/[\w.-]+?)[.:]?(?:[ \t]+|(?=\())\S.*")
_PLACEHOLDER = re.compile(
    r"\{\{.*|<[^>]*>|\[?more information needed\]?|t\.?b\.?d\.?|todo|\.{3}", re.IGNORECASE
)
_NO_MODEL = re.compile(
    r"(?:https?://)?(?:www\.)?(?:huggingface\.co|hf\.co)/(?:datasets|spaces|papers|collections)/.*"
)
_OTHER_KEYS = re.compile(
    r"base[-_ ]?models?|merged[-_ ]models?|(source|parent|original)[-_ ]models?|fine[-_ ]?tuned[-_ ](from|on)",
    re.IGNORECASE,
)
"""Keys that look as if they named base models; the Hub reads base_model alone."""


def named(header: Mapping[str, object], tags: Iterable[str], refused: list[str]) -> list[str]:
    """The base models of a header, each once; or else those of the tags that the Hub and PEFT make of them."""
    stated = header.get("base_model")
    told = [each for each in (stated if isinstance(stated, list) else [stated]) if not says_nothing(each)]
    if len(told) > LIMITS.parents:
        refused.append(f"all but {LIMITS.parents:,} of {len(told):,} base models")
    found = [base for each in told[: LIMITS.parents] for base in _ids(each, refused)]
    if not found:
        found = [base for base, _ in _tagged(tags)]
    for key in header:
        if key != "base_model" and _OTHER_KEYS.fullmatch(key) and not says_nothing(header[key]):
            refused.append(f"{shown(key)}, which the Hub does not read: its key is base_model")
    once: dict[str, str] = {}
    for base in found:
        once.setdefault(folded(base), base)
    return list(once.values())


def relation_of_tags(bases: Iterable[str], tags: Iterable[str]) -> str | None:
    """What tags as `base_model:quantized:org/name` say of the base models; None where they say nothing, or several things."""
    ours = {folded(base) for base in bases}
    said = {relation for base, relation in _tagged(tags) if relation and folded(base) in ours}
    return said.pop() if len(said) == 1 else None


def _tagged(tags: Iterable[str]) -> Iterator[tuple[str, str | None]]:
    """Base models by tags, with the relation where it is one of the Hub's."""
    for match in filter(None, (_TAG.fullmatch(tag) for tag in sorted(tags))):
        base = model_id(match["base"], [])
        if base:
            yield base, match["relation"] if match["relation"] in relations.HUB else None


def _ids(stated: object, refused: list[str]) -> Iterator[str]:
    """The models in one entry of base_model."""
    if isinstance(stated, str) and len(stated) <= _LONGEST:
        text = stated.strip()
        if _PLACEHOLDER.fullmatch(text) or _NO_MODEL.match(text):
            refused.append(f"base_model {shown(text)}, which is no model")
            return
        if several := _several(text):
            yield from several
            return
        words = _WITH_WORDS.fullmatch(text)
        if words and hub_id(words["id"]):
            refused.append(f"the words behind {shown(words['id'])} in base_model {shown(text)}")
            stated = words["id"]
    if base := model_id(stated, refused):
        yield base


def _several(text: str) -> list[str]:
    """The ids in a link of Markdown, in a list within quotes, or between commas; none where the text is none of these."""
    links = list(_LINK.finditer(text))
    if links:
        parts = [each["address"] if hub_id(each["address"]) else each["text"] for each in links]
    elif text.startswith("[") and text.endswith("]"):
        parts = _QUOTED.findall(text) or _BETWEEN.split(text[1:-1].strip())
    else:
        parts = _BETWEEN.split(text)
        if len(parts) < 2:
            return []
    ids = [hub_id(part.strip()) for part in parts]
    return [each for each in ids if each] if all(each and "/" in each for each in ids) else []
