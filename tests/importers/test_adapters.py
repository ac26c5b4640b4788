"""Adapters in a family: on the base and on a fine-tune of it, against their sums in float64."""

import json

import families
import numpy as np
import pytest
import torch
from safetensors.torch import load_file

import kinbase
from kinbase.checkpoint import Checkpoint, Tensor
from kinbase.checkpoint.adapters import applied, byte_floats

TARGETS = ["model.layers.0.self_attn.q_proj", "model.layers.1.mlp.up_proj"]


def write_adapter(folder, base_name, shapes, seed):
    generator = torch.Generator().manual_seed(seed)
    factors = {}
    for target in TARGETS:
        rows, columns = shapes[f"{target}.weight"]
        factors[f"base_model.model.{target}.lora_A.weight"] = (
            torch.randn(4, columns, generator=generator) * 0.1
        )
        factors[f"base_model.model.{target}.lora_B.weight"] = torch.randn(rows, 4, generator=generator) * 0.1
    families.write_safetensors(folder / "adapter_model.safetensors", factors)
    config = {
        "peft_type": "LORA",
        "r": 4,
        "lora_alpha": 8,
        "base_model_name_or_path": base_name,
        "target_modules": ["q_proj"],
    }
    (folder / "adapter_config.json").write_text(json.dumps(config))
    pairs = {
        t: [factors[f"base_model.model.{t}.lora_{side}.weight"].double() for side in "BA"] for t in TARGETS
    }
    return {f"{t}.weight": 8 / 4 * b @ a for t, (b, a) in pairs.items()}


@pytest.mark.parametrize("onto", ["base", "ft_b"])
def test_an_adapters_delta_counts_from_the_familys_base(tmp_path, family, onto):
    weights = {name: load_file(family[name] / "model.safetensors") for name in ("base", "ft_a", onto)}
    shapes = {name: tensor.shape for name, tensor in weights["base"].items()}
    change = write_adapter(tmp_path / "lora", onto, shapes, seed=1)
    x, y = [], []
    for name, base in sorted(weights["base"].items()):
        x.append((weights[onto][name].double() - base.double() + change.get(name, 0)).flatten())
        y.append((weights["ft_a"][name].double() - base.double()).flatten())
    x, y = torch.cat(x).numpy(), torch.cat(y).numpy()

    db = kinbase.open(tmp_path / "kin.duckdb")
    report = db.import_([family["base"], family["ft_a"], family["ft_b"], tmp_path / "lora"], base="base")
    assert set(report["status"]) == {"imported"}
    ((pcc, cs, ed, coverage),) = db.sql(
        "select pcc, cs, ed, coverage from kinship where model_a = 'lora' and model_b = 'ft_a'"
    ).rows()
    # The deltas of bf16 weights are taken in float32, their sums in float64.
    assert (pcc, cs) == pytest.approx(
        (np.corrcoef(x, y)[0, 1], x @ y / np.linalg.norm(x) / np.linalg.norm(y)), abs=1e-9
    )
    assert ed == pytest.approx(np.linalg.norm(x - y), rel=1e-9)
    assert coverage == 1.0
    assert db.sql("select parent, relation from lineage where child = 'lora'").rows() == [(onto, "adapter")]


def test_a_tensor_an_adapter_holds_whole_is_not_compared(tmp_path, family):
    base = load_file(family["base"] / "model.safetensors")
    write_adapter(tmp_path / "lora", "base", {name: tensor.shape for name, tensor in base.items()}, seed=1)
    path = tmp_path / "lora" / "adapter_model.safetensors"
    whole = {"base_model.model.lm_head.weight": base["lm_head.weight"].float() + 1}
    families.write_safetensors(path, {**load_file(path), **whole})
    db = kinbase.open(tmp_path / "kin.duckdb")
    db.import_([family["base"], family["ft_a"], tmp_path / "lora"], base="base")
    left = 1 - base["lm_head.weight"].numel() / sum(tensor.numel() for tensor in base.values())
    assert db.sql("select coverage from kinship where model_a = 'lora'").item() == pytest.approx(left)
    assert db.sql("select tensor from skipped where model = 'lora' and tensor like '%lm_head%'").height == 1


def test_an_adapter_is_the_same_model_on_whatever_base(tmp_path, family):
    shapes = {name: tensor.shape for name, tensor in load_file(family["base"] / "model.safetensors").items()}
    write_adapter(tmp_path / "lora", "ft_b", shapes, seed=1)
    digests = []
    for base in ("base", "ft_b"):
        db = kinbase.open(tmp_path / f"{base}.duckdb")
        db.import_([family["base"], family["ft_b"], tmp_path / "lora"], base=base)
        digests.append(db.sql("select digest from models where name = 'lora'").item())
    assert digests[0] == digests[1]


def test_an_adapter_whose_model_is_elsewhere_waits(tmp_path, family):
    shapes = {name: tensor.shape for name, tensor in load_file(family["base"] / "model.safetensors").items()}
    write_adapter(tmp_path / "lora", "somebody/else", shapes, seed=1)
    db = kinbase.open(tmp_path / "kin.duckdb")
    report = db.import_([family["base"], tmp_path / "lora"])
    assert report["status"].to_list() == ["imported", "imported"]
    assert db.sql("select base from models where name = 'lora'").rows() == [(None,)]


@pytest.mark.parametrize("dtype", families.TORCH_DTYPES)
def test_every_dtype_is_added_exactly(dtype):
    values = torch.linspace(-3, 3, 64).to(families.TORCH_DTYPES[dtype])
    raw = values.view(torch.uint8).numpy().tobytes()
    change = np.linspace(0, 1, 64)

    def tensor(data, kind):
        def read(start, out):
            out[:] = data[start : start + len(out)]

        return Tensor("w", kind, (64,), read)

    both = applied(
        Checkpoint("a", "a", [tensor(change.tobytes(), "F64")]), Checkpoint("m", "m", [tensor(raw, dtype)])
    )
    out = bytearray(8 * 40)
    both.tensors[0].read(8 * 10, memoryview(out))
    assert np.array_equal(np.frombuffer(out), (values.double().numpy() + change)[10:50])


def test_the_256_bytes_of_each_8_bit_float():
    for dtype in ("F8_E4M3", "F8_E5M2"):
        want = torch.arange(256, dtype=torch.uint8).view(families.TORCH_DTYPES[dtype]).double().numpy()
        assert np.array_equal(byte_floats(dtype), want, equal_nan=True)
