"""The kinship screen: the heatmap and its models."""

import numpy as np
import pytest
from terminal import press, run, settled, type_in
from textual.widgets import Input, Static

from kinbase.query.clustering import cluster
from kinbase.query.models import Model
from kinbase.store import Store
from kinbase.tui.widgets.choice import Choice
from kinbase.tui.widgets.heatmap import Heatmap


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
    ordered = cluster(similar).order
    assert sorted(ordered) == list(range(6))
    assert {frozenset(ordered[:3]), frozenset(ordered[3:])} == {frozenset((0, 2, 4)), frozenset((1, 3, 5))}
