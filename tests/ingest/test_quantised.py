"""Quantised models as members of a family: measured by their dequantised weights, known by what is stored."""

import json
import shutil

import numpy as np
import pytest
import quantising
import torch
from safetensors.torch import load_file, save_file

import kinbase

SHAPES = {
    "model.embed_tokens.weight": (64, 64),
    "model.layers.0.self_attn.o_proj.weight": (64, 64),
    "model.layers.0.mlp.up_proj.weight": (96, 64),
    "model.norm.weight": (64,),
}
PACKED = [name for name in SHAPES if "_proj" in name]


def models(seed=0, changes=("ft", "other")):
    """A base and fine-tunes of it, float64 values that float32 holds."""
    rng = np.random.default_rng(seed)
    base = {n: rng.standard_normal(s).astype(np.float32) / 8 for n, s in SHAPES.items()}
    made = {"base": base}
    for name in changes:
        made[name] = {
            n: (w + 0.02 * rng.standard_normal(w.shape)).astype(np.float32) for n, w in base.items()
        }
    return {name: {n: w.astype(np.float64) for n, w in model.items()} for name, model in made.items()}


def write(folder, tensors, **config):
    folder.mkdir(parents=True)
    save_file({n: t.contiguous() for n, t in tensors.items()}, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps({"architectures": ["M"], **config}))
    return folder


def plain(model):
    return {n: torch.from_numpy(w).float() for n, w in model.items()}


def quantised(model, method):
    """The tensors of a model with its projections quantised, the config, and the values they stand for."""
    quantise, config = quantising.METHODS[method]
    tensors, values = plain(model), dict(model)
    for name in PACKED:
        del tensors[name]
        parts, values[name] = quantise(model[name])
        tensors |= {name.removesuffix("weight") + key: t for key, t in parts.items()}
    return tensors, config, values


def pearson(a, b, base):
    one, other = (np.concatenate([(m[n] - base[n]).ravel() for n in SHAPES]) for m in (a, b))
    return np.corrcoef(one, other)[0, 1]


@pytest.fixture
def family(tmp_path):
    made = models()
    db = kinbase.open(tmp_path / "kin.duckdb")
    for name, model in made.items():
        write(tmp_path / name, plain(model))
    db.import_([tmp_path / name for name in made], base="base")
    return db, made


@pytest.mark.parametrize("method", quantising.METHODS)
def test_kinship_is_of_the_dequantised_weights(family, tmp_path, method):
    db, made = family
    tensors, config, values = quantised(made["ft"], method)
    write(tmp_path / "packed", tensors, **config)
    (row,) = db.import_([tmp_path / "packed"], base="base").to_dicts()
    assert row["status"] == "imported"
    found = db.sql("select model_b, pcc, coverage from kinship where model_a = 'packed'").rows()
    assert sorted(name for name, *_ in found) == ["ft", "other"]
    for name, pcc, coverage in found:
        assert coverage == 1 and pcc == pytest.approx(pearson(values, made[name], made["base"]), abs=1e-6)
    ((relation, dtype, parameters, nbytes),) = db.sql(
        "select relation, dtype, parameters, bytes from models where name = 'packed'"
    ).rows()
    assert relation == "quantized" and parameters == sum(w.size for w in made["ft"].values())
    assert dtype not in ("F32", None) and nbytes == sum(t.nbytes for t in tensors.values())


def test_identity_is_of_what_is_stored(family, tmp_path):
    db, made = family
    tensors, config, _ = quantised(made["ft"], "gptq")
    write(tmp_path / "packed", tensors, **config)
    shutil.copytree(tmp_path / "packed", tmp_path / "copy")
    # The same weights from other codes: a scale halved and its codes doubled would be another file.
    dense = {
        n: t for n, t in tensors.items() if not n.startswith(tuple(p.removesuffix("weight") for p in PACKED))
    }
    _, _, values = quantised(made["ft"], "gptq")
    write(tmp_path / "dense", dense | {n: torch.from_numpy(values[n]).float() for n in PACKED})
    scale = PACKED[0].removesuffix("weight") + "scales"
    changed = dict(tensors) | {scale: tensors[scale] * 2}
    write(tmp_path / "scaled", changed, **config)
    report = db.import_([tmp_path / n for n in ("packed", "copy", "dense", "scaled")], base="base")
    assert dict(zip(report["source"].str.split("/").list.last(), report["status"], strict=True)) == {
        "packed": "imported", "copy": "alias", "dense": "imported", "scaled": "imported",
    }  # fmt: skip
    assert db.import_([tmp_path / "packed"], base="base")["status"].to_list() == ["unchanged"]
    ((ed,),) = db.sql("select ed from kinship where model_a = 'packed' and model_b = 'dense'").rows()
    assert ed == pytest.approx(0, abs=1e-6)  # what float32 leaves of equal weights


def test_what_does_not_fit_keeps_its_lineage_and_stores_nothing_else(family, tmp_path):
    db, made = family
    tensors, config, _ = quantised(made["ft"], "gptq")
    name = PACKED[1].removesuffix("weight") + "scales"
    write(tmp_path / "wrong", tensors | {name: tensors[name][:, :-8]}, **config)
    (tmp_path / "wrong" / "README.md").write_text(
        "---\nbase_model: ft\nbase_model_relation: quantized\n---\n"
    )
    (row,) = db.import_([tmp_path / "wrong"], base="base").to_dicts()
    assert any("is kept for lineage" in note for note in row["notes"])
    assert db.sql("select parent, child, relation from lineage where child = 'wrong'").rows() == [
        ("ft", "wrong", "quantized")
    ]
    assert db.sql("select count(*) from deltas where model = 'wrong'").item() == 0
    assert db.sql("select has_weights from models where name = 'wrong'").rows() == [(False,)]


def test_a_quantised_base_measures_its_members(tmp_path):
    made = models()
    tensors, config, values = quantised(made["base"], "awq")
    write(tmp_path / "base", tensors, **config)
    for name in ("ft", "other"):
        write(tmp_path / name, plain(made[name]))
    db = kinbase.open(tmp_path / "kin.duckdb")
    report = db.import_([tmp_path / n for n in ("base", "ft", "other")], base="base")
    assert set(report["status"]) == {"imported"}
    ((pcc,),) = db.sql("select pcc from kinship where model_a = 'ft' and model_b = 'other'").rows()
    assert pcc == pytest.approx(pearson(made["ft"], made["other"], values), abs=1e-6)


def test_files_are_only_read_where_the_pass_asks(family, tmp_path):
    """Opening decodes nothing: a stored model is opened again, and its codes are as they were."""
    db, made = family
    tensors, config, _ = quantised(made["other"], "nf4")
    write(tmp_path / "packed", tensors, **config)
    db.import_([tmp_path / "packed"], base="base")
    assert load_file(tmp_path / "packed" / "model.safetensors").keys() == tensors.keys()
    write(tmp_path / "later", plain(models(0, ("ft", "other", "later"))["later"]))
    db.import_([tmp_path / "later"], base="base")
    ((method,),) = db.sql("select method from kinship where model_a = 'later' and model_b = 'packed'").rows()
    assert method == "exact"


@pytest.mark.parametrize("method", quantising.METHODS)
def test_kinship_carries_the_noise_of_the_grid(family, tmp_path, method):
    """What is measured lies within three standard errors of what the model that was quantised would have."""
    db, made = family
    tensors, config, _ = quantised(made["ft"], method)
    write(tmp_path / "packed", tensors, **config)
    db.import_([tmp_path / "packed"], base="base")
    query = "select model_b, pcc, stderr from kinship where model_a = 'packed' order by model_b"
    for name, pcc, stderr in db.sql(query).rows():
        true = 1.0 if name == "ft" else pearson(made["ft"], made[name], made["base"])
        assert 0 < stderr < 1 and abs(pcc - true) < 3 * stderr
    ((stderr,),) = db.sql("select stderr from kinship where model_a = 'ft' and model_b = 'other'").rows()
    assert stderr == 0


def test_finer_grids_leave_smaller_errors(family, tmp_path):
    db, made = family
    errors = {}
    for bits in (8, 6, 4, 3):
        tensors = plain(made["ft"])
        for name in PACKED:
            del tensors[name]
            parts, _ = quantising.mlx(made["ft"][name], bits)
            tensors |= {name.removesuffix("weight") + key: t for key, t in parts.items()}
        write(tmp_path / f"q{bits}", tensors, quantization={"bits": bits, "group_size": quantising.GROUP})
        db.import_([tmp_path / f"q{bits}"], base="base")
        errors[bits] = db.sql(
            f"select stderr from kinship where model_a = 'q{bits}' and model_b = 'ft'"
        ).item()
    assert errors[8] < errors[6] < errors[4] < errors[3]
