"""A training run's folder is its checkpoints, and one file may hold several models."""

import shutil

import pytest
import torch
from safetensors.torch import load_file

import kinbase
from kinbase.errors import UsageError


@pytest.fixture
def run(tmp_path, family):
    """A trainer's folder of three steps; 1000 comes after 200."""
    folder = tmp_path / "run"
    for model, step in (("ft_b", 1000), ("ft_a", 200), ("base", 50)):
        shutil.copytree(family[model], folder / f"checkpoint-{step}")
        (folder / f"checkpoint-{step}" / "optimizer.pt").write_bytes(b"")
    (folder / "checkpoint-7").mkdir()
    (folder / "checkpoint-7" / "optimizer.pt").write_bytes(b"")  # cut off before its weights were written
    (folder / "runs").mkdir()
    return folder


def test_a_run_is_one_trajectory(tmp_path, run):
    db = kinbase.open(tmp_path / "kb.duckdb")
    found = db.import_([run])
    assert found["model"].to_list() == ["run@50", "run@200", "run@1000"]
    assert set(found["status"]) == {"imported"}
    edges = db.sql(
        "select child, parent, detail->>'step' from lineage where evidence = 'config' order by 3::int"
    ).rows()
    assert edges == [("run@200", "run@50", "200"), ("run@1000", "run@200", "1000")]
    # Without another base it is measured against where it began.
    assert db.sql("select distinct base from models where base is not null").rows() == [("run@50",)]
    assert db.import_([run])["status"].to_list() == ["unchanged"] * 3
    assert db.import_([run / "checkpoint-200"])["model"].to_list() == ["run@200"]


def test_a_run_ends_with_what_lies_in_its_folder(tmp_path, run, family):
    shutil.copy(family["ft_c"] / "model.safetensors", run)
    db = kinbase.open(tmp_path / "kb.duckdb")
    found = db.import_([run], name="mine")
    assert found["model"].to_list() == ["mine@50", "mine@200", "mine@1000", "mine"]
    assert db.sql("select parent from lineage where child = 'mine'").rows() == [("mine@1000",)]


def test_folders_of_one_step_each_are_no_trajectory(tmp_path, run):
    (run / "epoch_50").mkdir()
    shutil.copy(run / "checkpoint-50" / "model.safetensors", run / "epoch_50")
    db = kinbase.open(tmp_path / "kb.duckdb")
    (row,) = db.import_([run]).to_dicts()
    assert row["status"] == "failed" and str(run / "checkpoint-50") in row["notes"][-1]


def test_two_models_of_one_file_are_two(tmp_path, family):
    base, average = (load_file(family[n] / "model.safetensors") for n in ("base", "ft_a"))
    path = tmp_path / "run.pt"
    torch.save({"state_dict": base, "ema": average}, path)
    db = kinbase.open(tmp_path / "kb.duckdb")
    assert db.import_([path])["model"].to_list() == ["run"]
    assert db.import_([path], key="ema", base="run")["model"].to_list() == ["run@ema"]
    assert db.sql("select count(distinct digest) from models").rows() == [(2,)]
    again = db.import_([path], key="ema"), db.import_([path])
    assert [a["status"].item() for a in again] == ["unchanged"] * 2
    assert [a["model"].item() for a in again] == ["run@ema", "run"]
    (row,) = db.import_([path], key="teacher").to_dicts()
    assert row["status"] == "failed" and "'ema'" in row["notes"][-1]


def test_several_sources_have_no_single_name(tmp_path, run, family):
    with pytest.raises(UsageError, match="--name names one model"):
        kinbase.open(tmp_path / "kb.duckdb").import_([run, family["base"]], name="x")
