"""Queries that would reach out of the database, change it, or never end, by every way in."""

import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import kinbase
from attacks.report import Table
from kinbase.errors import KinbaseError
from kinbase.store.worker import Worker

REACHING = [
    "select * from read_csv('{secret}')",
    "select * from read_text('{secret}')",
    "from '{secret}'",
    "copy models to '{out}'",
    "copy (select 1) to '{out}' (format parquet)",
    "attach '{out}'",
    "attach ':memory:' as m",
    "export database '{out}'",
    "install httpfs",
    "load httpfs",
    "set enable_external_access = true",
    "set lock_configuration = false",
    "pragma enable_profiling",
    "create table t as select 1",
    "create view v as select 1",
    "insert into raw.model (name) values ('x')",
    "update raw.model set name = 'x'",
    "delete from raw.model",
    "drop view models",
    "drop table raw.score",
    "alter table raw.score add c int",
    "with x as (insert into raw.model (name) values ('x') returning name) from x",
    "checkpoint",
    "vacuum",
    "call pragma_database_size()",
    "select getenv('HOME')",
    "select * from glob('/*')",
    "select * from sniff_csv('{secret}')",
    "from parquet_scan('{secret}')",
    "select * from duckdb_secrets()",
    "create secret s (type s3)",
    "prepare p as select 1; execute p",
    "begin; delete from raw.model; commit",
    "select * from secret_frame",
    "create temp table t as select 1",
    "create macro m() as 1",
    "use raw",
    "detach kin",
    "import database '{out}'",
    "select 1; copy models to '{out}'",
    "select * from read_blob('{secret}')",
    "select * from read_json_auto('{secret}')",
    "from read_ndjson_objects('{secret}')",
    "from parquet_metadata('{secret}')",
    "from parquet_kv_metadata('{secret}')",
    "from read_duckdb('{secret}')",
    "from 'https://127.0.0.1:9/x.parquet'",
    "from query('copy models to ''{out}''')",
    "from query('from read_text(''{secret}'')')",
    "from query_table('{secret}')",
    "set temp_directory = '{out}'",
    "set profiling_output = '{out}'",
    "set log_query_path = '{out}'",
    "pragma profiling_output = '{out}'",
    "call enable_logging(storage = 'file', storage_path = '{out}')",
    "call enable_profiling(save_location = '{out}')",
    "set extension_directory = '{out}'",
    "set memory_limit = '100GB'",
    "reset lock_configuration",
    "pragma threads = 64",
    "set variable x = (select content from read_text('{secret}'))",
    "explain analyze copy models to '{out}'",
    "copy from database kin to m",
    "comment on table raw.model is 'x'",
    "force checkpoint",
    "load '{out}.duckdb_extension'",
    "execute immediate 'copy models to ''{out}'''",
    "call dbgen(sf = 1)",
    "truncate raw.model",
    "merge into raw.model using (select 1 as x) on false when not matched then insert (name) values ('x')",
    "create secret s in local_file (type s3, key_id 'x', secret 'y')",
    "create type t as enum ('a')",
    "create sequence s",
    "create schema s",
    "select nextval('raw.model_ids')",
    "select * from 'kin.duckdb'",
    "summarize '{secret}'",
    "describe '{secret}'",
    "select write_log('x', scope := 'database')",
]
"""Refused, or harmless: nothing is read, written or changed."""

ENDLESS = [
    "select damerau_levenshtein(repeat('ab', 300000), repeat('ba', 300000))",
    "select count(*) from range(100000000000)",
    "select sum(a.range) from range(10000000) a, range(10000000) b",
    "with recursive r(i) as (select 1 union all select i + 1 from r) select max(i) from r",
    "select length(string_agg(repeat('x', 1000000), '')) from range(4000)",
    "select list(repeat('x', 1000000) || i) from range(100000) t(i)",
    "select levenshtein(repeat('ab', 200000), repeat('ba', 200000))",
    "select jaccard(repeat('ab', 100000000), repeat('ba', 100000000)) from range(100)",
]
LATE = 2.0
"""Seconds after its time, or after Ctrl-C, that a query may still be there."""
WAYS = ("python", "timeout", "worker", "count", "page", "command", "stdin", "file")
"""By which a query comes in: `Kinbase.sql`, with a timeout too, three of the terminal UI's, three of the command line's."""
PARTS: dict[str, tuple[int, int] | str] = {"worker": (500, 0), "count": "count", "page": (500, 1)}


def run(folder: Path, size: int, chance: random.Random, table: Table) -> None:
    """Ask each query by every way in, and let those that do not end run into their time or Ctrl-C."""
    secret, out = folder / "secret.csv", folder / "out.csv"
    secret.write_text("password\nhunter2\n")
    (folder / "scores.csv").write_text("model,benchmark,metric,value\na,b,acc,0.5\n")
    db = kinbase.open(folder / "kin.duckdb")
    db.import_([folder / "scores.csv"])
    before, names = db.sql("from raw.model").rows(), _listing(folder)
    worker = Worker(db.store.path, wait=5.0)
    worst = 0.0
    for number in range(size):
        for text in REACHING:
            query = text.format(secret=secret, out=out)
            for way in WAYS:
                said = _answer(way, db, worker, query, 60.0)[0]
                is_changed = _listing(folder) != names or db.sql("from raw.model").rows() != before
                failed = "hunter2" in said or is_changed or "Traceback" in said
                table.tried(f"{way}: {query}: {said[:200]}" if failed else None)
        if number % 8:
            continue  # what does not end takes minutes a round
        for query in ENDLESS:
            for way in ("timeout", "worker", "count", "command", "file", "interrupted"):
                _answer(way, db, worker, "select 1", 2.0)  # a process that was killed is started again
                usual = _answer(way, db, worker, "select 1", 2.0)[1]
                said, took = _answer(way, db, worker, query, 2.0)
                late = took - 2.0 - (0 if way == "interrupted" else usual)
                worst = max(worst, late)
                gave = late > LATE or "Traceback" in said or _listing(folder) != names
                table.tried(
                    f"{way}: {query[:60]}: {late:.1f} s late: {said[-200:]}" if gave else None,
                    f"{worst:.1f} s after its time",
                )
    worker.close()


def _listing(folder: Path) -> list[str]:
    """What is there but for the file that `sql -o` is told to write."""
    return sorted(p.name for p in folder.iterdir() if p.name != "told.csv")


def _answer(
    way: str, db: "kinbase.database.Kinbase", worker: Worker, query: str, seconds: float
) -> tuple[str, float]:
    """What is said, and the seconds until it was."""
    began = time.monotonic()
    try:
        if way == "python":
            said = str(db.sql(query).rows())
        elif way == "timeout":
            said = str(db.sql(query, timeout=seconds).rows())
        elif way in PARTS:
            said = str(worker.ask(query, seconds=seconds, part=PARTS[way])[2])
        else:
            command = [sys.executable, "-m", "kinbase", "--db", str(db.store.path), "sql"]
            if way == "interrupted":
                return _interrupted([*command, query], seconds)
            command += ["--timeout", str(seconds), "-" if way == "stdin" else query]
            command += ["-o", str(db.store.path.with_name("told.csv"))] if way == "file" else []
            asked = query if way == "stdin" else None
            done = subprocess.run(command, input=asked, capture_output=True, text=True, timeout=120)
            said = done.stdout + done.stderr
    except KinbaseError as error:
        said = str(error)
    except Exception as error:
        said = f"Traceback: {type(error).__name__}: {error}"
    return said, time.monotonic() - began


def _interrupted(command: list[str], seconds: float) -> tuple[str, float]:
    """What is said of a query that gets Ctrl-C after so many seconds, and the seconds from its start to its end."""
    began = time.monotonic()
    asked = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    try:
        asked.wait(seconds)
    except subprocess.TimeoutExpired:
        asked.send_signal(signal.SIGINT)
    said, _ = asked.communicate(timeout=120)
    took = time.monotonic() - began
    is_told = asked.returncode == 130 or took < seconds
    return said if is_told else f"Traceback: exit {asked.returncode}: {said}", took
