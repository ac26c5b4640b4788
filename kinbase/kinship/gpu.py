"""Choosing the device of the kinship pass.

Torch is imported where it is used: importing it takes two seconds, which a machine without a GPU need
not spend to find that out.
"""

import ctypes
import platform
import sys

from kinbase.errors import UsageError

DRIVERS = {"linux": "libcuda.so.1", "win32": "nvcuda.dll"}


def resolve_device(name: str) -> str:
    """Return cpu, cuda, cuda:N or mps for `name` (auto, cpu, cuda, cuda:N, mps).

    `auto` is the CPU: no rate of the pass on a GPU has been measured yet that could decide when one pays. Raises
    UsageError for a device that this machine or this torch does not have.
    """
    if name in ("cpu", "auto"):
        return "cpu"
    kind, _, index = name.partition(":")
    if kind == "cuda" and (not index or index.isdecimal()):
        count = _cuda_devices()
        if count <= int(index or 0):
            reason = f"torch sees {count} CUDA devices" if count else "torch finds no CUDA device here"
            raise UsageError(f"device {name}: {reason}; use --device cpu, or install a CUDA build of torch")
        return name
    if name == "mps":
        if not _has_mps():
            raise UsageError("device mps: this is no Mac with Apple silicon and its torch; use --device cpu")
        return name
    raise UsageError(f"device {name!r} is unknown; use auto, cpu, cuda, cuda:N or mps")


def _cuda_devices() -> int:
    try:
        ctypes.CDLL(DRIVERS[sys.platform])
    except (KeyError, OSError):
        return 0
    import torch

    return int(torch.cuda.device_count())


def _has_mps() -> bool:
    if (sys.platform, platform.machine()) != ("darwin", "arm64"):
        return False
    import torch

    return bool(torch.backends.mps.is_available())
