"""Where the files of stored models are, and how they are found again."""

import os
import shutil

import pytest

import kinbase
from kinbase.errors import KinbaseError


@pytest.fixture
def moving(tmp_path, family):
    """A database of models whose folders the test may move."""
    home = tmp_path / "models"
    home.mkdir()
    for name in ("base", "ft_a", "ft_b"):
        shutil.copytree(family[name], home / name)
    db = kinbase.open(tmp_path / "kin.duckdb")
    db.import_([home / "base", home / "ft_a", home / "ft_b"], base="base")
    return db, home


def states(frame):
    return dict(frame.select("model", "state").iter_rows())


def test_files_are_there_changed_or_gone(moving):
    db, home = moving
    assert states(db.status()) == {"base": "there", "ft_a": "there", "ft_b": "there"}
    shutil.rmtree(home / "ft_b")
    os.utime(home / "ft_a" / "model.safetensors")
    found = db.status()
    assert states(found) == {"base": "there", "ft_a": "changed", "ft_b": "gone"}
    assert "--relocate" in found.filter(found["model"] == "ft_b")["advice"][0]


def test_what_moved_is_found_by_its_content_and_that_can_be_undone(moving, tmp_path):
    db, home = moving
    deep = tmp_path / "elsewhere" / "deep"
    deep.mkdir(parents=True)
    shutil.move(home / "ft_a", deep / "renamed")
    # As large and not the same; and the same name with other weights.
    shutil.copytree(home / "base", deep / "ft_a")
    (deep / "broken.safetensors").write_bytes(b"x")
    lines = []
    found = db.status(deep.parent, log=lines.append)
    assert states(found) == {"base": "there", "ft_a": "moved", "ft_b": "there"}
    assert found.filter(found["model"] == "ft_a")["source"][0] == str(deep / "renamed")
    assert states(db.status())["ft_a"] == "there"
    assert db.resolved([str(deep / "renamed")]) == ["ft_a"]
    assert db.measure(["ft_a", "ft_b"], exact=True) == []
    db.undo()
    assert states(db.status())["ft_a"] == "gone"


def test_a_folder_that_is_none_is_refused(moving, tmp_path):
    with pytest.raises(KinbaseError, match="is no folder"):
        moving[0].status(tmp_path / "nowhere")
