"""The importer of files written by torch.save: read without running what they hold."""

import os
import pickle
import tempfile
import warnings
import zipfile

import pytest
import torch
from checkpoints import SETTINGS, data, random_tensor, raw, refused
from hypothesis import given, settings
from hypothesis import strategies as st

from kinbase.errors import CheckpointError
from kinbase.importers import pytorch


class Payload:
    """Unpickled carelessly, it makes a folder."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (self.path,)


@pytest.mark.parametrize("legacy", [False, True])
def test_code_in_a_pickle_is_refused_and_not_run(tmp_path, legacy):
    ran = tmp_path / "ran"
    path = tmp_path / "evil.bin"
    torch.save({"w": torch.zeros(2), "x": Payload(str(ran))}, path, _use_new_zipfile_serialization=not legacy)
    refused(pytorch, path, *(["old format"] if legacy else ["it wants to call 'posix.mkdir'", "refused"]))
    path.write_bytes(pickle.dumps(Payload(str(ran))))
    refused(pytorch, path)
    assert not ran.exists()
    pickle.loads(path.read_bytes())  # the payload is live
    assert ran.exists()


def test_torch_files_that_are_none(tmp_path):
    path = tmp_path / "m.pt"
    for value, words in (
        ([1, 2], "holds no state dict"),
        ({"a": 1}, "holds no state dict"),
        ({}, "holds no state dict"),
        (torch.nn.Linear(2, 2), "refused"),
        ({"a": torch.zeros(1).expand(10**6, 10**6)}, "more than the file holds"),
        ({"\ud800": torch.zeros(1)}, "whose name is not text"),
    ):
        torch.save(value, path)
        refused(pytorch, path, words)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # deprecated, and still found in old repositories
        torch.jit.script(torch.nn.Linear(2, 2)).save(path)
    refused(pytorch, path)
    path.write_bytes(b"")
    refused(pytorch, path, "truncated or in torch's old format")
    torch.save({"a": torch.zeros(1000)}, path)
    os.truncate(path, 2000)
    refused(pytorch, path, "truncated or in torch's old format")


def rewritten(source, target, change, compression=zipfile.ZIP_STORED):
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(target, "w", compression) as new:
        for name in old.namelist():
            content = change(name, old.read(name))
            if content is not None:
                new.writestr(name, content)
    return target


def test_zips_that_torch_did_not_write(tmp_path):
    torch.save({"a": torch.zeros(100_000)}, tmp_path / "good.bin")
    path = tmp_path / "bad.bin"

    def same(name, content):
        return content

    rewritten(tmp_path / "good.bin", path, same, zipfile.ZIP_DEFLATED)
    assert path.stat().st_size < 10_000
    refused(pytorch, path, "compressed record")
    rewritten(tmp_path / "good.bin", path, lambda n, c: c[:100] if n.endswith("data/0") else c)
    refused(pytorch, path, "beyond its storage")
    rewritten(tmp_path / "good.bin", path, lambda n, c: b"big" if n.endswith("byteorder") else c)
    refused(pytorch, path, "big-endian")
    rewritten(tmp_path / "good.bin", path, lambda n, c: None if n.endswith("data/0") else c)
    refused(pytorch, path)


@settings(SETTINGS, max_examples=60)
@given(position=st.integers(0, 100_000), value=st.binary(min_size=1, max_size=4))
def test_a_damaged_torch_file_raises_nothing_else(position, value):
    with tempfile.NamedTemporaryFile(suffix=".bin") as file:
        torch.save({"a": torch.zeros(2, 3), "b": torch.ones(3).half()}, file)
        file.seek(position % file.tell())
        file.write(value)
        file.flush()
        try:
            checkpoint = pytorch.checkpoint(file.name)
        except CheckpointError as error:
            assert str(error).isprintable()
            return
        for tensor in checkpoint.tensors:
            data(tensor)
        checkpoint.close()


def test_layouts_and_values_of_a_torch_file(tmp_path):
    images = random_tensor(torch.float32, (2, 3, 4, 5))
    state = {
        "last": images.to(memory_format=torch.channels_last),
        "flat": images[:, 1],
        "scalar": torch.tensor(1.5),
        "empty": torch.zeros(0, 2),
        "spread": torch.tensor([1.0, 2.0]).expand(3, 2),
    }
    torch.save(
        state
        | {"step": 3, "sparse": torch.eye(2).to_sparse(), "wave": torch.zeros(2, dtype=torch.complex64)},
        tmp_path / "m.pt",
    )
    checkpoint = pytorch.checkpoint(tmp_path / "m.pt")
    assert {t.name: data(t) for t in checkpoint.tensors} == {name: raw(t) for name, t in state.items()}
    assert checkpoint.skipped == {
        "step": "not a tensor",
        "sparse": "sparse or quantised",
        "wave": "dtype complex64 is not read",
    }
