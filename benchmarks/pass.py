"""The kinship pass against reading the same bytes, side by side, on a synthetic family.

    python benchmarks/pass.py                       # base + 8 members of 0.5B bf16 parameters, 8.9 GB
    python benchmarks/pass.py --parameters 30e6 --rounds 3

Writes the family once (seeded; under --folder), then runs rounds of one process that reads the files through `readinto`
(`cat` into the null device copies nothing on some systems), and of the pass in a process of its own, in turn, and prints
medians; `--device cuda` runs the pass there; then the errors of pcc, cs and ed against float64, dtype by
dtype. The family is Gaussian: a base, fine-tunes in correlated pairs
with another scale in every tensor, a near twin and linear merges.
"""

import argparse
import json
import os
import statistics
import struct
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import nullcontext
from functools import partial
from pathlib import Path

from kinbase.checkpoint import Checkpoint, Extent, Tensor
from kinbase.errors import CheckpointError

MEMBERS = ("ft_a", "ft_b", "ft_c", "ft_d", "twin_a", "merge_ab", "merge_cd", "merge_abcd")
SHARDS = 3


def shapes(parameters: float) -> dict[str, tuple[int, ...]]:
    """A llama of about `parameters` parameters: 24 layers, vocabulary 32 x width."""
    width = max(64, round((parameters / (24 * 10 + 64)) ** 0.5 / 64) * 64)
    kv, inner = width // 4, width // 2 * 5
    layer = {
        "self_attn.q_proj": (width, width),
        "self_attn.k_proj": (kv, width),
        "self_attn.v_proj": (kv, width),
        "self_attn.o_proj": (width, width),
        "mlp.gate_proj": (inner, width),
        "mlp.up_proj": (inner, width),
        "mlp.down_proj": (width, inner),
        "input_layernorm": (width,),
        "post_attention_layernorm": (width,),
    }
    result: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (32 * width, width)}
    for i in range(24):
        result |= {f"model.layers.{i}.{name}.weight": shape for name, shape in layer.items()}
    return result | {"model.norm.weight": (width,), "lm_head.weight": (32 * width, width)}


def write_family(folder: Path, parameters: float, seed: int = 0) -> None:
    """Write base and members as folders of three safetensors shards with their index."""
    import torch
    from safetensors.torch import save_file

    generator = torch.Generator().manual_seed(seed)
    pool = torch.randn(1 << 22, generator=generator)

    def normal(shape: tuple[int, ...]) -> "torch.Tensor":
        """Gaussian values: the pool from a random place on, repeated."""
        numel = torch.Size(shape).numel()
        offset = int(torch.randint(len(pool), (), generator=generator))
        return pool.roll(-offset).repeat(-(-numel // len(pool)))[:numel].view(shape)

    names = list(shapes(parameters).items())
    size = sum(torch.Size(shape).numel() for _, shape in names)
    shards: list[dict[str, tuple[int, ...]]] = [{} for _ in range(SHARDS)]
    seen = 0
    for name, shape in names:
        shards[seen * SHARDS // size][name] = shape
        seen += torch.Size(shape).numel()
    index: dict[str, str] = {}
    for number, shard in enumerate(shards, 1):
        file = f"model-{number:05}-of-{SHARDS:05}.safetensors"
        index |= dict.fromkeys(shard, file)
        family: dict[str, dict[str, torch.Tensor]] = {name: {} for name in ("base", *MEMBERS)}
        for name, shape in shard.items():
            base = (0.02 * normal(shape)).bfloat16()
            scale = 1e-4 * 13 ** float(torch.rand((), generator=generator))
            shared = normal(shape), normal(shape)
            delta = {ft: scale * (0.3 * shared[k // 2] + normal(shape)) for k, ft in enumerate(MEMBERS[:4])}
            delta["twin_a"] = delta["ft_a"] + 0.01 * scale * normal(shape)
            stored = {ft: (base + d).bfloat16() for ft, d in delta.items()}
            a, b, c, d = (stored[ft].float() for ft in MEMBERS[:4])
            stored["merge_ab"] = (0.6 * a + 0.4 * b).bfloat16()
            stored["merge_cd"] = (0.5 * c + 0.5 * d).bfloat16()
            stored["merge_abcd"] = (0.25 * (a + b + c + d)).bfloat16()
            for model, tensor in {"base": base, **stored}.items():
                family[model][name] = tensor
        for model, tensors in family.items():
            (folder / model).mkdir(parents=True, exist_ok=True)
            save_file(tensors, folder / model / file)
    text = json.dumps({"metadata": {"total_size": 2 * size}, "weight_map": index})
    for model in family:
        (folder / model / "model.safetensors.index.json").write_text(text)


def open_folder(folder: Path) -> Checkpoint:
    """A trusting reader of safetensors, so that the benchmark measures the pass alone."""

    def read(fd: int, origin: int, start: int, out: memoryview) -> None:
        if os.preadv(fd, [out], origin + start) != len(out):
            raise CheckpointError(f"{folder}: short read")

    tensors = []
    for path in sorted(folder.glob("*.safetensors")):
        fd = os.open(path, os.O_RDONLY)
        (length,) = struct.unpack("<Q", os.pread(fd, 8, 0))
        for name, entry in json.loads(os.pread(fd, length, 8)).items():
            if name != "__metadata__":
                origin = 8 + length + entry["data_offsets"][0]
                extent = Extent(partial(nullcontext, fd), origin)
                shape = tuple(entry["shape"])
                tensors.append(Tensor(name, entry["dtype"], shape, partial(read, fd, origin), extent))
    return Checkpoint(folder.name, str(folder), tensors)


def measure_pass(folder: Path, members: int, new: int, threads: int | None, device: str) -> dict[str, float]:
    """Run the pass in this process: seconds and bytes of the pass, seconds to import and compile, peak RSS."""
    began = time.perf_counter()
    from kinbase.kinship import stream as kinship

    base = open_folder(folder / "base")
    family = [open_folder(folder / MEMBERS[i % len(MEMBERS)]) for i in range(members)]
    plan = kinship.Plan(base, family, new=new, hash_base=new > 0)
    tiny = Tensor("weight", "BF16", (1,), lambda start, out: None)
    one = Checkpoint("one", "", [tiny])
    list(kinship.run(kinship.Plan(one, [one]), device=device))
    ready = time.perf_counter()
    for _ in kinship.run(plan, threads=threads, device=device):
        pass
    done = time.perf_counter()
    status = Path("/proc/self/status").read_text().splitlines()
    peak = next(line for line in status if line.startswith("VmHWM"))
    times = os.times()
    return {
        "seconds": done - ready,
        "gigabytes": plan.nbytes / 1e9,
        "start": ready - began,
        "cpu": times.user + times.system,
        "mebibytes": int(peak.split()[1]) / 1024,
    }


def child(folder: Path, members: int, new: int, threads: int | None, device: str) -> dict[str, float]:
    command = [
        sys.executable,
        __file__,
        "--child",
        f"{members},{new},{threads or 0}",
        "--device",
        device,
        "--folder",
        str(folder),
    ]
    result: dict[str, float] = json.loads(subprocess.run(command, check=True, capture_output=True).stdout)
    return result


def reading(folder: Path, members: int) -> dict[str, float]:
    """One process reading the same files into a buffer of 256 KiB."""
    models = ["base", *(MEMBERS[i % len(MEMBERS)] for i in range(members))]
    files = [str(path) for model in models for path in sorted((folder / model).glob("*.safetensors"))]
    result: dict[str, float] = json.loads(
        subprocess.run([sys.executable, "-c", READ, *files], check=True, capture_output=True).stdout
    )
    return result


READ = """
import json, sys, time
buffer = bytearray(256 << 10)
nbytes, began = 0, time.perf_counter()
for path in sys.argv[1:]:
    with open(path, "rb", buffering=0) as file:
        while count := file.readinto(buffer):
            nbytes += count
print(json.dumps({"seconds": time.perf_counter() - began, "gigabytes": nbytes / 1e9}))
"""


def speed(rounds: list[dict[str, float]]) -> float:
    return statistics.median(r["gigabytes"] / r["seconds"] for r in rounds)


def sweep(folder: Path, sizes: list[int], rounds: int, threads: int | None, device: str) -> Iterator[str]:
    """Rows of the table: for each N, reading and the pass with every member new, in turn."""
    yield "  N     GB  read GB/s  pass GB/s  ratio  pass s  CPU s  start s  RSS MiB"
    for members in sizes:
        reads, passes = [], []
        for _ in range(rounds):
            reads.append(reading(folder, members))
            passes.append(child(folder, members, members, threads, device))
        ratio = statistics.median(
            (p["gigabytes"] / p["seconds"]) / (c["gigabytes"] / c["seconds"])
            for p, c in zip(passes, reads, strict=True)
        )
        median = {key: statistics.median(p[key] for p in passes) for key in passes[0]}
        yield (
            f"{members:3} {median['gigabytes']:6.2f} {speed(reads):10.2f} {speed(passes):10.2f} {ratio:6.0%} "
            f"{median['seconds']:7.2f} {median['cpu']:6.2f} {median['start']:8.2f} {median['mebibytes']:8.0f}"
        )


def exactness(elements: int = 3_000_000) -> Iterator[str]:
    """Rows: per dtype the largest error over the pairs of four members, two of them near twins."""
    import numpy as np
    import torch

    from kinbase.checkpoint import FLOAT_DTYPES
    from kinbase.kinship import stream as kinship

    def held(name: str, code: str, weights: torch.Tensor) -> Checkpoint:
        data = weights.view(torch.uint8).numpy()

        def read(start: int, out: memoryview) -> None:
            out[:] = data[start : start + len(out)]

        return Checkpoint(name, "memory", [Tensor("w", code, tuple(weights.shape), read)])

    stored = (
        torch.float64,
        torch.float32,
        torch.float16,
        torch.bfloat16,
        torch.float8_e4m3fn,
        torch.float8_e5m2,
    )
    yield f"{'dtype':8} {'pcc error':>10} {'cs error':>10} {'ed rel.':>10} {'twins at':>12}"
    for code, dtype in zip(FLOAT_DTYPES, stored, strict=True):
        generator = torch.Generator().manual_seed(1)
        shared, *noise = (torch.randn(elements, generator=generator, dtype=torch.float64) for _ in range(6))
        base = (0.02 * noise[0]).to(dtype)
        # A mean of one standard deviation, which separates pcc from cs.
        members = [(base.double() + 1e-2 * (1.0 + 0.5 * shared + noise[k])).to(dtype) for k in (1, 2, 3)]
        members.append((members[0].double() + 1e-4 * noise[4]).to(dtype))
        plan = kinship.Plan(held("base", code, base), [held(str(k), code, m) for k, m in enumerate(members)])
        (found,) = kinship.run(plan)
        d = np.stack([(m.double() - base.double()).numpy() for m in members])
        worst = [0.0, 0.0, 0.0]
        for i in range(4):
            for j in range(i):
                n, dot = found.numel[i], found.dot[i, j]
                pcc = (dot - found.sum[i] * found.sum[j] / n) / np.sqrt(
                    (found.sumsq[i] - found.sum[i] ** 2 / n) * (found.sumsq[j] - found.sum[j] ** 2 / n)
                )
                ed = np.sqrt(found.sumsq[i] + found.sumsq[j] - 2 * dot)
                true_ed = np.linalg.norm(d[i] - d[j])
                true_cs = d[i] @ d[j] / np.linalg.norm(d[i]) / np.linalg.norm(d[j])
                errors = (
                    pcc - np.corrcoef(d[i], d[j])[0, 1],
                    dot / np.sqrt(found.sumsq[i] * found.sumsq[j]) - true_cs,
                    ed / true_ed - 1 if true_ed else ed,
                )
                worst = [max(w, abs(float(e))) for w, e in zip(worst, errors, strict=True)]
        twins = np.corrcoef(d[0], d[3])[0, 1]
        yield f"{code:8} {worst[0]:10.1e} {worst[1]:10.1e} {worst[2]:10.1e} {twins:12.8f}"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--folder", type=Path, default=Path("/tmp/kinbase-benchmark"))
    parser.add_argument("--parameters", type=float, default=0.5e9)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int)
    parser.add_argument("--device", default="cpu", help="cpu, cuda, cuda:N or mps")
    parser.add_argument("--members", type=int, nargs="+", default=[2, 4, 8, 16, 32])
    parser.add_argument("--child", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        members, new, threads = map(int, options.child.split(","))
        print(json.dumps(measure_pass(options.folder, members, new, threads or None, options.device)))
        return
    folder = options.folder / f"{options.parameters:.0e}"
    if not (folder / MEMBERS[-1] / "model.safetensors.index.json").exists():
        print(f"writing the family to {folder}", file=sys.stderr)
        write_family(folder, options.parameters)
    for row in sweep(folder, options.members, options.rounds, options.threads, options.device):
        print(row, flush=True)
    print()
    for row in exactness():
        print(row, flush=True)


if __name__ == "__main__":
    main()
