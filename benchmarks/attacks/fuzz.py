"""Files that were genuine once, with bytes changed, cut out, repeated and put in: every parser either reads or refuses them."""

import random
import time
from pathlib import Path

from attacks import seeds
from attacks.report import Table
from kinbase.checkpoint.guard import watched
from kinbase.checkpoint.limits import LIMITS
from kinbase.checkpoint.open import importers
from kinbase.errors import KinbaseError

TRIES = 2_000
"""Mutated inputs at size 1."""
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
]


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
    genuine = seeds.make(folder)
    slowest = 0.0
    *cheap, parquet = genuine
    for number in range(TRIES * size):
        # A Parquet file is decoded in a process of its own, which takes a second: one in fifty.
        path = parquet if number % 50 == 49 else cheap[number % len(cheap)]
        data = path.read_bytes()
        path.write_bytes(mutated(data, chance))
        began = time.thread_time()
        failure = _read(path)
        took = time.thread_time() - began
        path.write_bytes(data)
        if took > slowest:
            slowest = took
        if took > 5:
            failure = f"{path.name} took {took:.1f} s"
        table.tried(failure, f"{slowest:.2f} s ({len(genuine)} parsers' files)")


def _read(path: Path) -> str | None:
    """What gave: None where the file was read, or refused by one of our errors."""
    try:
        for importer in importers():
            if not hasattr(importer, "DEPTHS") and importer.recognises(str(path)):
                watched(lambda i=importer: list(i.open(str(path))), str(path), LIMITS)
                break
    except KinbaseError as error:
        return (
            f"{path.name}: an error of {str(error).count(chr(10)) + 1} lines" if "\n" in str(error) else None
        )
    except Exception as error:
        return f"{path.name}: {type(error).__name__}: {str(error)[:200]}"
    return None
