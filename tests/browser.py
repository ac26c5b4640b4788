"""A headless Chromium, spoken to over its DevTools websocket with the aiohttp that textual-serve brings.

`page(url)` is an async context manager over a tab; tests skip where there is no Chromium.
"""

import asyncio
import base64
import itertools
import os
import shutil
import subprocess
import tempfile
import time
from contextlib import asynccontextmanager
from importlib.util import find_spec
from pathlib import Path

import pytest

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
needs_chromium = pytest.mark.skipif(
    CHROMIUM is None or find_spec("aiohttp") is None, reason="there is no Chromium here, or no textual-serve"
)


class Page:
    """One tab: evaluate JavaScript, press keys, move the pointer, take a picture."""

    def __init__(self, socket):
        self.socket = socket
        self.numbers = itertools.count(1)
        self.asked = []
        """Addresses the page asked the network for."""
        self.received = b""
        """What came to it over websockets."""

    async def call(self, method, **parameters):
        number = next(self.numbers)
        await self.socket.send_json({"id": number, "method": method, "params": parameters})
        while True:
            message = await self.socket.receive_json(timeout=300)
            if message.get("method") == "Network.requestWillBeSent":
                self.asked.append(message["params"]["request"]["url"])
            elif message.get("method") == "Network.webSocketFrameReceived":
                frame = message["params"]["response"]
                text = frame["payloadData"]
                self.received += base64.b64decode(text) if frame["opcode"] == 2 else text.encode()
            if message.get("id") == number:
                assert "error" not in message, message
                return message["result"]

    async def evaluate(self, expression):
        """The value of a JavaScript expression; an exception in it fails the test."""
        found = await self.call(
            "Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True
        )
        assert "exceptionDetails" not in found, found
        return found["result"].get("value")

    async def until(self, expression, seconds=300.0):
        """Wait until a JavaScript expression is true."""
        end = time.monotonic() + seconds
        while not await self.evaluate(expression):
            assert time.monotonic() < end, f"never true: {expression}"
            await asyncio.sleep(0.1)

    async def point(self, x, y):
        await self.call("Input.dispatchMouseEvent", type="mouseMoved", x=x, y=y)

    async def type(self, text):
        for character in text:
            await self.call("Input.dispatchKeyEvent", type="char", text=character)

    async def press(self, key):
        """A named key: ArrowRight."""
        number = {"ArrowRight": 39}[key]
        for kind in ("keyDown", "keyUp"):
            await self.call(
                "Input.dispatchKeyEvent",
                type=kind,
                key=key,
                code=key,
                windowsVirtualKeyCode=number,
            )

    async def picture(self, path):
        found = await self.call("Page.captureScreenshot", format="png")
        Path(path).write_bytes(base64.b64decode(found["data"]))


@asynccontextmanager
async def page(url, width=1280, height=800):
    """A tab of a browser of its own on `url`."""
    import aiohttp

    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        command = [
            CHROMIUM, "--headless=new", "--disable-gpu", "--no-first-run", "--remote-debugging-port=0",
            f"--user-data-dir={profile}", f"--window-size={width},{height}", "--disable-dev-shm-usage",
            *(["--no-sandbox"] if os.geteuid() == 0 else []), "about:blank",
        ]  # fmt: skip
        browser = subprocess.Popen(
            command,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            env={**os.environ, "TMPDIR": profile},
        )
        try:
            told = Path(profile, "DevToolsActivePort")
            end = time.monotonic() + 300
            while not told.exists() or "\n" not in told.read_text():
                assert browser.poll() is None and time.monotonic() < end, "Chromium did not start"
                await asyncio.sleep(0.05)
            port = told.read_text().split()[0]
            async with aiohttp.ClientSession() as session:
                async with session.get(f"http://127.0.0.1:{port}/json/list") as answer:
                    (tab,) = [one for one in await answer.json() if one["type"] == "page"]
                async with session.ws_connect(tab["webSocketDebuggerUrl"], max_msg_size=0) as socket:
                    found = Page(socket)
                    for domain in ("Page", "Runtime", "Network"):
                        await found.call(f"{domain}.enable")
                    await found.call("Page.navigate", url=url)
                    await found.until("document.readyState === 'complete'")
                    yield found
        finally:
            browser.terminate()
            browser.wait(timeout=300)
