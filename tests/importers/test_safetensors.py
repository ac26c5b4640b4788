"""The importer of safetensors files: what it reads equals what the library reads; what lies is refused."""

import json
import os
import struct
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
import safetensors
import safetensors.torch
import torch
from checkpoints import ADAPTERS, SETTINGS, data, opened, random_tensor, raw, refused
from families import TORCH_DTYPES, write_safetensors
from hypothesis import given, settings
from hypothesis import strategies as st

from kinbase.checkpoint import FLOAT_DTYPES, files
from kinbase.errors import CheckpointError
from kinbase.importers import adapter, folder, pytorch
from kinbase.importers import safetensors as one_file

OTHER_DTYPES = {
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "U16": torch.uint16,
    "U32": torch.uint32,
    "U64": torch.uint64,
    "BOOL": torch.bool,
}


def every_dtype():
    return {
        code: random_tensor(dtype, (5, 7), seed)
        for seed, (code, dtype) in enumerate({**TORCH_DTYPES, **OTHER_DTYPES}.items())
    }


def write_raw(path, header, payload=b"", length=None):
    """A .safetensors file with exactly this header (bytes, or an object) and data."""
    header = header if isinstance(header, bytes) else json.dumps(header).encode()
    Path(path).write_bytes(struct.pack("<Q", len(header) if length is None else length) + header + payload)
    return path


def entry(begin=0, end=4, dtype="F32", shape=(1,)):
    return {"dtype": dtype, "shape": list(shape), "data_offsets": [begin, end]}


# One .safetensors file.


def test_every_dtype_as_the_library_reads_it(tmp_path):
    tensors = every_dtype() | {"scalar": torch.tensor(2.5), "empty": torch.zeros(0, 3)}
    path = write_safetensors(tmp_path / "m.safetensors", tensors, {"format": "pt"})
    checkpoint, facts, rest = opened(one_file, path)
    expected = safetensors.torch.load_file(path)
    assert {t.name for t in checkpoint.tensors} == set(expected)
    for tensor in checkpoint.tensors:
        assert tensor.shape == tuple(expected[tensor.name].shape)
        assert tensor.dtype == (tensor.name if tensor.name in (*TORCH_DTYPES, *OTHER_DTYPES) else "F32")
        assert data(tensor) == raw(expected[tensor.name])
    assert checkpoint.name == "m" and rest == [] and checkpoint.skipped == {}
    assert [s.path for s in checkpoint.files] == [str(path.resolve())]
    assert facts.parameters == 35 * len(FLOAT_DTYPES) + 1
    checkpoint.close()


@pytest.fixture(scope="module")
def ranged(tmp_path_factory):
    """{name: (tensor, its bytes)} from a safetensors file, a torch file (one tensor transposed) and an adapter."""
    path = tmp_path_factory.mktemp("ranged")
    tensors = every_dtype()
    write_safetensors(path / "m.safetensors", tensors)
    torch.save({"t": tensors["F16"].t(), "p": tensors["BF16"], "s": tensors["F32"][1:4, 2:5]}, path / "m.bin")
    found = {}
    for checkpoint in (one_file.checkpoint(path / "m.safetensors"), pytorch.checkpoint(path / "m.bin")):
        found |= {t.name: (t, data(t)) for t in checkpoint.tensors}
    for tensor in opened(adapter, ADAPTERS / "rslora")[0].tensors:
        found[tensor.name] = (tensor, data(tensor))
    return found


@SETTINGS
@given(st.data())
def test_any_range_of_bytes(ranged, draw):
    tensor, whole = ranged[draw.draw(st.sampled_from(sorted(ranged)))]
    start = draw.draw(st.integers(0, tensor.nbytes))
    length = draw.draw(st.integers(0, tensor.nbytes - start))
    assert data(tensor, start, length) == whole[start : start + length]
    with pytest.raises(ValueError):
        data(tensor, start, tensor.nbytes - start + 1)


def test_the_header_alone_is_read_without_heavy_imports(tmp_path):
    path = write_safetensors(tmp_path / "m.safetensors", {"a": torch.zeros(2)})
    code = (
        "import sys; from kinbase.importers import safetensors, folder\n"
        f"list(safetensors.open({str(path)!r}))\n"
        "print([m for m in ('torch', 'numpy', 'huggingface_hub', 'duckdb', 'safetensors') if m in sys.modules])"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[]"


A = entry()
LYING = {
    "empty file": (b"", None, "no safetensors header"),
    "no header": (b"\x01\x02", None, "no safetensors header"),
    "huge length": (struct.pack("<Q", 2**63) + b"{}", None, "claims a header of"),
    "length beyond the file": (struct.pack("<Q", 50) + b"{}", None, "but has 2 after"),
    "zero length": (struct.pack("<Q", 0), None, "not valid JSON"),
    "not JSON": (b'{"a":', b"", "not valid JSON"),
    "not an object": (b"[]", b"", "not a JSON object"),
    "trailing text": (b"{}\0\0", b"", "not valid JSON"),
    "not UTF-8": (b'{"\xff":1}', b"", "not UTF-8"),
    "UTF-16": ('{"a":1}'.encode("utf-16"), b"", "not UTF-8"),
    "half a surrogate pair": (b'{"\\ud800":1}', b"", "not UTF-8"),
    "deep nesting": (b'{"a":' + b"[" * 200_000 + b"]" * 200_000 + b"}", b"", "nested too deeply"),
    "endless number": (b'{"a":' + b"1" * 10_000 + b"}", b"", "not valid JSON"),
    "NaN": (b'{"a":{"dtype":"F32","shape":[NaN],"data_offsets":[0,4]}}', bytes(4), "NaN is not JSON"),
    "key twice": (b'{"a":%s,"a":%s}' % ((json.dumps(A).encode(),) * 2), bytes(4), "'a' occurs twice"),
    "dtype twice": (
        b'{"a":{"dtype":"F32","dtype":"I32","shape":[1],"data_offsets":[0,4]}}',
        bytes(4),
        "twice",
    ),
    "metadata no text": ({"__metadata__": {"a": 1}}, b"", "metadata that is not text"),
    "metadata no object": ({"__metadata__": [1]}, b"", "metadata that is not text"),
    "no object": ({"a": 1}, b"", "not described by an object"),
    "no dtype": ({"a": {"shape": [1], "data_offsets": [0, 4]}}, bytes(4), "no dtype"),
    "bool as size": ({"a": A | {"shape": [True]}}, bytes(4), "shape"),
    "float as size": ({"a": A | {"shape": [1.0]}}, bytes(4), "shape"),
    "negative size": ({"a": A | {"shape": [-1]}}, bytes(4), "shape"),
    "shape no list": ({"a": A | {"shape": 1}}, bytes(4), "shape"),
    "float offset": ({"a": A | {"data_offsets": [0, 4.0]}}, bytes(4), "data_offsets"),
    "bool offset": ({"a": A | {"data_offsets": [False, 4]}}, bytes(4), "data_offsets"),
    "negative offset": ({"a": A | {"data_offsets": [-4, 0]}}, bytes(4), "data_offsets"),
    "one offset": ({"a": A | {"data_offsets": [4]}}, bytes(4), "data_offsets"),
    "offsets reversed": ({"a": A | {"data_offsets": [4, 0]}}, bytes(4), "lies at 4 to 0"),
    "beyond the data": ({"a": entry(0, 8, shape=[2])}, bytes(4), "lies at 0 to 8 of 4"),
    "product overflows": ({"a": entry(0, 0, shape=[2**40, 2**40])}, b"", "overflows"),
    "product overflows before a zero": ({"a": entry(0, 0, shape=[2**40, 2**40, 0])}, b"", "overflows"),
    "size overflows": ({"a": entry(0, 0, shape=[2**64, 0])}, b"", "shape"),
    "length differs": ({"a": entry(0, 4, shape=[2])}, bytes(4), "takes 4 bytes"),
    "overlap": ({"a": entry(0, 8, shape=[2]), "b": entry(4, 12, shape=[2])}, bytes(12), "overlaps"),
    "same place": ({"a": entry(), "b": entry()}, bytes(4), "overlaps"),
    "hole": ({"a": entry(), "b": entry(8, 12)}, bytes(12), "hole"),
    "trailing data": ({"a": entry()}, bytes(5), "take 4 bytes and 5 follow"),
    "truncated data": ({"a": entry()}, bytes(3), "truncated, or lying"),
}


@pytest.mark.parametrize("case", LYING)
def test_a_lying_header_is_refused(case, tmp_path):
    header, payload, words = LYING[case]
    path = tmp_path / "lying.safetensors"
    if payload is None:
        path.write_bytes(header)
    else:
        write_raw(path, header, payload)
    refused(one_file, path, words)


def test_a_hostile_name_is_shown_escaped(tmp_path):
    path = write_raw(tmp_path / "m.safetensors", {"\x1b]0;owned\x07\n\u202e" + "x" * 5000: 1})
    message = refused(one_file, path, r"\x1b]0;owned\x07\n\u202e")
    assert len(message) < 600


def test_a_dtype_without_arithmetic_is_skipped_and_the_file_goes_on(tmp_path):
    header = {
        "a": entry(0, 4),
        "b": entry(4, 5, "F4", [2]),
        "c": entry(5, 8, "F6_E2M3", [4]),
        "d": entry(8, 9, "X9", [1]),
    }
    checkpoint, facts, _ = opened(one_file, write_raw(tmp_path / "m.safetensors", header, bytes(9)))
    assert [t.name for t in checkpoint.tensors] == ["a"] and facts.parameters == 1
    assert checkpoint.skipped == {
        "b": "dtype 'F4' is not read",
        "c": "dtype 'F6_E2M3' is not read",
        "d": "dtype 'X9' is not read",
    }
    refused(
        one_file, write_raw(tmp_path / "n.safetensors", {"b": entry(0, 1, "F4", [3])}, bytes(1)), "takes 1"
    )


@settings(SETTINGS, max_examples=300)
@given(position=st.integers(0, 10_000), value=st.binary(min_size=1, max_size=3))
def test_a_damaged_header_raises_nothing_else(position, value):
    """Whatever is written over a header: it is refused, or it is one the real library takes too."""
    tensors = {"a": torch.zeros(2, 3), "b": torch.zeros(4, dtype=torch.int8)}
    content = bytearray(safetensors.torch.save(tensors, {"k": "v"}))
    position %= len(content) - 28
    content[position : position + len(value)] = value
    with tempfile.NamedTemporaryFile(suffix=".safetensors") as file:
        file.write(content)
        file.flush()
        try:
            checkpoint = one_file.checkpoint(file.name)
        except CheckpointError:
            return
        for tensor in checkpoint.tensors:
            data(tensor)
        checkpoint.close()
        if not checkpoint.skipped:
            with safetensors.safe_open(file.name, "pt") as library:
                assert set(library.keys()) == {t.name for t in checkpoint.tensors}


def test_a_file_truncated_after_it_was_opened(tmp_path):
    path = write_safetensors(tmp_path / "m.safetensors", {"a": torch.zeros(1000)})
    late, early = one_file.checkpoint(path), one_file.checkpoint(path)
    data(early.tensors[0])  # its descriptor is open
    os.truncate(path, 1000)
    for checkpoint in (late, early):
        with pytest.raises(CheckpointError, match=r"m\.safetensors' was truncated since it was opened"):
            data(checkpoint.tensors[0])
        checkpoint.close()


def test_a_file_exchanged_after_it_was_opened(tmp_path):
    path = write_safetensors(tmp_path / "m.safetensors", {"a": torch.zeros(1000)})
    checkpoint = one_file.checkpoint(path)
    write_safetensors(path, {"a": torch.zeros(2000)})
    with pytest.raises(CheckpointError, match="was changed since it was opened"):
        data(checkpoint.tensors[0])


def descriptors():
    return sum(1 for _ in Path("/dev/fd").iterdir())


def test_close_releases_every_descriptor(tmp_path):
    for shard in range(30):
        write_safetensors(tmp_path / f"{shard:02}.safetensors", {f"t{shard}": torch.zeros(9)})
    before = descriptors()
    checkpoint, _, _ = opened(folder, tmp_path)
    assert descriptors() == before
    for tensor in checkpoint.tensors:
        data(tensor)
    assert descriptors() == before + files.KEPT_OPEN
    checkpoint.close()
    assert descriptors() == before


def test_what_is_no_regular_file(tmp_path):
    os.mkfifo(tmp_path / "pipe.safetensors")
    (tmp_path / "loop.safetensors").symlink_to("loop.safetensors")
    for name, words in {
        "pipe.safetensors": "not a regular file",
        "loop.safetensors": "cannot read",
        "absent.safetensors": "no such file",
        "nul\0.safetensors": "not a file name",
    }.items():
        assert not one_file.recognises(str(tmp_path / name))
        with pytest.raises(CheckpointError, match=words):
            one_file.checkpoint(tmp_path / name)
