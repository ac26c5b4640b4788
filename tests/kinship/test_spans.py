"""The call that reads and computes a span: the same bits as tile by tile, from files and from memory, and its failures."""

import json
import os
from contextlib import contextmanager

import numpy as np
import pytest

from kinbase.checkpoint import Checkpoint, Extent, Tensor
from kinbase.checkpoint.digest import SPAN
from kinbase.errors import CheckpointError
from kinbase.importers import safetensors
from kinbase.kinship import native
from kinbase.kinship.spans import Spans
from kinbase.kinship.stream import Plan, run

WIDTHS = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2, "F8_E4M3": 1, "F8_E5M2": 1, "I32": 4}


def stored(tmp_path, name, dtype, shape, seed, extent=True):
    """A tensor of random bytes in a file, of which no weight is much larger than the others."""
    numel = int(np.prod(shape))
    values = (np.random.default_rng(seed).standard_normal(numel) * 0.05).astype(np.float32)
    if dtype == "BF16":
        data = (values.view(np.uint32) >> 16).astype(np.uint16).tobytes()
    elif dtype in ("F64", "F32", "F16"):
        data = values.astype({"F64": "f8", "F32": "f4", "F16": "f2"}[dtype]).tobytes()
    else:  # small numbers of both signs
        data = (
            (np.random.default_rng(seed).integers(0, 48, numel * WIDTHS[dtype]) * 3 + seed % 2)
            .astype(np.uint8)
            .tobytes()
        )
    path = tmp_path / f"{name}-{dtype}-{seed}"
    path.write_bytes(b"headline" + data)

    def read(start, out):
        out[:] = data[start : start + len(out)]

    @contextmanager
    def borrow():
        descriptor = os.open(path, os.O_RDONLY)
        try:
            yield descriptor
        finally:
            os.close(descriptor)

    return Tensor(name, dtype, shape, read, Extent(borrow, 8) if extent else None)


def family(tmp_path, extent):
    """A base and three members of all dtypes: ragged tails, a longer vocabulary, a lone tensor, integers, a lone delta."""
    long = (SPAN + 4321,)
    base = [
        stored(tmp_path, "embed", "BF16", (300, 64), 1, extent),
        stored(tmp_path, "long", "BF16", long, 2, extent),
        *(stored(tmp_path, f"w{dtype}", dtype, (70, 1001), 3, extent) for dtype in WIDTHS),
        stored(tmp_path, "norm", "F32", (33,), 4, extent),
    ]
    members = []
    for k in (5, 6):
        members.append(
            [
                stored(tmp_path, "embed", "BF16", (310 + k, 64), 10 * k, extent),
                stored(tmp_path, "long", "BF16" if k == 5 else "F16", long, 10 * k + 1, extent),
                *(stored(tmp_path, f"w{dtype}", dtype, (70, 1001), 10 * k + 2, extent) for dtype in WIDTHS),
                stored(tmp_path, "own", "F32", (77,), 10 * k + 3, extent),
            ]
        )
    delta = [stored(tmp_path, "wBF16", "F64", (70, 1001), 80, extent)]
    return (
        Checkpoint("base", "", base),
        [
            *(Checkpoint(f"m{k}", "", tensors) for k, tensors in enumerate(members)),
            Checkpoint("d", "", delta, delta_of="base"),
        ],
    )


def bits(sums):
    """Everything a pass says of a tensor, as bytes."""
    arrays = (
        sums.numel,
        sums.sum,
        sums.sumsq,
        sums.max_abs,
        sums.zeros,
        sums.nonfinite,
        sums.dot,
        sums.exceptions,
        sums.weights,
    )
    total = np.zeros(1 << 14)
    for sketch in sums.sketches:
        if sketch is not None:
            sketch.pour(total)
    return (sums.position, sums.name, sums.digests, *(a.tobytes() for a in arrays), total.tobytes())


def passed(base, members, threads):
    return [bits(sums) for sums in run(Plan(base, members, hash_base=True), threads=threads)]


@pytest.mark.parametrize("extent", [True, False], ids=["files", "memory"])
def test_a_span_gives_the_bits_of_its_tiles(tmp_path, monkeypatch, extent):
    if not Spans.can_run():
        pytest.skip("this xxhash does not export its streaming functions")
    base, members = family(tmp_path, extent)
    once = passed(base, members, 1)
    assert passed(base, members, 3) == once
    monkeypatch.setattr(Spans, "can_run", staticmethod(lambda: False))
    assert passed(base, members, 2) == once


def test_files_and_memory_in_one_call_give_the_same_bits(tmp_path):
    base, members = family(tmp_path, True)
    mixed = family(tmp_path, False)[1]
    assert passed(base, [members[0], mixed[1], members[2]], 2) == passed(base, members, 2)


def test_a_file_that_shrinks_while_it_is_read_is_one_line(tmp_path):
    import torch
    from safetensors.torch import save_file

    for name in ("base", "ft"):
        save_file({"w": torch.randn(1 << 21)}, tmp_path / f"{name}.safetensors")
    base, member = (safetensors.checkpoint(tmp_path / f"{name}.safetensors") for name in ("base", "ft"))
    member.tensors[0].read(0, memoryview(bytearray(4)))  # the file is open now
    os.truncate(tmp_path / "ft.safetensors", 5 << 20)
    with pytest.raises(CheckpointError, match="truncated since it was opened"):
        list(run(Plan(base, [member], hash_base=True)))


def test_a_short_read_that_its_own_reader_does_not_see(tmp_path):
    tensor = stored(tmp_path, "w", "BF16", (5000,), 1)
    (tmp_path / "w-BF16-1").write_bytes(b"headline")
    with pytest.raises(CheckpointError, match="'w' changed while it was read"):
        list(run(Plan(Checkpoint("c", "", [tensor]), hash_base=True)))


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """A cache of this test's own, and how often the kernels were compiled into it."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    compiled = []

    def compile_(processor, whole):
        compiled.append(processor)
        code = b"machine code"
        return json.dumps({"symbols": {}, "bytes": len(code)}).encode() + b"\n" + code

    monkeypatch.setattr(native, "_compiled", compile_)
    monkeypatch.setattr(native, "_load", lambda saved: saved)
    return tmp_path / "kinbase", compiled


def test_compiled_kernels_are_kept_for_the_next_process(cache):
    folder, compiled = cache
    native.entries.cache_clear()
    assert not native.are_kept()
    first = native.entries.__wrapped__()
    assert native.are_kept()
    (kept,) = folder.iterdir()
    assert native.entries.__wrapped__() == first == kept.read_bytes()
    assert len(compiled) == 1
    assert folder.stat().st_mode & 0o777 == 0o700 and kept.stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize("spoil", ["short", "writable", "link"])
def test_kept_kernels_that_another_could_have_written_are_not_run(cache, spoil):
    folder, compiled = cache
    native.entries.__wrapped__()
    (kept,) = folder.iterdir()
    if spoil == "short":
        kept.write_bytes(kept.read_bytes()[:-3])
    elif spoil == "writable":
        kept.chmod(0o666)
    else:
        other = folder.with_name("elsewhere")
        kept.rename(other)
        kept.symlink_to(other)
    native.entries.__wrapped__()
    assert len(compiled) == 2


def test_a_cache_that_cannot_be_written_costs_nothing_but_time(tmp_path, cache, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert native.entries.__wrapped__()
