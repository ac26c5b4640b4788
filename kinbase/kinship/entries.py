"""The kernels as `kinbase.kinship.native` calls them, and the one that reads: source, imported only to be compiled.

Each entry takes its arguments from a frame of 64-bit integers, arrays as addresses of their first elements. Numba
cannot read annotations:
"""

# mypy: allow-untyped-defs, allow-untyped-calls
# ruff: noqa: ANN001, ANN201, ANN202

from collections.abc import Callable
from typing import Any

import numpy as np
from numba import carray, cfunc, types
from numba.core import cgutils
from numba.extending import intrinsic

from kinbase.checkpoint.digest import LEAF
from kinbase.kinship import sketch_kernels
from kinbase.kinship.kernels import add_tile, compiled
from kinbase.kinship.layout import BUCKETS, CELL, CODES, INTERVAL, LANE, LEAVES, PADDING, STATE

_i8, _i4, _u8 = types.int64, types.int32, types.uint64

_pread = types.ExternalFunction("pread", _i8(_i4, _i8, _u8, _i8))
_memcpy = types.ExternalFunction("memcpy", _i8(_i8, _i8, _u8))
_update = types.ExternalFunction("XXH3_128bits_update_dispatch", _i4(_i8, _i8, _u8))
_reset = types.ExternalFunction("XXH3_128bits_reset", _i4(_i8))


@intrinsic
def _digest(typing, state):
    """XXH3_128bits_digest: its 128 bits come back in two registers, low half first."""

    def emit(context, builder, signature, arguments):
        from llvmlite import ir

        word = ir.IntType(64)
        kind = ir.FunctionType(ir.LiteralStructType([word, word]), [word])
        function = cgutils.get_or_insert_function(builder.module, kind, "XXH3_128bits_digest")
        result = builder.call(function, arguments)
        halves = [builder.extract_value(result, k) for k in (0, 1)]
        return context.make_tuple(builder, signature.return_type, halves)

    return types.UniTuple(types.uint64, 2)(types.int64), emit


@intrinsic
def _pointer(typing, where):
    def emit(context, builder, signature, arguments):
        return builder.inttoptr(arguments[0], context.get_value_type(types.voidptr))

    return types.voidptr(types.int64), emit


@compiled
def _i64(where, n):
    return carray(_pointer(where), (n,), np.int64)


@compiled
def _f64(where, n):
    return carray(_pointer(where), (n,), np.float64)


@compiled
def _f64s(where, n, m):
    return carray(_pointer(where), (n, m), np.float64)


@compiled
def _f32(where, n):
    return carray(_pointer(where), (n,), np.float32)


@compiled
def _f32s(where, n, m):
    return carray(_pointer(where), (n, m), np.float32)


@compiled
def _u32(where, n):
    return carray(_pointer(where), (n,), np.uint32)


@compiled
def _weigh(where, nbytes, start, n, code, key, signs, spare, window, placed, smallest, fraction, sums):
    """`sketch_kernels.weigh` of the bytes at an address."""
    sketch_kernels.weigh(
        carray(_pointer(where), (nbytes,), np.uint8), carray(_pointer(where), (nbytes // 2,), np.uint16),
        carray(_pointer(where), (nbytes // 4,), np.uint32), carray(_pointer(where), (nbytes // 4,), np.float32),
        carray(_pointer(where), (nbytes // 8,), np.float64),
        start, n, code, np.uint64(key), signs, spare, window, placed != 0, smallest, fraction, sums,
    )  # fmt: skip


def weigh(frame):
    """where, nbytes, start, n, code, key, signs, len, spare, window, len, placed, smallest and fraction [2, CODES], sums [3]."""
    f = carray(frame, (14,))
    steps = _f64s(f[12], 2, CODES)
    _weigh(
        f[0], f[1], f[2], f[3], f[4], f[5], _u32(f[6], f[7]), _f32(f[8], CELL + 1), _f32(f[9], f[10]), f[11],
        steps[0, f[4]], steps[1, f[4]], _f64(f[13], 3),
    )  # fmt: skip
    return 0


def flush(frame):
    """window, total [BUCKETS], fresh."""
    f = carray(frame, (3,))
    sketch_kernels.flush(_f32(f[0], BUCKETS + CELL), _f64(f[1], BUCKETS), f[2] != 0)
    return 0


def place(frame):
    """values, len, key, total [BUCKETS]."""
    f = carray(frame, (4,))
    sketch_kernels.place(_f32(f[0], f[1]), np.uint64(f[2]), _f64(f[3], BUCKETS))
    return 0


@compiled
def _add(f, start, stop, members, count, fresh, narrow, codes, direct, stats, sums, sumsq, dot):
    """`kernels.add_tile` with a worker's buffers, of which `f` [8] says where they are."""
    rows, stride, length = f[1], f[2], f[3]
    members = _i64(members, count)
    n = rows - 1
    add_tile(
        carray(_pointer(f[0]), (rows, stride), np.uint8), carray(_pointer(f[0]), (rows, stride // 2), np.uint16),
        carray(_pointer(f[0]), (rows, stride // 4), np.float32), carray(_pointer(f[0]), (rows, stride // 8), np.float64),
        start, stop, _i64(codes, rows), carray(_pointer(direct), (n,), np.bool_), members, fresh, narrow != 0,
        _f32s(f[4], rows + 1, length + PADDING), carray(_pointer(f[5]), (2, rows), np.int32),
        _f64s(f[6], rows + 1, length + PADDING), _f64s(stats, 3, n), _f64(sums, n), _f64(sumsq, n), _f64s(dot, f[7], n),
    )  # fmt: skip


def add(frame):
    """The buffers [8]; start, stop, members, their number, fresh, narrow, codes, direct, stats, sums, sumsq, dot."""
    f = carray(frame, (20,))
    _add(f, f[8], f[9], f[10], f[11], f[12], f[13], f[14], f[15], f[16], f[17], f[18], f[19])
    return 0


@compiled
def _hash(state, where, nbytes, is_end, digest):
    """Hash the bytes at an address; at the end of a leaf write its digest [2], low half first, and begin again."""
    _update(state, where, _u8(nbytes))
    if is_end:
        digest[0], digest[1] = _digest(state)
        _reset(state)


def span(frame):
    """Read, hash, sketch and add elements start..stop of the span that begins at `first`.

    Returns 0, or the number (from 1) of the lane that ended early. The frame: the buffers [8]; first, start, stop, step;
    lanes [L, LANE], L; intervals [C, INTERVAL], C, their members [C, N]; codes, direct; stats, sums [C, N],
    sumsq [C, N], dot; states; signs, len; spare; smallest and fraction [2, CODES]; moments [L, 4, 3]; digests [L, 4, 2].
    """
    f = carray(frame, (30,))
    first, start, stop, step = f[8], f[9], f[10], f[11]
    lanes = carray(_pointer(f[12]), (f[13], LANE), np.int64)
    intervals = carray(_pointer(f[14]), (f[15], INTERVAL), np.int64)
    n, stride = f[1] - 1, f[2]
    signs, spare, steps = _u32(f[24], f[25]), _f32(f[26], CELL + 1), _f64s(f[27], 2, CODES)
    moments = carray(_pointer(f[28]), (f[13], LEAVES, 3), np.float64)
    digests = carray(_pointer(f[29]), (f[13], LEAVES, 2), np.uint64)
    at = start
    while at < stop:
        for k in range(len(lanes)):
            lane = lanes[k]
            count = min(step, min(stop, lane[2]) - at)
            if count <= 0:
                continue
            size = count * lane[3]
            to = lane[11] + lane[12] * (at - start) * lane[3] if lane[11] else f[0] + lane[5] * stride
            if lane[0] < 0:
                held = lane[1] + (at - start) * lane[3]
                if held != to:
                    _memcpy(to, held, _u8(size))
            else:
                offset = lane[1] + at * lane[3]
                done = np.int64(0)
                while done < size:
                    got = _pread(np.int32(lane[0]), to + done, _u8(size - done), offset + done)
                    if got <= 0:
                        return k + 1
                    done += got
            leaf = (at - first) // LEAF
            if lane[7]:
                window = _f32(lane[10], BUCKETS + CELL)
                _weigh(
                    to, size, at, count, lane[4], lane[8], signs, spare, window, lane[9],
                    steps[0, lane[4]], steps[1, lane[4]], moments[k, leaf],
                )  # fmt: skip
            if lane[6]:
                is_end = (at + count) % LEAF == 0 or at + count == lane[2]
                _hash(f[23] + lane[5] * STATE, to, size, is_end, digests[k, leaf])
        begin = at
        for c in range(len(intervals)):
            end = min(intervals[c, 0], at + step)
            if begin < end:
                _add(
                    f, begin - at, end - at, f[16] + 8 * n * c, intervals[c, 1], intervals[c, 2], intervals[c, 3],
                    f[17], f[18], f[19], f[20] + 8 * n * c, f[21] + 8 * n * c, f[22],
                )  # fmt: skip
                begin = end
        at += step
    return 0


def reset(frame):
    """Make the hashing state at an address empty."""
    return _reset(carray(frame, (1,))[0])


ENTRIES: tuple[Callable[[Any], int], ...] = (weigh, flush, place, add)


def compile_entries(whole: bool) -> dict[str, tuple[str, str]]:
    """Symbol and LLVM assembly of each entry by name; of `span` only if `whole`."""
    found = {}
    for function in (*ENTRIES, span, reset) if whole else ENTRIES:
        made: Any = cfunc(types.int64(types.CPointer(types.int64)), error_model="numpy", boundscheck=False)(
            function
        )
        symbol = made._wrapper_name.removeprefix("cfunc.")
        found[function.__name__] = symbol, made._library.get_llvm_str()
    return found
