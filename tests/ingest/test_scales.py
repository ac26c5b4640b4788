"""Quantised models whose scales fit by their shapes and are wrong in value: kept for lineage, with no kinship."""

import json

import numpy as np
import pytest
import quantising
import torch
from safetensors.torch import save_file

import kinbase

SHAPES = {"model.embed_tokens.weight": (64, 64), "model.layers.0.self_attn.o_proj.weight": (64, 64)}
SHAPES |= {"model.layers.0.mlp.up_proj.weight": (96, 64), "model.norm.weight": (64,)}
PACKED = [name for name in SHAPES if "_proj" in name]
SCALES = {"gptq": "scales", "fp8": "weight_scale", "int8": "SCB", "mlx": "scales"}


def models(*names):
    """A base and fine-tunes of it."""
    rng = np.random.default_rng(0)
    base = {n: rng.standard_normal(s) / 8 for n, s in SHAPES.items()}
    tuned = {
        name: {n: w + 0.02 * rng.standard_normal(w.shape) for n, w in base.items()} for name in ("ft", *names)
    }
    return {"base": base, **tuned}


def plain(model):
    return {n: torch.from_numpy(w).float() for n, w in model.items()}


def write(folder, tensors, **config):
    folder.mkdir()
    save_file(tensors, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps({"architectures": ["M"], **config}))
    return folder


@pytest.fixture
def family(tmp_path):
    made = models()
    for name, model in made.items():
        write(tmp_path / name, plain(model))
    db = kinbase.open(tmp_path / "kin.duckdb")
    db.import_([tmp_path / name for name in made], base="base")
    return db, made


def spoilt(model, method, factor, names=PACKED):
    """A quantised model with the scales of some of its tensors multiplied; mlx's offsets are scales too."""
    quantise, config = quantising.METHODS[method]
    tensors = plain(model)
    for name in PACKED:
        del tensors[name]
        tensors |= {
            name.removesuffix("weight") + key: t.contiguous() for key, t in quantise(model[name])[0].items()
        }
    for name in names:
        for key in (SCALES[method], *(["biases"] if method == "mlx" else [])):
            at = name.removesuffix("weight") + key
            tensors[at] = (tensors[at].double() * factor).to(tensors[at].dtype)
    return tensors, config


def traces(db, name):
    """How many rows there are of what a pass would find in a model."""
    return [
        db.sql(query).item()
        for query in (
            f"select count(*) from deltas where model = '{name}'",
            f"select count(*) from kinship where '{name}' in (model_a, model_b)",
            f"select count(*) from models where name = '{name}' and has_weights",
            f"select count(*) from raw.weight join raw.model using (model_id) where name = '{name}'",
            f"select count(*) from raw.sketch join raw.model using (model_id) where name = '{name}'",
        )
    ]


@pytest.mark.parametrize("factor", [100, 1 / 100, float("nan")])
@pytest.mark.parametrize("method", ["gptq", "fp8"])
def test_wrong_scales_leave_lineage_alone(family, tmp_path, method, factor):
    db, made = family
    tensors, config = spoilt(made["ft"], method, factor)
    folder = write(tmp_path / "wrong", tensors, **config)
    (folder / "README.md").write_text("---\nbase_model: ft\nbase_model_relation: quantized\n---\n")
    write(tmp_path / "right", plain(models("right")["right"]))
    rows = db.import_([folder, tmp_path / "right"], base="base").to_dicts()
    note, _ = rows[0]["notes"]  # the second counts what was read beside the weights
    assert "is kept for lineage: its scales do not fit" in note and "\n" not in note
    assert rows[1]["status"] == "imported"
    assert traces(db, "wrong") == [0, 0, 0, 0, 0] and traces(db, "right")[0] > 0
    assert db.sql("select relation from models where name = 'wrong'").item() == "quantized"
    assert db.sql("select parent, relation from lineage where child = 'wrong'").rows() == [
        ("ft", "quantized")
    ]


@pytest.mark.parametrize("method", ["int8", "mlx"])
@pytest.mark.parametrize(("factor", "status"), [(2.5, "imported"), (3.5, "records")])
def test_the_bound_is_a_factor_of_three(family, tmp_path, method, factor, status):
    db, made = family
    tensors, config = spoilt(made["ft"], method, factor)
    write(tmp_path / "packed", tensors, **config)
    assert db.import_([tmp_path / "packed"], base="base")["status"].to_list() == [status]


def test_a_smaller_part_is_measured_and_said(family, tmp_path):
    db, made = family
    tensors, config = spoilt(made["ft"], "gptq", 50, [PACKED[0]])  # 4,096 of 10,240 elements
    write(tmp_path / "partly", tensors, **config)
    (row,) = db.import_([tmp_path / "partly"], base="base").to_dicts()
    assert row["status"] == "imported"
    assert any("the scales of 1 of its tensors (40% of what is dequantised)" in n for n in row["notes"])


def test_base_and_member_arrive_together_to_be_sketched(tmp_path):
    made = models()
    tensors, config = spoilt(made["ft"], "gptq", 100)
    write(tmp_path / "wrong", tensors, **config)
    write(tmp_path / "base", plain(made["base"]))
    db = kinbase.open(tmp_path / "kin.duckdb")
    report = db.import_([tmp_path / "wrong", tmp_path / "base"], base="base", sketch=True)
    assert dict(zip(report["source"].str.split("/").list.last(), report["status"], strict=True)) == {
        "wrong": "records",
        "base": "imported",
    }
    assert traces(db, "wrong") == [0, 0, 0, 0, 0]


@pytest.mark.parametrize(("factor", "status"), [(2.5, "sampled"), (3.5, "records")])
def test_a_sample_tells_as_well(family, tmp_path, factor, status):
    db, made = family
    tensors, config = spoilt(made["ft"], "gptq", factor)
    folders = [
        write(tmp_path / "packed", tensors, **config),
        write(tmp_path / "right", plain(models("right")["right"])),
    ]
    rows = db.import_(folders, base="base", sample=0.9).to_dicts()
    assert [row["status"] for row in rows] == [status, "sampled"]
    assert any("its scales do not fit" in note for note in rows[0]["notes"]) == (status == "records")
    assert traces(db, "packed") == [0, 0, 0, 0, 0]


def bytes_of(weights, factor):
    return torch.from_numpy(weights * factor).to(torch.float8_e4m3fn)


@pytest.mark.parametrize(("factor", "status"), [(1, "imported"), (100, "records")])
def test_8_bit_floats_without_scales_are_weights_where_they_are_as_long(family, tmp_path, factor, status):
    db, made = family
    tensors = plain(made["ft"]) | {n: bytes_of(made["ft"][n], factor) for n in PACKED}
    write(tmp_path / "cast", tensors)
    (row,) = db.import_([tmp_path / "cast"], base="base").to_dicts()
    assert row["status"] == status
    assert any("8-bit floats, which have no scales" in n for n in row["notes"]) == (status == "records")


def test_8_bit_floats_that_lack_the_scale_their_config_speaks_of_are_told(tmp_path):
    made = models()
    tensors = plain(made["ft"]) | {n: bytes_of(made["ft"][n], 1) for n in PACKED}
    write(tmp_path / "lost", tensors, quantization_config={"quant_method": "fp8"})
    (row,) = kinbase.open(tmp_path / "kin.duckdb").import_([tmp_path / "lost"]).to_dicts()
    assert row["status"] == "imported" and "2 tensors of 8-bit floats have no scales" in row["notes"][0]


def experts(model, factor):
    """The projections of `stacks` as one tensor of 8-bit floats with a scale an expert, times a factor."""
    tensors = plain({n: w for n, w in model.items() if ".experts." not in n})
    for leaf in ("up_proj", "down_proj"):
        stack = np.stack([model[f"model.layers.0.mlp.experts.{e}.{leaf}.weight"] for e in range(4)])
        scale = np.abs(stack).max((1, 2), keepdims=True) / 448
        codes = stack / scale
        name = f"model.layers.0.mlp.experts.{leaf}"
        tensors[name] = torch.from_numpy(codes.copy()).to(torch.float8_e4m3fn)
        tensors[name + "_scale"] = torch.from_numpy(scale.ravel() * factor).float()
    return tensors


@pytest.fixture
def stacks(tmp_path):
    """A base whose experts lie apart, and a fine-tune of it."""
    rng = np.random.default_rng(1)
    shapes = {"model.embed_tokens.weight": (64, 32)}
    for e in range(4):
        at = f"model.layers.0.mlp.experts.{e}."
        shapes |= {at + "up_proj.weight": (48, 32), at + "down_proj.weight": (32, 48)}
    base = {n: rng.standard_normal(s) / 8 for n, s in shapes.items()}
    tuned = {n: w + 0.02 * rng.standard_normal(w.shape) for n, w in base.items()}
    write(tmp_path / "base", plain(base))
    db = kinbase.open(tmp_path / "kin.duckdb")
    db.import_([tmp_path / "base"])
    return db, tuned


@pytest.mark.parametrize(("factor", "status"), [(1, "imported"), (50, "records")])
def test_scales_are_checked_where_experts_are_stacked_otherwise(stacks, tmp_path, factor, status):
    db, tuned = stacks
    write(tmp_path / "stacked", experts(tuned, factor))
    (row,) = db.import_([tmp_path / "stacked"], base="base").to_dicts()
    assert row["status"] == status
    assert any("its scales do not fit" in note for note in row["notes"]) == (status == "records")


@pytest.mark.parametrize("more", [{}, {"sketch": True}, {"sample": 0.9}])
def test_what_is_dequantised_and_not_in_the_base_leaves_lineage_alone(stacks, tmp_path, more):
    db, tuned = stacks
    tensors = {n.replace("experts", "adepts"): t for n, t in experts(tuned, 1).items()}
    write(tmp_path / "other", tensors)
    (row,) = db.import_([tmp_path / "other"], base="base", **more).to_dicts()
    (note,) = row["notes"][:1]
    assert row["status"] == "records" and traces(db, "other") == [0, 0, 0, 0, 0]
    assert "kept for lineage: 100% of what is dequantised meets no tensor of base" in note


def test_without_a_base_nothing_is_said(tmp_path):
    tensors, config = spoilt(models()["ft"], "gptq", 100)
    write(tmp_path / "alone", tensors, **config)
    db = kinbase.open(tmp_path / "kin.duckdb")
    assert db.import_([tmp_path / "alone"])["status"].to_list() == ["imported"]
