"""The terminal UI in a browser: `kinbase tui --web`, opened in a headless Chromium."""

import asyncio
import re
import socket
import subprocess
import sys
import time

import pytest
from browser import needs_chromium, page

pytest.importorskip("textual_serve")

CONTROL = re.compile(rb"\x1b\[[0-9;?>=]*[A-Za-z]|\x1b\][^\x07]*\x07")
# How many colours the terminal on the page shows: one when nothing is drawn.
COLOURS = """
(() => {
    const seen = new Set();
    for (const canvas of document.querySelectorAll("canvas")) {
        if (!canvas.width || !canvas.height) continue;
        const pixels = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height).data;
        for (let i = 0; i < pixels.length; i += 4) seen.add(pixels[i] << 16 | pixels[i + 1] << 8 | pixels[i + 2]);
    }
    return seen.size;
})()
"""


@pytest.fixture
def served(db):
    """The address of a database that is served."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "kinbase", "--db", db.store.path, "tui", "--web", "--port", str(port)]
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    end = time.monotonic() + 300
    while True:
        try:
            socket.create_connection(("localhost", port), 1).close()
            break
        except OSError:
            assert server.poll() is None, server.stderr.read()
            assert time.monotonic() < end, "nothing is served"
            time.sleep(0.1)
    yield f"http://localhost:{port}/"
    server.terminate()
    server.wait(timeout=300)


@needs_chromium
def test_the_tree_is_seen_in_a_browser_and_keys_reach_it(served):
    async def look():
        async with page(served) as tab:

            async def sees(*words, press=None, seconds=300.0):
                end = time.monotonic() + seconds
                while not all(word.encode() in CONTROL.sub(b"", tab.received) for word in words):
                    await tab.evaluate("1")  # what came meanwhile is read with its answer
                    assert time.monotonic() < end, f"never seen: {words}"
                    if press:
                        await tab.press(press)
                    await asyncio.sleep(0.1 if press is None else 2)

            await sees("Families", "base")
            # The browser drew it: text and panes in several colours on the page's canvas.
            await tab.until(f"{COLOURS} > 20")
            tab.received = b""
            # Nobody clicked: the keyboard is the terminal's from the start.
            await tab.until("document.activeElement.classList.contains('xterm-helper-textarea')")
            # A key before the tree is read is lost, as it may be on a busy machine; this one opens and never closes.
            await sees("ft_a", "ft_b", "ft_c", press="ArrowRight")
            await tab.type("2")
            await sees("Kinship of 4 models", "merge_ab")
            # Nobody but this machine is asked for anything.
            assert tab.asked and all(url.startswith((served, "data:")) for url in tab.asked)

    asyncio.run(look())
