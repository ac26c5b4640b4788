"""New weights under an old name: the old ones stay, with what is known of them."""

import shutil

import families
import pytest

import kinbase
from kinbase.errors import UsageError


@pytest.fixture
def run(tmp_path, family):
    """A database, and folders whose weights the test may train on."""
    for name in ("base", "ft_a"):
        shutil.copytree(family[name], tmp_path / name)
    db = kinbase.open(tmp_path / "kin.duckdb")
    db.import_([tmp_path / "base", tmp_path / "ft_a"], base="base")
    db.score("ft_a", "mmlu", 61.5)
    return db, tmp_path


def retrain(folder):
    families.write_safetensors(folder / "model.safetensors", families.family_weights(seed=3)["ft_a"])


def test_the_old_weights_stay_with_edges_and_scores(run):
    db, home = run
    digest = db.sql("select digest from models where name = 'ft_a'")["digest"][0]
    retrain(home / "ft_a")
    (row,) = db.import_([home / "ft_a"], base="base").to_dicts()
    assert row["status"] == "failed" and "--replace" in row["notes"][-1]
    (row,) = db.import_([home / "ft_a"], base="base", replace=True).to_dicts()
    assert row["status"] == "imported" and row["model"] == "ft_a"
    (former,) = [name for name in db.names() if name.startswith("ft_a@2")]
    assert former in row["notes"][-1]
    about = {r["name"]: r for r in db.models("ft_a").iter_rows(named=True)}
    assert about[former]["digest"] == digest != about["ft_a"]["digest"]
    assert db.sql("select model from scores")["model"].to_list() == [former]
    assert {r["base"] for r in about.values()} == {"base"}
    retrain_again = families.family_weights(seed=4)["ft_a"]
    families.write_safetensors(home / "ft_a" / "model.safetensors", retrain_again)
    db.import_([home / "ft_a"], base="base", replace=True)
    assert sorted(db.names()) == ["base", "ft_a", former, f"{former}.2"]


def test_the_same_weights_keep_their_row_and_their_name(run):
    db, home = run
    shutil.copy(home / "ft_a" / "model.safetensors", home / "copy")
    shutil.move(home / "copy", home / "ft_a" / "model.safetensors")
    before = db.models("").drop("imported_at")
    db.import_([home / "ft_a"], base="base", replace=True)
    assert db.models("").drop("imported_at").equals(before)
    assert db.resolved(["ft_a"]) == ["ft_a"]


def test_an_import_that_fails_leaves_the_name(run):
    db, home = run
    (home / "ft_a" / "model.safetensors").write_bytes(b"torn")
    (row,) = db.import_([home / "ft_a"], replace=True).to_dicts()
    assert row["status"] == "failed"
    assert sorted(db.names()) == ["base", "ft_a"]
    with pytest.raises(UsageError, match="--replace is for folders"):
        db.import_(["hf:org/name"], replace=True)
