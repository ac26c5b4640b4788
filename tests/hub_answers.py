"""How the Hub on loopback answers: the pages of the Hub itself, and those of its storage."""

import hashlib
import json
import re
import socket
import struct
import time
from dataclasses import dataclass
from functools import lru_cache
from http.server import BaseHTTPRequestHandler
from urllib.parse import parse_qs, quote, unquote, urlsplit

from ruamel.yaml import YAML

STORED = (".safetensors", ".bin", ".gguf")
"""Ends of names of files that lie on the storage server."""


@dataclass(frozen=True)
class Seen:
    """One request as it was answered; `nbytes` are those of the body."""

    method: str
    path: str
    query: str
    status: int
    nbytes: int
    range: str | None
    authorised: bool
    host: str


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    wbufsize = 1 << 16

    def log_message(self, *_):
        pass

    def do_HEAD(self):
        self._handle()

    def do_GET(self):
        self._handle()

    def _handle(self):
        hub = self.hub
        with hub.lock:
            hub.running += 1
            hub.most_at_once = max(hub.most_at_once, hub.running)
        try:
            parts = urlsplit(self.path)
            self.route, self.query = unquote(parts.path), parse_qs(parts.query)
            self.raw_query = parts.query
            self.broken = hub.fault(f"{self.command} {self.route}")
            if hub.latency:
                time.sleep(hub.latency)
            if self.broken and self.broken.stall:
                hub.stopping.wait(self.broken.stall)
            if self.broken and self.broken.status:
                body = self.broken.body or b'{"error": "broken on purpose"}'
                self._send(self.broken.status, body, dict(self.broken.headers))
            else:
                self._answer()
        finally:
            with hub.lock:
                hub.running -= 1

    @property
    def allowed(self):
        return self.headers.get("Authorization", "").removeprefix("Bearer ") in self.hub.members

    def _refuse(self, status, code=None, message=""):
        headers = {"X-Error-Code": code} if code else {}
        self._send(status, json.dumps({"error": message or code}).encode(), headers)

    def _json(self, value, headers=None):
        self._send(200, json.dumps(value).encode(), {"Content-Type": "application/json", **(headers or {})})

    def _file(self, data, headers):
        """A file, or the range of it that was asked for."""
        if self.broken and self.broken.body is not None:
            data = self.broken.body
        if self.broken and self.broken.etag:
            headers = headers | {"ETag": f'"{self.broken.etag}"'}
        headers = {"Accept-Ranges": "bytes", "Content-Type": "application/octet-stream", **headers}
        wanted = re.fullmatch(r"bytes=(\d*)-(\d*)", self.headers.get("Range", ""))
        if wanted is None or (self.broken and self.broken.whole):
            self._send(200, data, headers)
            return
        first, last = wanted.groups()
        begin = int(first) if first else max(0, len(data) - int(last))
        stop = min(len(data), int(last) + 1) if first and last else len(data)
        if self.broken:
            begin, stop = begin + self.broken.shift, stop + self.broken.shift
        if begin >= stop:
            self._send(
                416, b"<Error>InvalidRange</Error>", headers | {"Content-Range": f"bytes */{len(data)}"}
            )
            return
        self._send(
            206, data[begin:stop], headers | {"Content-Range": f"bytes {begin}-{stop - 1}/{len(data)}"}
        )

    def _send(self, status, body, headers):
        sent = len(body) if self.command == "GET" else 0
        cut = self.broken.cut if self.broken and self.command == "GET" else None
        if cut is not None:
            sent = min(sent, cut)
        self.hub.seen.append(
            Seen(
                self.command, self.route, self.raw_query, status, sent, self.headers.get("Range"),
                "Authorization" in self.headers, self.headers.get("Host", ""),
            )
        )  # fmt: skip
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        if self.broken and self.broken.endless:
            self._send_for_ever(body)
            return
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self._pieces(body[:sent])
        if cut is not None and sent < len(body):
            # What was sent arrives, then the connection ends.
            self.close_connection = True
            self.connection.shutdown(socket.SHUT_RDWR)

    def _pieces(self, body):
        slow, size = (self.broken.slow, self.broken.piece) if self.broken else (0.0, 1 << 16)
        for start in range(0, len(body), size):
            self.wfile.write(body[start : start + size])
            if slow:
                self.wfile.flush()
                self.hub.stopping.wait(slow)
        self.wfile.flush()

    def _send_for_ever(self, body):
        """Until the client goes away."""
        self.close_connection = True
        self.send_header("Connection", "close")
        self.end_headers()
        while not self.hub.stopping.is_set() and self.command == "GET":
            self._pieces(body)


class StorageHandler(_Handler):
    """GET and HEAD /blobs/SHA256?signature: no account is known here."""

    def _answer(self):
        sha = self.route.rpartition("/")[2]
        if self.query.get("signature") != ["good"] or sha not in self.hub.blobs:
            self._refuse(403, message="the signature does not fit")
            return
        self._file(self.hub.blobs[sha], {"ETag": f'"{sha}"'})


class HubHandler(_Handler):
    def _answer(self):
        if self.route == "/api/models":
            self._list()
        elif self.route.startswith("/api/models/"):
            self._api(self.route.removeprefix("/api/models/"))
        elif "/resolve/" in self.route:
            self._resolve()
        else:
            self._refuse(404, message="not found")

    def _repo(self, name, tail):
        """The repository, or None when the request was answered: moved, hidden or unknown."""
        if name in self.hub.renamed:
            target = tail.format(quote(self.hub.renamed[name]))
            self._send(307, b"", {"Location": target + (f"?{self.raw_query}" if self.raw_query else "")})
            return None
        repo = self.hub.repos.get(name)
        if repo is None or (repo.private and not self.allowed):
            self._refuse(404 if self.allowed else 401, "RepoNotFound", "Repository not found")
            return None
        return repo

    def _api(self, rest):
        match = re.fullmatch(r"(?P<name>[^/]+/[^/]+|[^/]+?)(?:/(?P<what>revision|tree)/(?P<rev>.+))?", rest)
        name, what, rev = match["name"], match["what"], match["rev"]
        tail = f"/{what}/{quote(rev, safe='')}" if what else ""
        repo = self._repo(name, "/api/models/{}" + tail)
        if repo is None:
            return
        commit = self._commit(repo, rev or "main")
        if commit is None:
            self._refuse(404, "RevisionNotFound", f"Invalid rev id: {rev}")
        elif what == "tree":
            self._tree(repo, commit)
        else:
            self._json(self._info(repo, commit))

    def _commit(self, repo, rev):
        return repo.refs.get(rev, rev if rev in repo.commits else None)

    def _info(self, repo, commit):
        files = repo.commits[commit]
        card = _header(files.get("README.md", b""))
        info = {
            "_id": hashlib.md5(repo.name.encode()).hexdigest()[:24], "id": repo.name, "modelId": repo.name,
            "author": repo.name.partition("/")[0], "sha": commit, "private": repo.private, "gated": repo.gated,
            "disabled": False, "downloads": 7, "likes": 1, "tags": _tags(card), "createdAt": repo.created_at,
            "lastModified": repo.created_at, "cardData": card,
            "siblings": [{"rfilename": file} for file in sorted(files)],
        }  # fmt: skip
        if "config.json" in files:
            try:
                config = json.loads(files["config.json"])
            except ValueError:
                config = {}
            info["config"] = {k: config[k] for k in ("architectures", "model_type") if k in config}
        sizes = {}
        for file, data in files.items():
            if file.endswith(".safetensors"):
                for dtype, numel in _sizes(data):
                    sizes[dtype] = sizes.get(dtype, 0) + numel
        if sizes:
            info["safetensors"] = {"parameters": sizes, "total": sum(sizes.values())}
        if any(file.endswith(".gguf") for file in files):
            info["gguf"] = {"total": 1234, "architecture": "llama"}
        if "blobs" in self.query:
            for sibling in info["siblings"]:
                data = files[sibling["rfilename"]]
                sibling |= {"size": len(data), "blobId": _git(data)}
                if sibling["rfilename"].endswith(STORED):
                    sha = hashlib.sha256(data).hexdigest()
                    sibling["lfs"] = {"size": len(data), "sha256": sha, "pointerSize": 134}
        if "expand" in self.query:
            if "childrenModelCount" in self.query["expand"]:
                info["childrenModelCount"] = self.hub.count_children(repo.name)
            info = {key: info[key] for key in ("_id", "id", *self.query["expand"]) if key in info}
        return info

    def _tree(self, repo, commit):
        files = repo.commits[commit]
        entries = []
        for file, data in sorted(files.items()):
            entry = {"type": "file", "path": file, "size": len(data), "oid": _git(data)}
            if file.endswith(STORED):
                sha = hashlib.sha256(data).hexdigest()
                entry["lfs"] = {"oid": sha, "size": len(data), "pointerSize": 134}
            entries.append(entry)
        self._page(entries)

    def _list(self):
        filters = self.query.get("filter", [])
        found = []
        for name in sorted(self.hub.repos):
            repo = self.hub.repos[name]
            if repo.private and not self.allowed:
                continue
            commit = repo.refs["main"]
            tags = tags_of(repo)
            if all(wanted in tags for wanted in filters):
                found.append((repo, commit))
        self._page(found, lambda pair: self._info(*pair))

    def _page(self, entries, made=lambda entry: entry):
        """One page of a listing, with the Link to the next."""
        start = int(self.query.get("cursor", ["0"])[0])
        size = min(self.hub.page, int(self.query.get("limit", [self.hub.page])[0]))
        headers = {}
        if start + size < len(entries):
            rest = "&".join(
                f"{key}={quote(value)}"
                for key, values in self.query.items()
                if key != "cursor"
                for value in values
            )
            target = f"{self.hub.url}{quote(self.route)}?{rest}&cursor={start + size}"
            headers["Link"] = f'<{target}>; rel="next"'
        self._json([made(entry) for entry in entries[start : start + size]], headers)

    def _resolve(self):
        name, _, rest = self.route[1:].partition("/resolve/")
        rev, _, file = rest.partition("/")
        repo = self._repo(name, "/{}/resolve/" + quote(rest))
        if repo is None:
            return
        if repo.gated and not self.allowed:
            status = 403 if "Authorization" in self.headers else 401
            self._refuse(status, "GatedRepo", f"Access to model {name} is restricted.")
            return
        commit = self._commit(repo, rev)
        if commit is None:
            self._refuse(404, "RevisionNotFound", f"Invalid rev id: {rev}")
            return
        if file not in repo.commits[commit]:
            self._send(404, b"Entry not found", {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": commit})
            return
        data = repo.commits[commit][file]
        if file.endswith(STORED):
            sha = hashlib.sha256(data).hexdigest()
            self._send(
                302,
                b"",
                {
                    "Location": f"{self.hub.storage}/blobs/{sha}?signature=good",
                    "X-Repo-Commit": commit,
                    "X-Linked-Etag": f'"{sha}"',
                    "X-Linked-Size": str(len(data)),
                    "ETag": f'"{_git(data)}"',
                },
            )
        else:
            self._file(data, {"ETag": f'"{_git(data)}"', "X-Repo-Commit": commit})


def _git(data):
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


@lru_cache(None)
def _header(card):
    """The YAML header of a card, as the Hub gives it: cardData."""
    found = re.match(r"---\n(.*?)^---$", card.decode("utf-8", "replace"), re.DOTALL | re.MULTILINE)
    return YAML(typ="safe").load(found[1]) if found else {}


def tags_of(repo):
    return _tags(_header(repo.commits[repo.refs["main"]].get("README.md", b"")))


def _tags(card):
    """The tags the Hub makes of a card."""
    bases = card.get("base_model") or []
    bases = [bases] if isinstance(bases, str) else bases
    guess = "merge" if len(bases) > 1 else "adapter" if card.get("library_name") == "peft" else "finetune"
    relation = card.get("base_model_relation", guess)
    tags = [f"{kind}{base}" for base in bases for kind in ("base_model:", f"base_model:{relation}:")]
    return tags + list(card.get("tags") or []) + ([f"license:{card['license']}"] if "license" in card else [])


def _sizes(data):
    """(dtype, elements) of each tensor of a safetensors file; none of one that cannot be read."""
    try:
        (length,) = struct.unpack("<Q", data[:8])
        header = json.loads(data[8 : 8 + length])
    except (struct.error, ValueError):
        return
    for name, entry in header.items():
        if name != "__metadata__":
            numel = 1
            for extent in entry["shape"]:
                numel *= extent
            yield entry["dtype"], numel
