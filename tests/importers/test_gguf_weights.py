"""The weights of GGUF files: dequantised by the formulas of ggml, named and ordered as in transformers."""

import gguf_files
import numpy as np
import pytest
from records import problem, read

import kinbase
from kinbase.checkpoint import Checkpoint, Edge, Facts, Problem
from kinbase.importers import gguf
from kinbase.importers.gguf_tensors import ARCHITECTURES


def opened(path):
    return next(r for r in gguf.open(str(path)) if isinstance(r, Checkpoint))


def values(tensor):
    data = np.empty(tensor.nbytes, np.uint8)
    tensor.read(0, memoryview(data))
    return data.view({"F32": np.float32, "F16": np.float16}[tensor.dtype]).reshape(tensor.shape)


@pytest.mark.parametrize("form", gguf_files.BLOCKS)
def test_blocks_are_decoded_by_the_book(tmp_path, form):
    blocks = gguf_files.random_blocks(form, 6)
    size = gguf_files.BLOCKS[form][0]
    tensors = {"blk.0.ffn_up.weight": (form, (3, 2 * size), blocks.tobytes())}
    (weight,) = opened(gguf_files.write(tmp_path / "m.gguf", tensors)).tensors
    assert (weight.name, weight.form, weight.shape) == (
        "model.layers.0.mlp.up_proj.weight",
        form,
        (3, 2 * size),
    )
    expected = np.concatenate([gguf_files.decoded(block, form) for block in blocks])
    # The products and the difference are rounded to float32 once each.
    assert np.abs(values(weight).ravel() - expected).max() <= 3 * np.abs(expected).max() * 2.0**-24
    whole = values(weight).tobytes()
    for start, stop in ((0, 4), (4, 700), (37, 41), (508, 516), (8, len(whole))):
        part = bytearray(stop - start)
        weight.read(start, memoryview(part))
        assert part == whole[start:stop]


@pytest.mark.parametrize("form", gguf_files.BLOCKS)
def test_blocks_are_what_the_gguf_package_says(tmp_path, form):
    quants = pytest.importorskip("gguf.quants")
    from gguf import GGMLQuantizationType

    blocks = gguf_files.random_blocks(form, 64, 1)
    size = gguf_files.BLOCKS[form][0]
    tensors = {"blk.0.ffn_up.weight": (form, (32, 2 * size), blocks.tobytes())}
    (weight,) = opened(gguf_files.write(tmp_path / "m.gguf", tensors)).tensors
    expected = quants.dequantize(blocks.reshape(32, -1), GGMLQuantizationType[form])
    # The same float32 arithmetic but for the order of a sum.
    assert values(weight) == pytest.approx(expected, rel=1e-5, abs=1e-6 * np.abs(expected).max())


def test_names_are_those_of_the_gguf_package():
    package = pytest.importorskip("gguf")
    kinds = {package.MODEL_ARCH_NAMES[arch]: arch for arch in package.MODEL_ARCH_NAMES}
    for architecture, names in ARCHITECTURES.items():
        told = package.get_tensor_name_map(kinds[architecture], 3)
        known = {name for _, name in told.mapping.values()}
        for ours, theirs in names.items():
            # Not the stacked ones, which it names otherwise, nor parts that this architecture does not have.
            if "{}" in theirs or f"blk.1.{ours}" not in known:
                continue
            assert told.get_name(f"model.layers.1.{theirs}") == f"blk.1.{ours}", (architecture, ours)


def permuted(weights, heads):
    """As convert_hf_to_gguf.py lays the rows of queries and keys."""
    rows = weights.shape[0]
    return (
        weights.reshape(heads, 2, rows // heads // 2, *weights.shape[1:])
        .swapaxes(1, 2)
        .reshape(weights.shape)
    )


def llama(rng, width=64, heads=(4, 2)):
    kv = width // heads[0] * heads[1]
    return {
        "model.embed_tokens.weight": rng.standard_normal((96, width)),
        "model.layers.0.self_attn.q_proj.weight": rng.standard_normal((width, width)),
        "model.layers.0.self_attn.k_proj.weight": rng.standard_normal((kv, width)),
        "model.layers.0.self_attn.k_proj.bias": rng.standard_normal((kv,)),
        "model.layers.0.mlp.down_proj.weight": rng.standard_normal((width, 96)),
        "model.layers.0.input_layernorm.weight": rng.standard_normal((width,)),
        "model.norm.weight": rng.standard_normal((width,)),
    }


THEIRS = {
    "model.embed_tokens.weight": "token_embd.weight",
    "model.layers.0.self_attn.q_proj.weight": "blk.0.attn_q.weight",
    "model.layers.0.self_attn.k_proj.weight": "blk.0.attn_k.weight",
    "model.layers.0.self_attn.k_proj.bias": "blk.0.attn_k.bias",
    "model.layers.0.mlp.down_proj.weight": "blk.0.ffn_down.weight",
    "model.layers.0.input_layernorm.weight": "blk.0.attn_norm.weight",
    "model.norm.weight": "output_norm.weight",
}


def converted(model, quantise=None, architecture="llama"):
    """A model as llama.cpp writes it, its matrices quantised; and the values that are left of it."""
    tensors, left = {}, {}
    for name, weights in model.items():
        heads = {"q_proj": 4, "k_proj": 2}.get(name.split(".")[-2], 1)
        turn = architecture == "llama" and heads > 1
        laid = permuted(weights, heads) if turn else weights
        packed = quantise and weights.ndim == 2
        tensors[THEIRS[name]], held = (
            quantise(laid) if packed else (gguf_files.plain(laid), laid.astype(np.float32))
        )
        undone = np.argsort(permuted(np.arange(len(weights)), heads)) if turn else slice(None)
        left[name] = held[undone]
    return tensors, left


@pytest.mark.parametrize("architecture", ["llama", "qwen2"])
@pytest.mark.parametrize("quantise", [None, gguf_files.q8_0])
def test_names_and_rows_are_those_of_transformers(tmp_path, architecture, quantise):
    model = llama(np.random.default_rng(0))
    tensors, left = converted(model, quantise, architecture)
    tensors["rope_freqs.weight"] = gguf_files.plain(np.ones(8))
    found = opened(gguf_files.write(tmp_path / "m.gguf", tensors, architecture))
    assert {t.name for t in found.tensors} == model.keys()
    assert found.skipped == {"rope_freqs.weight": "frequencies, which are no weights"}
    for tensor in found.tensors:
        assert np.abs(values(tensor) - left[tensor.name]).max() <= 1e-6
        whole = values(tensor).tobytes()
        for start, stop in ((0, 7), (5, 100), (90, len(whole) - 3), (100, len(whole))):
            part = bytearray(stop - start)
            tensor.read(start, memoryview(part))
            assert part == whole[start:stop]


def test_stacked_experts_and_raised_norms(tmp_path):
    rng = np.random.default_rng(1)
    stack = rng.standard_normal((3, 32, 64))
    tensors = {
        "blk.0.ffn_gate_exps.weight": gguf_files.q8_0(stack)[0],
        "blk.0.ffn_gate_inp.weight": gguf_files.plain(rng.standard_normal((3, 64))),
    }
    left = gguf_files.q8_0(stack)[1]
    found = {t.name: t for t in opened(gguf_files.write(tmp_path / "moe.gguf", tensors, "qwen3moe")).tensors}
    for expert in range(3):
        assert (
            np.abs(
                values(found[f"model.layers.0.mlp.experts.{expert}.gate_proj.weight"]) - left[expert]
            ).max()
            < 1e-6
        )
    assert "model.layers.0.mlp.gate.weight" in found
    norm = rng.standard_normal(64).astype(np.float32)
    tensors = {"blk.0.attn_norm.weight": gguf_files.plain(norm), "output_norm.weight": gguf_files.plain(norm)}
    for tensor in opened(gguf_files.write(tmp_path / "g.gguf", tensors, "gemma2")).tensors:
        assert values(tensor) == pytest.approx(norm - 1, abs=1e-7)


WRONG = {
    "an unknown architecture": (
        {"x.weight": gguf_files.plain(np.ones((2, 32)))},
        {"architecture": "strange"},
    ),
    "a type that is not read": ({"blk.0.ffn_up.weight": (16, (2, 256), bytes(132))}, {}),
    "a type that is none": ({"blk.0.ffn_up.weight": (99, (2, 256), bytes(132))}, {}),
    "rows of no whole blocks": ({"blk.0.ffn_up.weight": ("Q8_0", (2, 40), bytes(102))}, {}),
    "more than the file holds": ({"blk.0.ffn_up.weight": ("Q8_0", (2, 3200), bytes(68))}, {}),
    "extents without end": ({"blk.0.ffn_up.weight": ("Q8_0", (2**40, 2**40), bytes(68))}, {}),
    "no rows": ({"blk.0.ffn_up.weight": ("Q8_0", (0, 32), b"")}, {}),
    "heads that do not divide": ({"blk.0.attn_q.weight": gguf_files.plain(np.ones((34, 32)))}, {}),
    "an absurd alignment": ({"x.weight": gguf_files.plain(np.ones((2, 32)))}, {"general__alignment": 2**31}),
    "one part of several": ({"x.weight": gguf_files.plain(np.ones((2, 32)))}, {"split__count": 2}),
}


@pytest.mark.parametrize("kind", WRONG)
def test_what_cannot_be_read_is_one_line_and_lineage(tmp_path, kind):
    tensors, more = WRONG[kind]
    records = read(gguf, gguf_files.write(tmp_path / "m.gguf", tensors, **more))
    assert not any(isinstance(r, Checkpoint) for r in records)
    assert "is kept for lineage: " in problem(records)
    assert sum(isinstance(r, Facts) for r in records) == 1 and not any(isinstance(r, Edge) for r in records)
    assert len([r for r in records if isinstance(r, Problem)]) == 1


def test_a_gguf_file_joins_the_family_of_its_base(tmp_path):
    import torch
    from safetensors.torch import save_file

    rng = np.random.default_rng(2)
    base = llama(rng)
    made = {"base": base} | {
        name: {n: w + 0.05 * rng.standard_normal(w.shape) for n, w in base.items()}
        for name in ("ft", "other")
    }
    for name, model in made.items():
        (tmp_path / name).mkdir()
        save_file(
            {n: torch.from_numpy(w).float() for n, w in model.items()}, tmp_path / name / "model.safetensors"
        )
    path = gguf_files.write(tmp_path / "ft-Q8_0.gguf", converted(made["ft"], gguf_files.q8_0)[0])
    db = kinbase.open(tmp_path / "kin.duckdb")
    report = db.import_([tmp_path / "base", tmp_path / "ft", tmp_path / "other", path], base="base")
    assert report["status"].to_list() == ["imported"] * 4
    found = dict(db.sql("select model_b, pcc from kinship where model_a = 'ft-Q8_0'").rows())
    assert found["ft"] > 0.98 and abs(found["other"]) < 0.05
    assert db.sql("select relation, dtype from models where name = 'ft-Q8_0'").rows() == [
        ("quantized", "Q8_0")
    ]
    assert db.recipe("ft-Q8_0")["parents"].to_list()[0][0]["parent"] == "ft"
    assert db.import_([path], base="base")["status"].to_list() == ["unchanged"]
