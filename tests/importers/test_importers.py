"""The importers of weights: what they read equals what the real libraries read; what lies is refused."""

import hashlib
import json
import math
import os
import pickle
import re
import struct
import subprocess
import sys
import tempfile
import warnings
import zipfile
from pathlib import Path

import numpy as np
import pytest
import safetensors
import safetensors.torch
import torch
from families import TORCH_DTYPES, make_family, write_safetensors
from hypothesis import given, settings
from hypothesis import strategies as st

from kinbase.checkpoint import FLOAT_DTYPES, Alias, Checkpoint, Edge, Facts, Problem, files
from kinbase.errors import CheckpointError
from kinbase.importers import adapter, folder, low_rank, pytorch
from kinbase.importers import safetensors as one_file
from kinbase.importers.hub import cache as hub_cache

ALL = (adapter, folder, hub_cache, pytorch, one_file)
ADAPTERS = Path(__file__).parents[1] / "data" / "adapters"
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


def every_dtype():
    return {
        code: random_tensor(dtype, (5, 7), seed)
        for seed, (code, dtype) in enumerate({**TORCH_DTYPES, **OTHER_DTYPES}.items())
    }


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


# Folders.


@pytest.fixture(scope="module")
def family(tmp_path_factory):
    return make_family(tmp_path_factory.mktemp("family"))


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


def test_a_folder_says_what_its_config_says(family):
    checkpoint, facts, rest = opened(folder, family["ft_a"])
    assert checkpoint.name == "ft_a" and checkpoint.source == str(family["ft_a"]) and rest == []
    assert facts == Facts(
        architecture="LlamaForCausalLM",
        dtype="bfloat16",
        parameters=sum(
            t.numel() for t in safetensors.torch.load_file(family["ft_a"] / "model.safetensors").values()
        ),
    )
    assert opened(folder, f"{family['ft_a']}/../ft_a/")[0].name == "ft_a"


@pytest.mark.parametrize("index", [True, False])
def test_shards_equal_the_whole(family, tmp_path, index):
    shard(family["base"], tmp_path, index=index)
    whole, _, _ = opened(folder, family["base"])
    sharded, _, _ = opened(folder, tmp_path)
    assert contents(sharded) == contents(whole)
    assert len(sharded.files) == 3


def test_torch_files_equal_safetensors(family, tmp_path):
    tensors = safetensors.torch.load_file(family["base"] / "model.safetensors")
    expected = contents(opened(folder, family["base"])[0])
    for name, value in {
        "pytorch_model.bin": tensors,
        "nested.pt": {"state_dict": tensors, "epoch": 3},
        "nested.pth": {"model": {k: torch.nn.Parameter(v) for k, v in tensors.items()}, "args": {"lr": 1.0}},
    }.items():
        torch.save(value, tmp_path / name)
        assert contents(opened(pytorch, tmp_path / name)[0]) == expected
    assert contents(opened(folder, tmp_path)[0]) == expected
    names = sorted(tensors)
    (tmp_path / "shards").mkdir()
    weight_map = {}
    for number, part in enumerate((names[:7], names[7:])):
        file = f"pytorch_model-{number + 1:05}-of-00002.bin"
        torch.save({name: tensors[name] for name in part}, tmp_path / "shards" / file)
        weight_map |= dict.fromkeys(part, file)
    write_index(tmp_path / "shards", weight_map, "pytorch_model.bin.index.json")
    torch.save({"step": torch.tensor(1)}, tmp_path / "shards" / "optimizer.pt")
    assert contents(opened(folder, tmp_path / "shards")[0]) == expected


@pytest.mark.parametrize(
    "name", ["../base/model.safetensors", "/etc/passwd", "sub/model.safetensors", "..", "", "a\\b", "a\0b"]
)
def test_an_index_may_not_point_elsewhere(family, tmp_path, name):
    (tmp_path / "sub").mkdir()
    write_safetensors(tmp_path / "sub" / "model.safetensors", {"a": torch.zeros(1)})
    write_index(tmp_path, {"a": name})
    refused(folder, tmp_path, "not directly inside the folder")


def test_a_link_may_not_point_elsewhere(family, tmp_path):
    (tmp_path / "model.safetensors").symlink_to(family["base"] / "model.safetensors")
    refused(folder, tmp_path, "a link out of its folder")
    (tmp_path / "model.safetensors").unlink()
    write_safetensors(tmp_path / "weights.st", {"a": torch.zeros(1)})
    (tmp_path / "model.safetensors").symlink_to("weights.st")
    assert len(opened(folder, tmp_path)[0].tensors) == 1


def test_index_and_shards_have_to_agree(family, tmp_path):
    weight_map = shard(family["base"], tmp_path)
    first = "model-00001-of-00003.safetensors"
    write_index(tmp_path, weight_map | {"extra": first})
    refused(folder, tmp_path, first, "does not hold the tensor 'extra'")
    write_index(tmp_path, {k: v for k, v in weight_map.items() if k != "lm_head.weight"})
    refused(folder, tmp_path, "holds, against the index, the tensor 'lm_head.weight'")
    write_index(tmp_path, weight_map)
    (tmp_path / first).unlink()
    refused(folder, tmp_path, f"the shard '{first}', which is missing")
    (tmp_path / "model.safetensors.index.json").unlink()
    refused(folder, tmp_path, "2 of the 3 shards of 'model'")


@pytest.mark.parametrize(
    ("index", "words"),
    [
        (b"{}", "no weight_map"),
        (b'{"weight_map": {}}', "no weight_map"),
        (b'{"weight_map": {"a": 3}}', "gives 'a' no file"),
        (b'{"weight_map": {"a": "x", "a": "y"}}', "'a' occurs twice"),
        (b"[" * 100_000, "nested too deeply"),
        (b"\xff\xfe", "not UTF-8"),
        (b'{"weight_map": ' + b" " * files.CONFIG_LIMIT + b"}", "larger than"),
    ],
    ids=lambda value: str(value)[:20],
)
def test_a_malformed_index_is_refused(tmp_path, index, words):
    (tmp_path / "model.safetensors.index.json").write_bytes(index)
    refused(folder, tmp_path, words)


@pytest.mark.parametrize(
    ("config", "words"),
    [
        (b"[]", "not a JSON object"),
        (b"{", "not valid JSON"),
        (b'{"a":' * 100_000, "nested too deeply"),
        (b"\xff", "not UTF-8"),
        (b" " * (files.CONFIG_LIMIT + 1), "larger than"),
    ],
    ids=lambda value: str(value)[:20],
)
def test_a_malformed_config_is_refused(tmp_path, config, words):
    write_safetensors(tmp_path / "model.safetensors", {"a": torch.zeros(1)})
    (tmp_path / "config.json").write_bytes(config)
    refused(folder, tmp_path, "config.json", words)


def test_a_config_of_the_wrong_types_says_nothing(tmp_path):
    write_safetensors(tmp_path / "model.safetensors", {"a": torch.zeros(1)})
    for config in (
        '{"architectures": [3], "torch_dtype": {}, "quantization_config": 1, "tie_word_embeddings": "yes"}',
        '{"architectures": {"a": 1}, "text_config": [], "time_step_limit": [0.0, Infinity]}',
        '{"architectures": ["a\\u0000b"]}',
    ):
        (tmp_path / "config.json").write_text(config)
        checkpoint, facts, _ = opened(folder, tmp_path)
        assert len(checkpoint.tensors) == 1 and facts == Facts(dtype="float32", parameters=1)


def test_a_folder_without_weights(tmp_path):
    assert not folder.recognises(str(tmp_path))
    refused(folder, tmp_path, "holds no weights")
    (tmp_path / "config.json").write_text("{}")
    assert folder.recognises(str(tmp_path))
    refused(folder, tmp_path, "holds no weights", ".safetensors")


def test_loose_files_that_contradict_each_other(tmp_path):
    write_safetensors(tmp_path / "x.safetensors", {"a": torch.zeros(1)})
    write_safetensors(tmp_path / "y.safetensors", {"a": torch.zeros(1)})
    refused(folder, tmp_path, "'x.safetensors' and 'y.safetensors' both hold 'a'")


# Tied weights.


def tied_folder(path, config, head=None):
    table = random_tensor(torch.bfloat16, (6, 4))
    write_safetensors(
        path / "model.safetensors",
        {"model.embed_tokens.weight": table, "lm_head.weight": table.clone() if head is None else head},
    )
    (path / "config.json").write_text(json.dumps(config))
    return opened(folder, path)


def test_a_tied_head_counts_once(tmp_path):
    reason = {"lm_head.weight": "tied to model.embed_tokens.weight"}
    other = random_tensor(torch.bfloat16, (6, 4), seed=1)
    for config, head, skipped in (
        ({"tie_word_embeddings": True}, None, reason),
        ({"tie_word_embeddings": True}, other, reason),
        ({"text_config": {"tie_word_embeddings": True}}, None, reason),
        ({}, None, reason),  # the class's default decides, and the bytes show it
        ({}, other, {}),
        ({"tie_word_embeddings": False}, None, {}),
        ({"tie_word_embeddings": True}, random_tensor(torch.bfloat16, (7, 4)), {}),
    ):
        checkpoint, facts, _ = tied_folder(tmp_path, config, head)
        assert checkpoint.skipped == skipped
        assert facts.parameters == sum(t.numel for t in checkpoint.tensors)
        assert len(checkpoint.tensors) == 2 - len(skipped)


def test_copies_of_a_shared_embedding_count_once(tmp_path):
    table = random_tensor(torch.float32, (6, 4))
    names = ("decoder.embed_tokens.weight", "encoder.embed_tokens.weight", "shared.weight", "lm_head.weight")
    write_safetensors(tmp_path / "model.safetensors", {name: table.clone() for name in names})
    checkpoint, _, _ = opened(folder, tmp_path)
    assert [t.name for t in checkpoint.tensors] == ["shared.weight"]
    assert set(checkpoint.skipped.values()) == {"tied to shared.weight"}


def test_tied_storages_of_a_torch_file_count_once(tmp_path):
    table = random_tensor(torch.bfloat16, (6, 4))
    state = {
        "lm_head.weight": table,
        "model.embed_tokens.weight": table,
        "part": table[2:],
        "turned": table.t(),
    }
    torch.save(state, tmp_path / "m.bin")
    checkpoint, _, _ = opened(pytorch, tmp_path / "m.bin")
    assert checkpoint.skipped == {"lm_head.weight": "tied to model.embed_tokens.weight"}
    assert {t.name: data(t) for t in checkpoint.tensors} == {
        name: raw(state[name]) for name in state if name != "lm_head.weight"
    }


# Quantised weights.


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
        "int8": {"l.weight": torch.ones(4, 4).to(torch.int8), "l.SCB": torch.ones(4)},
        "fp8": {"l.weight": f8, "l.weight_scale_inv": torch.ones(1, 1)},
        "compressed-tensors": {"l.weight": f8, "l.weight_scale": torch.ones(1)},
        "mxfp4": {"l.up_blocks": byte, "l.up_scales": byte + 1},
    }.get(method, {"l.weight": f8})


@pytest.mark.parametrize("method", ["gptq", "bitsandbytes", "int8", "fp8", "compressed-tensors", "mxfp4"])
def test_quantised_weights_are_for_lineage_only(tmp_path, method):
    path = tmp_path / "model-quantised"
    write_safetensors(path / "model.safetensors", quantised_tensors(method))
    config = {"architectures": ["L"], "quantization_config": {"quant_method": method}}
    (path / "config.json").write_text(json.dumps(config))
    checkpoint, facts, (problem,) = opened(folder, path)
    assert checkpoint is None
    assert facts == Facts("model-quantised", architecture="L", relation="quantized")
    assert isinstance(problem, Problem) and f"quantised ('{method}')" in problem.message
    assert opened(one_file, path / "model.safetensors")[0] is None  # without the config too


def test_plain_fp8_has_weights(tmp_path):
    write_safetensors(tmp_path / "model.safetensors", quantised_tensors("plain"))
    (tmp_path / "config.json").write_text('{"quantization_config": {"quant_method": "fp8"}}')
    checkpoint, facts, _ = opened(folder, tmp_path)
    assert len(checkpoint.tensors) == 2 and facts.parameters == 20 and facts.dtype == "float8_e4m3fn"


# Torch files.


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
    refused(pytorch, path, *(["old format"] if legacy else ["it wants to run 'posix.mkdir'", "refused"]))
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


# Adapters made by PEFT 0.21.2 (tests/data/adapters). Their deltas, from the definition:


def by_definition(a, b, scale, turned=False):
    a, b = a.to(torch.float64).numpy(), b.to(torch.float64).numpy()
    delta = scale * np.einsum("or,ri->oi", b.reshape(b.shape[0], -1), a.reshape(a.shape[0], -1))
    return delta.T if turned else delta.reshape(b.shape[0], *a.shape[1:])


def scale_of(case, module, rank):
    """alpha / r of each adapter as it was made."""
    if case == "rslora":
        return 4 / math.sqrt(3)
    if case == "patterns":
        alpha = {"q_proj": 6, "up_proj": 7}.get(module.rpartition(".")[2], 4)
        assert rank == {"k_proj": 1, "up_proj": 3}.get(module.rpartition(".")[2], 2)
        return alpha / rank
    return {"plain": 5 / 2}.get(case, 3 / 2)


@pytest.mark.parametrize("case", ["plain", "rslora", "patterns", "embedding", "conv1d", "conv2d", "saved"])
def test_the_delta_of_an_adapter(case):
    factors = safetensors.torch.load_file(ADAPTERS / case / "adapter_model.safetensors")
    expected = {}
    for name, a in factors.items():
        if "_A" in name:
            module = re.sub(r"\.lora_(embedding_)?A(\.weight)?$", "", name).removeprefix("base_model.model.")
            turned = "embedding" in name or case == "conv1d"
            expected[f"{module}.weight"] = by_definition(
                a, factors[name.replace("_A", "_B")], scale_of(case, module, len(a)), turned
            )
    checkpoint, facts, (edge, *rest) = opened(adapter, ADAPTERS / case)
    assert checkpoint.delta_of == "org/base" and checkpoint.name == case
    assert {t.name for t in checkpoint.tensors} == set(expected)
    for tensor in checkpoint.tensors:
        assert tensor.dtype == "F64" and tensor.shape == expected[tensor.name].shape
        delta = np.frombuffer(data(tensor)).reshape(tensor.shape)
        assert np.allclose(delta, expected[tensor.name], rtol=1e-13, atol=1e-13)
    assert (edge.parent, edge.relation, edge.evidence, edge.child) == ("org/base", "adapter", "adapter", None)
    assert edge.detail["r"] == (3 if case == "rslora" else 2)
    assert facts.relation == "adapter" and facts.dtype == "float32"
    if case == "saved":
        assert checkpoint.skipped == {
            "base_model.model.lm_head.weight": "a whole weight, not a change of the base's"
        }
        assert isinstance(rest[0], Problem)
    else:
        assert checkpoint.skipped == {} and rest == []
        assert facts.parameters == sum(t.numel() for t in factors.values())
    assert len(checkpoint.files) == 2
    checkpoint.close()


def test_an_adapter_in_a_pickle_and_under_an_adapters_name(tmp_path):
    source = ADAPTERS / "plain"
    factors = safetensors.torch.load_file(source / "adapter_model.safetensors")
    (tmp_path / "adapter_config.json").write_bytes((source / "adapter_config.json").read_bytes())
    torch.save(
        {k.replace(".weight", ".default.weight"): v for k, v in factors.items()},
        tmp_path / "adapter_model.bin",
    )
    (tmp_path / "training_args.bin").write_bytes(b"?")
    assert adapter.recognises(str(tmp_path)) and not folder.recognises(str(tmp_path))
    assert contents(opened(adapter, tmp_path)[0]) == contents(opened(adapter, source)[0])


def changed_adapter(target, *, drop=None, add=None, **config):
    source = ADAPTERS / "plain"
    factors = safetensors.torch.load_file(source / "adapter_model.safetensors")
    factors = {k: v for k, v in factors.items() if drop is None or drop not in k} | (add or {})
    write_safetensors(target / "adapter_model.safetensors", factors)
    content = json.loads((source / "adapter_config.json").read_text()) | config
    (target / "adapter_config.json").write_text(json.dumps(content))
    return target


@pytest.mark.parametrize("case", ["dora", "pissa", "ia3"])
def test_adapters_that_are_more_than_two_factors(case):
    assert adapter.recognises(str(ADAPTERS / case))
    words = {"dora": "DoRA", "pissa": "'pissa' changed the base", "ia3": "'IA3'"}[case]
    refused(adapter, ADAPTERS / case, words)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"init_lora_weights": "olora"}, "'olora' changed the base"),
        ({"init_lora_weights": 1}, "changed the base"),
        ({"layer_replication": [[0, 1]]}, "copies layers"),
        ({"peft_type": "PREFIX_TUNING"}, "'PREFIX_TUNING'"),
        ({"peft_type": None}, "of type 'None'"),
        ({"base_model_name_or_path": None}, "base_model_name_or_path"),
        ({"base_model_name_or_path": "a\nb"}, "base_model_name_or_path"),
        ({"r": 4}, "r='4'"),
        ({"lora_alpha": "5"}, "is no number"),
        ({"lora_alpha": True}, "is no number"),
        ({"alpha_pattern": [1]}, "alpha_pattern is no object"),
        ({"alpha_pattern": {"(a+)+b": 1}}, "no simple expression"),
        ({"alpha_pattern": {"a*a*a*a*a*b": 1}}, "no simple expression"),
        ({"alpha_pattern": {"(": 1}}, "no simple expression"),
        ({"drop": "q_proj.lora_B"}, "only one factor of 'model.layers.0.self_attn.q_proj'"),
        ({"drop": "lora_"}, "no LoRA factors"),
        ({"add": {"x.lora_magnitude_vector.weight": torch.ones(2)}}, "plain LoRA has not"),
        (
            {"add": {"x.lora_A.weight": torch.ones(2, 3), "x.lora_B.weight": torch.ones(3, 3)}},
            "do not multiply",
        ),
        ({"add": {"x.lora_A.weight": torch.ones(2), "x.lora_B.weight": torch.ones(3, 2)}}, "do not multiply"),
        (
            {"add": {"x.lora_A.a.weight": torch.ones(2, 3), "x.lora_A.weight": torch.ones(2, 3)}},
            "two adapters",
        ),
        ({"add": {"x.lora_A.weight": torch.ones(2, 3).to(torch.int8)}}, "is I8"),
    ],
)
def test_adapters_that_are_refused(tmp_path, change, words):
    refused(adapter, changed_adapter(tmp_path, **change), words)


def test_an_adapter_without_weights(tmp_path):
    changed_adapter(tmp_path)
    (tmp_path / "adapter_model.safetensors").unlink()
    refused(adapter, tmp_path, "holds no adapter_model.safetensors")


def factor(name, values):
    content = memoryview(values.tobytes())

    def read(start, out):
        out[:] = content[start : start + len(out)]

    return low_rank.Tensor(name, "F32", values.shape, read)


@settings(SETTINGS, max_examples=40)
@given(st.integers(1, 40), st.integers(1, 9), st.integers(1, 70), st.integers(0, 2**32), st.booleans())
def test_a_product_has_the_same_bits_however_it_is_cut(rows, rank, columns, seed, transposed):
    """Each row read alone equals the whole; both are right, with columns of A and B up to 2**15 apart in size."""
    random = np.random.default_rng(seed)
    sizes = 2.0 ** random.integers(-15, 16, rank)
    left = (random.standard_normal((rows, rank)) * sizes).astype(np.float32)
    right = (random.standard_normal((rank, columns)) / sizes[:, None]).astype(np.float32)
    stored = (left.T.copy(), right.T.copy()) if transposed else (left, right)
    product = low_rank.Product(factor("l", stored[0]), factor("r", stored[1]), rank, 1 / 3, transposed)
    whole = low_rank.Tensor("d", "F64", (rows, columns), low_rank.reader((rows, columns), product))
    content = data(whole)
    assert content == b"".join(data(whole, 8 * columns * row, 8 * columns) for row in range(rows))
    left, right = left.astype(np.longdouble), right.astype(np.longdouble)
    error = np.abs(np.frombuffer(content).reshape(rows, columns) - left @ right / 3)
    assert (
        error <= 2.0**-35 * rank * np.abs(left * sizes**-1).max() * np.abs(right * sizes[:, None]).max()
    ).all()


def test_factors_that_are_not_finite_mark_their_rows():
    left, right = np.ones((3, 2), np.float32), np.ones((2, 4), np.float32)
    left[1, 0] = np.nan
    left[2, 1] = np.inf
    product = low_rank.Product(factor("l", left), factor("r", right), 2, 1.0)
    delta = low_rank.Tensor("d", "F64", (3, 4), low_rank.reader((3, 4), product))
    assert np.isfinite(np.frombuffer(data(delta)).reshape(3, 4)).all(axis=1).tolist() == [True, False, False]


# The Hub's local cache.

SHA, OLD = "0123456789abcdef" * 2 + "01234567", "f" * 40


def cached(cache, name, source, commit=SHA, ref="main"):
    """A snapshot as huggingface_hub lays it out, of the files in `source`."""
    repository = cache / ("models--" + name.replace("/", "--"))
    snapshot = repository / "snapshots" / commit
    snapshot.mkdir(parents=True)
    (repository / "blobs").mkdir(exist_ok=True)
    (repository / "refs").mkdir(exist_ok=True)
    if ref:
        (repository / "refs" / ref).write_text(commit)
    for path in Path(source).iterdir():
        blob = hashlib.sha256(path.read_bytes()).hexdigest()
        (repository / "blobs" / blob).write_bytes(path.read_bytes())
        (snapshot / path.name).symlink_to(f"../../blobs/{blob}")
    return snapshot


@pytest.fixture
def cache(tmp_path, monkeypatch):
    for variable in ("HUGGINGFACE_HUB_CACHE", "HF_HOME", "XDG_CACHE_HOME"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.chdir(tmp_path)
    return tmp_path / "hub"


def test_a_snapshot_by_any_of_its_names(cache, family, monkeypatch):
    snapshot = cached(cache, "org/model", family["base"])
    cached(cache, "org/model", family["ft_a"], OLD, ref=None)
    expected = contents(opened(folder, family["base"])[0])
    for source in (snapshot, snapshot.parent.parent, "org/model", f"org/model@{SHA}", "org/model@main"):
        assert [m for m in ALL if m.recognises(str(source))] == [hub_cache]
        checkpoint, facts, rest = opened(hub_cache, source)
        assert checkpoint.name == "org/model" and checkpoint.source == str(snapshot)
        assert contents(checkpoint) == expected
        assert all(Path(stamp.path).parent.name == "blobs" for stamp in checkpoint.files)
        assert rest == [Alias(f"org/model@{SHA}", kind="revision"), Facts(revision=SHA)]
        assert facts.architecture == "LlamaForCausalLM"
    assert contents(opened(hub_cache, f"org/model@{OLD}")[0]) == contents(opened(folder, family["ft_a"])[0])
    monkeypatch.delenv("HF_HUB_CACHE")
    assert not hub_cache.recognises("org/model")
    monkeypatch.setenv("HF_HOME", str(cache.parent))
    assert hub_cache.recognises("org/model")


def test_the_layout_is_the_hubs(cache, family):
    from huggingface_hub import scan_cache_dir

    snapshot = cached(cache, "org/model", family["base"])
    (repository,) = scan_cache_dir(cache).repos
    (revision,) = repository.revisions
    assert (repository.repo_id, revision.commit_hash, revision.refs) == ("org/model", SHA, {"main"})
    assert revision.snapshot_path.resolve() == snapshot.resolve()


def test_a_cached_adapter(cache):
    snapshot = cached(cache, "org/lora", ADAPTERS / "plain")
    assert [m for m in ALL if m.recognises(str(snapshot))] == [hub_cache]
    checkpoint, _, rest = opened(hub_cache, "org/lora")
    assert checkpoint.name == "org/lora" and checkpoint.delta_of == "org/base"
    assert [type(r) for r in rest] == [Edge, Alias, Facts]


def test_a_cached_quantised_model_keeps_its_name(cache, tmp_path):
    write_safetensors(tmp_path / "q" / "model.safetensors", quantised_tensors("gptq"))
    cached(cache, "org/quantised", tmp_path / "q")
    records = list(hub_cache.open("org/quantised"))
    assert {r.model for r in records if isinstance(r, Facts | Alias)} == {"org/quantised"}


def test_links_out_of_the_cache_and_revisions_that_are_not_there(cache, family):
    snapshot = cached(cache, "org/model", family["base"])
    refused(hub_cache, "org/model@v2", "no snapshot 'v2'")
    (snapshot / "model.safetensors").unlink()
    (snapshot / "model.safetensors").symlink_to(family["base"] / "model.safetensors")
    with pytest.raises(CheckpointError, match="a link out of its folder"):
        list(hub_cache.open("org/model"))
    (snapshot.parent.parent / "refs" / "main").write_text("../../../etc")
    with pytest.raises(CheckpointError, match="is not a commit"):
        list(hub_cache.open("org/model"))
    for source in (
        "org/absent",
        "../hub/models--org--model",
        "org/..",
        "org/model@..",
        "org/model@../x",
        "a/b/c",
    ):
        assert hub_cache.recognises(source) == (
            source == "../hub/models--org--model" and Path(source).is_dir()
        )


# Who opens what.


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
