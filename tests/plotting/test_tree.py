"""Family trees: every model, every edge, and their places."""

from itertools import pairwise

import networkx as nx
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from plotted import texts

from kinbase.errors import KinbaseError, UsageError
from kinbase.plotting import layout, tree


def test_tree_draws_every_model_and_every_edge_but_the_bases_of_merges(published, db):
    db.link("merge_ab", ["ft_a", "ft_b"], method="linear", weights=[0.6, 0.4])
    plot = db.plot("tree", "base")
    points = [spot for spot in plot.spots if len(spot.x) == 1]
    edges = [spot.lines[0] for spot in plot.spots if len(spot.x) > 1]
    assert sorted(spot.lines[0] for spot in points) == ["base", "ft_a", "ft_b", "ft_c", "merge_ab"]
    assert sorted(edges) == [
        "base → ft_a",
        "base → ft_b",
        "base → ft_c",
        "ft_a → merge_ab",
        "ft_b → merge_ab",
    ]
    place = {spot.lines[0]: spot.x[0] for spot in points}
    assert place["base"] < place["ft_a"] == place["ft_b"] == place["ft_c"] < place["merge_ab"]
    merge = next(spot for spot in points if spot.lines[0] == "merge_ab")
    assert "from ft_a 0.6" in merge.lines and "from ft_b 0.4" in merge.lines
    drawn = texts(plot)
    assert "0.6" in drawn and "0.4" in drawn and "merge linear" in drawn

    plot = published.plot("tree", "YamshadowExp28")
    assert sum(len(spot.x) == 1 for spot in plot.spots) == 29  # its 28 ancestors and itself


def test_the_nearest_descendants_are_drawn_where_all_are_too_many(published, monkeypatch):
    monkeypatch.setattr(tree, "MOST", 3)
    name = "Marcoroni-7B-v3"
    with pytest.raises(KinbaseError, match="--nearest"):
        published.plot("tree", name)
    with pytest.raises(UsageError, match="from 1 to 2"):
        published.plot("tree", name, nearest=3)
    monkeypatch.undo()
    drawn = published.tree(name, up=True, down=True, most=2)
    assert drawn.graph["is_part"]
    published.plot("tree", name, nearest=2)


def test_tree_tells_scores_and_circles(published, empty):
    plot = published.plot("tree", "model-5-1")
    node = next(spot for spot in plot.spots if spot.lines[0] == "model-5-1")
    assert "score 69.1300" in node.lines  # as the paper prints it
    with empty.store.writing() as con:
        con.execute("insert into raw.model (model_id, name) values (1, 'a'), (2, 'b')")
        con.execute(
            "insert into raw.claim (child_id, parent_id, relation, evidence) "
            "values (1, 2, 'finetune', 'card'), (2, 1, 'finetune', 'card')"
        )
    assert any("in a circle" in text for text in texts(empty.plot("tree", "a")))


@st.composite
def graphs(draw):
    number = draw(st.integers(2, 25))
    pairs = [(a, b) for a in range(number) for b in range(a + 1, number)]
    edges = draw(st.lists(st.sampled_from(pairs), max_size=60))
    graph = nx.DiGraph()
    graph.add_nodes_from(f"n{i}" for i in range(number))
    graph.add_edges_from((f"n{a}", f"n{b}") for a, b in edges)
    return graph


@settings(max_examples=60, deadline=None)
@given(graphs())
def test_every_layout_keeps_order_and_distance(graph):
    found = layout.layered(graph)
    column = {node: number for number, nodes in enumerate(found.columns) for node in nodes}
    assert set(column) == set(graph) and set(found.ways) == set(graph.edges)
    for (parent, child), way in found.ways.items():
        # One station a column, from the parent's to the child's.
        assert [station for station, _ in way] == list(range(column[parent], column[child] + 1))
        assert way[0][1] == found.height[parent] and way[-1][1] == found.height[child]
    for nodes in found.columns:
        heights = sorted(found.height[node] for node in nodes)
        assert all(b - a > 1 - 1e-9 for a, b in pairwise(heights))
    assert min(found.height.values()) >= 0


def test_a_tree_is_drawn_without_crossings_and_parents_amid_their_children():
    found = layout.layered(nx.balanced_tree(3, 3, create_using=nx.DiGraph))
    assert found.crossings == 0
    for parent in range(13):
        children = [found.height[3 * parent + i] for i in (1, 2, 3)]
        assert found.height[parent] == pytest.approx(np.mean(children), abs=1e-6)


def test_who_has_no_known_past_stands_beside_the_first_child():
    graph = nx.DiGraph([("base", "a"), ("a", "b"), ("b", "c"), ("stranger", "c"), ("base", "c")])
    columns = layout.columns_of(graph)
    assert columns == {"base": 0, "a": 1, "b": 2, "stranger": 2, "c": 3}
