"""Weights at any URL that fsspec opens (https://, s3://, gs://, memory://, ...): a .safetensors file, or a folder.

The same ranged reads as of the Hub's files; nothing is kept, so that all weights are streamed. A folder is listed
where its store can list, and else asked for the usual names. A file is known by its size and by what its store
tells it apart with (an ETag, a checksum, a time): asked again at the end, since a read does not tell it.
"""

import asyncio
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from kinbase.checkpoint import ADDRESS, Checkpoint, Problem, Record
from kinbase.checkpoint.files import CONFIG_LIMIT, shown
from kinbase.checkpoint.limits import LIMITS
from kinbase.errors import CheckpointError, WeightsRefused
from kinbase.importers import adapter, card, folder, mergekit, safetensors
from kinbase.importers.hub.client import Tell
from kinbase.importers.ranges import Blocks, Piece, RangedFile

DEPTHS = ("metadata", "sample", "stream", "whole", "kept")

_USUAL = (
    "config.json", "adapter_config.json", "model.safetensors.index.json", "model.safetensors",
    "adapter_model.safetensors", "README.md", *mergekit.NAMES,
)  # fmt: skip
"""Files that a folder is asked for by name where it cannot be listed."""

_SMALL = ("config.json", "adapter_config.json", "README.md", *mergekit.NAMES)
_TELLING = ("README.md", "adapter_config.json", *mergekit.NAMES)
"""Files that tell of a model without its weights."""
_PLAIN = re.compile(r"[\w.+-]+", re.ASCII)
_TELLS_APART = (
    "ETag", "etag", "e_tag", "md5Hash", "content_md5", "Content-MD5", "crc32c", "checksum", "version_id",
    "LastModified", "Last-Modified", "last_modified", "updated", "mtime", "modified", "created",
)  # fmt: skip
"""What stores call that which tells one content of a file from another; the surest first."""

_TIMEOUT = 10.0
"""Seconds without an answer after which an HTTP server is given up."""

_GLANCE = 64 << 10


def recognises(source: str) -> bool:
    """Whether `source` is a URL other than the Hub's."""
    return "://" in source and ADDRESS.match(source) is not None and not source.startswith("hf:")


def open(source: str, depth: str = "stream", tell: Tell = lambda what, done, total: None) -> Iterator[Record]:
    """The weights at a URL and what is said beside them; raises CheckpointError."""
    if depth == "kept":
        raise CheckpointError(
            f"{shown(public(source))} is not on this machine; --stream reads it where it lies"
        )
    store = _Store(source)
    blocks = Blocks() if depth in ("stream", "whole") else None
    enough = None if blocks else _GLANCE
    name = Path(store.path).stem if store.is_file else Path(store.path).name
    opened: list[_Opened] = []

    def opener(file: str) -> folder.Opener:
        def of_it() -> Checkpoint:
            one = _Opened(store, file, blocks)
            opened.append(one)
            return safetensors.of_file(one.file, name, store.shown)

        return of_it

    with TemporaryDirectory(prefix="kinbase-") as path:
        if store.is_file:
            ranged, beside = [Path(store.path).name], []
        else:
            ranged = [file for file in store.names if file.endswith(".safetensors")]
            beside = [f for f in store.names if f in _SMALL or f.endswith(".safetensors.index.json")]
        for file in beside:
            Path(path, file).write_bytes(store.read(file, 0, CONFIG_LIMIT + 1))
        elsewhere = {file: opener(file) for file in ranged}
        found: list[Record] = []
        refused: str | None = None
        try:
            if not elsewhere and not any(file in _TELLING for file in beside):
                raise CheckpointError(f"{shown(public(source))} holds no .safetensors files")
            try:
                _weights(path, name, elsewhere, enough, found)
            except CheckpointError as error:
                refused = str(error)
            told = len(found)
            for file in beside:
                if file == "README.md":
                    found += card.open(str(Path(path, file)))
                elif file in mergekit.NAMES:
                    found += mergekit.open(str(Path(path, file)))
        except CheckpointError as error:
            raise CheckpointError(str(error).replace(path, public(source))) from None
        if refused is not None:
            refused = refused.replace(path, public(source))
            if not told and len(found) == told:
                raise CheckpointError(refused)
    for record in found:
        if isinstance(record, Checkpoint):
            record.source = store.shown
            record.files = [stamp for stamp in record.files if stamp.elsewhere]
            record.verify = _verifier(opened)
        elif isinstance(record, Problem):
            record = Problem(record.message.replace(path, store.shown))
        yield record
    if refused is not None:
        raise WeightsRefused(refused)


def _weights(
    path: str, name: str, elsewhere: Mapping[str, folder.Opener], enough: int | None, found: list[Record]
) -> None:
    """Add what the weights say to `found`, as far as it goes; raises CheckpointError for weights that cannot be read."""
    if not elsewhere:
        raise CheckpointError(f"{path} holds no .safetensors files; only those are read at a URL")
    if adapter.holds_adapter(path, elsewhere):
        records = adapter.open_as(path, name, elsewhere)
    else:
        records = folder.open_as(path, name, elsewhere, enough)
    for record in records:
        found.append(record)


def public(source: str) -> str:
    """A URL without its query, which may be a signature, and without a password."""
    return re.sub(r"//[^/]*@", "//", source.partition("?")[0])


class _Store:
    """The file system of a URL; every way it can fail is told in one line."""

    def __init__(self, source: str) -> None:
        import fsspec

        self.shown = public(source)
        self.over_http = over_http = source.startswith(("http://", "https://"))

        def opened() -> Any:
            options: dict[str, Any] = {}
            if over_http:
                import aiohttp

                timeout = aiohttp.ClientTimeout(sock_connect=_TIMEOUT, sock_read=_TIMEOUT)
                options["client_kwargs"] = {"timeout": timeout}
            return fsspec.core.url_to_fs(source, **options)

        self.fs, path = self.asked(opened)
        self.path, _, query = path.partition("?") if over_http else (path, "", "")
        self.path = self.path.rstrip("/")
        self.query = f"?{query}" if query else ""
        self.is_file = self.path.endswith(".safetensors")
        self.names = [] if self.is_file else self._names()

    def _names(self) -> list[str]:
        if self.over_http:  # its listings are guesses from links in a page
            return [name for name in _USUAL if self._exists(name)] + self._shards()
        listed = self.asked(lambda: self.fs.ls(self.path, detail=False))
        if len(listed) > LIMITS.listing_names:
            raise CheckpointError(
                f"{shown(self.shown)} holds {len(listed):,} files; at most {LIMITS.listing_names:,} are looked at"
            )
        return sorted(
            n for n in (entry.rstrip("/").rpartition("/")[2] for entry in listed) if _PLAIN.fullmatch(n)
        )

    def _exists(self, file: str) -> bool:
        return bool(self.asked(lambda: self.fs.exists(self.at(file))))

    def _shards(self) -> list[str]:
        """The shards that the usual index names."""
        index = "model.safetensors.index.json"
        if not self._exists(index):
            return []
        with TemporaryDirectory(prefix="kinbase-") as path:
            Path(path, index).write_bytes(self.read(index, 0, CONFIG_LIMIT + 1))
            return [file for file in folder.shards(path, index) if _PLAIN.fullmatch(file)]

    def at(self, file: str) -> str:
        """The path of one file."""
        return (self.path if self.is_file else f"{self.path}/{file}") + self.query

    def read(self, file: str, start: int, stop: int) -> bytes:
        """Bytes of a file, fewer where it ends before."""
        from fsspec.asyn import sync

        def part() -> Any:
            if self.over_http:
                arriving = self._part(file, start, stop)
                return sync(self.fs.loop, asyncio.wait_for, arriving, LIMITS.arrival(stop - start))
            return self.fs.cat_file(self.at(file), start=start, end=stop)

        data: bytes = self.asked(part)
        return data

    async def _part(self, file: str, start: int, stop: int) -> bytes:
        """Bytes of a file over HTTP: fsspec would take all that a server sends which does not know ranges."""
        url, found = self.at(file), bytearray()
        headers = {"Range": f"bytes={start}-{stop - 1}", "Accept-Encoding": "identity"}
        session = await self.fs.set_session()
        async with session.get(self.fs.encode_url(url), headers=headers) as answer:
            if answer.status == 416:
                return b""
            self.fs._raise_not_found_for_status(answer, url)
            told = answer.headers.get("Content-Range", "")
            begins = told.startswith(f"bytes {start}-") if answer.status == 206 else start == 0
            if not begins or answer.headers.get("Content-Encoding", "identity") != "identity":
                raise CheckpointError(
                    f"the server of {shown(self.shown)} sends no parts of files, only whole ones: download "
                    f"{shown(file)} and import it from there"
                )
            async for data in answer.content.iter_any():
                found += data[: stop - start - len(found)]
                if len(found) == stop - start:
                    break
        return bytes(found)

    def about(self, file: str) -> tuple[int, str]:
        """Size of a file, and what tells its content apart."""
        self.asked(lambda: self.fs.invalidate_cache(self.fs._parent(self.at(file))))
        info = self.asked(lambda: self.fs.info(self.at(file)))
        if not isinstance(info.get("size"), int):
            raise CheckpointError(f"{shown(self.shown)}: its server does not say how long {shown(file)} is")
        return info["size"], next((f"{key} {info[key]}" for key in _TELLS_APART if info.get(key)), "")

    def asked(self, ask: Callable[[], Any]) -> Any:
        """The answer to a request; raises CheckpointError without the client's own words, which may hold secrets."""
        try:
            return ask()
        except CheckpointError:
            raise
        except FileNotFoundError:
            raise CheckpointError(
                f"{shown(self.shown)} is not there, or may not be read: check the address"
            ) from None
        except PermissionError:
            raise CheckpointError(
                f"{shown(self.shown)} may not be read with the credentials there are"
            ) from None
        except TimeoutError:
            raise CheckpointError(
                f"{shown(self.shown)} did not answer for {_TIMEOUT:g} s, or so slowly that it was given up; try again later"
            ) from None
        except ImportError as error:
            raise CheckpointError(
                f"{shown(self.shown)} needs the package {error.name or 'of its file system'}: install it beside kinbase"
            ) from None
        except Exception as error:  # any store's own client: fsspec promises no base class
            status = getattr(error, "status", None)
            words = f"answers {status}" if status else f"could not be asked ({type(error).__name__})"
            raise CheckpointError(f"the store of {shown(self.shown)} {words}; try again later") from None


class _Opened:
    """One file of weights, and what it was when it was opened."""

    def __init__(self, store: _Store, file: str, blocks: Blocks | None) -> None:
        self.store, self.name = store, file
        self.size, self.identity = store.about(file)
        path = store.shown.rstrip("/") + ("" if store.is_file else f"/{file}")
        self.file = RangedFile(path, self._piece, blocks)

    def _piece(self, start: int, stop: int) -> Piece:
        stop = min(stop, self.size)
        data = self.store.read(self.name, start, stop) if stop > start else b""
        return Piece(data[: stop - start], self.size, self.identity)

    def refuse_changed(self) -> None:
        if self.store.about(self.name) != (self.size, self.identity):
            raise CheckpointError(f"{shown(self.file.path)} changed while it was read; import it again")


def _verifier(opened: list[_Opened]) -> Callable[[], None]:
    def verify() -> None:
        for one in opened:
            one.refuse_changed()

    return verify
