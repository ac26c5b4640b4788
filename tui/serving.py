"""The same application in a browser, by textual-serve: one process of it for each page that is open."""

import shlex
import sys
from pathlib import Path

from kinbase.errors import KinbaseError


def serve(path: str | Path, host: str, port: int) -> None:
    """Serve until interrupted. Whoever reaches the port can read the whole database, so `host` is loopback by default."""
    try:
        from textual_serve.server import Server
    except ImportError as error:
        raise KinbaseError("the browser version needs textual-serve: pip install 'kinbase[web]'") from error

    command = shlex.join([sys.executable, "-m", "kinbase", "--db", str(Path(path).absolute()), "tui"])
    try:
        Server(command, host=host, port=port, title="Kinbase").serve()
    except OSError as error:
        raise KinbaseError(
            f"{host}:{port} cannot be served: {error.strerror or error}: choose another with --port"
        ) from error
