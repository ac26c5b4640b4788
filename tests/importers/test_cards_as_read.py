"""Cards as the Hub reads them, the recipes in them, and what tells a copy's files from a model's own."""

import json

import pytest
from records import only, parents, problem, read

from kinbase.checkpoint import Edge, Facts, Problem, Score
from kinbase.importers import card, mergekit

HEADER = """---
base_model: o/base
license: mit
model-index:
- name: m
  results:
  - dataset: {name: G, type: g}
    metrics: [{type: acc, value: 61.2}]
---
# Text
"""
RECIPE = "models: [{model: o/a}, {model: o/b}]\nmerge_method: linear\nparameters: {weight: 0.5}\n"


def fence(text, marks="```"):
    return f"{marks}yaml\n{text}{marks}\n"


@pytest.mark.parametrize(
    "content",
    [
        HEADER.replace("\n", "\r\n").encode(),
        HEADER.replace("\n", "\r").encode(),
        b"\xef\xbb\xbf" + HEADER.encode(),
        ("\n\n" + HEADER).encode(),
        HEADER.replace("---\n", "---  \n").encode(),
        HEADER.encode("utf-16"),
        HEADER.replace("\n", "\r\n", 4).encode(),
    ],
    ids=["windows", "old mac", "mark", "blank lines", "spaces", "utf-16", "mixed"],
)
def test_a_header_is_read_whatever_its_lines_end_in(write, content):
    path = write("README.md", content)
    assert card.recognises(str(path))
    records = read(card, path)
    assert set(parents(records, "finetune")) == {"o/base"}
    assert only(Facts, records)[0].license == "mit"
    assert [s.value for s in only(Score, records)] == [61.2]


@pytest.mark.parametrize("ends", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("marks", ["```", "~~~", "````"])
def test_a_recipe_is_read_whatever_its_lines_end_in(write, ends, marks):
    text = ("---\ntags: [merge]\n---\n" + fence(RECIPE, marks)).replace("\n", ends)
    found = parents(read(card, write("README.md", text.encode())))
    assert {name: edge.weight for name, edge in found.items()} == {"o/a": 0.5, "o/b": 0.5}


def stages(write, first, second, before="", between="", bases="[o/a, o/b, o/c]"):
    text = (
        f"---\nbase_model: {bases}\ntags: [merge]\n---\n{before}\n{fence(first)}\n{between}\n{fence(second)}"
    )
    edges = only(Edge, read(card, write("README.md", text)))
    return {(edge.parent.partition("#")[0], (edge.child or "").partition("#")[0]) for edge in edges}


SECOND = "models: [{model: ./first}, {model: o/c}]\nmerge_method: linear\nparameters: {weight: 0.5}\n"


def test_a_stage_is_linked_to_the_recipe_that_takes_its_folder(write):
    assert stages(write, RECIPE, SECOND) == {("o/a", "first"), ("o/b", "first"), ("first", ""), ("o/c", "")}


def test_of_two_stages_the_caption_tells_which_is_which(write):
    other = RECIPE.replace("o/a", "o/x").replace("o/b", "o/y")
    last = "models: [{model: ./two}, {model: ./one}]\nmerge_method: linear\nparameters: {weight: 0.5}\n"
    text = f"---\ntags: [merge]\n---\nThis makes `./one`:\n{fence(RECIPE)}Then two:\n{fence(other)}At last:\n{fence(last)}"
    edges = only(Edge, read(card, write("README.md", text)))
    made = {(edge.child or "").partition("#")[0]: set() for edge in edges}
    for edge in edges:
        made[(edge.child or "").partition("#")[0]].add(edge.parent.partition("#")[0])
    assert made == {"one": {"o/a", "o/b"}, "two": {"o/x", "o/y"}, "": {"one", "two"}}


def test_what_no_recipe_that_is_read_mentions_the_header_claims(write):
    alone = "models: [{model: o/c}, {model: o/d}]\nmerge_method: linear\nparameters: {weight: 0.5}\n"
    found = stages(write, RECIPE, alone)
    assert found == {("o/c", ""), ("o/d", ""), ("o/a", ""), ("o/b", "")}


COPIES = [
    "base_model: o/blend\nbase_model_relation: quantized",
    "base_model: o/blend\nbase_model_relation: quantised",
    "base_model: o/blend\ntags: [merge, mergekit, gguf]",
    "base_model: o/blend\ntags: [merge, exl2]",
    "base_model: [o/blend]\ntags: [mergekit, merge, 4-bit, AWQ]",
    "base_model: o/blend\ntags: [merge]\nquantized_by: somebody",
    "base_model: o/blend\nlibrary_name: mlx\ntags: [merge]",
    "tags: [merge, 'base_model:quantized:o/blend']",
]


@pytest.mark.parametrize("header", COPIES)
def test_a_quantised_copy_has_one_parent_whatever_was_copied_with_it(write, header):
    write("README.md", f"---\n{header}\n---\n{fence(RECIPE)}")
    config = write("mergekit_config.yml", RECIPE)
    records = read(card, config.with_name("README.md"))
    assert own(records) == [("o/blend", "quantized")]
    assert only(Facts, records)[0].relation == "quantized"
    beside = read(mergekit, config)
    for found in (records, beside):
        of_source = {e.parent: (e.child, e.evidence) for e in only(Edge, found) if e.child}
        assert of_source == {"o/a": ("o/blend", "reported"), "o/b": ("o/blend", "reported")}
        assert "is kept as reported of 'o/blend'" in problem(found)
    assert not own(beside)


def own(records):
    """The claims on the model that a file lies beside."""
    return [(edge.parent, edge.relation) for edge in only(Edge, records) if edge.child is None]


def test_a_recipe_beside_a_copy_that_takes_its_source_is_told_alone(write):
    takes_it = RECIPE.replace("o/b", "o/blend")
    header = "base_model: o/blend\nbase_model_relation: quantized"
    records = read(card, write("README.md", f"---\n{header}\n---\n{fence(takes_it)}"))
    assert [e.parent for e in only(Edge, records)] == ["o/blend"] and "is not this model's" in problem(
        records
    )


def test_a_recipe_that_takes_none_of_the_base_models_is_told(write):
    records = read(card, write("README.md", f"---\nbase_model: o/x\n---\n{fence(RECIPE)}"))
    assert own(records) == [("o/x", "finetune")] and "takes none of the base models" in problem(records)


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("1. Recipe:\n\n   ", "   "),
        ("- x\n    ", "    "),
        ("> ", "> "),
        ("> - x\n>   ", ">   "),
        ("\t", "\t"),
    ],
    ids=["list", "deep list", "quote", "list in a quote", "tab"],
)
def test_a_recipe_within_a_list_or_a_quotation_is_read(write, before, after):
    lines = fence("models:\n- model: o/a\n- model: o/b\nmerge_method: linear\n").splitlines()
    text = before + ("\n" + after).join(lines)
    assert set(parents(read(card, write("README.md", f"---\ntags: [merge]\n---\n{text}\n")))) == {
        "o/a",
        "o/b",
    }


@pytest.mark.parametrize("opening", ["```{.yaml}", "``` yaml title=x", "```json", "~~~YAML", "```yml", "```"])
def test_a_block_of_yaml_under_each_of_its_names_is_read(write, opening):
    text = (
        opening
        + '\n{"models": [{"model": "o/a"}, {"model": "o/b"}], "merge_method": "linear"}\n'
        + opening[:3]
    )
    assert set(parents(read(card, write("README.md", f"---\ntags: [merge]\n---\n{text}\n")))) == {
        "o/a",
        "o/b",
    }


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (fence("models:\n\t- model: o/a\nmerge_method: linear\n"), "a recipe in the text: not YAML"),
        ("<pre><code>\nmodels: [o/a]\nmerge_method: linear\n</code></pre>", "in no block of YAML"),
        ('```python\ny = """\nmerge_method: linear\n"""\n```', "in no block of YAML"),
        ("Config:\n\n    merge_method: linear\n", "in no block of YAML"),
    ],
    ids=["tabs", "html", "python", "indented"],
)
def test_a_recipe_that_cannot_be_read_is_told(write, text, said):
    records = read(card, write("README.md", f"---\ntags: [merge]\n---\n{text}\n"))
    assert not only(Edge, records) and said in problem(records)


def test_a_word_about_merge_methods_is_no_recipe(write):
    text = "We set merge_method to linear, unlike o/other, which is no parent.\n"
    assert not only(Problem, read(card, write("README.md", f"---\ntags: [merge]\n---\n{text}")))


def test_quantised_weights_beside_a_card_with_one_base_are_a_copy(write):
    config = {"architectures": ["LlamaForCausalLM"], "quantization_config": {"quant_method": "exl2"}}
    write("config.json", json.dumps(config))
    records = read(card, write("README.md", f"---\nbase_model: o/blend\ntags: [merge]\n---\n{fence(RECIPE)}"))
    assert own(records) == [("o/blend", "quantized")]


def test_a_merge_with_its_own_card_keeps_its_recipe(write):
    write("README.md", "---\nbase_model: [o/a, o/b]\ntags: [merge]\n---\n")
    assert set(parents(read(mergekit, write("mergekit_config.yml", RECIPE)))) == {"o/a", "o/b"}


@pytest.mark.parametrize("word", ["distillation", "translation of the weights", "pruning"])
def test_other_relations_stay_as_stated(write, word):
    records = read(card, write("README.md", f"---\nbase_model: o/a\nbase_model_relation: {word}\n---\n"))
    assert [(e.parent, e.relation) for e in only(Edge, records)] == [("o/a", word)]
    if word.startswith("translation"):
        assert "kept as stated" in problem(records)
    else:
        assert not only(Problem, records)


@pytest.mark.parametrize("base", ["null", "''", "None", "[]", "[null, '']", "N/A", "'nan'"])
def test_nothing_in_words_is_no_base(write, base):
    records = read(card, write("README.md", f"---\nbase_model: {base}\nlicense: mit\n---\n"))
    assert not only(Edge, records)
    assert only(Facts, records)[0].relation is None


@pytest.mark.parametrize(
    "text",
    ["o/Base", "https://huggingface.co/o/Base/", "huggingface.co/o/Base", "hf.co/o/Base", "hf://o/Base", "o/Base@main",
     "https://huggingface.co/o/Base/tree/main", "o/Base/", "http://www.huggingface.co/o/Base?library=x", "o/Base:latest"],
)  # fmt: skip
def test_every_spelling_of_an_id_is_the_id(write, text):
    assert set(parents(read(card, write("README.md", f"---\nbase_model: '{text}'\n---\n")), "finetune")) == {
        "o/Base"
    }


def test_a_shared_expert_is_a_parent(write):
    config = "base_model: o/donor\nexperts: [{source_model: o/x}, {source_model: o/y}]\nshared_experts: [{source_model: o/s}]\n"
    assert set(parents(read(mergekit, write("mergekit_moe_config.yml", config)))) == {
        "o/donor",
        "o/x",
        "o/y",
        "o/s",
    }


@pytest.mark.parametrize(
    ("method", "relation"), [("linear", "merge"), ("karcher", "merge"), ("ties", "base"), ("nuslerp", "base")]
)
def test_a_base_that_is_not_listed_is_what_the_method_makes_of_it(write, method, relation):
    config = f"merge_method: {method}\nbase_model: o/b\nmodels: [{{model: o/x}}, {{model: o/y}}]\nparameters: {{weight: 1.0}}\n"
    edges = {e.parent: e for e in only(Edge, read(mergekit, write("m.yml", config)))}
    assert set(edges) == {"o/x", "o/y", "o/b"} and edges["o/b"].relation == relation
    if method == "linear":
        assert {round(e.weight, 6) for e in edges.values()} == {0.333333}


def test_two_revisions_of_one_repository_are_two_parents(write):
    config = (
        "merge_method: linear\nmodels:\n- {model: o/a@one, parameters: {weight: 1}}\n"
        "- {model: o/a@two, parameters: {weight: 3}}\n"
    )
    found = parents(read(mergekit, write("m.yml", config)))
    assert {name: edge.weight for name, edge in found.items()} == {"o/a@one": 0.25, "o/a@two": 0.75}


def test_settings_of_the_whole_merge_are_not_taken_from_beside_a_source(write):
    config = "merge_method: slerp\nbase_model: o/a\nparameters: {t: 0.3}\n"
    config += "models: [{model: o/a}, {model: o/b, parameters: {t: 0.9}}]\n"
    found = parents(read(mergekit, write("m.yml", config)))
    assert {name: round(edge.weight, 9) for name, edge in found.items()} == {"o/a": 0.7, "o/b": 0.3}


def test_filters_that_fit_no_tensor_leave_it_to_the_setting_outside(write):
    config = (
        "merge_method: task_arithmetic\nbase_model: o/b\nparameters: {weight: 0.5}\nmodels:\n"
        "- {model: o/x, parameters: {weight: [{filter: mlp, value: %s}]}}\n"
    )
    assert parents(read(mergekit, write("m.yml", config % "0.5")))["o/x"].weight == 0.5
    assert parents(read(mergekit, write("m.yml", config % "0.4")))["o/x"].weight is None


def test_one_setting_for_all_inputs_gives_each_an_equal_share(write):
    config = (
        "merge_method: linear\nparameters: {weight: [{filter: mlp, value: [0.1, 0.9]}, {value: 0.5}]}\n"
        "models: [{model: o/a}, {model: o/b}, {model: o/c}, {model: o/d}]\n"
    )
    assert {e.weight for e in parents(read(mergekit, write("m.yml", config))).values()} == {0.25}
    unlike = config.replace("{model: o/d}", "{model: o/d, parameters: {weight: 0.5}}")
    assert {e.weight for e in parents(read(mergekit, write("m.yml", unlike))).values()} == {None}
