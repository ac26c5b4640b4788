"""The importers of records: files the real tools wrote (tests/data), and files nobody should have written."""

import json
import struct
from datetime import UTC, datetime
from pathlib import Path

import polars as pl
import pytest

from kinbase.checkpoint import Alias, Edge, Facts, Problem, ReportedKinship, Score
from kinbase.checkpoint import yaml as safe_yaml
from kinbase.errors import CheckpointError
from kinbase.importers import card, eval_results, gguf, leaderboard, lm_eval, mergekit, table

DATA = Path(__file__).parents[1] / "data"


def read(importer, path):
    assert importer.recognises(str(path))
    return list(importer.open(str(path)))


def only(kind, records):
    return [record for record in records if isinstance(record, kind)]


def parents(records, relation="merge"):
    return {edge.parent: edge for edge in only(Edge, records) if edge.relation == relation}


def problem(records):
    """The text of the one problem there is, which is one line."""
    (found,) = only(Problem, records)
    assert "\n" not in found.message
    return found.message


@pytest.fixture
def write(tmp_path):
    def write(name, content):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else content.encode("utf-8", "surrogatepass"))
        return path

    return write


# mergekit.


@pytest.mark.parametrize(
    ("case", "merged", "base"),
    [
        ("linear", {"/models/math": 0.25, "/models/chat": 0.75}, None),  # weights 1 and 3
        ("slerp", {"/models/math": None, "/models/chat": None}, None),  # t by depth and filter
        (
            "task_arithmetic",
            {"/models/math": 0.3, "/models/chat": -0.125},
            "/models/base",
        ),  # times lambda 0.5
        ("ties", {"/models/math": 0.3, "/models/chat": None}, "/models/base"),  # the base is listed too
        ("passthrough", {"/models/math": None, "/models/chat": None}, None),
        ("multi", {"/models/stages/first": 0.75, "/models/stages/second": 0.25}, None),  # slerp at t = 0.25
    ],
)
def test_mergekit_wrote_config_and_card_that_say_the_same(case, merged, base):
    config = read(mergekit, DATA / "mergekit" / case / "mergekit_config.yml")
    assert {name: edge.weight for name, edge in parents(config).items()} == pytest.approx(merged)
    assert list(parents(config, "base")) == ([base] if base else [])
    assert {edge.evidence for edge in only(Edge, config)} == {"config"}
    assert not only(Problem, config)
    text = (DATA / "mergekit" / case / "mergekit_config.yml").read_text()
    assert {edge.method for edge in only(Edge, config)} == {safe_yaml.load(text, "")[0]["merge_method"]}

    told = read(card, DATA / "mergekit" / case / "README.md")
    for relation in ("merge", "base"):
        in_card = {name: (edge.weight, edge.method) for name, edge in parents(told, relation).items()}
        assert in_card == {
            name: (edge.weight, edge.method) for name, edge in parents(config, relation).items()
        }
    assert {edge.evidence for edge in only(Edge, told)} == {"card"}


def test_mergekit_detail_keeps_what_is_not_one_number():
    chat = parents(read(mergekit, DATA / "mergekit/ties/mergekit_config.yml"))["/models/chat"]
    assert chat.detail["density"] == [1, 0.7, 0.1]
    assert chat.detail["weight"] == [{"filter": "mlp", "value": 0.5}, {"value": 0.2}]
    assert chat.detail["normalize"] is True
    math = parents(read(mergekit, DATA / "mergekit/passthrough/mergekit_config.yml"))["/models/math"]
    assert [use["layer_range"] for use in math.detail["uses"]] == [[0, 3], [2, 4]]
    slerp = parents(read(mergekit, DATA / "mergekit/slerp/mergekit_config.yml"))["/models/math"]
    assert slerp.detail["t"][0] == {"filter": "self_attn", "value": [0, 0.5, 0.3, 0.7, 1]}


def test_mergekit_multi_stages_are_models_of_their_own():
    records = read(mergekit, DATA / "mergekit" / "multi.yml")
    edges = {(edge.child, edge.parent): edge for edge in only(Edge, records)}
    first, second = sorted({child for child, _ in edges if child})
    assert first.startswith("first#") and second.startswith("second#")
    assert set(edges) == {
        (first, "/models/math"),
        (first, "/models/chat"),
        (second, "/models/code"),
        (second, "/models/base"),
        (None, first),
        (None, second),
    }
    assert edges[None, first].weight == 0.75
    assert edges[second, "/models/base"].relation == "base"


def test_stages_have_the_label_of_their_recipe(write):
    recipe = "name: first\nmerge_method: linear\nmodels: [{model: a/a}, {model: %s}]\n---\n" + (
        "merge_method: linear\nmodels: [{model: first}, {model: c/c}]\n"
    )
    one, same, other = (
        {edge.child for edge in only(Edge, read(mergekit, write(name, recipe % model)))}
        for name, model in (("1.yml", "b/b"), ("2.yml", "b/b"), ("3.yml", "x/x"))
    )
    assert one == same != other


def test_stages_in_a_circle(write):
    text = "name: a\nmerge_method: linear\nmodels: [{model: b}]\n---\nname: b\nmerge_method: linear\nmodels: [{model: a}]\n"
    with pytest.raises(CheckpointError, match="circle"):
        read(mergekit, write("m.yml", text))


@pytest.mark.parametrize(
    ("text", "path", "lora", "detail"),
    [
        ("org/m", "org/m", None, {}),
        ("org/m@v1+org/l@abc", "org/m", "org/l", {"revision": "v1", "lora": "org/l", "lora_revision": "abc"}),
        (
            "{model: {path: org/m, revision: v1}, lora: org/l}",
            "org/m",
            "org/l",
            {"revision": "v1", "lora": "org/l"},
        ),
        ("https://huggingface.co/org/m/tree/main", "org/m", None, {}),
    ],
)
def test_model_references(write, text, path, lora, detail):
    config = f"merge_method: karcher\nmodels:\n- model: {text}\n- model: org/other\n"
    found = parents(read(mergekit, write("m.yml", config)))
    assert set(found) == {path, "org/other", *([lora] if lora else [])}
    assert found[path].detail == detail


def test_an_adapter_on_the_base_is_the_parent(write):
    config = "merge_method: task_arithmetic\nbase_model: o/b\nmodels:\n- {model: o/b+o/x, parameters: {weight: 0.5}}\n"
    records = read(mergekit, write("m.yml", config))
    assert [(edge.parent, edge.relation, edge.weight) for edge in only(Edge, records)] == [
        ("o/x", "merge", 0.5),
        ("o/b", "base", None),
    ]


def test_a_base_is_no_parent_whichever_revision_is_left_out(write):
    config = "merge_method: ties\nbase_model: o/b@v1\nmodels: [{model: o/b}, {model: o/a}]\n"
    records = read(mergekit, write("m.yml", config))
    assert set(parents(records)) == {"o/a"}
    assert parents(records, "base")["o/b"].detail == {"revision": "v1"}


def test_modules_and_slices(write):
    config = """
merge_method: linear
parameters: {weight: 1}
modules:
  text: {slices: [{sources: [{model: o/a, layer_range: [0, 2], parameters: {weight: 3}}, {model: o/b, layer_range: [0, 2]}]}]}
  vision: {models: [{model: o/a}]}
"""
    found = parents(read(mergekit, write("m.yml", config)))
    assert found["o/a"].weight is None  # 3/4 of the text, all of the vision
    assert found["o/a"].detail["uses"] == [
        {"module": "text", "layer_range": [0, 2], "weight": 3},
        {"module": "vision", "weight": 1},
    ]
    assert found["o/b"].weight == 0.25


@pytest.mark.parametrize("method", ["slerp", "nearswap", "arcee_fusion"])
def test_a_base_that_is_a_parent_need_not_be_listed(write, method):
    config = f"merge_method: {method}\nbase_model: o/a\nmodels: [{{model: o/b}}]\nparameters: {{t: 0.25}}\n"
    records = read(mergekit, write("m.yml", config))
    assert set(parents(records)) == {"o/a", "o/b"} and not parents(records, "base")
    if method == "slerp":
        assert [parents(records)[name].weight for name in ("o/a", "o/b")] == [0.75, 0.25]


def test_unknown_method_names_the_nearest_and_keeps_the_parents(write):
    config = "merge_method: dare_tie\nbase_model: o/base\nmodels: [{model: o/a}, {model: o/base}]\n"
    records = read(mergekit, write("mergekit_config.yml", config))
    assert "dare_ties" in problem(records)
    assert set(parents(records)) == {"o/a"} and set(parents(records, "base")) == {"o/base"}


@pytest.mark.parametrize(
    "text",
    [
        "[1, 2]",
        "just text",
        "models: [",
        "merge_method: !!python/name:os.system x",
        "a: &a [*a]",
        "key: value",
    ],
)
def test_what_is_no_merge_config_is_one_line(write, text):
    with pytest.raises(CheckpointError) as error:
        read(mergekit, write("mergekit_config.yml", text))
    assert "\n" not in str(error.value)


# Cards.


def test_mergekit_cards_with_hub_ids_do_not_claim_the_base_or_adapters_as_parents():
    ties = read(card, DATA / "mergekit/hub_ties/README.md")
    assert "example/base" in (DATA / "mergekit/hub_ties/README.md").read_text().split("---")[1]
    assert set(parents(ties)) == {"example/math", "example/chat"}
    assert set(parents(ties, "base")) == {"example/base"}
    lora = read(card, DATA / "mergekit/hub_lora/README.md")
    assert set(parents(lora)) == {"example/math", "example/math-lora", "example/chat-lora"}
    assert set(parents(lora, "base")) == {"example/base"}
    assert all(edge.method == "task_arithmetic" for edge in only(Edge, lora))


def test_the_hubs_own_card_writer():
    records = read(card, DATA / "huggingface_hub" / "README.md")
    assert only(Facts, records) == [Facts(license="apache-2.0", relation="finetune")]
    assert [(e.parent, e.relation) for e in only(Edge, records)] == [("example/base", "finetune")]
    space = "https://huggingface.co/spaces/HuggingFaceH4/open_llm_leaderboard"
    scores = {(s.benchmark, s.metric, s.n_shot, s.split, s.source): s.value for s in only(Score, records)}
    assert scores == {
        ("AI2 Reasoning Challenge", "acc_norm", 25, "test", space): 63.14,
        (
            "AI2 Reasoning Challenge",
            "acc_norm",
            25,
            "test",
            f"{space} (2)",
        ): 62.97,  # the writer lost its source
        ("GSM8k", "acc", 5, "test", space): 41.5,
    }
    assert "IFEval" in problem(records) and "nan" in problem(records)


def test_two_leaderboards_in_one_card_are_told_apart(write):
    result = """
  - dataset: {name: ARC (25-Shot), type: ai2_arc}
    metrics: [{type: acc_norm, value: %s}]
    source: {name: Open LLM Leaderboard, url: https://hf.co/spaces/%s?query=me}
"""
    text = (
        "---\nmodel-index:\n- name: m\n  results:"
        + result % (61.0, "v1")
        + result % (60.0, "v2")
        + result % (61.0, "v1")
    )
    scores = only(Score, read(card, write("README.md", text + "---\n")))
    assert [(s.value, s.n_shot, s.source) for s in scores] == [
        (61.0, 25, "https://hf.co/spaces/v1"),
        (60.0, 25, "https://hf.co/spaces/v2"),
    ]


def test_peft_card():
    records = read(card, DATA / "peft" / "README.md")
    assert [(e.parent, e.relation) for e in only(Edge, records)] == [("/models/base", "adapter")]


def test_parents_in_tags(write):
    text = "---\nlicense: other\nlicense_name: llama3\ntags: [merge, lazymergekit, o/a, o/b, 'license:mit']\n---\n"
    records = read(card, write("README.md", text))
    assert set(parents(records)) == {"o/a", "o/b"}
    assert only(Facts, records)[0].license == "llama3"


def test_a_recipe_copied_from_another_card_is_not_this_models(write):
    recipe = (DATA / "mergekit/hub_ties/README.md").read_text().split("---")[2]
    header = "---\nbase_model: example/merged\nbase_model_relation: quantized\n---\n"
    records = read(card, write("README.md", header + recipe))
    assert [(e.parent, e.relation) for e in only(Edge, records)] == [("example/merged", "quantized")]
    guessed = read(card, write("README.md", header.replace("base_model_relation: quantized\n", "") + recipe))
    assert [(e.parent, e.relation) for e in only(Edge, guessed)] == [("example/merged", "finetune")]


BOMB = "a0: &a0 [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]\n" for i in range(1, 12)
)


@pytest.mark.parametrize(
    ("header", "said"),
    [
        ("base_model: [o/a\n: x", "not YAML"),
        (BOMB, "aliases"),
        ("a: &a [*a]", "complete"),
        ("a: !!python/object/apply:os.system [touch pwned]", "tag"),
        pytest.param("[" * 100_000, "not YAML", id="deep"),
        ("x: " + "y" * 3_000_000, "at most"),
        ("- just\n- a list", "no mapping"),
        ("base_model: \"o/a\\0b\"", "cannot be a name"),
        ("base_model: \"o/a\\nb\"", "cannot be a name"),
        ("base_model: [[x], 7]", "not a name"),
        (b"base_model: caf\xe9/x", "cannot be a name"),
    ],
)  # fmt: skip
def test_hostile_headers_are_one_line_and_the_recipe_is_still_read(write, monkeypatch, header, said):
    monkeypatch.chdir(write("x", "").parent)
    body = b"\n---\n```yaml\nmerge_method: linear\nmodels: [{model: o/a}, {model: o/b}]\n```\n"
    content = b"---\n" + (header if isinstance(header, bytes) else header.encode()) + body
    records = read(card, write("README.md", content))
    assert said in problem(records) and len(problem(records)) < 400
    assert set(parents(records)) == {"o/a", "o/b"}
    assert not Path("pwned").exists()


def test_a_card_of_50_megabytes_is_read_to_its_bound(write):
    text = "---\nlicense: mit\nbase_model: o/a\n---\n" + "x" * 50_000_000
    records = read(card, write("README.md", text))
    assert set(parents(records, "finetune")) == {"o/a"}
    assert "bytes" in problem(records)


def test_names_stay_data(write):
    text = '---\nbase_model: ["[/]", "[@click=app.quit]x", "\\e]0;title\\a"]\n---\n'
    assert set(parents(read(card, write("README.md", text)))) == {
        "[/]",
        "[@click=app.quit]x",
        "\x1b]0;title\x07",
    }


def test_yaml_is_1_2():
    text = "on: yes\nt: 1e-3\nd: 2024-01-02\nn: ~\nb: true\nh: 0x10\ni: .inf\nq: '5'\nbase: &b {x: 1}\nm: {<<: *b, y: 2}"
    assert safe_yaml.load(text, "") == [
        {
            "on": "yes", "t": 0.001, "d": "2024-01-02", "n": None, "b": True, "h": 16, "i": float("inf"), "q": "5",
            "base": {"x": 1}, "m": {"x": 1, "y": 2},
        }
    ]  # fmt: skip


def test_yaml_as_others_write_it():
    """Tabs after a colon, and characters beyond 16 bits as JSON escapes them, in halves."""
    text = 'a:\t1\nb: "x\\ud83d\\uDE00y"\n'
    assert safe_yaml.load(text, "") == [{"a": 1, "b": "x\ufffd\ufffdy"}]


# Scores.


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
        arith.evaluated_at,
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


# GGUF.


def test_gguf_of_the_gguf_package():
    records = read(gguf, DATA / "gguf" / "chat-Q4_K_M.gguf")
    assert only(Facts, records) == [
        Facts(architecture="llama", license="apache-2.0", relation="quantized", parameters=80, dtype="Q4_K_M")
    ]
    (edge,) = only(Edge, records)
    assert (edge.parent, edge.relation, edge.evidence, edge.child) == (
        "example/chat",
        "quantized",
        "gguf",
        None,
    )
    assert edge.detail == {"file_type": "Q4_K_M", "quantized_by": "somebody", "version": "v1.0"}


def test_gguf_with_a_source_gives_that_source_its_parents():
    edges = only(Edge, read(gguf, DATA / "gguf" / "merged-F16.gguf"))
    assert [(e.parent, e.relation, e.child) for e in edges] == [
        ("example/chat-math", "quantized", None),
        ("example/chat", "merge", "example/chat-math"),
        ("example/math", "merge", "example/chat-math"),
    ]


def _text(value):
    return struct.pack("<Q", len(value)) + value


def _pair(key, kind, value):
    return _text(key) + struct.pack("<I", kind) + value


@pytest.mark.parametrize(
    "content",
    [
        b"GGUF",
        b"GGUF" + struct.pack("<IQQ", 3, 0, 2**60),
        b"GGUF" + struct.pack("<IQQ", 3, 2**60, 0),
        b"GGUF" + struct.pack("<IQQ", 1, 0, 0),
        b"GGUF" + struct.pack(">IQQ", 3, 0, 0),
        b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + struct.pack("<Q", 2**63) + b"x",
        b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + _pair(b"k", 9, struct.pack("<IQ", 0, 2**62)),  # a long array
        b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + _pair(b"k", 9, struct.pack("<IQ", 8, 2**62)),  # of texts
        b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + _pair(b"k", 9, struct.pack("<IQ", 9, 1) * 1000),  # of arrays
        b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + _pair(b"general.name", 99, b""),
        b"GGUF" + struct.pack("<IQQ", 3, 0, 2) + _pair(b"general.x", 0, b"1") * 2,
    ],
)
def test_hostile_gguf_headers_are_one_line(write, content):
    with pytest.raises(CheckpointError) as error:
        read(gguf, write("model.gguf", content))
    assert "\n" not in str(error.value)


def test_gguf_that_names_a_million_bases(write):
    count = _pair(b"general.base_model.count", 4, struct.pack("<I", 2**32 - 1))
    name = _pair(b"general.base_model.0.name", 8, _text(b"a\nb"))
    records = read(gguf, write("m.gguf", b"GGUF" + struct.pack("<IQQ", 3, 0, 2) + count + name))
    assert not only(Edge, records)
    assert problem(records)


def test_every_gguf_cut_short_is_refused(write):
    whole = (DATA / "gguf" / "chat-Q4_K_M.gguf").read_bytes()
    header = whole.index(b"output_norm.weight") + 30
    for end in range(4, header, 7):
        with pytest.raises(CheckpointError):
            read(gguf, write("m.gguf", whole[:end]))


# Plain tables.


def test_each_view_by_its_columns(write):
    lineage = 'parent,child,relation,method,weight,evidence,detail,source\n' \
        'o/a,o/m,merge,slerp,0.5,card,"{""t"": 0.5}",paper\no/b,o/m,merge,slerp,N/A,rumour,oops,\n'  # fmt: skip
    records = read(table, write("1.csv", lineage))
    assert only(Edge, records) == [
        Edge("o/a", "merge", "card", "o/m", "slerp", 0.5, {"t": 0.5, "source": "paper"}),
        Edge("o/b", "merge", "reported", "o/m", "slerp", None, {}),
    ]
    assert sorted(p.message.split(":")[1] for p in only(Problem, records)) == [" row 2", " row 2"]

    scores = "model,benchmark,metric,value,n_shot,evaluated_at\nm,gsm8k,acc,70.5,5,2024-01-02\n"
    assert read(table, write("2.csv", scores)) == [
        Score("gsm8k", "acc", 70.5, "m", n_shot=5, evaluated_at=datetime(2024, 1, 2, tzinfo=UTC))
    ]
    kinship = "model_a,model_b,base,pcc,cs,ed\nx,y,b,0.9,,4.5\ny,x,b,0.9,,4.5\n"
    assert read(table, write("3.csv", kinship)) == [ReportedKinship("x", "y", "b", 0.9, None, 4.5)]
    aliases = '{"alias": "old", "model": "new", "kind": "redirect"}\n{"alias": "new", "model": "new", "kind": "name"}\n'
    assert read(table, write("4.jsonl", aliases)) == [Alias("old", "new", "redirect")]
    models = [
        {"name": "m", "base": "b", "license": "mit", "parameters": 7, "digest": "ff"},
        {"name": "b", "base": None},
    ]
    assert read(table, write("5.json", json.dumps(models))) == [
        Facts("m", license="mit", parameters=7),
        Edge("b", "base", "reported", "m"),
        Facts("b"),
    ]


def test_parquet_keeps_its_types(tmp_path):
    when = datetime(2024, 1, 2, 3, 4)
    frame = pl.DataFrame(
        {
            "model": ["m"],
            "benchmark": ["b"],
            "metric": ["acc"],
            "value": [1.5],
            "evaluated_at": [when],
            "n_shot": [0],
        }
    )
    frame.write_parquet(tmp_path / "scores.parquet")
    assert read(table, tmp_path / "scores.parquet") == [
        Score("b", "acc", 1.5, "m", n_shot=0, evaluated_at=when.replace(tzinfo=UTC))
    ]


def test_rows_without_a_score_are_named_and_the_rest_is_read(write):
    bad = "".join(
        f"m{i},b,acc,{value}\n" for i, value in enumerate(["1", "NaN", "N/A", "", "inf", "many", "-", "2"])
    )
    records = read(table, write("scores.csv", "model,benchmark,metric,value\n" + bad + ",b,acc,3\n"))
    assert [(s.model, s.value) for s in only(Score, records)] == [("m0", 1.0), ("m7", 2.0)]
    assert [p.message for p in only(Problem, records)] == [
        "scores.csv: rows 2, 3, 4, 5, 6 and 1 more: no value, left out",
        "scores.csv: row 9: no model that can be a name, left out",
    ]


def test_missing_and_extra_columns(write):
    with pytest.raises(CheckpointError, match=r"lacks the columns metric \(is it 'metrics'\?\), value"):
        read(table, write("a.csv", "model,benchmark,metrics\nm,b,acc\n"))
    with pytest.raises(CheckpointError, match="none of the columns pcc, cs, ed"):
        read(table, write("a.csv", "model_a,model_b\nx,y\n"))
    records = read(table, write("b.csv", "model,benchmark,metric,value,colour\nm,b,acc,1,red\n"))
    assert "'colour'" in problem(records) and len(only(Score, records)) == 1


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("notes.csv", "a,b\n1,2\n"),
        ("model.safetensors.index.json", '{"metadata": {}, "weight_map": {}}'),
        ("samples_arc.jsonl", '{"doc_id": 0, "target": "x", "metrics": ["acc"]}\n'),
        ("bad.parquet", b"PAR1" + b"\xff" * 50),
        ("bad.json", "[" * 100_000),
        ("empty.csv", ""),
        ("names.csv", "name\nx\n"),
    ],
)
def test_other_peoples_tables_are_not_recognised(write, name, content):
    assert not table.recognises(str(write(name, content)))
    assert not leaderboard.recognises(str(write(name, content)))


def test_a_table_that_is_none_is_one_line(write):
    with pytest.raises(CheckpointError) as error:
        read(table, write("a.csv", "parent,child,relation\nx,y,merge\nx,y,merge,z\n"))
    assert "\n" not in str(error.value)
    unclosed = read(table, write("c.csv", 'parent,child,relation\n"a,b,merge\nx,y,merge\n'))
    assert not only(Edge, unclosed) and "no rows" in problem(unclosed)
    with pytest.raises(CheckpointError):
        read(table, write("b.jsonl", '{"alias": "x", "model": "y"}\n{"alias": '))


def test_names_in_tables(write):
    rows = [
        {"alias": "[/]\x1b[31m", "model": "m"},
        {"alias": "a\nb", "model": "m"},
        {"alias": "c\x00", "model": "m"},
    ]
    records = read(table, write("aliases.json", json.dumps(rows)))
    assert only(Alias, records) == [Alias("[/]\x1b[31m", "m")]
    assert problem(records) == "aliases.json: rows 2, 3: no alias that can be a name, left out"


def test_kinship_beyond_its_range(write):
    rows = "x,y,1.2\nx,x,0.5\nx,z,NaN\nx,w,1\n"
    records = read(table, write("k.csv", "model_a,model_b,pcc\n" + rows))
    assert only(ReportedKinship, records) == [ReportedKinship("w", "x", None, 1.0)]
    assert len(only(Problem, records)) == 3


# All of them.


def test_no_two_importers_take_the_same_file(write):
    importers = [card, eval_results, gguf, leaderboard, lm_eval, mergekit, table]
    scores = json.dumps([{"model": "m", "benchmark": "b", "metric": "acc", "value": 1}])
    folders = ("mergekit", "lm_eval", "gguf", "huggingface_hub", "peft")
    files = [path for folder in folders for path in (DATA / folder).rglob("*") if path.is_file()]
    files.append(write("results.json", scores))
    for path in files:
        assert sum(importer.recognises(str(path)) for importer in importers) == 1, path


@pytest.mark.parametrize("importer", [card, eval_results, gguf, leaderboard, lm_eval, mergekit, table])
def test_recognising_raises_nothing(importer, tmp_path):
    for source in (
        "hf:org/name",
        "",
        "a\0b",
        "x" * 5000,
        str(tmp_path),
        str(tmp_path / "none.csv"),
        "/dev/zero",
    ):
        assert not importer.recognises(source)
