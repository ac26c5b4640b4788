"""Every query of docs/sql.md runs and says something: on the published family, or on the small one with weights."""

import re
from pathlib import Path

import pytest

import kinbase
from kinbase.checkpoint import Edge, Facts, Score, Task, Training
from kinbase.store import names
from kinbase.store.lineage import put_edges
from kinbase.store.models import put_facts
from kinbase.store.scores import put_scores, put_tasks, put_trainings

COOKBOOK = Path(__file__).parent.parent / "docs" / "sql.md"
QUERIES = {
    title: re.findall(r"^```sql\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)
    for title, text in re.findall(
        r"^### \d+\. (.+?)\n(.*?)(?=^#|\Z)", COOKBOOK.read_text(), re.DOTALL | re.MULTILINE
    )
}


def query(words):
    """The query below the only heading with these words."""
    ((found,),) = [queries for title, queries in QUERIES.items() if words in title]
    return found


def test_there_are_twenty_questions_and_more_each_with_one_query():
    assert len(QUERIES) >= 20
    assert all(len(queries) == 1 for queries in QUERIES.values())
    assert COOKBOOK.read_text().count("```sql") == len(QUERIES)
    assert set(ANSWERS) | set(WEIGHTS) | set(TOLD) == set(range(1, len(QUERIES) + 1))


def numbered(number):
    return list(QUERIES.values())[number - 1][0]


# By question: what the first row has, and how many rows there are; None where only the number counts.
ANSWERS = {
    1: (6, {"child": "model-2-1", "over_best": pytest.approx(68.7267 - 66.8367, abs=1e-3)}),
    2: (
        9,
        {
            "child": "model-4-6",
            "benchmark": "truthfulqa_mc2",
            "gain": pytest.approx(53.69 - (56.95 + 51.95) / 2),
        },
    ),
    3: (9, {"child": "model-2-2"}),
    4: (11, {"model_a": "model-3-3", "model_b": "model-5-1"}),
    5: (
        1,
        {
            "merges": 14,
            "pcc": -0.51,
            "pcc_abs": -0.6,
            "cs": -0.45,
            "cs_abs": -0.67,
            "ed": 0.47,
            "ed_abs": 0.68,
        },
    ),
    6: (2, {"stage": "learning", "merges": 5, "first_step": 1, "kinship": 0.8, "gain": 0.3}),
    7: (1, {"step": 10, "score": 76.67, "against_the_end": -0.19}),
    8: (1, {"method": "slerp", "merges": 21, "best": 3.78}),
    9: (4, {"model": "Experiment25", "pcc": 0.99}),
    10: (2, {"stage": "learning", "pcc": pytest.approx(0.809)}),
    11: (12, {"generation": 1}),
    12: (12, {"pcc": 0.99}),
    13: (2, {"least": -0.02, "most": 0.02}),
    17: (6, {"model": "model-3-1", "steps": 3}),
    18: (19, {"generation": 1, "model": "DareBeagle-7B"}),
    19: (5, {"parent": "mistralai/Mistral-7B-v0.1", "children": 3}),
    22: (7, {"subject": "model-3-3", "claim": "gain 0.74"}),
    23: (5, {"child": "model-5-3", "off": pytest.approx(-0.37 + 0.262, abs=1e-3)}),
}


@pytest.mark.parametrize("number", ANSWERS)
def test_the_published_family_answers(published, number):
    rows = published.sql(numbered(number))
    height, first = ANSWERS[number]
    assert rows.height == height
    row = rows.row(0, named=True)
    assert {key: row[key] for key in first} == first


def test_kinship_grows_along_the_published_generations(published):
    generations = published.sql(query("grow with the generations"))["kinship"].to_list()
    assert min(generations[6:]) > max(generations[1:6])


@pytest.fixture(scope="module")
def weighed(tmp_path_factory, family):
    db = kinbase.open(tmp_path_factory.mktemp("weighed") / "kin.duckdb")
    db.import_(family.values(), base="base")
    return db


# What needs weights: rows, the least some column may be, and in which order they come.
WEIGHTS = {14: (5, "pcc", 1), 15: (6, "pcc", -1), 16: (5, "rms", -1)}


@pytest.mark.parametrize("number", WEIGHTS)
def test_the_family_with_weights_answers(weighed, number):
    rows = weighed.sql(numbered(number))
    height, column, order = WEIGHTS[number]
    values = rows[column].to_list()
    assert rows.height == height
    assert values == sorted(values, key=lambda value: order * value)
    assert len(set(values)) == height


def test_attention_alone_is_what_the_tensors_sum_to(weighed):
    row = weighed.sql(query("attention alone")).row(0, named=True)
    block = "select pcc from kinship_by_block where block = 'attn' and model_a = ? and model_b = ?"
    assert row["pcc"] == pytest.approx(weighed.sql(block, [row["model_a"], row["model_b"]]).item(), abs=1e-12)
    assert "merge_ab" in (row["model_a"], row["model_b"])  # most akin to what it was merged from


# What must be told first: (questions by number) tried on a family where cards and configs disagree.
TOLD = (20, 21, 24, 25)


@pytest.fixture
def told(empty):
    with empty.store.writing() as con:
        for who, edges in {
            "config": [("a", "ab"), ("b", "ab"), ("a", "ac"), ("c", "ac")],
            "card": [("a", "ab"), ("base", "ab"), ("a", "ac"), ("c", "ac")],
        }.items():
            put_edges(con, None, who, [Edge(p, "merge", who, c, "ties") for p, c in edges])
        tuned = [Edge("base", "finetune", "card", child) for child in "abc"]
        put_edges(con, None, "cards", [*tuned, Edge("ab", "finetune", "card", "abd")])
        for name, license in (("b", "cc-by-nc-4.0"), ("ab", "apache-2.0"), ("a", "mit")):
            put_facts(con, names.named(con, name), Facts(name, license=license))
        put_tasks(con, [Task("gsm8k", "math"), Task("nli", "inference")])
        put_trainings(con, None, [Training("gsm8k", "a")])
        scores = {"base": (10, 50), "a": (80, 1), "ac": (60, 55)}
        for model, values in scores.items():
            put_scores(
                con, model, [Score(b, "acc", v) for b, v in zip(("gsm8k", "nli"), values, strict=True)]
            )
    return empty


def test_claims_that_disagree_are_shown_side_by_side(told):
    assert told.sql(query("claims disagree")).rows() == [
        ("ab", "card", ["a", "base"]),
        ("ab", "config", ["a", "b"]),
    ]


def test_a_noncommercial_licence_goes_down_the_tree(told):
    rows = told.sql(query("may not be used commercially")).rows()
    assert rows == [("ab", "apache-2.0", "cc-by-nc-4.0", "b"), ("abd", None, "cc-by-nc-4.0", "b")]


def test_bare_names(told):
    assert told.sql(query("by name alone"))["name"].to_list() == []
    with told.store.writing() as con:
        put_edges(con, None, "more", [Edge("somebody", "merge", "card", "ab")])
    assert told.sql(query("by name alone"))["name"].to_list() == ["somebody"]


def test_held_in_and_held_out(told):
    rows = told.sql(query("experts never saw")).rows(named=True)
    # ac: gsm8k 60 of a's 80; nli 55 of the base's 50. ab has no scores.
    assert [(r["held_in"], r["score"]) for r in rows] == [(True, 0.75), (False, pytest.approx(1.1))]
