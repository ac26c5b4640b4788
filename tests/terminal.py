"""Driving the terminal UI through Pilot: keys, waiting, and what is on the screen."""

import asyncio
import time

from textual.events import Key
from textual.widgets import Input

from kinbase.tui.app import KinbaseApp
from kinbase.tui.widgets.model_tree import ModelTree


def run(path, steps, size=(120, 36)):
    """`steps(app, pilot)` over the application on `path`; what it returns."""

    async def drive():
        app = KinbaseApp(path)
        async with app.run_test(size=size) as pilot:
            await settled(app, pilot)
            return await steps(app, pilot)

    return asyncio.run(drive())


HANGS = 300.0
"""Seconds after which a test gives up: far longer than the slowest machine takes."""


async def settled(app, pilot):
    """Wait until nothing is asked and nothing waits to be drawn, however long a busy machine takes.

    A message may send another widget a message, five times in a row at most: so often everything that waits is
    let through before the application counts as settled.
    """
    end = time.monotonic() + HANGS
    quiet = 0
    while quiet < 5:
        await asyncio.sleep(0.005 if quiet else 0.02)
        await pilot._wait_for_screen(HANGS)
        app.screen._on_timer_update()
        asked = any(not q.done for q in app._questions) or any(w.is_running for w in app.workers)
        resting = any(timer_runs(tree._rest) for tree in app.screen.query(ModelTree))
        quiet = 0 if asked or resting else quiet + 1
        assert time.monotonic() < end, "the application is still busy"


def timer_runs(timer):
    return timer is not None and timer._task is not None and not timer._task.done()


async def until(condition):
    """Wait for what comes by itself: a timer, another process, a query that has begun."""
    end = time.monotonic() + HANGS
    while not condition():
        assert time.monotonic() < end, "it never came"
        await asyncio.sleep(0.02)


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
