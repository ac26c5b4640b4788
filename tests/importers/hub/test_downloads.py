"""Downloads that are cut, given up or interrupted go on where they were."""

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import torch
from families import write_safetensors
from hub_models import STORAGE


def test_a_download_cut_at_random_points_reads_no_byte_twice(hub, db, family):
    size = (family["ft_a"] / "model.safetensors").stat().st_size
    chance = random.Random(1)
    at = sorted(chance.sample(range(1, size), 5))
    for cut in reversed([b - a for a, b in zip([0, *at], at, strict=False)]):
        hub.fail(STORAGE, cut=cut, times=1)
    assert db.import_(["hf:org/ft_a"])["status"].to_list() == ["imported"]
    assert len(hub.requests(STORAGE)) == 6
    assert hub.nbytes(STORAGE) == size


def test_a_download_that_was_given_up_goes_on_where_it_was(hub, cli, db, family, tmp_path):
    size = (family["ft_a"] / "model.safetensors").stat().st_size
    hub.fail(STORAGE, status=500)  # after three pieces
    for cut in (9_000, 7_001, 1):
        hub.fail(STORAGE, cut=cut, times=1)
    done = cli("import", "hf:org/ft_a")
    assert done.returncode == 1 and "answers 500" in done.stderr
    assert not db.store.path.exists()
    assert sum(r.nbytes for r in hub.requests(STORAGE) if r.status < 400) == 16_002
    hub.faults.clear()
    assert cli("import", "hf:org/ft_a").returncode == 0
    assert sum(r.nbytes for r in hub.requests(STORAGE) if r.status < 400) == size
    assert not list((tmp_path / "hf").rglob("*.incomplete"))
    # What lies in the cache now is what the client itself would have put there.
    from huggingface_hub import try_to_load_from_cache

    commit = hub.repos["org/ft_a"].refs["main"]
    path = try_to_load_from_cache("org/ft_a", "model.safetensors", tmp_path / "hf" / "hub", commit)
    assert Path(path).read_bytes() == (family["ft_a"] / "model.safetensors").read_bytes()


def test_an_interrupted_download_goes_on_where_it_was(hub, cli, db, tmp_path):
    write_safetensors(tmp_path / "m.safetensors", {"w": torch.randn(1 << 20)})
    hub.put(
        "org/large", {"model.safetensors": (tmp_path / "m.safetensors").read_bytes(), "config.json": b"{}"}
    )
    hub.fail(STORAGE, slow=1.0)  # a minute in all
    environment = {**os.environ, "KINBASE_DB": str(db.store.path)}
    running = subprocess.Popen([sys.executable, "-m", "kinbase", "import", "hf:org/large"], env=environment)
    while running.poll() is None and not any(
        p.stat().st_size for p in (tmp_path / "hf").rglob("*.incomplete")
    ):
        time.sleep(0.05)
    running.send_signal(signal.SIGINT)
    assert running.wait(300) == 130
    (part,) = (tmp_path / "hf").rglob("*.incomplete")
    have = part.stat().st_size
    assert 0 < have < 4 << 20 and not db.store.path.exists()
    hub.heal()
    assert cli("import", "hf:org/large").returncode == 0
    assert [seen.range.partition("-")[0] for seen in hub.requests(STORAGE)] == [f"bytes={have}"]


def test_a_download_that_is_not_what_was_promised_is_removed(hub, db, family, tmp_path):
    good = (family["ft_a"] / "model.safetensors").read_bytes()
    hub.fail(STORAGE, body=good[:-1] + bytes([good[-1] ^ 1]), times=1)
    (row,) = db.import_(["hf:org/ft_a"]).to_dicts()
    assert row["status"] == "failed" and "its hash differs" in row["notes"][-1]
    assert not [p for p in (tmp_path / "hf").rglob("*") if p.is_file() and p.stat().st_size == len(good)]
    assert db.import_(["hf:org/ft_a"])["status"].to_list() == ["imported"]
