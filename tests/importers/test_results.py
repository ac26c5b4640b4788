"""The importers of evaluation results: .eval_results, lm-eval and leaderboards."""

import json
from datetime import UTC, datetime

import polars as pl
import pytest
from records import DATA, only, problem, read

from kinbase.checkpoint import Edge, Facts, Problem, Score
from kinbase.errors import CheckpointError
from kinbase.importers import eval_results, leaderboard, lm_eval, table


def test_eval_results():
    records = read(eval_results, DATA / "huggingface_hub" / ".eval_results" / "hle.yaml")
    assert [(s.benchmark, s.metric, s.value) for s in records] == [
        ("cais/hle", "score (no-tools)", 20.9),
        ("cais/hle", "score (tools)", 31.2),
        ("Idavidrein/gpqa/gpqa_diamond", "score", 0.412),
    ]
    assert records[0].evaluated_at == datetime(2025, 1, 15, 10, 30, tzinfo=UTC)
    assert records[0].source == "https://huggingface.co/datasets/cais/hle"


def test_eval_results_hostile(write):
    assert not eval_results.recognises(str(write("elsewhere.yaml", "- dataset: {id: x}\n")))
    bad = "- dataset: {id: x/y}\n  value: N/A\n- 7\n- dataset: {id: x/y}\n  value: 3\n"
    records = read(eval_results, write(".eval_results/a.yaml", bad))
    assert [s.value for s in only(Score, records)] == [3.0]
    assert "N/A" in problem(records)
    with pytest.raises(CheckpointError):
        read(eval_results, write(".eval_results/b.yaml", "a: 1\n"))


def lm_eval_file():
    (path,) = DATA.glob("lm_eval/*/results_*.json")
    return path


def test_lm_eval():
    records = read(lm_eval, lm_eval_file())
    scores = {(s.benchmark, s.metric): s for s in only(Score, records)}
    assert len(scores) == 9 and not only(Problem, records)
    arith = scores["tiny_arith", "acc"]
    assert arith == Score(
        "tiny_arith", "acc", 4 / 12, "/models/chat", pytest.approx((1 / 3 * 2 / 3 / 11) ** 0.5), 2, "test", "lm_eval",
        arith.evaluated_at, "version 1", higher_is_better=True,
    )  # fmt: skip
    assert abs(arith.evaluated_at - datetime(2026, 11, 21, 5, 37, 55, tzinfo=UTC)).total_seconds() < 10
    assert ("tiny_gen", "exact_match,strict-match") in scores and ("tiny_group", "acc") in scores


def test_lm_eval_in_a_checkpoint_folder_speaks_of_that_checkpoint(write):
    write("config.json", "{}")
    records = read(lm_eval, write("results_2024.json", lm_eval_file().read_text()))
    assert {s.model for s in only(Score, records)} == {None}


def test_lm_eval_limits_and_values_that_are_none(write):
    document = json.loads(lm_eval_file().read_text())
    document["n-samples"]["tiny_arith"] = {"original": 12, "effective": 5}
    document["results"]["tiny_arith"] |= {
        "acc,none": float("nan"),
        "acc_norm_stderr,none": "N/A",
        "f1,none": "N/A",
    }
    document["results"]["bad\nname"] = {"acc,none": 1.0}
    records = read(lm_eval, write("results_x.json", json.dumps(document)))
    assert [(s.metric, s.stderr, s.split) for s in only(Score, records) if s.benchmark == "tiny_arith"] == [
        ("acc_norm", None, "test[:5]")
    ]
    assert all(word in problem(records) for word in ("tiny_arith", "acc,none", "f1,none"))


@pytest.mark.parametrize(
    "text",
    [
        "{}",
        '{"results": 3}',
        '{"results": {"a": 1}}',
        '{"results": {"a": {"b": {}}}}',
        "{",
        '{"a": ' * 100_000,
    ],
)
def test_results_of_another_schema_are_one_line(write, text):
    with pytest.raises(CheckpointError) as error:
        read(lm_eval, write("results_1.json", text))
    assert "\n" not in str(error.value)


def test_leaderboard_v1(write):
    subjects = {f"harness|hendrycksTest-s{i}|5": {"acc": i / 100, "acc_stderr": 0.01} for i in range(57)}
    document = {
        "config_general": {"model_name": "org/m", "model_sha": "a" * 40},
        "results": {
            "all": {"acc": 0.5},
            "harness|arc:challenge|25": {"acc": 0.59, "acc_norm": 0.6, "acc_norm_stderr": 0.014},
            "harness|truthfulqa:mc|0": {"mc1": 0.3, "mc2": 0.45},
            **subjects,
        },
    }
    path = write("results_2023-08-09T10:11:12.345.json", json.dumps(document))
    records = read(lm_eval, path)
    scores = {(s.benchmark, s.metric): s for s in only(Score, records)}
    assert only(Facts, records) == [Facts("org/m", revision="a" * 40)]
    assert scores["arc_challenge", "acc_norm"] == Score(
        "arc_challenge", "acc_norm", 0.6, "org/m", 0.014, 25, None, "open_llm_leaderboard_v1",
        datetime(2023, 8, 9, 10, 11, 12, tzinfo=UTC),
    )  # fmt: skip
    assert scores["truthfulqa_mc2", "mc2"].value == 0.45
    assert scores["mmlu", "acc"].value == pytest.approx(0.28)  # the mean of 0, 1, ..., 56 hundredths
    del document["results"]["harness|hendrycksTest-s3|5"]
    records = read(lm_eval, write(path.name, json.dumps(document)))
    assert "56 of its 57" in problem(records)
    assert not [s for s in only(Score, records) if s.benchmark == "mmlu"]


LEADERBOARD_V2 = {
    "eval_name": ["x"] * 3,
    "Precision": ["bfloat16", "float16", "bfloat16"],
    "Type": ["base merges and moerges", "base merges and moerges", "pretrained"],
    "Architecture": ["MistralForCausalLM"] * 3,
    "fullname": ["org/m", "org/m", "org/b"],
    "Model sha": ["a" * 40, "a" * 40, None],
    "Average \u2b06\ufe0f": [20.0, 21.0, 10.0],
    "Hub License": ["apache-2.0", "apache-2.0", None],
    "#Params (B)": [7.242, 7.242, -1.0],
    "IFEval Raw": [0.41, 0.42, 0.2],
    "IFEval": [41.0, 42.0, float("nan")],
    "Merged": [True, True, False],
    "Submission Date": ["2024-06-27", "2024-06-28", None],
    "Base Model": ["org/b (Merge)", "org/b (Merge)", "org/b"],
}


@pytest.mark.parametrize("suffix", ["parquet", "csv"])
def test_leaderboard_v2(tmp_path, suffix):
    path = tmp_path / f"contents.{suffix}"
    getattr(pl.DataFrame(LEADERBOARD_V2), f"write_{suffix}")(path)
    assert not table.recognises(str(path))
    records = read(leaderboard, path)
    assert only(Facts, records)[0] == Facts(
        "org/m", "MistralForCausalLM", "apache-2.0", "a" * 40, "merge", 7_242_000_000, "BF16"
    )
    assert {(e.parent, e.child, e.relation, e.evidence) for e in only(Edge, records)} == {
        ("org/b", "org/m", "merge", "reported")
    }
    scores = {(s.model, s.benchmark, s.metric, s.source): s.value for s in only(Score, records)}
    assert scores == {
        ("org/m", "average", "normalised", "open_llm_leaderboard_v2 (bfloat16)"): 20.0,
        ("org/m", "average", "normalised", "open_llm_leaderboard_v2 (float16)"): 21.0,
        ("org/m", "IFEval", "normalised", "open_llm_leaderboard_v2 (bfloat16)"): 41.0,
        ("org/m", "IFEval", "normalised", "open_llm_leaderboard_v2 (float16)"): 42.0,
        ("org/m", "IFEval", "raw", "open_llm_leaderboard_v2 (bfloat16)"): 0.41,
        ("org/m", "IFEval", "raw", "open_llm_leaderboard_v2 (float16)"): 0.42,
        ("org/b", "average", "normalised", "open_llm_leaderboard_v2"): 10.0,
        ("org/b", "IFEval", "raw", "open_llm_leaderboard_v2"): 0.2,
    }
    assert not only(Problem, records)
