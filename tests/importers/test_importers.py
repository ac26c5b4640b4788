"""Every source has one importer, and importers know nothing of the rest."""

import re
from pathlib import Path

import torch
from checkpoints import ADAPTERS, ALL, changed_adapter, opened
from families import write_safetensors

from kinbase.importers import adapter, folder, low_rank, pytorch
from kinbase.importers import safetensors as one_file


def test_every_source_has_one_importer(family, tmp_path):
    torch.save({"a": torch.zeros(1)}, tmp_path / "m.pt")
    sources = {
        family["base"]: folder,
        family["base"] / "model.safetensors": one_file,
        tmp_path / "m.pt": pytorch,
        tmp_path: folder,
        ADAPTERS / "plain": adapter,
        tmp_path / "absent": None,
        family["base"] / "config.json": None,
        "x" * 5000: None,
        "nul\0": None,
        "": None,
    }
    for source, expected in sources.items():
        assert [m for m in ALL if m.recognises(str(source))] == [expected] * (expected is not None)


def test_full_weights_beside_an_adapter_win(tmp_path, family):
    changed_adapter(tmp_path)
    write_safetensors(tmp_path / "value_head.safetensors", {"v": torch.zeros(1)})
    assert [m for m in ALL if m.recognises(str(tmp_path))] == [adapter]
    write_safetensors(tmp_path / "model.safetensors", {"a": torch.zeros(1)})
    assert [m for m in ALL if m.recognises(str(tmp_path))] == [folder]
    assert [t.name for t in opened(folder, tmp_path)[0].tensors] == ["a"]


def test_importers_know_nothing_of_the_rest():
    allowed = ("kinbase.checkpoint", "kinbase.errors", "kinbase.importers")
    for module in (*ALL, low_rank):
        for name in re.findall(
            r"^(?:from|import) (kinbase[\w.]*)", Path(module.__file__).read_text(), re.MULTILINE
        ):
            assert name.startswith(allowed)
