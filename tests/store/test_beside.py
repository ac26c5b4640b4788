"""Folders stored before what lies beside their weights counted: an upgrade marks those that hold such files."""

import numpy as np
import torch
from safetensors.torch import save_file

import kinbase


def write(folder):
    folder.mkdir()
    drawn = np.random.default_rng(sum(map(ord, folder.name)))
    save_file(
        {"model.layers.0.w": torch.from_numpy(drawn.standard_normal((16, 16)))}, folder / "model.safetensors"
    )


def marked(db):
    return db.sql("select name from models where to_reread order by name")["name"].to_list()


def test_an_upgrade_marks_the_folders_with_parts_that_were_not_read(tmp_path):
    names = ("base", "copies", "gone", "headed", "more")
    for name in names:
        write(tmp_path / name)
    db = kinbase.open(tmp_path / "kin.duckdb")
    db.import_([tmp_path / name for name in names], base="base")
    # What lay beside the weights when an earlier version read them.
    torch.save({"v_head.summary.weight": torch.ones(1, 16)}, tmp_path / "headed" / "value_head.bin")
    save_file({"mtp.layers.0.w": torch.ones(4, 4)}, tmp_path / "more" / "mtp.safetensors")
    torch.save({"layers.0.w": torch.ones(4, 4)}, tmp_path / "copies" / "pytorch_model.bin")
    save_file({"layers.0.w": torch.ones(4, 4)}, tmp_path / "copies" / "consolidated.safetensors")
    (tmp_path / "gone" / "model.safetensors").unlink()
    (tmp_path / "gone").rmdir()
    with db.store.writing() as con:
        con.execute("delete from raw.migration where name = 'migrations/0009_beside.sql'")
    assert "migrations/0009_beside.sql" in db.migrate(backup=False)
    assert marked(db) == ["headed", "more"]
    before = dict(db.sql("select name, digest from models").rows())
    db.import_([tmp_path / "headed", tmp_path / "base"], base="base")
    after = dict(db.sql("select name, digest from models").rows())
    assert after.keys() == before.keys() and after["headed"] != before["headed"]
    assert marked(db) == ["more"]
