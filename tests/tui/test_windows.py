"""The windows over a screen: comparing, copying, a command's answer, the catalogue; and what the Kinship screen adds up."""

import numpy as np
import pytest
from terminal import press, run, screen_text, settled, type_in
from textual.widgets import Input, Static

import kinbase
from kinbase.store import Store
from kinbase.tui import settings
from kinbase.tui.screens.command import CommandWindow
from kinbase.tui.screens.compare import CompareScreen
from kinbase.tui.widgets.editor import Editor
from kinbase.tui.widgets.heatmap import Heatmap
from kinbase.tui.widgets.model_tree import ModelTree
from kinbase.tui.widgets.paged_table import PagedTable


async def on(app, pilot, name):
    await press(app, pilot, "ctrl+f")
    await type_in(app, pilot, app.screen.query_one(Input), name)
    await press(app, pilot, "enter")
    app.screen.query_one(ModelTree).focus()


def test_two_models_are_compared_by_layer_and_block(path):
    async def steps(app, pilot):
        await on(app, pilot, "ft_a")
        await press(app, pilot, "space")
        await on(app, pilot, "merge_ab")
        await press(app, pilot, "d")
        window = app.screen
        assert isinstance(window, CompareScreen) and [m.name for m in window.pair] == ["merge_ab", "ft_a"]
        with Store(path).reading() as con:
            known = con.execute(
                "select layer, block, pcc from kinship_by_layer where model_a = 'merge_ab' and model_b = 'ft_a'"
            ).fetchall()
            ((whole,),) = con.execute(
                "select pcc from kinship where model_a = 'merge_ab' and model_b = 'ft_a'"
            ).fetchall()
        shown = screen_text(app)
        assert f"pcc {whole:.4f}" in shown
        for block in ("attn", "mlp"):
            (line,) = [line for line in shown.splitlines() if f"│ {block} " in line]
            wanted = [
                round(100 * pcc)
                for layer, b, pcc in sorted(known, key=str)
                if b == block and layer is not None
            ]
            assert [int(word) for word in line.split(block)[1].split("│")[0].split()] == wanted
        # Scores side by side, with their difference.
        assert "+0.1500" in shown and "0.65 " in shown and "0.50 " in shown
        await press(app, pilot, "m", "m")
        assert window.metric == "ed"
        await press(app, pilot, "escape")
        assert not app.screen.is_modal

    run(path, steps, (140, 45))


def test_the_kinship_screen_adds_up_and_finds_the_ends(path):
    async def steps(app, pilot):
        await on(app, pilot, "ft_b")
        await press(app, pilot, "k")
        heatmap = app.screen.query_one(Heatmap)
        assert heatmap.models[0].name == "ft_b"  # it lands on the row of the current model
        names = heatmap.table.names
        group = kinbase.open(path).group_kinship(names).row(0, named=True)
        told = str(app.screen.query_one("#pair", Static).render())
        assert f"group pcc {group['pcc']:.4f}" in told
        values = heatmap.table.values("pcc")
        for key, best in (("n", np.nanmax), ("e", np.nanmin)):
            await press(app, pilot, key)
            assert values[heatmap.row, heatmap.column] == best(values)

    run(path, steps)


def test_the_order_is_the_same_for_screen_python_and_plot(path):
    async def steps(app, pilot):
        await press(app, pilot, "2")
        return app.screen.query_one(Heatmap).table.names

    shown = run(path, steps)
    db = kinbase.open(path)
    assert shown == db.matrix().names == list(db.plot("heatmap", "base").grid.names)
    assert shown == list(db.plot("heatmap", "base", metric="ed", block="attn").grid.names)


@pytest.mark.parametrize(("key", "wanted"), [("1", "ft_a"), ("2", "source"), ("enter", "ft_a")])
def test_copies_go_to_the_clipboard(path, key, wanted):
    async def steps(app, pilot):
        await on(app, pilot, "ft_a")
        await press(app, pilot, "y", key)
        assert not app.screen.is_modal
        with Store(path).reading() as con:
            ((source,),) = con.execute("select source from models where name = 'ft_a'").fetchall()
        assert app.clipboard == (source if wanted == "source" else wanted)

    run(path, steps)


def test_the_matrix_is_copied_whole(path):
    async def steps(app, pilot):
        await press(app, pilot, "2")
        await press(app, pilot, "y", "3")
        rows = [line.split("\t") for line in app.clipboard.splitlines()]
        table = app.screen.query_one(Heatmap).table
        assert rows[0][1:] == [row[0] for row in rows[1:]] == table.names
        assert float(rows[1][2]) == pytest.approx(table.pair(0, 1).pcc, rel=1e-5)

    run(path, steps)


def test_a_command_answers_in_place(path):
    async def steps(app, pilot):
        await on(app, pilot, "merge_ab")
        await press(app, pilot, "c")
        window = app.screen
        assert isinstance(window, CommandWindow) and window.code == 0
        assert "merge_ab" in window.told and "verdict" in window.told
        await press(app, pilot, "y")
        assert app.clipboard == window.told
        await press(app, pilot, "escape")
        assert not app.screen.is_modal and app.current.name == "merge_ab"

    run(path, steps)


def test_the_catalogue_says_what_the_database_says_and_inserts_names(path):
    async def steps(app, pilot):
        await press(app, pilot, "4")
        await press(app, pilot, "f7")
        with Store(path).reading() as con:
            ((comment,),) = con.execute(
                "select comment from duckdb_columns() where table_name = 'kinship' and column_name = 'coverage'"
            ).fetchall()
        await type_in(app, pilot, app.screen.query_one(Input), "compared over")
        assert comment in screen_text(app)
        editor = app.screen_stack[0].query_one(Editor)
        editor.text = "select "
        editor.move_cursor(editor.document.end)
        await press(app, pilot, "enter")
        assert editor.text == "select coverage" and app.focused is editor

    run(path, steps, (140, 45))


def test_a_row_opens_its_model_and_queries_are_remembered(path):
    async def steps(app, pilot):
        await press(app, pilot, "4")
        editor = app.screen.query_one(Editor)
        await type_in(app, pilot, editor, "select 'x' as nobody, name from models where name = 'ft_b'")
        await press(app, pilot, "escape", "ctrl+j")
        assert app.screen.query_one(PagedTable).row_under_cursor() == ["x", "ft_b"]
        await press(app, pilot, "f8")
        assert app.current_mode == "families" and app.current.name == "ft_b"

    async def again(app, pilot):
        await press(app, pilot, "4", "ctrl+up")
        assert app.screen.query_one(Editor).text.startswith("select 'x' as nobody")

    run(path, steps)
    assert len(settings.past_queries()) == 1
    run(path, again)


def test_in_a_browser_a_result_is_a_download_and_no_place_on_the_server(path, monkeypatch, tmp_path):
    async def steps(app, pilot):
        delivered = []
        monkeypatch.setattr(type(app), "is_web", property(lambda self: True))
        monkeypatch.setattr(
            app, "deliver_text", lambda text, **more: delivered.append((text.read(), more["save_filename"]))
        )
        await press(app, pilot, "4")
        await type_in(
            app,
            pilot,
            app.screen.query_one(Editor),
            "select name from models where name like 'ft%' order by 1",
        )
        await press(app, pilot, "escape", "ctrl+j")
        await press(app, pilot, "ctrl+s")
        await settled(app, pilot)
        assert not app.screen.is_modal
        assert delivered == [("name\nft_a\nft_b\nft_c\n", "result.csv")]

    run(path, steps)
