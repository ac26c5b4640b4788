"""What the terminal UI remembers of a person: theme, order, columns and keys, in a file to edit; queries, in another.

The file is `$XDG_CONFIG_HOME/kinbase/config.toml` (~/.config by default), the history of queries
`$XDG_STATE_HOME/kinbase/queries.json` (~/.local/state). A file that cannot be read or written is told, and
costs nobody the screen.
"""

import json
import os
import tomllib
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from kinbase.errors import KinbaseError, UsageError
from kinbase.text import written

THEMES = ("kinbase-dark", "kinbase-light")
SORTS = ("largest", "name", "newest", "parameters", "score")
REMEMBERED = 200
"""Queries that are kept."""


@dataclass
class Settings:
    """`keys` are other keys for actions, by the names that `kinbase config` lists: {"sort": "o,ctrl+o"}."""

    theme: str = "kinbase-dark"
    sort: str = "largest"
    columns: list[str] = field(
        default_factory=lambda: ["name", "relation", "score", "gain", "kin", "coverage", "parents"]
    )
    keys: dict[str, str] = field(default_factory=dict)


def config_path() -> Path:
    """The file of settings."""
    home = os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config"
    return Path(home, "kinbase", "config.toml")


def history_path() -> Path:
    """The file of queries."""
    home = os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state"
    return Path(home, "kinbase", "queries.json")


def load() -> Settings:
    """The settings of the file, defaults where it says nothing. Raises KinbaseError for a file that is wrong."""
    path = config_path()
    try:
        with path.open("rb") as file:
            said = tomllib.load(file)
    except FileNotFoundError:
        return Settings()
    except (OSError, tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise KinbaseError(f"{path} cannot be read: {error}: mend it or remove it") from error
    settings = Settings()
    for key, value in said.items():
        _set(settings, key, value, str(path))
    return settings


def save(settings: Settings) -> None:
    """Write the file of settings whole. Raises KinbaseError when that cannot be."""
    path = config_path()
    lines = []
    for key, value in asdict(settings).items():
        if not isinstance(value, dict):
            lines.append(f"{key} = {json.dumps(value, ensure_ascii=False)}")
    lines += [
        "",
        "[keys]",
        *(f"{json.dumps(name)} = {json.dumps(keys)}" for name, keys in settings.keys.items()),
    ]
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with written(str(path)) as out:
            out.writelines(line + "\n" for line in lines)
    except OSError as error:
        raise KinbaseError(f"{path} cannot be written: {error.strerror or error}") from error


def change(settings: Settings, key: str, value: str) -> None:
    """Set one of the settings by its text; `keys.NAME` is a key. Raises UsageError for what there is not."""
    if key.startswith("keys."):
        settings.keys[key[5:]] = value
    elif key == "columns":
        _set(settings, key, [name.strip() for name in value.split(",") if name.strip()], "")
    else:
        _set(settings, key, value, "")


def _set(settings: Settings, key: str, value: Any, where: str) -> None:
    said = f"{where}: " if where else ""
    if key not in {f.name for f in fields(Settings)}:
        raise UsageError(
            f"{said}there is no setting {key!r}: choose of {', '.join(f.name for f in fields(Settings))}"
        )
    choices = {"theme": THEMES, "sort": SORTS}.get(key)
    if choices and value not in choices:
        raise UsageError(f"{said}{key} is one of {', '.join(choices)}, not {value!r}")
    if key == "columns" and not (
        isinstance(value, list) and value and all(isinstance(v, str) for v in value)
    ):
        raise UsageError(f"{said}columns is a list of names, such as name, score, mmlu")
    if key == "keys" and not (isinstance(value, dict) and all(isinstance(v, str) for v in value.values())):
        raise UsageError(f'{said}keys are lines like sort = "o"')
    setattr(settings, key, value)


def past_queries() -> list[str]:
    """The queries of earlier times, oldest first; none of a file that cannot be read."""
    try:
        said = json.loads(history_path().read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return []
    return [query for query in said if isinstance(query, str)] if isinstance(said, list) else []


def keep_queries(queries: list[str]) -> None:
    """Keep the last of `queries` for the next time. Raises KinbaseError when they cannot be written."""
    path = history_path()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with written(str(path)) as out:
            json.dump(queries[-REMEMBERED:], out, ensure_ascii=False)
    except OSError as error:
        raise KinbaseError(f"{path} cannot be written: {error.strerror or error}") from error
