"""The engine of slabs on torch's CPU device: late copies, any number of readers, ragged ends, failures."""

import random
import threading
import time

import numpy as np
import pytest
import torch
from gaussian import TOLERANCE, checkpoint, gaussian_family, vocabulary_family

from kinbase.checkpoint import Checkpoint, Tensor
from kinbase.errors import CheckpointError, KinbaseError
from kinbase.kinship import slab_readers, slabs
from kinbase.kinship.spans import Spans
from kinbase.kinship.stream import Plan, run


class Late(slabs.Transfers):
    """Copies that finish late and out of order: the slab "there" is rubbish until its copy's thread has run.

    What is computed waits for the copy, as a stream waits for an event; `wait` is all that keeps a slab in host memory
    from being filled again, and what is copied after that is wrong.
    """

    def __init__(self, nbytes):
        super().__init__("cpu", nbytes)
        self.random = random.Random(7)
        self.there = [torch.empty(nbytes, dtype=torch.uint8) for _ in range(slabs.SLABS)]

    def start(self, slot, rows, stride):
        there = self.there[slot][: rows * stride]
        there.fill_(0xAB)
        delay = self.random.random() * 0.01

        def copy():
            time.sleep(delay)
            there.copy_(self._host[slot][: rows * stride])

        thread = threading.Thread(target=copy)
        thread.start()
        self.last = thread
        return there.view(rows, stride), thread

    def wait(self, copied):
        copied.join()

    def computing(self):
        if hasattr(self, "last"):
            self.last.join()
        return super().computing()


@pytest.fixture(params=["at once", "late"])
def device(request, monkeypatch):
    made = slabs.Transfers
    monkeypatch.setattr(
        slabs,
        "Transfers",
        lambda device, nbytes: made("cpu", nbytes) if request.param == "at once" else Late(nbytes),
    )
    return "torch"


@pytest.fixture
def small(monkeypatch):
    """Slabs of 4,096 elements, so that a tiny family takes many."""
    monkeypatch.setattr(slab_readers, "SLAB_BYTES", 1)


def said(sums):
    """What the device has no part in, which must be the CPU's to the bit."""
    total = np.zeros(1 << 14)
    for sketch in sums.sketches:
        if sketch is not None:
            sketch.pour(total)
    return sums.position, sums.name, sums.digests, sums.weights.tobytes(), total.tobytes()


def everything(sums):
    arrays = (
        sums.numel,
        sums.sum,
        sums.sumsq,
        sums.max_abs,
        sums.zeros,
        sums.nonfinite,
        sums.dot,
        sums.exceptions,
    )
    return (*said(sums), *(a.tobytes() for a in arrays))


def assert_agrees(here, there):
    assert said(here) == said(there)
    scale = np.sqrt(np.outer(here.sumsq[: len(here.dot)], here.sumsq)) + 1e-300
    assert np.array_equal(np.isnan(here.dot), np.isnan(there.dot))
    assert np.nanmax(np.abs(here.dot - there.dot) / scale, initial=0) < TOLERANCE
    for field in ("numel", "zeros", "nonfinite", "max_abs"):
        assert np.array_equal(getattr(here, field), getattr(there, field), equal_nan=True)
    # Sums of as many float64 numbers in another order: their roundings are far below 1e-9 of them.
    assert there.sumsq == pytest.approx(here.sumsq, rel=1e-9, abs=1e-12, nan_ok=True)
    assert there.sum == pytest.approx(here.sum, rel=1e-9, abs=1e-9, nan_ok=True)


@pytest.mark.parametrize("elements", [1, 4095, 4096, 4097, 300_001])
def test_any_length_gives_what_the_kernels_give(device, small, elements):
    base, members = gaussian_family({"w": (elements,), "v": (3, 5)}, 5)
    opened = checkpoint(base, "base"), [checkpoint(m, str(k)) for k, m in enumerate(members)]
    plans = [Plan(*opened, hash_base=True) for _ in range(2)]
    for here, there in zip(run(plans[0]), run(plans[1], device=device), strict=True):
        assert_agrees(here, there)


def test_resized_mixed_and_adapted_members(device, small):
    base, members = vocabulary_family()
    members.append(checkpoint({"n": torch.ones(17)}, "adapter", delta_of="base"))
    for here, there in zip(run(Plan(base, members)), run(Plan(base, members), device=device), strict=True):
        assert_agrees(here, there)
        assert there.exceptions == pytest.approx(here.exceptions, rel=1e-9)


def test_the_number_of_readers_changes_no_bit(device, small):
    base, members = gaussian_family({"w": (130, 333), "v": (70_000,)}, 6)
    opened = checkpoint(base, "base"), [checkpoint(m, str(k)) for k, m in enumerate(members)]
    results = [
        [everything(sums) for sums in run(Plan(*opened, hash_base=True), device=device, threads=threads)]
        for threads in (1, 2, 5)
    ]
    assert results[0] == results[1] == results[2]


def test_without_the_native_reader(device, small, monkeypatch):
    base, members = gaussian_family({"w": (130, 333)}, 2)
    opened = checkpoint(base, "base"), [checkpoint(m, str(k)) for k, m in enumerate(members)]
    with_it = [everything(sums) for sums in run(Plan(*opened, hash_base=True), device=device)]
    monkeypatch.setattr(Spans, "can_run", staticmethod(lambda: False))
    assert [everything(sums) for sums in run(Plan(*opened, hash_base=True), device=device)] == with_it


def test_bytes_are_reported_as_they_are_on_the_cpu(device):
    base, members = vocabulary_family()
    told = []
    plan = Plan(base, members)
    list(run(plan, device=device, on_bytes=told.append))
    assert sum(told) == plan.nbytes


def test_a_file_that_ends_early_is_its_readers_error(device):
    def short(start, out):
        raise CheckpointError("w ends early")

    broken = Checkpoint("b", "", [Tensor("w", "F32", (1 << 20,), short)])
    with pytest.raises(CheckpointError, match="ends early"):
        list(run(Plan(broken, [broken]), device=device))
    assert not [t for t in threading.enumerate() if t.name.startswith("kinbase-reader")]


def test_a_caller_that_goes_leaves_no_thread(device, small):
    base, members = gaussian_family({"a": (10,), "w": (500, 500)}, 3)
    stream = run(
        Plan(checkpoint(base, "base"), [checkpoint(m, str(k)) for k, m in enumerate(members)]), device=device
    )
    next(stream)
    stream.close()
    assert not [t for t in threading.enumerate() if t.name.startswith("kinbase-reader")]


def test_a_device_that_fails_is_one_line(monkeypatch):
    class Full(slabs.Transfers):
        def start(self, slot, rows, stride):
            raise torch.cuda.OutOfMemoryError("CUDA out of memory.\nmore lines")

    monkeypatch.setattr(slabs, "Transfers", lambda device, nbytes: Full("cpu", nbytes))
    base, members = vocabulary_family()
    with pytest.raises(KinbaseError, match=r"has too little memory .*--device cpu, it goes on where it was"):
        list(run(Plan(base, members), device="cuda"))
