"""Questions about single models of a lineage as large as the Hub's, one of them with hundreds of thousands of children.

    python benchmarks/hub_lineage.py                             # 2,000,000 models, 580,000 children of one
    python benchmarks/hub_lineage.py --models 200000 --children 58000 --keep hub.duckdb --only tree

Every question is a process of its own, as a person asks it: seconds on the clock, seconds of processor time (which tell
on a machine that does other work too), and the peak of its memory. `lines` are those that it printed. The lineage has no
weights; a fifth of the models are merges, and parents lean towards early models, as on the Hub.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

from kinbase.store import Store

MADE = """
create temp macro roll(x, n) as (hash(x) % n)::bigint;
insert into raw.model (model_id, name, architecture, parameters, dtype, license, source, imported_at)
select i, 'org' || (i % 9973) || '/model-' || i, 'LlamaForCausalLM', (1 + i % 70) * 1000000000, 'BF16', 'apache-2.0',
    'hf:org' || (i % 9973) || '/model-' || i, timestamp '2026-01-01' + to_seconds(i)
from range({models}) t(i);
-- Model 0 is the hub; its children are every other one until there are enough; others have an earlier model as parent.
create temp table edge as
select i as child, case when i <= 2 * {children} and i % 2 = 1 then 0
    else floor((i - 1) * pow(roll(i, 1000003) / 1000003.0, 3))::bigint end as parent
from range(1, {models}) t(i)
union all
select i, floor((i - 1) * pow(roll((i, 1), 1000003) / 1000003.0, 3))::bigint from range(1, {models}) t(i) where i % 5 = 0;
insert into raw.claim (child_id, parent_id, relation, method, evidence, source)
select child, parent, if(child % 5 = 0, 'merge', 'finetune'), if(child % 5 = 0, 'linear', null), 'card', 'README.md'
from (select distinct child, parent from edge) order by child, parent;
insert into raw.score (model_id, benchmark, metric, value, source)
select i, b, 'acc', 0.3 + 0.6 * roll((i, b), 10007) / 10007.0, 'model-index'
from range({models}) t(i), (values ('arc'), ('gsm8k'), ('mmlu')) b(b) where i % 10 = 0 order by i
"""

LONGEST = 120.0
"""Seconds after which a question is given up; its exit code is then -9."""

HUB = "org0/model-0"


def make(path: Path, models: int, children: int) -> None:
    """A lineage of so many models, about so many of them children of the first."""
    with Store(path).writing() as con:
        for statement in MADE.format(models=models, children=children).split(";\n"):
            con.execute(statement)


def named(number: int) -> str:
    return f"org{number % 9973}/model-{number}"


def questions(models: int) -> dict[str, list[str]]:
    """What is asked, by what it is called."""
    leaf, merge, middle = named(models - 2), named(models // 2 // 5 * 5), named(20)
    return {
        "floor: sql select 1": ["sql", "select 1"],
        "show leaf": ["show", leaf], "show merge": ["show", merge], "show hub": ["show", HUB],
        "tree leaf": ["tree", leaf], "tree middle": ["tree", middle], "tree hub": ["tree", HUB],
        "kin leaf": ["kin", leaf], "kin hub": ["kin", HUB],
        "ancestors of a leaf": ["sql", f"from ancestors('{leaf}')"],
        "ancestors of a merge": ["sql", f"from ancestors('{merge}')"],
        "descendants of a middle one": ["sql", f"select count(*) from descendants('{middle}')"],
        "descendants of the hub": ["sql", f"select count(*) from descendants('{HUB}')"],
        "family of a leaf": ["sql", f"select count(*) from family('{leaf}')"],
        "lineage by child": ["sql", f"from lineage where child = '{leaf}'"],
        "lineage by parent": ["sql", f"select count(*) from lineage where parent = '{HUB}'"],
        "common ancestors": ["sql", f"select count(*) from ancestors('{leaf}') join ancestors('{merge}') using (model)"],
        "gains of one merge": ["sql", f"from merge_gains where child = '{merge}'"],
        "check leaf": ["check", leaf],
        "export leaf": ["export", leaf, "-o", "leaf.json"],
        "did you mean": ["show", "org7/modle-1234567"],
        "ls by name": ["ls", "*model-123456"],
    }  # fmt: skip


def ask(database: Path, words: list[str]) -> tuple[float, float, int, int, int]:
    """Seconds, processor seconds, peak MiB, lines and exit code of one command."""
    began = time.perf_counter()
    with tempfile.TemporaryFile() as out:
        child = subprocess.Popen(
            [sys.executable, "-m", "kinbase", "--db", str(database), *words], stdout=out, stderr=out,
            cwd=database.parent,
        )  # fmt: skip
        late = threading.Timer(LONGEST, child.kill)
        late.start()
        _, status, used = os.wait4(child.pid, 0)
        late.cancel()
        child.returncode = os.waitstatus_to_exitcode(status)
        wall = time.perf_counter() - began
        out.seek(0)
        lines = sum(1 for _ in out)
    return wall, used.ru_utime + used.ru_stime, used.ru_maxrss // 1024, lines, child.returncode


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--models", type=int, default=2_000_000)
    parser.add_argument("--children", type=int, default=580_000)
    parser.add_argument(
        "--keep", metavar="FILE", type=Path, help="keep the database, and use it if it is there"
    )
    parser.add_argument("--only", metavar="WORD", default="", help="ask what has WORD in its name")
    parser.add_argument("--runs", type=int, default=2, help="the best of so many")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        database = (options.keep or Path(folder, "lineage.duckdb")).absolute()
        if not database.exists():
            make(database, options.models, options.children)
        print("question | s | CPU s | peak MiB | lines | exit code")
        for what, words in questions(options.models).items():
            if options.only in what:
                best = min(ask(database, words) for _ in range(options.runs))
                print(
                    f"{what} | {best[0]:.2f} | {best[1]:.2f} | {best[2]} | {best[3]} | {best[4]}", flush=True
                )


if __name__ == "__main__":
    main()
