"""Merging 1B-parameter checkpoints against `cat` over the same bytes, side by side.

    python benchmarks/merging.py                                       # base and two fine-tunes of 1.1B, bf16: 6.6 GB
    python benchmarks/merging.py --parameters 50e6 --rounds 3
    python benchmarks/merging.py --peer 'mergekit-yaml {config} {out}' # another program in turn with ours

Writes the family once (seeded; under --folder), then runs rounds of `cat`, of `kinbase merge --no-import` in
a process of its own and of the peer, in turn, and prints medians of wall time and peak memory. `cat` reads
each input once and writes the bytes of one model, without forcing them to the disk; a merge of ours does
force them, which is what the column `sync s` shows.
"""

import argparse
import json
import multiprocessing
import os
import shlex
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

MODELS = ("base", "ft_a", "ft_b")
METHODS = ("linear", "slerp", "task_arithmetic", "ties", "dare_linear", "dare_ties")
LAYERS = 22
CONFIG = {
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "num_hidden_layers": LAYERS, "num_attention_heads": 32,
    "num_key_value_heads": 4, "max_position_embeddings": 2048, "hidden_act": "silu", "rms_norm_eps": 1e-5,
    "tie_word_embeddings": False, "torch_dtype": "bfloat16",
}  # fmt: skip


def shapes(parameters: float) -> tuple[dict[str, tuple[int, ...]], dict[str, int]]:
    """TinyLlama's shape at about `parameters` parameters, and its sizes for config.json."""
    width = max(64, round((parameters / (LAYERS * 10.5 + 31.25)) ** 0.5 / 64) * 64)
    inner, vocabulary, kv = width // 4 * 11, width // 64 * 1000, width // 8
    layer = {
        "input_layernorm": (width,),
        "self_attn.q_proj": (width, width),
        "self_attn.k_proj": (kv, width),
        "self_attn.v_proj": (kv, width),
        "self_attn.o_proj": (width, width),
        "post_attention_layernorm": (width,),
        "mlp.gate_proj": (inner, width),
        "mlp.up_proj": (inner, width),
        "mlp.down_proj": (width, inner),
    }
    found: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (vocabulary, width)}
    for i in range(LAYERS):
        found |= {f"model.layers.{i}.{name}.weight": shape for name, shape in layer.items()}
    found |= {"model.norm.weight": (width,), "lm_head.weight": (vocabulary, width)}
    return found, {"hidden_size": width, "intermediate_size": inner, "vocab_size": vocabulary}


def write_family(folder: Path, parameters: float, seed: int = 0) -> None:
    """Write base and fine-tunes: Gaussian weights, and Gaussian changes of about a tenth of their size."""
    import torch
    from safetensors.torch import save_file

    tensors, sizes = shapes(parameters)
    pool = torch.randn(1 << 24, generator=torch.Generator().manual_seed(seed))
    for number, model in enumerate(MODELS):
        held = {}
        for at, (name, shape) in enumerate(tensors.items()):
            numel = torch.Size(shape).numel()
            values = 0.02 * pool.roll(1009 * at).repeat(-(-numel // len(pool)))[:numel]
            if number:
                values += (
                    0.002 * pool.roll(7919 * at + 104729 * number).repeat(-(-numel // len(pool)))[:numel]
                )
            held[name] = values.view(shape).bfloat16()
        (folder / model).mkdir(parents=True, exist_ok=True)
        save_file(held, folder / model / "model.safetensors", metadata={"format": "pt"})
        (folder / model / "config.json").write_text(json.dumps(CONFIG | sizes))


def config(folder: Path, method: str) -> dict[str, object]:
    """The merge of two fine-tunes by one method; the delta methods read the base too."""
    models = [
        {"model": str(folder / model), "parameters": {"weight": weight, "density": 0.5}}
        for model, weight in (("ft_a", 0.6), ("ft_b", 0.4))
    ]
    settings: dict[str, object] = {"merge_method": method, "models": models, "dtype": "bfloat16"}
    if method == "slerp":
        return settings | {"base_model": str(folder / "ft_a"), "parameters": {"t": 0.5}}
    return settings | ({} if method == "linear" else {"base_model": str(folder / "base")})


def measured(command: Sequence[str]) -> tuple[float, float, float]:
    """Wall seconds, CPU seconds and peak MiB of a command; its output is only shown when it fails."""
    began = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    assert process.stdout
    said = process.stdout.read()
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        sys.exit(f"{shlex.join(command)} failed:\n{said.decode()}")
    unit = 1 if sys.platform == "darwin" else 1024  # bytes there, KiB here
    return time.perf_counter() - began, usage.ru_utime + usage.ru_stime, usage.ru_maxrss * unit / 2**20


def cat(inputs: Sequence[Path], out: Path) -> tuple[float, float, float]:
    """Read every input and write the first: seconds; and seconds until it is on the disk."""
    began = time.perf_counter()
    subprocess.run(["cat", *inputs[1:]], check=True, stdout=subprocess.DEVNULL)
    with out.open("wb") as file:
        subprocess.run(["cat", inputs[0]], check=True, stdout=file)
        copied = time.perf_counter()
        os.fsync(file.fileno())
    synced = time.perf_counter()
    out.unlink()
    return copied - began, synced - copied, 0.0


def compare(folder: Path, methods: Sequence[str], rounds: int, peer: str | None) -> Iterator[str]:
    """Rows of the table."""
    yield "method           GB in  cat s  sync s  merge s  CPU s  peak MiB" + (
        "  peer s  peer MiB  ratio" if peer else ""
    )
    for method in methods:
        wanted = folder / f"{method}.json"  # JSON is YAML
        wanted.write_text(json.dumps(config(folder, method)))
        used = MODELS if method not in ("linear", "slerp") else MODELS[1:]
        inputs = [folder / model / "model.safetensors" for model in used]
        found: dict[str, list[tuple[float, float, float]]] = {"cat": [], "ours": [], "peer": []}
        out = folder / "out"
        for _ in range(rounds):
            found["cat"].append(cat(inputs, out))
            found["ours"].append(
                measured(
                    [
                        sys.executable,
                        "-m",
                        "kinbase",
                        "--db",
                        str(folder / "none"),
                        "merge",
                        "--no-import",
                        str(wanted),
                        str(out),
                    ]
                )
            )
            shutil.rmtree(out)
            if peer:
                found["peer"].append(measured(shlex.split(peer.format(config=wanted, out=out))))
                shutil.rmtree(out)
        cats, ours = (
            [statistics.median(column) for column in zip(*found[who], strict=True)] for who in ("cat", "ours")
        )
        size = sum(path.stat().st_size for path in inputs) / 1e9
        row = f"{method:15} {size:6.2f} {cats[0]:6.2f} {cats[1]:7.2f} {ours[0]:8.2f} {ours[1]:6.1f} {ours[2]:9.0f}"
        if peer:
            theirs = [statistics.median(column) for column in zip(*found["peer"], strict=True)]
            row += f" {theirs[0]:7.2f} {theirs[2]:9.0f} {theirs[0] / ours[0]:6.1f}"
        yield row


def main() -> None:
    """Write the family if it is not there, then compare."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--folder", type=Path, default=Path("build/merging"), help="scratch, kept for the next time"
    )
    parser.add_argument("--parameters", type=float, default=1.1e9)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--methods", nargs="+", default=METHODS, choices=METHODS)
    parser.add_argument("--peer", help="command of another program, with {config} and {out}")
    given = parser.parse_args()
    folder = given.folder.resolve() / f"{given.parameters / 1e6:.0f}M"
    if not (folder / MODELS[-1] / "config.json").exists():
        # In a process of its own: a program started from one that held the models would count their memory as its.
        writer = multiprocessing.get_context("spawn").Process(
            target=write_family, args=(folder, given.parameters)
        )
        writer.start()
        writer.join()
        if writer.exitcode:
            sys.exit(1)
    for line in compare(folder, given.methods, given.rounds, given.peer):
        print(line, flush=True)


if __name__ == "__main__":
    main()
