"""Queries over 1,000 models with all their 499,500 exact pairs: `python benchmarks/database.py`.

Makes the database with SQL alone (220 tensors a model, random sums), then takes medians of each query
inside DuckDB and of the whole commands. The limit to compare with is one scan of the pair table.
"""

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

from kinbase.store import Store

QUERIES = {
    "scan of all pairs (the limit)": "select sum(dot) from raw.pair",
    "kinship of one model": "select * from kinship where model_a = 'org/model-70'",
    "nearest_kin(one, 10)": "from nearest_kin('org/model-70', 10)",
    "group_kinship of 10 models": "from group_kinship(['org/model-' || i for i in range(100, 110)])",
    "kinship by layer of one pair": "from kinship_by_layer where model_a = 'org/model-7' and model_b = 'org/model-8'",
    "kinship by tensor of one pair": "from kinship_by_tensor where model_a = 'org/model-7' and model_b = 'org/model-8'",
    "kinship of all pairs, mean": "select avg(pcc), count(*) from kinship",
    "models": "from models",
}
COMMANDS = {
    "kinbase --help": ["--help"],
    "kinbase ls": ["ls"],
    "kinbase sql (one model)": ["sql", QUERIES["kinship of one model"]],
    "kinbase kin (one model)": ["kin", "org/model-70"],
    "kinbase show": ["show", "org/model-70"],
}


def make(store: Store, models: int, tensors: int) -> None:
    with store.writing() as con:
        con.execute("insert into raw.model (model_id, name, digest) values (1, 'org/base', 'base')")
        con.execute(
            "insert into raw.model (model_id, name, digest, base_id) "
            "select i, 'org/model-' || i, 'd' || i, 1 from range(2, ?) t(i)",
            [models + 2],
        )
        part = "['self_attn.q_proj', 'mlp.up_proj', 'input_layernorm'][1 + i % 3]"
        name = f"'model.layers.' || (i // 9) || '.' || {part} || '.weight' || i"
        con.execute(f"insert into raw.tensor select 1, i + 1, {name}, 2000000 from range(?) t(i)", [tensors])
        con.execute(
            "insert into raw.delta select m, 1, t, 2000000, random(), 1 + random(), random(), 0, 0 "
            "from range(2, ?) m(m), range(1, ?) t(t)",
            [models + 2, tensors + 1],
        )
        con.execute(
            "insert into raw.pair select i, j, 1, ?, random(), random(), ? * (1 + random()), ? * (1 + random()), "
            "? * (random() - 0.5), list_transform(range(?), lambda x: random() - 0.5) "
            "from range(2, ?) a(i), range(2, ?) b(j) where i < j",
            [2000000 * tensors, tensors, tensors, tensors, tensors, models + 2, models + 2],
        )


def median_ms(action: Callable[[], object], rounds: int) -> float:
    action()
    times = []
    for _ in range(rounds):
        started = time.perf_counter()
        action()
        times.append(time.perf_counter() - started)
    return 1000 * statistics.median(times)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", type=int, default=1000)
    parser.add_argument("--tensors", type=int, default=220)
    parser.add_argument("--rounds", type=int, default=7)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        store = Store(Path(folder) / "kin.duckdb")
        started = time.perf_counter()
        make(store, arguments.models, arguments.tensors)
        size = store.path.stat().st_size
        print(f"{arguments.models} models, {arguments.models * (arguments.models - 1) // 2} pairs x {arguments.tensors} tensors: "
              f"{size / 1e6:.0f} MB, made in {time.perf_counter() - started:.0f} s")  # fmt: skip
        print(f"{'inside DuckDB':<34}{'median ms':>10}{'rows':>9}")
        with store.reading() as con:
            for title, query in QUERIES.items():
                rows = len(con.execute(query).fetchall())
                ms = median_ms(lambda query=query: con.execute(query).fetchall(), arguments.rounds)
                print(f"{title:<34}{ms:>10.1f}{rows:>9}")
        print(f"{'whole process':<34}{'median ms':>10}")
        for title, command in COMMANDS.items():
            line = [sys.executable, "-m", "kinbase", "--db", str(store.path), *command]
            run = partial(subprocess.run, line, check=True, stdout=subprocess.DEVNULL)
            print(f"{title:<34}{median_ms(run, arguments.rounds):>10.1f}")


if __name__ == "__main__":
    main()
