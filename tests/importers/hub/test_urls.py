"""Weights at a URL of any store."""

import json
import struct
from pathlib import Path

import pytest
from hub_models import kinship, shards
from hub_server import TOKEN

import kinbase
from kinbase.importers import ranges


def put_memory(path, folder):
    import fsspec

    store = fsspec.filesystem("memory")
    for file in Path(folder).iterdir():
        store.pipe_file(f"/{path}/{file.name}", file.read_bytes())
    return f"memory://{path}"


def test_weights_in_any_store(hub, db, local, family, tmp_path):
    sources = {
        "base": put_memory("models/base", family["base"]),
        "ft_a": f"file://{family['ft_a']}",
        "ft_b": f"{hub.url}/org/ft_b/resolve/main",
    }
    found = db.import_(list(sources.values()), base=sources["base"])
    assert found["status"].to_list() == ["imported"] * 3, found.to_dicts()
    assert found["model"].to_list() == ["base", "ft_a", "main"]
    digests = "select digest from models where digest is not null and name in ('base', 'ft_a', 'ft_b', 'main') order by 1"
    assert db.sql(digests).rows() == local.sql(digests).rows()
    assert [row[2:] for row in kinship(db)] == [
        row[2:] for row in kinship(local) if set(row[:2]) == {"ft_a", "ft_b"}
    ]
    again = db.import_(list(sources.values()), base=sources["base"])
    assert again["status"].to_list() == ["unchanged"] * 3
    assert not list(tmp_path.rglob("*.incomplete"))


def test_one_file_and_an_index_at_a_url(hub, db, local, family):
    hub.put("org/sharded", shards(family, "ft_a"))
    found = db.import_(
        [f"{hub.url}/org/sharded/resolve/main", f"{hub.url}/org/base/resolve/main/model.safetensors"],
        stream=True,
    )
    assert found["status"].to_list() == ["imported"] * 2 and found["model"].to_list() == ["main", "model"]
    digest = "select digest from models where name = ?"
    assert db.sql(digest, ["main"]).item() == local.sql(digest, ["ft_a"]).item()
    assert db.sql(digest, ["model"]).item() == local.sql(digest, ["base"]).item()


def test_a_url_that_cannot_be_read(hub, db, family, tmp_path):
    hub.fail("resolve/secret", status=403)
    (tmp_path / "none").mkdir()
    bad = {
        "memory://nothing/here": "is not there",
        f"file://{tmp_path}/none": "no .safetensors",
        f"{hub.url}/org/nothing/resolve/main/model.safetensors": "is not there",
        f"{hub.url}/org/base/resolve/secret/model.safetensors?key={TOKEN}": "is not there, or may not be read",
        f"{hub.url}/org/base/resolve/none/model.safetensors?key={TOKEN}": "is not there",
        "http://127.0.0.1:9/model.safetensors": "is not there, or may not be read",
        "nosuchstore://x/model.safetensors": "could not be asked",
    }
    for source, words in bad.items():
        (row,) = db.import_([source]).to_dicts()
        assert row["status"] == "failed" and words in row["notes"][-1], row
        assert TOKEN not in str(row)
    assert not db.store.path.exists()


def test_a_refused_adapter_at_a_url_keeps_its_card(db):
    import fsspec

    store = fsspec.filesystem("memory")
    settings = {"peft_type": "LORA", "use_dora": True, "base_model_name_or_path": "org/base", "r": 4}
    store.pipe_file("/dora/adapter_config.json", json.dumps(settings).encode())
    store.pipe_file("/dora/adapter_model.safetensors", struct.pack("<Q", 2) + b"{}")
    store.pipe_file("/dora/README.md", b"---\nlicense: mit\nbase_model: org/base\n---\n")
    store.pipe_file("/words/README.md", b"---\nlicense: mit\nbase_model: org/base\n---\n")
    for name, words in (("dora", "DoRA"), ("words", "no .safetensors")):
        (row,) = db.import_([f"memory://{name}"], stream=True).to_dicts()
        assert (row["model"], row["status"]) == (name, "refused") and words in " ".join(row["notes"]), row
    query = "select distinct child, parent, relation from lineage order by all"
    assert db.sql(query).rows() == [("dora", "org/base", "adapter"), ("words", "org/base", "finetune")]
    assert db.sql("select name from models where license = 'mit' order by all").rows() == [
        ("dora",),
        ("words",),
    ]


def test_a_url_whose_server_knows_no_ranges(hub, db):
    """It sends the whole file whatever was asked for: its beginning must not pass for another part."""
    hub.fail("GET /blobs/", whole=True)
    size = ranges.BLOCK + 40_000
    header = json.dumps({"x": {"dtype": "F32", "shape": [size // 4], "data_offsets": [0, size]}}).encode()
    hub.put("org/plain", {"model.safetensors": struct.pack("<Q", len(header)) + header + bytes(size)})
    (row,) = db.import_([f"{hub.url}/org/plain/resolve/main/model.safetensors"], stream=True).to_dicts()
    assert row["status"] == "failed" and "sends no parts of files" in row["notes"][-1], row
    assert not db.store.path.exists()


def test_a_part_that_was_not_asked_for_is_refused(hub, db):
    hub.fail("GET /blobs/.*", shift=8, after=1)
    (row,) = db.import_(["hf:org/ft_a"], stream=True).to_dicts()
    assert row["status"] == "failed" and "sends another part" in row["notes"][-1], row


def test_a_file_at_a_url_that_changes_under_the_pass(db, family, tmp_path):
    import fsspec

    source = put_memory("changing", family["ft_a"])
    store = fsspec.filesystem("memory")
    from kinbase.checkpoint.open import read

    opened = read(source, depth="stream").checkpoint
    opened.verify()
    store.pipe_file("/changing/model.safetensors", (family["ft_b"] / "model.safetensors").read_bytes())
    with pytest.raises(kinbase.errors.CheckpointError, match="changed while it was read"):
        opened.verify()
