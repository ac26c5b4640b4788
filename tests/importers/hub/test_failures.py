"""Every way a server may fail: one line for the model, and the others go on."""

import struct

import pytest
from hub_models import STORAGE, files_of, kinship, lines

from kinbase.importers.hub import client as hub_client


def test_each_bad_model_gets_its_line_and_the_others_go_on(hub, inline_cli, db, family):
    good = (family["ft_a"] / "model.safetensors").read_bytes()
    hub.put("org/pickles", {"pytorch_model.bin": b"x" * 100, "config.json": b"{}"})
    hub.put("org/gguf", {"model-q4.gguf": b"GGUF" + b"\0" * 64})
    hub.put("org/nothing-in-it", {"README.md": b"# hello\n"})
    hub.put("org/longer", {"model.safetensors": struct.pack("<Q", 1 << 40) + good[8:]})
    hub.put("org/beyond", {"model.safetensors": struct.pack("<Q", len(good)) + good[8:]})
    hub.put("org/cut", {"model.safetensors": good[:-10]})
    hub.put("org/empty", {"model.safetensors": b""})
    hub.put("org/config", {"model.safetensors": good, "config.json": b"{"})
    bad = {
        "org/unknown": "is not on the Hub", "org/base@gone": "this revision is not",
        "org/pickles": "only pickled weights", "org/gguf": "only GGUF files", "org/nothing-in-it": "no weights",
        "org/longer": "claims a header of", "org/beyond": "claims a header of", "org/cut": "truncated, or lying",
        "org/empty": "no safetensors header", "org/config": "not valid JSON", "org/a/b": "write hf:ORG/NAME",
        "../etc": "write hf:ORG/NAME",
    }  # fmt: skip
    for depth in ("--stream", "--metadata-only"):
        done = inline_cli("import", "hf:org/base", *(f"hf:{name}" for name in bad), "hf:org/ft_a", depth)
        assert done.returncode == 1 and "Traceback" not in done.stderr
        expected = dict(bad)
        if depth == "--metadata-only":  # a node needs no weights
            for name in ("org/pickles", "org/gguf", "org/nothing-in-it"):
                assert f"{name}, without its weights" in done.stderr
                del expected[name]
        told = lines(done, expected)
        for name, words in expected.items():
            assert words in told[name], told[name]
            assert "/tmp" not in told[name], told[name]
    names = set(db.sql("select name from models")["name"])
    assert names == {"org/base", "org/ft_a", "org/pickles", "org/gguf", "org/nothing-in-it"}


@pytest.mark.parametrize("depth", ["--stream", "--sample=0.9"])
def test_a_file_that_changes_while_it_is_read(hub, inline_cli, db, depth, tmp_path, family):
    # Beyond its first bytes, which are remembered.
    hub.put("org/base", files_of(family["base"]))
    hub.fail(STORAGE, etag="another", after=6)
    done = inline_cli("import", "hf:org/ft_a", "hf:org/ft_b", "--base", "hf:org/base", depth)
    assert done.returncode == 1
    assert "changed while it was read" in done.stderr and "Traceback" not in done.stderr
    assert not db.store.path.exists() or db.sql("select count(*) from kinship").item() == 0


def test_a_server_that_stalls_is_given_up(hub, inline_cli, db, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DOWNLOAD_TIMEOUT", 0.3)
    for pattern in ("/api/models/org/ft_a", "resolve/.*/README.md", STORAGE):
        hub.heal()
        hub.fail(f"GET .*{pattern}" if pattern != STORAGE else pattern, stall=60)
        done = inline_cli("import", "hf:org/ft_a", "--stream")
        assert done.returncode == 1
        assert "stopped answering" in done.stderr and "waited 0.3 s" in done.stderr, done.stderr
    assert not db.store.path.exists()


def test_a_download_that_stalls_is_given_up(hub, inline_cli, db, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DOWNLOAD_TIMEOUT", 0.3)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_ETAG_TIMEOUT", 0.3)
    for pattern in ("HEAD .*safetensors", STORAGE):
        hub.heal()
        hub.fail(pattern, stall=60)
        done = inline_cli("import", "hf:org/ft_a")
        assert done.returncode == 1 and "stopped answering" in done.stderr, done.stderr


def test_without_a_network(hub, cli, db, family):
    done = cli("import", "hf:org/ft_a", family["ft_b"], env={"HF_ENDPOINT": "http://127.0.0.1:9"})
    assert done.returncode == 1
    assert lines(done, ["org/ft_a"])["org/ft_a"].count("cannot be reached") == 1
    assert "imported ft_b" in done.stderr
    done = cli("import", "hf:org/ft_a", env={"HF_HUB_OFFLINE": "1"})
    assert done.returncode == 1 and "HF_HUB_OFFLINE" in done.stderr


def test_an_endpoint_that_is_no_hub(hub, cli):
    hub.fail("/api/models/", body=b"<html>hello</html>", status=0)
    hub.fail("/api/models/org/ft_a", status=200)
    done = cli("import", "hf:org/ft_a", "--metadata-only")
    assert done.returncode == 1 and "is HF_ENDPOINT a Hub?" in done.stderr and "Traceback" not in done.stderr


@pytest.mark.parametrize(
    "headers",
    [
        {"Retry-After": "1"},
        {"RateLimit": '"api";r=0;t=1', "RateLimit-Policy": '"fixed window";"api";q=500;w=300'},
        {},
    ],
)
@pytest.mark.parametrize("where", ["/api/models/org/ft_a", "resolve/.*/config.json", STORAGE])
def test_a_rate_limit_is_waited_out_as_its_headers_say(hub, db, headers, where):
    hub.fail(where, status=429, headers=headers, times=1)
    told = []
    found = db.import_(["hf:org/ft_a"], metadata_only=True, tell=lambda what, done, total: told.append(what))
    assert found["status"].to_list() == ["metadata"]
    assert any("pause" in what for what in told)


def test_a_server_error_is_tried_again(hub, db):
    hub.fail("/api/models/org/ft_a", status=503, times=1)
    hub.fail(STORAGE, status=500, times=2)
    assert db.import_(["hf:org/ft_a"], metadata_only=True)["status"].to_list() == ["metadata"]
    hub.fail("/api/models/org/ft_b", status=502)
    (row,) = db.import_(["hf:org/ft_b"], metadata_only=True).to_dicts()
    assert row["status"] == "failed" and "answers 502" in row["notes"][0]
    assert len(hub.requests("/api/models/org/ft_b")) == hub_client.TRIES


@pytest.mark.parametrize("depth", ["--stream", "--sketch"])
def test_a_storage_that_refuses_is_told(hub, inline_cli, depth, monkeypatch):
    hub.fail(STORAGE, status=403)
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    done = inline_cli("import", "hf:org/ft_a", depth)
    assert done.returncode == 1
    assert "refuses" in done.stderr and "(403)" in done.stderr and "circle" not in done.stderr
    assert "signature" not in done.stderr and "hf_secret" not in done.stderr
    assert len(hub.requests("/blobs/")) <= 2


def test_a_page_that_refuses_is_told(hub, inline_cli):
    hub.fail("(GET|HEAD) /org/ft_a/resolve/.*", status=403)
    done = inline_cli("import", "hf:org/ft_a", "--stream")
    assert done.returncode == 1 and "refuses 'hf:org/ft_a@" in done.stderr


def test_a_small_file_is_as_long_as_is_said(hub, db):
    hub.fail("GET .*/config.json", status=206, body=b"{}", headers={"Content-Range": "bytes 0-1/300"})
    (row,) = db.import_(["hf:org/ft_a"], stream=True).to_dicts()
    assert row["status"] == "failed" and "sent 2 of 300 bytes" in row["notes"][-1], row


def test_an_address_of_the_storage_that_has_run_out_is_asked_for_again(hub, db, local):
    hub.fail(STORAGE, status=403, times=1, after=2)
    db.import_(["hf:org/base", "hf:org/ft_a", "hf:org/ft_b"], stream=True)
    assert kinship(db) == [row for row in kinship(local) if set(row[:2]) == {"ft_a", "ft_b"}]
