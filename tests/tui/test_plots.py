"""`P` on each screen: what is shown goes to a file or to the browser, and what cannot be drawn is said in the window."""

from pathlib import Path

import pytest
from terminal import press, run, settled, until
from textual.widgets import Input, Static

from kinbase.tui.screens.plot import PlotWindow


async def to(app, pilot, target):
    """Name a file in the window and let it be drawn."""
    app.screen.query_one(Input).value = str(target)
    await press(app, pilot, "enter")


@pytest.mark.parametrize(
    ("keys", "kind"), [(("2",), "heatmap"), (("d",), "layers"), (("3",), "tree"), ((), "tree")]
)
def test_what_is_shown_is_drawn(path, tmp_path, keys, kind):
    target = tmp_path / "plot.svg"

    async def steps(app, pilot):
        await press(app, pilot, "ctrl+f")
        await press(app, pilot, *"ft_a")
        await press(app, pilot, "enter")
        for key in keys:
            await press(app, pilot, key)
        before = app.screen
        await press(app, pilot, "P")
        assert isinstance(app.screen, PlotWindow) and app.screen.kind == kind
        await to(app, pilot, target)
        await until(lambda: app.screen is before)

    run(path, steps)
    assert "ft_a" in target.read_text() and "<svg" in target.read_text()


def test_what_cannot_be_drawn_is_said_and_a_file_is_not_replaced_unasked(path, tmp_path):
    target = tmp_path / "there.svg"
    target.write_text("mine")

    def told(app):
        return str(app.screen.query_one("#complaint", Static).render())

    async def steps(app, pilot):
        await press(app, pilot, "2")
        await press(app, pilot, "P")
        await to(app, pilot, tmp_path / "plot.jpg")
        assert ".svg, .png or .html" in told(app)
        await to(app, pilot, target)
        assert "again" in told(app)
        app.screen.names = ["nobody"]
        await press(app, pilot, "enter")
        await until(lambda: "there is no model" in told(app))
        await press(app, pilot, "escape")
        assert app.current_mode == "kinship" and not isinstance(app.screen, PlotWindow)

    run(path, steps)
    assert target.read_text() == "mine"


def test_it_opens_in_a_browser(path):
    async def steps(app, pilot):
        opened = []
        app.open_url = lambda url, **_: opened.append(url)
        await press(app, pilot, "2")
        await press(app, pilot, "P")
        await press(app, pilot, "ctrl+o")
        await until(lambda: opened)
        await settled(app, pilot)
        page = Path(opened[0].removeprefix("file://"))
        assert page.suffix == ".html" and "ft_b" in page.read_text()

    run(path, steps)
