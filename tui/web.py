"""The same application in a browser, by textual-serve: one process of it for each page that is open."""

import re
import shlex
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

from kinbase.errors import KinbaseError

INDEX = "app_index.html"

FOCUS = """<script>
new MutationObserver((changes, observer) => {
  const keyboard = document.querySelector(".xterm-helper-textarea");
  if (keyboard) { observer.disconnect(); setTimeout(() => keyboard.focus()); }
}).observe(document.body, {childList: true, subtree: true});
</script></body>"""
"""The end of the page: the keyboard is the terminal's as soon as there is one, without a click."""


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
        page = re.sub(r"<link[^>]*https?://[^>]*>", "", page).replace("</body>", FOCUS)
        Path(folder, INDEX).write_text(page, encoding="utf-8")
        server.templates_path = Path(folder)
        try:
            server.serve()
        except OSError as error:
            raise KinbaseError(
                f"{host}:{port} cannot be served: {error.strerror or error}: choose another with --port"
            ) from error
