"""A snapshot in the local Hub cache: the folder importer under the repository's name, with its commit.

Only the cache's own layout is read (models--ORG--NAME/{refs,blobs,snapshots}); nothing is downloaded.
"""

import os
import re
from collections.abc import Iterator
from pathlib import Path

from kinbase.checkpoint import Alias, Checkpoint, Facts, Record
from kinbase.checkpoint.files import absolute, is_file, is_folder, listing, read_bounded, shown, snapshot_sha
from kinbase.errors import CheckpointError
from kinbase.importers import adapter, folder

_ID = re.compile(r"(?P<name>[\w.-]+(?:/[\w.-]+)?)(?:@(?P<revision>[\w.-]+(?:/[\w.-]+)*))?", re.ASCII)
_COMMIT = re.compile(rb"[0-9a-f]{40}\s*")


def recognises(source: str) -> bool:
    """Whether `source` is a snapshot, a repository of the cache, or the id of one that is in it."""
    if snapshot_sha(source):
        return is_folder(source)
    if is_folder(source):
        return _is_repository(absolute(source))
    return not is_file(source) and _cached(source) is not None


def open(source: str) -> Iterator[Record]:
    """The records of the snapshot's folder, called ORG/NAME or ORG/NAME@REVISION, with its commit as revision and alias.

    Raises CheckpointError when the cache has no such revision, or the snapshot no readable weights.
    """
    path = snapshot(source)
    commit = path.name
    repository = path.parent.parent
    name = repository.name.removeprefix("models--").replace("--", "/")
    revision = _revision(source, repository, commit)
    called = f"{name}@{revision}" if revision else name
    module = adapter if adapter.holds_adapter(str(path)) else folder
    model: str | None = called
    for record in module.open_as(str(path), called):
        if isinstance(record, Checkpoint):
            model = None  # what the records beside a checkpoint say, they say of it
        yield record
    yield Alias(f"{name}@{commit}", model, kind="revision")
    yield Facts(model, revision=commit)


def _revision(source: str, repository: Path, commit: str) -> str | None:
    """What a revision that is not the main one is called: as it was asked for, else by its branch or tag, or its commit."""
    match = None if is_folder(source) else _ID.fullmatch(source)
    asked = match["revision"] if match else None
    refs = {ref: _commit_of(repository / "refs" / ref) for ref in _refs(repository)}
    if asked in (None, "main") or asked == commit:
        if asked == "main" or commit == refs.get("main") or len(listing(repository / "snapshots")) == 1:
            return None
        return next((ref for ref, at in sorted(refs.items()) if at == commit), commit[:12])
    return asked


def _refs(repository: Path) -> list[str]:
    """Names of branches and tags in the cache, of one or two parts (`refs/pr/1` is left out)."""
    refs = repository / "refs"
    return [name for name in listing(refs) if is_file(str(refs / name))] if is_folder(str(refs)) else []


def _commit_of(ref: Path) -> str | None:
    content = read_bounded(ref, 64)
    return content.decode().strip() if _COMMIT.fullmatch(content) else None


def snapshot(source: str) -> Path:
    """The snapshot folder that `source` means; raises CheckpointError."""
    if snapshot_sha(source):
        return absolute(source)
    found = (absolute(source), None) if is_folder(source) else _cached(source)
    if found is None:
        raise CheckpointError(f"{shown(source)} is not in the Hub cache {shown(cache())}; download it first")
    repository, revision = found
    wanted = revision or "main"
    commit = wanted
    ref = repository / "refs" / wanted
    if is_file(str(ref)):
        content = read_bounded(ref, 64)
        if not _COMMIT.fullmatch(content):
            raise CheckpointError(f"{shown(ref)} is not a commit; download the model again")
        commit = content.decode().strip()
    snapshots = repository / "snapshots"
    there = listing(snapshots) if is_folder(str(snapshots)) else []
    if commit not in there and revision is None and len(there) == 1:
        commit = there[0]  # downloaded by commit, without a branch
    if commit not in there or not snapshot_sha(snapshots / commit):
        raise CheckpointError(
            f"the Hub cache holds no snapshot {shown(wanted)} of {shown(source)}; it has "
            f"{', '.join(map(shown, there[:5])) or 'none'}"
        )
    return snapshots / commit


def _cached(source: str) -> tuple[Path, str | None] | None:
    """(repository folder, revision) of an id ORG/NAME[@REVISION] that is in the cache."""
    match = _ID.fullmatch(source)
    if match is None or any(part in (".", "..") for part in re.split("[/@]", source)):
        return None
    repository = cache() / ("models--" + match["name"].replace("/", "--"))
    return (repository, match["revision"]) if _is_repository(repository) else None


def _is_repository(path: Path) -> bool:
    return path.name.startswith("models--") and is_folder(str(path / "snapshots"))


def cache() -> Path:
    """Where huggingface_hub keeps its cache, by the environment as it is now."""
    for variable in ("HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE"):
        if os.environ.get(variable):
            return Path(os.environ[variable]).expanduser()
    home = os.environ.get("HF_HOME") or os.environ.get("XDG_CACHE_HOME", "~/.cache") + "/huggingface"
    return Path(home).expanduser() / "hub"
