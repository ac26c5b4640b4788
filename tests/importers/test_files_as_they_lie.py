"""Folders as people publish them: stale indexes, parts in subfolders, factors without a config, foreign formats."""

import json

import pytest
import torch
from checkpoints import contents, opened
from families import write_safetensors

from kinbase.checkpoint import Checkpoint, Edge, Facts, Problem
from kinbase.checkpoint.open import read
from kinbase.importers import adapter, folder, training_folders
from kinbase.importers import safetensors as one_file

WEIGHTS = {"model.embed_tokens.weight": torch.ones(4, 2), "model.norm.weight": torch.ones(2)}


def index(path, weight_map, name="model.safetensors.index.json"):
    (path / name).write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))


def test_an_index_may_name_a_folder_inside(tmp_path):
    write_safetensors(tmp_path / "parts" / "one.safetensors", WEIGHTS)
    index(tmp_path, dict.fromkeys(WEIGHTS, "./parts/one.safetensors"))
    assert contents(opened(folder, tmp_path)[0]).keys() == WEIGHTS.keys()


def test_a_stale_index_is_passed_over_and_said(tmp_path):
    write_safetensors(tmp_path / "output.safetensors", WEIGHTS)
    index(tmp_path, dict.fromkeys(WEIGHTS, "model-00001-of-00002.safetensors"))
    checkpoint, _, (problem,) = opened(folder, tmp_path)
    assert contents(checkpoint).keys() == WEIGHTS.keys()
    assert "stale" in problem.message and "'output.safetensors'" in problem.message


def test_weights_of_old_sentence_transformers_lie_in_their_first_module(tmp_path):
    write_safetensors(tmp_path / "0_Transformer" / "model.safetensors", WEIGHTS)
    (tmp_path / "modules.json").write_text(json.dumps(
        [{"idx": 0, "path": "0_Transformer", "type": "sentence_transformers.models.Transformer"},
         {"idx": 1, "path": "1_Pooling", "type": "sentence_transformers.models.Pooling"}]
    ))  # fmt: skip
    (tmp_path / "config.json").write_text("{}")
    assert contents(opened(folder, tmp_path)[0]).keys() == WEIGHTS.keys()


@pytest.mark.parametrize("path", ["../out", "..", "a\0b"])
def test_a_module_may_not_lie_elsewhere(tmp_path, path):
    write_safetensors(tmp_path / "model.safetensors", WEIGHTS)
    (tmp_path / "modules.json").write_text(
        json.dumps([{"path": "", "type": "T"}, {"path": path, "type": "Dense"}])
    )
    opened_ = read(str(tmp_path))
    assert opened_.checkpoint is None and "\n" not in str(opened_.problem)


TREES = {
    "a diffusers pipeline": (["model_index.json", "unet/a.safetensors", "vae/b.safetensors"], ["/unet", "/vae"]),
    "a trainer's run": (["checkpoint-5/a.safetensors", "runs/x"], ["/checkpoint-5"]),
    "FSDP": (["pytorch_model_fsdp_0/__0_0.distcp", "pytorch_model_fsdp_0/.metadata"], ["merge-weights", "fsdp_0"]),
    "DeepSpeed": (["latest", "global_step9/zero_pp_rank_0_mp_rank_00_optim_states.pt",
                   "global_step9/zero_pp_rank_0_mp_rank_00_model_states.pt"], ["zero_to_fp32.py"]),
    "model-parallel parts": (["params.json", "consolidated.00.pth", "consolidated.01.pth"], ["2 model-parallel parts"]),
    "another framework": (["tf_model.h5"], ["TensorFlow"]),
    "parts of processes": (["model_world_size_2_rank_0.pt", "model_world_size_2_rank_1.pt"], ["2 processes", "FSDP"]),
    "several GGUF files": (["a.gguf", "b.gguf"], ["a model of its own", "/a.gguf", "/b.gguf"]),
    "one GGUF file": (["a.gguf"], ["in a GGUF file", "/a.gguf"]),
    "parts of a GGUF file": (["a-00001-of-00002.gguf", "a-00002-of-00002.gguf"], ["llama-gguf-split --merge"]),
    "Megatron": (["iter_10/mp_rank_00/model_optim_rng.pt"], ["/iter_10/mp_rank_00"]),
}  # fmt: skip


@pytest.mark.parametrize(("files", "words"), TREES.values(), ids=TREES)
@pytest.mark.parametrize("config", [True, False])
def test_what_is_no_single_model_says_what_it_is_and_what_to_import(tmp_path, files, words, config):
    for name in files:
        path = tmp_path / "it" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if name.endswith((".pth", ".pt")):
            torch.save(WEIGHTS, path)
        else:
            path.write_bytes(b"{}")
    if config:
        (tmp_path / "it" / "config.json").write_text("{}")
    found = read(str(tmp_path / "it"))
    assert found.checkpoint is None and found.problem and found.problem.isprintable()
    assert all(word in found.problem for word in words), found.problem


def test_a_folder_of_nothing_known_gets_no_advice(tmp_path):
    (tmp_path / "notes.txt").write_text("")
    assert training_folders.advice(str(tmp_path)) is None and training_folders.advice("nowhere") is None


FACTORS = {
    "kohya": {f"lora_unet_mid_attn_to_{n}.{e}": torch.ones(2, 2) for n in "qk" for e in
              ("lora_down.weight", "lora_up.weight")} | {"lora_unet_mid_attn_to_q.alpha": torch.tensor(1.0)},
    "diffusers": {f"unet.mid.attn.to_{n}.lora.{e}.weight": torch.ones(2, 2) for n in "qk" for e in ("up", "down")},
    "PEFT": {f"base_model.model.q.lora_{e}.weight": torch.ones(2, 2) for e in "AB"},
    "a whole change": {"lora_unet_mid_attn.diff": torch.ones(2, 2), "lora_unet_mid_attn.diff_b": torch.ones(2)},
    "LyCORIS": {f"lora_te_text.hada_w{k}_{e}": torch.ones(2, 2) for k in "12" for e in "ab"},
}  # fmt: skip


@pytest.mark.parametrize("factors", FACTORS.values(), ids=FACTORS)
def test_factors_without_a_config_are_an_adapter_and_no_model(tmp_path, factors):
    records = list(one_file.open(str(write_safetensors(tmp_path / "style.safetensors", factors))))
    assert not any(isinstance(r, Checkpoint) for r in records)
    assert [r.relation for r in records if isinstance(r, Facts)] == ["adapter"]
    assert any("holds an adapter" in r.message for r in records if isinstance(r, Problem))


def test_a_file_called_as_adapters_are_is_one_whatever_it_holds(tmp_path):
    path = write_safetensors(tmp_path / "adapter_model.safetensors", {"prompt_embeddings": torch.ones(3, 2)})
    assert not any(isinstance(record, Checkpoint) for record in one_file.open(str(path)))
    opened_ = read(str(tmp_path))
    assert opened_.checkpoint is None and "without its adapter_config.json" in str(opened_.problem)


def test_factors_in_a_model_are_not_merged_and_said(tmp_path):
    both = WEIGHTS | {"m.weight": torch.ones(3), "m.lora_A.default.weight": torch.ones(1, 3)}
    _, _, (problem,) = opened(one_file, write_safetensors(tmp_path / "m.safetensors", both))
    assert "not merged" in problem.message


def test_the_file_of_an_adapter_is_its_folder(tmp_path):
    at = "base_model.model.layers.0.q_proj.lora_"
    path = write_safetensors(tmp_path / "lora" / "adapter_model.safetensors",
                             {at + "A.weight": torch.ones(2, 4), at + "B.weight": torch.ones(4, 2)})  # fmt: skip
    config = {"peft_type": "LORA", "base_model_name_or_path": "org/base", "r": 2, "lora_alpha": 2}
    (path.parent / "adapter_config.json").write_text(json.dumps(config))
    checkpoint = next(r for r in adapter.open(str(path)) if isinstance(r, Checkpoint))
    assert adapter.recognises(str(path)) and (checkpoint.name, checkpoint.delta_of) == ("lora", "org/base")


def told(tmp_path, **metadata):
    path = write_safetensors(
        tmp_path / "m.safetensors", WEIGHTS, {k.replace("__", "."): v for k, v in metadata.items()}
    )
    return [r for r in one_file.open(str(path)) if not isinstance(r, Checkpoint)][1:]


def test_a_merges_recipe_names_its_parents_by_hash(tmp_path):
    recipe = {
        "primary_model_hash": "aa",
        "secondary_model_hash": "bb",
        "interp_method": "Weighted sum",
        "multiplier": 0.3,
    }
    models = {"aa": {"name": "models/first.safetensors"}, "bb": {"name": None}}
    edges = [r for r in told(tmp_path, sd_merge_recipe=json.dumps(recipe), sd_merge_models=json.dumps(models))
             if isinstance(r, Edge)]  # fmt: skip
    assert [(e.parent, e.relation, e.method, e.weight, e.detail) for e in edges] == [
        ("first", "merge", "weighted sum", 0.7, {"sha256": "aa"}),
        ("sha256:bb", "merge", "weighted sum", 0.3, {"sha256": "bb"}),
    ]


def test_a_model_spec_and_a_training_tell_facts_and_a_parent(tmp_path):
    facts = list(told(tmp_path, modelspec__license="mit", modelspec__architecture="sd-v1",
                             modelspec__date="2024-05-01", modelspec__merged_from="x.safetensors, org/y"))  # fmt: skip
    assert [r.parent for r in facts if isinstance(r, Edge)] == ["x", "org/y"]
    (said,) = [r for r in facts if isinstance(r, Facts)]
    assert (said.license, said.architecture, said.created_at.year) == ("mit", "sd-v1", 2024)
    trained = told(tmp_path, ss_sd_model_name="C:\\models\\v1-5.safetensors", ss_base_model_version="sd_v1",
                   ss_new_sd_model_hash="cc", ss_training_finished_at="1714521600.5")  # fmt: skip
    (edge,) = [r for r in trained if isinstance(r, Edge)]
    assert (edge.parent, edge.relation, edge.detail["hash"]) == ("v1-5", "finetune", "cc")
    assert told(tmp_path, ss_base_model_version="sd_v1") == []


@pytest.mark.parametrize("recipe", ["{", "[1]", '"x"', '{"primary_model_hash": 3}', "[" * 10_000])
def test_a_recipe_that_is_none_is_one_line(tmp_path, recipe):
    records = told(tmp_path, sd_merge_recipe=recipe)
    assert [type(r) for r in records] == [Problem] and records[0].message.isprintable()
