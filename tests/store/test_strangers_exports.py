"""Exports of other machines: what their program or their user was sure of is what they report, unless one says --trust."""

import json

import polars as pl
import pytest

import kinbase
from kinbase.errors import UsageError


@pytest.fixture
def theirs(tmp_path, monkeypatch):
    """An export of another machine: a link and a score of its user, an edge of its run, one that a card tells."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "their-state"))
    db = kinbase.open(tmp_path / "theirs.duckdb")
    (tmp_path / "lineage.csv").write_text("parent,child,relation\na,b,finetune\nb,c,merge\na,d,merge\n")
    db.import_([tmp_path / "lineage.csv"])
    with db.store.writing() as con:
        con.execute("update raw.claim set evidence = 'run', source = null where relation = 'finetune'")
        con.execute(
            "update raw.claim set evidence = 'card' where child_id = (select model_id from raw.model where name = 'd')"
        )
    db.link("c", ["a"], relation="finetune")
    db.score("b", "mmlu", 60.0)
    db.set("b", license="mit")
    db.export(tmp_path / "team.kinbase")
    yield tmp_path / "team.kinbase"
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "our-state"))


def evidence(db):
    return db.sql("select parent, child, evidence from lineage order by all").rows()


THEIRS = [("a", "b", "run"), ("a", "c", "user"), ("a", "d", "card"), ("b", "c", "reported")]
REPORTED = [("a", "b", "reported"), ("a", "c", "reported"), ("a", "d", "card"), ("b", "c", "reported")]


@pytest.fixture
def ours(tmp_path):
    """A database with something in it, so that theirs is joined with it."""
    db = kinbase.open(tmp_path / "ours.duckdb")
    (tmp_path / "scores.csv").write_text("model,benchmark,metric,value\nx,mmlu,acc,1\n")
    db.import_([tmp_path / "scores.csv"])
    return db


@pytest.mark.parametrize("is_joined", [False, True])
def test_a_strangers_export_reports(theirs, ours, empty, monkeypatch, tmp_path, is_joined):
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "our-state"))
    db = ours if is_joined else empty
    notes = db.import_([theirs])["notes"].item().to_list()
    assert any("2 edges with the evidence of the program that exported them" in note for note in notes)
    assert evidence(db) == REPORTED
    sources = db.sql("select source from lineage where evidence = 'reported' order by 1 nulls last").rows()
    assert ("team: run",) in sources and ("team: user",) in sources
    assert db.sql("select source from scores where model = 'b'").rows() == [("team: user",)]


@pytest.mark.parametrize("is_joined", [False, True])
def test_one_may_believe_it(theirs, ours, empty, monkeypatch, tmp_path, is_joined):
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "our-state"))
    db = ours if is_joined else empty
    db.import_([theirs], trust=True)
    assert evidence(db) == THEIRS
    with pytest.raises(UsageError, match="whole database"):
        db.import_([tmp_path / "scores.csv"], trust=True)


def test_an_export_of_this_machine_comes_back_as_it_was(theirs, empty):
    notes = empty.import_([theirs])["notes"].item().to_list()
    assert evidence(empty) == THEIRS and len(notes) == 1


def test_a_seal_is_of_these_tables_alone(theirs, empty):
    """Whoever changes a table under the seal of another machine's own export is a stranger again."""
    claims = pl.read_parquet(theirs / "claim.parquet")
    claims.with_columns(evidence=pl.lit("weights")).write_parquet(theirs / "claim.parquet")
    empty.import_([theirs])
    assert {word for _, _, word in evidence(empty)} == {"reported"}


@pytest.mark.parametrize("seal", [None, "", "0" * 64, 5, {"a": 1}, "\ud800"])
def test_what_is_no_seal_opens_nothing(theirs, empty, seal):
    told = json.loads((theirs / "kinbase.json").read_text())
    (theirs / "kinbase.json").write_text(json.dumps({**told, "seal": seal}))
    empty.import_([theirs])
    assert evidence(empty) == REPORTED
