"""The kernels of the pass as machine code: loaded from this machine's cache, compiled once by numba when not there.

Numba takes half a second to import and, with its kernels, three to compile; a saved object loads in 30 ms by llvmlite
alone. What was just compiled is loaded the same way, so the run that compiles computes the same bits as later ones.

Every entry (`kinbase.kinship.entries`) takes the address of a frame: its arguments as 64-bit integers, arrays as addresses.
The saved file is named after the source of the kernels, the processor and llvmlite's version. It is executed, so it is
loaded only from a folder and a file that no other user may write.
"""

import ctypes
import json
import os
import stat
import tempfile
from collections.abc import Callable, Iterable
from functools import cache
from hashlib import blake2b
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

SOURCES = ("kernels.py", "sketch_kernels.py", "entries.py", "layout.py")
"""What the machine code is made of, beside this file."""

UNUSED = "NRT_MemInfo_call_dtor"
"""Frees an array that numba made; kernels make none, but their code names it, and what is named has to be there."""

Entry = Callable[[Any], int]


def address(array: NDArray[Any]) -> int:
    """Where the elements of a contiguous array begin; the caller keeps the array."""
    return int(array.__array_interface__["data"][0])


def frame(arguments: Iterable[int]) -> "ctypes.Array[ctypes.c_int64]":
    """The arguments of one call, in the order of its entry."""
    values = tuple(arguments)
    return (ctypes.c_int64 * len(values))(*values)


def call(name: str, *arguments: int) -> int:
    """Call the entry `name`; the interpreter's lock is released meanwhile."""
    return entries()[name](frame(arguments))


def are_kept() -> bool:
    """Whether the kernels are loaded or kept on this machine, so that nothing will be compiled."""
    if entries.cache_info().currsize:
        return True
    place = _place(_processor(), "pread" in _outside())
    return place is not None and _read(place) is not None


def processor() -> str:
    """What the kernels are compiled for, on which the last bits of their sums hang: a name and a digest of features."""
    name, features = _processor()
    return f"{name}/{blake2b(features.encode(), digest_size=3).hexdigest()}"


def _processor() -> tuple[str, str]:
    import llvmlite.binding as llvm

    return llvm.get_host_cpu_name(), llvm.get_host_cpu_features().flatten()


@cache
def entries() -> dict[str, Entry]:
    """The entries by name; `span` is among them only where the C library and xxhash have what it calls."""
    import llvmlite.binding as llvm

    symbols = _outside()
    for name, where in symbols.items():
        llvm.add_symbol(name, where)
    if llvm.address_of_symbol(UNUSED) is None:
        llvm.add_symbol(UNUSED, symbols["abort"])
    llvm.initialize_native_target()
    llvm.initialize_native_asmprinter()
    processor = _processor()
    whole = "pread" in symbols
    place = _place(processor, whole)
    saved = _read(place) if place else None
    if saved is None:
        saved = _compiled(processor, whole)
        if place:
            _save(place, saved)
    return _load(saved)


@cache
def _outside() -> dict[str, int]:
    """Addresses of the functions that kernels call, by name: the C library's, and xxhash's streaming ones.

    Of reading and hashing either all or none are there: none where this xxhash does not export them or they do not
    give its digests, or where the system has no positional reads.
    """
    import xxhash

    c = ctypes.CDLL(None)
    found = {name: _where(c, name) for name in ("memcpy", "memset", "abort")}
    try:
        hashing = ctypes.CDLL(str(find_spec("xxhash._xxhash").origin))  # type: ignore[union-attr]
        state = (ctypes.c_uint64 * 90)()
        inside = ctypes.c_void_p(ctypes.addressof(state) + -ctypes.addressof(state) % 64)
        data = bytes(range(256)) * 5
        hashing.XXH3_128bits_reset(inside)
        hashing.XXH3_128bits_update_dispatch(inside, data, ctypes.c_size_t(len(data)))
        hashing.XXH3_128bits_digest.restype = ctypes.c_uint64  # its low half, which is enough to tell
        if hashing.XXH3_128bits_digest(inside) == xxhash.xxh3_128_intdigest(data) & (2**64 - 1):
            names = ("XXH3_128bits_reset", "XXH3_128bits_update_dispatch", "XXH3_128bits_digest")
            found |= {name: _where(hashing, name) for name in names} | {"pread": _where(c, "pread")}
    except (AttributeError, OSError):
        pass
    return found


def _where(library: ctypes.CDLL, name: str) -> int:
    return ctypes.cast(getattr(library, name), ctypes.c_void_p).value or 0


def _place(processor: tuple[str, str], whole: bool) -> Path | None:
    """Where this machine's code for these sources is kept; None where there is no home to keep it in."""
    import llvmlite

    state = blake2b(digest_size=12)
    for name in SOURCES:
        state.update(Path(__file__).with_name(name).read_bytes())
    state.update("\n".join((llvmlite.__version__, *processor, str(whole))).encode())
    try:
        root = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    except RuntimeError:
        return None
    return Path(root) / "kinbase" / f"kernels-{state.hexdigest()}.o"


def _is_ours(path: Path) -> bool:
    """Whether nobody but this user (or root) can have written what is at `path`."""
    status = path.lstat()
    mine = not hasattr(os, "getuid") or status.st_uid in (os.getuid(), 0)
    return mine and not stat.S_ISLNK(status.st_mode) and not status.st_mode & (stat.S_IWGRP | stat.S_IWOTH)


def _read(place: Path) -> bytes | None:
    try:
        data = place.read_bytes() if _is_ours(place.parent) and _is_ours(place) else b""
    except OSError:
        return None
    # A file cut off is made again: its length stands in its first line.
    head, _, code = data.partition(b"\n")
    try:
        return data if int(json.loads(head)["bytes"]) == len(code) else None
    except (ValueError, KeyError, TypeError):
        return None


def _save(place: Path, data: bytes) -> None:
    """Keep compiled code for later runs; a machine that cannot keep it compiles again."""
    try:
        place.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        descriptor, name = tempfile.mkstemp(dir=place.parent)
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
        Path(name).replace(place)
    except OSError:
        pass


def _compiled(processor: tuple[str, str], whole: bool) -> bytes:
    """A line of JSON (the entries' symbols, the number of bytes that follow) and the object file."""
    import llvmlite.binding as llvm

    from kinbase.kinship.entries import compile_entries

    target = llvm.Target.from_default_triple()
    machine = target.create_target_machine(
        cpu=processor[0],
        features=processor[1],
        opt=3,
        reloc="static" if target.name.startswith("x86") else "default",
        jit=True,
    )
    module = None
    symbols = {}
    for name, (symbol, text) in compile_entries(whole).items():
        part = llvm.parse_assembly(text)
        symbols[name] = symbol
        if module is None:
            module = part
        else:
            module.link_in(part)
    assert module is not None
    # What numba wraps around a function for its own interpreter is not needed, nor what that calls.
    for function in module.functions:
        if not function.is_declaration and function.name not in symbols.values():
            function.linkage = "internal"
    passes = llvm.create_new_module_pass_manager()
    passes.add_global_dead_code_eliminate_pass()
    builder = llvm.create_pass_builder(machine, llvm.create_pipeline_tuning_options(0))
    passes.run(module, builder)
    called = {function.name for function in module.functions if function.is_declaration}
    unknown = {name for name in called if not name.startswith("llvm.")} - _outside().keys() - {UNUSED}
    if unknown:  # an object with a name that is not found is loaded without a word, and calls nothing at all
        raise RuntimeError(f"the kernels call {', '.join(sorted(unknown))}, which nobody has")
    code: bytes = machine.emit_object(module)
    return json.dumps({"symbols": symbols, "bytes": len(code)}).encode() + b"\n" + code


def _load(saved: bytes) -> dict[str, Entry]:
    import llvmlite.binding as llvm

    head, _, code = saved.partition(b"\n")
    machine = llvm.Target.from_default_triple().create_target_machine(jit=True)
    engine = llvm.create_mcjit_compiler(llvm.parse_assembly(""), machine)
    engine.set_object_cache(getbuffer_func=lambda module: code)  # in place of compiling the empty module
    engine.finalize_object()
    return {
        name: _entry(engine, engine.get_function_address(symbol))
        for name, symbol in json.loads(head)["symbols"].items()
    }


def _entry(engine: Any, where: int) -> Entry:
    # Numba's own convention: where to put the result, where to put an exception, then the arguments.
    function = ctypes.CFUNCTYPE(ctypes.c_int32, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_void_p)(where)

    def run(arguments: "ctypes.Array[ctypes.c_int64]", engine: Any = engine) -> int:
        result, fault = ctypes.c_int64(), ctypes.c_void_p()
        status = function(ctypes.byref(result), ctypes.byref(fault), arguments)
        if status:
            raise RuntimeError(f"a kernel failed with status {status}")
        return result.value

    return run
