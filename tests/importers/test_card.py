"""The importer of model cards: files that real tools wrote, and headers that are hostile."""

from pathlib import Path

import pytest
from records import DATA, only, parents, problem, read

from kinbase.checkpoint import Edge, Facts, Score
from kinbase.checkpoint import yaml as safe_yaml
from kinbase.importers import card


def test_mergekit_cards_with_hub_ids_do_not_claim_the_base_or_adapters_as_parents():
    ties = read(card, DATA / "mergekit/hub_ties/README.md")
    assert "example/base" in (DATA / "mergekit/hub_ties/README.md").read_text().split("---")[1]
    assert set(parents(ties)) == {"example/math", "example/chat"}
    assert set(parents(ties, "base")) == {"example/base"}
    lora = read(card, DATA / "mergekit/hub_lora/README.md")
    assert set(parents(lora)) == {"example/math@v1.2", "example/math-lora@abc123", "example/chat-lora"}
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
    own = [(e.parent, e.relation) for e in only(Edge, records) if e.child is None]
    assert own == [("example/merged", "quantized")]
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
