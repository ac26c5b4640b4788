"""How models are called: ids of the Hub in all their spellings, and paths, which mean something to their author alone.

An id of the Hub is `org/name`, whatever stands around it: a scheme, a host, a slash at the end, the page of a branch.
A revision other than main and one GGUF file among others are models of their own: `org/name@revision`,
`org/name/file.gguf`. Ids are the same whatever their case (`folded`); other names, and revisions, are not.
"""

import re
from functools import lru_cache
from pathlib import PurePosixPath

MAIN = ("main", "master", "latest", "HEAD")
"""Revisions and tags that say no more than the plain name does."""

_PAGE = re.compile(
    r"(?:(?:https?:)?//)?(?:www\.)?(?:huggingface\.co|hf\.co|hf-mirror\.com)/(?:models/)?(?P<rest>[^\s?#]+)(?:[?#].*)?",
    re.IGNORECASE,
)
_SCHEME = re.compile(r"(?:hf|huggingface):(?://)?(?P<rest>[^\s?#]+)", re.IGNORECASE)
_CACHED = re.compile(
    r"(?:.*[/\\])?models--(?P<org>[\w.-]+?)--(?P<name>[\w.-]+)[/\\]snapshots[/\\](?P<commit>[0-9a-f]{40})[/\\]?",
    re.ASCII,
)
"""A place in anybody's cache of the Hub: it says which commit of which repository lies there."""
_PART = r"[A-Za-z0-9][\w.-]{0,95}"
_ID = re.compile(
    rf"(?P<name>{_PART}/{_PART}?)(?:\.git)?"
    rf"(?:/(?:tree|blob|resolve|raw|commit)/(?P<page>[^/\s]+))?"
    rf"(?P<file>(?:/[\w.+-]+)*/[\w.+-]+\.gguf)?(?:@(?P<revision>[\w.+/-]+)|:(?P<tag>[\w.+-]+))?/*",
    re.ASCII,
)
_PLAIN = re.compile(rf"{_PART}/{_PART}", re.ASCII)
_NAME = re.compile(rf"{_PART}(?:/{_PART})?", re.ASCII)
_OF_A_PAGE = re.compile(
    rf"(?P<name>{_PART}(?:/{_PART}?)?)(?:\.git)?/(?:tree|blob|resolve|raw|commit)/(?P<page>[^/\s]+)(?:/.*)?"
)
_ALONE = re.compile(rf"(?P<name>{_PART})(?:@(?P<revision>[\w.+/-]+))?/*")
_PATH = re.compile(r"(?:file:|[/\\~]|\.{1,2}(?:$|[/\\])|[A-Za-z]:[\\/])")
SITES = ("datasets", "spaces", "api", "docs", "papers", "collections")

NOTHING = (
    "",
    "none",
    "null",
    "nil",
    "nan",
    "n/a",
    "na",
    "~",
    "-",
    "undefined",
    "[]",
    "{}",
    "unknown",
    "<na>",
)
"""What stands where somebody, or a program, had nothing to say."""


def says_nothing(value: object) -> bool:
    """Whether a value is none: null, NaN, an empty text, or a word for it."""
    if isinstance(value, str):
        return value.strip().lower() in NOTHING
    return value is None or value != value or value in ([], {})


@lru_cache(1 << 16)  # a table names each model many times
def hub_id(text: str) -> str | None:
    """`org/name`, `org/name@revision` or `org/name/file.gguf` in any spelling as that; None for anything else."""
    if _PLAIN.fullmatch(text) and not text.endswith(".git") and text.partition("/")[0] not in SITES:
        return text
    if cached := _CACHED.fullmatch(text):
        text = f"{cached['org']}/{cached['name']}@{cached['commit']}"
    around = _PAGE.fullmatch(text) or _SCHEME.fullmatch(text)
    rest = around["rest"] if around else text
    match = _ID.fullmatch(rest) or (around and (_OF_A_PAGE.fullmatch(rest) or _ALONE.fullmatch(rest)))
    if not match or match["name"].partition("/")[0] in SITES or "/." in f"/{match['name']}":
        return None
    said = match.groupdict()
    name = said["name"] + (said.get("file") or "")
    revision, tag = said.get("revision") or said.get("page"), said.get("tag")
    if revision not in (None, *MAIN):
        return f"{name}@{revision}"
    return name if tag in (None, *MAIN) else f"{name}:{tag}"


def canonical(text: str) -> str:
    """The name that stands for all spellings of an id of the Hub; any other name as it is."""
    return hub_id(text) or text


def revised(name: str, revision: str | None) -> str:
    """The name of one revision of a model: the plain one for main and where a revision is in it already."""
    plain = revision in (None, "", *MAIN) or "@" in name or is_path(name)
    return name if plain else f"{name}@{revision}"


def is_path(label: str) -> bool:
    """Whether a name is a place on its author's disk: from the root, home or drive, or relative with a dot or many parts."""
    if _PATH.match(label) or "\\" in label:
        return True
    return label.partition("@")[0].count("/") > 1 and "://" not in label and hub_id(label) is None


@lru_cache(1 << 16)
def folded(label: str) -> str:
    """What is the same for all spellings of one name: an id of the Hub without its case, any other name as it is."""
    found = hub_id(label)
    if found is None:
        return label
    match = _NAME.match(found)
    return match[0].lower() + found[match.end() :] if match and "/" in found else found


def last_part(path: str) -> str:
    """The last part of a path of any system."""
    return PurePosixPath(path.replace("\\", "/").removeprefix("file:")).name
