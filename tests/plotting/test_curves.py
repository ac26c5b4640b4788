"""Kinship by layer, evolution by generation, gains over kinship."""

import numpy as np
import pytest
from plotted import put_run, texts

from kinbase.errors import KinbaseError
from kinbase.plotting import gains

# Layers.


def test_layers_draw_the_view(db):
    plot = db.plot("layers", "ft_a", "ft_b", metric="cs")
    rows = db.sql("from kinship_by_layer where model_a = 'ft_a' and model_b = 'ft_b'").rows(named=True)
    assert len(plot.spots) == len(rows)
    lines = {line.get_label(): line for line in plot.axes[0].lines}
    for block, word in (("attn", "attention"), ("mlp", "mlp"), ("norm", "norms")):
        expected = sorted(
            (r["layer"], r["cs"]) for r in rows if r["block"] == block and r["layer"] is not None
        )
        assert list(zip(*lines[word].get_data(), strict=True)) == expected
    assert [tick.get_text() for tick in plot.axes[0].get_xticklabels()] == [
        "0",
        "1",
        "embedding",
        "norms",
        "head",
    ]
    ((whole,),) = db.sql("select cs from kinship where model_a = 'ft_a' and model_b = 'ft_b'").rows()
    assert f"all tensors  {whole:.3f}" in texts(plot)


# Evolution.


def test_evolution_draws_best_mean_and_kinship_by_generation(db):
    with db.store.writing() as con:
        put_run(con, "one", [2, 3, 4])
        put_run(con, "two", [2, 3, 4], scores=((0.1,), (0.2,)))
    plot = db.plot("evolution", "one")
    scores, kinship = plot.axes[:2]
    lines = {line.get_linestyle(): line for line in scores.lines if line.get_linestyle() != "None"}
    assert list(lines["-"].get_ydata()) == [0.6, 0.7, 0.75]  # the best so far
    assert list(lines[":"].get_ydata()) == pytest.approx([0.55, 0.7, 0.7])  # of each generation
    assert list(kinship.lines[0].get_ydata()) == pytest.approx([0.1, 0.4, 0.7])
    assert any("one: best one 2-1 with 0.750 in generation 2 of 2" in text for text in texts(plot))
    kept = [spot for spot in plot.spots if spot.axes is scores]
    assert len(kept) == 3  # children; those it started from are none
    both = db.plot("evolution")
    assert {"one", "two"} <= set(texts(both))
    with pytest.raises(KinbaseError, match="no run three: there are one, two"):
        db.plot("evolution", "three")


# Gains.


def test_gains_give_the_papers_correlation(published):
    """Path 1, PCC against the signed gain: r = -0.50, p = 0.063 in the paper's table 2; its own tables give -0.511, 0.062."""
    plot = published.plot("gains", source="Model Kinship, path 1")
    assert sum(len(spot.x) == 1 for spot in plot.spots) == 14
    x, y = (np.array([getattr(s, axis)[0] for s in plot.spots]) for axis in "xy")
    found = gains.fit(x, y)
    assert (round(found.r, 3), round(found.p, 3), found.n) == (-0.511, 0.062, 14)
    (told,) = [text for text in texts(plot) if text.startswith("r = ")]
    assert told.startswith("r = -0.511, n = 14, p = 0.062 (two-sided")
    # Printed gains are drawn hollow.
    assert plot.axes[0].lines[0].get_markerfacecolor() == "white"


def test_the_fit_is_that_of_least_squares():
    x, y = np.array([0.0, 1.0, 2.0, 4.0]), np.array([1.0, 2.9, 5.1, 8.8])
    found = gains.fit(x, y)
    slope, intercept = np.polyfit(x, y, 1)
    assert (found.slope, found.intercept) == pytest.approx((slope, intercept))
    assert found.r == pytest.approx(np.corrcoef(x, y)[0, 1])
    rs = [np.corrcoef(np.delete(x, i), np.delete(y, i))[0, 1] for i in range(4)]
    assert (found.least, found.most) == pytest.approx((min(rs), max(rs)))
    assert gains.fit(x[:2], y[:2]) is None and gains.fit(np.ones(4), y) is None


def test_gains_of_scores_here(db):
    db.link("merge_ab", ["ft_a", "ft_b"])
    with db.store.writing() as con:
        con.execute(
            "insert into raw.score (model_id, benchmark, metric, value) select model_id, 'mmlu', 'acc', "
            "case name when 'merge_ab' then 0.65 when 'ft_a' then 0.5 else 0.6 end from raw.model where name <> 'base'"
        )
    plot = db.plot("gains", "base")
    (spot,) = plot.spots
    ((pcc,),) = db.sql("select pcc from kinship where model_a = 'ft_a' and model_b = 'ft_b'").rows()
    assert (spot.x[0], spot.y[0]) == pytest.approx((pcc, 0.65 - 0.55))
    assert "too few merges, or too alike, for a correlation" in texts(plot)
