"""The database file: made, guarded, locked, migrated, and never left half written."""

import subprocess
import sys
import time

import duckdb
import pytest

import kinbase
from kinbase import schema
from kinbase.errors import DatabaseError, KinbaseError
from kinbase.store import Store


@pytest.fixture
def store(tmp_path):
    store = Store(tmp_path / "kin.duckdb", wait=0.3)
    with store.writing() as con:
        con.execute("insert into raw.model (name) values ('a')")
    return store


def catalogue(store):
    with store.reading() as con:
        views = con.execute(
            "select view_name, sql from duckdb_views() where not internal order by all"
        ).fetchall()
        columns = con.execute(
            "select table_name, column_name, data_type from duckdb_columns() where not internal order by all"
        ).fetchall()
        macros = con.execute(
            "select function_name, macro_definition from duckdb_functions() where not internal order by all"
        ).fetchall()
    return views, columns, macros


def test_a_missing_file_is_not_made_by_reading(tmp_path):
    with pytest.raises(DatabaseError, match="kinbase import"), Store(tmp_path / "no.duckdb").reading():
        pass
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("content", [b"", b"not a database", b"\x00" * 5000])
def test_a_foreign_file_is_refused_and_untouched(tmp_path, content):
    path = tmp_path / "foreign.duckdb"
    path.write_bytes(content)
    store = Store(path, wait=0.1)
    for opening in (store.reading, store.writing):
        with pytest.raises(DatabaseError, match="cannot be opened"), opening():
            pass
    assert path.read_bytes() == content


def test_another_programs_duckdb_file_is_refused_and_untouched(tmp_path):
    path = tmp_path / "other.duckdb"
    with duckdb.connect(path) as con:
        con.execute("create table mine as select 42 as x")
    store = Store(path)
    for opening in (store.reading, store.writing):
        with pytest.raises(DatabaseError, match="not Kinbase's"), opening():
            pass
    with duckdb.connect(path) as con:
        assert con.execute("from duckdb_tables() select table_name").fetchall() == [("mine",)]


def test_a_failed_block_leaves_nothing(store):
    with pytest.raises(RuntimeError), store.writing() as con:
        con.execute("insert into raw.model (name) values ('b')")
        raise RuntimeError
    with store.reading() as con:
        assert con.execute("select name from models").fetchall() == [("a",)]


def test_a_lock_is_waited_for_and_then_told(store):
    holder = subprocess.Popen(
        [
            sys.executable,
            "-c",
            f"import duckdb, time; c = duckdb.connect({str(store.path)!r}); print(1, flush=True); time.sleep(60)",
        ],
        stdout=subprocess.PIPE,
    )
    try:
        holder.stdout.readline()
        started = time.monotonic()
        with pytest.raises(DatabaseError, match=rf"in use \(by process PID {holder.pid}\)"), store.reading():
            pass
        assert time.monotonic() - started >= 0.2
    finally:
        holder.kill()
        holder.wait()
    with store.reading() as con:
        assert con.execute("select count(*) from models").fetchone() == (1,)


def test_a_reader_waits_for_a_writer_of_its_own_process(store):
    with store.writing(), pytest.raises(DatabaseError, match="by this process"), store.reading():
        pass


@pytest.mark.parametrize(
    "query",
    [
        "insert into raw.model (name) values ('x')",
        "with x as (insert into raw.model (name) values ('x') returning name) from x",
        "drop view models",
        "create table t as select 1",
        "copy models to 'out.csv'",
        "select * from read_csv('/etc/passwd')",
        "attach 'other.duckdb'",
        "install httpfs",
        "load httpfs",
        "set memory_limit = '100GB'",
        "pragma enable_profiling",
        "export database 'out'",
    ],
)
def test_the_guard_holds(store, query, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    before = sorted(path.name for path in tmp_path.iterdir())
    with pytest.raises(KinbaseError), store.reading() as con:
        con.execute(query)
    with store.reading() as con:
        assert con.execute("select name from models").fetchall() == [("a",)]
    assert sorted(path.name for path in tmp_path.iterdir()) == before


def test_python_variables_are_out_of_reach(store):
    secret = [1, 2, 3]  # noqa: F841 - a replacement scan would find it
    with pytest.raises(KinbaseError, match="secret"), store.reading() as con:
        con.execute("from secret")


def test_a_query_is_stopped_in_time(store):
    with pytest.raises(KinbaseError, match=r"stopped after 0.2 s"), store.bounded(0.2) as con:
        con.execute("select count(*) from range(100000000000)").fetchall()


def test_a_newer_schema_is_refused(store):
    with duckdb.connect(store.path) as con:
        con.execute("insert into raw.migration (name, checksum) values ('migrations/9999_future.sql', 'x')")
    with pytest.raises(DatabaseError, match="newer Kinbase"), store.reading():
        pass
    with pytest.raises(DatabaseError, match="upgrade kinbase"):
        store.migrate()


def test_an_edited_migration_is_refused(store):
    with duckdb.connect(store.path) as con:
        con.execute("update raw.migration set checksum = 'x' where name like 'migrations/0001%'")
    for opening in (store.reading, store.writing):
        with pytest.raises(DatabaseError, match="another migrations/0001"), opening():
            pass


def test_older_views_ask_for_migrate_which_makes_a_fresh_schema(store, tmp_path):
    fresh = Store(tmp_path / "fresh.duckdb")
    with fresh.writing():
        pass
    with duckdb.connect(store.path) as con:
        con.execute("update raw.migration set checksum = 'old' where name like 'views/%'")
        con.execute("create or replace view models as select 1 as old")
    for opening in (store.reading, store.writing):
        with pytest.raises(DatabaseError, match="migrate"), opening():
            pass
    assert all(name.startswith("views/") for name in store.migrate())
    assert store.migrate() == []
    assert catalogue(store) == catalogue(fresh)
    with store.reading() as con:
        assert con.execute("select name from models").fetchall() == [("a",)]


def test_a_migration_that_fails_changes_nothing(store, monkeypatch):
    broken = [
        *schema.scripts("migrations"),
        ("migrations/9998_broken.sql", "create table raw.half (x int); nonsense", "c"),
    ]
    monkeypatch.setattr(
        "kinbase.store.migrations.scripts",
        lambda kind: broken if kind == "migrations" else schema.scripts(kind),
    )
    with pytest.raises(DatabaseError, match="is as it was"):
        store.migrate()
    monkeypatch.undo()
    with store.reading() as con:
        assert con.execute("from duckdb_tables() select count(*) where table_name = 'half'").fetchone() == (
            0,
        )


def test_every_public_view_and_macro_is_described(store):
    with store.reading() as con:
        silent = con.execute(
            "select view_name from duckdb_views() where not internal and schema_name = 'main' and comment is null"
        ).fetchall()
        silent += con.execute(
            "select function_name from duckdb_functions() where not internal and schema_name = 'main' and comment is null"
        ).fetchall()
    assert not silent


def test_kill_nine_in_a_transaction_loses_that_transaction_only(store):
    script = (
        f"import os; from kinbase.store import Store\n"
        f"with Store({str(store.path)!r}).writing() as con:\n"
        f"    con.execute(\"insert into raw.model (name) select 'm' || i from range(5000) t(i)\")\n"
        f"    os.kill(os.getpid(), 9)\n"
    )
    assert subprocess.run([sys.executable, "-c", script]).returncode == -9
    with store.reading() as con:
        assert con.execute("select count(*) from models").fetchone() == (1,)


@pytest.mark.parametrize("stem", ["r", "c", "o", "model", "models", "main", "temp"])
def test_the_file_may_be_called_like_a_table(tmp_path, stem):
    """DuckDB names the database after its file, so a query's `r.column` could be taken for a table of it."""
    db = kinbase.open(tmp_path / f"{stem}.duckdb")
    with db.store.writing() as con:
        con.execute("insert into raw.model (name) values ('a')")
    for view in db.sql("select view_name from duckdb_views() where not internal and schema_name = 'main'")[
        "view_name"
    ]:
        db.sql(f"from {view}")
    db.check()
    assert db.show("a")["name"].to_list() == ["a"]


def test_a_file_cannot_be_called_raw(tmp_path):
    with (
        pytest.raises(DatabaseError, match="a name that is not raw"),
        Store(tmp_path / "raw.duckdb").writing(),
    ):
        pass
    assert not list(tmp_path.iterdir())


def test_a_name_like_an_address_is_a_file(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("md:mine", "postgres:host=x"):
        with Store(name).writing() as con:
            con.execute("insert into raw.model (name) values ('a')")
        with Store(name).reading() as con:
            assert con.execute("select name from models").fetchall() == [("a",)]
        assert (tmp_path / name).is_file()


def test_a_database_in_memory_is_refused(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for handle in (Store(":memory:").writing, Store(":memory:").reading):
        with pytest.raises(DatabaseError, match="keeps nothing"), handle():
            pass
    assert not list(tmp_path.iterdir())
