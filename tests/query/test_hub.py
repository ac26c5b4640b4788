"""A model of thousands of children: what is cut says so, and what is asked of one model is that of the views."""

import networkx as nx
import pytest

from kinbase.cli.pages import CHILDREN
from kinbase.cli.show import DRAWN
from kinbase.errors import KinbaseError
from kinbase.query import graph

MANY = DRAWN + 500


@pytest.fixture
def hub(empty):
    """A hub, its many children, a chain of grandchildren below the last of them, and a stranger."""
    with empty.store.writing() as con:
        con.execute(
            "insert into raw.model (model_id, name, digest) select i, if(i = 0, 'hub', 'child-' || i), i::varchar "
            f"from range({MANY} + 4) t(i)"
        )
        con.execute(
            "insert into raw.claim (child_id, parent_id, relation, evidence, source) "
            f"select i, if(i <= {MANY}, 0, i - 1), 'finetune', 'card', 'made' from range(1, {MANY} + 3) t(i)"
        )
        # One of which no parent is claimed but by a report: it descends from its base.
        con.execute(f"update raw.model set base_id = 1 where model_id = {MANY} + 3")
    return empty


def test_a_tree_and_a_page_say_what_they_leave_out(hub, inline_cli):
    drawn = inline_cli("tree", "hub")
    assert drawn.returncode == 0 and len(drawn.stdout.splitlines()) == DRAWN + 1
    assert (
        drawn.stderr
        == f"only the nearest {DRAWN:,} descendants are drawn: --all draws all, -f csv lists them\n"
    )
    everything = inline_cli("tree", "hub", "--all")
    assert everything.stderr == "" and len(everything.stdout.splitlines()) == MANY + 4
    assert len(inline_cli("tree", "hub", "-f", "csv").stdout.splitlines()) == MANY + 3 + 1
    page = inline_cli("show", "hub").stdout.splitlines()
    assert sum("finetune" in line for line in page) == CHILDREN
    assert page[-1] == "  and more: kinbase sql \"from lineage where parent = 'hub'\" lists them all"
    assert len(hub.show("hub")["children"][0]) == MANY
    assert inline_cli("tree", f"child-{MANY}").stderr == ""


def test_the_nearest_descendants_are_kept(hub):
    whole = hub.tree("hub")
    assert not whole.graph["is_part"] and len(whole) == MANY + 4
    assert not hub.tree("hub", most=MANY + 3).graph["is_part"]
    part = hub.tree("hub", most=MANY + 1)
    assert part.graph["is_part"] and len(part) == MANY + 2
    far = max(nx.single_source_shortest_path_length(part, "hub").values())
    assert far == 2 and len(hub.tree("hub", depth=1)) == MANY + 1
    assert set(hub.tree("hub", down=False)) == {"hub"}
    assert set(hub.tree(f"child-{MANY + 3}", most=10)) == {"hub", "child-1", f"child-{MANY + 3}"}


def test_edges_around_a_model_are_those_of_the_view(published):
    rows = published.sql("select parent, child, relation, evidence from lineage").rows()
    for model in ("DareBeagle-7B", "mistralai/Mistral-7B-v0.1", "model-3-1"):
        found = published.tree(model)
        expected = {row for row in rows if row[0] in found and row[1] in found}
        told = {
            (p, c, claim["relation"], claim["evidence"])
            for p, c, claims in found.edges(data="claims")
            for claim in claims
        }
        assert told == expected
        near = set(published.ancestors(model)["model"]) | set(published.descendants(model)["model"])
        assert set(found) == near | {model} == set(published.tree(model, most=10_000))


def test_a_graph_of_some_models_is_that_of_all_around_them(published):
    with published.store.reading() as con:
        everything, some = graph.whole(con), graph.whole(con, ["model-3-1"])
        near = nx.ancestors(everything, "model-3-1") | nx.descendants(everything, "model-3-1") | {"model-3-1"}
        assert set(some) == near
        assert nx.utils.graphs_equal(some, everything.subgraph(near))


def test_a_family_is_what_the_view_says(db, published):
    for base in (db, published):
        models = base.sql("from models order by name")
        for name, home in models.select("name", "family").iter_rows():
            expected = models.filter(models["family"] == home) if home else models.clear()
            assert base.sql(f"from family('{name}')").equals(expected)


def test_a_misspelt_name_among_very_many_finds_the_near_ones(hub):
    with pytest.raises(KinbaseError, match=r"did you mean child-1999, "):
        hub.show("chlid-1999")
    with pytest.raises(KinbaseError, match="did you mean hub"):
        hub.show("hubb")
