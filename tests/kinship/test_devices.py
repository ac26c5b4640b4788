"""The pass on GPUs, and which device is chosen."""

import subprocess
import sys

import numpy as np
import pytest
import torch
from gaussian import TOLERANCE, checkpoint, gaussian_family, passed, vocabulary_family

from kinbase.checkpoint import Tensor
from kinbase.errors import UsageError
from kinbase.kinship import slabs
from kinbase.kinship.gpu import resolve_device
from kinbase.kinship.stream import Plan, run

TRANSFERS = slabs.Transfers


def assert_device_agrees(device, tolerance):
    base, members = vocabulary_family()
    base.tensors[2] = Tensor("renamed", *[getattr(base.tensors[2], f) for f in ("dtype", "shape", "read")])
    members.append(checkpoint({"n": torch.ones(17)}, "adapter", delta_of="base"))
    plan = Plan(base, members, new=3)
    for here, there in zip(run(plan), run(plan, device=device), strict=True):
        scale = np.sqrt(np.outer(here.sumsq[:3], here.sumsq)) + 1e-300
        assert np.array_equal(np.isnan(here.dot), np.isnan(there.dot))
        assert np.nanmax(np.abs(here.dot - there.dot) / scale, initial=0) < tolerance
        for field in ("sum", "sumsq", "max_abs"):
            assert getattr(there, field) == pytest.approx(getattr(here, field), rel=1e-6, abs=1e-6)
        for field in ("numel", "zeros", "nonfinite"):
            assert np.array_equal(getattr(here, field), getattr(there, field))
        assert there.exceptions == pytest.approx(here.exceptions, rel=1e-6, abs=1e-6)
        assert here.digests == there.digests


@pytest.fixture
def torch_on_cpu(monkeypatch):
    """The engine of slabs on torch's own CPU device."""
    monkeypatch.setattr(slabs, "Transfers", lambda device, nbytes: TRANSFERS("cpu", nbytes))
    return "torch"


def test_the_torch_arithmetic_agrees_with_the_kernel(torch_on_cpu):
    assert_device_agrees(torch_on_cpu, TOLERANCE)


def test_the_float32_arithmetic_of_mps_agrees_within_its_bound(monkeypatch):
    """The same code with float64 taken away, as on MPS; 1e-6 is what float32 segments of 1024 keep."""

    def float32_only(device, nbytes):
        transfers = TRANSFERS("cpu", nbytes)
        transfers.has_float64 = False
        return transfers

    monkeypatch.setattr(slabs, "Transfers", float32_only)
    assert_device_agrees("mps", 1e-6)


def test_torch_tiles_count_nonfinite_deltas_apart(torch_on_cpu):
    base, members = gaussian_family({"w": (60, 50)}, 3)
    members[1]["w"][0, 0] = float("nan")
    (result,) = passed(base, members, device=torch_on_cpu)
    assert result.nonfinite.tolist() == [0, 1, 0]
    assert np.isnan(result.dot[1]).all() and np.isfinite(result.dot[0, 2])
    assert np.isfinite(result.max_abs[[0, 2]]).all()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_cuda_agrees_with_the_kernel():
    assert_device_agrees("cuda", TOLERANCE)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.backends.mps.is_available(), reason="no MPS device")
def test_mps_agrees_with_the_kernel():
    assert_device_agrees("mps", 1e-6)


def test_devices_that_are_not_there_are_usage_errors(monkeypatch):
    monkeypatch.setattr("kinbase.kinship.gpu._cuda_devices", lambda: 0)
    monkeypatch.setattr("kinbase.kinship.gpu._has_mps", lambda: False)
    assert resolve_device("auto") == resolve_device("cpu") == "cpu"
    for name in ("cuda", "cuda:1", "mps"):
        with pytest.raises(UsageError, match="--device cpu"):
            resolve_device(name)
    with pytest.raises(UsageError, match="use auto"):
        resolve_device("tpu")


def test_auto_is_the_cpu_until_a_gpu_was_measured(monkeypatch):
    monkeypatch.setattr("kinbase.kinship.gpu._cuda_devices", lambda: 1)
    assert resolve_device("auto") == "cpu"
    assert resolve_device("cuda") == "cuda"
    with pytest.raises(UsageError, match="torch sees 1 CUDA"):
        resolve_device("cuda:1")


def test_neither_the_pass_nor_the_choice_of_device_loads_torch():
    script = (
        "import sys; from kinbase.kinship import cpu, gpu, spans, stream; gpu.DRIVERS.clear(); gpu.resolve_device('auto');"
        "bad = {'torch', 'duckdb', 'click', 'textual'} & sys.modules.keys(); assert not bad, bad"
    )
    subprocess.run([sys.executable, "-c", script], check=True)
