"""Whose quantised copy is it: 50 fine-tunes of a base, and a GGUF file of each, asked for by `infer`, and some by `recipe`.

    python benchmarks/quantised_sources.py                    # 50 siblings, changes of 1% of the weights' length
    python benchmarks/quantised_sources.py --change 0.003 --siblings 20

The models have a million weights: fewer tell less, by the root of their number. Fine-tunes share six tenths of their change.
The files are Q8_0, Q6_K and Q4_K, quantised here by the extremes of each part, which is coarser than llama.cpp's search. For
each form a database of its own: the base, the siblings and the copies. Printed are the copies whose source was named, whose
source was named wrongly, and of which nothing was said.
"""

import argparse
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import save_file

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
import gguf_files

import kinbase

HIDDEN, LAYERS, VOCAB, HEADS = 256, 2, 256, 4
Array = NDArray[np.float64]
Model = dict[str, Array]

NAMES = {
    "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v", "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up", "mlp.down_proj": "ffn_down",
}  # fmt: skip
"""transformers' names of a layer's matrices, and llama.cpp's."""


def shapes() -> dict[str, tuple[int, int]]:
    found = {"model.embed_tokens.weight": (VOCAB, HIDDEN), "lm_head.weight": (VOCAB, HIDDEN)}
    return found | {
        f"model.layers.{i}.{part}.weight": (HIDDEN, HIDDEN) for i in range(LAYERS) for part in NAMES
    }


def family(siblings: int, change: float, rng: np.random.Generator) -> dict[str, Model]:
    """A base and its fine-tunes, whose changes are `change` of its length and share six tenths."""
    base = {name: rng.standard_normal(shape) / 16 for name, shape in shapes().items()}
    shared = {name: rng.standard_normal(shape) for name, shape in shapes().items()}

    def tuned() -> Model:
        return {
            name: weights + change / 16 * (0.6 * shared[name] + 0.8 * rng.standard_normal(weights.shape))
            for name, weights in base.items()
        }

    made = {"base": base} | {f"ft{i}": tuned() for i in range(siblings)}
    return {name: {n: stored(w) for n, w in model.items()} for name, model in made.items()}


def stored(weights: Array) -> Array:
    """Rounded to bfloat16."""
    return torch.from_numpy(weights).bfloat16().double().numpy()


def half(values: Array) -> Array:
    return values.astype(np.float16).astype(np.float64)


def q6_k(weights: Array) -> tuple[str, tuple[int, ...], bytes]:
    parts = weights.reshape(-1, 16, 16)
    scale = np.abs(parts).max(2) / 31
    d = half(scale.max(1, keepdims=True) / 127)
    scales = np.round(scale / d).clip(-128, 127)
    codes = (np.round(parts / np.maximum(d * scales, 1e-30)[..., None]).clip(-32, 31) + 32).astype(np.uint8)
    halves = codes.reshape(-1, 2, 4, 32)
    low, high = halves & 15, halves >> 4
    ql = np.concatenate([low[:, :, 0] | low[:, :, 2] << 4, low[:, :, 1] | low[:, :, 3] << 4], axis=2)
    qh = high[:, :, 0] | high[:, :, 1] << 2 | high[:, :, 2] << 4 | high[:, :, 3] << 6
    content = [
        ql.reshape(len(d), 128), qh.reshape(len(d), 64), scales.astype(np.int8).view(np.uint8),
        d.astype(np.float16).view(np.uint8),
    ]  # fmt: skip
    return "Q6_K", weights.shape, np.concatenate(content, axis=1).tobytes()


def q4_k(weights: Array) -> tuple[str, tuple[int, ...], bytes]:
    parts = weights.reshape(-1, 8, 32)
    low = np.maximum(-parts.min(2), 0)
    scale = (parts.max(2) + low) / 15
    d, m = (half(values.max(1, keepdims=True) / 63) for values in (scale, low))
    scales, mins = (
        np.round(values / of).clip(0, 63).astype(np.uint8) for values, of in ((scale, d), (low, m))
    )
    steps, offsets = (d * scales)[..., None], (m * mins)[..., None]
    codes = np.round((parts + offsets) / np.maximum(steps, 1e-30)).clip(0, 15).astype(np.uint8)
    six = np.concatenate(
        [
            scales[:, :4] | (scales[:, 4:] >> 4) << 6, mins[:, :4] | (mins[:, 4:] >> 4) << 6,
            (scales[:, 4:] & 15) | (mins[:, 4:] & 15) << 4,
        ], axis=1,
    )  # fmt: skip
    nibbles = codes[:, ::2] | codes[:, 1::2] << 4
    halves = [x.astype(np.float16).view(np.uint8) for x in (d, m)]
    return (
        "Q4_K",
        weights.shape,
        np.concatenate([*halves, six, nibbles.reshape(len(d), 128)], axis=1).tobytes(),
    )


FORMS = {"Q8_0": lambda weights: gguf_files.q8_0(weights)[0], "Q6_K": q6_k, "Q4_K": q4_k}


def paired(weights: Array) -> Array:
    """Rows of queries and keys as llama.cpp has them: those of a rotary pair side by side."""
    rows, columns = weights.shape
    return weights.reshape(HEADS, 2, rows // HEADS // 2, columns).swapaxes(1, 2).reshape(rows, columns)


def write_gguf(path: Path, model: Model, form: str) -> Path:
    tensors = {}
    for name, weights in model.items():
        other = (
            name.replace("model.embed_tokens", "token_embd")
            .replace("lm_head", "output")
            .replace("model.layers", "blk")
        )
        for ours, theirs in NAMES.items():
            other = other.replace(ours, theirs)
        is_turned = ".attn_q." in other or ".attn_k." in other
        tensors[other] = FORMS[form](paired(weights) if is_turned else weights)
    return gguf_files.write(path, tensors, heads=(HEADS, HEADS))


def asked(
    place: Path, models: dict[str, Model], form: str, recipes_of: int
) -> tuple[Counter[str], Counter[str]]:
    """What `infer` says of the copies in one form, and `recipe` of some of them: right, wrong or nothing."""
    db = kinbase.open(place / f"{form}.duckdb")
    siblings = [name for name in models if name != "base"]
    db.import_([place / name for name in models], base="base")
    report = db.import_(
        [write_gguf(place / f"{n}-{form}.gguf", models[n], form) for n in siblings], base="base"
    )
    if set(report["status"]) != {"imported"}:
        raise SystemExit(f"not all imported: {report}")
    recipes, histories = Counter[str](), Counter[str]()
    edges, _ = db.infer()
    parents = {row["child"]: row["parent"] for row in edges.to_dicts()}
    for number, name in enumerate(siblings):
        copy = f"{name}-{form}"
        histories[_judged([parents[copy]] if copy in parents else [], name)] += 1
        if number >= recipes_of:
            continue
        found = db.recipe(copy).to_dicts()[0]["parents"]
        recipes[_judged([parent["parent"] for parent in found], name)] += 1
    return recipes, histories


def _judged(named: list[str], source: str) -> str:
    return "right" if named == [source] else "wrong" if named and named != ["base"] else "nothing"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--siblings", type=int, default=50)
    parser.add_argument("--change", type=float, default=0.01)
    parser.add_argument(
        "--recipes", type=int, default=10, help="copies that recipe is asked of: a second each"
    )
    parser.add_argument("--forms", nargs="+", default=list(FORMS), choices=list(FORMS))
    options = parser.parse_args()
    models = family(options.siblings, options.change, np.random.default_rng(0))
    print(f"{options.siblings} siblings, changes of {options.change:g} of the weights' length")
    print("| form | command | right | wrong | nothing | seconds |\n|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        for name, model in models.items():
            (place / name).mkdir()
            tensors = {n: torch.from_numpy(w).bfloat16() for n, w in model.items()}
            save_file(tensors, place / name / "model.safetensors")
        for form in options.forms:
            begun = time.monotonic()
            for command, counts in zip(
                ("recipe", "infer"), asked(place, models, form, options.recipes), strict=True
            ):
                told = " | ".join(str(counts[word]) for word in ("right", "wrong", "nothing"))
                print(f"| {form} | {command} | {told} | {time.monotonic() - begun:.0f} |", flush=True)


if __name__ == "__main__":
    main()
