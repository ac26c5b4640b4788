"""The families screen: the tree, its filter, the details of a model."""

import pytest
from driven import names
from terminal import press, run, screen_text, settled, type_in

from kinbase.query import filters
from kinbase.store import Store
from kinbase.tui.screens.families import FilterInput
from kinbase.tui.widgets.details import DetailsPane
from kinbase.tui.widgets.model_list import ModelList
from kinbase.tui.widgets.model_tree import ModelTree
from kinbase.tui.widgets.notice import Notice


def test_first_screen_shows_bases_and_the_details_of_the_first(path):
    async def steps(app, pilot):
        tree = app.screen.query_one(ModelTree)
        assert names(tree) == ["base"]
        assert tree.root.children[0].data.beneath == 4
        assert app.current.name == "base"
        assert app.screen.query_one(DetailsPane).details.members == 4

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


def test_details_tells_claims_measured_parents_gains_kin_and_layers(path):
    async def steps(app, pilot):
        await type_in(app, pilot, app.screen.query_one(FilterInput), "merge")
        pane = app.screen.query_one(DetailsPane)
        found = pane.details
        assert found.model.name == "merge_ab"
        assert {(c.parent.name, c.evidence) for c in found.parents if c.relation == "merge"} == {
            ("ft_a", "config"), ("ft_b", "config"), ("ft_a", "weights")}  # fmt: skip
        (score,) = found.scores
        assert score.gain == pytest.approx(0.65 - (0.5 + 0.6) / 2)
        nearest, kinship = found.kin[0]
        assert nearest.name == "ft_a" and kinship.method == "exact"
        assert {block for _, block, _ in found.layers} >= {"attn", "mlp"}
        text = screen_text(app)
        assert "measured" in text and "claimed: config" in text and "+0.1000" in text
        # A parent is opened from its row, and Backspace leads back.
        parents = app.screen.query_one("#parents", ModelList)
        parents.focus()
        parents.highlighted = [m.name for m in parents.models].index("ft_b")
        await press(app, pilot, "enter")
        assert app.current.name == "ft_b" and pane.details.model.name == "ft_b"
        await press(app, pilot, "backspace")
        assert pane.details.model.name == "merge_ab"

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
        wanted = filters.parse(typed)
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
        assert names(tree) == ["merge_ab", "ft_a", "base"]
        assert (
            tree.under_cursor.name == app.current.name == "base"
        )  # the order changed, the current model did not
        tree.focus()
        await press(app, pilot, "home", "space", "space")
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
