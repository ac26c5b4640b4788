"""The importer of checkpoint folders: configs, shards, links, tied and quantised weights."""

import json

import pytest
import safetensors
import safetensors.torch
import torch
from checkpoints import (
    contents,
    data,
    opened,
    quantised_tensors,
    random_tensor,
    raw,
    refused,
    shard,
    write_index,
)
from families import write_safetensors

from kinbase.checkpoint import Facts, Problem, files
from kinbase.importers import folder, pytorch
from kinbase.importers import safetensors as one_file


def test_a_folder_says_what_its_config_says(family):
    checkpoint, facts, rest = opened(folder, family["ft_a"])
    assert checkpoint.name == "ft_a" and checkpoint.source == str(family["ft_a"]) and rest == []
    assert facts == Facts(
        architecture="LlamaForCausalLM",
        dtype="bfloat16",
        parameters=sum(
            t.numel() for t in safetensors.torch.load_file(family["ft_a"] / "model.safetensors").values()
        ),
    )
    assert opened(folder, f"{family['ft_a']}/../ft_a/")[0].name == "ft_a"


@pytest.mark.parametrize("index", [True, False])
def test_shards_equal_the_whole(family, tmp_path, index):
    shard(family["base"], tmp_path, index=index)
    whole, _, _ = opened(folder, family["base"])
    sharded, _, _ = opened(folder, tmp_path)
    assert contents(sharded) == contents(whole)
    assert len(sharded.files) == 3


def test_torch_files_equal_safetensors(family, tmp_path):
    tensors = safetensors.torch.load_file(family["base"] / "model.safetensors")
    expected = contents(opened(folder, family["base"])[0])
    for name, value in {
        "pytorch_model.bin": tensors,
        "nested.pt": {"state_dict": tensors, "epoch": 3},
        "nested.pth": {"model": {k: torch.nn.Parameter(v) for k, v in tensors.items()}, "args": {"lr": 1.0}},
    }.items():
        torch.save(value, tmp_path / name)
        assert contents(opened(pytorch, tmp_path / name)[0]) == expected
    assert contents(opened(folder, tmp_path)[0]) == expected
    names = sorted(tensors)
    (tmp_path / "shards").mkdir()
    weight_map = {}
    for number, part in enumerate((names[:7], names[7:])):
        file = f"pytorch_model-{number + 1:05}-of-00002.bin"
        torch.save({name: tensors[name] for name in part}, tmp_path / "shards" / file)
        weight_map |= dict.fromkeys(part, file)
    write_index(tmp_path / "shards", weight_map, "pytorch_model.bin.index.json")
    torch.save({"step": torch.tensor(1)}, tmp_path / "shards" / "optimizer.pt")
    assert contents(opened(folder, tmp_path / "shards")[0]) == expected


@pytest.mark.parametrize(
    "name",
    [
        "../base/model.safetensors",
        "/etc/passwd",
        "sub/../../base/model.safetensors",
        "..",
        "",
        "a\\b",
        "a\0b",
    ],
)
def test_an_index_may_not_point_elsewhere(family, tmp_path, name):
    (tmp_path / "sub").mkdir()
    write_index(tmp_path, {"a": name})
    refused(folder, tmp_path, "not directly inside the folder")


def test_a_link_may_not_point_elsewhere(family, tmp_path):
    (tmp_path / "model.safetensors").symlink_to(family["base"] / "model.safetensors")
    refused(folder, tmp_path, "a link out of its folder")
    (tmp_path / "model.safetensors").unlink()
    write_safetensors(tmp_path / "weights.st", {"a": torch.zeros(1)})
    (tmp_path / "model.safetensors").symlink_to("weights.st")
    assert len(opened(folder, tmp_path)[0].tensors) == 1


def test_index_and_shards_have_to_agree(family, tmp_path):
    weight_map = shard(family["base"], tmp_path)
    first = "model-00001-of-00003.safetensors"
    write_index(tmp_path, weight_map | {"extra": first})
    whole = contents(opened(folder, family["base"])[0])
    for index, words in (
        (weight_map | {"extra": first}, "lists 1 tensors that its files do not hold (first 'extra')"),
        ({k: v for k, v in weight_map.items() if k != "lm_head.weight"}, "leaves out 1 tensors"),
    ):
        write_index(tmp_path, index)
        checkpoint, _, (problem,) = opened(folder, tmp_path)
        assert contents(checkpoint) == whole and words in problem.message
    write_index(tmp_path, weight_map)
    (tmp_path / first).unlink()
    refused(folder, tmp_path, f"the shard '{first}', which is missing")
    (tmp_path / "model.safetensors.index.json").unlink()
    refused(folder, tmp_path, "2 of the 3 shards of 'model'")


@pytest.mark.parametrize(
    ("index", "words"),
    [
        (b"{}", "no weight_map"),
        (b'{"weight_map": {}}', "no weight_map"),
        (b'{"weight_map": {"a": 3}}', "gives 'a' no file"),
        (b'{"weight_map": {"a": "x", "a": "y"}}', "'a' occurs twice"),
        (b"[" * 100_000, "nested too deeply"),
        (b"\xff\xfe", "not UTF-8"),
        (b'{"weight_map": ' + b" " * files.CONFIG_LIMIT + b"}", "larger than"),
    ],
    ids=lambda value: str(value)[:20],
)
def test_a_malformed_index_is_refused(tmp_path, index, words):
    (tmp_path / "model.safetensors.index.json").write_bytes(index)
    refused(folder, tmp_path, words)


@pytest.mark.parametrize(
    ("config", "words"),
    [
        (b"[]", "not a JSON object"),
        (b"{", "not valid JSON"),
        (b'{"a":' * 100_000, "nested too deeply"),
        (b"\xff", "not UTF-8"),
        (b" " * (files.CONFIG_LIMIT + 1), "larger than"),
    ],
    ids=lambda value: str(value)[:20],
)
def test_a_malformed_config_is_refused(tmp_path, config, words):
    write_safetensors(tmp_path / "model.safetensors", {"a": torch.zeros(1)})
    (tmp_path / "config.json").write_bytes(config)
    refused(folder, tmp_path, "config.json", words)


def test_a_config_of_the_wrong_types_says_nothing(tmp_path):
    write_safetensors(tmp_path / "model.safetensors", {"a": torch.zeros(1)})
    for config in (
        '{"architectures": [3], "torch_dtype": {}, "quantization_config": 1, "tie_word_embeddings": "yes"}',
        '{"architectures": {"a": 1}, "text_config": [], "time_step_limit": [0.0, Infinity]}',
        '{"architectures": ["a\\u0000b"]}',
    ):
        (tmp_path / "config.json").write_text(config)
        checkpoint, facts, _ = opened(folder, tmp_path)
        assert len(checkpoint.tensors) == 1 and facts == Facts(dtype="float32", parameters=1)


def test_a_folder_without_weights(tmp_path):
    assert not folder.recognises(str(tmp_path))
    refused(folder, tmp_path, "holds no weights")
    (tmp_path / "config.json").write_text("{}")
    assert folder.recognises(str(tmp_path))
    refused(folder, tmp_path, "holds no weights", ".safetensors")


def test_a_folder_of_models_says_how_to_import_them_all(tmp_path):
    home = tmp_path / "models"
    for name in ("one", "two"):
        write_safetensors(home / name / "model.safetensors", {"a": torch.zeros(1)})
    refused(folder, home, f"folders below it do (2): import {home}/* takes each by itself")
    (home / "notes.txt").write_text("a file that is no model")
    refused(folder, home, f"import {home}/one, {home}/two by themselves")


def test_loose_files_that_contradict_each_other(tmp_path):
    write_safetensors(tmp_path / "x.safetensors", {"a": torch.zeros(1)})
    write_safetensors(tmp_path / "y.safetensors", {"a": torch.zeros(1)})
    refused(folder, tmp_path, "'x.safetensors' and 'y.safetensors' both hold 'a'")


def tied_folder(path, config, head=None):
    table = random_tensor(torch.bfloat16, (6, 4))
    write_safetensors(
        path / "model.safetensors",
        {"model.embed_tokens.weight": table, "lm_head.weight": table.clone() if head is None else head},
    )
    (path / "config.json").write_text(json.dumps(config))
    return opened(folder, path)


def test_a_tied_head_counts_once(tmp_path):
    reason = {"lm_head.weight": "tied to model.embed_tokens.weight"}
    other = random_tensor(torch.bfloat16, (6, 4), seed=1)
    for config, head, skipped in (
        ({"tie_word_embeddings": True}, None, reason),
        ({"tie_word_embeddings": True}, other, {}),  # trained, whatever the config says
        ({"text_config": {"tie_word_embeddings": True}}, None, reason),
        ({}, None, reason),  # the class's default decides, and the bytes show it
        ({}, other, {}),
        ({"tie_word_embeddings": False}, None, {}),
        ({"tie_word_embeddings": True}, random_tensor(torch.bfloat16, (7, 4)), {}),
    ):
        checkpoint, facts, problems = tied_folder(tmp_path, config, head)
        assert checkpoint.skipped == skipped
        is_told = bool(config.get("tie_word_embeddings")) and not skipped
        assert ["'lm_head.weight' holds other numbers" in p.message for p in problems] == [True] * is_told
        assert facts.parameters == sum(t.numel for t in checkpoint.tensors)
        assert len(checkpoint.tensors) == 2 - len(skipped)


def test_copies_of_a_shared_embedding_count_once(tmp_path):
    table = random_tensor(torch.float32, (6, 4))
    names = ("decoder.embed_tokens.weight", "encoder.embed_tokens.weight", "shared.weight", "lm_head.weight")
    write_safetensors(tmp_path / "model.safetensors", {name: table.clone() for name in names})
    checkpoint, _, _ = opened(folder, tmp_path)
    assert [t.name for t in checkpoint.tensors] == ["shared.weight"]
    assert set(checkpoint.skipped.values()) == {"tied to shared.weight"}


def test_tied_storages_of_a_torch_file_count_once(tmp_path):
    table = random_tensor(torch.bfloat16, (6, 4))
    state = {
        "lm_head.weight": table,
        "model.embed_tokens.weight": table,
        "part": table[2:],
        "turned": table.t(),
    }
    torch.save(state, tmp_path / "m.bin")
    checkpoint, _, _ = opened(pytorch, tmp_path / "m.bin")
    assert checkpoint.skipped == {"lm_head.weight": "tied to model.embed_tokens.weight"}
    assert {t.name: data(t) for t in checkpoint.tensors} == {
        name: raw(state[name]) for name in state if name != "lm_head.weight"
    }


def quantised_folder(path, method):
    write_safetensors(path / "model.safetensors", quantised_tensors(method))
    config = {"architectures": ["L"], "quantization_config": {"quant_method": method}}
    (path / "config.json").write_text(json.dumps(config))
    return path


@pytest.mark.parametrize(
    ("method", "fault"),
    [
        ("gptq", "'l.weight' has no qweight and scales of two dimensions"),
        ("bitsandbytes", "'l.weight' has no quant_state"),
        ("mxfp4", "'l.up_blocks' is U8 (4, 4), not blocks of 16 bytes"),
    ],
)
def test_quantised_weights_that_do_not_fit_their_format_are_for_lineage_only(tmp_path, method, fault):
    path = quantised_folder(tmp_path / "model-quantised", method)
    checkpoint, facts, (problem,) = opened(folder, path)
    assert checkpoint is None
    assert facts == Facts("model-quantised", architecture="L", relation="quantized")
    assert isinstance(problem, Problem) and f"is kept for lineage: {fault}" in problem.message
    assert opened(one_file, path / "model.safetensors")[0] is None  # without the config too


@pytest.mark.parametrize(
    ("method", "form", "rows"),
    [
        ("int8", "INT8", [1.0, 2.0, 3.0, 4.0]),  # SCB * code / 127, with SCB a multiple of 127
        ("fp8", "FP8", [3.0] * 4),
        ("compressed-tensors", "FP8", [0.5] * 4),
    ],
)
def test_quantised_weights_with_their_scales_are_dequantised(tmp_path, method, form, rows):
    path = quantised_folder(tmp_path / "model-quantised", method)
    for module, source in ((folder, path), (one_file, path / "model.safetensors")):  # without the config too
        checkpoint, facts, (problem,) = opened(module, source)
        assert (facts.relation, facts.parameters) == ("quantized", 20)
        assert (
            isinstance(problem, Problem)
            and f"80% of its weights are dequantised from {form}" in problem.message
        )
        weight = {t.name: t for t in checkpoint.tensors}["l.weight"]
        assert (weight.dtype, weight.shape, weight.grid.name) == ("F32", (4, 4), form)
        assert data(weight) == raw(torch.tensor(rows)[:, None].expand(4, 4))
        checkpoint.close()


def test_plain_fp8_has_weights(tmp_path):
    write_safetensors(tmp_path / "model.safetensors", quantised_tensors("plain"))
    (tmp_path / "config.json").write_text('{"quantization_config": {"quant_method": "fp8"}}')
    checkpoint, facts, _ = opened(folder, tmp_path)
    assert len(checkpoint.tensors) == 2 and facts.parameters == 20 and facts.dtype == "float8_e4m3fn"
