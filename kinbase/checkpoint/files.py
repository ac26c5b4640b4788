"""Files that a stranger wrote: opened only when regular, read in bounded pieces, named escaped."""

import errno
import io
import json
import os
import re
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from kinbase.checkpoint import FileStamp
from kinbase.checkpoint.descriptors import OPEN
from kinbase.checkpoint.limits import LIMITS, refuse_many
from kinbase.errors import CheckpointError

CONFIG_LIMIT = LIMITS.config_bytes
"""Bytes of a configuration file; the largest seen on the Hub are well under 1 MB."""

_SNAPSHOT = re.compile(r"[0-9a-f]{40}")
_LONGEST_READ = 1 << 30
"""preadv refuses or cuts longer ones, differently on each system."""

_POINTER, _LONGEST_POINTER = b"version https://git-lfs", 1024
"""What stands in a clone in the place of a large file."""

KEPT_OPEN = 16
"""Descriptors one checkpoint keeps; see WeightsFile."""


def shown(name: object) -> str:
    """`name` for an error message: quoted, control and bidi characters escaped, of bounded length."""
    text = str(name)
    return repr(text if len(text) <= 200 else text[:197] + "...")


def open_regular(path: str | os.PathLike[str]) -> int:
    """A descriptor for reading the regular file at `path`.

    Raises CheckpointError when it is missing, unreadable, or a pipe or device (which could block
    for ever).
    """
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except (OSError, ValueError) as error:
        raise CheckpointError(f"cannot read {shown(path)}: {_cause(error)}") from None
    if stat.S_ISREG(os.fstat(fd).st_mode):
        return fd
    os.close(fd)
    raise CheckpointError(f"{shown(path)} is not a regular file; give a checkpoint folder or file")


class _Raw(io.FileIO):
    """A file that says so when it has nothing to give for now, as some of the system's have; Python's would return None."""

    def readinto(self, buffer: Any) -> int:
        count = super().readinto(buffer)
        if count is None:
            raise OSError(errno.EAGAIN, "it has nothing to read for now")
        return count


def opened(path: str | os.PathLike[str]) -> io.BufferedReader:
    """The regular file at `path`, to be read from its beginning; raises CheckpointError as `open_regular` does."""
    return io.BufferedReader(_Raw(open_regular(path)))


def _cause(error: OSError | ValueError) -> str:
    if isinstance(error, OSError):
        if error.errno == errno.EMFILE:
            return "too many open files; raise the limit (ulimit -n)"
        return (error.strerror or "it cannot be opened").lower() + "; check the path and its permissions"
    return "its name is not a file name"


def is_file(source: str) -> bool:
    """Whether `source` is a file; unlike Path.is_file it raises nothing (a name too long, no permission)."""
    return os.path.isfile(source)  # noqa: PTH113


def is_folder(source: str) -> bool:
    """Whether `source` is a folder; raises nothing."""
    return os.path.isdir(source)  # noqa: PTH112


def absolute(path: str | os.PathLike[str]) -> Path:
    """`path` from the root, without `..` and with its symlinks: a link is called what the user calls it."""
    return Path(os.path.normpath(Path(path).absolute()))


def stamp(path: str | os.PathLike[str]) -> FileStamp:
    """The stamp of the file at `path`; raises CheckpointError when it is gone."""
    try:
        return FileStamp.of(path)
    except OSError as error:
        raise CheckpointError(f"cannot read {shown(path)}: {_cause(error)}") from None


def listing(folder: str | os.PathLike[str]) -> list[str]:
    """Sorted names in `folder`; raises CheckpointError when it cannot be listed."""
    try:
        return sorted(entry.name for entry in os.scandir(folder))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"cannot list {shown(folder)}: {_cause(error)}") from None


def snapshot_sha(folder: str | os.PathLike[str]) -> str | None:
    """The commit of a Hub cache snapshot folder (models--.../snapshots/<sha>), else None."""
    path = absolute(folder)
    hub = path.parent.name == "snapshots" and path.parent.parent.name.startswith("models--")
    return path.name if hub and _SNAPSHOT.fullmatch(path.name) else None


def inside(folder: str | os.PathLike[str], name: str) -> Path:
    """The path of the file `name` directly inside `folder`.

    Raises CheckpointError for a name that leads elsewhere: with a separator, `..`, absolute, or a
    symlink out of the folder. The one exception is the Hub cache, whose files are links into its
    own blobs folder.
    """
    if not name or name in (".", "..") or any(c in name for c in "/\\\0"):
        raise CheckpointError(
            f"{shown(folder)} names the file {shown(name)}, which is not directly inside the folder; "
            "a checkpoint may not point elsewhere"
        )
    path = Path(folder) / name
    allowed = [os.path.realpath(folder)]
    if snapshot_sha(folder):
        allowed.append(os.path.realpath(absolute(folder).parent.parent / "blobs"))
    if str(Path(os.path.realpath(path)).parent) not in allowed:
        raise CheckpointError(
            f"{shown(path)} is a link out of its folder; copy the file into the folder if you trust it"
        )
    return path


def below(folder: str | os.PathLike[str], name: str) -> Path:
    """The path of the file `name`, which may lie in a folder inside `folder`.

    Raises CheckpointError as `inside` does, for each part of the name.
    """
    *folders, last = [part for part in name.split("/") if part != "."] or [""]
    home = Path(folder)
    for part in folders:
        home = inside(home, part)
    return inside(home, last)


def read_bounded(path: str | os.PathLike[str], limit: int = CONFIG_LIMIT) -> bytes:
    """All bytes of a file of at most `limit` bytes; raises CheckpointError."""
    with opened(path) as file:
        try:
            data = file.read(limit + 1)
        except OSError as error:
            raise CheckpointError(f"cannot read {shown(path)}: {_cause(error)}") from None
    if len(data) > limit:
        raise CheckpointError(f"{shown(path)} is larger than {limit} bytes; it is not a configuration file")
    return data


def read_json(path: str | os.PathLike[str], strict: bool = False) -> dict[str, Any]:
    """The JSON object in the file at `path`; raises CheckpointError. `strict`: as in parse_object."""
    return parse_object(read_bounded(path), shown(path), strict)


def parse_object(
    data: bytes | bytearray, what: str, strict: bool = True, items: int = LIMITS.json_items
) -> dict[str, Any]:
    """The JSON object in `data`, which messages call `what`.

    `strict` refuses a key that occurs twice, NaN and Infinity; without it the last key counts, as
    in the libraries that write these files. At most `items` values are read. Raises CheckpointError.
    """
    refuse_many(data, what, items)
    try:
        value = json.loads(
            data.decode("utf-8"),
            object_pairs_hook=_unique if strict else None,
            parse_constant=_no_constant if strict else None,
        )
        if b"\\ud" in data or b"\\uD" in data:
            json.dumps(value, ensure_ascii=False).encode()  # half a surrogate pair is no text
    except UnicodeError:
        raise CheckpointError(f"{what} is not UTF-8 text; the file is damaged") from None
    except RecursionError:
        raise CheckpointError(f"{what} is nested too deeply to be genuine; it is refused") from None
    except ValueError as error:
        raise CheckpointError(f"{what} is not valid JSON ({error}); download the file again") from None
    if not isinstance(value, dict):
        raise CheckpointError(f"{what} is not a JSON object; download the file again")
    return value


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) < len(pairs):
        seen: set[str] = set()
        twice = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
        raise ValueError(f"the key {shown(twice)} occurs twice")
    return result


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is not JSON")


class WeightsFile:
    """Positional reads of one file, from any thread.

    The descriptor is opened by the first read. Given `kept`, it stays open until `close`, or until too many are
    (`descriptors`); without, each read opens the file. Raises CheckpointError when there is no such regular file.
    """

    def __init__(self, path: str | os.PathLike[str], kept: bool = True) -> None:
        self.path = path
        self._kept = kept
        fd = open_regular(path)
        status = os.fstat(fd)
        os.close(fd)
        self.stamp = FileStamp(os.path.realpath(path), status.st_size, status.st_mtime_ns)
        if status.st_size < _LONGEST_POINTER and read_bounded(path, _LONGEST_POINTER).startswith(_POINTER):
            raise CheckpointError(
                f"{shown(path)} is a Git LFS pointer, not the weights: `git lfs pull` in its folder gets them"
            )

    def read(self, offset: int, out: memoryview) -> None:
        """Fill `out` with the bytes from `offset` on.

        Raises CheckpointError when the file ends before, was changed since it was opened, or
        cannot be read.
        """
        with self.borrow() as fd:
            self._fill(fd, offset, out)

    @contextmanager
    def borrow(self) -> Iterator[int]:
        """A descriptor of the file while the context lasts; raises CheckpointError when it was changed."""
        if not self._kept:
            fd = self._open()
            try:
                yield fd
            finally:
                os.close(fd)
            return
        with OPEN.borrow(self, self._open) as fd:
            yield fd

    def close(self) -> None:
        """Release the descriptor; a later read opens the file again."""
        OPEN.drop(self)

    def _open(self) -> int:
        fd = open_regular(self.path)
        status = os.fstat(fd)
        if (status.st_size, status.st_mtime_ns) == (self.stamp.size, self.stamp.mtime_ns):
            return fd
        os.close(fd)
        raise self._changed(status.st_size)

    def _changed(self, size: int) -> CheckpointError:
        if size < self.stamp.size:
            happened = (
                f"was truncated since it was opened ({size} of {self.stamp.size} bytes left); restore it"
            )
        else:
            happened = "was changed since it was opened; import it again"
        return CheckpointError(f"{shown(self.path)} {happened}")

    def _fill(self, fd: int, offset: int, out: memoryview) -> None:
        while out:
            try:
                count = os.preadv(fd, [out[:_LONGEST_READ]], offset)
            except OSError as error:
                raise CheckpointError(f"cannot read {shown(self.path)}: {_cause(error)}") from None
            if count == 0:
                raise self._changed(os.fstat(fd).st_size)
            out, offset = out[count:], offset + count
