"""A pass on a Ray cluster of several nodes on this machine: the same rows, also when a node is killed in mid-run.

Needs the extra kinbase[ray], which is too large (240 MB) for the development environment: `pip install 'kinbase[ray]'`
runs it.
"""

import shutil
from pathlib import Path

import pytest
from contents import stored

import kinbase
from kinbase.errors import KinbaseError

ray = pytest.importorskip("ray")
cluster_utils = pytest.importorskip("ray.cluster_utils")

SLOW = """
import time
from kinbase.ingest import ray_engine
measure = ray_engine._plan
def slow(task):
    time.sleep(1.0)
    return measure(task)
ray_engine._plan = slow
"""


@pytest.fixture
def cluster(tmp_path, monkeypatch):
    """A head without cores and three nodes of one core each; every part takes a second longer than it needs."""
    (tmp_path / "slow").mkdir()
    (tmp_path / "slow" / "sitecustomize.py").write_text(
        "import os\nif os.environ.get('KINBASE_SLOW'):\n"
        + "".join(f"    {line}\n" for line in SLOW.strip().splitlines())
    )
    monkeypatch.setenv("KINBASE_SLOW", "1")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "slow"))
    memory = 100 << 20
    made = cluster_utils.Cluster(
        initialize_head=True,
        head_node_args={"num_cpus": 0, "object_store_memory": memory, "include_dashboard": False},
    )
    nodes = [made.add_node(num_cpus=1, object_store_memory=memory) for _ in range(3)]
    made.wait_for_nodes()
    yield made, nodes
    ray.shutdown()
    made.shutdown()


@pytest.fixture
def one(tmp_path, members):
    db = kinbase.open(tmp_path / "one.duckdb")
    assert set(db.import_(members, base="base")["status"]) == {"imported"}
    return db


def test_a_killed_node_changes_no_bit(cluster, one, members, tmp_path):
    made, nodes = cluster
    heard = []

    def report(done, total):
        heard.append((done, total))
        if len(nodes) == 3 and 0 < done < total:
            made.remove_node(nodes.pop(), allow_graceful=False)

    db = kinbase.open(tmp_path / "ray.duckdb")
    found = db.import_(members, base="base", engine=f"ray:{made.address}", report=report)
    assert set(found["status"]) == {"imported"} and len(nodes) == 2
    assert stored(db) == stored(one)
    assert heard[-1][0] == heard[-1][1] and [done for done, _ in heard] == sorted(done for done, _ in heard)
    assert not ray.is_initialized()


def test_stored_members_are_measured_with_the_new_ones(cluster, one, members, tmp_path):
    db = kinbase.open(tmp_path / "ray.duckdb")
    db.import_(members[:3], base="base")
    db.import_(members[3:], engine="ray", address=cluster[0].address, base="base")
    kin = "select model_a, model_b, pcc, cs, ed, method from kinship order by all"
    assert db.sql(kin).equals(one.sql(kin))


def test_a_file_that_a_node_does_not_see_is_a_line_and_the_rest_is_kept(cluster, one, members, tmp_path):
    made, _ = cluster
    hidden = Path(shutil.copytree(members[1], tmp_path / "hidden"))
    away = tmp_path / "away"
    db = kinbase.open(tmp_path / "ray.duckdb")
    moved = []

    def report(done, total):
        if 0 < done < total and not moved:
            moved.append(hidden.rename(away))

    sources = [members[0], hidden, *members[2:]]
    with pytest.raises(KinbaseError, match=r"^on the node .*hidden") as caught:
        db.import_(sources, base="base", engine=f"ray:{made.address}", report=report)
    assert "\n" not in str(caught.value) and moved
    assert db.sql("select count(*) as n from models")["n"].to_list() == [0]
    with db.store.reading() as con:
        kept = con.execute("select count(*) from raw.pass where position >= 0").fetchall()[0][0]
    assert kept > 0
    away.rename(hidden)
    seen = []
    found = db.import_(sources, base="base", engine=f"ray:{made.address}", report=lambda *at: seen.append(at))
    assert set(found["status"]) == {"imported"}
    assert seen[0][0] > 0  # what was kept is not measured again
    kin = "select pcc, cs, ed from kinship order by all"
    assert db.sql(kin).equals(one.sql(kin))


def test_an_interrupt_keeps_what_came_back(cluster, one, members, tmp_path):
    made, _ = cluster
    db = kinbase.open(tmp_path / "ray.duckdb")

    def report(done, total):
        if 0 < done < total:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        db.import_(members, base="base", engine=f"ray:{made.address}", report=report)
    assert db.sql("select count(*) as n from models")["n"].to_list() == [0]
    assert set(db.import_(members, base="base")["status"]) == {"imported"}  # goes on without a cluster
    assert stored(db) == stored(one)


def test_a_cluster_that_is_not_there_is_a_line(family, tmp_path):
    db = kinbase.open(tmp_path / "kin.duckdb")
    with pytest.raises(KinbaseError, match=r"no Ray cluster can be had at 127\.0\.0\.1:1: ") as caught:
        db.import_(family.values(), base="base", engine="ray:127.0.0.1:1")
    assert "\n" not in str(caught.value)
