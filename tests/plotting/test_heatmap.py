"""Heatmaps: what is drawn is what the views say."""

from itertools import pairwise

import numpy as np
import pytest
from plotted import texts

from kinbase.errors import KinbaseError, UsageError
from kinbase.plotting import heatmap
from kinbase.query.clustering import cluster


def square(plot):
    """The cells of a heatmap: float64[n, n], NaN where nothing is drawn."""
    return np.ma.filled(plot.axes[0].images[0].get_array().astype(float), np.nan)


def test_heatmap_draws_the_values_of_the_view_in_the_order_of_its_rows(db):
    plot = db.plot("heatmap")
    names = list(plot.grid.names)
    assert sorted(names) == ["ft_a", "ft_b", "ft_c", "merge_ab"]
    cells = square(plot)
    for a, b, pcc in db.kinship().select("model_a", "model_b", "pcc").iter_rows():
        i, j = names.index(a), names.index(b)
        assert cells[i, j] == cells[j, i] == pcc
        assert plot.grid.texts[min(i, j), max(i, j)] == f"pcc {pcc:.4f} (exact)"
    # ft_c is akin to nobody: it stands at an end, and the merge between or beside its parents.
    assert names.index("ft_c") in (0, 3)
    drawn = texts(plot)
    for number, name in enumerate(names, 1):
        assert f"{number}  {name}" in drawn
    assert "6 of 6 pairs known (exact); ordered by average linkage of PCC" in drawn


@pytest.mark.parametrize("metric", ["pcc", "cs", "ed"])
def test_heatmap_of_a_block_and_of_a_layer(db, metric):
    plot = db.plot("heatmap", "ft_a", "ft_b", "ft_c", metric=metric, block="attn")
    names, cells = plot.grid.names, square(plot)
    rows = db.sql(f"select model_a, model_b, {metric} from kinship_by_block where block = 'attn'").rows()
    for a, b, value in rows:
        if {a, b} <= set(names):
            assert cells[names.index(a), names.index(b)] == pytest.approx(value, rel=1e-12)
    layer = db.plot("heatmap", "ft_a", "ft_b", metric=metric, block="mlp", layer=1)
    ((value,),) = db.sql(
        f"select {metric} from kinship_by_layer where model_a = 'ft_a' and model_b = 'ft_b' and block = 'mlp' and layer = 1"
    ).rows()
    assert square(layer)[0, 1] == pytest.approx(value, rel=1e-12)


def test_pairs_that_are_not_known_are_no_zeros(published):
    plot = published.plot("heatmap")
    cells = square(plot)
    known = published.kinship().filter(~published.kinship()["pcc"].is_null()).height
    assert np.isnan(cells).sum() == cells.size - len(cells) - 2 * known
    assert len(plot.grid.texts) == known
    drawn = texts(plot)
    assert "not known" in drawn and any("taken as unrelated" in text for text in drawn)


def test_one_model_is_drawn_with_its_kin_and_a_base_with_its_family(db, published):
    assert set(db.plot("heatmap", "base").grid.names) == {"ft_a", "ft_b", "ft_c", "merge_ab"}
    names = published.plot("heatmap", "WizardLM-2").grid.names
    assert set(names) == {"WizardLM-2", *published.nearest_kin("WizardLM-2")["model"]}


def test_the_nearest_are_drawn_where_all_are_too_many(db, monkeypatch):
    moved = db.sql("select model, sqrt(sum(l2 * l2)) as l2 from deltas group by model order by l2")[
        "model"
    ].to_list()
    assert set(db.plot("heatmap", "base", nearest=2).grid.names) == set(moved[:2])
    kin = db.nearest_kin("ft_a", 2)["model"].to_list()
    assert set(db.plot("heatmap", "ft_a", nearest=2).grid.names) == {"ft_a", *kin}
    with pytest.raises(UsageError, match="of one model"):
        db.plot("heatmap", "ft_a", "ft_b", nearest=2)
    monkeypatch.setattr(heatmap, "MOST", 3)
    with pytest.raises(KinbaseError, match=r"more than 3 models .* --nearest 1"):
        db.plot("heatmap", "base")
    with pytest.raises(UsageError, match="from 2 to 3"):
        db.plot("heatmap", "base", nearest=4)


def test_clusters_stand_together_and_the_unknown_apart():
    similar = np.full((7, 7), np.nan)
    for group in ((0, 2, 4), (1, 3, 5)):
        for i in group:
            for j in group:
                similar[i, j] = 0.9
    found = cluster(similar)
    order, links = found.order, found.links
    places = [order.index(i) for i in range(7)]
    for group in ((0, 2, 4), (1, 3, 5)):
        assert max(places[i] for i in group) - min(places[i] for i in group) == 2
    assert links.shape == (6, 4)


def test_two_hundred_models_fit(empty):
    with empty.store.writing() as con:
        con.execute(
            "insert into raw.model (model_id, name) select 1000 + i, 'lab/model-' || i from range(200) t(i)"
        )
        con.execute(
            "insert into raw.estimate (a_id, b_id, method, pcc) select 1000 + a, 1000 + b, 'reported', "
            "if(a % 4 = b % 4, 0.9, 0.1) from range(200) x(a), range(200) y(b) where a < b"
        )
    plot = empty.plot("heatmap")
    axes = plot.axes[0]
    rows = [t for t in axes.texts if "lab/model-" in t.get_text()]
    assert len(rows) == 200
    # A row is higher than its letters: labels do not run into each other.
    row = plot.get_size_inches()[1] * axes.get_position().height / 200 * 72
    assert row > max(text.get_fontsize() for text in rows)
    groups = [int(name.rpartition("-")[2]) % 4 for name in plot.grid.names]
    assert sum(a != b for a, b in pairwise(groups)) == 3
