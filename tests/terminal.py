"""Driving the terminal UI through Pilot: keys, waiting, and what is on the screen."""

import asyncio
import time

from textual.events import Key
from textual.widgets import Input

from kinbase.tui.app import KinbaseApp


def run(path, steps, size=(120, 36)):
    """`steps(app, pilot)` over the application on `path`; what it returns."""

    async def drive():
        app = KinbaseApp(path)
        async with app.run_test(size=size) as pilot:
            await settled(app, pilot)
            return await steps(app, pilot)

    return asyncio.run(drive())


async def settled(app, pilot, seconds=20.0):
    """Wait until nothing is asked and nothing waits to be drawn."""
    end = time.monotonic() + seconds
    quiet = 0
    while quiet < 5:
        await asyncio.sleep(0.02)
        busy = any(not q.done for q in app._questions) or any(w.is_running for w in app.workers)
        quiet = 0 if busy else quiet + 1
        assert time.monotonic() < end, "the application is still busy"


async def press(app, pilot, *keys):
    await tap(app, *keys)
    await settled(app, pilot)


async def tap(app, *keys):
    """The keys go out; pilot.press would wait for the whole process to be idle, a running query included."""
    for key in keys:
        app.post_message(Key(key, {"space": " ", "slash": "/"}.get(key, key if len(key) == 1 else None)))
        await asyncio.sleep(0.02)


async def type_in(app, pilot, widget, text):
    """Put `text` into an input or an editor as if typed."""
    if isinstance(widget, Input):
        widget.value = text
    else:
        widget.text = text
        widget.move_cursor(widget.document.end)
    await settled(app, pilot)


def screen_text(app):
    """Everything on the screen, as a terminal would get it."""
    return "\n".join(
        "".join(segment.text for segment in strip) for strip in app.screen._compositor.render_strips()
    )
