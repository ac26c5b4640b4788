"""Weights are dequantised as each format's formula says, read by any position."""

import json
from functools import partial

import numpy as np
import pytest
import quantising
import torch
from safetensors.torch import save_file

from kinbase.checkpoint import Checkpoint, Facts, Problem
from kinbase.importers import folder

ROWS, COLUMNS = 96, 128


def with_a_text(weights):
    """As ComfyUI saves it: a tensor says the format in words."""
    parts, values = quantising.float8(weights)
    return parts | {
        "comfy_quant": torch.tensor(list(b'{"format": "float8_e4m3fn"}'), dtype=torch.uint8)
    }, values


FORMS = {
    "GPTQ": (quantising.gptq, {}, "GPTQ4"),
    "GPTQ of 8 bits": (partial(quantising.gptq, bits=8), {"bits": 8}, "GPTQ8"),
    "GPTQ of 2 bits": (partial(quantising.gptq, bits=2), {"bits": 2}, "GPTQ2"),
    "GPTQ with zero points as they are": (
        partial(quantising.gptq, second=True), {"checkpoint_format": "gptq_v2"}, "GPTQ4",
    ),
    "GPTQ with columns by their order": (
        partial(quantising.gptq, order=np.random.default_rng(5).permutation(COLUMNS)), {}, "GPTQ4",
    ),
    "AWQ": (quantising.awq, {}, "AWQ4"),
    "MLX": (quantising.mlx, {}, "INT4"),
    "MLX of 3 bits": (partial(quantising.mlx, bits=3), {}, "INT3"),
    "MLX of 5 bits": (partial(quantising.mlx, bits=5), {}, "INT5"),
    "MLX of 6 bits": (partial(quantising.mlx, bits=6), {}, "INT6"),
    "MLX of 8 bits": (partial(quantising.mlx, bits=8), {}, "INT8"),
    "integers of 4 bits": (quantising.integers, {}, "INT4"),
    "integers of 8 bits": (partial(quantising.integers, bits=8), {}, "INT8"),
    "int8": (quantising.int8, {}, "INT8"),
    "float8 by tensor": (quantising.float8, {}, "FP8"),
    "float8 with a text beside it": (with_a_text, {}, "FP8"),
    "float8 with the scale's name turned": (partial(quantising.float8, name="scale_weight"), {}, "FP8"),
    "float8 by row": (partial(quantising.float8, by="row"), {}, "FP8"),
    "float8 by block": (
        partial(quantising.float8, by="block", name="weight_scale_inv"), {"weight_block_size": [32, 16]}, "FP8",
    ),
    "nf4": (partial(quantising.bitsandbytes, nested=False), {}, "NF4"),
    "nf4 of nested scales": (quantising.bitsandbytes, {}, "NF4"),
    "fp4": (partial(quantising.bitsandbytes, form="fp4"), {}, "FP4"),
}  # fmt: skip


def weights(seed=0, shape=(ROWS, COLUMNS)):
    """Rows of different scales, so that no two scales are alike."""
    rng = np.random.default_rng(seed)
    return 0.05 * rng.standard_normal(shape) * rng.uniform(0.3, 3, (shape[0], *[1] * (len(shape) - 1)))


def write(path, tensors, said):
    path.mkdir()
    save_file({name: t.contiguous() for name, t in tensors.items()}, path / "model.safetensors")
    (path / "config.json").write_text(
        json.dumps({"quantization_config": said, "quantization": {"group_size": 32, **said}})
    )
    return path


def opened(path):
    """The Checkpoint of a folder and its other records."""
    found = list(folder.open(str(path)))
    return next((r for r in found if isinstance(r, Checkpoint)), None), [
        r for r in found if not isinstance(r, Checkpoint)
    ]


def values(tensor, start=0, stop=None):
    """Elements of a tensor, read in one go."""
    stop = tensor.numel if stop is None else stop
    data = np.empty(stop - start, np.float32)
    tensor.read(4 * start, memoryview(data).cast("B"))
    return data


def linear(form, seed=0, shape=(ROWS, COLUMNS)):
    quantise, said, _ = FORMS[form]
    parts, exact = quantise(weights(seed, shape))
    tensors = {f"model.layers.0.up.{key}": value for key, value in parts.items()}
    return tensors | {"model.norm.weight": torch.ones(4)}, exact, said


@pytest.mark.parametrize("form", FORMS)
def test_values_are_those_of_the_formula(tmp_path, form):
    tensors, exact, said = linear(form)
    checkpoint, rest = opened(write(tmp_path / "m", tensors, said))
    plain, weight = checkpoint.tensors
    assert (plain.name, weight.name, weight.dtype, weight.shape) == (
        "model.norm.weight", "model.layers.0.up.weight", "F32", (ROWS, COLUMNS),
    )  # fmt: skip
    assert weight.grid.name == weight.form == FORMS[form][2] and plain.form == "F32"
    # Three roundings to float32, of terms that are at most a few times the largest weight.
    bound = 4 * np.abs(exact).max() * 2.0**-24
    assert np.abs(values(weight) - exact.ravel()).max() <= bound
    assert {b.name for b in checkpoint.blobs} == tensors.keys() - {"model.norm.weight"}
    assert checkpoint.nbytes == sum(t.nbytes for t in tensors.values())
    share = ROWS * COLUMNS / (ROWS * COLUMNS + 4)
    note = f"quantised: {share:.0%} of its weights are dequantised from {weight.form} as they are read"
    facts = Facts(dtype="float32", parameters=ROWS * COLUMNS + 4, relation="quantized")
    assert rest == [facts, Problem(note)]
    checkpoint.close()


@pytest.mark.parametrize("form", FORMS)
def test_any_position_reads_the_same(tmp_path, form):
    tensors, _, said = linear(form)
    checkpoint, _ = opened(write(tmp_path / "m", tensors, said))
    weight = checkpoint.tensors[-1]
    whole = values(weight)
    rng = np.random.default_rng(1)
    for _ in range(200):
        start, stop = np.sort(rng.integers(0, weight.nbytes + 1, 2))
        part = np.empty(stop - start, np.uint8)
        weight.read(int(start), memoryview(part))
        assert (part == whole.view(np.uint8)[start:stop]).all()


@pytest.mark.parametrize("form", FORMS)
def test_the_steps_of_the_grid_are_what_rounding_to_it_costs(tmp_path, form):
    """A twelfth of them, by the squared distance of the values from the weights that were rounded."""
    shape = (512, COLUMNS)
    tensors, exact, said = linear(form, 3, shape)
    checkpoint, _ = opened(write(tmp_path / "m", tensors, said))
    lost = np.square(exact - weights(3, shape)).sum()
    # A group's extremes are on the grid themselves, two of 32, and of uneven grids weights are not even within a step.
    assert checkpoint.tensors[-1].grid.steps() / 12 == pytest.approx(lost, rel=0.25)


def test_stacked_experts(tmp_path):
    exact = weights(7, (3, 64, 96))
    parts, values_of = quantising.mxfp4(exact)
    tensors = {f"model.layers.0.mlp.experts.up_proj_{key}": value for key, value in parts.items()}
    tensors["model.layers.0.mlp.experts.up_proj_bias"] = torch.ones(3, 96)
    rows = torch.rand(3, 1, 96) + 0.5
    codes = torch.randn(3, 64, 96).to(torch.float8_e4m3fn)
    tensors |= {
        "model.layers.0.mlp.experts.down_proj": codes,
        "model.layers.0.mlp.experts.down_proj_scale": rows,
    }
    checkpoint, _ = opened(write(tmp_path / "m", tensors, {}))
    by_name = {t.name.rpartition(".")[2]: t for t in checkpoint.tensors}
    assert by_name.keys() == {"up_proj", "up_proj_bias", "down_proj"}
    assert by_name["up_proj"].shape == (3, 64, 96) and by_name["up_proj"].form == "MXFP4"
    # Powers of two times values of two bits: nothing is rounded.
    assert (values(by_name["up_proj"]) == values_of.ravel()).all()
    expected = (codes.double() * rows.double()).numpy().ravel()
    assert values(by_name["down_proj"]) == pytest.approx(expected, rel=2.0**-23)


def test_a_tensor_of_several_panels(tmp_path, monkeypatch):
    from kinbase.checkpoint.formats import columns

    monkeypatch.setattr(columns, "PANEL_BYTES", 64 * 64)
    for form in ("GPTQ", "AWQ"):
        tensors, exact, said = linear(form, 2, (640, COLUMNS))
        checkpoint, _ = opened(write(tmp_path / form, tensors, said))
        assert np.abs(values(checkpoint.tensors[-1]) - exact.ravel()).max() <= 1e-6 * np.abs(exact).max()


def test_an_odd_number_of_elements(tmp_path):
    for form in ("nf4", "int8", "float8 by row"):
        tensors, exact, said = linear(form, 2, (7, 9))
        checkpoint, _ = opened(write(tmp_path / form, tensors, said))
        assert values(checkpoint.tensors[-1]) == pytest.approx(exact.ravel(), abs=1e-6 * np.abs(exact).max())


def broken(form, **changes):
    """The tensors of a format with some of them changed: a shape, a dtype, or gone."""
    tensors, _, said = linear(form)
    for key, change in changes.items():
        name = "model.layers.0.up." + key
        tensors[name] = change(tensors[name]) if change else None
    return {name: t for name, t in tensors.items() if t is not None}, said


def state(change):
    """A quant_state with some of its fields changed."""

    def changed(tensor):
        text = json.dumps(json.loads(bytes(tensor.tolist())) | change)
        return torch.frombuffer(bytearray(text.encode()), dtype=torch.uint8)

    return changed


QUANT_STATE = "weight.quant_state.bitsandbytes__nf4"

WRONG = {
    "scales of another width": broken("GPTQ", scales=lambda t: t[:, :-8].clone()),
    "scales that are integers": broken("GPTQ", scales=lambda t: t.to(torch.int16)),
    "zero points of another width": broken("GPTQ", qzeros=lambda t: t[:, :-1].clone()),
    "a group that is not there": broken("GPTQ", g_idx=lambda t: t + 100),
    "a negative group": broken("GPTQ", g_idx=lambda t: t - 1),
    "fewer groups than columns say": broken("GPTQ", g_idx=lambda t: t[:-1].clone()),
    "no scales": broken("GPTQ", scales=None),
    "AWQ without zero points": broken("AWQ", qzeros=None),
    "groups that do not divide": broken("MLX", scales=lambda t: t[:, :-1].clone(), biases=lambda t: t[:, :-1].clone()),
    "biases of another shape": broken("MLX", biases=lambda t: t[:-1].clone()),
    "a shape that lies": broken("integers of 4 bits", weight_shape=lambda t: t * 1000),
    "a negative shape": broken("integers of 4 bits", weight_shape=lambda t: -t),
    "rows of another model": broken("int8", SCB=lambda t: t[:-1].clone()),
    "an unknown layout": broken("int8", weight_format=lambda t: t + 2),
    "a scale that divides nothing": broken("float8 by block", weight_scale_inv=lambda t: t[:, :-1].repeat(1, 3)),
    "a block size that lies": (broken("float8 by block")[0] | {}, {"weight_block_size": [-1, "a"]}),
    "blocks of no elements": broken("nf4", **{QUANT_STATE: state({"blocksize": 0})}),
    "more weights than bytes": broken("nf4", **{QUANT_STATE: state({"shape": [1 << 39, 1 << 39]})}),
    "a shape of words": broken("nf4", **{QUANT_STATE: state({"shape": ["a", True]})}),
    "no JSON": broken("nf4", **{QUANT_STATE: lambda t: t + 1}),
    "too few scales": broken("nf4", **{"weight.absmax": lambda t: t[:-1].clone()}),
    "a table of fifteen": broken("nf4", **{"weight.quant_map": lambda t: t[:-1].clone()}),
    "nested scales without an offset": broken("nf4 of nested scales", **{QUANT_STATE: state({"nested_offset": None})}),
    "nested scales that are not there": broken("nf4 of nested scales", **{"weight.nested_absmax": None}),
    "an infinite table": broken("nf4", **{"weight.quant_map": lambda t: t / 0}),
}  # fmt: skip


@pytest.mark.parametrize("kind", WRONG)
def test_what_does_not_fit_is_one_line_and_lineage(tmp_path, kind):
    tensors, said = WRONG[kind]
    if kind == "a block size that lies":  # shapes that fit no blocks of 128 either
        tensors = tensors | {"model.layers.0.up.weight_scale_inv": torch.ones(5, 7)}
    checkpoint, rest = opened(write(tmp_path / "m", tensors, said))
    facts, problem = rest
    assert checkpoint is None and facts.relation == "quantized" and isinstance(problem, Problem)
    assert "is kept for lineage: " in problem.message and "model.layers.0.up" in problem.message
    assert problem.message.isprintable() and len(problem.message) < 600


def test_a_format_that_is_not_read_keeps_its_lineage(tmp_path):
    codes = {"m.weight": torch.ones(8, 8, dtype=torch.int8), "m.weight_scales": torch.ones(8)}
    checkpoint, (facts, problem) = opened(write(tmp_path / "m", codes, {"quant_method": "eetq"}))
    assert checkpoint is None and facts.relation == "quantized"
    assert "quantised ('eetq') weights: 'm.weight' holds packed I8" in problem.message


def test_codes_and_weights_of_one_name_are_refused(tmp_path):
    tensors, _, said = linear("GPTQ")
    tensors["model.layers.0.up.weight"] = torch.ones(4)
    checkpoint, (_, problem) = opened(write(tmp_path / "m", tensors, said))
    assert checkpoint is None and "there twice" in problem.message
