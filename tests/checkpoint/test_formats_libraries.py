"""Dequantised weights held against the formats' own libraries, where those are installed."""

import json

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from kinbase.importers import folder


def read(path, tensors, said):
    """The values of the one weight of a checkpoint."""
    save_file({name: t.contiguous() for name, t in tensors.items()}, path / "model.safetensors")
    (path / "config.json").write_text(json.dumps({"quantization_config": said}))
    checkpoint = next(iter(folder.open(str(path))))
    (weight,) = checkpoint.tensors
    data = np.empty(weight.numel, np.float32)
    weight.read(0, memoryview(data).cast("B"))
    return data.reshape(weight.shape)


@pytest.mark.parametrize("form", ["nf4", "fp4"])
@pytest.mark.parametrize("nested", [False, True])
def test_bitsandbytes_of_four_bits(tmp_path, form, nested):
    functional = pytest.importorskip("bitsandbytes.functional")
    weight = 0.05 * torch.randn(96, 128, generator=torch.Generator().manual_seed(0))
    codes, state = functional.quantize_4bit(weight, quant_type=form, compress_statistics=nested, blocksize=64)
    parts = {f"up.weight.{key}": value for key, value in state.as_dict(packed=True).items()}
    expected = functional.dequantize_4bit(codes, state).float().numpy()
    found = read(
        tmp_path, {"up.weight": codes, **parts}, {"quant_method": "bitsandbytes", "load_in_4bit": True}
    )
    # float32 arithmetic in both, the products in another order.
    assert found == pytest.approx(expected, rel=1e-6, abs=1e-8)


def test_bitsandbytes_of_eight_bits(tmp_path):
    functional = pytest.importorskip("bitsandbytes.functional")
    weight = 0.05 * torch.randn(96, 128, generator=torch.Generator().manual_seed(0))
    codes, scales, _ = functional.int8_vectorwise_quant(weight.half())
    parts = {"up.weight": codes, "up.SCB": scales, "up.weight_format": torch.zeros((), dtype=torch.uint8)}
    expected = functional.int8_vectorwise_dequant(codes, scales).float().numpy()
    found = read(tmp_path, parts, {"quant_method": "bitsandbytes", "load_in_8bit": True})
    assert found == pytest.approx(expected, rel=1e-6, abs=1e-8)
