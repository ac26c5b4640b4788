"""What sketches cost, how far they are off, and how fast one model meets 100,000: three tables.

    python benchmarks/sketch.py                     # all three; 100,000 models take 10 GB and some minutes
    python benchmarks/sketch.py --only errors cost --seeds 20
    python benchmarks/sketch.py --only query --models 10000

Errors: the cosine of two changes of 6.6 million weights from their sketches against the true one, over seeds, for
each kind of change; `theory` is (1 - c^2) / sqrt(k), `stated` the mean of the standard errors given. Cost: the
pass of benchmarks/pass.py over 8 new members, and one checkpoint read alone, with and without power sums and
sketches, in turn, medians. Query: a new model against a family of sketches made at random.
"""

import argparse
import importlib.util
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

SHAPES: dict[str, tuple[int, ...]] = {
    "embed": (2000, 512),
    **{
        f"layer{i}.{name}": shape
        for i in range(4)
        for name, shape in {"q": (512, 512), "up": (1280, 512), "down": (512, 1280), "norm": (512,)}.items()
    },
}
Vector = dict[str, np.ndarray]


# Errors.


def dense(cosine: float) -> Callable[[np.random.Generator], tuple[Vector, Vector]]:
    def make(g: np.random.Generator) -> tuple[Vector, Vector]:
        shared = {name: g.standard_normal(shape) for name, shape in SHAPES.items()}
        a, b = (
            {
                name: np.sqrt(cosine) * shared[name] + np.sqrt(1 - cosine) * g.standard_normal(shape)
                for name, shape in SHAPES.items()
            }
            for _ in range(2)
        )
        return a, b

    return make


def placed(
    fill: Callable[[str, np.ndarray, np.random.Generator, int], None],
) -> Callable[..., tuple[Vector, Vector]]:
    """Two changes that are zero but where `fill` writes: the same places, the second half like the first."""

    def make(g: np.random.Generator) -> tuple[Vector, Vector]:
        a, b = ({name: np.zeros(shape) for name, shape in SHAPES.items()} for _ in range(2))
        seed = int(g.integers(1 << 30))
        for name in SHAPES:
            fill(name, a[name], g, seed)
            other = np.zeros_like(b[name])
            fill(name, other, g, seed)
            b[name] = 0.5 * a[name] + other
        return a, b

    return make


def sparse(name: str, x: np.ndarray, g: np.random.Generator, seed: int) -> None:
    where = np.random.default_rng([seed, len(name), x.size, ord(name[-1])]).random(x.shape) < 1e-4
    x[where] = g.standard_normal(where.sum())


def low_rank(name: str, x: np.ndarray, g: np.random.Generator, seed: int) -> None:
    if x.ndim == 2:
        shared = np.random.default_rng([seed, x.size]).standard_normal((4, x.shape[1]))
        x[:] = g.standard_normal((x.shape[0], 4)) @ shared


def column(name: str, x: np.ndarray, g: np.random.Generator, seed: int) -> None:
    if x.ndim == 2:
        x[:, 3] = g.standard_normal(x.shape[0])


def norms(name: str, x: np.ndarray, g: np.random.Generator, seed: int) -> None:
    if x.ndim == 1:
        x[:] = g.standard_normal(x.shape)


def rows(name: str, x: np.ndarray, g: np.random.Generator, seed: int) -> None:
    if name == "embed":
        x[:50] = g.standard_normal((50, x.shape[1]))


def constant(name: str, x: np.ndarray, g: np.random.Generator, seed: int) -> None:
    x[...] = g.standard_normal()


def two_coordinates(g: np.random.Generator) -> tuple[Vector, Vector]:
    a, b = ({name: np.zeros(shape) for name, shape in SHAPES.items()} for _ in range(2))
    for x, sign in ((a, 1.0), (b, -1.0)):
        x["layer1.q"][3, 5], x["layer2.up"][7, 9] = 1.0, sign
    return a, b


KINDS = {
    "dense, c 0": dense(0.0),
    "dense, c 0.5": dense(0.5),
    "dense, c 0.95": dense(0.95),
    "dense, c 0.999": dense(0.999),
    "1e-4 sparse": placed(sparse),
    "rank 4": placed(low_rank),
    "one column": placed(column),
    "norms only": placed(norms),
    "50 embedding rows": placed(rows),
    "one number a tensor": placed(constant),
    "two coordinates": two_coordinates,
}


def sketch_of(change: Vector, seed: int) -> np.ndarray:
    """The sketch of a change, with the hash of another seed."""
    from kinbase.checkpoint import FLOAT_DTYPES
    from kinbase.checkpoint.digest import SPAN
    from kinbase.kinship import sketch as sketching

    total, buffers = sketching.empty(), sketching.Buffers()
    for name, values in change.items():
        flat = np.ascontiguousarray(values, np.float32).reshape(-1)
        tensor = sketching.TensorSketch(f"seed {seed} {name}", len(flat))
        for start in range(0, len(flat), SPAN):
            tensor.weigh(
                memoryview(flat[start : start + SPAN]).cast("B"),
                start,
                FLOAT_DTYPES.index("F32"),
                buffers,
                0,
                np.zeros(3),
            )
            tensor.flush(buffers, 0)
        tensor.pour(total)
    return total.astype(np.float32)


def errors(seeds: int) -> Iterator[str]:
    from kinbase.kinship.layout import BUCKETS
    from kinbase.kinship.sketch import similarity

    yield f"{'change':22}{'cosine':>8}{'bias':>10}{'rms':>9}{'theory':>9}{'ratio':>7}{'stated':>9}{'within 2':>9}"
    for title, make in KINDS.items():
        a, b = make(np.random.default_rng(0))
        x, y = (
            np.concatenate([v.ravel() for v in change.values()]).astype(np.float32).astype(float)
            for change in (a, b)
        )
        true = x @ y / np.linalg.norm(x) / np.linalg.norm(y)
        found = np.array([similarity(sketch_of(a, seed), sketch_of(b, seed)) for seed in range(seeds)])
        off = found[:, 0] - true
        rms, theory = np.sqrt((off**2).mean()), (1 - true**2) / np.sqrt(BUCKETS)
        yield (
            f"{title:22}{true:>8.4f}{off.mean():>10.1e}{rms:>9.5f}{theory:>9.5f}{rms / theory:>7.2f}"
            f"{found[:, 1].mean():>9.5f}{(abs(off) <= 2 * found[:, 1]).mean():>9.0%}"
        )


# Cost.


def passing() -> object:
    spec = importlib.util.spec_from_file_location("passing", Path(__file__).with_name("pass.py"))
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def run_once(folder: Path, members: int, weighed: bool) -> dict[str, float]:
    """One pass in this process, over `members` new members and the base, or the base alone: wall and CPU seconds."""
    benchmark = passing()
    from kinbase.checkpoint import Checkpoint, Tensor
    from kinbase.kinship import stream as kinship

    opened = [benchmark.open_folder(folder / name) for name in ("base", *benchmark.MEMBERS[:members])]  # type: ignore[attr-defined]
    tiny = Checkpoint("one", "", [Tensor("weight", "BF16", (1,), lambda start, out: None)])
    list(kinship.run(kinship.Plan(tiny, [tiny] if members else [], hash_base=True)))
    if not weighed:
        from kinbase.kinship import plan

        plan.labels = lambda tensors: {}  # type: ignore[attr-defined]
    work = kinship.Plan(opened[0], opened[1:], hash_base=True)
    wall, cpu = time.perf_counter(), time.process_time()
    total: dict[int, np.ndarray] = {}
    for found in kinship.run(work):
        for k, sketch in enumerate(found.sketches):
            if sketch:
                sketch.pour(total.setdefault(k, np.zeros(1 << 14)))
    return {
        "wall": time.perf_counter() - wall,
        "cpu": time.process_time() - cpu,
        "gigabytes": work.nbytes / 1e9,
    }


def child(folder: Path, members: int, weighed: bool) -> dict[str, float]:
    command = [sys.executable, __file__, "--child", f"{members},{int(weighed)}", "--folder", str(folder)]
    result: dict[str, float] = json.loads(subprocess.run(command, check=True, capture_output=True).stdout)
    return result


def cost(folder: Path, rounds: int) -> Iterator[str]:
    yield f"{'read':22}{'GB':>6}{'without s':>11}{'with s':>8}{'more':>7}{'CPU without':>13}{'CPU with':>10}{'more':>7}"
    for title, members in (("base and 8 new", 8), ("base and 2 new", 2), ("one alone", 0)):
        pairs = [(child(folder, members, False), child(folder, members, True)) for _ in range(rounds)]
        wall = [statistics.median(p[k]["wall"] for p in pairs) for k in (0, 1)]
        cpu = [statistics.median(p[k]["cpu"] for p in pairs) for k in (0, 1)]
        more = [statistics.median(p[1][key] / p[0][key] - 1 for p in pairs) for key in ("wall", "cpu")]
        yield (
            f"{title:22}{pairs[0][0]['gigabytes']:>6.2f}{wall[0]:>11.3f}{wall[1]:>8.3f}{more[0]:>7.0%}"
            f"{cpu[0]:>13.3f}{cpu[1]:>10.3f}{more[1]:>7.0%}"
        )


# Query.


class Stream:
    """A frame as DuckDB takes it."""

    def __init__(self, frame: object) -> None:
        self.frame = frame

    def __arrow_c_stream__(self, requested_schema: object = None) -> object:
        return self.frame.__arrow_c_stream__()  # type: ignore[attr-defined]


def query(models: int, rounds: int) -> Iterator[str]:
    import polars as pl

    from kinbase.ingest import estimate as meeting
    from kinbase.kinship.layout import BUCKETS
    from kinbase.kinship.sketch import SCHEME, folded
    from kinbase.store import Store, sketches

    g = np.random.default_rng(0)
    with tempfile.TemporaryDirectory() as place:
        store = Store(Path(place) / "kin.duckdb")
        base = (100 * g.standard_normal(BUCKETS)).astype(np.float32)
        news = 4
        with store.writing() as con:
            con.execute("insert into raw.model (model_id, name, digest) values (1, 'base', 'base')")
            con.execute(
                "insert into raw.model (model_id, name, digest, base_id) "
                "select i, 'm' || i, 'd' || i, 1 from range(2, ?) t(i)",
                [models + news + 2],
            )
            con.execute("insert into raw.sketch values (1, ?, null, 1000000, 0, ?)", [SCHEME, base.tobytes()])
        # The new ones are 0.5 akin to the first of the family, and 0 to all others.
        deltas = g.standard_normal((news, BUCKETS), dtype=np.float32)
        began = time.perf_counter()
        for start in range(0, models, 2000):
            block = g.standard_normal((min(2000, models - start), BUCKETS), dtype=np.float32)
            if start == 0:
                block[:news] = 0.5 * deltas + np.sqrt(0.75) * block[:news]
            ids = np.arange(start + 2, start + 2 + len(block), dtype=np.int32)
            coarse = np.stack([folded(row, sketches.COARSE) for row in block])
            frame = pl.DataFrame(
                {"id": ids, "sums": [(row + base).tobytes() for row in block], "coarse": coarse},
                schema={"id": pl.Int32, "sums": pl.Binary, "coarse": pl.Array(pl.Float32, sketches.COARSE)},
            )
            with store.writing() as con:
                con.register("block", Stream(frame))
                con.execute(
                    f"insert into raw.sketch select id, '{SCHEME}', null, 1000000, 0, sums from block"
                )
                con.register("block", Stream(frame))
                con.execute(f"insert into raw.direction select id, 1, '{SCHEME}', coarse from block")
        made = time.perf_counter() - began
        size = store.path.stat().st_size
        yield f"{models} sketched models: {size / 1e9:.1f} GB, {size / models / 1024:.0f} KiB a model, made in {made:.0f} s"
        times = []
        for k in range(news):
            model_id = models + 2 + k
            with store.writing() as con:
                con.execute(
                    "insert into raw.sketch values (?, ?, null, 1000000, 0, ?)",
                    [model_id, SCHEME, (deltas[k] + base).tobytes()],
                )
                sketches.fill_directions(con, 1)
            for _ in range(rounds):
                with store.writing() as con:
                    con.execute("select count(*) from raw.direction").fetchall()
                    began = time.perf_counter()
                    near = meeting.nearest(con, 1, model_id)
                    chosen = time.perf_counter() - began
                    meeting.estimate(con, 1, [(model_id, other) for other in near])
                    times.append((chosen, time.perf_counter() - began))
        whole = 1000 * statistics.median(t for _, t in times)
        screen = 1000 * statistics.median(t for t, _ in times)
        yield f"a new one: {whole:.0f} ms to {len(near)} stored estimates, of which {screen:.0f} ms choose them"
        with store.reading() as con:
            found = [
                con.execute(
                    "select model, round(pcc, 3) from nearest_kin(?, 1)", [f"m{models + 2 + k}"]
                ).fetchall()
                for k in range(news)
            ]
            began = time.perf_counter()
            con.execute("from nearest_kin(?, 10)", [f"m{models + 2}"]).fetchall()
            asked = 1000 * (time.perf_counter() - began)
        right = sum(row[0][0] == f"m{k + 2}" for k, row in enumerate(found) if row)
        yield f"its true nearest kin (0.5) is first for {right} of {news}; nearest_kin(m, 10) takes {asked:.0f} ms"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--only", nargs="+", choices=["errors", "cost", "query"], default=["errors", "cost", "query"]
    )
    parser.add_argument("--folder", type=Path, default=Path("/tmp/kinbase-benchmark"))
    parser.add_argument("--parameters", type=float, default=0.5e9)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seeds", type=int, default=100)
    parser.add_argument("--models", type=int, default=100_000)
    parser.add_argument("--child", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        members, weighed = map(int, options.child.split(","))
        print(json.dumps(run_once(options.folder, members, bool(weighed))))
        return
    if "errors" in options.only:
        for row in errors(options.seeds):
            print(row, flush=True)
    if "cost" in options.only:
        benchmark = passing()
        folder = options.folder / f"{options.parameters:.0e}"
        if not (folder / benchmark.MEMBERS[-1] / "model.safetensors.index.json").exists():  # type: ignore[attr-defined]
            print(f"writing the family to {folder}", file=sys.stderr)
            benchmark.write_family(folder, options.parameters)  # type: ignore[attr-defined]
        for row in cost(folder, options.rounds):
            print(row, flush=True)
    if "query" in options.only:
        for row in query(options.models, options.rounds):
            print(row, flush=True)


if __name__ == "__main__":
    main()
