"""The table of models: its values are the views', it is sorted by any column, and fits any width."""

import pytest
from terminal import press, run, screen_text, settled, type_in, until

from kinbase.store import Store
from kinbase.tui.screens.families import FilterInput
from kinbase.tui.widgets.details import DetailsPane
from kinbase.tui.widgets.model_table import ModelTable
from kinbase.tui.widgets.model_tree import ModelTree


def names(table):
    return [table.found.models[i].name for i in table._order]


def test_the_table_says_what_the_views_say(path):
    async def steps(app, pilot):
        await press(app, pilot, "t")
        table = app.screen.query_one(ModelTable)
        assert app.screen.is_table and app.focused is table
        with Store(path).reading() as con:
            scores = dict(con.execute("select model, score from model_scores").fetchall())
            gains = dict(
                con.execute("select child, gain from merge_gains where benchmark = 'average'").fetchall()
            )
            family = [name for (name,) in con.execute("select name from family('base')").fetchall()]
            kin = dict(con.execute("select model_b, pcc from kinship where model_a = 'ft_a'").fetchall())
        assert sorted(names(table)) == sorted(family)
        rows = {row[0]: dict(zip(table.found.columns, row, strict=True)) for row in table.found.rows}
        assert {name: row["score"] for name, row in rows.items() if row["score"] is not None} == scores
        assert rows["merge_ab"]["gain"] == pytest.approx(gains["merge_ab"])
        assert rows["merge_ab"]["parents"] == "ft_a + ft_b" and rows["merge_ab"]["mmlu"] == 0.65
        assert rows["ft_a"]["coverage"] == pytest.approx(1.0)
        # The best is on top, and Home is one key.
        await until(lambda: table.under_cursor is not None and table.under_cursor.name == app.current.name)
        await press(app, pilot, "home")
        await until(lambda: app.current.name == "merge_ab")
        assert max(scores, key=scores.get) == "merge_ab"
        # Kin to the marked: of one, its pairs.
        await settled(app, pilot)
        table.go(names(table).index("ft_a"))
        await until(lambda: app.current.name == "ft_a")
        await press(app, pilot, "space")
        rows = {row[0]: dict(zip(table.found.columns, row, strict=True)) for row in table.found.rows}
        assert {name: row["kin"] for name, row in rows.items() if row["kin"] is not None} == pytest.approx(
            kin
        )
        assert "◆ ft_a" in screen_text(app)

    run(path, steps, (140, 45))


def test_sorting_by_key_heading_and_around(path):
    async def steps(app, pilot):
        await press(app, pilot, "t")
        table = app.screen.query_one(ModelTable)
        assert table.sorted_by == "score"
        values = [table.found.rows[i][2] for i in table._order]
        known = [v for v in values if v is not None]
        assert known == sorted(known, reverse=True) and values[len(known) :] == [None] * (
            len(values) - len(known)
        )
        await press(app, pilot, "v")
        assert [table.found.rows[i][2] for i in table._order][: len(known)] == sorted(known)
        column = screen_text(app).splitlines()[3].index("name")
        await pilot.click(ModelTable, offset=(column - table.region.x, 1))
        await settled(app, pilot)
        assert names(table) == sorted(names(table))
        await press(app, pilot, "s")
        assert table.sorted_by != "name"
        # The cursor stays on its model, and the pane with it.
        assert (
            app.current.name
            == table.under_cursor.name
            == app.screen.query_one(DetailsPane).details.model.name
        )

    run(path, steps, (140, 45))


@pytest.mark.parametrize("width", [60, 80, 100, 140, 200])
def test_columns_are_whole_and_the_sorted_one_is_kept(path, width):
    with Store(path).writing() as con:
        con.execute(
            "update raw.model set name = 'organisation/' || repeat('x', 60) || '-end' where name = 'ft_c'"
        )

    async def steps(app, pilot):
        await press(app, pilot, "t")
        table = app.screen.query_one(ModelTable)
        table.chosen_columns = list(table.found.columns)
        table.sort_by("mmlu")
        await settled(app, pilot)
        shown = [table.found.columns[c] for c in table._shown]
        assert shown[0] == "name" and "mmlu" in shown
        used = len(str(table.number)) + 2 + sum(w + 2 for w in table._widths)
        assert used <= table.scrollable_content_region.width + 2
        (row,) = [row[0] for row in table.windows[0] if row[0].startswith("organ")]
        assert row.endswith("-end") and ("…" in row) == (len(row) < 77)

    run(path, steps, (width, 24))


def test_the_table_of_a_filter_and_back_to_the_tree(path):
    async def steps(app, pilot):
        await press(app, pilot, "t")
        await type_in(app, pilot, app.screen.query_one(FilterInput), "ft_")
        table = app.screen.query_one(ModelTable)
        assert sorted(names(table)) == ["ft_a", "ft_b", "ft_c"]
        await type_in(app, pilot, app.screen.query_one(FilterInput), "")
        table.focus()
        table.go(names(table).index("merge_ab"))
        await settled(app, pilot)
        await press(app, pilot, "enter")
        tree = app.screen.query_one(ModelTree)
        assert not app.screen.is_table and tree.under_cursor.name == "merge_ab" and app.focused is tree

    run(path, steps)


def test_columns_and_order_are_remembered(path):
    async def choose(app, pilot):
        await press(app, pilot, "s", "t", "o")
        app.screen.query_one("SelectionList").select("mmlu")
        await press(app, pilot, "enter")
        assert "mmlu" in screen_text(app)

    async def again(app, pilot):
        assert app.screen.query_one(ModelTree).sort == "name"
        await press(app, pilot, "t")
        assert "mmlu" in screen_text(app)

    run(path, choose)
    run(path, again)
