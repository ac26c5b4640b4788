"""The lineage screen: the line of a model, and common ancestors."""

from terminal import press, run, settled, type_in
from textual.widgets import Input, Static

from kinbase.query import pedigree
from kinbase.query.details import ParentClaim
from kinbase.query.models import Model
from kinbase.store import Store
from kinbase.tui.screens.families import FilterInput
from kinbase.tui.screens.lineage import LineView
from kinbase.tui.screens.model_picker import ModelPicker
from kinbase.tui.widgets.model_tree import ModelTree


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
        child: [ParentClaim(Model(p, str(p)), "merge", None, None, "card", None) for p in parents]
        for child, parents in edges.items()
    }
    return pedigree.Pedigree([ids[0]], {i: str(i) for i in ids}, dict.fromkeys(ids, 0), claims)


def test_lines_of_descent_are_drawn_with_every_edge():
    rows = pedigree.draw(claims_of({2: [1], 3: [1], 4: [2, 3], 5: [4, 1]}))
    print("\n".join(row.rails + str(row.id) for row in rows))
    assert [(row.id, row.rails.rstrip()) for row in rows] == [
        (1, "●"),
        (2, "├─●"),
        (3, "├─│─●"),
        (4, "│ ╰─┴─●"),
        (5, "╰─●───╯"),
    ]


def test_a_circle_of_claims_is_drawn_once():
    rows = pedigree.draw(claims_of({1: [3], 2: [1], 3: [2]}))
    assert sorted(row.id for row in rows) == [1, 2, 3]
