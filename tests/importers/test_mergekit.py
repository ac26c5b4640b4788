"""The importer of mergekit configurations."""

import pytest
from records import DATA, only, parents, problem, read

from kinbase.checkpoint import Edge, Problem
from kinbase.checkpoint import yaml as safe_yaml
from kinbase.errors import CheckpointError
from kinbase.importers import card, mergekit


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
    named = f"{path}@{detail['revision']}" if "revision" in detail else path
    adapter = f"{lora}@{detail['lora_revision']}" if "lora_revision" in detail else lora
    assert set(found) == {named, "org/other", *([adapter] if lora else [])}
    assert found[named].detail == detail


def test_an_adapter_on_the_base_is_the_parent(write):
    config = "merge_method: task_arithmetic\nbase_model: o/b\nmodels:\n- {model: o/b+o/x, parameters: {weight: 0.5}}\n"
    records = read(mergekit, write("m.yml", config))
    assert [(edge.parent, edge.relation, edge.weight) for edge in only(Edge, records)] == [
        ("o/x", "merge", 0.5),
        ("o/b", "base", None),
    ]


def test_another_revision_of_the_base_is_a_parent_and_main_is_none(write):
    config = "merge_method: ties\nbase_model: o/b@v1\nmodels: [{model: o/b@%s}, {model: o/a}]\n"
    records = read(mergekit, write("m.yml", config % "main"))
    assert set(parents(records)) == {"o/b", "o/a"}
    assert parents(records, "base")["o/b@v1"].detail == {"revision": "v1"}
    assert set(parents(read(mergekit, write("m.yml", config % "v1")))) == {"o/a"}


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


def test_an_adapter_on_the_base_is_named_as_well(write):
    config = (
        "merge_method: ties\nbase_model: o/base+o/lora@v1\nmodels: [{model: o/a}]\nparameters: {weight: 1}\n"
    )
    bases = parents(read(mergekit, write("m.yml", config)), "base")
    assert bases.keys() == {"o/base", "o/lora@v1"}
    assert bases["o/lora@v1"].detail == {"model": "o/base", "revision": "v1"}


def test_experts_are_recognised_under_any_name(write):
    config = "base_model: o/a\nexperts:\n- source_model: o/x\n- source_model: o/y\n"
    assert set(parents(read(mergekit, write("config.yaml", config)))) == {"o/a", "o/x", "o/y"}
    assert not mergekit.recognises(str(write("other.yaml", "experts:\n- name: somebody\n")))
