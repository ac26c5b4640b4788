"""What a pass in parts costs beside one process: the slowest part, the files, putting them together.

    python benchmarks/parts.py                                        # 300 members of 200 tensors in 8 parts
    python benchmarks/parts.py --members 8 --parameters 48000000 --tensors 100 --parts 1 4 12

The family is that of families.py. Parts run one after the other, each a process of its own on all cores: `part s` is
the time of the slowest, all of it, `whole s` that of one process that imports the family. `read s` of a part is the time
within, without the start of Python. `same` tells whether the databases have the same rows of sums, pairs and digests.
"""

import argparse
import json
import multiprocessing
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from families import write_family

RUN = """
import json, resource, sys, time
import kinbase

began = time.perf_counter()
words = json.loads(sys.argv[1])
db = kinbase.open(words["db"])
if words["out"]:
    db.measure_part(words["sources"], words["out"], part=words["part"], parts=words["parts"], base=words["base"], device="cpu")
else:
    db.import_(words["sources"], base=words["base"], device="cpu")
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
print(json.dumps({"s": time.perf_counter() - began, "peak": peak}))
"""

ROWS = (
    "select name, digest from models", "from raw.delta", "from raw.pair", "from raw.weight",
    "select model_id, sums from raw.sketch",
)  # fmt: skip


def call(**words: object) -> dict[str, float]:
    """One import or part in a process of its own: seconds, seconds within, peak MiB."""
    words = {"db": "", "out": "", "base": None, "part": 1, "parts": 1, **words}
    began = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-c", RUN, json.dumps(words)], check=True, stdout=subprocess.PIPE, text=True
    )
    return {"wall": time.perf_counter() - began, **json.loads(done.stdout.splitlines()[-1])}


def contents(database: str) -> list[object]:
    """All that a family's import stores of its weights."""
    import kinbase

    with kinbase.open(database).store.reading() as con:
        return [con.execute(f"{query} order by all").fetchall() for query in ROWS]


def run(
    folder: Path, sources: list[str], members: int, tensors: int, parts: int, whole: str
) -> dict[str, object]:
    """A pass in so many parts and their import, beside the database `whole`."""
    outs = [str(folder / f"sums-{parts}-{part}.parquet") for part in range(1, parts + 1)]
    each = [
        call(sources=sources, base=sources[0], out=out, part=part, parts=parts)
        for part, out in enumerate(outs, 1)
    ]
    database = str(folder / f"parts-{parts}.duckdb")
    joined = call(db=database, sources=outs)
    return {
        "members": members, "tensors": tensors, "parts": parts,
        "part s": round(max(part["wall"] for part in each), 1), "read s": round(max(part["s"] for part in each), 1),
        "part MiB": max(part["peak"] for part in each),
        "files MB": round(sum(Path(out).stat().st_size for out in outs) / 1e6, 1),
        "import s": round(joined["wall"], 1), "import MiB": joined["peak"],
        "same": contents(database) == contents(whole),
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--members", type=int, default=300)
    parser.add_argument("--tensors", type=int, default=200)
    parser.add_argument("--parameters", type=int, default=320_000)
    parser.add_argument("--parts", type=int, nargs="+", default=[8])
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        # In a process of its own: what this one holds counts as the peak of those it starts.
        with multiprocessing.get_context("spawn").Pool(1) as pool:
            wanted = (folder / "family", options.members, options.tensors, options.parameters)
            family = pool.apply(write_family, wanted)
        sources, whole = list(map(str, family)), str(folder / "whole.duckdb")
        alone = call(db=whole, sources=sources, base=sources[0])
        rows = [
            run(folder, sources, options.members, options.tensors, parts, whole) for parts in options.parts
        ]
    print(" | ".join([*rows[0], "whole s", "whole MiB"]))
    for row in rows:
        print(" | ".join(map(str, [*row.values(), round(alone["wall"], 1), alone["peak"]])))


if __name__ == "__main__":
    main()
