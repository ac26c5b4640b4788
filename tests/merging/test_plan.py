"""Which tensors a merge writes and from which: filters, gradients, slices, shards, dtypes, tokenizers."""

import json
import shutil

import families
import pytest
import torch
from merges import delta_config, merged, models, weights
from ruamel.yaml import YAML
from safetensors.torch import load_file, save_file

from kinbase import merging
from kinbase.errors import CheckpointError
from kinbase.merging.settings import value_at

# Parameters.


@pytest.mark.parametrize(
    "setting, tensor, depth, wanted",
    [
        (0.5, "x", 0.3, 0.5),
        ([0, 1], "x", 0.25, 0.25),
        ([0, 0.5, 0.3, 0.7, 1], "x", 0.375, 0.4),
        ([0, 0.5, 0.3, 0.7, 1], "x", 1.0, 1.0),
        ([True, False], "x", 0.5, True),
        ([{"filter": "mlp", "value": 2}, {"value": [0, 1]}], "a.mlp.b", 0.5, 2),
        ([{"filter": "mlp", "value": 2}, {"value": [0, 1]}], "a.attn.b", 0.5, 0.5),
        ([{"filter": "mlp", "value": 2}], "a.attn.b", 0.5, None),
        ({"filter": "*", "value": 3}, "a", 0.5, 3),
    ],
)
def test_filters_and_gradients(setting, tensor, depth, wanted):
    got = value_at(setting, tensor, depth)
    assert (
        got is wanted
        if wanted is None or isinstance(wanted, bool)
        else got == pytest.approx(wanted, rel=1e-15)
    )


def test_gradients_run_over_the_layers_and_filters_choose_tensors(tmp_path, family):
    share = {"weight": [{"filter": "mlp", "value": 1}, {"filter": "layers", "value": [0, 1]}, {"value": 1}]}
    rest = {"weight": [{"filter": "mlp", "value": 0}, {"filter": "layers", "value": [1, 0]}, {"value": 0}]}
    child = merged(
        {"merge_method": "linear", "models": models(family, ft_a=share, ft_b=rest)}, tmp_path / "child"
    )
    a, b = weights(family["ft_a"]), weights(family["ft_b"])
    for name, tensor in child.items():
        of_b = (
            "layers.0" in name and "mlp" not in name
        )  # two layers: the first takes the gradient's first end
        assert torch.equal(tensor, (b if of_b else a)[name]), name


def test_slices_renumber_layers(tmp_path, family):
    slices = [
        {"sources": [{"model": str(family[m]), "layer_range": [layer, layer + 1], "parameters": {"weight": w}} for m, w in pair]}
        for layer, pair in (
            (1, (("ft_a", 1), ("ft_b", 0))), (0, (("ft_a", 0), ("ft_b", 1))), (1, (("ft_a", 1), ("ft_b", 0))),
        )
    ]  # fmt: skip
    child = merged({"merge_method": "linear", "slices": slices}, tmp_path / "child")
    a, b = weights(family["ft_a"]), weights(family["ft_b"])
    rest = "self_attn.q_proj.weight"
    for out, source in enumerate(
        (a[f"model.layers.1.{rest}"], b[f"model.layers.0.{rest}"], a[f"model.layers.1.{rest}"])
    ):
        assert torch.equal(child[f"model.layers.{out}.{rest}"], source)
    assert torch.equal(child["model.embed_tokens.weight"], a["model.embed_tokens.weight"])
    assert json.loads((tmp_path / "child" / "config.json").read_text())["num_hidden_layers"] == 3


# Folders.


def test_sharded_parents_and_a_sharded_child_hold_the_same(tmp_path, family):
    split = tmp_path / "split"
    shutil.copytree(family["ft_a"], split)
    tensors = load_file(split / "model.safetensors")
    (split / "model.safetensors").unlink()
    half = len(tensors) // 2
    parts = {
        "model-00001-of-00002.safetensors": list(tensors)[:half],
        "model-00002-of-00002.safetensors": list(tensors)[half:],
    }
    for file, names in parts.items():
        save_file({name: tensors[name] for name in names}, split / file)
    index = {"metadata": {}, "weight_map": {name: file for file, names in parts.items() for name in names}}
    (split / "model.safetensors.index.json").write_text(json.dumps(index))
    whole = merged(
        {"merge_method": "linear", "models": models(family, ft_a=0.6, ft_b=0.4)}, tmp_path / "whole"
    )
    config = {"merge_method": "linear", "models": models({**family, "ft_a": split}, ft_a=0.6, ft_b=0.4)}
    sharded = merged(config, tmp_path / "sharded", shard_bytes=12_000)
    assert all(torch.equal(whole[name], sharded[name]) for name in whole)
    written = json.loads((tmp_path / "sharded" / "model.safetensors.index.json").read_text())
    assert written["weight_map"].keys() == whole.keys()
    assert written["metadata"]["total_size"] == sum(t.numel() * t.element_size() for t in whole.values())
    for file in set(written["weight_map"].values()):
        assert (
            tmp_path / "sharded" / file
        ).stat().st_size <= 12_000 + 2000  # bytes of tensors, and the header


def test_dtypes_are_as_the_configuration_says(tmp_path, family):
    config = {"merge_method": "linear", "models": models(family, ft_a=0.6, ft_b=0.4), "dtype": "float32"}
    assert {t.dtype for t in merged(config, tmp_path / "a").values()} == {torch.float32}
    assert {t.dtype for t in merged({**config, "out_dtype": "float16"}, tmp_path / "b").values()} == {
        torch.float16
    }
    assert json.loads((tmp_path / "b" / "config.json").read_text())["torch_dtype"] == "float16"


def test_a_head_of_its_own_in_one_parent_is_merged_with_the_embedding_of_the_other(tmp_path):
    tensors = {
        "model.embed_tokens.weight": torch.tensor([[1.0, 2], [3, 4]]),
        "model.layers.0.mlp.weight": torch.ones(2),
    }
    head = {"lm_head.weight": torch.tensor([[3.0, 2], [1, 0]])}
    for name, own in (("tied", {}), ("untied", head)):
        families.write_safetensors(tmp_path / name / "model.safetensors", {**tensors, **own})
        (tmp_path / name / "config.json").write_text(
            json.dumps({"tie_word_embeddings": not own, "num_hidden_layers": 1})
        )
    both = models({"tied": tmp_path / "tied", "untied": tmp_path / "untied"}, tied=1, untied=1)
    child = merged({"merge_method": "linear", "models": both}, tmp_path / "child")
    assert torch.equal(child["lm_head.weight"], torch.full((2, 2), 2.0))
    assert json.loads((tmp_path / "child" / "config.json").read_text())["tie_word_embeddings"] is False


def test_integer_buffers_are_copied_when_they_agree(tmp_path):
    for name, ids in (("a", [0, 1]), ("b", [0, 1]), ("c", [0, 2])):
        families.write_safetensors(
            tmp_path / name / "model.safetensors", {"w": torch.ones(2), "ids": torch.tensor(ids)}
        )
    folders = {name: tmp_path / name for name in "abc"}
    child = merged({"merge_method": "linear", "models": models(folders, a=1, b=1)}, tmp_path / "child")
    assert child["ids"].tolist() == [0, 1]
    with pytest.raises(CheckpointError, match=r"buffer 'ids' is not the same in a and c"):
        merged({"merge_method": "linear", "models": models(folders, a=1, c=1)}, tmp_path / "other")


def test_what_lies_beside_the_weights(tmp_path, family):
    folders = {name: shutil.copytree(family[name], tmp_path / name) for name in ("base", "ft_a", "ft_b")}
    for name, license in (("base", "mit"), ("ft_a", "apache-2.0"), ("ft_b", "apache-2.0")):
        (folders[name] / "README.md").write_text(f"---\nlicense: {license}\n---\n")
    (folders["base"] / "tokenizer.json").write_text("{}")
    (folders["base"] / "generation_config.json").write_text('{"top_k": 1}')
    merging.merge(merging.parse(delta_config(folders, "ties")), tmp_path / "child")
    merging.merge(
        merging.parse({"merge_method": "linear", "models": models(folders, ft_a=1, ft_b=1)}),
        tmp_path / "second",
    )
    child = tmp_path / "child"
    assert (child / "tokenizer.json").read_text() == "{}"
    assert (child / "generation_config.json").read_text() == '{"top_k": 1}'
    header = YAML(typ="safe").load((child / "README.md").read_text().split("---\n")[1])
    assert header == {  # the base of a delta method is no parent, and its licence is not the others'
        "base_model": ["ft_a", "ft_b"],
        "base_model_relation": "merge",
        "library_name": "transformers",
        "tags": ["mergekit", "merge"],
    }
    assert (
        YAML(typ="safe").load((tmp_path / "second" / "README.md").read_text().split("---\n")[1])["license"]
        == "apache-2.0"
    )
    recorded = YAML(typ="safe").load((child / "mergekit_config.yml").read_text())
    assert recorded == delta_config(folders, "ties")
