"""A run that is killed, interrupted or begun elsewhere: it goes on with the same rows, or says why not."""

import dataclasses
import json
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
from evolving import EVALUATOR, RUN, evolved, refused, story

import kinbase
from kinbase.errors import KinbaseError
from kinbase.evolution import beginning, merge_child, trust
from kinbase.evolution import config as run_config
from kinbase.evolution.run import evolve

# Killed.

DRIVER = """
    import contextlib, os, signal, sys
    from kinbase.evolution import evaluators
    from kinbase.store import Store
    from kinbase.cli import main

    when, after = sys.argv[1], int(sys.argv[2])
    sys.argv[1:3] = []
    seen = 0

    def die(which):
        if which == when and seen >= after:
            os.kill(os.getpid(), signal.SIGKILL)

    writing = Store.writing

    @contextlib.contextmanager
    def counted(self):
        global seen
        with writing(self) as con:
            yield con
            seen += when in ("before-commit", "after-commit")
            die("before-commit")
        die("after-commit")

    rename, fsync = os.rename, os.fsync
    Store.writing = counted

    def renamed(*arguments, **options):
        global seen
        result = rename(*arguments, **options)
        seen += when == "after-rename"
        die("after-rename")
        return result

    def flushed(fd):
        global seen
        seen += when == "in-merge"
        die("in-merge")
        return fsync(fd)

    def begun(*arguments):
        global seen
        result = begin(*arguments)
        seen += when == "evaluating"
        die("evaluating")
        return result

    os.rename, os.fsync = renamed, flushed
    begin, evaluators.begin = evaluators.begin, begun
    main()
"""


def run_killed(place, when, after, *arguments):
    """Run the command line until it kills itself, by SIGKILL, at the point asked for; whether it did."""
    (place / "driver.py").write_text(textwrap.dedent(DRIVER))
    run = subprocess.run(
        [sys.executable, place / "driver.py", when, str(after), "--db", place / "kin.duckdb", "evolve", *arguments],
        cwd=place, capture_output=True, text=True, timeout=600,
    )  # fmt: skip
    assert run.returncode in (0, -signal.SIGKILL), run.stderr
    return run.returncode != 0


@pytest.fixture(scope="module")
def unbroken(line_database, tmp_path_factory):
    """The story of a run of two generations that nothing broke, by where it took place; and its evaluations."""
    place = tmp_path_factory.mktemp("unbroken")
    (place / "kin.duckdb").write_bytes(line_database.read_bytes())
    (place / "evaluator.py").write_text(textwrap.dedent(EVALUATOR))
    db, _ = evolved(place, RUN.replace("generations: 3", "generations: 2"))
    return json.loads(json.dumps(story(db), default=str).replace(str(place), "PLACE")), (
        place / "calls"
    ).read_text().split()


# How many transactions, flushes or renames each process lives for: few, so that many points are met, and enough
# to get further each time (a merge flushes seven times).
POINTS = {"before-commit": 5, "after-commit": 6, "in-merge": 12, "after-rename": 2, "evaluating": 3}


@pytest.mark.parametrize("when", POINTS)
def test_killed_again_and_again_it_ends_with_the_same_rows(place, unbroken, when):
    (place / "run.yaml").write_text(RUN.replace("generations: 3", "generations: 2"))
    deaths, finished = 0, []
    killed = run_killed(place, when, POINTS[when], "run.yaml")
    while killed:
        deaths += 1
        db = kinbase.open(place / "kin.duckdb")
        finished.append((
            len((place / "calls").read_text().split()) if (place / "calls").exists() else 0,
            set(db.sql("select model from scores where source = 'evaluator:near'")["model"]),
            {path: path.stat().st_ino for path in place.glob("run/*/model.safetensors") if ".part" not in str(path)},
        ))  # fmt: skip
        begun = db.sql("from runs").height
        killed = run_killed(place, when, POINTS[when], *(["--resume", "run"] if begun else ["run.yaml"]))
        assert deaths < 40
    assert deaths >= 3
    told, calls = unbroken
    db = kinbase.open(place / "kin.duckdb")
    assert json.loads(json.dumps(story(db), default=str).replace(str(place), "PLACE")) == told
    made = (place / "calls").read_text().split()
    assert set(made) == set(calls)
    # each was made once, but for those whose score was being written, or that were under way, at a death
    assert len(made) <= len(calls) + 2 * deaths
    for number, scored, merged in finished:
        assert scored.isdisjoint(
            made[number + 1 :]
        )  # the next line may be of an evaluation that outlived its run
        assert {path: path.stat().st_ino for path in merged} == merged
    assert not list(place.glob("run/*.part"))


def test_a_resumed_run_that_is_finished_says_so(place, cli):
    evolved(place)
    run = cli("evolve", "--resume", "run")
    assert run.returncode == 0
    assert "the run run is finished" in run.stderr


def test_interrupted_by_hand_it_goes_on(place):
    db = kinbase.open(place / "kin.duckdb")
    beginning.begin(db.store, run_config.read(place / "run.yaml"))
    steps = evolve(db.store, "run")
    next(steps), next(steps)
    steps.close()
    assert db.sql("select status, generations from runs").row(0) == ("interrupted", 1)
    assert [g.number for g in evolve(db.store, "run")] == [2, 3]
    assert db.sql("select status from runs").item() == "finished"


def test_only_one_process_is_at_work(place):
    db = kinbase.open(place / "kin.duckdb")
    beginning.begin(db.store, run_config.read(place / "run.yaml"))
    steps = evolve(db.store, "run")
    next(steps)
    with pytest.raises(KinbaseError, match="another process is at work"):
        next(evolve(db.store, "run"))
    steps.close()


# A run of somebody else's.


@pytest.fixture
def sent(place, tmp_path_factory):
    """The database of a run that was stopped after its first generation, exported here and imported elsewhere."""
    db = kinbase.open(place / "kin.duckdb")
    beginning.begin(db.store, run_config.read(place / "run.yaml"))
    steps = evolve(db.store, "run")
    next(steps), next(steps)
    steps.close()
    db.export(place / "all.kinbase")
    other = kinbase.open(tmp_path_factory.mktemp("sent") / "kin.duckdb")
    other.import_([place / "all.kinbase"])
    return other


def test_a_run_that_was_not_begun_here_is_not_resumed(place, sent, cli, tmp_path_factory):
    """Neither out of an export, nor with its folders: the refusal says what would be run, and what says yes."""
    elsewhere = {"XDG_STATE_HOME": str(tmp_path_factory.mktemp("elsewhere"))}
    calls = (place / "calls").read_text()
    arguments = ["--db", sent.store.path, "evolve", "--resume", "run"]
    run = cli(*arguments, env=elsewhere)
    assert run.returncode == 1
    (line,) = run.stderr.splitlines()
    assert line.startswith("kinbase: the run run was not begun here: it would call evaluator:near with {}, ")
    assert str(place / "run") in line
    assert line.endswith("`kinbase evolve --resume run --trust` goes on")
    assert (place / "calls").read_text() == calls
    assert sent.sql("select status from runs").item() == "interrupted"
    assert cli(*arguments, "--trust", env=elsewhere).returncode == 0
    assert sent.sql("select status, generations from runs").row(0) == ("finished", 3)


def test_a_yes_is_for_these_words_in_these_folders(place, monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    config = run_config.read(place / "run.yaml")
    file = place / "kin.duckdb"
    assert not trust.is_known(config, file)
    trust.remember(config, file)
    trust.refuse_stranger(config, file)
    trust.refuse_stranger(dataclasses.replace(config, k=2), file)
    command = dataclasses.replace(config.evaluate, by="command", command=("rm", "-r", "a b"))
    for other, said in (
        (dataclasses.replace(config, evaluate=command), "run `rm -r 'a b'` in "),
        (dataclasses.replace(config, out="/home"), "delete them in /home"),
        (dataclasses.replace(config, folder="/tmp/x"), "modules in /tmp/x"),
    ):
        with pytest.raises(KinbaseError, match=f"not begun here.*{said}"):
            trust.refuse_stranger(other, file)
    recorded = dataclasses.replace(config.evaluate, by="recorded")
    trust.refuse_stranger(dataclasses.replace(config, evaluate=recorded), file)
    with pytest.raises(KinbaseError, match="not begun here"):
        trust.refuse_stranger(config, place / "other.duckdb")


def test_where_nothing_can_be_remembered_a_run_is_begun_all_the_same(place, monkeypatch):
    (place / "state").touch()
    monkeypatch.setenv("XDG_STATE_HOME", str(place / "state"))
    db, generations = evolved(place)
    assert generations["generation"].max() == 3
    (place / "run.yaml").write_text(RUN.replace("c]", "c]\nname: second"))
    beginning.begin(db.store, run_config.read(place / "run.yaml"))
    with pytest.raises(KinbaseError, match="not begun here"):
        db.evolve(resume="second")
    assert db.evolve(resume="second", trust=True)["generation"].max() == 3


@pytest.mark.parametrize("row", ["{precious}", "{out}/../precious", "{out}"])
def test_nothing_is_deleted_but_in_a_childs_own_folder(place, row):
    precious = place / "precious"
    precious.mkdir()
    (precious / "model.safetensors").touch()
    config = run_config.read(place / "run.yaml")
    folder = row.format(precious=precious, out=config.out)
    for child in ("run-1-1", "../precious", "precious", ""):
        merge_child.delete_weights(config, child, folder)
    Path(config.out).mkdir()
    (Path(config.out) / "link").symlink_to(precious)
    merge_child.delete_weights(config, "link", f"{config.out}/link")
    assert (precious / "model.safetensors").exists()


def test_a_run_killed_after_its_end_is_swept(place):
    text = RUN.replace("strategy: kinship", "strategy: greedy") + "keep: top_k\n"
    db, _ = evolved(place, text)
    folder = Path(db.sql("select folder from offspring where deleted").row(0)[0])
    (folder / "model.safetensors").touch()
    db.evolve(resume="run")
    assert not (folder / "model.safetensors").exists()


def test_a_folder_in_use_is_not_taken_for_children(place):
    (place / "run").mkdir()
    (place / "run" / "run-1-1").mkdir()
    with pytest.raises(KinbaseError, match="is not empty"):
        evolved(place)


def test_a_name_that_is_taken(place, cli):
    evolved(place)
    assert "there is a run run already (finished)" in refused(place, cli)
    assert cli("evolve", "--resume", "rnu").stderr.startswith("kinbase: there is no run 'rnu': there is run")
