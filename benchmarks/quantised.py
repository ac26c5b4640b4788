"""Quantised members against a plain bf16 one: the kinship pass over a bf16 base and one new member, by format.

    python benchmarks/quantised.py                      # 16 layers' worth of one matrix, 67 M elements
    python benchmarks/quantised.py --elements 4e6 --rounds 3

Writes each member once (random codes, seeded, under --folder), warms the compiled kernels up, then runs rounds of every
format in turn, each in this process with two threads, and prints medians: processor seconds of all threads, which a busy
machine changes least, elements a second of them, and that over bf16's.
"""

import argparse
import json
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file

from kinbase.checkpoint import Checkpoint
from kinbase.importers import folder
from kinbase.kinship.stream import Plan, run

ROWS, COLUMNS = 2048, 2048


def linear(form: str, rng: np.random.Generator) -> tuple[dict[str, torch.Tensor], dict[str, object]]:
    """The tensors of one matrix in a format, by the last part of their names, and the quantization_config."""

    def integers(*shape: int, dtype: type = np.int32) -> torch.Tensor:
        info = np.iinfo(dtype)
        return torch.from_numpy(rng.integers(info.min, info.max, shape, dtype=dtype))

    def scales(*shape: int) -> torch.Tensor:
        return torch.from_numpy(rng.uniform(1e-3, 2e-3, shape).astype(np.float16))

    words, groups = COLUMNS // 8, COLUMNS // 128
    if form == "fp8":
        codes = torch.from_numpy(rng.standard_normal((ROWS, COLUMNS)).astype(np.float32)).to(
            torch.float8_e4m3fn
        )
        return {"weight": codes, "weight_scale_inv": scales(ROWS // 128, groups).float()}, {
            "quant_method": "fp8"
        }
    if form == "int8":
        return {"weight": integers(ROWS, COLUMNS, dtype=np.int8), "SCB": scales(ROWS).float()}, {
            "quant_method": "bitsandbytes"
        }
    if form == "gptq":
        parts = {
            "qweight": integers(words, ROWS),
            "qzeros": integers(groups, ROWS // 8),
            "scales": scales(groups, ROWS),
        }
        return parts, {"quant_method": "gptq", "bits": 4}
    if form == "awq":
        parts = {
            "qweight": integers(COLUMNS, ROWS // 8),
            "qzeros": integers(groups, ROWS // 8),
            "scales": scales(groups, ROWS),
        }
        return parts, {"quant_method": "awq", "bits": 4}
    if form == "mlx":
        small = scales(ROWS, COLUMNS // 64)
        return {"weight": integers(ROWS, words).view(torch.uint32), "scales": small, "biases": small * -8}, {
            "group_size": 64
        }
    state = {"quant_type": "nf4", "blocksize": 64, "shape": [ROWS, COLUMNS]}
    blocks = ROWS * COLUMNS // 64
    return {
        "weight": integers(ROWS * COLUMNS // 2, 1, dtype=np.uint8),
        "weight.absmax": scales(blocks).float(),
        "weight.quant_map": torch.linspace(-1, 1, 16),
        "weight.quant_state.bitsandbytes__nf4": torch.frombuffer(bytearray(json.dumps(state).encode()), dtype=torch.uint8),
    }, {"quant_method": "bitsandbytes"}  # fmt: skip


def write(path: Path, form: str, count: int) -> None:
    """A folder of `count` matrices."""
    rng = np.random.default_rng(0)
    path.mkdir()
    tensors: dict[str, torch.Tensor] = {}
    said: dict[str, object] = {}
    for layer in range(count):
        if form in ("bf16", "f32"):
            dtype = torch.bfloat16 if form == "bf16" else torch.float32
            parts = {
                "weight": torch.from_numpy(rng.standard_normal((ROWS, COLUMNS)).astype(np.float32)).to(dtype)
            }
        else:
            parts, said = linear(form, rng)
        tensors |= {f"layers.{layer}.up.{key}": tensor for key, tensor in parts.items()}
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, path / "model.safetensors")
    config = {"quantization_config": said, "quantization": said} if said else {}
    (path / "config.json").write_text(json.dumps(config))


def opened(path: Path) -> Checkpoint:
    return next(record for record in folder.open(str(path)) if isinstance(record, Checkpoint))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--elements", type=float, default=67e6)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--folder", type=Path)
    options = parser.parse_args()
    forms = ("bf16", "f32", "fp8", "int8", "mlx", "nf4", "gptq", "awq")
    count = max(1, round(options.elements / ROWS / COLUMNS))
    with tempfile.TemporaryDirectory(dir=options.folder) as place:
        for form in ("base", *forms):
            write(Path(place, form), "bf16" if form == "base" else form, count)
        times: dict[str, list[float]] = {form: [] for form in forms}
        for number in range(options.rounds + 1):  # the first compiles
            for form in forms:
                base, member = opened(Path(place, "base")), opened(Path(place, form))
                begun = time.process_time()
                for _ in run(Plan(base, [member], new=1), threads=2):
                    pass
                if number:
                    times[form].append(time.process_time() - begun)
                base.close()
                member.close()
    elements = count * ROWS * COLUMNS
    plain = statistics.median(times["bf16"])
    print(f"{elements / 1e6:.0f} M elements, a bf16 base and one new member, medians of {options.rounds}")
    print("| member | CPU s | M elements/CPU s | over bf16 |\n|---|---|---|---|")
    for form in forms:
        seconds = statistics.median(times[form])
        print(f"| {form} | {seconds:.3f} | {elements / seconds / 1e6:.0f} | {plain / seconds:.2f} |")


if __name__ == "__main__":
    main()
