"""Small files that stand for large costs: each is imported by the command line, which ends within its bounds."""

import json
import multiprocessing
import os
import random
import struct
import subprocess
import sys
import threading
import zipfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

from attacks.report import Table

SECONDS = 5.0
"""Of processor time, for a file under a megabyte."""
MEMORY = 300 << 20
"""Bytes above an import of nothing."""
MB = 1_000_000


def run(folder: Path, size: int, chance: random.Random, table: Table) -> None:
    """Import each bomb into a database of its own, and measure the process."""
    empty = folder / "empty.csv"
    empty.write_text("model,benchmark,metric,value\na,b,acc,1\n")
    start, _, _, _ = _import(folder, empty)
    worst = (0.0, 0)
    for name, data in bombs():
        path = folder / "bombs" / name.replace("/", "-") / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(data, bytes):
            path.write_bytes(data)
        else:  # elsewhere: a process begins with the peak of the one that it was forked from
            writer = multiprocessing.get_context("spawn").Process(target=data, args=(path,))
            writer.start()
            writer.join()
        source = path.parent.parent if path.parent.name == ".eval_results" else path
        memory, seconds, code, said = _import(
            folder, source if path.suffix != ".json" or "adapter" not in name else path.parent
        )
        worst = max(worst[0], seconds), max(worst[1], memory - start)
        gave = []
        if seconds > SECONDS * max(1, path.stat().st_size / MB):
            gave.append(f"{seconds:.1f} s")
        if memory - start > MEMORY * max(1, path.stat().st_size / MB):
            gave.append(f"{(memory - start) >> 20} MiB")
        if "Traceback" in said or code not in (0, 1):
            gave.append(f"exit {code}: {said[-200:]}")
        table.tried(f"{name}: {', '.join(gave)}" if gave else None, f"{worst[0]:.1f} s, {worst[1] >> 20} MiB")


def _import(folder: Path, source: Path) -> tuple[int, float, int, str]:
    """Peak memory in bytes, processor seconds, exit code and stderr of one import."""
    database = folder / "kin.duckdb"
    for left in folder.glob("kin.duckdb*"):
        left.unlink()
    words = [sys.executable, "-m", "kinbase", "--db", str(database), "import", str(source)]
    with open(folder / "said.txt", "w+") as said:
        process = subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=said)
        timer = threading.Timer(120, process.kill)
        timer.start()
        # Of this one process and of those it waited for; what getrusage tells is of all so far.
        _, status, usage = os.wait4(process.pid, 0)
        timer.cancel()
        process.returncode = os.waitstatus_to_exitcode(status)
        said.seek(0)
        return usage.ru_maxrss * 1024, usage.ru_utime + usage.ru_stime, process.returncode, said.read()


def bombs() -> Iterator[tuple[str, bytes | Callable[[Path], None]]]:
    """Names and contents, or functions that write the file."""
    result = "- dataset: {id: d}\n  value: 1\n"
    yield "a/.eval_results/same.yaml", (result * (900_000 // len(result))).encode()
    yield "card-merges/README.md", ("---\nx: &a {b: 1}\n" + "y:\n" + "  <<: *a\n" * 90_000 + "---\n").encode()
    yield "card-merged/README.md", ("---\nx: &a {b: 1}\ny:\n  <<: [" + "*a," * 90_000 + "*a]\n---\n").encode()
    yield "card-fences/README.md", b"---\nlicense: mit\n---\n" + b"```yaml\n" * 100_000
    yield "card-rules/README.md", b"---\n" + b"--- \n" * 180_000
    yield "card-spaces/README.md", b" " * 900_000
    yield "card-laughs/README.md", _laughs()
    yield "card-deep/README.md", b"---\nx: " + b"[" * 400_000 + b"\n---\n"
    yield (
        "card-bases/README.md",
        ("---\nbase_model: [" + ",".join(f"o/{i}" for i in range(90_000)) + "]\n---\n").encode(),
    )
    yield "card-repeated/README.md", _repeated()
    yield "merge/mergekit_config.yml", _shared_parameters()
    yield (
        "many/mergekit_config.yml",
        ("merge_method: linear\nmodels:\n" + "".join(f"- model: o/{i}\n" for i in range(50_000))).encode(),
    )
    yield (
        "lm/results_1.json",
        json.dumps({"results": {f"t{i}": {"acc,none": 1} for i in range(30_000)}}).encode(),
    )
    yield "lists/results_1.json", b'{"results": {"a": ' + b"[" * 450_000 + b"]" * 450_000 + b"}}"
    yield "objects/results_1.json", b'{"results": {"a": [' + b"{}," * 300_000 + b"{}]}}"
    yield "digits/results_1.json", b'{"results": {"a": {"acc,none": ' + b"9" * 900_000 + b"}}}"
    yield "wide/scores.csv", b"model,benchmark,metric,value," + b"," * 900_000
    yield "long/scores.csv", b"model,benchmark,metric,value\n" + b"a,b,acc,1\n" * 90_000
    yield "quotes/scores.csv", b'model,benchmark,metric,value\n"' + b"a" * 900_000
    yield "names/aliases.csv", ("alias,model\n" + "".join(f"{i + 1},{i}\n" for i in range(70_000))).encode()
    yield "tasks/tasks.csv", ("benchmark,category\n" + "".join(f"{i},c\n" for i in range(90_000))).encode()
    yield "experts/experts.csv", ("model,benchmark\n" + "".join(f"{i},b\n" for i in range(90_000))).encode()
    yield (
        "kinship/kinship.csv",
        ("model_a,model_b,pcc\n" + "".join(f"{i},{i + 1},0.5\n" for i in range(60_000))).encode(),
    )
    yield (
        "keys/scores.json",
        ("[" + ",".join(f'{{"model":"a","k{i}":1}}' for i in range(40_000)) + "]").encode(),
    )
    yield "dictionary/scores.parquet", _dictionary
    yield "years/scores.parquet", _years
    yield "lists/scores.parquet", _lists
    yield "columns/scores.parquet", _columns
    yield "empty/model.safetensors", _header(b"{" + b",".join(b'"%d":{}' % i for i in range(70_000)) + b"}")
    yield "nested/model.safetensors", _header(b'{"a":' + b"[" * 450_000 + b"]" * 450_000 + b"}")
    yield (
        "shape/model.safetensors",
        _header(b'{"a":{"dtype":"F32","shape":[' + b"1," * 400_000 + b'1],"data_offsets":[0,4]}}'),
    )
    yield "bytearray/pytorch_model.bin", _pickled(b"\x80\x02c__builtin__\nbytearray\nJ\x00\xe1\xf5\x05\x85R.")
    yield "tensor/pytorch_model.bin", _pickled(b"\x80\x02ctorch\nFloatTensor\nJ\xff\xff\xff\x7f\x85R.")
    yield (
        "storage/pytorch_model.bin",
        _pickled(b"\x80\x02ctorch.storage\nUntypedStorage\nJ\xff\xff\xff\x7f\x85R."),
    )
    yield (
        "calls/pytorch_model.bin",
        _pickled(b"\x80\x02ccollections\nOrderedDict\nq\x00)q\x01" + b"h\x00h\x01R" * 180_000 + b"."),
    )
    yield "memo/pytorch_model.bin", _pickled(b"\x80\x02Nr\xff\xff\xff\x7f.")
    yield "texts/model.gguf", b"GGUF" + struct.pack("<IQQ", 3, 0, 40_000) + b"".join(
        struct.pack("<Q", 9) + b"general.%d" % (i % 10) + struct.pack("<IQ", 8, 2**40) for i in range(20_000)
    )  # fmt: skip
    lists = struct.pack("<Q", 1) + b"a" + struct.pack("<IIQ", 9, 9, 2**60) + struct.pack("<IQ", 9, 0) * 75_000
    yield "arrays/model.gguf", b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + lists
    yield (
        "alpha/adapter_config.json",
        json.dumps(
            {"peft_type": "LORA", "r": 1, "lora_alpha": 10**400, "base_model_name_or_path": "b"}
        ).encode(),
    )
    yield (
        "index/model.safetensors.index.json",
        json.dumps({"weight_map": {f"t{i}": f"s{i}.safetensors" for i in range(25_000)}}).encode(),
    )


def _laughs() -> bytes:
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]" for i in range(1, 40)]
    return ("---\n" + "\n".join(lines) + "\n---\n").encode()


def _repeated() -> bytes:
    metric = "{type: acc, value: %d}"
    one = (
        "  - dataset: {name: d, type: d}\n    metrics: ["
        + ", ".join(metric % i for i in range(30_000))
        + "]\n"
    )
    return ("---\nmodel-index:\n- name: m\n  results:\n" + one + "---\n").encode()


def _shared_parameters() -> bytes:
    shared = "".join(f"  p{i}: 1\n" for i in range(20_000))
    models = "".join(f"- model: o/{i}\n" for i in range(20_000))
    return ("merge_method: linear\nparameters:\n" + shared + "models:\n" + models).encode()


def _header(text: bytes) -> bytes:
    return struct.pack("<Q", len(text)) + text + bytes(4)


def _pickled(data: bytes) -> Callable[[Path], None]:
    return partial(_write_archive, data)


def _write_archive(data: bytes, path: Path) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", data)
        archive.writestr("archive/byteorder", b"little")
        archive.writestr("archive/version", b"3\n")


def _dictionary(path: Path) -> None:
    import polars

    long = polars.Series("model", ["x" * 4_000_000]).gather(
        [0] * 128
    )  # views of one text, as its reader has them
    frame = polars.DataFrame([long, *(polars.Series(n, ["b"] * 128) for n in ("benchmark", "metric"))])
    frame.with_columns(value=polars.lit(1.0)).write_parquet(path, compression="zstd")


def _years(path: Path) -> None:
    import polars

    when = polars.Series("evaluated_at", [2**55, -(2**55), None], dtype=polars.Int64).cast(
        polars.Datetime("us")
    )
    polars.DataFrame(
        {
            "model": ["a"] * 3,
            "benchmark": ["b"] * 3,
            "metric": ["m"] * 3,
            "value": [1.0, 2, 3],
            "evaluated_at": when,
        }
    ).write_parquet(path)


def _lists(path: Path) -> None:
    import polars

    polars.DataFrame(
        {"model": [["a"]], "benchmark": [["b"]], "metric": [{"a": 1}], "value": [[1.0]]}
    ).write_parquet(path)


def _columns(path: Path) -> None:
    import polars

    polars.DataFrame({f"c{i}": [1] for i in range(5_000)}).write_parquet(path, compression="zstd")
