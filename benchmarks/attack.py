"""Attack Kinbase as a stranger, a full disk, an impatient user and a kill would, and print what gave.

    python benchmarks/attack.py [--size N] [--only fuzz,bombs,...] [--seed S] [--tally FILE]
    python benchmarks/attack.py --add-up FILE

`--size 1` is what fits two shared cores in about five minutes; the counts grow with it. Every importer and every
command runs as a user has it; a failure is a traceback, an error that is not one of ours, a hang, memory or time
beyond the bounds of kinbase.checkpoint.limits, something written that should not be, or something lost. Exits with 1
when there was one. What is run with a tally can be run in pieces, each with a seed of its own, and stopped at any
time: what was tried until then counts.
"""

import argparse
import random
import resource
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parent.parent / "tests"), str(Path(__file__).parent)]

from attacks import bombs, fuzz, kills, queries  # noqa: E402
from attacks.report import Table, add_up  # noqa: E402

ATTACKS: dict[str, tuple[str, Callable[[Path, int, random.Random, Table], None]]] = {
    "fuzz": ("files with bytes changed, cut and repeated, over all parsers", fuzz.run),
    "bombs": ("small files that stand for large costs", bombs.run),
    "sql": ("queries that reach out, write, or do not end", queries.run),
    "kills": ("kill -9 at a random moment, then the same command again", kills.killed),
    "disk": ("a full disk at a random byte of each writing command", kills.full_disk),
    "importers": ("six importers at once on one database", kills.at_once),
}


def main() -> int:
    """Run the attacks that were asked for; the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", type=int, default=1)
    parser.add_argument("--only", default=",".join(ATTACKS))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--tally", type=Path)
    parser.add_argument("--add-up", type=Path)
    asked = parser.parse_args()
    if asked.add_up:
        add_up(asked.add_up)
        return 0
    table = Table()
    table.beside = f"seed {asked.seed}, size {asked.size}"
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    for name in asked.only.split(","):
        told, attack = ATTACKS[name]
        began = time.monotonic()
        with tempfile.TemporaryDirectory(prefix="kinbase-attack-") as folder:
            table.begin(name, told)
            try:
                attack(Path(folder), asked.size, random.Random(asked.seed), table)
            finally:
                table.end(time.monotonic() - began)
                if asked.tally:
                    table.keep(asked.tally)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10
    table.show(f"seed {asked.seed}, size {asked.size}, this process's peak {peak} MiB")
    return 1 if table.failures else 0


if __name__ == "__main__":
    sys.exit(main())
