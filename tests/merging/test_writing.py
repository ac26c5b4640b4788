"""A merge that is interrupted, killed or out of room leaves nothing that looks like a checkpoint."""

import json
import resource
import shutil
import signal
import subprocess
import sys

import pytest
from merges import delta_config

import kinbase
from kinbase import merging
from kinbase.errors import KinbaseError, UsageError


def test_a_link_out_of_a_parent_is_not_followed(tmp_path, family):
    """A stranger's tokenizer.json could be a link to anything here, and the child may be published."""
    folders = {name: shutil.copytree(family[name], tmp_path / name) for name in ("base", "ft_a", "ft_b")}
    (tmp_path / "secret").write_text("mine")
    (folders["base"] / "tokenizer.json").symlink_to(tmp_path / "secret")
    with pytest.raises(KinbaseError, match="is a link out of its folder"):
        merging.merge(merging.parse(delta_config(folders, "ties")), tmp_path / "child")
    assert not (tmp_path / "child").exists() and not (tmp_path / "child.part").exists()


def test_an_interrupted_merge_leaves_nothing(tmp_path, family):
    def interrupt(done, total):
        if done * 2 > total:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        merging.merge(merging.parse(delta_config(family, "ties")), tmp_path / "child", report=interrupt)
    assert list(tmp_path.iterdir()) == []


KILLED = """
import os, signal, sys
from kinbase import merging
def report(done, total):
    if done * 2 > total:
        os.kill(os.getpid(), signal.SIGKILL)
merging.merge(merging.load(sys.argv[1]), sys.argv[2], report=report)
"""


def test_what_a_killed_merge_leaves_is_no_checkpoint_and_in_nobodys_way(tmp_path, family):
    (tmp_path / "merge.json").write_text(json.dumps(delta_config(family, "ties")))
    command = [sys.executable, "-c", KILLED, str(tmp_path / "merge.json"), str(tmp_path / "child")]
    assert subprocess.run(command, check=False).returncode == -signal.SIGKILL
    left = tmp_path / "child.part"
    assert left.is_dir() and not (tmp_path / "child").exists()
    (row,) = kinbase.open(tmp_path / "kin.duckdb").import_([left]).to_dicts()
    assert row["status"] == "failed"
    merging.merge(merging.load(tmp_path / "merge.json"), tmp_path / "child")
    assert not left.exists() and (tmp_path / "child" / "model.safetensors").exists()


def test_a_full_disk_is_one_line_and_leaves_nothing(tmp_path, family, cli):
    (tmp_path / "merge.json").write_text(json.dumps(delta_config(family, "ties")))

    def bounded():
        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))  # the child has 49,472 bytes of weights

    got = cli("merge", "--no-import", "merge.json", "child", preexec_fn=bounded)
    assert got.returncode == 1
    assert got.stderr.count("\n") == 1 and "a file of this size is not allowed; nothing is left" in got.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["merge.json"]


def test_room_is_looked_for_first(tmp_path, family, monkeypatch):
    monkeypatch.setattr(
        shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10**9, 10**9 - 1000, 1000)
    )
    with pytest.raises(KinbaseError, match=r"takes 0.0 GB and .* has 0.0 GB free: make room"):
        merging.merge(merging.parse(delta_config(family, "ties")), tmp_path / "child")
    assert list(tmp_path.iterdir()) == []


def test_what_is_there_is_not_touched(tmp_path, family):
    config = merging.parse(delta_config(family, "ties"))
    (tmp_path / "child").mkdir()
    with pytest.raises(UsageError, match=r"exists: name a folder that is not there yet"):
        merging.merge(config, tmp_path / "child")
    (tmp_path / "other.part").mkdir()
    (tmp_path / "other.part" / "thesis.tex").write_text("do not lose")
    with pytest.raises(UsageError, match=r"is in the way"):
        merging.merge(config, tmp_path / "other")
    assert (tmp_path / "other.part" / "thesis.tex").exists()
