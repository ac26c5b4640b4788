"""Merge gains and normalised scores against arithmetic done by hand."""

from datetime import datetime

import pytest

import kinbase
from kinbase.checkpoint import Alias, Edge, ReportedKinship, Score, Task, Training
from kinbase.store import names
from kinbase.store.aliases import put_alias
from kinbase.store.estimates import put_reported
from kinbase.store.lineage import put_edges
from kinbase.store.scores import put_scores, put_tasks, put_trainings


class Told:
    """A database of what was said, without any weights. It is stored when something is asked, in one transaction."""

    def __init__(self, store):
        self.store = store
        self.said = []

    def merge(self, child, *parents, method="linear", relation="merge", evidence="config"):
        edges = [Edge(parent, relation, evidence, child, method) for parent in parents]
        self.said.append(lambda con: put_edges(con, None, f"{child} {relation} {evidence}", edges))

    def scores(self, scores, *, metric="acc", **more):
        """{model: {benchmark: value}}"""
        rows = [Score(b, metric, v, model, **more) for model, each in scores.items() for b, v in each.items()]
        self.said.append(lambda con: put_scores(con, None, rows))

    def kinship(self, a, b, pcc):
        pairs = [ReportedKinship(a, b, pcc=pcc)]
        self.said.append(lambda con: put_reported(con, f"{a} {b}", pairs))

    def query(self, text, *parameters):
        with self.store.writing() as con:
            for put in self.said:
                put(con)
            self.said.clear()
            return con.execute(text, list(parameters)).fetchall()

    def gains(self, child, columns):
        rows = self.query(f"select benchmark, {columns} from merge_gains where child = ?", child)
        return {benchmark: row for benchmark, *row in rows}


@pytest.fixture
def told(empty):
    return Told(empty.store)


def test_gain_is_the_score_less_the_mean_of_the_parents(told):
    told.merge("ab", "a", "b")
    told.scores({"ab": {"x": 60, "y": 50}, "a": {"x": 40, "y": 70}, "b": {"x": 50, "y": 40}})
    # x: 60 - 45; y: 50 - 55; average: 55 - (55 + 45) / 2, the best parent a with 55
    rows = told.gains("ab", "score, parents_mean, gain, best_parent, over_best, benchmarks")
    assert rows == {
        "x": [60, 45, 15, 50, 10, None],
        "y": [50, 55, -5, 70, -20, None],
        "average": [55, 50, 5, 55, 0, 2],
    }


def test_three_parents_are_averaged_and_so_is_their_kinship(told):
    told.merge("abc", "a", "b", "c")
    told.scores({"abc": {"x": 9}, "a": {"x": 1}, "b": {"x": 2}, "c": {"x": 6}})
    for pair, pcc in {("a", "b"): 0.1, ("c", "a"): 0.4}.items():
        told.kinship(*pair, pcc)
    columns = "parents_mean, gain, kinship"
    assert told.gains("abc", columns)["x"] == [3, 6, None]  # one of three pairs is not known
    told.kinship("b", "c", 0.7)
    assert told.gains("abc", columns)["average"] == [3, 6, pytest.approx(0.4, abs=1e-15)]


def test_several_claims_of_an_edge_count_once_and_a_base_not_at_all(told):
    told.merge("ab", "a", "b", method="ties")
    told.merge("ab", "a", "b", method=None, evidence="card")
    told.merge("ab", "base", relation="base")
    told.scores({"ab": {"x": 3}, "a": {"x": 1}, "b": {"x": 2}, "base": {"x": 0}})
    rows = told.query("select distinct parents, method, parents_mean from merge_gains")
    assert rows == [(["a", "b"], "ties", 1.5)]


def test_the_average_is_over_the_benchmarks_all_have(told):
    told.merge("ab", "a", "b")
    told.scores({"ab": {"x": 60, "y": 90}, "a": {"x": 40}, "b": {"x": 50, "y": 1, "z": 1}})
    rows = told.gains("ab", "score, gain, benchmarks")
    assert rows == {"x": [60, 15, None], "y": [90, None, None], "average": [60, 15, 1]}


def test_a_merge_without_scores_has_its_average_row(told):
    told.merge("ab", "a", "b")
    assert told.gains("ab", "score, gain, benchmarks") == {"average": [None, None, 0]}


def test_one_named_parent_is_not_the_mean_of_the_parents(told):
    told.merge("ab", "a")
    told.scores({"ab": {"x": 60}, "a": {"x": 40}})
    assert told.gains("ab", "score, gain") == {"x": [60, None], "average": [None, None]}


def test_the_metric_that_all_have_counts(told):
    told.merge("ab", "a", "b")
    told.scores({"ab": {"x": 60}, "a": {"x": 40}, "b": {"x": 50}})
    told.scores({"ab": {"x": 66}, "a": {"x": 44}}, metric="acc_norm")
    assert told.gains("ab", "metric, gain")["x"] == ["acc", 15]
    told.scores({"b": {"x": 56}}, metric="acc_norm")
    assert told.gains("ab", "metric, gain")["x"] == ["acc_norm", 16]


def test_other_shots_or_splits_are_other_tests(told):
    told.merge("ab", "a", "b")
    told.scores({"ab": {"x": 60}, "a": {"x": 40}}, n_shot=5)
    told.scores({"b": {"x": 50}}, n_shot=0)
    assert told.gains("ab", "gain")["x"] == [None]
    told.scores({"b": {"x": 30}}, n_shot=5, split="test[:10]")
    assert told.gains("ab", "gain")["x"] == [None]
    told.scores({"b": {"x": 20}}, n_shot=5)
    assert told.gains("ab", "gain")["x"] == [30]


def test_one_source_for_all_comes_before_two(told):
    told.merge("ab", "a", "b")
    told.scores({"ab": {"x": 60}, "a": {"x": 40}, "b": {"x": 50}}, source="old")
    told.scores({"ab": {"x": 90}, "a": {"x": 10}}, source="young")
    assert told.gains("ab", "gain")["x"] == [15]


def test_sources_are_mixed_when_they_must_but_not_fractions_with_percents(told):
    told.merge("ab", "a", "b")
    told.scores({"ab": {"x": 0.6}, "a": {"x": 0.4}}, source="ours")
    told.scores({"b": {"x": 50}}, source="percent")
    assert told.gains("ab", "gain")["x"] == [None]
    told.scores({"b": {"x": 0.5}}, source="fraction")
    assert told.gains("ab", "gain")["x"] == [pytest.approx(0.15, abs=1e-15)]


def test_fractions_and_percents_are_averaged_as_percents(told):
    told.merge("ab", "a", "b")
    told.scores({"ab": {"x": 0.6}, "a": {"x": 0.4}, "b": {"x": 0.5}})
    told.scores({"ab": {"y": 50}, "a": {"y": 70}, "b": {"y": 40}})
    assert told.gains("ab", "gain, best_parent")["average"] == [pytest.approx(5), pytest.approx(55)]
    assert told.gains("ab", "gain")["x"] == [pytest.approx(0.15)]


def test_a_metric_of_which_less_is_better_is_left_out(told):
    told.merge("ab", "a", "b")
    told.scores(
        {"ab": {"wikitext": 12}, "a": {"wikitext": 20}, "b": {"wikitext": 30}}, metric="word_perplexity"
    )
    assert told.gains("ab", "gain") == {"average": [None]}


def test_a_printed_average_stands_in_within_its_source_only(told):
    told.merge("ab", "a", "b")
    for source, numbers in {"one": {"ab": 60, "a": 40}, "two": {"b": 50}}.items():
        told.scores({m: {"average": v} for m, v in numbers.items()}, metric="mean", source=source)
    assert told.gains("ab", "score, gain, benchmarks") == {"average": [60, None, 0]}
    told.scores({"b": {"average": 52}}, metric="mean", source="one")
    assert told.gains("ab", "score, gain, benchmarks") == {"average": [60, 14, 0]}


def test_a_published_gain_stands_beside_the_one_recomputed(told):
    told.merge("ab", "a", "b")
    told.scores({"ab": {"x": 60}, "a": {"x": 40}, "b": {"x": 50}})
    told.scores({"ab": {"average": 12.5}}, metric="gain")
    assert told.gains("ab", "score, gain, reported_gain")["average"] == [60, 15, 12.5]


def test_a_later_run_replaces_an_earlier_one(told):
    told.merge("ab", "a", "b")
    told.scores({"ab": {"x": 60}, "a": {"x": 40}, "b": {"x": 50}}, evaluated_at=datetime(2025, 1, 1))
    told.scores({"ab": {"x": 70}}, evaluated_at=datetime(2026, 1, 1))
    assert told.gains("ab", "gain")["x"] == [25]


# The scale study (arXiv 2410.03617): experts e1 (qa1, qa2) and e2 (sum), a third e3 (qa1); held out: nli, wsd.
TASKS = {"qa1": "qa", "qa2": "qa", "sum": "summary", "nli": "inference", "wsd": "words"}
TRAINED = {"e1": ["qa1", "qa2"], "e2": ["sum"], "e3": ["qa1"]}
SCORES = {
    "base": {"qa1": 10, "qa2": 10, "sum": 10, "nli": 50, "wsd": 40},
    "e1": {"qa1": 80, "qa2": 50, "sum": 1, "nli": 1, "wsd": 1},
    "e2": {"qa1": 1, "qa2": 1, "sum": 40, "nli": 1, "wsd": 1},
    "e3": {"qa1": 60, "qa2": 1, "sum": 1, "nli": 1, "wsd": 1},
    "m1": {"qa1": 60, "qa2": 40, "sum": 30, "nli": 55, "wsd": 30},
    "m2": {"qa1": 40, "qa2": 10, "sum": 20, "nli": 50, "wsd": 40},
    "m3": {"qa1": 70, "qa2": 25, "sum": 40, "nli": 100, "wsd": 40},
}


@pytest.fixture
def study(told):
    for expert in TRAINED:
        told.merge(expert, "base", relation="finetune", method=None)
    told.merge("m1", "e1", "e2")
    told.merge("m2", "e3", "e2")
    told.merge("m3", "e1", "e2", "e3")
    told.said.append(lambda con: put_tasks(con, [Task(*task) for task in TASKS.items()]))
    trained = [Training(b, m) for m, each in TRAINED.items() for b in each]
    told.said.append(lambda con: put_trainings(con, None, trained))
    told.scores(SCORES)
    return told


def test_held_in_belongs_to_merge_and_task(study):
    rows = study.query(
        "select merge, benchmark, reference, reference_score from normalised_by_task where held_in order by all"
    )
    assert rows == [
        ("m1", "qa1", ["e1"], 80),
        ("m1", "qa2", ["e1"], 50),
        ("m1", "sum", ["e2"], 40),
        ("m2", "qa1", ["e3"], 60),
        ("m2", "sum", ["e2"], 40),
        ("m3", "qa1", ["e1", "e3"], 70),
        ("m3", "qa2", ["e1"], 50),
        ("m3", "sum", ["e2"], 40),
    ]
    # qa2 is held out of m2 alone: none of its experts was trained for it
    assert study.query("select merge from normalised_by_task where benchmark = 'qa2' and not held_in") == [
        ("m2",)
    ]


def test_normalised_scores_go_by_category_then_over_categories_then_over_merges(study):
    rows = study.query(
        "select base, method, experts, held_in, score, merges, categories from normalised_scores('base')"
    )
    # two experts, held in: m1: qa (60/80 + 40/50)/2 = .775, summary 30/40 = .75; m2: qa 40/60, summary 20/40
    two_in = ((0.775 + 0.75) / 2 + (2 / 3 + 0.5) / 2) / 2
    # held out: m1: 55/50, 30/40; m2: qa 10/10, inference 50/50, words 40/40
    two_out = ((1.1 + 0.75) / 2 + 1) / 2
    # three experts: qa (70/70 + 25/50)/2 = .75, summary 40/40; held out: 100/50, 40/40
    want = [
        ("base", "linear", 2, True, two_in, 2, 2),
        ("base", "linear", 2, False, two_out, 2, 2),
        ("base", "linear", 3, True, (0.75 + 1) / 2, 1, 2),
        ("base", "linear", 3, False, 1.5, 1, 2),
    ]
    assert rows == [pytest.approx(row) for row in want]
    assert len(study.query("from normalised_scores(null)")) == 4
    assert study.query("from normalised_scores('e1')") == []


def test_a_missing_reference_leaves_the_task_out(study):
    study.query("delete from raw.score where benchmark = 'sum' and model_id = (select resolve('e2'))")
    assert study.query("select distinct benchmark from normalised_by_task where held_in order by 1") == [
        ("qa1",),
        ("qa2",),
    ]


def test_an_expert_that_gets_another_name_keeps_its_training(study):
    study.said.append(lambda con: put_alias(con, names.named(con, "org/e1"), Alias("e1")))
    assert study.query("from experts where model = 'org/e1' order by all") == [
        ("org/e1", "qa1"),
        ("org/e1", "qa2"),
    ]


def test_tasks_and_experts_come_in_as_tables(tmp_path):
    folder = tmp_path / "grid"
    folder.mkdir()
    (folder / "tasks.csv").write_text("benchmark,category\nqa1,qa\nnli,inference\nqa3,\n")
    (folder / "experts.csv").write_text("model,benchmark\ne1,qa1\ne1,qa1\n")
    (folder / "scores.csv").write_text("model,benchmark,metric,valeu\ne1,qa1,acc,1\n")  # value, misspelt
    db = kinbase.open(tmp_path / "kin.duckdb")
    for _ in range(2):  # importing twice is importing once
        (row,) = db.import_([folder]).to_dicts()
        assert any("row 3: no category" in note for note in row["notes"])
        assert any("lacks the column value" in note for note in row["notes"])
        assert db.sql("from tasks order by all").rows() == [("nli", "inference"), ("qa1", "qa")]
        assert db.sql("from experts").rows() == [("e1", "qa1")]
    assert db.sql("select count(*) from raw.training").item() == 1
