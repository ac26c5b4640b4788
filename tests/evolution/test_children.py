"""Children: which are made, which fail alone, which are evaluated once, and whose weights stay."""

import os
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from evolving import EVALUATOR, RUN, SHAPES, evolved, write_model

import kinbase
from kinbase.errors import KinbaseError
from kinbase.evolution import beginning, config, journal, selection
from kinbase.evolution.subprocesses import Caller


def test_a_parent_of_other_shapes(place):
    write_model(place / "wide", {name: torch.ones(4, *shape[1:]) for name, shape in SHAPES.items()})
    kinbase.open(place / "kin.duckdb").import_([place / "wide"])
    (place / "evaluator.py").write_text("def near(folder):\n    return {'near': len(folder)}\n")
    with pytest.raises(KinbaseError, match=r"run-1-1: .*shape"):
        evolved(place, RUN.replace("[a, b, c]", "[a, b, wide]\nbase: base"))
    assert not list(place.glob("run/*.part"))
    assert kinbase.open(place / "kin.duckdb").sql("select status from runs").item() == "failed"


def test_children_may_fail_without_the_run(place):
    (place / "evaluator.py").write_text(
        textwrap.dedent(EVALUATOR).replace(
            "    x = ", "    if folder.endswith('run-1-2'): raise ValueError('no')\n    x = "
        )
    )
    db, generations = evolved(place, RUN + "on_error: skip\n")
    row = db.sql("select status, problem, score from offspring where child = 'run-1-2'").row(0)
    assert row == ("failed", "'evaluator:near' failed: ValueError: no", None)
    assert generations["generation"].max() == 3


@pytest.mark.parametrize("how", ["os._exit(3)", "os.write(3, b'{') and os._exit(3)"])
def test_a_crash_fails_one_child_and_not_the_next(tmp_path, how):
    body = f"    import os\n    if folder == 'bad':\n        {how}\n    return {{'near': 1}}\n"
    (tmp_path / "judge.py").write_text(f"def near(folder):\n{body}")
    caller = Caller(str(tmp_path))
    try:
        for folder in ("good", "bad", "good", "bad", "good"):
            if folder == "bad":
                with pytest.raises(KinbaseError, match="its process ended"):
                    caller.call("judge:near", [folder], {}, timeout=300)()
            else:
                assert caller.call("judge:near", [folder], {}, timeout=300)()[0] == {"near": 1}
    finally:
        caller.close()


LIMITED = """
    import resource, signal
    from kinbase import merging
    from kinbase.evolution import journal, run
    import kinbase

    inner = merging.merge

    def limited(*arguments, **options):
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (1500, hard))
        try:
            return inner(*arguments, **options)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))

    merging.merge = limited
    try:
        list(run.evolve(kinbase.open("kin.duckdb").store, "run"))
    except Exception as error:
        print(error)
"""


def test_a_full_disk_in_mid_merge(place):
    """A limit on the size of files stops the writing of a child as a full disk does."""
    db = kinbase.open(place / "kin.duckdb")
    beginning.begin(db.store, config.read(place / "run.yaml"))
    command = [sys.executable, "-c", textwrap.dedent(LIMITED)]
    run = subprocess.run(command, cwd=place, capture_output=True, text=True, timeout=600)
    assert "run-1-1" in run.stdout and "a file of this size is not allowed" in run.stdout, (
        run.stdout,
        run.stderr,
    )
    assert list((place / "run").iterdir()) == []  # no part of a checkpoint is left
    assert db.sql("select status from runs").item() == "failed"
    assert db.evolve(resume="run")["generation"].max() == 3


def test_a_full_disk_is_no_fault_of_the_child(place):
    """Children may fail where the configuration says so; the disk is full for all of them."""
    (place / "run.yaml").write_text(RUN + "on_error: skip\n")
    db = kinbase.open(place / "kin.duckdb")
    beginning.begin(db.store, config.read(place / "run.yaml"))
    command = [sys.executable, "-c", textwrap.dedent(LIMITED)]
    run = subprocess.run(command, cwd=place, capture_output=True, text=True, timeout=600)
    assert "run-1-1: cannot write" in run.stdout, (run.stdout, run.stderr)
    assert db.sql("select status from runs").item() == "failed"
    db.evolve(resume="run")
    assert db.sql("from offspring where status <> 'scored'").is_empty()


def test_children_of_the_same_weights_are_evaluated_once(place):
    """With t = 0 the children of a with b, a with c and b with c are a, a and b, of which the scores are known."""
    text = RUN.replace("strategy: kinship", "strategy: greedy").replace(
        "{method: linear}", "{method: slerp, parameters: {t: 0}}"
    )
    db, _ = evolved(place, text)
    assert (place / "calls").read_text().split() == ["a", "b", "c"]
    # a quarter of the weights of a child and of its twin: made alike by two methods' names, so neither was there before
    twins = "strategy: grid\ngrid: {methods: [linear, task_arithmetic], experts: [2]}\n"
    text = RUN.replace("strategy: kinship\n", twins).replace(
        "{method: linear}", "{parameters: {weight: 0.5}}"
    )
    (place / "calls").unlink()
    db, _ = evolved(place, text, "grid")
    names = db.sql("select child from offspring where run = 'grid' order by position")["child"].to_list()
    assert len(names) == 2
    assert (
        len(set(names)) == 1
    )  # base + (a - base) / 2 + (b - base) / 2 is (a + b) / 2, exact in multiples of 1/64
    assert len((place / "calls").read_text().split()) == 1


def test_a_worker_ends_with_its_run(tmp_path):
    """Whatever it is doing, and with what it has started: nobody waits for its answer."""
    (tmp_path / "judge.py").write_text(
        "import os, subprocess, time\nfrom pathlib import Path\n"
        "def near(folder):\n    child = subprocess.Popen(['sleep', '600'])\n"
        "    Path(folder, 'part').write_text(f'{os.getpid()} {child.pid}')\n"
        "    Path(folder, 'part').rename(Path(folder, 'pids'))\n    time.sleep(600)\n"
    )
    script = (
        "import sys; from kinbase.evolution.subprocesses import Caller\n"
        "Caller('.').call('judge:near', ['.'], {}, timeout=600)()\n"
    )
    run = subprocess.Popen([sys.executable, "-c", script], cwd=tmp_path)
    waited_for(lambda: (tmp_path / "pids").exists())
    run.kill()
    run.wait()
    pids = [int(pid) for pid in (tmp_path / "pids").read_text().split()]
    waited_for(lambda: not any(is_alive(pid) for pid in pids))


def waited_for(happened, seconds=300):
    """Return when `happened()`, and fail when it has not in five minutes."""
    deadline = time.monotonic() + seconds
    while not happened():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def is_alive(pid):
    """Whether a process runs; one that ended and was not waited for does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


# Budgets, twins, deleting, dry run.


def test_budgets_of_merges_and_disk(place):
    db, generations = evolved(place, RUN.replace("kinship: null", "kinship: null, merges: 4"))
    assert db.sql("select merges, reason from runs").row(0) == (
        4,
        "the 3 best changed; the budget of 4 merges is used up",
    )
    assert (
        db.sql("select count(*) from offspring where status = 'skipped'").item()
        == generations["children"].to_list()[2] - 1
    )
    size = db.sql("select bytes from models where name = 'a'").item()
    db, _ = evolved(
        place, RUN.replace("kinship: null", f"kinship: null, disk: {5 * size / 1e9:.9f}GB"), "disk"
    )
    assert db.sql("select merges from runs where run = 'disk'").item() == 5


def test_near_twins_are_not_merged(place, line):
    """Thresholds on both sides of the largest cosine that numpy predicts for the first generation's children."""
    _, deltas = line
    d = list(deltas.values())
    cosines = []
    for i, j in ((0, 1), (0, 2), (1, 2)):
        child = (d[i] + d[j]) / 2
        cosines.append(max(child @ m / np.linalg.norm(child) / np.linalg.norm(m) for m in d))
    one = "generations: 1, kinship: null"
    text = RUN.replace("generations: 3, kinship: null", one)
    for threshold, skipped in ((max(cosines) + 1e-9, 0), (max(cosines) - 1e-9, 1), (min(cosines) - 1e-9, 3)):
        db, _ = evolved(place, f"{text}\ntwins: {threshold:.12f}\n", f"t{skipped}")
        rows = db.sql("select problem from offspring where run = ? and status = 'skipped'", [f"t{skipped}"])[
            "problem"
        ]
        assert len(rows) == skipped
        assert all("near twin of" in problem for problem in rows)


def test_weights_of_dropped_children_go_and_their_rows_stay(place):
    text = RUN.replace("strategy: kinship", "strategy: greedy") + "keep: top_k\n"
    db, generations = evolved(place, text)
    rows = db.sql("select child, deleted, folder from offspring").rows()
    best = generations["top"].to_list()[-1]
    assert {c for c, deleted, _ in rows if not deleted} == {m for m in best if m.startswith("run")}
    assert any(deleted for _, deleted, _ in rows)
    for child, deleted, folder in rows:
        assert os.path.exists(f"{folder}/model.safetensors") != deleted  # noqa: PTH110
        assert os.path.exists(f"{folder}/mergekit_config.yml")  # noqa: PTH110
        assert db.show(child).row(0, named=True)["kin"]


def test_weights_of_a_child_that_is_another_model_stay(place):
    """With t = 0 the child of b and c is b to the last bit: b is found in the child's folder then."""
    text = RUN.replace("strategy: kinship", "strategy: greedy").replace(
        "{method: linear}", "{method: slerp, parameters: {t: 0}}"
    )
    db, _ = evolved(place, text + "keep: top_k\nk: 2\n")
    assert db.sql("select child, status from offspring where generation = 1").rows() == [("b", "scored")]
    with db.store.reading() as con:
        run = journal.read(con, "run")
    assert [child.model for child in run.of(1)] == ["b"]
    assert selection._dropped(run, ["a", "c"]) == []
    assert Path(db.sql("select source from models where name = 'b'").item(), "model.safetensors").exists()
