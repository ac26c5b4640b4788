"""Answers without an end, in drops, or packed: each costs its bytes and seconds at most, and a line."""

import gzip
import json
from dataclasses import replace

import pytest
from hub_models import STORAGE, lines

from kinbase.checkpoint.limits import LIMITS

SMALL = replace(LIMITS, answer_bytes=1 << 16, network_seconds=0.5, network_rate=1e6, listing_seconds=0.2)
API = "GET /api/models/org/ft_a"
FAULTS = {
    "an endless answer": (
        API,
        {"status": 200, "body": b" " * 4096, "endless": True},
        "than the 65,536 bytes",
    ),
    "an answer in drops": (API, {"status": 200, "body": b" " * 4096, "slow": 0.02, "piece": 1}, "so slowly"),
    "a packed answer": (
        API,
        {"status": 200, "body": gzip.compress(bytes(1 << 24)), "headers": {"Content-Encoding": "gzip"}},
        "than the 65,536 bytes",
    ),
    "an endless error": (API, {"status": 404, "body": b"x" * 4096, "endless": True}, "answers 404"),
    "a card in drops": ("GET .*/README.md", {"slow": 0.02, "piece": 1}, "so slowly"),
    "a header in drops": (STORAGE, {"slow": 0.05, "piece": 64}, "so slowly"),
    "endless weights": (STORAGE, {"endless": True, "whole": True}, "only the whole"),
}


@pytest.fixture
def small(monkeypatch):
    """The bounds of the network, small enough to be met at once."""
    for module in ("client", "file", "download"):
        monkeypatch.setattr(f"kinbase.importers.hub.{module}.LIMITS", SMALL)
    monkeypatch.setattr("kinbase.importers.url.LIMITS", SMALL)


@pytest.mark.parametrize("fault", FAULTS)
def test_each_is_given_up_and_the_others_go_on(hub, inline_cli, db, small, fault):
    where, how, words = FAULTS[fault]
    if where != API:
        where = where if where == STORAGE else where.replace(".*", "/org/ft_a/.*")
    hub.fail(where, **how)
    done = inline_cli("import", "hf:org/ft_a", "--stream")
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert words in lines(done, ["org/ft_a"])["org/ft_a"]
    assert not db.store.path.exists() or db.sql("select count(*) from models where has_weights").item() == 0


def test_the_body_of_a_redirect_is_not_read(hub, db, small):
    hub.fail(
        "GET /api/models/old/name", status=307, headers={"Location": "/api/models/org/ft_a"}, endless=True
    )
    found = db.import_(["hf:old/name"], metadata_only=True)
    assert found["model"].to_list() == ["org/ft_a"]


def test_redirects_in_a_circle_are_left(hub, inline_cli, small):
    hub.fail(API, status=307, headers={"Location": "/api/models/org/ft_a"}, endless=True)
    done = inline_cli("import", "hf:org/ft_a", "--metadata-only")
    assert "in a circle" in lines(done, ["org/ft_a"])["org/ft_a"]


def test_a_listing_has_its_seconds(hub, inline_cli, small):
    one = {"id": "org/ft_a", "sha": hub.repos["org/ft_a"].refs["main"]}
    where = f"{hub.url}/api/models?cursor=1"
    hub.fail(
        "GET /api/models$", status=200, stall=0.05, body=json.dumps([one]).encode(),
        headers={"Link": f'<{where}>; rel="next"'},
    )  # fmt: skip
    done = inline_cli("import", "hf:org/base", "--children", "--metadata-only")
    assert "Traceback" not in done.stderr and "so slowly" in done.stderr
    assert len(hub.requests("GET /api/models$")) < 10


@pytest.mark.parametrize("how", [{"endless": True}, {"body": b""}])
def test_a_file_of_which_nothing_is_told_is_not_downloaded(hub, inline_cli, small, how):
    hub.fail("(GET|HEAD) /org/ft_a/.*README.md", status=200, **how)
    done = inline_cli("import", "hf:org/ft_a")
    assert done.returncode == 1 and "does not say how long" in lines(done, ["org/ft_a"])["org/ft_a"]


def test_a_plain_file_is_checked_against_its_hash(hub, inline_cli, db):
    hub.fail("GET .*/org/ft_a/.*config.json", body=b"{}", status=0, times=1)
    assert inline_cli("import", "hf:org/ft_a").returncode == 1
    hub.heal()
    # It goes on behind the false bytes, finds that the whole is another file, and begins anew the next time.
    done = inline_cli("import", "hf:org/ft_a")
    assert done.returncode == 1 and "its hash differs" in lines(done, ["org/ft_a"])["org/ft_a"]
    assert db.import_(["hf:org/ft_a"])["status"].to_list() == ["imported"]


@pytest.mark.parametrize("how", [{"slow": 0.05, "piece": 16}, {"endless": True, "whole": True}])
def test_an_address_that_drips_is_given_up(hub, inline_cli, small, how, family):
    data = (family["ft_a"] / "model.safetensors").read_bytes()
    hub.put("org/plain", {"model.safetensors": data})
    sha = next(sha for sha, held in hub.blobs.items() if held == data)
    hub.fail("GET /blobs/", **how)
    address = f"{hub.storage}/blobs/{sha}?signature=good"
    done = inline_cli("import", address)
    assert done.returncode == 1 and "Traceback" not in done.stderr
