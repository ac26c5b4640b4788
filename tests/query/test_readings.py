"""One value a model and benchmark, of one test that all of them took: what tables of models and suggestions go by."""

from dataclasses import replace

from kinbase.checkpoint import Score
from kinbase.query.scores import readings
from kinbase.store.scores import put_scores


def found(store, *scores):
    with store.writing() as con:
        put_scores(con, None, scores)
    with store.reading() as con:
        return readings(con, sorted({str(score.model) for score in scores}))


def test_a_benchmark_is_the_test_that_most_models_took(empty):
    five = [Score("x", "acc", v, m, n_shot=5, source="s") for m, v in {"a": 0.5, "b": 0.6, "c": 0.7}.items()]
    others = [
        replace(five[0], n_shot=0, value=0.9),
        replace(five[0], model="d", metric="acc_norm", value=0.9),
        replace(five[0], model="d", template="chat", value=0.9),
    ]
    assert found(empty.store, *five, *others) == [("a", "x", 0.5), ("b", "x", 0.6), ("c", "x", 0.7)]


def test_of_two_metrics_that_all_took_one_counts(empty):
    both = [Score("x", metric, v, "a", source="s") for metric, v in {"acc": 0.5, "acc_norm": 0.6}.items()]
    assert found(empty.store, *both) == [("a", "x", 0.6)]


def test_fractions_are_percent_where_others_are(empty):
    cards = [Score("x", "acc", v, m, source="card") for m, v in {"a": 0.5, "b": 60.0}.items()]
    assert found(empty.store, *cards) == [("a", "x", 50.0), ("b", "x", 60.0)]


def test_averages_of_two_sources_do_not_meet(empty):
    own = [Score("average", "acc", v, m, source="s") for m, v in {"a": 50.0, "b": 60.0}.items()]
    assert found(empty.store, *own, Score("average", "acc", 99.0, "c", source="t")) == [
        ("a", "average", 50.0),
        ("b", "average", 60.0),
    ]
