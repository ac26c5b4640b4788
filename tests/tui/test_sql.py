"""The SQL screen: queries, results in pages, cancelling, saving, completion."""

import asyncio
import time

import pytest
from driven import outcome
from terminal import HANGS, press, run, screen_text, settled, tap, type_in, until
from textual.widgets import Input
from textual.widgets.text_area import Selection

from kinbase.tui.app import KinbaseApp
from kinbase.tui.screens.plan import PlanWindow
from kinbase.tui.screens.save import SaveWindow
from kinbase.tui.widgets.completion import Words, at_cursor, completions
from kinbase.tui.widgets.editor import Completions, Editor
from kinbase.tui.widgets.heatmap import Heatmap
from kinbase.tui.widgets.paged_table import WINDOW, PagedTable


def test_query_history_and_error(path):
    async def steps(app, pilot):
        await press(app, pilot, "4")
        editor, table = app.screen.query_one(Editor), app.screen.query_one(PagedTable)
        await type_in(app, pilot, editor, "select name, 1 as one from models order by name")
        await press(app, pilot, "ctrl+j")
        assert table.columns == ["name", "one"] and table.number == 5
        assert "5 rows" in outcome(app)
        await type_in(app, pilot, editor, "select nothing from nowhere")
        await press(app, pilot, "ctrl+j")
        assert "nowhere" in outcome(app) and "Traceback" not in screen_text(app)
        assert table.number == 5  # the last good result stays
        await press(app, pilot, "ctrl+up")
        assert editor.text == "select name, 1 as one from models order by name"
        await press(app, pilot, "ctrl+down", "ctrl+down")
        assert editor.text == ""

    run(path, steps)


def test_queries_only_read_the_database(path):
    queries = {
        "delete from raw.model": "only read",
        "copy models to '/tmp/never.csv'": "nothing else",
        "select * from read_csv('/etc/passwd')": "nothing else",
        "attach '/tmp/other.duckdb'": "nothing else",
        "set memory_limit = '100GB'": "locked",
        "install httpfs": "nothing else",
    }

    async def steps(app, pilot):
        await press(app, pilot, "4")
        for query, told in queries.items():
            await type_in(app, pilot, app.screen.query_one(Editor), query)
            await press(app, pilot, "ctrl+j")
            assert told in outcome(app), (query, outcome(app))
            assert app.screen.query_one(PagedTable).number == 0

    run(path, steps)


def test_ten_million_rows_are_paged(path):
    async def steps(app, pilot):
        await press(app, pilot, "f5")
        editor, table = app.screen.query_one(Editor), app.screen.query_one(PagedTable)
        await type_in(app, pilot, editor, "select range as i from range(10_000_000); -- all of them")
        await press(app, pilot, "ctrl+j")
        assert table.number == 10_000_000 and "10,000,000 rows" in outcome(app)
        assert sum(map(len, table.windows.values())) <= 2 * WINDOW
        table.focus()
        await press(app, pilot, "end")
        assert table.cursor == 9_999_999
        assert "9999999" in screen_text(app)
        table.go(5_000_000)
        await settled(app, pilot)
        assert "5000000" in screen_text(app)
        await press(app, pilot, "home")
        assert table.cursor == 0

    run(path, steps)


def test_a_long_query_is_cancelled_and_the_screen_never_waits(path):
    async def steps(app, pilot):
        await press(app, pilot, "4")
        await type_in(
            app,
            pilot,
            app.screen.query_one(Editor),
            "select count(*) from range(100000000) a, range(100000) b",
        )
        await tap(app, "ctrl+j")
        await until(lambda: app.screen.running and "working" in app.status)
        console = app.screen
        await tap(app, "f3")  # another screen is read and drawn meanwhile: the query would take hours
        await until(lambda: app.current_mode == "kinship" and app.screen.query_one(Heatmap).table.models)
        assert console.running
        await tap(app, "f5", "escape")
        await settled(app, pilot)
        assert outcome(app) == "stopped" and not app.screen.running
        assert all(question.done for question in app._questions)

    run(path, steps)


def test_quitting_stops_a_running_query(path):
    async def drive():
        app = KinbaseApp(path)
        async with app.run_test() as pilot:
            await settled(app, pilot)
            await press(app, pilot, "4")
            await type_in(
                app,
                pilot,
                app.screen.query_one(Editor),
                "select count(*) from range(100000000) a, range(100000) b",
            )
            await tap(app, "ctrl+j")
            await until(lambda: app.screen.running)
            asked = list(app._questions)
            assert not all(q.done for q in asked)
        return asked

    asked = asyncio.run(drive())
    end = time.monotonic() + HANGS
    while not all(q.done for q in asked):
        assert time.monotonic() < end
        time.sleep(0.05)


@pytest.mark.parametrize("name", ["out.csv", "out.parquet"])
def test_saving_a_result(path, tmp_path, name):
    async def steps(app, pilot):
        await press(app, pilot, "4")
        await type_in(
            app, pilot, app.screen.query_one(Editor), "select range as i, 'x,\"y' as t from range(1200)"
        )
        await press(app, pilot, "ctrl+j")
        await press(app, pilot, "ctrl+s")
        assert isinstance(app.screen, SaveWindow)
        await type_in(app, pilot, app.screen.query_one(Input), str(tmp_path / "no" / name))
        await press(app, pilot, "enter")
        assert isinstance(app.screen, SaveWindow)  # no such folder: told in the window
        await type_in(app, pilot, app.screen.query_one(Input), str(tmp_path / name))
        await press(app, pilot, "enter")
        assert "saved" in outcome(app)

    run(path, steps)
    import polars as pl

    read = pl.read_csv if name.endswith("csv") else pl.read_parquet
    frame = read(tmp_path / name)
    assert frame.height == 1200 and frame["t"][0] == 'x,"y'
    assert [p.name for p in tmp_path.glob("out*")] == [name]


def test_completion():
    words = Words({"models": ["name", "family"], "kinship": ["model_a", "pcc"]}, ["nearest_kin"])
    assert at_cursor("select k.mo") == ("mo", "k")
    assert completions(words, "select k. from kinship k", "", "k") == [
        ("model_a", "kinship"),
        ("pcc", "kinship"),
    ]
    assert completions(words, "from mod", "mod")[0] == ("models", "view")
    assert ("nearest_kin", "macro") in completions(words, "ne", "ne")
    assert completions(words, "select n from models", "na")[0] == ("name", "models")


def test_completion_is_taken_with_tab(path):
    async def steps(app, pilot):
        await press(app, pilot, "4")
        editor = app.screen.query_one(Editor)
        assert {"models", "kinship", "lineage", "scores"} <= set(editor.words.columns)
        editor.text = ""
        await press(app, pilot, *"from", "space", *"kinsh")
        popup = app.screen.query_one(Completions)
        assert popup.display and popup.names[0] == "kinship"
        await press(app, pilot, "tab")
        assert editor.text == "from kinship" and not popup.display and editor.has_focus

    run(path, steps)


def test_the_cursor_goes_to_what_is_wrong(path):
    async def steps(app, pilot):
        await press(app, pilot, "4")
        editor = app.screen.query_one(Editor)
        await type_in(app, pilot, editor, "\n  select name,\n    'ü' as x, nam\n  from models")
        await press(app, pilot, "ctrl+j")
        assert editor.cursor_location == (2, 14) and "line 3" in outcome(app)
        await press(app, pilot, "ctrl+l")
        assert editor.cursor_location == (2, 14) and "line 3" in outcome(app)
        long = "select name from models where " + " and ".join(f"name <> '{i}'" for i in range(200))
        await type_in(app, pilot, editor, long + " and nam = 1")
        await press(app, pilot, "ctrl+j")
        assert editor.text[editor.cursor_location[1] :] == "nam = 1"
        # What is selected is run, and told by its place in the whole.
        await type_in(app, pilot, editor, "select 1; select nam from models")
        editor.selection = Selection((0, 10), (0, 32))
        await press(app, pilot, "ctrl+j")
        assert editor.cursor_location == (0, 17)

    run(path, steps)


def test_several_queries_stand_beside_each_other(path):
    async def steps(app, pilot):
        await press(app, pilot, "4")
        editor = app.screen.query_one(Editor)
        for query in ("select 1", "select 2"):
            await type_in(app, pilot, editor, query)
            await press(app, pilot, "ctrl+o")
            assert editor.text == ""
        assert editor.border_title == "SQL 3 of 3"
        await press(app, pilot, "ctrl+o")  # an empty one goes
        assert (editor.text, editor.border_title) == ("select 1", "SQL 1 of 2")
        await press(app, pilot, "ctrl+o")
        assert (editor.text, editor.border_title) == ("select 2", "SQL 2 of 2")
        await press(app, pilot, "ctrl+j")
        assert "1 row" in outcome(app)

    run(path, steps)


def test_a_query_is_explained(path):
    async def steps(app, pilot):
        await press(app, pilot, "4")
        await type_in(app, pilot, app.screen.query_one(Editor), "select count(*) from models")
        await press(app, pilot, "ctrl+l")
        assert isinstance(app.screen, PlanWindow) and "Aggregate" in app.screen.plan
        await press(app, pilot, "y", "escape")
        assert app.clipboard.count("\n") > 3 and app.current_mode == "sql"

    run(path, steps)
