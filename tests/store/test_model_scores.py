"""What a model's score is, what makes two results comparable, and which statement of a source counts."""

from datetime import datetime

import pytest

from kinbase.checkpoint import Edge, Score
from kinbase.store.lineage import put_edges
from kinbase.store.scores import put_scores


@pytest.fixture
def store(empty):
    return empty.store


def put(store, *scores, model=None):
    with store.writing() as con:
        put_scores(con, model, scores)


def rows(store, query):
    with store.reading() as con:
        return con.execute(query).fetchall()


def scored(store):
    return {
        model: (score, n)
        for model, score, n in rows(store, "select model, score, benchmarks from model_scores")
    }


def test_the_score_is_the_mean_over_what_all_compared_models_have(store):
    put(store, *(Score(b, "acc", v, m) for m, b, v in [
        ("a", "x", 40), ("a", "y", 60), ("a", "z", 99), ("b", "x", 50), ("b", "y", 30), ("c", "x", 10), ("c", "y", 20),
    ]))  # fmt: skip
    assert scored(store) == {"a": (50, 2), "b": (40, 2), "c": (15, 2)}


def test_a_model_that_took_other_tests_has_none_and_it_says_so(store):
    put(
        store,
        *(Score("x", "acc", v, m) for m, v in {"a": 40, "b": 50}.items()),
        Score("other", "acc", 90, "c"),
    )
    assert scored(store) == {"a": (40, 1), "b": (50, 1), "c": (None, 0)}
    ((source,),) = rows(store, "select source from model_scores where model = 'c'")
    assert source == "none: it lacks x (acc), which 2 models of its family took alike"


def test_a_printed_average_comes_first_and_a_gain_never(store):
    put(store, Score("x", "acc", 10, "a", source="s"), Score("average", "mean", 61, "a", source="s"),
        Score("average", "mean", 62, "b", source="s"), Score("average", "mean", 99, "a", source="of one"),
        Score("average", "gain", 5, "c", source="s"))  # fmt: skip
    assert scored(store) == {"a": (61, 1), "b": (62, 0)}


def test_fractions_and_percents_meet_on_one_scale(store):
    put(store, Score("x", "acc", 0.4, "a", source="here"), Score("x", "acc", 50, "b", source="there"),
        Score("y", "acc", 0.6, "a", source="here"), Score("y", "acc", 70, "b", source="there"))  # fmt: skip
    assert scored(store) == {"a": (50, 2), "b": (60, 2)}


def test_fractions_alone_stay_fractions(store):
    put(store, Score("x", "acc", 0.25, "a"), Score("y", "acc", 0.75, "a"))
    assert scored(store) == {"a": (0.5, 2)}


@pytest.mark.parametrize(
    "other", [{"n_shot": 0}, {"split": "test[:10]"}, {"template": "chat 1"}, {"metric": "acc_norm"}]
)
def test_results_measured_otherwise_are_not_compared(store, other):
    alike = {"metric": "acc", "n_shot": 5}
    put(store, *(Score("x", value=v, model=m, **alike) for m, v in {"a": 1, "b": 2}.items()),
        Score("x", value=99, model="c", **{**alike, **other}))  # fmt: skip
    assert scored(store)["c"] == (None, 0)
    assert scored(store)["b"] == (2, 1)


def test_what_less_is_better_of_is_no_part_of_a_score_nor_of_a_gain(store):
    with store.writing() as con:
        put_edges(con, "ab", "f", [Edge("a", "merge", "config"), Edge("b", "merge", "config")])
    for model, value in {"a": 20, "b": 30, "ab": 40}.items():
        put(store, Score("wiki", "word_perplexity,none", value, model), Score("asr", "wer", value, model),
            Score("odd", "strangeness", value, model, higher_is_better=False), Score("x", "acc", value, model))  # fmt: skip
    assert scored(store) == {"a": (20, 1), "b": (30, 1), "ab": (40, 1)}
    assert rows(store, "select benchmark, gain from merge_gains order by 1") == [("average", 15), ("x", 15)]


def test_a_scale_of_its_own_is_not_averaged_with_percents(store):
    for model, value in {"a": 40, "b": 60}.items():
        put(store, Score("arena", "elo", 1000 + value, model), Score("MT-Bench", "score", value / 10, model),
            Score("x", "acc", value, model))  # fmt: skip
    assert scored(store) == {"a": (40, 1), "b": (60, 1)}


def test_the_direction_is_the_files_or_else_the_metrics(store):
    put(store, *(Score("x", metric, 1, "a") for metric in ("acc_norm", "bleu", "ter", "byte_perplexity", "vibes")),
        Score("x", "exact_match", 1, "b", higher_is_better=False))  # fmt: skip
    known = dict(rows(store, "select metric, higher_is_better from scores"))
    assert known == {"acc_norm": True, "bleu": True, "ter": False, "byte_perplexity": False, "vibes": None,
                     "exact_match": False}  # fmt: skip


def test_a_score_can_be_set_back(store):
    for value in (61.5, 71.5, 61.5, 61.5):
        put(store, Score("x", "acc", value, "a", source="user"))
    assert rows(store, "select value from scores") == [(61.5,)]
    assert len(rows(store, "from scores_all")) == 3  # what was said twice in a row is there once


def test_the_later_test_counts_whenever_it_came(store):
    new, old = datetime(2025, 2, 1), datetime(2025, 1, 1)
    for when, value in ((new, 2), (old, 1), (new, 2), (old, 1)):
        put(store, Score("x", "acc", value, "a", source="s", evaluated_at=when))
    assert rows(store, "select value from scores") == [(2,)]
    assert len(rows(store, "from scores_all")) == 2


def test_of_one_import_the_last_statement_counts(store):
    put(store, *(Score("x", "acc", value, "a", source="s") for value in (61.5, 71.5, 61.5)))
    assert rows(store, "select value from scores_all") == [(61.5,)]


def test_families_are_compared_among_themselves(store):
    with store.writing() as con:
        for child, base in {"a": "p", "b": "p", "c": "q", "d": "q"}.items():
            put_edges(con, child, child, [Edge(base, "base", "config")])
    put(
        store,
        *(
            Score(b, "acc", v, m)
            for m, b, v in [("a", "x", 1), ("b", "x", 2), ("p", "x", 3), ("c", "y", 4), ("d", "y", 5)]
        ),
    )
    assert scored(store) == {"a": (1, 1), "b": (2, 1), "p": (3, 1), "c": (4, 1), "d": (5, 1)}


def merged(store, *scores):
    with store.writing() as con:
        put_edges(con, "child", "f", [Edge(parent, "merge", "config") for parent in ("a", "b")])
        put_scores(con, None, scores)
    return dict(rows(store, "select benchmark, round(gain, 6) from merge_gains"))


@pytest.mark.parametrize("source", ["card", "card (2)", "eval_results", "https://example.org/results"])
def test_cards_with_fractions_and_cards_with_percent_do_not_meet(store, source):
    """A card is its author's: that two say `card` does not make their scale one."""
    values = {"a": 0.70, "b": 0.68, "child": 72.0}
    scores = [Score("x", "acc", value, model, source=source) for model, value in values.items()]
    assert merged(store, *scores) == {"x": None, "average": None}
    assert scored(store) == {"a": (70, 1), "b": (68, 1), "child": (72, 1)}


def test_a_program_has_one_scale_for_each_metric(store):
    """Percents of a base may be below 1, and mean one in a hundred; a score of BLEU says nothing of accuracies beside it."""
    few = {"a": 0.9, "b": 0.5, "child": 40.0}
    scores = [Score("x", "acc", value, model, source="table") for model, value in few.items()]
    scores += [Score("y", "acc", value / 100, model, source="table") for model, value in few.items()]
    scores += [Score("y", "bleu", 30.0, "a", source="table")]
    assert merged(store, *scores) == {"x": 39.3, "y": 0.393, "average": 39.3}


def test_a_card_in_percent_has_its_small_values_in_percent_too(store):
    percent = [Score("x", "acc", 0.9, m, source="card") for m in ("a", "b", "child")]
    percent += [Score("y", "acc", v, m, source="card") for m, v in {"a": 40, "b": 42, "child": 45}.items()]
    assert merged(store, *percent) == {"x": 0, "y": 4, "average": 2}
    assert scored(store)["a"] == (20.45, 2)


def test_averages_of_two_cards_are_of_unknown_parts(store):
    averages = [Score("average", "acc", v, m, source="card") for m, v in {"a": 1, "b": 2, "child": 3}.items()]
    assert merged(store, *averages)["average"] is None


def test_what_others_report_of_a_merge_counts_where_nobody_nearer_speaks(store):
    with store.writing() as con:
        put_edges(con, "child", "copy", [Edge(p, "merge", "reported", method="ties") for p in ("a", "b")])
    assert rows(store, "select distinct parents, method from merge_gains") == [(["a", "b"], "ties")]
    with store.writing() as con:
        put_edges(con, "child", "own", [Edge(p, "merge", "config", method="linear") for p in ("a", "c")])
    assert rows(store, "select distinct parents, method from merge_gains") == [(["a", "c"], "linear")]
