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
import threading
from collections import Counter
from dataclasses import dataclass, field
from http.server import ThreadingHTTPServer
from pathlib import Path

from hub_answers import STORED, HubHandler, StorageHandler, tags_of

TOKEN = "hf_" + "kinbaseTestTokenNeverToBeSeen00001"


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
    slow: float = 0.0  # seconds between pieces
    piece: int = 1 << 16  # bytes of a piece
    endless: bool = False  # the body comes again and again, and no length is told
    etag: str | None = None  # sent in place of the file's
    body: bytes | None = None  # sent in place of the file, or with the status
    whole: bool = False  # ranges are not known: the whole file is sent
    shift: int = 0  # bytes by which a range is missed
    times: int = 1 << 30
    after: int = 0


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
        self.servers = [self._serve(HubHandler), self._serve(StorageHandler)]
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
            tags = [tag for repo in self.repos.values() for tag in tags_of(repo)]
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
