"""Databases that earlier versions wrote, brought to this schema: whole, behind a copy, or left as they were."""

import gzip
from pathlib import Path

import pytest

import kinbase
from kinbase import schema
from kinbase.errors import DatabaseError
from kinbase.store import Store, surface

SCHEMAS = sorted((Path(__file__).parent.parent / "data" / "schemas").glob("*.gz"))


@pytest.fixture(params=SCHEMAS, ids=lambda path: path.name.partition(".")[0])
def older(request, tmp_path):
    path = tmp_path / "kin.duckdb"
    path.write_bytes(gzip.decompress(request.param.read_bytes()))
    return path


def test_an_older_file_becomes_this_versions_and_keeps_what_it_says(older, tmp_path):
    before = older.read_bytes()
    db = kinbase.open(older)
    with pytest.raises(DatabaseError, match="older schema: run"), db.store.reading():
        pass
    copies = []
    assert any(name.startswith("migrations/") for name in db.migrate(on_backup=copies.append))
    (copy,) = copies
    assert copy.read_bytes() == before
    assert db.migrate(on_backup=copies.append) == [] and len(copies) == 1
    with db.store.reading() as con:
        assert surface.differences(con) == ([], [])
    assert db.sql("select name from models order by name")["name"].to_list() == ["a", "b", "base", "m"]
    assert db.sql("select model, value from scores order by model").rows() == [
        ("a", 0.5),
        ("b", 0.25),
        ("m", 0.75),
    ]
    assert db.sql("select parent, child, relation from lineage order by all").rows() == [
        ("a", "m", "merge"), ("b", "m", "merge"), ("base", "a", "finetune"),
    ]  # fmt: skip
    assert db.sql("select model from aliases where alias = 'org/a'").item() == "a"
    assert db.sql("select pcc from kinship where model_a = 'a' and model_b = 'b'").item() == 0.25
    assert db.check(deep=True).filter(subject="schema").is_empty()


def test_an_upgrade_that_fails_leaves_the_old_file(older, monkeypatch):
    applied = _scripts(older)
    broken = [
        *schema.scripts("migrations"),
        ("migrations/9998_broken.sql", "create table raw.half (x int); nonsense", "c"),
    ]
    monkeypatch.setattr(
        "kinbase.store.migrations.scripts",
        lambda kind: broken if kind == "migrations" else schema.scripts(kind),
    )
    with pytest.raises(DatabaseError, match="is as it was"):
        Store(older).migrate()
    monkeypatch.undo()
    assert _scripts(older) == applied
    assert kinbase.open(older).migrate()


def _scripts(path):
    store = Store(path)
    con = store._connect(read_only=True)
    try:
        return con.execute("from raw.migration order by name").fetchall()
    finally:
        con.close()
