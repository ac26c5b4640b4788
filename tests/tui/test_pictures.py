"""What each screen looks like, character by character and colour by colour, at 80x24 and 140x45.

The pictures are the text files in tests/pictures: the screen, then a letter for each style where it begins to
differ from the one before. After a change that is meant, `KINBASE_PICTURES=write pytest tests/test_pictures.py`
draws them anew; the difference is then read like any other.
"""

import asyncio
import os
import shutil
from datetime import datetime
from pathlib import Path
from string import ascii_letters
from types import SimpleNamespace

import pytest
from terminal import press, settled, type_in

import kinbase
from kinbase.store import Store
from kinbase.tui.app import KinbaseApp
from kinbase.tui.screens import sql
from kinbase.tui.screens.families import FilterInput
from kinbase.tui.widgets.editor import Editor
from kinbase.tui.widgets.model_tree import ModelTree
from kinbase.tui.widgets.paged_table import PagedTable

PICTURES = Path(__file__).parents[1] / "pictures"
SIZES = {"80x24": (80, 24), "140x45": (140, 45)}


@pytest.fixture(scope="module")
def drawn(tmp_path_factory, family):
    """The fixture family with a card's and a config's claims, scores and two runs, all times and paths fixed."""
    path = tmp_path_factory.mktemp("pictures") / "kin.duckdb"
    db = kinbase.open(path)
    db.import_(family.values(), base="base")
    with Store(path).writing() as con:
        con.execute(
            "update raw.model set imported_at = '2026-01-02 03:04', source = '/models/' || name, "
            "digest = md5(name), license = 'mit'"
        )
        con.execute("delete from raw.alias")
        con.execute("delete from raw.claim")
        ids = dict(con.execute("select name, model_id from raw.model").fetchall())
        base, a, b, merge = (ids[name] for name in ("base", "ft_a", "ft_b", "merge_ab"))
        con.executemany(
            "insert into raw.claim (child_id, parent_id, relation, method, weight, evidence) values (?, ?, ?, ?, ?, ?)",
            [
                (a, base, "finetune", None, None, "card"),
                (b, base, "finetune", None, None, "card"),
                (merge, a, "merge", "linear", 0.6, "config"),
                (merge, b, "merge", "linear", 0.4, "config"),
                (merge, base, "base", None, None, "config"),
                (merge, a, "merge", "linear", 0.598, "weights"),
            ],
        )
        con.executemany(
            "insert into raw.score (model_id, benchmark, metric, value) values (?, 'mmlu', 'acc', ?)",
            [(a, 0.5), (b, 0.6), (merge, 0.65), (base, 0.4)],
        )
        con.execute(
            "insert into raw.run (run_id, name, strategy, status, config, reason, started_at) values "
            "(1, 'first', 'greedy', 'finished', '{}', 'the top 2 did not change', '2026-01-02'), "
            "(2, 'second', 'kinship', 'running', '{}', null, '2026-01-03')"
        )
        for run, number in ((1, 5), (2, 3)):
            for generation in range(number):
                con.execute(
                    "insert into raw.generation (run_id, generation, top_ids, top_kinship, ended_at) "
                    "values (?, ?, ?, ?, '2026-01-02')",
                    [run, generation, [a, b], 0.2 + 0.15 * generation],
                )
                for position in range(2):
                    con.execute(
                        "insert into raw.offspring (run_id, generation, position, child, child_id, parent_ids, role, reason, "
                        "kinship, status, score, kept) values (?, ?, ?, ?, null, ?, ?, ?, 0.25, 'scored', ?, ?)",
                        [run, generation, position, f"run{run}-{generation}-{position}", [a, b],
                         ("pair", "explore")[position] if generation else "start", "two of the best",
                         0.5 + 0.2 * (1 - 0.5**generation) - 0.05 * position, position == 0],
                    )  # fmt: skip
    return path


async def families(app, pilot):
    await press(app, pilot, "enter")
    await press(app, pilot, "down")
    await press(app, pilot, "enter")


async def filtered(app, pilot):
    await type_in(app, pilot, app.screen.query_one(FilterInput), "mmlu>=0.6")
    app.screen.query_one(ModelTree).focus()
    await press(app, pilot, "space")


async def kinship(app, pilot):
    await press(app, pilot, "2")
    await press(app, pilot, "right")


async def lineage(app, pilot):
    await type_in(app, pilot, app.screen.query_one(FilterInput), "merge")
    app.screen.query_one(ModelTree).focus()
    await press(app, pilot, "l")


async def query(app, pilot):
    await press(app, pilot, "4")
    await type_in(
        app,
        pilot,
        app.screen.query_one(Editor),
        "select model_a, model_b, round(pcc, 2) as pcc\nfrom kinship order by all -- each pair twice",
    )
    await press(app, pilot, "escape", "ctrl+j")
    app.screen.query_one(PagedTable).focus()  # no blinking cursor


async def evolution(app, pilot):
    await press(app, pilot, "5")


async def help_panel(app, pilot):
    await press(app, pilot, "f1")


STATES = {
    "families": families, "filtered": filtered, "kinship": kinship, "lineage": lineage, "sql": query, "evolution": evolution,
    "help": help_panel,
}  # fmt: skip


def picture(app):
    """The screen as text, then its styles: a letter a run of cells, explained below."""
    letters, text, styles = {}, [], []
    for strip in app.screen._compositor.render_strips():
        text.append("".join(segment.text for segment in strip).rstrip())
        row, before = [], None
        for segment in strip:
            style = (
                str(segment.style.without_color)
                if segment.style and not segment.style.color
                else str(segment.style)
            )
            style = style.partition(" link")[0]
            letter = letters.setdefault(style, ascii_letters[len(letters) % len(ascii_letters)])
            row.append(
                (letter if letter != before else " ") + " " * (segment.cell_length - 1)
                if segment.cell_length
                else ""
            )
            before = letter
        styles.append("".join(row).rstrip())
    told = [f"{letter} {style}" for style, letter in letters.items()]
    return "\n".join([*text, "", *styles, "", *told]) + "\n"


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("state", STATES)
def test_picture(drawn, tmp_path, monkeypatch, state, size):
    monkeypatch.setattr(
        sql, "time", SimpleNamespace(monotonic=lambda: 0.0)
    )  # how long a query took is on the screen
    monkeypatch.setattr(  # and how long a run has been under way
        "kinbase.tui.screens.evolution.datetime",
        SimpleNamespace(now=lambda zone: datetime(2026, 1, 3, 4, 5, tzinfo=zone)),
    )
    path = shutil.copy(drawn, tmp_path / "kin.duckdb")

    async def drive():
        app = KinbaseApp(path)
        async with app.run_test(size=SIZES[size]) as pilot:
            await settled(app, pilot)
            await STATES[state](app, pilot)
            await settled(app, pilot)
            await asyncio.sleep(0.3)
            await settled(app, pilot)
            return picture(app)

    shown = asyncio.run(drive())
    kept = PICTURES / f"{state}-{size}.txt"
    if os.environ.get("KINBASE_PICTURES") == "write":
        kept.parent.mkdir(exist_ok=True)
        kept.write_text(shown)
    if shown != kept.read_text():
        (tmp_path / "shown.txt").write_text(shown)
    assert shown == kept.read_text(), f"{state} looks different: see the module's docstring"
