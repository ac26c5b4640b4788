"""The terminal UI with hostile names and with files that are empty, broken, gone or being written."""

import asyncio
import os
import subprocess
import sys
from pathlib import Path

from driven import names, outcome
from terminal import press, run, screen_text, settled, type_in, until
from textual.widgets import Input, Static

from kinbase.query.models import Model
from kinbase.store import Store
from kinbase.tui.app import KinbaseApp
from kinbase.tui.screens.lineage import LineView
from kinbase.tui.widgets.editor import Editor
from kinbase.tui.widgets.heatmap import Heatmap
from kinbase.tui.widgets.model_tree import ModelTree
from kinbase.tui.widgets.notice import Notice

HOSTILE = [
    "[/]",
    "[@click=app.quit]quit[/]",
    "[bold red]x",
    "ctrl\x1b]0;owned\x07\x00\x9b31m",
    "rtl\u202egpj.exe\u2066",
    "long" + "g" * 500,
    "new\nline\tand tab",
    "$primary {x} %s ' \" ; drop table",
]


def test_hostile_names_are_shown_and_do_nothing(path):
    with Store(path).writing() as con:
        con.executemany(
            "insert into raw.model (name, base_id, license, architecture, source) values ($1, 1, $1, $1, $1)",
            [[n] for n in HOSTILE],
        )
        con.execute("insert into raw.alias select name || ' also', model_id, 'name' from raw.model")
        con.execute(
            "insert into raw.score (model_id, benchmark, metric, value) select model_id, name, name, 0.5 from raw.model"
        )
        con.execute(
            "insert into raw.claim (child_id, parent_id, relation, method, evidence) "
            "select b.model_id, a.model_id, '[/]', '[@click=app.quit]', 'card' "
            "from raw.model a join raw.model b on b.model_id = a.model_id + 1 where a.model_id > 5"
        )
        con.execute(
            "insert into raw.estimate (a_id, b_id, base_id, method, pcc) select a.model_id, b.model_id, 1, 'reported', 0.5 "
            "from raw.model a join raw.model b on a.model_id < b.model_id where b.model_id > 5"
        )

    async def steps(app, pilot):
        tree = app.screen.query_one(ModelTree)
        await press(app, pilot, "enter")
        tree.root.children[0].expand_all()
        await settled(app, pilot)
        with Store(path).reading() as con:
            everyone = [Model(*row) for row in con.execute("select model_id, name from raw.model").fetchall()]
        for model in everyone:
            app.choose(model)
        tree.redraw()
        for mode in ("families", "lineage"):
            for model in everyone[5:]:
                app.open_model(model, mode)
                await settled(app, pilot)
                await harmless(app, pilot)
        for key in ("f3", "f4", "f5"):
            await press(app, pilot, key)
            await harmless(app, pilot)
        await type_in(app, pilot, app.screen.query_one(Editor), 'select name, name as "[/]" from models')
        await press(app, pilot, "ctrl+j")
        await harmless(app, pilot)
        await press(app, pilot, "f2", "ctrl+f")
        for typed in ("click", ""):
            await type_in(app, pilot, app.screen.query_one(Input), typed)
            await harmless(app, pilot)
        await press(app, pilot, "escape", "ctrl+p")
        await type_in(app, pilot, app.screen.query_one(Input), "click=")
        await harmless(app, pilot)
        await press(app, pilot, "enter")
        await press(app, pilot, "enter")
        app.complain("[/] [@click=app.quit]")
        await settled(app, pilot)
        await harmless(app, pilot)

    async def harmless(app, pilot):
        text = screen_text(app)
        assert not any(c in text for c in "\x1b\x07\x00\x9b\u202e\u2066\t")
        # A click anywhere on a line with the markup's name runs nothing.
        for strip in app.screen._compositor.render_strips():
            for segment in strip:
                assert not segment.style or "quit" not in str((segment.style.meta or {}).get("@click", ""))
        assert app.is_running and app._exception is None

    run(path, steps, (140, 45))


def test_empty_database(tmp_path):
    with Store(tmp_path / "empty.duckdb").writing():
        pass

    async def steps(app, pilot):
        assert app.screen.query_one(Notice).told == "The database is empty."
        for key, told in (("2", "No kinship to show here."), ("3", "The database is empty.")):
            await press(app, pilot, key)
            assert app.screen.query_one(Notice).told == told
            assert "reading" not in screen_text(app)
        await press(app, pilot, "4", "ctrl+j")
        assert "0 rows" in outcome(app)

    run(tmp_path / "empty.duckdb", steps, (80, 24))


def newer(path):
    with Store(path).writing() as con:
        con.execute("insert into raw.migration (name, checksum) values ('migrations/9999_future.sql', 'x')")


def test_unusable_files_are_told_on_every_screen(path):
    whole = path.read_bytes()
    cases = {
        "newer Kinbase": newer,
        "there is no database": Path.unlink,
        "cannot be opened": lambda path: path.write_bytes(b"not a database, but longer than nothing" * 500),
        "not a valid": lambda path: path.write_bytes(b""),
    }

    async def steps(app, pilot):
        for key in ("2", "3", "4", "f2"):
            await press(app, pilot, key)
        for told, spoil in cases.items():
            path.write_bytes(whole)
            spoil(path)
            for key in ("f2", "f3", "f4") if told == "there is no database" else ("f2",):
                await press(app, pilot, key, "r")
                assert told in app.screen.query_one(Notice).told
            await press(app, pilot, "f5", "ctrl+j")
            assert told in outcome(app)
            await press(app, pilot, "f2", "ctrl+f")
            assert told in str(app.screen.query_one("#complaint", Static).render())
            await press(app, pilot, "escape")
        path.write_bytes(whole)
        for key, widget in (("f2", ModelTree), ("f3", Heatmap), ("f4", LineView)):
            await press(app, pilot, key, "r")
            assert app.screen.query_one(widget).display and not app.screen.query_one(Notice).display
            assert app.screen.focused is app.screen.query_one(widget)

    newer(path)
    run(path, lambda app, pilot: asyncio.sleep(0))
    path.write_bytes(whole)
    run(path, steps)


def test_deleted_while_open_and_back_again(path):
    async def steps(app, pilot):
        kept = path.read_bytes()
        path.unlink()
        await press(app, pilot, "enter")  # a branch that cannot be read
        assert app.is_running
        await press(app, pilot, "r")
        assert "there is no database" in app.screen.query_one(Notice).told
        path.write_bytes(kept)
        await press(app, pilot, "r")
        assert names(app.screen.query_one(ModelTree)) == ["base"] and not app.screen.query_one(Notice).display

    run(path, steps)


def test_a_model_that_is_gone(path):
    async def steps(app, pilot):
        app.open_model(Model(4711, "gone"))
        await settled(app, pilot)
        assert "no longer in the database" in screen_text(app)
        app.open_model(Model(4711, "gone"), "lineage")
        await settled(app, pilot)
        assert "no longer in the database" in app.screen.query_one(Notice).told

    run(path, steps)


def test_a_writer_elsewhere_is_waited_for_and_told(path):
    hold = "import duckdb, sys; c = duckdb.connect(sys.argv[1]); print('ready', flush=True); sys.stdin.read()"
    command = [sys.executable, "-c", hold, str(path)]
    writer = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    writer.stdout.readline()

    async def drive():
        app = KinbaseApp(path)
        async with app.run_test() as pilot:
            await until(lambda: "waiting for another process" in app.status)
            assert not app.screen.query_one(ModelTree).root.children
            writer.communicate(b"")
            await settled(app, pilot)
            assert names(app.screen.query_one(ModelTree)) == ["base"]
            await until(lambda: "waiting" not in app.status)

    try:
        asyncio.run(drive())
    finally:
        writer.kill()


def test_the_file_is_not_held_open(path):
    async def steps(app, pilot):
        await press(app, pilot, "4", "ctrl+j")
        command = (
            "import duckdb, sys; duckdb.connect(sys.argv[1]).execute('create table raw.other (x integer)')"
        )
        subprocess.run([sys.executable, "-c", command, str(path)], check=True)
        await until(lambda: "the database changed" in app.status)

    run(path, steps)


def test_a_clock_that_ticks_while_it_closes_harms_nothing(path):
    async def opened_and_closed():
        app = KinbaseApp(path)
        async with app.run_test():
            os.utime(path)
        return app

    asyncio.run(opened_and_closed())._tick()
