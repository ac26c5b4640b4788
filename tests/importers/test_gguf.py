"""The importer of GGUF headers."""

import struct

import pytest
from records import DATA, only, problem, read

from kinbase.checkpoint import Edge, Facts
from kinbase.errors import CheckpointError
from kinbase.importers import gguf


def test_gguf_of_the_gguf_package():
    records = read(gguf, DATA / "gguf" / "chat-Q4_K_M.gguf")
    assert only(Facts, records) == [
        Facts(architecture="llama", license="apache-2.0", relation="quantized", parameters=80, dtype="Q4_K_M")
    ]
    (edge,) = only(Edge, records)
    assert (edge.parent, edge.relation, edge.evidence, edge.child) == (
        "example/chat",
        "quantized",
        "gguf",
        None,
    )
    assert edge.detail == {"file_type": "Q4_K_M", "quantized_by": "somebody", "version": "v1.0"}


def test_gguf_with_a_source_gives_that_source_its_parents():
    edges = only(Edge, read(gguf, DATA / "gguf" / "merged-F16.gguf"))
    assert [(e.parent, e.relation, e.child) for e in edges] == [
        ("example/chat-math", "quantized", None),
        ("example/chat", "merge", "example/chat-math"),
        ("example/math", "merge", "example/chat-math"),
    ]


def _text(value):
    return struct.pack("<Q", len(value)) + value


def _pair(key, kind, value):
    return _text(key) + struct.pack("<I", kind) + value


@pytest.mark.parametrize(
    "content",
    [
        b"GGUF",
        b"GGUF" + struct.pack("<IQQ", 3, 0, 2**60),
        b"GGUF" + struct.pack("<IQQ", 3, 2**60, 0),
        b"GGUF" + struct.pack("<IQQ", 1, 0, 0),
        b"GGUF" + struct.pack(">IQQ", 3, 0, 0),
        b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + struct.pack("<Q", 2**63) + b"x",
        b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + _pair(b"k", 9, struct.pack("<IQ", 0, 2**62)),  # a long array
        b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + _pair(b"k", 9, struct.pack("<IQ", 8, 2**62)),  # of texts
        b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + _pair(b"k", 9, struct.pack("<IQ", 9, 1) * 1000),  # of arrays
        b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + _pair(b"general.name", 99, b""),
        b"GGUF" + struct.pack("<IQQ", 3, 0, 2) + _pair(b"general.x", 0, b"1") * 2,
    ],
)
def test_hostile_gguf_headers_are_one_line(write, content):
    with pytest.raises(CheckpointError) as error:
        read(gguf, write("model.gguf", content))
    assert "\n" not in str(error.value)


def test_gguf_that_names_a_million_bases(write):
    count = _pair(b"general.base_model.count", 4, struct.pack("<I", 2**32 - 1))
    name = _pair(b"general.base_model.0.name", 8, _text(b"a\nb"))
    records = read(gguf, write("m.gguf", b"GGUF" + struct.pack("<IQQ", 3, 0, 2) + count + name))
    assert not only(Edge, records)
    assert problem(records)


def test_every_gguf_cut_short_is_refused(write):
    whole = (DATA / "gguf" / "chat-Q4_K_M.gguf").read_bytes()
    header = whole.index(b"output_norm.weight") + 30
    for end in range(4, header, 7):
        with pytest.raises(CheckpointError):
            read(gguf, write("m.gguf", whole[:end]))
