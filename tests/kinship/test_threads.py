"""The bits of a pass do not hang on threads, tiles or resumption, and a failing pass leaves no thread."""

import itertools
import threading

import families
import pytest
from gaussian import bits, gaussian_family, vocabulary_family

from kinbase.checkpoint import Checkpoint, Tensor
from kinbase.errors import CheckpointError
from kinbase.kinship.stream import TILE_BYTES, Plan, _row_bytes, run


def test_threads_and_tile_size_do_not_change_a_bit(monkeypatch):
    base, members = vocabulary_family()
    plan = Plan(base, members, hash_base=True)
    expected = bits(run(plan, threads=1))
    assert bits(run(plan, threads=2)) == expected
    assert bits(run(plan, threads=5)) == expected
    monkeypatch.setattr("kinbase.kinship.stream.TILE_BYTES", 1)
    assert bits(run(plan, threads=2)) == expected


def test_a_resumed_run_gives_the_bits_of_an_unbroken_one():
    base, members = vocabulary_family()
    plan = Plan(base, members, hash_base=True)
    unbroken = {r.position: r for r in run(plan)}
    for kept in range(len(unbroken) + 1):
        done = {}
        stream = run(plan)
        for result in itertools.islice(stream, kept):
            done[result.position] = result
        stream.close()
        told = []
        rest = {r.position: r for r in run(plan, done=done, on_bytes=told.append)}
        assert not done.keys() & rest.keys()
        merged = done | rest
        assert bits(merged[p] for p in unbroken) == bits(unbroken.values())
        assert plan.model_digests(merged.values()) == plan.model_digests(unbroken.values())
        assert sum(told) == plan.nbytes


def test_the_bytes_told_are_the_bytes_read():
    base, members = vocabulary_family()
    read = []

    def counted(c):
        c.tensors = [
            Tensor(
                t.name,
                t.dtype,
                t.shape,
                lambda start, out, t=t: (t.read(start, out), read.append(len(out)))[0],
            )
            for t in c.tensors
        ]
        return c

    plan = Plan(counted(base), [counted(m) for m in members], new=2)
    told = []
    list(run(plan, on_bytes=told.append, threads=1))
    assert sum(read) == sum(told) == plan.nbytes


def workers():
    return [t for t in threading.enumerate() if t.name.startswith("kinbase-pass")]


def test_a_failing_read_surfaces_and_leaves_no_thread():
    base, members = vocabulary_family()

    def broken(start, out):
        if start > 1_000_000:
            raise CheckpointError("m0: the file ends before the tensor does")
        out[:] = bytes(len(out))

    e = members[0].tensors[0]
    members[0].tensors[0] = Tensor(e.name, e.dtype, e.shape, broken)
    with pytest.raises(CheckpointError, match="m0: the file ends"):
        list(run(Plan(base, members)))
    assert not workers()


def test_a_file_that_shrinks_is_a_checkpoint_error(tmp_path):
    (weights,) = gaussian_family({"a": (700, 500)}, 1)[1]
    path = families.write_safetensors(tmp_path / "m.safetensors", weights)
    opened = families.open_checkpoint(path)
    with path.open("r+b") as file:
        file.truncate(300_000)
    with pytest.raises(CheckpointError, match="ends before"):
        list(run(Plan(opened, hash_base=True)))
    opened.close()


def test_closing_the_stream_and_interrupting_it_join_the_workers():
    base, members = vocabulary_family()
    stream = run(Plan(base, members))
    next(stream)
    assert workers()
    stream.close()
    assert not workers()

    def interrupt(nbytes):
        if nbytes:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        list(run(Plan(base, members), on_bytes=interrupt))
    assert not workers()


def test_an_interrupt_does_not_wait_for_the_tensor_to_end():
    """Of a tensor of 40 tiles a worker, few are read once the caller has gone."""
    read = []
    slow = threading.Event()

    def sluggish(start, out):
        read.append(len(out))
        slow.wait(0.01)

    big = Tensor("w", "F64", (1 << 22,), sluggish)
    small = Tensor("a", "F64", (1 << 20,), lambda start, out: None)
    stream = run(Plan(Checkpoint("c", "", [small, big]), hash_base=True), threads=2)
    next(stream)
    stream.close()
    assert sum(read) < big.nbytes / 4
    assert not workers()


@pytest.mark.parametrize("threads", [1, 2, 16])
@pytest.mark.parametrize("rows", [2, 9, 33, 300])
def test_tiles_stay_small_however_many_members(rows, threads):
    held = rows * threads * _row_bytes(rows * threads)
    assert held <= max(TILE_BYTES, rows * threads * (32 << 10))
