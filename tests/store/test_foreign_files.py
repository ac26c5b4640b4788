"""Database files that somebody else wrote, or nobody finished: their views are made anew, or they are refused in a line."""

import hashlib
import os
import re
import shutil

import duckdb
import pytest

import kinbase
from kinbase.errors import DatabaseError
from kinbase.schema import scripts
from kinbase.store import Store, connection, migrations, surface


@pytest.fixture
def foreign(empty):
    """A database with a score, whose definitions the test changes with DuckDB itself."""
    (empty.store.path.parent / "s.csv").write_text("model,benchmark,metric,value\na,b,acc,0.5\n")
    empty.import_([empty.store.path.parent / "s.csv"])

    def change(*statements):
        with duckdb.connect(empty.store.path) as con:
            for statement in statements:
                con.execute(statement)
        # As another file would be met: what was looked at is remembered for this process only.
        from kinbase.store import connection

        connection._CHECKED.clear()
        return empty

    return change


def names(folder):
    return sorted(path.name for path in folder.iterdir())


LIES = [
    "create or replace view scores as select 'a' as model, 'b' as benchmark, 'acc' as metric, 99.0 as value",
    "create or replace view raw.meant_for_nobody as select 1; create or replace view models as select 'evil' as name",
    "create or replace macro ancestors(m) as table select 'evil' as model, 1 as generation",
    "create or replace macro main.coalesce_(x) as 1; create or replace macro main.starts_with(a, b) as true",
    "drop view lineage",
]


@pytest.mark.parametrize("lie", LIES)
def test_views_that_are_not_ours_answer_nothing_and_are_made_anew(foreign, lie):
    db = foreign(*lie.split("; "))
    with pytest.raises(DatabaseError, match="makes all of them anew"):
        db.sql("from scores")
    assert db.migrate()
    assert db.sql("select value from scores").rows() == [(0.5,)]
    assert db.sql("select name from models").rows() == [("a",)]
    with db.store.reading() as con:
        assert surface.differences(con) == ([], [])
    assert db.migrate() == []


@pytest.mark.parametrize("lie", LIES[:3])
def test_whoever_writes_makes_them_anew_first(foreign, lie):
    db = foreign(*lie.split("; "))
    with db.store.writing() as con:
        assert con.execute("select value from scores").fetchall() == [(0.5,)]
    assert db.sql("select value from scores").rows() == [(0.5,)]


@pytest.mark.parametrize(
    "lie",
    [
        "drop table raw.task; create view raw.task as select 'b' as benchmark, content as category from read_text('/etc/passwd')",
        "alter table raw.score add column more varchar",
        "drop view models; create table models as select 'mine' as name",
    ],
)
def test_tables_that_are_not_ours_are_refused_and_untouched(foreign, lie):
    db = foreign(*lie.split("; "))
    before = db.store.path.read_bytes()
    for opening in (db.store.reading, db.store.writing):
        with pytest.raises(DatabaseError, match="it was edited"), opening():
            pass
    with pytest.raises(DatabaseError, match="is as it was"):
        db.migrate()
    assert db.store.path.read_bytes() == before


def test_a_view_of_ones_own_stays(foreign):
    db = foreign("create view favourites as select name from raw.model")
    assert db.sql("from favourites").rows() == [("a",)]
    assert db.migrate() == []


def test_a_writer_reaches_no_file_but_the_database(foreign, tmp_path):
    db = foreign("select 1")
    (tmp_path / "secret.csv").write_text("a\n1\n")
    for query in (f"from read_csv('{tmp_path}/secret.csv')", f"copy raw.model to '{tmp_path}/out.csv'"):
        with pytest.raises(kinbase.errors.KinbaseError, match="nothing else"), db.store.writing() as con:
            con.execute(query)
    assert not (tmp_path / "out.csv").exists()


def test_a_file_of_another_programs_is_not_migrated(tmp_path):
    path = tmp_path / "other.duckdb"
    with duckdb.connect(path) as con:
        con.execute("create table mine as select 42 as x")
    before = path.read_bytes()
    with pytest.raises(DatabaseError, match="not Kinbase's"):
        Store(path).migrate()
    assert path.read_bytes() == before and names(tmp_path) == ["other.duckdb"]


def test_a_file_that_was_cut_off_at_its_birth_is_filled(tmp_path):
    path = tmp_path / "kin.duckdb"
    duckdb.connect(path).close()
    db = kinbase.open(path)
    with pytest.raises(DatabaseError, match="is empty: `kinbase import` fills it"):
        db.names()
    (tmp_path / "s.csv").write_text("model,benchmark,metric,value\na,b,acc,0.5\n")
    db.import_([tmp_path / "s.csv"])
    assert db.names() == ["a"]


def test_a_new_file_is_whole_when_it_is_there(tmp_path, monkeypatch):
    """Whatever stops its making, nothing is left at its place, and nothing beside it that is in the way of the next."""
    from kinbase.store import migrations

    def stopped(con):
        raise KeyboardInterrupt

    monkeypatch.setattr(migrations, "migrate", stopped)
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    store = Store(tmp_path / "kin.duckdb")
    with pytest.raises(KeyboardInterrupt), store.writing():
        pass
    assert names(tmp_path) == []
    monkeypatch.undo()
    with store.writing():
        pass
    assert names(tmp_path) == ["kin.duckdb"]


def test_an_empty_file_is_copied_when_one_is_kept_whole(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    with Store(tmp_path / "first.duckdb").writing():
        pass
    (kept,) = (tmp_path / "state" / "kinbase").glob("empty-*")
    whole = kept.read_bytes()
    with Store(tmp_path / "copied.duckdb").writing() as con:
        assert surface.differences(con) == ([], [])
    # Half of one is none: the file is made from its scripts again, and kept again.
    kept.write_bytes(whole[: len(whole) // 2])
    with Store(tmp_path / "made.duckdb").writing() as con:
        assert surface.differences(con) == ([], [])
    digest, _, data = kept.read_bytes().partition(b"\n")
    assert hashlib.sha256(data).hexdigest().encode() == digest


def test_what_is_no_regular_file_is_refused(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "folder").mkdir()
    for name, said in (
        ("pipe", "regular file"),
        ("folder", "regular file"),
        ("x" * 5000, "too long"),
        ("a\0b", "file name"),
    ):
        store = Store(tmp_path / name)
        for opening in (store.reading, store.writing):
            with pytest.raises(DatabaseError, match=said), opening():
                pass
        with pytest.raises(DatabaseError, match=said):
            store.migrate()


@pytest.mark.parametrize("is_there", [True, False])
@pytest.mark.parametrize("ending", [".wal", ".tmp"])
@pytest.mark.parametrize("way", ["pipe", "link"])
def test_what_lies_in_the_way_of_the_journal_is_refused(tmp_path, ending, way, is_there):
    """DuckDB waits at a pipe for ever, and writes where a link leads."""
    path = tmp_path / "kin.duckdb"
    if is_there:
        with Store(path).writing():
            pass
    beside, elsewhere = tmp_path / f"kin.duckdb{ending}", tmp_path / "elsewhere"
    elsewhere.mkdir()
    if way == "pipe":
        os.mkfifo(beside)
    else:
        beside.symlink_to(elsewhere)
    for opening in (Store(path).reading, Store(path).writing):
        with pytest.raises(DatabaseError, match="in the way of the database"), opening():
            pass
    assert not list(elsewhere.iterdir()) and path.exists() == is_there


def test_the_schema_can_be_laid_whatever_the_file_is_called():
    """DuckDB calls a database after its file: no alias of a view may be mistaken for it."""
    text = "".join(script for kind in ("migrations", "views") for _, script, _ in scripts(kind))
    words = set(re.findall(r"\b([a-z_]+)\.[a-z_]+", text)) - {"raw", "main"}
    assert {"t", "l", "their_reading"} <= words
    with duckdb.connect() as con:
        for word in sorted(words):
            con.execute(f"attach ':memory:' as \"{word}\"")
        assert migrations.migrate(con)
        for (view,) in con.execute(
            "select view_name from duckdb_views() where not internal and database_name = 'memory' and schema_name = 'main'"
        ).fetchall():
            assert con.execute(f"from {view}").fetchall() is not None


@pytest.mark.parametrize("name", ["t", "l", "model", "temp"])
def test_views_are_made_anew_whatever_the_file_is_called(published, tmp_path, name):
    path = shutil.copy(published.store.path, tmp_path / f"{name}.duckdb")
    with duckdb.connect(path) as con:
        con.execute("drop view merge_gains")
    db = kinbase.open(path)
    assert db.migrate()
    query = "from merge_gains order by all"
    assert db.sql(query).equals(published.sql(query))


def test_a_trigger_of_a_strangers_is_refused_and_dropped(tmp_path):
    """It would say whatever it likes, with the evidence of this program, at every import."""
    path = tmp_path / "kin.duckdb"
    with Store(path).writing():
        pass
    with duckdb.connect(str(path)) as con:
        con.execute(
            'create trigger "a of b" after insert on raw.model for each statement '
            "insert into raw.claim (child_id, parent_id, relation, evidence) values (1, 2, 'merge', 'user')"
        )
    connection._CHECKED.clear()
    with pytest.raises(DatabaseError, match="another trigger"), Store(path).reading():
        pass
    with Store(path).writing() as con:
        con.execute("insert into raw.model (name) values ('m')")
        assert con.execute("select count(*) from raw.claim").fetchone() == (0,)
    with Store(path).reading() as con:
        assert surface.differences(con) == ([], [])
