"""What the rows of a run may do to the folders they name: nothing, unless a run of this machine made them."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

import kinbase
from kinbase.errors import KinbaseError
from kinbase.evolution import config as configs
from kinbase.evolution import journal, trust
from kinbase.evolution import merge_child as breeding
from kinbase.store import runs

ASKED = """
strategy: greedy
models: [ft_a, ft_b, ft_c]
base: base
keep: top_k
merge: {method: linear}
stop: {generations: 2, kinship: null, unchanged: null}
"""
COMMAND = 'evaluate: {by: command, command: [python3, -c, "print(1)"]}\n'
RECORDED = "evaluate: {by: recorded}\nscore: {benchmarks: [b]}\n"


@pytest.fixture
def asked(tmp_path):
    """Reads a configuration of a run called `run` whose children go to `tmp_path`/run."""

    def read(evaluate):
        (tmp_path / "run.yaml").write_text(ASKED + evaluate)
        return configs.read(tmp_path / "run.yaml")

    return read


def lay(db, config, folder, child="run-1-1"):
    """The rows of a finished run that says its child in `folder` is to be deleted."""
    with db.store.writing() as con:
        journal.begin(con, config)
        con.execute(
            """
            insert into raw.offspring (run_id, generation, position, child, parent_ids, role, method, seed, reason, status,
                folder, deleted)
            select run_id, 1, 0, ?, [], 'pair', 'linear', 0, 'two of the best', 'scored', ?, true from raw.run
            """,
            [child, str(folder)],
        )
        runs.end(con, "run", "finished", "over")


def checkpoint(folder):
    folder.mkdir(parents=True)
    weights = folder / "model.safetensors"
    weights.write_bytes(b"weights")
    return weights


def named(tmp_path):
    db = kinbase.open(tmp_path / "kin.duckdb")
    for name in ("ft_a", "ft_b", "ft_c", "base"):
        with db.store.writing() as con:
            con.execute("insert into raw.model (name) values (?)", [name])
    return db


@pytest.mark.parametrize("evaluate", [COMMAND, RECORDED])
@pytest.mark.parametrize("says_yes", [False, True])
def test_a_finished_run_deletes_nothing_that_was_not_made_here(tmp_path, asked, evaluate, says_yes):
    """Not even for somebody who trusts the run: its rows name the folder, and this machine did not make it."""
    db, config = named(tmp_path), asked(evaluate)
    weights = checkpoint(Path(config.out, "run-1-1"))
    lay(db, config, weights.parent)
    db.evolve(resume="run", trust=says_yes)
    assert weights.exists()


def test_a_mark_is_of_one_child_of_one_run_on_this_machine(tmp_path, asked, monkeypatch):
    config = asked(COMMAND)
    own = checkpoint(Path(config.out, "run-1-1")).parent
    (text,) = trust.mark(config, "run-1-1").values()
    (own / trust.MARK).write_text(text)
    assert trust.made_here(config, "run-1-1", own)
    copied = checkpoint(Path(config.out, "run-1-2"))
    shutil.copy(own / trust.MARK, copied.parent)
    breeding.delete_weights(config, "run-1-2", str(copied.parent))
    assert copied.exists()
    assert not trust.made_here(replace(config, name="other"), "run-1-1", own)
    assert not trust.made_here(replace(config, out=str(tmp_path)), "run-1-1", own)
    for damaged in ("", "[]", "{}", json.dumps({"mark": None}), "[" * 100_000):
        (copied.parent / trust.MARK).write_text(damaged)
        assert not trust.made_here(config, "run-1-2", copied.parent)
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "another machine's"))
    assert not trust.made_here(config, "run-1-1", own)
    breeding.delete_weights(config, "run-1-1", str(own))
    assert (own / "model.safetensors").exists()


def test_what_this_machine_made_is_deleted(asked):
    """The other side: the mark is what lets the policy of a run do its work."""
    config = asked(COMMAND)
    weights = checkpoint(Path(config.out, "run-1-1"))
    for name, text in trust.mark(config, "run-1-1").items():
        (weights.parent / name).write_text(text)
    breeding.delete_weights(config, "run-1-1", str(weights.parent))
    assert not weights.exists()
    assert (weights.parent / trust.MARK).exists()


def test_a_folder_in_the_place_of_a_child_is_not_taken_for_it(tmp_path, family, db):
    """Even where a person says yes to the run: what lies there would be told as a merge that never was."""
    (tmp_path / "run.yaml").write_text(ASKED + COMMAND)
    config = configs.read(tmp_path / "run.yaml")
    with pytest.raises(KinbaseError, match="not begun here"):
        lay(db, config, "x", "ft_a")
        db.store.path.rename(tmp_path / "moved.duckdb")
        moved = kinbase.open(tmp_path / "moved.duckdb")
        with moved.store.writing() as con:
            con.execute("update raw.run set status = 'running'")
        moved.evolve(resume="run")
    planted = Path(config.out, "run-1-1")
    shutil.copytree(family["ft_c"], planted)
    with pytest.raises(KinbaseError, match="in the way"):
        breeding.breed(config, "run-1-1", {}, {}, 0, lambda done, total: None)


@pytest.mark.parametrize("child", ["../ft_a", "..", ".", "", "a/b", "/etc"])
def test_no_name_of_a_child_leads_out_of_the_runs_folder(asked, child):
    with pytest.raises(KinbaseError, match="no name of a child's folder"):
        breeding.own_folder(asked(COMMAND), child)


@pytest.mark.parametrize(
    ("column", "value", "said"),
    [
        ("config", "{}", "missing"),
        ("config", '"text"', "no mapping"),
        ("config", None, "another|configuration of"),
        ("config", {"out": "children"}, "without their roots"),
        ("config", {"stop": {"generations": 10**30}}, "beyond any number"),
        ("name", "../run", "configuration of run"),
    ],
)
def test_a_row_that_holds_no_run_is_told_in_a_line(tmp_path, asked, column, value, said):
    db, config = named(tmp_path), asked(COMMAND)
    lay(db, config, "x")
    changed = json.loads(configs.dumps(config))
    changed = changed | value if isinstance(value, dict) else changed | {"name": "other"}
    value = value if isinstance(value, str) else json.dumps(changed)
    with db.store.writing() as con:
        con.execute(f"update raw.run set {column} = ?", [value])
    with pytest.raises(KinbaseError, match=said):
        db.evolve(resume="../run" if column == "name" else "run", trust=True)


def test_parents_that_are_not_there_are_told_in_a_line(tmp_path, asked):
    db, config = named(tmp_path), asked(COMMAND)
    lay(db, config, "x")
    with db.store.writing() as con:
        con.execute("update raw.offspring set parent_ids = [77, 78] where generation = 1")
    with pytest.raises(KinbaseError, match="models that are not there"):
        db.evolve(resume="run", trust=True)
