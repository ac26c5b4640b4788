"""The same application in a browser, by textual-serve: one process of it for each page that is open."""

import re
import shlex
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

from kinbase.errors import KinbaseError

INDEX = "app_index.html"


def serve(path: str | Path, host: str, port: int) -> None:
    """Serve until interrupted. Whoever reaches the port can read the whole database, so `host` is loopback by default."""
    try:
        from textual_serve.server import Server
    except ImportError as error:
        raise KinbaseError("the browser version needs textual-serve: pip install 'kinbase[web]'") from error

    command = shlex.join([sys.executable, "-m", "kinbase", "--db", str(Path(path).absolute()), "tui"])
    server = Server(command, host=host, port=port, title="Kinbase")
    with TemporaryDirectory() as folder:
        # textual-serve's page asks a font of Google's, who need not know of it; it has a fallback.
        page = Path(server.templates_path, INDEX).read_text(encoding="utf-8")
        Path(folder, INDEX).write_text(re.sub(r"<link[^>]*https?://[^>]*>", "", page), encoding="utf-8")
        server.templates_path = Path(folder)
        try:
            server.serve()
        except OSError as error:
            raise KinbaseError(
                f"{host}:{port} cannot be served: {error.strerror or error}: choose another with --port"
            ) from error
