"""The terminal UI, driven through Pilot: what is shown, what is asked, and that no name does anything."""

import asyncio
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from terminal import press, run, screen_text, settled, tap, type_in
from textual.color import Color
from textual.widgets import Input, OptionList, Static

import kinbase
from kinbase.query import filters as filtering
from kinbase.query import kinship as pairs
from kinbase.query import models
from kinbase.query import pedigree as line
from kinbase.query.models import Model
from kinbase.schema import scripts
from kinbase.store import Store
from kinbase.tui.app import KinbaseApp
from kinbase.tui.screens.families import FilterInput
from kinbase.tui.screens.lineage import LineView
from kinbase.tui.screens.model_picker import ModelPicker
from kinbase.tui.screens.save import SaveWindow
from kinbase.tui.widgets import model_tree
from kinbase.tui.widgets.choice import Choice
from kinbase.tui.widgets.completion import Words, at_cursor, completions
from kinbase.tui.widgets.details import PortraitPane
from kinbase.tui.widgets.editor import Completions, Editor
from kinbase.tui.widgets.heatmap import Heatmap
from kinbase.tui.widgets.model_list import ModelList
from kinbase.tui.widgets.model_tree import ModelTree
from kinbase.tui.widgets.notice import Notice
from kinbase.tui.widgets.paged_table import WINDOW, PagedTable

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


@pytest.fixture(autouse=True)
def no_rest(monkeypatch):
    """The cursor need not rest before a portrait is read."""
    monkeypatch.setattr(model_tree, "REST", 0.01)


@pytest.fixture(scope="session")
def imported(tmp_path_factory, family):
    """The fixture family with claims and scores."""
    path = tmp_path_factory.mktemp("tui") / "kin.duckdb"
    kinbase.open(path).import_(family.values(), base="base")
    with Store(path).writing() as con:
        ids = dict(con.execute("select name, model_id from raw.model").fetchall())
        con.execute("delete from raw.claim")
        rows = [
            (ids["ft_a"], ids["base"], "finetune", None, None, "card"),
            (ids["merge_ab"], ids["ft_a"], "merge", "linear", 0.6, "config"),
            (ids["merge_ab"], ids["ft_b"], "merge", "linear", 0.4, "config"),
            (ids["merge_ab"], ids["base"], "base", None, None, "config"),
            (ids["merge_ab"], ids["ft_a"], "merge", "linear", 0.598, "weights"),
        ]
        con.executemany(
            "insert into raw.claim (child_id, parent_id, relation, method, weight, evidence) values (?, ?, ?, ?, ?, ?)",
            rows,
        )
        con.executemany(
            "insert into raw.score (model_id, benchmark, metric, value) values (?, 'mmlu', 'acc', ?)",
            [(ids["ft_a"], 0.5), (ids["ft_b"], 0.6), (ids["merge_ab"], 0.65), (ids["base"], 0.4)],
        )
        con.execute("update raw.model set license = 'mit' where name in ('ft_a', 'ft_c')")
    return path


@pytest.fixture
def path(imported, tmp_path):
    """A database of one's own to look at or to spoil."""
    own = tmp_path / "kin.duckdb"
    own.write_bytes(imported.read_bytes())
    return own


def names(tree, node=None):
    return [child.data.name for child in (node or tree.root).children if hasattr(child.data, "name")]


def outcome(app):
    return str(app.screen.query_one("#outcome", Static).render())


# Families.


def test_first_screen_shows_bases_and_the_portrait_of_the_first(path):
    async def steps(app, pilot):
        tree = app.screen.query_one(ModelTree)
        assert names(tree) == ["base"]
        assert tree.root.children[0].data.beneath == 4
        assert app.current.name == "base"
        assert app.screen.query_one(PortraitPane).portrait.members == 4

    run(path, steps)


def test_a_merge_stands_under_both_parents_and_not_under_its_base(path):
    async def steps(app, pilot):
        tree = app.screen.query_one(ModelTree)
        await press(app, pilot, "enter")
        base = tree.root.children[0]
        assert sorted(names(tree, base)) == ["ft_a", "ft_b", "ft_c"]
        for child in base.children:
            if child.data.name != "ft_c":
                child.expand()
        await settled(app, pilot)
        found = {child.data.name: names(tree, child) for child in base.children}
        assert found == {"ft_a": ["merge_ab"], "ft_b": ["merge_ab"], "ft_c": []}

    run(path, steps)


def test_portrait_tells_claims_measured_parents_gains_kin_and_layers(path):
    async def steps(app, pilot):
        await type_in(app, pilot, app.screen.query_one(FilterInput), "merge")
        pane = app.screen.query_one(PortraitPane)
        found = pane.portrait
        assert found.model.name == "merge_ab"
        assert {(c.parent.name, c.evidence) for c in found.parents if c.relation == "merge"} == {
            ("ft_a", "config"), ("ft_b", "config"), ("ft_a", "weights")}  # fmt: skip
        (score,) = found.scores
        assert score.gain == pytest.approx(0.65 - (0.5 + 0.6) / 2)
        assert found.kin[0].model.name == "ft_a" and found.kin[0].method == "exact"
        assert {block for _, block, _ in found.layers} >= {"attn", "mlp"}
        text = screen_text(app)
        assert "measured" in text and "claimed: config" in text and "+0.1000" in text
        # A parent is opened from its row, and Backspace leads back.
        parents = app.screen.query_one("#parents", ModelList)
        parents.focus()
        parents.highlighted = [m.name for m in parents.models].index("ft_b")
        await press(app, pilot, "enter")
        assert app.current.name == "ft_b" and pane.portrait.model.name == "ft_b"
        await press(app, pilot, "backspace")
        assert pane.portrait.model.name == "merge_ab"

    run(path, steps)


@pytest.mark.parametrize(
    ("typed", "expected"),
    [
        ("ft_", {"ft_a", "ft_b", "ft_c"}),
        ("FT A", {"ft_a"}),
        ("license:mit", {"ft_a", "ft_c"}),
        ("mmlu>=0.6", {"ft_b", "merge_ab"}),
        ("score<0.5", {"base"}),
        ("gen=0", {"base"}),
        ("gen=1", {"ft_a", "ft_b", "ft_c"}),
        ("gen>1", {"merge_ab"}),
        ("relation:merge", {"merge_ab"}),
        ("base:base ft_c", {"ft_c"}),
        ("params>1b", set()),
        ("weights:no", set()),
        ("nobody", set()),
        ("100%", set()),
    ],
)
def test_filter(path, typed, expected):
    with Store(path).reading() as con:
        wanted = filtering.parse(typed)
        rows = con.execute(
            f"select name from raw.model m where {wanted.where}", wanted.values(con)
        ).fetchall()
    assert {name for (name,) in rows} == expected
    assert not wanted.complaint


def test_filter_as_typed_sort_and_marks(path):
    async def steps(app, pilot):
        tree = app.screen.query_one(ModelTree)
        await press(app, pilot, "slash", "f", "t")
        assert names(tree) == ["ft_a", "ft_b", "ft_c"]
        assert "3 found" in tree.border_subtitle
        await press(app, pilot, "x", "x")
        assert app.screen.query_one(Notice).told == "No model is like that."
        await press(app, pilot, "escape")
        assert names(tree) == ["base"] and tree.has_focus
        await type_in(app, pilot, app.screen.query_one(FilterInput), "score>abc")
        assert app.screen.query_one(FilterInput).has_class("-wrong")
        await type_in(app, pilot, app.screen.query_one(FilterInput), "a")
        while tree.sort != "score":
            await press(app, pilot, "s")
        assert names(tree)[:2] == ["merge_ab", "ft_a"]
        tree.focus()
        await press(app, pilot, "space", "space")
        assert [m.name for m in app.chosen.values()] == ["merge_ab", "ft_a"]

    run(path, steps)


def test_children_come_in_pages(path):
    with Store(path).writing() as con:
        con.execute(
            "insert into raw.model (name, base_id) select 'many-' || lpad(i::varchar, 4, '0'), 1 from range(450) t(i)"
        )

    async def steps(app, pilot):
        tree = app.screen.query_one(ModelTree)
        tree.sort_by("name")
        await settled(app, pilot)
        node = tree.root.children[0]
        node.expand()
        await settled(app, pilot)
        assert len(node.children) == 201
        for expected in (401, 453):
            tree.move_cursor(node.children[-1])
            await press(app, pilot, "enter")
            assert len(node.children) == expected
        found = names(tree, node)
        assert found == sorted(found) and len(set(found)) == 453

    run(path, steps)


# Kinship.


def test_heatmap_of_the_kin_of_the_current_model(path):
    async def steps(app, pilot):
        await press(app, pilot, "2")
        heatmap = app.screen.query_one(Heatmap)
        shown = [m.name for m in heatmap.table.models]
        assert sorted(shown) == ["ft_a", "ft_b", "ft_c", "merge_ab"]
        assert abs(shown.index("merge_ab") - shown.index("ft_a")) == 1
        # The value, method and error under the cursor are the database's.
        heatmap.go(shown.index("merge_ab"), shown.index("ft_a"))
        await settled(app, pilot)
        with Store(path).reading() as con:
            ((pcc,),) = con.execute(
                "select pcc from kinship where model_a = 'ft_a' and model_b = 'merge_ab'"
            ).fetchall()
        told = str(app.screen.query_one("#pair", Static).render())
        assert f"pcc {pcc:.4f}" in told and "exact" in told
        for metric in ("cs", "ed", "pcc"):
            await press(app, pilot, "m")
            assert heatmap.metric == metric
        # A block's value is the view's.
        await press(app, pilot, "b")
        assert app.screen.query_one("#block", Choice).value == "attn"
        pair = heatmap.table.pair(*(heatmap.row, heatmap.column))
        with Store(path).reading() as con:
            ((pcc,),) = con.execute(
                "select pcc from kinship_by_block where model_a = 'ft_a' and model_b = 'merge_ab' and block = 'attn'"
            ).fetchall()
        assert pair.pcc == pytest.approx(pcc, abs=1e-12)
        await press(app, pilot, "right_square_bracket")
        assert app.screen.query_one("#layer", Choice).value == "0"
        assert heatmap.table.layers == 2
        # Enter jumps to the model of the row.
        await press(app, pilot, "enter")
        assert app.current_mode == "families" and app.current.name == "merge_ab"

    run(path, steps)


def test_heatmap_of_marked_models_add_and_remove(path):
    async def steps(app, pilot):
        with Store(path).reading() as con:
            ids = dict(con.execute("select name, model_id from raw.model").fetchall())
        for name in ("ft_a", "ft_c"):
            app.choose(Model(ids[name], name))
        await press(app, pilot, "k")
        heatmap = app.screen.query_one(Heatmap)
        assert {m.name for m in heatmap.table.models} == {"ft_a", "ft_c"}
        await press(app, pilot, "a")
        await type_in(app, pilot, app.screen.query_one(Input), "base")
        await press(app, pilot, "enter")
        assert {m.name for m in heatmap.table.models} == {"ft_a", "ft_c", "base"}
        assert "2 pairs not measured" in heatmap.border_subtitle
        heatmap.go([m.name for m in heatmap.table.models].index("base"), 0)
        await press(app, pilot, "x")
        assert {m.name for m in app.chosen.values()} == {"ft_a", "ft_c"}
        await press(app, pilot, "z")
        assert not heatmap.wide

    run(path, steps)


def test_clusters_stand_together():
    similar = np.full((6, 6), 0.1)
    for group in ((0, 2, 4), (1, 3, 5)):
        for i in group:
            for j in group:
                similar[i, j] = 0.9
    similar[0, 1] = similar[1, 0] = np.nan
    ordered = pairs.order(similar)
    assert sorted(ordered) == list(range(6))
    assert {frozenset(ordered[:3]), frozenset(ordered[3:])} == {frozenset((0, 2, 4)), frozenset((1, 3, 5))}


# Lineage.


def test_lineage_of_a_merge_and_focus_moves(path):
    async def steps(app, pilot):
        await type_in(app, pilot, app.screen.query_one(FilterInput), "merge")
        app.screen.query_one(ModelTree).focus()
        await press(app, pilot, "l")
        assert app.current_mode == "lineage"
        found = {app.screen.line.names[id_]: g for id_, g in app.screen.line.generation.items()}
        assert found == {"merge_ab": 0, "ft_a": -1, "ft_b": -1, "base": -2}
        claims = str(app.screen.query_one("#claims Static", Static).render())
        assert "from ft_a" in claims and "measured from the weights" in claims
        view = app.screen.query_one(LineView)
        view.highlighted = app.screen.rows.index(
            next(i for i, n in app.screen.line.names.items() if n == "ft_a")
        )
        await press(app, pilot, "enter")
        assert app.current.name == "ft_a"
        found = {app.screen.line.names[id_]: g for id_, g in app.screen.line.generation.items()}
        assert found == {"base": -1, "ft_a": 0, "merge_ab": 1}
        await press(app, pilot, "backspace")
        assert app.current.name == "merge_ab"
        await press(app, pilot, "o")
        assert app.current_mode == "families"

    run(path, steps)


def test_common_ancestors_of_two(path):
    async def steps(app, pilot):
        with Store(path).reading() as con:
            ids = dict(con.execute("select name, model_id from raw.model").fetchall())
        app.open_model(Model(ids["ft_c"], "ft_c"), "lineage")
        await settled(app, pilot)
        await press(app, pilot, "c")
        assert isinstance(app.screen, ModelPicker)
        await type_in(app, pilot, app.screen.query_one(Input), "ft_b")
        await press(app, pilot, "enter")
        assert {app.screen.line.names[i] for i in app.screen.line.nearest} == {"base"}
        assert "1 ancestor shared" in app.screen.query_one(LineView).border_subtitle
        await press(app, pilot, "escape")
        assert app.screen.other is None and not app.screen.line.common

    run(path, steps)


def claims_of(edges):
    """A Line of {child: [parents]}."""
    ids = sorted({i for child, parents in edges.items() for i in (child, *parents)})
    claims = {
        child: [line.Claim(Model(p, str(p)), "merge", None, None, "card", None) for p in parents]
        for child, parents in edges.items()
    }
    return line.Line([ids[0]], {i: str(i) for i in ids}, dict.fromkeys(ids, 0), claims)


def test_lines_of_descent_are_drawn_with_every_edge():
    rows = line.draw(claims_of({2: [1], 3: [1], 4: [2, 3], 5: [4, 1]}))
    print("\n".join(row.rails + str(row.id) for row in rows))
    assert [(row.id, row.rails.rstrip()) for row in rows] == [
        (1, "●"),
        (2, "├─●"),
        (3, "├─│─●"),
        (4, "│ ╰─┴─●"),
        (5, "╰─●───╯"),
    ]


def test_a_circle_of_claims_is_drawn_once():
    rows = line.draw(claims_of({1: [3], 2: [1], 3: [2]}))
    assert sorted(row.id for row in rows) == [1, 2, 3]


# SQL.


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
        gaps = []

        async def beat():
            while True:
                began = time.monotonic()
                await asyncio.sleep(0.01)
                gaps.append(time.monotonic() - began)

        await press(app, pilot, "4")
        await type_in(
            app,
            pilot,
            app.screen.query_one(Editor),
            "select count(*) from range(100000000) a, range(100000) b",
        )
        heart = asyncio.create_task(beat())
        await tap(app, "ctrl+j")
        await asyncio.sleep(0.8)
        assert app.screen.running
        assert "working" in app.status
        await tap(app, "f3")  # another screen meanwhile
        await asyncio.sleep(0.5)
        assert app.current_mode == "kinship"
        assert app.screen.query_one(Heatmap).table.models
        await tap(app, "f5", "escape")
        await settled(app, pilot, 5)
        heart.cancel()
        assert outcome(app) == "stopped" and not app.screen.running
        assert not [q for q in app._questions if not q.done]
        assert max(gaps) < 0.5

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
            await asyncio.sleep(0.3)
            asked = list(app._questions)
        return asked

    asked = asyncio.run(drive())
    end = time.monotonic() + 5
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


# Everywhere.


def test_find_palette_help_and_themes(path):
    async def steps(app, pilot):
        await press(app, pilot, "ctrl+f")
        await type_in(app, pilot, app.screen.query_one(Input), "ft_c")
        assert app.screen.query_one(OptionList).option_count == 1
        await press(app, pilot, "enter")
        assert app.current.name == "ft_c"
        await press(app, pilot, "ctrl+p")
        await type_in(app, pilot, app.screen.query_one(Input), "merge_ab")
        await asyncio.sleep(0.5)
        await press(app, pilot, "enter")
        assert app.current.name == "merge_ab"
        dark = app.theme
        await press(app, pilot, "ctrl+t")
        assert app.theme != dark and not app.current_theme.dark
        await press(app, pilot, "f1")
        assert app.screen.query("HelpPanel")
        await press(app, pilot, "f1")
        assert not app.screen.query("HelpPanel")
        for widget in (
            ModelTree,
            FilterInput,
            PortraitPane,
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
        await asyncio.sleep(0.5)
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


# Bad input.


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
        await asyncio.sleep(0.5)
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
            await asyncio.sleep(1.0)
            assert "waiting for another process" in app.status
            assert not app.screen.query_one(ModelTree).root.children
            writer.communicate(b"")
            await settled(app, pilot)
            assert names(app.screen.query_one(ModelTree)) == ["base"]
            await asyncio.sleep(0.3)
            assert "waiting" not in app.status

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
        subprocess.run([sys.executable, "-c", command, str(path)], check=True, timeout=30)
        await asyncio.sleep(0.4)
        assert "the database changed" in app.status

    run(path, steps)


def test_a_pipe_is_no_terminal(cli):
    done = cli("tui", stdin="")
    assert done.returncode == 2 and "needs a terminal" in done.stderr


def test_it_loads_no_tensors_and_starts_soon(path):
    command = (
        "import sys, kinbase.tui.app as a; a.KinbaseApp('x'); "
        "print([m for m in ('torch', 'transformers', 'huggingface_hub', 'scipy', 'polars') if m in sys.modules])"
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


def test_lists_are_the_same_when_it_is_known_where_all_models_stand(path):
    with Store(path).writing() as con:
        con.execute(
            "insert into raw.model (name, base_id, parameters) select 'many-' || i, 1, i % 5 from range(900) t(i)"
        )
        con.execute(
            "insert into raw.claim (child_id, parent_id, relation, evidence) "
            "select model_id, 6 + (model_id * 7919) % 37, 'finetune', unnest(['card', 'config']) "
            "from raw.model where model_id > 50"
        )
        con.execute(
            "insert into raw.score (model_id, benchmark, metric, value) "
            "select model_id, 'mmlu', 'acc', model_id % 7 from raw.model where model_id % 3 = 0"
        )
    with Store(path).reading() as con:
        for sort in models.SORTS:
            known = models.learn(con, sort, None)
            for offset in (0, 200, 400):
                for typed in ("many", "many-1", "a", "license:mit", "gen=2", "gen>0", "nobody"):
                    wanted = filtering.parse(typed)
                    page = models.matching(con, wanted, sort, offset, known)
                    assert page.entries == models.matching(con, wanted, sort, offset).entries, (typed, sort)
                    assert page.number == models.count_matching(con, wanted)
                for parent in (1, 7, 900):
                    page = models.children(con, parent, sort, offset, known)
                    assert page.entries == models.children(con, parent, sort, offset).entries, (parent, sort)
                assert (
                    models.roots(con, sort, offset, known).entries == models.roots(con, sort, offset).entries
                )
        assert known.beneath[1] == 4 + 900  # measured against the base
        (first, *_) = models.children(con, 1, "largest").entries
        # Two claims name each child, which counts once.
        assert first.beneath == len(models.children(con, first.id, "name").entries) > 20


def test_an_order_that_is_known_of_one_state_is_added_to(path):
    with Store(path).reading() as con:
        known = models.learn(con, "name", None)
        assert models.learn(con, "largest", known) is known and set(known.places) == {"name", "largest"}


def test_where_all_models_stand_is_forgotten_when_the_file_changes(path, monkeypatch):
    monkeypatch.setattr(model_tree, "MANY", 1)

    async def steps(app, pilot):
        assert app.standing is not None
        with Store(path).writing() as con:
            con.execute("insert into raw.model (name) values ('fresh')")
        assert app.standing is None
        await type_in(app, pilot, app.screen.query_one(FilterInput), "fresh")
        assert names(app.screen.query_one(ModelTree)) == ["fresh"]
        await type_in(app, pilot, app.screen.query_one(FilterInput), "")
        assert app.standing is not None and len(app.standing.steps) == 7

    run(path, steps)
