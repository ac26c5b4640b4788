"""What a family of hundreds or thousands of members costs to import: time, memory, the write lock, the file.

    python benchmarks/families.py                                     # 1,000 members of 20 tensors
    python benchmarks/families.py --members 300 --tensors 200 --reader

The members are fine-tunes in clusters of ten, each fifth a merge of two earlier ones, BF16, written by numpy alone.
`lock` is the longest time that one writing connection was open, `held` that of all together; CPU time tells on a
machine that does other work too. With `--reader`
another process asks `select count(*) from models` all the while: `reads` counts its answers, `slowest` the longest
it took to have one, `failed` those it did not get.
"""

import argparse
import itertools
import json
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

KINDS = (
    "self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj",
    "mlp.gate_proj", "mlp.up_proj", "mlp.down_proj", "input_layernorm", "post_attention_layernorm",
)  # fmt: skip

IMPORT = """
import contextlib, json, os, resource, sys, time
import kinbase
from kinbase.store import Store

spans, writing = [], Store.writing

@contextlib.contextmanager
def timed(self):
    began, used = time.perf_counter(), time.process_time()
    with writing(self) as con:
        yield con
    spans.append((time.perf_counter() - began, time.process_time() - used))

Store.writing = timed
database, base, *sources = sys.argv[1:]
began, used = time.perf_counter(), time.process_time()
rows = kinbase.open(database).import_([base, *sources], base=base, device="cpu")
wall, used = time.perf_counter() - began, time.process_time() - used
with kinbase.open(database).store.reading() as con:
    (pairs,) = con.execute("select count(*) from kinship where method = 'exact'").fetchone()
print(json.dumps({
    "imported": rows.filter(rows["status"] == "imported").height, "pairs": pairs // 2, "wall s": round(wall, 1),
    "CPU s": round(used, 1), "lock s": round(max(wall for wall, _ in spans), 2),
    "lock CPU s": round(max(used for _, used in spans), 2), "held CPU s": round(sum(used for _, used in spans), 1),
    "writes": len(spans),
    "peak MiB": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
    "file MB": round(os.path.getsize(database) / 1e6),
}))
"""

READ = """
import json, os, signal, sys, time
import kinbase

stopped, took, failed = [], [], 0
signal.signal(signal.SIGTERM, lambda *_: stopped.append(True))
while not stopped:
    if os.path.exists(sys.argv[1]):
        began = time.perf_counter()
        try:
            kinbase.open(sys.argv[1]).sql("select count(*) from models")
            took.append(time.perf_counter() - began)
        except kinbase.errors.KinbaseError:
            failed += 1
    time.sleep(0.1)
print(json.dumps({"reads": len(took), "slowest s": round(max(took, default=0), 2), "failed": failed}))
"""


def write_family(folder: Path, members: int, tensors: int, parameters: int) -> list[Path]:
    """A base and its members under `folder`, each of so many tensors and parameters; their folders."""
    rng = np.random.default_rng(0)
    names = ["model.embed_tokens.weight"]
    names += [f"model.layers.{i // len(KINDS)}.{KINDS[i % len(KINDS)]}.weight" for i in range(tensors - 2)]
    names.append("model.norm.weight")
    each = parameters // tensors
    shapes = {name: (each // 8,) if "norm" in name else (max(1, each // 16), 16) for name in names}
    starts = np.cumsum([0, *(int(np.prod(shape)) for shape in shapes.values())])
    base = 0.02 * rng.standard_normal(starts[-1], np.float32)
    centre, deltas, folders = base, [], []
    for i in range(-1, members):
        if i < 0:
            delta = np.zeros_like(base)
        elif i % 5 == 4 and i > 10:
            a, b = rng.choice(len(deltas), 2, replace=False)
            delta = 0.6 * deltas[a] + 0.4 * deltas[b]
        else:
            if i % 10 == 0:
                centre = 0.003 * rng.standard_normal(len(base), np.float32)
            delta = 0.7 * centre + 0.002 * rng.standard_normal(len(base), np.float32)
        if i >= 0:
            deltas.append(delta)
        folders.append(folder / (f"member{i:04d}" if i >= 0 else "base"))
        folders[-1].mkdir(parents=True)
        _save(folders[-1] / "model.safetensors", base + delta, shapes, starts)
    return folders


def _save(path: Path, flat: np.ndarray, shapes: dict[str, tuple[int, ...]], starts: np.ndarray) -> None:
    """Tensors as BF16, which numpy lacks: their bits as U16, and the dtype put right in the header."""
    bits = flat.view(np.uint32)
    rounded = ((bits + 0x7FFF + (bits >> 16 & 1)) >> 16).astype(np.uint16)
    cut = itertools.pairwise(starts)
    save_file({n: rounded[a:b].reshape(s) for (n, s), (a, b) in zip(shapes.items(), cut, strict=True)}, path)
    data = path.read_bytes()
    length = 8 + int.from_bytes(data[:8], "little")
    header = data[8:length].replace(b'"U16"', b'"BF16"')
    path.write_bytes(len(header).to_bytes(8, "little") + header + data[length:])


def run(members: int, tensors: int, parameters: int, reader: bool) -> dict[str, object]:
    """One import of a new family into a new database, in processes of their own."""
    with tempfile.TemporaryDirectory() as folder:
        folders = write_family(Path(folder, "family"), members, tensors, parameters)
        database = str(Path(folder, "family.duckdb"))
        asking = None
        if reader:
            asking = subprocess.Popen(
                [sys.executable, "-c", READ, database], stdout=subprocess.PIPE, text=True
            )
        importing = subprocess.run(
            [sys.executable, "-c", IMPORT, database, *map(str, folders)],
            check=True, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        result: dict[str, object] = {"members": members, "tensors": tensors}
        result |= json.loads(importing.stdout.splitlines()[-1])
        if asking:
            asking.terminate()
            result |= json.loads(asking.communicate()[0])
        return result


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--members", type=int, nargs="+", default=[1000])
    parser.add_argument("--tensors", type=int, default=20)
    parser.add_argument("--parameters", type=int, default=32_000)
    parser.add_argument(
        "--reader", action="store_true", help="ask the database from another process all the while"
    )
    options = parser.parse_args()
    rows = [run(n, options.tensors, options.parameters, options.reader) for n in options.members]
    print(" | ".join(rows[0]))
    for row in rows:
        print(" | ".join(f"{value:,}" if isinstance(value, int) else str(value) for value in row.values()))


if __name__ == "__main__":
    main()
