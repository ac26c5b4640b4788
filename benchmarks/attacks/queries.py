"""Queries that would reach out of the database, change it, or never end, by every way in."""

import random
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
LATE = 3.0
"""Seconds after its time that a query may still be there, of which the start of a process is one here."""


def run(folder: Path, size: int, chance: random.Random, table: Table) -> None:
    """Ask each query by the command line, by Python, and by the worker of the terminal UI."""
    secret, out = folder / "secret.csv", folder / "out.csv"
    secret.write_text("password\nhunter2\n")
    (folder / "scores.csv").write_text("model,benchmark,metric,value\na,b,acc,0.5\n")
    db = kinbase.open(folder / "kin.duckdb")
    db.import_([folder / "scores.csv"])
    before, names = db.sql("from raw.model").rows(), sorted(p.name for p in folder.iterdir())
    worker = Worker(db.store.path, wait=5.0)
    for _ in range(size):
        for text in REACHING:
            query = text.format(secret=secret, out=out)
            for way in ("python", "timeout", "worker", "command"):
                said = _answer(way, db, worker, query, 20.0)[0]
                changed = (
                    sorted(p.name for p in folder.iterdir()) != names
                    or db.sql("from raw.model").rows() != before
                )
                failed = "hunter2" in said or changed or "Traceback" in said
                table.tried(f"{way}: {query}: {said[:100]}" if failed else None)
        worst = 0.0
        for query in ENDLESS:
            for way in ("timeout", "worker", "command"):
                said, took = _answer(way, db, worker, query, 2.0)
                worst = max(worst, took - 2.0)
                late = took > 2.0 + LATE or "Traceback" in said
                table.tried(
                    f"{way}: {query[:60]}: {took:.1f} s {said[:80]}" if late else None, f"{worst:.1f} s late"
                )
    worker.close()


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
        elif way == "worker":
            said = str(worker.ask(query, seconds=seconds, part=(500, 0))[2])
        else:
            command = [
                sys.executable,
                "-m",
                "kinbase",
                "--db",
                str(db.store.path),
                "sql",
                "--timeout",
                str(seconds),
                query,
            ]
            done = subprocess.run(command, capture_output=True, text=True, timeout=120)
            said = done.stdout + done.stderr
    except KinbaseError as error:
        said = str(error)
    except Exception as error:
        said = f"Traceback: {type(error).__name__}: {error}"
    return said, time.monotonic() - began
