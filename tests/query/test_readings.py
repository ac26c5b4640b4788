"""One value a model and benchmark, of one test that all of them took: what tables of models and suggestions go by."""

from dataclasses import replace

import pytest

from kinbase.checkpoint import Edge, Score
from kinbase.cli.pages import model_page
from kinbase.query.details import details
from kinbase.query.scores import readings
from kinbase.store.lineage import put_edges
from kinbase.store.names import named_all
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


def test_the_page_of_a_model_says_what_each_score_is_of(empty):
    tests = [Score("x", "acc", 0.5, "a"), Score("x", "acc", 0.6, "a", split="test@v2", template="version 2")]
    with empty.store.writing() as con:
        put_scores(con, None, tests)
    lines = list(model_page(empty.show("a").row(0, named=True)))
    (head,) = [line for line in lines if "benchmark" in line]
    assert head.split() == ["benchmark", "metric", "value", "stderr", "n_shot", "split", "template", "source"]
    assert any("test@v2" in line and "version 2" in line for line in lines)
    with empty.store.writing() as con:
        put_scores(con, None, [Score("x", "acc", 0.5, "b")])
    assert not any("template" in line for line in model_page(empty.show("b").row(0, named=True)))


@pytest.mark.parametrize(("source", "gain"), [("card", None), ("lm_eval", 71.5)])
def test_a_gain_is_over_parents_on_one_scale(empty, source, gain):
    """Of one program 72 and 0.5 are of one scale, of two cards they are not."""
    with empty.store.writing() as con:
        put_edges(con, "child", "f", [Edge("a", "finetune", "card")])
        put_scores(
            con, None, [Score("x", "acc", v, m, source=source) for m, v in {"a": 0.5, "child": 72.0}.items()]
        )
        (child,) = named_all(con, ["child"]).values()
    with empty.store.reading() as con:
        (found,) = details(con, child).scores
    assert found.gain == gain


@pytest.mark.parametrize(("theirs", "gain"), [("s", 10.0), ("t", None)])
def test_a_gain_in_an_average_is_of_one_source(empty, theirs, gain):
    """What two sources average is not said, so nothing follows from the difference."""
    with empty.store.writing() as con:
        put_edges(con, "child", "f", [Edge("a", "finetune", "card")])
        scores = [
            Score("average", "acc", 50.0, "a", source=theirs),
            Score("average", "acc", 60.0, "child", source="s"),
        ]
        put_scores(con, None, scores)
        (child,) = named_all(con, ["child"]).values()
    with empty.store.reading() as con:
        (found,) = details(con, child).scores
    assert found.gain == gain
