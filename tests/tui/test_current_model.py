"""One current model: the tree's cursor, the pane and the keys are of the same one, however it was opened."""

import pytest
from terminal import press, run, settled, type_in
from textual.widgets import Input

from kinbase.store import Store
from kinbase.tui.screens.families import FilterInput
from kinbase.tui.screens.lineage import LineView
from kinbase.tui.widgets.details import DetailsPane
from kinbase.tui.widgets.heatmap import Heatmap
from kinbase.tui.widgets.model_list import ModelList
from kinbase.tui.widgets.model_tree import ModelTree


def together(app, name):
    """The current model, the tree's cursor and the pane are of `name`."""
    tree, pane = app.screen.query_one(ModelTree), app.screen.query_one(DetailsPane)
    assert app.current is not None and app.current.name == name
    assert tree.under_cursor is not None and tree.under_cursor.name == name
    assert pane.details is not None and pane.details.model.name == name
    assert tree.cursor_node is not None and tree.cursor_line == tree.cursor_node.line >= 0


async def find(app, pilot, name):
    await press(app, pilot, "ctrl+f")
    await type_in(app, pilot, app.screen.query_one(Input), name)
    await press(app, pilot, "enter")


async def to_heatmap_row(app, pilot, name):
    await press(app, pilot, "2")
    heatmap = app.screen.query_one(Heatmap)
    names = [m.name for m in heatmap.table.models]
    heatmap.go(names.index(name), 0 if names.index(name) else 1)
    await settled(app, pilot)


async def by_picker(app, pilot):
    await find(app, pilot, "merge_ab")


async def by_heatmap(app, pilot):
    await to_heatmap_row(app, pilot, "merge_ab")
    await press(app, pilot, "enter")


async def by_lineage(app, pilot):
    await press(app, pilot, "3")
    view = app.screen.query_one(LineView)
    names = [app.screen.line.names[id_] for id_ in app.screen.rows]
    view.highlighted = names.index("merge_ab")
    await press(app, pilot, "o")


async def by_pane(app, pilot):
    await find(app, pilot, "ft_a")
    kin = app.screen.query_one("#kin", ModelList)
    kin.focus()
    kin.highlighted = [m.name for m in kin.models].index("merge_ab")
    await press(app, pilot, "enter")


@pytest.mark.parametrize("way", [by_picker, by_heatmap, by_lineage, by_pane])
def test_cursor_and_pane_are_together_after_every_way_of_opening(path, way):
    async def steps(app, pilot):
        await way(app, pilot)
        await settled(app, pilot)
        assert app.current_mode == "families"
        together(app, "merge_ab")
        # What a key does is about that model.
        app.screen.query_one(ModelTree).focus()
        await press(app, pilot, "l")
        assert app.current_mode == "lineage" and app.screen.focus_id == app.current.id
        # Sorting and reading again leave the cursor on it.
        await press(app, pilot, "1", "s", "s", "r")
        together(app, "merge_ab")

    run(path, steps)


def test_a_filter_that_hides_the_opened_model_is_taken_away(path):
    async def steps(app, pilot):
        await type_in(app, pilot, app.screen.query_one(FilterInput), "ft_c")
        together(app, "ft_c")
        await find(app, pilot, "merge_ab")
        assert app.screen.query_one(FilterInput).value == ""
        together(app, "merge_ab")
        await press(app, pilot, "backspace")
        together(app, "ft_c")

    run(path, steps)


def test_a_model_of_a_page_that_was_not_read_is_revealed_once(path):
    with Store(path).writing() as con:
        con.execute(
            "insert into raw.model (name, base_id) select 'm' || lpad(i::varchar, 4, '0'), 1 from range(450) t(i)"
        )

    async def steps(app, pilot):
        await press(app, pilot, "s")  # by name
        await find(app, pilot, "m0449")
        together(app, "m0449")
        tree = app.screen.query_one(ModelTree)
        parent = tree.cursor_node.parent
        for _ in range(3):  # all pages
            tree.move_cursor(parent.children[-1])
            await press(app, pilot, "enter")
        names = [node.data.name for node in parent.children]
        assert names.count("m0449") == 1 and len(names) == len(set(names)) == 453

    run(path, steps)


def test_marks_are_counted_cleared_and_put_back(path):
    async def steps(app, pilot):
        tree = app.screen.query_one(ModelTree)
        await press(app, pilot, "right")
        await press(app, pilot, "down", "space", "space")
        assert len(app.chosen) >= 1 and f"{len(app.chosen)} marked" in str(tree.border_title)
        before = dict(app.chosen)
        await press(app, pilot, "u")
        assert app.chosen == {} and "marked" not in str(tree.border_title)
        await press(app, pilot, "u")
        assert app.chosen == before

    run(path, steps)


def test_taking_one_out_of_an_unmarked_heatmap_marks_nothing(path):
    async def steps(app, pilot):
        await to_heatmap_row(app, pilot, "ft_c")
        await press(app, pilot, "x")
        assert "ft_c" not in [m.name for m in app.screen.query_one(Heatmap).table.models]
        assert app.chosen == {}

    run(path, steps)


def test_scores_are_those_of_the_view(path):
    async def steps(app, pilot):
        tree = app.screen.query_one(ModelTree)
        await type_in(app, pilot, app.screen.query_one(FilterInput), "score>=0.6")
        with Store(path).reading() as con:
            wanted = con.execute("select model from model_scores where score >= 0.6 order by 1").fetchall()
        assert sorted(node.data.name for node in tree.root.children) == [name for (name,) in wanted] != []
        tree.sort_by("score")
        await settled(app, pilot)
        with Store(path).reading() as con:
            scores = dict(con.execute("select model, score from model_scores").fetchall())
        shown = [(node.data.name, node.data.score) for node in tree.root.children]
        assert shown == sorted(shown, key=lambda one: -one[1]) and all(
            scores[name] == score for name, score in shown
        )

    run(path, steps)
