"""Queries in a process of their own: what they answer, and that nothing they compute keeps it."""

import threading

import polars as pl
import pytest

import kinbase
from kinbase.errors import DatabaseError, KinbaseError
from kinbase.store.worker import Worker

ENDLESS = "select damerau_levenshtein(repeat('ab', 200000), repeat('ba', 200000))"
"""DuckDB looks at no interrupt within one value: this takes minutes."""


@pytest.fixture
def worker(empty):
    worker = Worker(empty.store.path, wait=1.0)
    yield worker
    worker.close()


def test_a_query_that_does_not_obey_is_killed_and_the_next_is_answered(empty, worker):
    with pytest.raises(KinbaseError, match=r"stopped after 0\.2 s"):
        worker.ask(ENDLESS, seconds=0.2)
    assert worker.ask("select 42", seconds=20)[2] == [(42,)]
    with pytest.raises(KinbaseError, match=r"stopped after 0\.2 s"):
        empty.sql(ENDLESS, timeout=0.2)
    assert empty.sql("select 42", timeout=20).item() == 42


def test_whoever_does_not_wait_any_more_stops_it(worker):
    stop = threading.Event()
    threading.Timer(0.3, stop.set).start()
    with pytest.raises(KinbaseError, match="stopped"):
        worker.ask(ENDLESS, stop=stop)
    assert worker._process is None


@pytest.mark.parametrize(
    ("query", "said"),
    [
        ("select 1 from nowhere", "nowhere"),
        ("delete from raw.model", "only read"),
        ("select * from read_text('/etc/passwd')", "nothing else"),
        (
            "select list(repeat('x', 4000000) || i) from range(4000) t(i)",
            "takes more than|larger than|Out of Memory|memory",
        ),
    ],
)
def test_what_fails_is_told_in_a_line(worker, query, said):
    with pytest.raises(KinbaseError, match=said):
        worker.ask(query, seconds=60)
    assert worker.ask("select 1", seconds=20)[2] == [(1,)]


def test_a_database_that_is_not_there_is_one(tmp_path):
    worker = Worker(tmp_path / "none.duckdb", wait=0.1)
    with pytest.raises(DatabaseError, match="there is no database"):
        worker.ask("select 1", seconds=5)
    worker.close()


def test_parts_of_a_result(worker, tmp_path):
    query = "select i from range(1000) t(i) order by i; -- all"
    assert worker.ask(query, part=(3, 0))[2] == [(0,), (1,), (2,)]
    assert worker.ask(query, part=(2, 500))[2] == [(500,), (501,)]
    assert worker.ask(query, part="count")[2] == [(1000,)]
    assert worker.ask(query, part=tmp_path / "all.csv")[2] == []
    assert len((tmp_path / "all.csv").read_text().splitlines()) == 1001
    assert worker.ask("-- nothing", part=(3, 0)) == ([], [], [])


QUERIES = {
    "select map {'k': 2, 'l': 3} as v": [{"key": "k", "value": 2}, {"key": "l", "value": 3}],
    "select {'a': 1, 'b': [time '01:02:03']} as v": None,
    "select date '2024-02-29' as v": None,
    "select '0044-03-15 (BC)'::date as v": "0044-03-15 (BC)",
    "select [map {1: map {'x': date '0001-01-01'}}] as v": None,
    "select timetz '01:02:03+05' as v": None,
    "select union_value(num := 2) as v": "2",
    "select '101'::bit as v": "101",
    "select uuid '00000000-0000-0000-0000-000000000001' as v": "00000000-0000-0000-0000-000000000001",
    "select interval 1 month as v": None,
    "select 'nan'::double as v": None,
    "select 340282366920938463463374607431768211455::uhugeint as v": "340282366920938463463374607431768211455",
    "select timestamptz '2024-01-01 00:00:00+02' as v": None,
    "select null::struct(a int) as v": None,
    "select struct_pack(a := null) as v from range(2)": None,
}


@pytest.mark.parametrize("query", QUERIES)
def test_every_type_has_a_place_in_a_frame(empty, query):
    here, apart = empty.sql(query), empty.sql(query, timeout=30)
    assert here.equals(apart) and here.columns == ["v"]
    if QUERIES[query] is not None:
        assert here.row(0) == (QUERIES[query],) or here.row(0)[0].to_list() == QUERIES[query]


def test_columns_of_one_name_are_told_apart(empty):
    frame = empty.sql("select 1 as a, 2 as a, 3 as a_2, 4 as a")
    assert frame.row(0) == (1, 2, 3, 4) and len(set(frame.columns)) == 4


def test_a_second_database_has_a_worker_of_its_own(empty, tmp_path):
    other = kinbase.open(tmp_path / "other.duckdb")
    with other.store.writing():
        pass
    assert isinstance(other.sql("from models", timeout=20), pl.DataFrame)
    assert other._worker is not empty._worker
