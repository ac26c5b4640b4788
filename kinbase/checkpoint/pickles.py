"""The pickle in a torch file, looked through before anything builds what it says.

torch's own safe unpickler takes a list of globals that can still ask for any amount of memory: `bytearray(6 GB)`,
a tensor class called with sizes. Here the same few instructions are followed without building a thing: what is
called must be on the list of what state dicts are made of, and steps, calls and lengths are counted.
"""

import struct
from collections.abc import Sequence

from kinbase.checkpoint.limits import LIMITS
from kinbase.errors import CheckpointError

_NAMED = (
    "collections.OrderedDict", "collections.Counter", "torch.Size", "torch.device", "torch.nn.parameter.Parameter",
    "torch.serialization._get_layout", "torch._tensor._rebuild_from_type_v2", "builtins.set", "__builtin__.set",
    "builtins.complex", "_codecs.encode",
)  # fmt: skip
_REBUILD = ("_rebuild_tensor", "_rebuild_tensor_v2", "_rebuild_tensor_v3", "_rebuild_parameter",
            "_rebuild_parameter_with_state", "_rebuild_sparse_tensor", "_rebuild_qtensor",
            "_rebuild_meta_tensor_no_storage", "_rebuild_nested_tensor")  # fmt: skip
CALLED = frozenset({*_NAMED, *(f"torch._utils.{each}" for each in _REBUILD)})
"""What a state dict may have called; each takes values that are there already, and no sizes but those of views."""

_FIXED = {0x4E: 0, 0x89: 0, 0x88: 0, 0x29: 0, 0x5D: 0, 0x7D: 0, 0x8F: 0, 0x4A: 4, 0x4B: 1, 0x4D: 2, 0x47: 8}
"""Instructions that push a value, by the bytes that follow: None, False, True, (), [], {}, set, numbers."""

_MARK = object()


class _Walk:
    """The machine's stack and memo, with the names of globals and nothing for any other value."""

    def __init__(self, data: bytes) -> None:
        self.data, self.at = data, 0
        self.stack: list[object] = []
        self.memo: dict[int, object] = {}
        self.calls = 0

    def take(self, length: int) -> bytes:
        end = self.at + length
        if end > len(self.data):
            raise EOFError
        piece, self.at = self.data[self.at : end], end
        return piece

    def line(self) -> str:
        end = self.data.index(b"\n", self.at, self.at + 300)
        piece, self.at = self.data[self.at : end], end + 1
        return piece.decode("ascii")

    def pop_to_mark(self) -> Sequence[object]:
        at = len(self.stack) - 1
        while self.stack[at] is not _MARK:
            at -= 1
            if at < 0:
                raise IndexError
        items = self.stack[at + 1 :]
        del self.stack[at:]
        return items

    def call(self, named: object) -> None:
        self.calls += 1
        if self.calls > LIMITS.pickle_calls:
            raise _RefusedError(f"it builds more than {LIMITS.pickle_calls:,} objects")
        if named not in CALLED:
            raise _RefusedError(
                f"it wants to call {str(named)[:80]!r}" if named else "it calls what it built itself"
            )

    def step(self, code: int) -> None:
        stack = self.stack
        if code in _FIXED:
            self.take(_FIXED[code])
            stack.append(None)
        elif code == 0x63:  # GLOBAL
            stack.append(f"{self.line()}.{self.line()}")
        elif code in (0x52, 0x81):  # REDUCE, NEWOBJ
            stack.pop()
            self.call(stack.pop())
            stack.append(None)
        elif code in (0x62, 0x61):  # BUILD, APPEND
            stack.pop()
        elif code == 0x73:  # SETITEM
            del stack[-2:]
        elif code == 0x28:  # MARK
            stack.append(_MARK)
        elif code in (0x65, 0x75, 0x74):  # APPENDS, SETITEMS, TUPLE
            self.pop_to_mark()
            if code == 0x74:
                stack.append(None)
        elif code in (0x85, 0x86, 0x87):  # TUPLE1 to TUPLE3
            count = code - 0x84
            if len(stack) < count:
                raise IndexError
            del stack[-count:]
            stack.append(None)
        elif code == 0x51:  # BINPERSID
            stack[-1] = None
        elif code in (0x58, 0x55, 0x8A):  # BINUNICODE, SHORT_BINSTRING, LONG1
            (length,) = struct.unpack("<I", self.take(4)) if code == 0x58 else self.take(1)
            self.take(length)
            stack.append(None)
        elif code in (0x68, 0x6A):  # BINGET, LONG_BINGET
            stack.append(self.memo[self.number(code == 0x6A)])
        elif code in (0x71, 0x72):  # BINPUT, LONG_BINPUT
            self.memo[self.number(code == 0x72)] = stack[-1]
        elif code == 0x80:  # PROTO
            self.take(1)
        else:
            raise _RefusedError(f"it has the instruction {code:#04x}, which state dicts do without")

    def number(self, is_long: bool) -> int:
        return int.from_bytes(self.take(4 if is_long else 1), "little")


class _RefusedError(Exception):
    """What the pickle asks for is not read; the text says what."""


def refuse_costly(data: bytes, what: str) -> None:
    """Raise CheckpointError, which calls the file `what`, unless the pickle `data` is one of a state dict's."""
    walk = _Walk(data)
    try:
        if len(data) > LIMITS.pickle_bytes:
            raise _RefusedError(f"it takes {len(data):,} bytes")
        for _ in range(LIMITS.pickle_steps):
            (code,) = walk.take(1)
            if code == 0x2E:  # STOP
                return
            walk.step(code)
        raise _RefusedError(f"it has more than {LIMITS.pickle_steps:,} steps")
    except _RefusedError as error:
        reason = str(error)
    except (EOFError, IndexError, KeyError, ValueError):
        reason = "it is cut short or damaged"
    raise CheckpointError(
        f"{what} cannot be unpickled as plain weights ({reason}) and is refused, since any other way could run its "
        "code or fill the memory; ask for a .safetensors file"
    )
