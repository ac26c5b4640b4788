"""Files of a commit into the Hub's cache, resumable: what the client keeps of a download that was broken off is nothing.

A file grows as `blobs/<hash>.kinbase.incomplete`, where the next import goes on with it; whole and checked
against the hash that names it, it becomes the blob that huggingface_hub's own download would have made, and
the client links it into the snapshot.
"""

import hashlib
import os
import re
import shutil
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from pathlib import Path

from kinbase.checkpoint.files import shown
from kinbase.checkpoint.limits import LIMITS
from kinbase.errors import CheckpointError
from kinbase.importers.hub.cache import cache
from kinbase.importers.hub.client import Hub, Repo
from kinbase.importers.hub.file import HubFile

_HASH = re.compile(r"[0-9a-f]{64}|[0-9a-f]{40}")
"""By which the Hub knows a file: the SHA-256 of a large one, Git's SHA-1 of any other."""

_AT_ONCE = 4
"""Files that are downloaded at the same time."""


def fetch(hub: Hub, repo: Repo, files: Sequence[str]) -> Path:
    """The snapshot folder of the commit, with `files` in it; raises CheckpointError.

    What the cache has is not asked for; what it has a part of is asked for from there on.
    """
    progress = _Progress(hub, f"downloading {repo.name}")
    with ThreadPoolExecutor(_AT_ONCE, thread_name_prefix="kinbase-download") as pool:
        try:
            for future in [pool.submit(_fetch, hub, repo, file, progress) for file in files]:
                while not future.done():
                    # With a timeout: polars handles SIGINT first and has an endless wait restarted after it.
                    wait([future], timeout=0.2)
                future.result()
        except BaseException:
            progress.stopped.set()
            pool.shutdown(wait=True, cancel_futures=True)
            raise
    return _snapshot(repo)


def _snapshot(repo: Repo) -> Path:
    return cache() / ("models--" + repo.name.replace("/", "--")) / "snapshots" / repo.commit


class _Progress:
    """Bytes of all files together; `stopped` ends the threads between two pieces."""

    def __init__(self, hub: Hub, what: str) -> None:
        self.hub, self.what = hub, what
        self.done = self.total = 0
        self.lock = threading.Lock()
        self.stopped = hub.stopped

    def add(self, done: int, total: int = 0) -> None:
        with self.lock:
            self.done += done
            self.total += total
            self.hub.tell(self.what, self.done, self.total)


def _fetch(hub: Hub, repo: Repo, file: str, progress: _Progress) -> None:
    from huggingface_hub import get_hf_file_metadata, hf_hub_url
    from huggingface_hub.errors import LocalEntryNotFoundError
    from huggingface_hub.utils import WeakFileLock

    snapshot = _snapshot(repo)
    if (snapshot / file).exists() or progress.stopped.is_set():
        return
    what = f"hf:{repo.name}@{repo.commit[:12]}/{file}"
    url = hf_hub_url(repo.name, file, revision=repo.commit, endpoint=hub.endpoint)
    with hub.sensible(what):
        about = hub.asked(
            lambda: get_hf_file_metadata(url, timeout=hub.timeout, library_name="kinbase"), what
        )
    etag, size = about.etag or "", about.size
    if _HASH.fullmatch(etag) and size is not None:
        if len(etag) == 40 and size > LIMITS.plain_bytes:
            raise CheckpointError(
                f"{shown(what)} has {size:,} bytes beside the large files of its repository, where at most "
                f"{LIMITS.plain_bytes:,} are read; it is refused"
            )
        locks = cache() / ".locks" / snapshot.parents[1].name
        blob = snapshot.parents[1] / "blobs" / etag
        for folder in (locks, blob.parent):
            folder.mkdir(parents=True, exist_ok=True)
        progress.add(0, size)
        with WeakFileLock(locks / f"{etag}.lock"):
            if not blob.exists():
                _grow(HubFile(hub, repo, file), blob, size, progress)
            if progress.stopped.is_set():
                return
    else:
        raise CheckpointError(
            f"{hub.endpoint} does not say how long {shown(what)} is, or by which hash it is known"
        )
    # The file's name in the snapshot.
    try:
        with hub.sensible(what):
            hub.asked(
                lambda: hub.api.hf_hub_download(
                    repo.name, file, revision=repo.commit, cache_dir=cache(), etag_timeout=hub.timeout
                ),
                what,
            )
    except LocalEntryNotFoundError:  # the client's word for a connection that failed
        raise CheckpointError(
            f"the connection to {hub.endpoint} broke over {shown(what)}; try again later"
        ) from None
    except OSError as error:
        raise CheckpointError(
            f"cannot keep {shown(what)} in the Hub's cache: {(error.strerror or 'failed').lower()}"
        ) from None


def _grow(file: HubFile, blob: Path, size: int, progress: _Progress) -> None:
    """Download what is missing of `blob`, check the whole against its name, and put it there."""
    part = blob.with_name(blob.name + ".kinbase.incomplete")
    hasher = hashlib.sha256() if len(blob.name) == 64 else hashlib.sha1(b"blob %d\0" % size)
    try:
        with part.open("a+b") as out:
            if out.tell() > size:
                out.truncate(0)
            out.seek(0)
            while data := out.read(1 << 22):
                hasher.update(data)
            have = out.tell()
            progress.add(have)
            free = shutil.disk_usage(blob.parent).free
            if size - have > free:
                raise CheckpointError(
                    f"{shown(file.path)} needs {size - have} bytes and the disk of the Hub's cache has {free} left: "
                    "make room, or import it with --stream"
                )
            if have < size:
                for data in file.chunks(have, size):
                    out.write(data)
                    hasher.update(data)
                    have += len(data)
                    progress.add(len(data))
                    if progress.stopped.is_set():
                        return
    except OSError as error:
        raise CheckpointError(f"cannot write {shown(part)}: {(error.strerror or 'failed').lower()}") from None
    if have < size:
        raise CheckpointError(
            f"{shown(file.path)} ended after {have} of {size} bytes: import it again to go on"
        )
    if hasher.hexdigest() != blob.name:
        part.unlink(missing_ok=True)
        raise CheckpointError(
            f"{shown(file.path)} did not arrive as the Hub describes it (its hash differs) and was removed; import it again"
        )
    os.replace(part, blob)  # noqa: PTH105 - atomic, over a file another program may have made meanwhile
