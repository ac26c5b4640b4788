"""Tables as large as the Hub's: models, edges and scores imported from files, time and memory.

    python benchmarks/tables.py                                   # 100,000 models, 125,000 edges, 30,000 scores
    python benchmarks/tables.py --models 200000 --form csv

One edge a model and a quarter more for merges, parents leaning towards early models; three scores for a tenth of the
models. Each import is a process of its own into a new database; `again` imports the same files once more.
A table is read by columns, within the time and memory that `kinbase.checkpoint.guard` gives a file of its bytes.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import polars as pl

IMPORT = """
import json, resource, sys, time
import kinbase

began, used = time.perf_counter(), time.process_time()
rows = kinbase.open(sys.argv[1]).import_(sys.argv[2:])
assert set(rows["status"]) == {"records"}, rows["notes"].to_list()
with kinbase.open(sys.argv[1]).store.reading() as con:
    counts = [
        con.execute(f"select count(*) from raw.{table}").fetchone()[0] for table in ("model", "claim", "score")
    ]
print(json.dumps({
    "models, edges, scores": counts, "s": round(time.perf_counter() - began, 1), "CPU s": round(time.process_time() - used, 1),
    "peak MiB": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
}))
"""


def write_tables(folder: Path, models: int, form: str) -> list[Path]:
    """The three tables; their files."""
    rng = np.random.default_rng(0)
    name = pl.format("org{}/model-{}", pl.col("i") % 9973, pl.col("i"))
    numbers = pl.DataFrame({"i": np.arange(models)})
    facts = numbers.select(
        name=name,
        license=pl.lit("apache-2.0"),
        architecture=pl.lit("LlamaForCausalLM"),
        parameters=(1 + pl.col("i") % 70) * 1_000_000_000,
    )
    child = np.concatenate([np.arange(1, models), np.arange(4, models, 4)])
    parent = (child * rng.random(len(child)) ** 3).astype(np.int64)
    edges = pl.DataFrame({"p": parent, "c": child}).select(
        parent=pl.format("org{}/model-{}", pl.col("p") % 9973, pl.col("p")),
        child=pl.format("org{}/model-{}", pl.col("c") % 9973, pl.col("c")),
        relation=pl.when(pl.col("c") % 4 == 0).then(pl.lit("merge")).otherwise(pl.lit("finetune")),
    )
    scores = (
        numbers.filter(pl.col("i") % 10 == 0)
        .join(pl.DataFrame({"benchmark": ["arc", "gsm8k", "mmlu"]}), how="cross")
        .select(model=name, benchmark="benchmark", metric=pl.lit("acc"), value=(pl.col("i") % 997) / 997.0)
    )
    files = []
    for what, frame in (("models", facts), ("lineage", edges), ("scores", scores)):
        files.append(folder / f"{what}.{form}")
        frame.write_parquet(files[-1]) if form == "parquet" else frame.write_csv(files[-1])
    return files


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--models", type=int, default=100_000)
    parser.add_argument("--form", choices=["parquet", "csv"], default="parquet")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        files = write_tables(Path(name), options.models, options.form)
        for what in ("first", "again"):
            done = subprocess.run(
                [sys.executable, "-c", IMPORT, str(Path(name, "tables.duckdb")), *map(str, files)],
                check=True, stdout=subprocess.PIPE, text=True,
            )  # fmt: skip
            print(what, " | ".join(f"{k}: {v}" for k, v in json.loads(done.stdout.splitlines()[-1]).items()))


if __name__ == "__main__":
    main()
