"""What an import says of a member that no figure of kinship would: zeros, no change, infinities, another scale."""

import json

import numpy as np
import torch
from safetensors.torch import save_file

import kinbase

SHAPES = {"model.embed_tokens.weight": (64, 32), "model.layers.0.mlp.up_proj.weight": (96, 32)}
SHAPES |= {"model.layers.0.self_attn.o_proj.weight": (32, 32), "model.norm.weight": (32,)}


def model(seed):
    drawn, own = np.random.default_rng(0), np.random.default_rng(seed)
    return {
        name: torch.from_numpy(drawn.standard_normal(s) / 8 + 0.02 * own.standard_normal(s)).float()
        for name, s in SHAPES.items()
    }


def said_of(tmp_path, tensors, base=None):
    """What an import says of a model beside a base and a fine-tune, and its kinship with the fine-tune."""
    for name, weights in {"base": base or model(1), "tuned": model(2), "odd": tensors}.items():
        (tmp_path / name).mkdir()
        save_file(weights, tmp_path / name / "model.safetensors")
    db = kinbase.open(tmp_path / "kin.duckdb")
    db.import_([tmp_path / "base", tmp_path / "tuned"], base="base")
    said = str(db.import_([tmp_path / "odd"], base="base").to_dicts())
    kinship = db.sql("select pcc, ed, coverage from kinship where model_a = 'odd' and model_b = 'tuned'")
    return said, kinship, db


def test_a_model_of_zeros_is_kept_for_lineage(tmp_path):
    line, kinship, db = said_of(tmp_path, {name: torch.zeros(s) for name, s in SHAPES.items()})
    assert "all its weights are zero" in line and kinship.is_empty()
    assert db.sql("select has_weights from models where name = 'odd'")["has_weights"].to_list() == [False]


def test_what_is_compared_with_a_base_of_zeros_is_said_to_be_no_change(tmp_path):
    zeros = {name: torch.zeros(s) for name, s in SHAPES.items()}
    for name, weights in {"base": zeros, "odd": model(2)}.items():
        (tmp_path / name).mkdir()
        save_file(weights, tmp_path / name / "model.safetensors")
    report = kinbase.open(tmp_path / "kin.duckdb").import_([tmp_path / "base", tmp_path / "odd"], base="base")
    assert "all weights of base are zero" in str(report.to_dicts())


def test_an_adapter_that_was_never_trained_changes_nothing(tmp_path):
    db = said_of(tmp_path, model(3))[2]
    folder = tmp_path / "untrained"
    folder.mkdir()
    module = "base_model.model.model.layers.0.mlp.up_proj"
    factors = {f"{module}.lora_A.weight": torch.randn(4, 32), f"{module}.lora_B.weight": torch.zeros(96, 4)}
    save_file(factors, folder / "adapter_model.safetensors")
    config = {"peft_type": "LORA", "r": 4, "lora_alpha": 8, "base_model_name_or_path": "base"}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    assert "untrained changes nothing of base" in str(db.import_([folder], base="base").to_dicts())
    found = db.sql("select pcc, ed from kinship where model_a = 'untrained' and model_b = 'tuned'").to_dicts()
    assert found[0]["pcc"] is None and found[0]["ed"] > 0


def test_what_is_not_finite_is_said(tmp_path):
    broken = model(3)
    broken["model.layers.0.mlp.up_proj.weight"][:2] = torch.inf
    line, kinship, _ = said_of(tmp_path, broken)
    assert "64 of its elements, or the base's, are not finite" in line
    assert "model.layers.0.mlp.up_proj.weight" in line and kinship["coverage"][0] < 1


def test_codes_in_a_wide_dtype_are_said_to_be_of_another_length(tmp_path):
    codes = model(3)
    for name in list(codes)[:3]:
        codes[name] = torch.round(codes[name] / codes[name].abs().max() * 127)
    line, kinship, _ = said_of(tmp_path, codes)
    assert "is of another length than in base (" in line and len(kinship) == 1


def test_a_half_of_a_model_is_no_other_length(tmp_path):
    line, _, _ = said_of(tmp_path, {name: weights / 2 for name, weights in model(3).items()})
    assert "length" not in line and "zero" not in line


def test_norms_that_are_stored_less_1_are_told(tmp_path):
    lowered = model(3)
    lowered["model.norm.weight"] -= 1
    line, _, db = said_of(tmp_path, lowered)
    assert "the gains of 1 of its norms are 1 below those of base" in line and "model.norm.weight" in line
    assert "gains" not in str(db.import_([tmp_path / "tuned"], base="base").to_dicts())
