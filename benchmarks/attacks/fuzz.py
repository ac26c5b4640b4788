"""Files that were genuine once, with bytes or values changed, cut out, repeated and put in: each is read or refused.

An importer is called in this process, without the watch over its time and memory (kinbase.checkpoint.guard), which
costs more than reading: both are measured here, and an input that takes more than a file may is read once more under
the watch. Parquet is decoded in one process for all inputs, not in one each; every 500th input takes the way that
an import takes.
"""

import contextlib
import random
import re
import resource
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from unittest import mock

from attacks import seeds
from attacks.decoder import Decoder
from attacks.report import Table
from kinbase.checkpoint import parquet
from kinbase.checkpoint.guard import watched
from kinbase.checkpoint.limits import LIMITS
from kinbase.checkpoint.open import importers
from kinbase.errors import KinbaseError

REFUSED = "refused"
TRIES = 2_000
"""Mutated inputs at size 1."""
AS_IMPORTED = 500
"""One input in so many is read as an import reads it."""
WORDS = [
    b"\x00",
    b"\xff" * 8,
    b"9" * 400,
    b"{",
    b"[[",
    b"<<: *a",
    b"&a",
    b'"',
    b"\xef\xbb\xbf",
    b"1e999",
    b"null",
    b"\x7f\xff\xff\xff",
    b"---\n",
    b"!!python/object/apply:os.system",
    b"\\ud800",
    b"-1",
    b"NaN",
]


TOKEN = re.compile(rb'"[^"]*"|\b[-+.\w]+\b')
ODD = [
    b"null", b"[]", b"{}", b'""', b"true", b"-1", b"0", b"1e400", b"9" * 30, b"0.5", b"[[1]]", b'{"a": 1}', b'"\\ud800"',
    b'"\\u0000"', b'"a\\nb"', b"NaN", b'"../../x"', b'"' + b"x" * 2000 + b'"', b"2024-01-02", b"[null]", b"1.5e-300",
    b"18446744073709551615", b'"\xe2\x80\xaex"', b"-9223372036854775808", b'[1, "a"]', b'"1e400"', b"[{}]", b"0001-01-01",
]  # fmt: skip
"""What stands in the place of a value: the document stays one, and says something else."""


def said_otherwise(data: bytes, chance: random.Random) -> bytes:
    """A copy of a text with one to three of its values replaced."""
    for _ in range(chance.choice((1, 1, 2, 3))):
        tokens = list(TOKEN.finditer(data))
        if not tokens:
            break
        token = chance.choice(tokens)
        data = data[: token.start()] + chance.choice(ODD) + data[token.end() :]
    return data


def changed(data: bytes, chance: random.Random) -> bytes:
    """A mutation of the bytes, or of what a text says."""
    is_text = data.isascii() and chance.random() < 0.5
    return said_otherwise(data, chance) if is_text else mutated(data, chance)


def mutated(data: bytes, chance: random.Random) -> bytes:
    """A copy with one to eight changes."""
    result = bytearray(data)
    for _ in range(chance.choice((1, 1, 2, 4, 8))):
        at = chance.randrange(len(result) + 1)
        match chance.randrange(6):
            case 0 if result:
                result[at % len(result)] ^= 1 << chance.randrange(8)
            case 1:
                del result[at : at + chance.randrange(1, 40)]
            case 2:
                result[at:at] = result[at : at + chance.randrange(1, 200)] * chance.randrange(1, 4)
            case 3:
                result[at:at] = chance.choice(WORDS)
            case 4:
                result[at : at + 8] = chance.randbytes(8)
            case _:
                del result[at:]
    return bytes(result)


def run(folder: Path, size: int, chance: random.Random, table: Table) -> None:
    """Mutate each genuine file in turn, and read it with the importer that knows it by its name."""
    with _in_memory(folder) as place, Decoder() as decoder:
        genuine = [(seed, seed.data) for seed in seeds.make(place)]
        for seed, _ in genuine:
            if said := _read(seed, is_watched=True):
                table.tried(f"{seed.path.name} is not read as it is: {said}")
        slowest, refused = 0.0, 0
        decoded = mock.patch.object(parquet, "lines", decoder.lines)
        for number in range(TRIES * size):
            seed, data = genuine[number % len(genuine)]
            seed.path.write_bytes(seed.wrapped(changed(data, chance)))
            as_imported = number % AS_IMPORTED == AS_IMPORTED - 1
            began, peak = time.thread_time(), _peak()
            with contextlib.nullcontext() if as_imported else decoded:
                said = _read(seed, is_watched=as_imported)
                if _is_costly(time.thread_time() - began, _peak() - peak) and not as_imported:
                    began = time.thread_time()
                    said = _read(seed, is_watched=True)
            took = time.thread_time() - began
            slowest, refused = max(slowest, took), refused + (said == REFUSED)
            if took > 5:
                said = f"{seed.path.name} took {took:.1f} s"
            if said == REFUSED:
                said = None
            elif said:
                kept = Path(f"fuzz-{number}-{seed.path.name}")
                kept.write_bytes(seed.path.read_bytes())
                said += f" (kept as {kept})"
            table.tried(said, f"{slowest:.2f} s; {len(genuine)} files, {refused:,} refused")
            if seed.source != seed.path:  # the others of its folder are read as they were
                seed.path.write_bytes(data)


@contextlib.contextmanager
def _in_memory(folder: Path) -> Iterator[Path]:
    """A folder in memory, where there is one: writing is otherwise half of the time."""
    memory = Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=memory if memory.is_dir() else folder) as place:
        yield Path(place)


def _is_costly(seconds: float, nbytes: int) -> bool:
    return seconds > LIMITS.seconds or nbytes > LIMITS.memory


def _peak() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10


def _read(seed: seeds.Seed, *, is_watched: bool) -> str | None:
    """What gave; None where the file was read, REFUSED where it was refused by an error of ours or by all readers."""
    source = str(seed.source)
    try:
        if seed.reader == "merge":
            from kinbase.merging import config as merging

            merging.load(source)
            return None
        if seed.reader == "evolve":
            from kinbase.evolution import config as evolving

            evolving.read(source)
            return None
        for importer in importers():
            if not hasattr(importer, "DEPTHS") and importer.recognises(source):
                if is_watched:
                    watched(lambda i=importer: list(i.open(source)), source, LIMITS)
                else:
                    list(importer.open(source))
                return None
        return REFUSED
    except KinbaseError as error:
        return f"{seed.path.name}: an error of several lines: {error}" if "\n" in str(error) else REFUSED
    except (MemoryError, RecursionError) as error:  # which the watch makes into a refusal
        return f"{seed.path.name}: {type(error).__name__}" if is_watched else _read(seed, is_watched=True)
    except BaseException as error:
        if isinstance(error, KeyboardInterrupt | SystemExit):
            raise
        return f"{seed.path.name}: {type(error).__name__}: {str(error)[:200]}"
