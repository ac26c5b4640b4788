"""Files beside those that a model is read from: parts of it count for its identity, copies and adapters are named."""

import json

import pytest
import torch
from checkpoints import contents, opened
from families import write_safetensors

import kinbase
from kinbase.importers import adapter, folder

WEIGHTS = {"model.embed_tokens.weight": torch.arange(8.0).reshape(4, 2), "model.norm.weight": torch.ones(2)}
HEAD = {"v_head.summary.weight": torch.ones(1, 2)}
FACTORS = {f"base_model.model.model.q.lora_{side}.weight": torch.ones(2, 2) for side in "AB"}


def save(path, tensors):
    if path.suffix == ".safetensors":
        return write_safetensors(path, tensors)
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save(tensors, path)
    return path


def model(path, weights="model.safetensors", **beside):
    """A folder with the weights and files beside them, by stem and ending joined with two underscores."""
    save(path / weights, WEIGHTS)
    for name, tensors in beside.items():
        save(path / name.replace("__", "."), tensors)
    return path


def adapted(path, **beside):
    model(path, "adapter_model.safetensors", **beside)
    save(path / "adapter_model.safetensors", FACTORS)
    config = {"peft_type": "LORA", "r": 2, "lora_alpha": 2, "base_model_name_or_path": "org/base"}
    (path / "adapter_config.json").write_text(json.dumps(config))
    return path


def indexed(path, **beside):
    model(path, "model-00001-of-00001.safetensors", **beside)
    listed = dict.fromkeys(WEIGHTS, "model-00001-of-00001.safetensors")
    (path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": listed}))
    return path


@pytest.mark.parametrize("file", ["value_head__safetensors", "value_head__bin", "mtp__safetensors"])
@pytest.mark.parametrize("make", [model, indexed])
def test_a_part_beside_the_weights_makes_another_model(tmp_path, make, file):
    folders = [
        make(tmp_path / "plain"),
        make(tmp_path / "one", **{file: HEAD}),
        make(tmp_path / "two", **{file: {name: 2 * t for name, t in HEAD.items()}}),
        make(tmp_path / "copy", **{file: HEAD}),
    ]
    report = kinbase.open(tmp_path / "kin.duckdb").import_(folders)
    assert report["status"].to_list() == ["imported", "imported", "imported", "alias"]
    assert (
        report["notes"]
        .to_list()[1][0]
        .startswith(f"'{file.replace('__', '.')}' lies beside the weights: it is part of what the model is")
    )
    checkpoint, *_ = opened(folder, folders[1])
    assert contents(checkpoint).keys() == WEIGHTS.keys()
    assert [blob.name for blob in checkpoint.blobs] == list(HEAD)


def test_a_head_beside_an_adapter_makes_another_adapter(tmp_path):
    digests = set()
    db = kinbase.open(tmp_path / "kin.duckdb")
    for number in (1, 2):
        head = {name: number * t for name, t in HEAD.items()}
        path = adapted(tmp_path / f"adapter{number}", value_head__safetensors=head)
        assert [blob.name for blob in opened(adapter, path)[0].blobs] == list(HEAD)
        db.import_([path])
        digests.add(db.sql("select digest from models where name = ?", [path.name]).item())
    assert len(digests) == 2


def test_averages_and_variants_are_named_and_not_read(tmp_path):
    path = model(tmp_path / "m", model_ema__safetensors=WEIGHTS, model__fp16__safetensors=WEIGHTS)
    checkpoint, _, (problem,) = opened(folder, path)
    assert not checkpoint.blobs and len(checkpoint.files) == 1
    assert problem.message.startswith(
        "'model.fp16.safetensors', 'model_ema.safetensors' lie beside the weights: an average"
    )


@pytest.mark.parametrize("file", ["adapter_model__safetensors", "style__safetensors"])
def test_an_adapter_beside_the_weights_is_said_not_to_be_merged(tmp_path, file):
    checkpoint, _, (problem,) = opened(folder, model(tmp_path / "m", **{file: FACTORS}))
    assert not checkpoint.blobs and "an adapter, which is not merged into them" in problem.message


def test_what_cannot_be_read_beside_the_weights_is_said(tmp_path):
    path = model(tmp_path / "m")
    (path / "value_head.safetensors").write_bytes(b"none")
    checkpoint, _, (problem,) = opened(folder, path)
    assert contents(checkpoint).keys() == WEIGHTS.keys()
    assert "'value_head.safetensors' lies beside the weights and cannot be read" in problem.message


def test_what_trainers_leave_beside_loose_weights_is_passed_over(tmp_path):
    path = model(
        tmp_path / "m", "weights.pt", optim__pt={"state": {0: {"exp_avg": torch.ones(9)}}}, sampler__pt={}
    )
    checkpoint, _, problems = opened(folder, path)
    assert contents(checkpoint).keys() == WEIGHTS.keys()
    assert {"optim.pt" in p.message or "sampler.pt" in p.message for p in problems} == {True}
