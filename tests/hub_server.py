"""A Hub on loopback: what huggingface_hub's client needs of the protocol, served over real HTTP from memory.

    with Hub() as hub:
        hub.put("org/base", {"config.json": b"{}", "model.safetensors": data, "README.md": card})
        os.environ["HF_ENDPOINT"] = hub.url

Repositories have commits, branches and tags, old names, gates and owners; big files are redirected to a second
server (another host, as the Hub's storage is). Requests and bytes are counted, and `fail` breaks what a test wants
broken: an error status, a stall, a connection cut after so many bytes. Nothing here is shared with kinbase.
"""

import hashlib
import json
import re
import socket
import struct
import threading
import time
from collections import Counter
from dataclasses import dataclass, field
from functools import lru_cache
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, quote, unquote, urlsplit

from ruamel.yaml import YAML

TOKEN = "hf_" + "kinbaseTestTokenNeverToBeSeen00001"
STORED = (".safetensors", ".bin", ".gguf")
"""Ends of names of files that lie on the storage server."""


@dataclass
class Repo:
    """One repository: {commit: {file: bytes}}, and names of commits."""

    name: str
    created_at: str
    gated: object = False
    private: bool = False
    commits: dict = field(default_factory=dict)
    refs: dict = field(default_factory=dict)


@dataclass
class Fault:
    """What goes wrong with requests whose `METHOD /path` matches: `times` of them, after the first `after`."""

    pattern: str
    status: int = 0
    headers: dict = field(default_factory=dict)
    cut: int | None = None  # bytes of the body before the connection is cut
    stall: float = 0.0  # seconds before the first byte
    slow: float = 0.0  # seconds between pieces of 64 KiB
    etag: str | None = None  # sent in place of the file's
    body: bytes | None = None  # sent in place of the file, or with the status
    whole: bool = False  # ranges are not known: the whole file is sent
    shift: int = 0  # bytes by which a range is missed
    times: int = 1 << 30
    after: int = 0


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


class Hub:
    """The server and its storage; a context manager. `latency` is added to every answer, in seconds."""

    def __init__(self, latency=0.0, page=3):
        self.latency, self.page = latency, page
        self.repos, self.renamed, self.blobs = {}, {}, {}
        self.faults, self.seen = [], []
        self.members = {TOKEN}
        self.lock = threading.Lock()
        self.running = 0
        self.most_at_once = 0
        self.counted = None, {}

    def __enter__(self):
        self.stopping = threading.Event()
        self.servers = [self._serve(_HubHandler), self._serve(_StorageHandler)]
        # The storage is another host to every client: its name differs, and so does its port.
        self.url = f"http://127.0.0.1:{self.servers[0].server_address[1]}"
        self.storage = f"http://localhost:{self.servers[1].server_address[1]}"
        return self

    def __exit__(self, *_):
        self.stopping.set()
        for server in self.servers:
            server.shutdown()
            server.server_close()

    def _serve(self, handler):
        server = _Server(("127.0.0.1", 0), type("Handler", (handler,), {"hub": self}))
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        return server

    def put(
        self, name, files, *, branch="main", created_at="2026-01-02T03:04:05.000Z", gated=False, private=False
    ):
        """Commit `files` ({name: bytes}, or a folder) to a repository; the commit."""
        if not isinstance(files, dict):
            folder = Path(files)
            files = {
                str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()
            }
        repo = self.repos.setdefault(name, Repo(name, created_at))
        repo.gated, repo.private = gated, private
        contents = json.dumps([(f, hashlib.sha256(d).hexdigest()) for f, d in sorted(files.items())])
        commit = hashlib.sha1(f"{name} {len(repo.commits)} {contents}".encode()).hexdigest()
        repo.commits[commit] = dict(files)
        repo.refs[branch] = commit
        for file, data in files.items():
            if file.endswith(STORED):
                self.blobs[hashlib.sha256(data).hexdigest()] = data
        return commit

    def rename(self, old, new):
        """Give a repository another name; the old one leads there."""
        self.repos[new] = self.repos.pop(old)
        self.repos[new].name = new
        self.renamed[old] = new

    def fail(self, pattern, **how):
        """From now on requests whose `METHOD /path` matches the pattern fail in the way of `Fault`."""
        self.faults.insert(0, Fault(pattern, **how))

    def heal(self):
        """Nothing fails any more, and nothing has been seen."""
        self.faults.clear()
        self.seen.clear()

    def requests(self, pattern=""):
        """What was asked whose `METHOD /path` matches the pattern."""
        return [r for r in self.seen if re.search(pattern, f"{r.method} {r.path}")]

    def nbytes(self, pattern=""):
        """Bytes of bodies sent in answer to those."""
        return sum(r.nbytes for r in self.requests(pattern))

    def count_children(self, name):
        """Models whose cards name this one as their base."""
        commits = sum(len(repo.commits) for repo in self.repos.values())
        if self.counted[0] != (commits, len(self.renamed)):
            tags = [tag for repo in self.repos.values() for tag in _tags_of(repo)]
            self.counted = (commits, len(self.renamed)), Counter(tags)
        return self.counted[1][f"base_model:{name}"]

    def fault(self, line):
        """The first fault that applies to `METHOD /path`, once less to come."""
        with self.lock:
            for fault in self.faults:
                if re.search(fault.pattern, line):
                    if fault.after > 0:
                        fault.after -= 1
                    elif fault.times > 0:
                        fault.times -= 1
                        return fault
        return None


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128

    def handle_error(self, request, client_address):
        pass  # a client that went away


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
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        slow = self.broken.slow if self.broken else 0.0
        for start in range(0, sent, 1 << 16):
            self.wfile.write(body[start : min(sent, start + (1 << 16))])
            if slow:
                self.wfile.flush()
                self.hub.stopping.wait(slow)
        self.wfile.flush()
        if cut is not None and sent < len(body):
            # What was sent arrives, then the connection ends.
            self.close_connection = True
            self.connection.shutdown(socket.SHUT_RDWR)


class _StorageHandler(_Handler):
    """GET and HEAD /blobs/SHA256?signature: no account is known here."""

    def _answer(self):
        sha = self.route.rpartition("/")[2]
        if self.query.get("signature") != ["good"] or sha not in self.hub.blobs:
            self._refuse(403, message="the signature does not fit")
            return
        self._file(self.hub.blobs[sha], {"ETag": f'"{sha}"'})


class _HubHandler(_Handler):
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
            tags = _tags_of(repo)
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


def _tags_of(repo):
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
