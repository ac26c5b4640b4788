"""Checkpoints opened and compared as plain arrays, and files written with what is wrong in them."""

import hashlib
import json
from pathlib import Path

import pytest
import safetensors
import safetensors.torch
import torch
from families import write_safetensors
from hypothesis import settings

from kinbase.checkpoint import Checkpoint, Facts
from kinbase.errors import CheckpointError
from kinbase.importers import adapter, folder, pytorch
from kinbase.importers import safetensors as one_file
from kinbase.importers.hub import cache as hub_cache

ALL = (adapter, folder, hub_cache, pytorch, one_file)
ADAPTERS = Path(__file__).parent / "data" / "adapters"
SETTINGS = settings(deadline=None, database=None)


def opened(module, source):
    """(checkpoint or None, facts, the other records) of a source."""
    records = list(module.open(str(source)))
    (facts,) = [r for r in records if isinstance(r, Facts) and (r.parameters is not None or r.relation)]
    checkpoint = next((r for r in records if isinstance(r, Checkpoint)), None)
    return checkpoint, facts, [r for r in records if r is not checkpoint and r is not facts]


def data(tensor, start=0, length=None):
    out = bytearray(tensor.nbytes - start if length is None else length)
    tensor.read(start, memoryview(out))
    return bytes(out)


def contents(checkpoint):
    """{name: (dtype, shape, digest of the bytes)}, to compare checkpoints by."""
    return {t.name: (t.dtype, t.shape, hashlib.sha256(data(t)).hexdigest()) for t in checkpoint.tensors}


def raw(tensor):
    return tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()


def random_tensor(dtype, shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator).mul(100).to(dtype)


def refused(module, source, *words):
    """The one line with which a source is refused; it has to name the source and hold `words`."""
    with pytest.raises(CheckpointError) as caught:
        for record in module.open(str(source)):
            if isinstance(record, Checkpoint):
                record.close()
    message = str(caught.value)
    assert message.isprintable(), message
    assert Path(source).name in message
    for word in words:
        assert word in message, message
    return message


def shard(source, target, count=3, index=True):
    """The model.safetensors of `source` as `count` shards in `target`."""
    tensors = safetensors.torch.load_file(Path(source) / "model.safetensors")
    weight_map = {}
    for number in range(count):
        name = f"model-{number + 1:05}-of-{count:05}.safetensors"
        part = {key: tensors[key] for key in sorted(tensors)[number::count]}
        write_safetensors(Path(target) / name, part)
        weight_map |= dict.fromkeys(part, name)
    if index:
        write_index(target, weight_map)
    return weight_map


def write_index(target, weight_map, name="model.safetensors.index.json"):
    (Path(target) / name).write_text(json.dumps({"metadata": {"total_size": 1}, "weight_map": weight_map}))


def quantised_tensors(method):
    plain_part = {"model.norm.weight": torch.ones(4)}
    byte = torch.ones(4, 4, dtype=torch.uint8)
    word = torch.ones(4, 4, dtype=torch.int32)
    f8 = torch.ones(4, 4).to(torch.float8_e4m3fn)
    return plain_part | {
        "gptq": {
            "l.qweight": word,
            "l.qzeros": word + 1,
            "l.scales": torch.ones(4),
            "l.g_idx": torch.ones(4).int(),
        },
        "bitsandbytes": {
            "l.weight": byte,
            "l.weight.absmax": torch.ones(4),
            "l.weight.quant_map": torch.ones(16),
        },
        "int8": {"l.weight": torch.ones(4, 4).to(torch.int8), "l.SCB": 127 * torch.arange(1.0, 5)},
        "fp8": {"l.weight": f8, "l.weight_scale_inv": torch.full((1, 1), 3.0)},
        "compressed-tensors": {"l.weight": f8, "l.weight_scale": torch.tensor([0.5])},
        "mxfp4": {"l.up_blocks": byte, "l.up_scales": byte + 1},
    }.get(method, {"l.weight": f8})


def changed_adapter(target, *, drop=None, add=None, **config):
    source = ADAPTERS / "plain"
    factors = safetensors.torch.load_file(source / "adapter_model.safetensors")
    factors = {k: v for k, v in factors.items() if drop is None or drop not in k} | (add or {})
    write_safetensors(target / "adapter_model.safetensors", factors)
    content = json.loads((source / "adapter_config.json").read_text()) | config
    (target / "adapter_config.json").write_text(json.dumps(content))
    return target
