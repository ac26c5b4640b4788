"""Every benchmark in turn, each a table: `python benchmarks [NAME ...] [--full]`, or `make bench`.

Small sizes, some minutes in all: enough to see a figure that a change made worse. `--full` runs them at their own sizes,
those of the figures in docs/; that takes hours and tens of gigabytes under /tmp. benchmarks/README.md says what each one
measures. mergekit_configs.py needs another environment and is run by hand. Exits with 1 when one failed.
"""

import argparse
import subprocess
import sys
import time
from pathlib import Path

SMALL = {
    "pass": "--parameters 50e6 --rounds 3 --members 2 8 32 --folder /tmp/kinbase-benchmark-small",
    "quantised": "--elements 4e6 --rounds 3",
    "families": "--members 200",
    "parts": "--members 50 --tensors 50 --parts 1 4",
    "tables": "--models 5000",
    "hub_lineage": "--models 20000 --children 5800 --runs 1",
    "quantised_sources": "--siblings 4 --recipes 2",
    "database": "--models 200 --rounds 3",
    "hub": "--repos 100",
    "merging": "--parameters 50e6 --rounds 2",
    "sketch": "--only errors --seeds 5",
    "sampling": "--layers 2 --seeds 5",
    "drift": "--elements 1e6,1e7",
    "recipes": "--trials 5 --only merges,slerp,none,selected",
    "verdicts": "--families 8",
    "inferring": "--worlds 1",
    "independence": "--models 6 --steps 20",
    "evolution": "--generations 2",
    "tui": "--models 20000 --runs 3",
    "attack": "--only sql,bombs",
}
"""What each is given for a run of minutes."""


def main() -> int:
    """Run the benchmarks that were asked for; the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", metavar="NAME", help=", ".join(SMALL))
    parser.add_argument("--full", action="store_true", help="at their own sizes")
    asked = parser.parse_args()
    if unknown := [name for name in asked.names if name not in SMALL]:
        parser.error(f"there is no benchmark {unknown[0]}: {', '.join(SMALL)}")
    failed = []
    for name in asked.names or SMALL:
        words = [str(Path(__file__).with_name(f"{name}.py")), *([] if asked.full else SMALL[name].split())]
        print(f"\n== {' '.join(['benchmarks/' + name + '.py', *words[1:]])}", flush=True)
        began = time.monotonic()
        if subprocess.run([sys.executable, *words]).returncode:
            failed.append(name)
        print(f"== {name}: {time.monotonic() - began:.0f} s", flush=True)
    if failed:
        print(f"\nfailed: {', '.join(failed)}", file=sys.stderr)
    return bool(failed)


if __name__ == "__main__":
    sys.exit(main())
