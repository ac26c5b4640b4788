"""Base models as people write them into the headers of cards, and the relation that the header leaves to be inferred."""

import pytest
from records import only, parents, problem, read

from kinbase.checkpoint import Edge, Facts
from kinbase.importers import card


def told(write, header, name="README.md"):
    return read(card, write(name, f"---\n{header}\n---\n# Text\n"))


def named(records):
    return [edge.parent for edge in only(Edge, records)]


@pytest.mark.parametrize(
    ("value", "names"),
    [
        ("'[o/a](https://huggingface.co/o/a)'", ["o/a"]),
        ("'[the base](https://huggingface.co/o/a/tree/v2)'", ["o/a@v2"]),
        ("'[o/a](https://example.org/paper)'", ["o/a"]),
        ("o/a, o/b", ["o/a", "o/b"]),
        ("o/a and o/b", ["o/a", "o/b"]),
        ("o/a + o/b", ["o/a", "o/b"]),
        ("\"['o/a', 'o/b']\"", ["o/a", "o/b"]),
        ("'[\"o/a\"]'", ["o/a"]),
        ("'[o/a, o/b]'", ["o/a", "o/b"]),
        ("[O/A, o/a, https://hf.co/o/A]", ["O/A"]),
        ("Llama 2, the chat one", ["Llama 2, the chat one"]),
        ("rock & roll", ["rock & roll"]),
        ("bert-base-uncased", ["bert-base-uncased"]),
    ],
)  # fmt: skip
def test_ids_are_read_in_every_form(write, value, names):
    assert named(told(write, f"base_model: {value}")) == names


def test_words_behind_an_id_are_no_part_of_it_and_are_told(write):
    records = told(write, "base_model: o/a (instruct)")
    assert named(records) == ["o/a"]
    assert "the words behind 'o/a' in base_model 'o/a (instruct)'" in problem(records)


@pytest.mark.parametrize("value", ["'{{ base_model }}'", "'[More Information Needed]'", "TBD", "<base>",
                                   "https://huggingface.co/datasets/o/d", "https://huggingface.co/spaces/o/s"])  # fmt: skip
def test_what_stands_for_a_name_and_is_none_is_refused(write, value):
    records = told(write, f"base_model: {value}\nlicense: mit")
    assert named(records) == [] and "which is no model" in problem(records)
    assert only(Facts, records)[0].license == "mit"


@pytest.mark.parametrize(
    "key", ["base_models", "base-model", "merged_models", "parent_model", "finetuned_from"]
)
def test_a_key_that_looks_like_base_model_is_told(write, key):
    records = told(write, f"{key}: [o/a]")
    assert named(records) == [] and f"'{key}', which the Hub does not read" in problem(records)


def test_a_text_full_of_openings_costs_no_more_than_its_length(write):
    """A link is looked for in what could be a name: this would take minutes otherwise."""
    assert "cannot be a name" in problem(told(write, f"base_model: '{'[' * 400_000}'"))


@pytest.mark.parametrize(
    ("header", "relation"),
    [
        ("tags: ['base_model:o/a', 'base_model:quantized:o/a']", "quantized"),
        ("base_model: o/a\ntags: ['base_model:adapter:O/a']", "adapter"),
        ("base_model: o/a\ntags: ['base_model:adapter:o/other']", "finetune"),
        ("base_model: o/a\nbase_model_relation: [quantized]", "quantized"),
        ("base_model: o/a\nlibrary_name: PEFT", "adapter"),
        ("base_model: o/a\nlibrary_name: diffusers\ntags: [text-to-image, lora]", "adapter"),
        ("base_model: o/a\ntags: [LoRA]", "adapter"),
        ("base_model: o/a\nlibrary_name: transformers\ntags: [lora]", "finetune"),
        ("base_model: [o/a, O/A]", "finetune"),
    ],
)
def test_the_relation_of_one_base(write, header, relation):
    records = told(write, header)
    assert len(parents(records, relation)) == 1
    assert only(Facts, records)[0].relation == relation


def test_every_base_of_the_tags_is_one(write):
    tags = "['base_model:o/a', 'base_model:merge:o/a', 'base_model:o/b', 'base_model:merge:o/b', 'region:us']"
    assert set(parents(told(write, f"tags: {tags}"), "merge")) == {"o/a", "o/b"}


def test_whole_weights_are_no_adapter_whatever_tag_a_trainer_left(write):
    write("model.safetensors", "")
    assert set(parents(told(write, "base_model: o/a\ntags: [lora]"), "finetune")) == {"o/a"}


def test_a_relation_that_is_no_word_is_told(write):
    records = told(write, "base_model: o/a\nbase_model_relation: {a: b}")
    assert set(parents(records, "finetune")) == {"o/a"} and "base_model_relation" in problem(records)


@pytest.mark.parametrize("before", ["# My model\n\n", "<!-- generated -->\n", "```yaml\n"])
def test_a_header_below_other_text_is_told(write, before):
    text = f"{before}---\nlanguage:\n- en\nlicense: mit\nbase_model: o/a\n---\n# Text\n"
    records = read(card, write("README.md", text))
    assert not only(Edge, records) and "not at the top" in problem(records)


def test_a_line_across_a_text_is_no_header(write):
    records = read(card, write("README.md", "# Model\n\n---\n\nThe license: mit.\n\n---\n"))
    assert [type(record) for record in records] == [Facts]
