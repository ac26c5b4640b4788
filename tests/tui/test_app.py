"""The terminal UI as a whole: palette, help, themes, mouse, sizes, colours, what it loads."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from terminal import press, run, screen_text, settled, type_in, until
from textual.color import Color
from textual.widgets import Input, OptionList

import kinbase
from kinbase.schema import scripts
from kinbase.store import Store
from kinbase.tui.screens.families import FilterInput
from kinbase.tui.screens.lineage import LineView
from kinbase.tui.widgets.choice import Choice
from kinbase.tui.widgets.details import DetailsPane
from kinbase.tui.widgets.editor import Editor
from kinbase.tui.widgets.heatmap import Heatmap
from kinbase.tui.widgets.model_list import ModelList
from kinbase.tui.widgets.model_tree import ModelTree
from kinbase.tui.widgets.paged_table import PagedTable


def test_find_palette_help_and_themes(path):
    async def steps(app, pilot):
        await press(app, pilot, "ctrl+f")
        await type_in(app, pilot, app.screen.query_one(Input), "ft_c")
        assert app.screen.query_one(OptionList).option_count == 1
        await press(app, pilot, "enter")
        assert app.current.name == "ft_c"
        await press(app, pilot, "ctrl+p")
        await type_in(app, pilot, app.screen.query_one(Input), "merge_ab")
        await until(lambda: app.screen.query_one(OptionList).option_count)
        await press(app, pilot, "enter")
        assert app.current.name == "merge_ab"
        dark = app.theme
        await press(app, pilot, "ctrl+t")
        assert app.theme != dark and not app.current_theme.dark
        for opened, closed in (("f1", "f1"), ("question_mark", "escape"), ("f1", "question_mark")):
            await press(app, pilot, opened)
            assert "Light or dark" in screen_text(app)
            await press(app, pilot, closed)
            assert "Light or dark" not in screen_text(app)
        # From the SQL editor too, which takes characters and some of the F keys; and away from it.
        await press(app, pilot, "f5", "f1")
        assert "Run" in screen_text(app) and app.screen.is_modal
        await press(app, pilot, "escape", "f6")
        assert app.current_mode == "evolution"
        # What a key does, the palette does.
        await press(app, pilot, "f2", "ctrl+p")
        await type_in(app, pilot, app.screen.query_one(Input), "Sort")
        found = app.screen.query_one(OptionList)
        await until(lambda: found.option_count and "Sort" in str(found.get_option_at_index(0).prompt))
        before = app.screen_stack[0].query_one(ModelTree).sort
        await press(app, pilot, "enter")
        assert app.screen.query_one(ModelTree).sort != before
        for widget in (
            ModelTree,
            FilterInput,
            DetailsPane,
            Heatmap,
            LineView,
            Editor,
            PagedTable,
            Choice,
            ModelList,
        ):
            assert widget.HELP

    run(path, steps)


def test_mouse_on_the_tabs(path):
    async def steps(app, pilot):
        for x, mode in ((25, "kinship"), (36, "lineage"), (46, "sql"), (14, "families")):
            await pilot.click("TopBar", offset=(x, 0))
            await settled(app, pilot)
            assert app.current_mode == mode

    run(path, steps)


@pytest.mark.parametrize("size", [(80, 24), (40, 12)])
def test_every_size_is_drawn(path, size):
    async def steps(app, pilot):
        for key in ("2", "3", "4", "f2"):
            await press(app, pilot, key)
            assert len(screen_text(app).splitlines()) == size[1]
        await press(app, pilot, "f1")

    run(path, steps, size)


def test_what_is_waited_for_comes_before_the_names_of_the_other_screens(path):
    async def steps(app, pilot):
        path.touch()
        await until(lambda: "the database changed" in screen_text(app))
        first = screen_text(app).splitlines()[0]
        assert "the database changed: r reads it again" in first and "1 Families" in first
        await pilot.click("TopBar", offset=(first.index(" 3 ") + 1, 0))
        await settled(app, pilot)
        assert app.current_mode == "lineage"

    run(path, steps, (80, 24))


def test_words_of_a_query_read_on_both_grounds(path):
    """At least 4.5 to 1, which WCAG 2 asks of text."""

    def light(colour):
        parts = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in colour.normalized]
        return np.dot((0.2126, 0.7152, 0.0722), parts) + 0.05

    async def steps(app, pilot):
        await press(app, pilot, "4")
        editor = app.screen.query_one(Editor)
        for _ in range(2):
            ground = light(editor.background_colors[1])
            for name in (
                "keyword",
                "type",
                "type.builtin",
                "function",
                "string",
                "number",
                "boolean",
                "comment",
                "variable",
            ):
                style = editor._theme.syntax_styles.get(name)
                if style is not None:
                    ink = light(Color.from_rich_color(style.color))
                    assert max(ink, ground) / min(ink, ground) > 4.5, (editor.theme, name)
            await press(app, pilot, "ctrl+t")

    run(path, steps)


def test_no_colour(path, monkeypatch):
    monkeypatch.setenv("NO_COLOR", "1")

    async def steps(app, pilot):
        await press(app, pilot, "2")
        heatmap = app.screen.query_one(Heatmap)
        with Store(path).reading() as con:
            ((pcc,),) = con.execute(
                "select pcc from kinship where model_a = 'ft_a' and model_b = 'merge_ab'"
            ).fetchall()
        assert f"{100 * pcc:.0f}" in screen_text(app)
        await press(app, pilot, "z")
        assert any(shade in screen_text(app) for shade in "░▒▓█")
        # The shades are drawn alike, so that the nearest have most ink; ink that suits each ground turns that round.
        drawn = [
            s for strip in app.screen._compositor.render_strips() for s in strip if set(s.text) & set("░▒▓█")
        ]
        assert len({(s.style.color, s.style.bgcolor) for s in drawn if not s.style.bold}) == 1
        assert heatmap.table.models
        colours = {
            (segment.style.color, segment.style.bgcolor)
            for strip in app.screen._compositor.render_strips()
            for segment in strip.apply_filter(app._filters[0], app.screen.background_colors[1])
            if segment.style
        }
        for pair in colours:
            for colour in pair:
                if colour is not None and colour.triplet is not None:
                    assert max(colour.triplet) - min(colour.triplet) <= 2

    run(path, steps)


def test_a_pipe_is_no_terminal(cli):
    done = cli("tui", stdin="")
    assert done.returncode == 2 and "needs a terminal" in done.stderr


def test_it_loads_no_tensors_and_starts_soon(path):
    command = (
        "import sys, kinbase.tui.app as a; a.KinbaseApp('x'); "
        "wait = ('torch', 'transformers', 'huggingface_hub', 'scipy', 'polars', 'textual.widgets._text_area', "
        "'kinbase.tui.screens.kinship', 'kinbase.tui.screens.sql', 'kinbase.tui.screens.evolution'); "
        "print([m for m in wait if m in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", command], capture_output=True, text=True, check=True, env=os.environ
    )
    assert done.stdout.strip() == "[]"


def test_only_the_tui_imports_textual():
    root = Path(kinbase.__file__).parent
    assert not [
        p for p in root.glob("*.py") if "import textual" in p.read_text() or "from textual" in p.read_text()
    ]
    assert scripts("views")
