"""A walk from a model to its children or parents over the Hub."""

import os
import signal
import subprocess
import sys
import time

import pytest
from hub_models import STORAGE, asked, card

from kinbase.ingest import remote
from kinbase.store import Store


@pytest.fixture
def tree(hub):
    """org/root with 9 children (three adapters), each with two of its own, and one parent above."""
    leaf = {"config.json": b"{}"}
    hub.put("org/above", leaf)
    hub.put("org/root", leaf | {"README.md": card("org/above")})
    for i in range(9):
        relation = "adapter" if i < 3 else "finetune"
        hub.put(f"org/child{i}", leaf | {"README.md": card("org/root", relation)})
        for j in range(2):
            hub.put(f"org/grandchild{i}{j}", leaf | {"README.md": card(f"org/child{i}")})
    return hub


class CountingStore(Store):
    """A store that counts its transactions."""

    written = 0

    def writing(self):
        self.written += 1
        return super().writing()


def test_children_breadth_first(tree, db):
    db.store = CountingStore(db.store.path)
    found = db.import_(["hf:org/root"], children=True)
    assert set(found["status"]) == {"metadata"} and found.height == 10
    assert db.store.written == 2  # a generation fits in a batch
    assert db.descendants("org/root").height == 9
    assert len(asked(tree, "/api/models/org/grandchild")) == 0
    found = db.import_(["hf:org/root"], children=True, depth=2)
    assert found.height == 28
    assert db.descendants("org/root").height == 27


def test_a_family_that_is_stored_costs_its_listings(tree, db):
    db.import_(["hf:org/root"], children=True, depth=2)
    tree.seen.clear()
    again = db.import_(["hf:org/root"], children=True, depth=2)
    assert set(again["status"]) == {"unchanged"} and again.height == 28
    listings = asked(tree, "GET /api/models$")
    # One answer for the root, and pages of three: of the root's nine children, of two for each of them.
    assert len(listings) == 3 + 9 and len(asked(tree)) == 1 + len(listings)


def test_a_walk_that_is_broken_off_goes_on(tree, db):
    tree.fail("/api/models/org/grandchild[5-8]", status=500)
    found = db.import_(["hf:org/root"], children=True, depth=2)
    tally = found["status"].value_counts()
    assert dict(tally.iter_rows()) == {"metadata": 20, "failed": 8}
    tree.faults.clear()
    tree.seen.clear()
    found = db.import_(["hf:org/root"], children=True, depth=2)
    assert dict(found["status"].value_counts().iter_rows()) == {"unchanged": 20, "metadata": 8}
    assert len(asked(tree, "/api/models/org/grandchild")) == 8


def test_a_rate_limit_in_a_listing(tree, db):
    tree.fail("GET /api/models$", status=429, headers={"Retry-After": "0"}, times=1, after=1)
    told = []
    found = db.import_(["hf:org/root"], children=True, tell=lambda what, done, total: told.append(what))
    assert found.height == 10 and any("pause" in what for what in told)


@pytest.mark.parametrize("where", ["http://localhost:9/api/models", "/api/models", "http://["])
@pytest.mark.parametrize("body", [b"[]", b"{}"])
def test_a_listing_without_an_end(tree, db, where, body):
    tree.fail("GET /api/models$", status=200, headers={"Link": f'<{where}?cursor=1>; rel="next"'}, body=body)
    found = db.import_(["hf:org/root"], children=True, limit=20)
    assert found["status"].to_list() == ["metadata"]
    # Each page was asked of the Hub, not of where the listing leads.
    assert 1 <= len(tree.requests("GET /api/models$")) <= 22


@pytest.mark.parametrize(
    ("where", "how"),
    [
        ("GET /api/models$", ("hf:org/root", "--children")),
        ("GET /api/models/org/child1", ("hf:org/child0", "hf:org/child1", "--metadata-only")),
        ("GET /api/models/org/child1", ("hf:org/child0", "hf:org/child1", "--sample=0.1")),
        (STORAGE, ("hf:org/ft_a",)),
    ],
)
def test_a_pause_of_minutes_can_be_interrupted(tree, db, where, how):
    tree.fail(where, status=429, headers={"Retry-After": "600", "RateLimit": '"api";r=0;t=99999999999999999'})
    environment = {**os.environ, "KINBASE_DB": str(db.store.path)}
    running = subprocess.Popen([sys.executable, "-m", "kinbase", "import", *how], env=environment)
    while not any(seen.status == 429 for seen in tree.seen):
        assert running.poll() is None
        time.sleep(0.05)
    time.sleep(0.5)
    running.send_signal(signal.SIGINT)
    assert running.wait(300) == 130


def test_limit_and_relation(tree, db):
    found = db.import_(["hf:org/root"], children=True, depth=2, limit=4)
    assert found.height == 5 and "more relatives than --limit 4" in found["notes"][0][-1]
    found = db.import_(["hf:org/root"], children=True, relations=["adapter"])
    assert sorted(found["model"]) == ["org/child0", "org/child1", "org/child2", "org/root"]
    assert found["notes"].to_list() == [[]] * 4 or not any(
        "limit" in n for notes in found["notes"] for n in notes
    )


def test_parents(tree, db):
    found = db.import_(["hf:org/grandchild10"], parents=True, depth=5)
    assert found["model"].to_list() == ["org/grandchild10", "org/child1", "org/root", "org/above"]
    assert db.ancestors("org/grandchild10").height == 3
    tree.seen.clear()
    found = db.import_(["hf:org/grandchild10"], parents=True, depth=5)
    assert found["status"].to_list() == ["unchanged"] * 4 and len(asked(tree)) == 4


def test_a_circle_ends(hub, db):
    hub.put("org/x", {"README.md": card("org/y"), "config.json": b"{}"})
    hub.put("org/y", {"README.md": card("org/x"), "config.json": b"{}"})
    for how in ({"children": True}, {"parents": True}, {"children": True, "parents": True}):
        assert sorted(db.import_(["hf:org/x"], depth=9, **how)["model"]) == ["org/x", "org/y"]


def test_models_are_asked_for_side_by_side(tree, db):
    tree.latency = 0.05
    db.import_(["hf:org/root"], children=True)
    assert 4 < tree.most_at_once <= remote.AT_ONCE


def test_usage(hub, inline_cli, family):
    for arguments, words in {
        ("--sample", "0.1", "--stream"): "different depths",
        ("--sample", "1.5"): "between 0 and 1",
        ("--stderr", "0.1"): "give both",
        ("--children", "--relation", "cousin"): "no relation 'cousin'",
        ("--children", "--name", "x"): "--name names one model",
        ("--children", "--depth", "-1"): "cannot be negative",
    }.items():
        done = inline_cli("import", "hf:org/ft_a", *arguments)
        assert done.returncode == 2 and words in done.stderr, done.stderr
    done = inline_cli("import", family["ft_a"], "--children")
    assert done.returncode == 2 and "no relatives to follow" in done.stderr
