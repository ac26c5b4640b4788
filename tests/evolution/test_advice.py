"""Predictions from Gram matrices against weights that were really merged; rules of stopping against published paths."""

import json

import numpy as np
import polars as pl
import pytest
from families import family_weights, write_safetensors
from hypothesis import given, settings
from hypothesis import strategies as st

from kinbase.errors import KinbaseError
from kinbase.evolution import suggest
from kinbase.evolution.replay import COLUMNS, replay
from kinbase.evolution.suggest import Step, predict, predict_from_kinship, saturation
from kinbase.query.history import Generation


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), count=st.integers(2, 6), shift=st.floats(-2, 2))
def test_prediction_is_what_merging_gives(seed, count, shift):
    rng = np.random.default_rng(seed)
    shared = rng.standard_normal(50)
    deltas = rng.uniform(0.5, 3, (count, 1)) * (
        rng.standard_normal((count, 50)) + rng.uniform(0, 2) * shared + shift
    )
    gram = deltas @ deltas.T
    centred = gram - np.outer(deltas.sum(1), deltas.sum(1)) / deltas.shape[1]
    child = (deltas[0] + deltas[1]) / 2

    norm, kinship = predict(gram, centred, 0, 1)

    assert norm == pytest.approx(np.linalg.norm(child), rel=1e-9)
    # Taking out the means cancels digits: 50 elements, means of a few standard deviations.
    assert kinship == pytest.approx(np.corrcoef(child, deltas)[0, 1:], abs=1e-9)


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 2**32 - 1))
def test_kinship_alone_is_enough_for_equal_lengths(seed):
    rng = np.random.default_rng(seed)
    deltas = rng.standard_normal((4, 30))
    deltas -= deltas.mean(axis=1, keepdims=True)
    deltas /= np.linalg.norm(deltas, axis=1, keepdims=True)
    child = (deltas[0] + deltas[1]) / 2
    found = predict_from_kinship(np.corrcoef(deltas), 0, 1)
    assert found == pytest.approx(np.corrcoef(child, deltas)[0, 1:], abs=1e-9)


def test_a_suggested_child_is_what_was_predicted(db, tmp_path):
    rows, _ = db.suggest()
    weights = family_weights()
    (row,) = rows.filter(parent_a="ft_a", parent_b="ft_c").to_dicts()
    child = {
        name: (weights["ft_a"][name].double() + weights["ft_c"][name].double()) / 2
        for name in weights["ft_a"]
    }
    db.import_(
        [write_safetensors(tmp_path / "child" / "model.safetensors", child)], name="child", base="base"
    )
    real = dict(db.nearest_kin("child", 10).select("model", "pcc").iter_rows())
    # The mean of two bf16 numbers is exact in float64, so is its delta: only the sums' order differs.
    assert real[row["nearest"]] == pytest.approx(row["predicted_kinship"], abs=1e-9)
    assert max(real.values()) == pytest.approx(row["predicted_kinship"], abs=1e-9)
    length = db.sql(
        "select sqrt(sum(sumsq)) from raw.delta join raw.model using (model_id) where name = 'child'"
    ).item()
    assert length == pytest.approx(row["norm"], rel=1e-9)
    assert row["basis"] == "exact Gram"


def test_pairs_that_were_made_are_not_suggested(db):
    pairs = {frozenset(pair) for pair in db.suggest(k=100)[0].select("parent_a", "parent_b").iter_rows()}
    assert frozenset(("ft_a", "ft_b")) in pairs  # nobody said whose merge merge_ab is
    db.link("merge_ab", ["ft_a", "ft_b"], method="linear")
    pairs = {frozenset(pair) for pair in db.suggest(k=100)[0].select("parent_a", "parent_b").iter_rows()}
    assert pairs == {
        frozenset(pair) for pair in [("ft_a", "ft_c"), ("ft_b", "ft_c"), ("ft_c", "merge_ab")]
    }  # a child and its own parent lie on one line already


def test_near_twins_come_last_and_say_so(db, tmp_path):
    weights = family_weights()
    twin = {
        name: weight.double() + 1e-6 * weight.double().abs().mean()
        for name, weight in weights["ft_a"].items()
    }
    db.import_([write_safetensors(tmp_path / "twin" / "model.safetensors", twin)], name="twin", base="base")
    rows = db.suggest(k=100)[0].to_dicts()
    assert {rows[-1]["parent_a"], rows[-1]["parent_b"]} == {"ft_a", "twin"}
    assert rows[-1]["predicted_kinship"] > suggest.TWIN
    assert rows[-1]["reason"].startswith("not worth making: a near twin of")


def test_scores_decide_the_order_and_the_room(db, tmp_path):
    table = "model,benchmark,metric,value\n" + "".join(
        f"{model},{task},acc,{value}\n"
        for model, values in {"ft_a": (0.9, 0.1), "ft_b": (0.5, 0.5), "ft_c": (0.1, 0.9)}.items()
        for task, value in zip(("x", "y"), values, strict=True)
    )
    (tmp_path / "scores.csv").write_text(table)
    db.import_([tmp_path / "scores.csv"])
    rows = db.suggest(k=1)[0].to_dicts()
    # Means are all 50; the best of ft_a and ft_c on each exercise is 90, of the others with ft_b at most 70.
    assert (rows[0]["parent_a"], rows[0]["parent_b"]) == ("ft_a", "ft_c")
    assert rows[0]["ceiling"] == pytest.approx(40)
    assert rows[0]["score_a"] == pytest.approx(50)


def test_the_published_family_is_advised_from_kinship_alone(published):
    rows, notes = published.suggest(k=3)
    assert set(rows["basis"]) == {"kinship alone, equal lengths assumed"}
    assert notes[0].startswith("saturation: the kinship of the 3 best")


@pytest.mark.parametrize(
    ("path", "rule", "after", "score", "lost", "saved", "merges"),
    [  # recomputed from the paper's tables: the literal rule and the one with patience 2, at 0.9
        ("path 1", "literal", 3, 75.15, -1.71, 11, 14),
        ("path 1", "sustained", 10, 76.67, -0.19, 4, 14),
        ("path-2", "literal", 8, 75.04, -1.82, 4, 12),
        ("path-2", "sustained", 11, 76.60, -0.26, 1, 12),
    ],
)
def test_the_published_paths(published, path, rule, after, score, lost, saved, merges):
    (row,) = published.replay(path).filter(rule=rule).to_dicts()
    assert (row["stops_after"], row["merges_saved"], row["merges"]) == (after, saved, merges)
    assert (row["score"], row["lost"]) == (pytest.approx(score), pytest.approx(lost))


def test_a_model_stands_for_the_merges_that_led_to_it(published):
    rows = published.replay("YamshadowExperiment28-7B")
    # From TurdusBeagle-7B on, whose parents are no merges, the chain of better parents is path 1.
    assert rows["generations"].to_list() == [12] * 4
    assert rows.filter(rule="sustained")["score"].item() == pytest.approx(76.67)


def test_a_name_that_is_no_run_is_refused(published):
    with pytest.raises(KinbaseError, match="no run, and no path"):
        published.replay("openchat/openchat-3.5-1210")


def generation(number, kinship=None, score=None, top=("a", "b"), top_kinship=None, merges=2):
    return Generation(number, merges, merges, kinship, kinship, score, score, top, top_kinship)


def test_each_rule_stops_where_its_words_say():
    history = [
        generation(1, 0.95, 60.0, ("a", "b"), 0.5),
        generation(2, 0.5, 70.0, ("a", "c"), 0.95),
        generation(3, 0.95, 75.0, ("a", "c"), 0.96),
        generation(4, 0.96, 80.0, ("d", "c"), 0.97),
        generation(5, 0.97, 81.0, ("d", "e"), 0.97),
    ]
    found = {row[0]: dict(zip(COLUMNS, row, strict=True)) for row in replay(history)}
    assert {rule: row["stops_after"] for rule, row in found.items()} == {
        "literal": 1, "sustained": 4, "top-k mean": 3, "unchanged top-k": 3,
    }  # fmt: skip
    assert found["top-k mean"]["lost"] == -6.0
    assert found["top-k mean"]["merges_saved"] == 4
    assert {row[1] for row in replay(history, threshold=0.99) if row[0] != "unchanged top-k"} == {None}
    assert next(row[1] for row in replay(history, patience=3) if row[0] == "sustained") == 5


def test_what_is_not_known_stops_nothing():
    rows = replay([generation(1, None, 60.0), generation(2, None, None, ())])
    assert [row[1] for row in rows] == [None] * 4
    assert "not known here" in rows[0][-1]


def step(generation, kinship):
    return Step(generation, 5, "a", 70.0, ("a", "b", "c"), kinship)


@pytest.mark.parametrize(
    ("kinships", "advice_"),
    [
        ((0.5, 0.95, 0.96), "(stop)"),
        ((0.5, 0.5, 0.96), "1 of 2"),
        ((0.95, 0.96, 0.5), "(go on)"),
        ((0.95, None), "not wholly known"),
    ],
)
def test_saturation_wants_patience(kinships, advice_):
    assert advice_ in saturation([step(i, kinship) for i, kinship in enumerate(kinships)])


def test_the_command(cli, family):
    cli("import", *family.values(), "--base", "base")
    for wrong in (["--threshold", "nan"], ["-k", "0"], ["--top", "1"]):
        assert cli("suggest", *wrong).returncode == 2
    found = cli("suggest", "-k", "2", "-f", "json")
    assert found.returncode == 0
    rows = json.loads(found.stdout)
    assert list(rows[0])[:4] == ["parent_a", "parent_b", "score_a", "score_b"]
    assert len(rows) == 2
    assert "heuristics" in found.stderr
    assert cli("suggest", "nobody").returncode == 1
    assert cli("suggest", "--top", "1").returncode == 2
    assert cli("suggest", "base", "--replay", "x").returncode == 2
    assert cli("suggest", "--replay", "x").returncode == 1


def test_two_families_have_to_be_chosen_from(db, tmp_path):
    other = {name: weight + 1 for name, weight in family_weights()["base"].items()}
    for number, name in enumerate(("other", "other_a", "other_b")):
        shifted = {k: w + number for k, w in other.items()}
        db.import_(
            [write_safetensors(tmp_path / name / "model.safetensors", shifted)], name=name, base="other"
        )
    with pytest.raises(KinbaseError, match="name one of"):
        db.suggest()
    assert isinstance(db.suggest("ft_a")[0], pl.DataFrame)
