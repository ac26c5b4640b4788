"""The screen of evolution runs, driven through Pilot: what is drawn, what is followed, and that no name does anything."""

import asyncio
import os
import subprocess
import sys
from datetime import timedelta
from pathlib import Path

import pytest
from terminal import press, run, screen_text, settled, until

from kinbase.store import Store
from kinbase.tui.screens import evolution
from kinbase.tui.screens.evolution import OffspringTable, RunList
from kinbase.tui.screens.families import FilterInput
from kinbase.tui.showing import span
from kinbase.tui.widgets import curve
from kinbase.tui.widgets.curve import Curve, Series
from kinbase.tui.widgets.heatmap import Heatmap
from kinbase.tui.widgets.notice import Notice
from kinbase.tui.widgets.paged_table import WINDOW

ONE_MORE = """
import sys
from datetime import timedelta
from kinbase.store import Store
with Store(sys.argv[1]).writing() as con:
    con.execute(
        "insert into raw.generation (run_id, generation, top_ids, top_kinship, ended_at) "
        "values (1, 2, [1, 2, 3], 0.9, now()::timestamp)"
    )
    con.execute(
        "insert into raw.offspring (run_id, generation, position, child, parent_ids, role, reason, kinship, status, score, kept) "
        "values (1, 2, 0, 'third', [1, 2], 'explore', 'least akin', 0.1, 'scored', 0.9, true)"
    )
    print("written", flush=True)
    sys.stdin.read()  # the lock is held until the test lets go
"""


@pytest.fixture
def path(empty, monkeypatch):
    """A run that goes on, after one generation of two children, and one that ended."""
    monkeypatch.setattr(evolution, "POLL", 0.05)
    with empty.store.writing() as con:
        con.execute(
            "insert into raw.model (model_id, name) values (1, 'a'), (2, 'b'), (3, 'a-b'), (4, 'other')"
        )
        con.execute(
            "insert into raw.estimate (a_id, b_id, method, pcc) "
            "values (1, 2, 'reported', 0.2), (1, 3, 'reported', 0.7), (2, 3, 'reported', 0.6)"
        )
        con.execute(
            "insert into raw.run (run_id, name, strategy, status, config, reason, started_at) values "
            "(1, 'going', 'greedy', 'running', '{}', null, '2026-01-01'), "
            "(2, 'gone', 'kinship', 'finished', '{}', 'no better', '2026-01-02')"
        )
        con.execute(
            "insert into raw.generation (run_id, generation, top_ids, top_kinship, ended_at) values "
            "(1, 0, [1, 2], 0.2, now()::timestamp), (1, 1, [3, 1, 2], 0.5, now()::timestamp), "
            "(2, 0, [1, 2], 0.2, now()::timestamp)"
        )
        con.execute(
            "insert into raw.offspring (run_id, generation, position, child, child_id, parent_ids, role, method, reason, "
            "kinship, status, problem, score, kept) values "
            "(1, 0, 0, 'a', 1, [], 'start', null, 'named', null, 'scored', null, 0.5, true), "
            "(1, 0, 1, 'b', 2, [], 'start', null, 'named', null, 'scored', null, 0.6, true), "
            "(1, 1, 0, 'a-b', 3, [1, 2], 'pair', 'slerp', 'two of the best', 0.2, 'scored', null, 0.7, true), "
            "(1, 1, 1, 'a-b twice', null, [2, 1], 'explore', 'slerp', 'least akin', 0.2, 'failed', 'it broke', null, false)"
        )
    return empty.store.path


def rows(app):
    return app.screen.query_one(OffspringTable).windows[0]


def lines(app):
    return {line.name: list(line.points) for panel, _ in app.screen.query_one(Curve).panels for line in panel}


def test_runs_curve_and_offspring(path):
    async def steps(app, pilot):
        await press(app, pilot, "5")
        assert app.current_mode == "evolution" and app.screen.focused is app.screen.query_one(RunList)
        assert [r.name for r in app.screen.runs] == ["going", "gone"]  # what goes on comes first
        assert lines(app) == {
            "best so far": [(0, 0.6), (1, 0.7)],
            "mean": [(0, 0.55), (1, 0.7)],
            "kinship of the best": [(0, 0.2), (1, 0.5)],
        }
        assert rows(app) == [
            ["1", "a-b", "0.7000", "kept", "pair", "0.2000", "two of the best", "a + b", "scored"],
            ["1", "a-b twice", None, "", "explore", "0.2000", "least akin; it broke", "b + a", "failed"],
        ]
        text = screen_text(app)
        assert "running · 1 gen · 0.7" in text and "● best so far" in text and "2 children" in text
        await press(app, pilot, "down")
        assert app.screen.run.name == "gone" and lines(app)["best so far"] == []
        assert "no better" in str(app.screen.query_one(Curve).border_subtitle)
        assert app.screen.query_one(OffspringTable).number == 0

    run(path, steps)


def test_a_child_is_opened_and_the_best_become_a_heatmap(path):
    async def steps(app, pilot):
        await press(app, pilot, "5")
        await press(app, pilot, "enter")
        assert app.screen.focused is app.screen.query_one(OffspringTable)
        await press(app, pilot, "down", "enter")  # a child that is no model
        assert app.current_mode == "evolution"
        await press(app, pilot, "up", "enter")
        assert app.current_mode == "families" and app.current.name == "a-b"
        await press(app, pilot, "5")
        await press(app, pilot, "k")
        assert app.current_mode == "kinship"
        assert {m.name for m in app.screen.query_one(Heatmap).table.models} == {"a", "b", "a-b"}

    run(path, steps)


def test_a_run_in_another_process_is_followed_and_its_writer_waited_for(path):
    async def steps(app, pilot):
        await press(app, pilot, "5")
        await press(app, pilot, "tab", "down")
        table = app.screen.query_one(OffspringTable)
        assert table.cursor == 1
        writer = subprocess.Popen(
            [sys.executable, "-c", ONE_MORE, path], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        try:
            assert await asyncio.to_thread(writer.stdout.readline) == b"written\n"
            os.utime(path)  # as a checkpoint in the middle of the writing does
            await until(lambda: "waiting for another process" in app.status)
            assert len(lines(app)["best so far"]) == 2  # what was read stays
            await asyncio.to_thread(writer.communicate, b"")
        finally:
            writer.kill()
        await until(lambda: len(lines(app)["best so far"]) == 3)
        await settled(app, pilot)
        assert lines(app)["kinship of the best"][-1] == (2, 0.9)
        assert rows(app)[0][:2] == ["2", "third"]
        # The cursor stays on its child, and nobody is told to press r.
        assert table.cursor == 2 and app.screen.run.name == "going"
        assert "r reads it again" not in app.status

    run(path, steps)


def test_other_screens_do_not_ask(path):
    async def steps(app, pilot):
        await press(app, pilot, "5", "1")
        app.screen.query_one(FilterInput)
        with Store(path).writing() as con:
            con.execute(
                "insert into raw.run (run_id, name, strategy, status, config) values (9, 'new', 'grid', 'running', '{}')"
            )
        await asyncio.sleep(0.3)
        assert not [q for q in app._questions if not q.done]
        await press(app, pilot, "5")
        assert {r.name for r in app.screen.runs} == {"going", "gone", "new"}

    run(path, steps)


def test_no_run_and_no_database(empty):
    async def steps(app, pilot):
        await press(app, pilot, "5")
        assert app.screen.query_one(Notice).told == "There is no run of evolution yet."
        with empty.store.writing() as con:
            con.execute(
                "insert into raw.run (name, strategy, status, config) values ('x', 'grid', 'running', '{}')"
            )
        await press(app, pilot, "r")
        assert not app.screen.query_one(Notice).display and "No generation is finished yet" in screen_text(
            app
        )
        assert app.screen.focused is app.screen.query_one(RunList)
        Path(empty.store.path).unlink()
        await press(app, pilot, "r")
        assert "there is no database" in app.screen.query_one(Notice).told

    run(empty.store.path, steps)


def test_a_database_that_never_was_is_told(tmp_path):
    async def steps(app, pilot):
        await press(app, pilot, "5")
        assert "there is no database" in app.screen.query_one(Notice).told

    run(tmp_path / "none.duckdb", steps)


def test_a_long_run_is_paged(path):
    with Store(path).writing() as con:
        con.execute(
            "insert into raw.offspring (run_id, generation, position, child, parent_ids, role, reason, status) "
            "select 1, 2, i, 'child-' || i, [1, 2], 'grid', 'x', 'planned' from range(1200) t(i)"
        )

    async def steps(app, pilot):
        await press(app, pilot, "5")
        await press(app, pilot, "tab", "end")
        table = app.screen.query_one(OffspringTable)
        assert table.number == 1202 and table.cursor == 1201
        assert table.windows[1202 // WINDOW * WINDOW][-1][1] == "a-b twice"
        await press(app, pilot, "up", "enter")
        assert app.current.name == "a-b"

    run(path, steps)


def test_hostile_names_are_shown_and_do_nothing(path):
    hostile = "[/][@click=app.quit]x[/] \x1b]0;owned\x07 \u202egpj " + "g" * 400
    with Store(path).writing() as con:
        con.execute("update raw.run set name = ?, reason = ?, strategy = ? where run_id = 1", [hostile] * 3)
        con.execute("update raw.offspring set child = ?, reason = ?, problem = ?, role = ?", [hostile] * 4)
        con.execute("update raw.model set name = name || ?", [hostile])

    async def steps(app, pilot):
        for size in ((120, 36), (80, 24), (40, 12)):
            await pilot.resize_terminal(*size)
            await press(app, pilot, "5", "f1", "f1", "tab", "down")
            text = screen_text(app)
            assert "\x1b" not in text and "\u202e" not in text and "[/]" in text
        assert app.is_running

    run(path, steps)


# The chart.


def drawn(*lines, least=None, width=21, height=5, first=0, last=10):
    return [str(row) for row in curve.panel(lines, least, width, height, first, last)]


def test_the_chart_puts_values_where_they_belong():
    rising = Series("x", "●", "", [(0, 0.0), (5, 0.5), (10, 1.0)])
    shown = drawn(rising)
    assert shown[0].startswith("1.0000 ┤") or shown[0].strip().startswith("1.0000")
    cells = [row[curve.LABELS - 1 :] for row in shown]
    assert [(y, x) for y, row in enumerate(cells) for x, c in enumerate(row) if c == "●"] == [
        (0, 21),
        (2, 11),
        (4, 1),
    ]
    # The way between goes through every column.
    assert all(any(row[x] not in " │┤" for row in cells) for x in range(1, 21))


def test_the_chart_reads_without_colour_and_of_one_value():
    best = Series("best", "●", "", [(0, 1.0), (10, 1.0)])
    mean = Series("mean", "○", "", [(0, 0.0), (10, 1.0)], gaps=True)
    shown = "\n".join(drawn(best, mean))
    assert "○" in shown and "◉" in shown  # both at the end
    assert "●" in "\n".join(drawn(Series("x", "●", "", [(3, 2.0)]), first=3, last=3))
    assert "●" in "\n".join(drawn(Series("x", "●", "", [(3, 2.0)]), least=(0.0, 1.0), first=3, last=3))
    assert "●" not in "\n".join(
        drawn(Series("x", "●", "", [(i, i) for i in range(100)]), last=99)
    )  # dots alone tell


@pytest.mark.parametrize(("first", "last", "width"), [(0, 0, 20), (0, 5, 40), (0, 300, 40), (7, 9, 8)])
def test_the_axis_has_room_for_its_numbers(first, last, width):
    row = str(curve.axis(first, last, width))
    assert len(row) == width + curve.LABELS
    numbers = [int(word) for word in row.split()[1:]]
    assert numbers[0] == first and numbers == sorted(set(numbers)) and numbers[-1] <= last


def test_no_colour(path, monkeypatch):
    monkeypatch.setenv("NO_COLOR", "1")

    async def steps(app, pilot):
        await press(app, pilot, "5")
        text = screen_text(app)
        assert "●" in text and "○" in text and "◆" in text and "kept" in text

    run(path, steps)


def test_a_generation_that_is_under_way_tells_how_far_it_is(path):
    with Store(path).writing() as con:
        con.execute("insert into raw.generation (run_id, generation) values (1, 2)")
        con.execute(
            "insert into raw.offspring "
            "(run_id, generation, position, child, parent_ids, role, reason, status, merge_s, evaluate_s) values "
            " (1, 2, 0, 'x', [1, 2], 'pair', '', 'scored', 10, 50), (1, 2, 1, 'y', [1, 2], 'pair', '', 'merged', 9, null), "
            "(1, 2, 2, 'z', [1, 2], 'pair', '', 'planned', null, null)"
        )
        con.execute("update raw.offspring set merge_s = 10, evaluate_s = 50 where status = 'scored'")

    async def steps(app, pilot):
        await press(app, pilot, "5")
        title = str(app.screen.query_one(OffspringTable).border_title)
        assert "generation 2: 1 of 3 children" in title and " d " in title  # since January
        assert title.endswith("about 2 min left of it")
        await press(app, pilot, "down")
        assert "left" not in str(app.screen.query_one(OffspringTable).border_title)

    run(path, steps)


def test_spans_of_time():
    told = {
        0: "0 s",
        59.6: "1 min",
        200: "3 min 20 s",
        7500: "2 h 5 min",
        90061: "1 d 1 h",
        -5: "0 s",
        86400: "1 d",
    }
    assert {seconds: span(timedelta(seconds=seconds)) for seconds in told} == told
