"""Kills, full disks and many importers: the same command again must give what an undisturbed one gives."""

import gzip
import os
import random
import resource
import shutil
import subprocess
import sys
import time
from pathlib import Path

import families

import kinbase
from attacks.report import Table

KILLS = 12
"""Of each command, at size 1."""
POINTS = 4
"""Sizes of a full disk for each command, at size 1; a limit on the size of a file stands for it."""
ROUNDS = 2
OLDER = Path(__file__).parents[2] / "tests" / "data" / "schemas" / "0006.duckdb.gz"
RUN = """
strategy: kinship
name: run
models: [ft_a, ft_b, ft_c]
merge: {method: linear}
evaluate: {by: python, function: "evaluator:score"}
stop: {generations: 2, kinship: null}
"""
EVALUATOR = """
import zlib
from pathlib import Path

def score(folder):
    return {"sum": {"acc": zlib.crc32(Path(folder, "model.safetensors").read_bytes()) / 2**32}}
"""
MERGE = "merge_method: linear\nmodels: [{model: ft_a, parameters: {weight: 0.5}}, {model: ft_b, parameters: {weight: 0.5}}]\n"
ASKED = "select name, digest, base from models order by name"


def killed(folder: Path, size: int, chance: random.Random, table: Table) -> None:
    """Kill each command at a random moment of its time, the first second of a new database among them."""
    weights = families.make_family(folder / "family")
    (folder / "merge.yml").write_text(MERGE)
    whole = folder / "whole"
    whole.mkdir()
    commands = _commands(weights)
    _done(["import", "--base", "base", *map(str, weights.values())], whole)
    for name, words in commands.items():
        place = _fresh(folder, whole, name)
        began = time.monotonic()
        code, said = _done(words, place)
        if code:
            table.tried(f"{name} undisturbed: exit {code}: {said[-200:]}")
            continue
        usual, wanted = time.monotonic() - began, _state(place)
        kills = 0
        while kills < KILLS * size:
            place = _fresh(folder, whole, name)
            process = _start(words, place)
            time.sleep(chance.uniform(0, usual))
            is_over = process.poll() is not None
            process.kill()
            process.communicate()
            if is_over:
                usual *= 0.95  # the undisturbed one was slower
                continue
            kills += 1
            code, said = _again(words, place)
            failure = None
            if _state(place) != wanted:
                failure = f"{name}: another result than undisturbed: exit {code}: {said[-200:]}"
            elif code and " already" not in said:  # killed when all was done
                failure = f"{name}: exit {code}: {said[-200:]}"
            table.tried(failure)


def full_disk(folder: Path, size: int, chance: random.Random, table: Table) -> None:
    """Bound the size of each file that a command writes: it says what is full, and works when there is room again."""
    weights = families.make_family(folder / "family")
    (folder / "merge.yml").write_text(MERGE)
    whole = folder / "whole"
    whole.mkdir()
    _done(["import", "--base", "base", *map(str, weights.values())], whole)
    for name, words in _commands(weights).items():
        place = _fresh(folder, whole, name)
        _done(words, place)
        wanted = _state(place)
        for _ in range(POINTS * size):
            place = _fresh(folder, whole, name)
            code, said = _done(words, place, most=int(10 ** chance.uniform(2, 5.5)))
            failure = None
            if "Traceback" in said or (code and len(said.strip().splitlines()) > 12):
                failure = f"{name}: {said[-300:]}"
            elif code and not any(
                w in said
                for w in (
                    "full",
                    "not allowed",
                    "too large",
                    "cannot be written",
                    "cannot be made",
                    "cannot write",
                )
            ):
                failure = f"{name}: exit {code} without a reason: {said[-200:]}"
            code, said = _again(words, place)
            if failure is None and ((code and " already" not in said) or _state(place) != wanted):
                failure = f"{name} afterwards: exit {code}: {said[-200:]}"
            table.tried(failure)


def at_once(folder: Path, size: int, chance: random.Random, table: Table) -> None:
    """Six processes import a family's members at once: all are there, and akin."""
    weights = families.make_family(folder / "family")
    sources = [str(path) for path in weights.values()] + [str(weights["ft_a"])]
    for number in range(ROUNDS * size):
        place = folder / str(number)
        place.mkdir()
        _done(["import", str(weights["base"])], place)
        processes = [
            _start(["--wait", "120", "import", "--base", "base", source], place) for source in sources
        ]
        said = [process.communicate(timeout=300)[1] for process in processes]
        codes = [process.returncode for process in processes]
        db = kinbase.open(place / "kin.duckdb")
        names = db.names()
        pairs = db.sql("select count(*) from kinship where model_a < model_b").item()
        failure = None
        if any(codes) or names != sorted(weights):
            failure = (
                f"exits {codes}, models {names}: {[s for s, c in zip(said, codes, strict=True) if c][:1]}"
            )
        elif pairs != 6:
            failure = f"{pairs} of 6 pairs are known"
        table.tried(failure)


def _commands(weights: dict[str, Path]) -> dict[str, list[str]]:
    return {
        "first import": ["import", "--base", "base", *map(str, weights.values())],
        "merge": ["merge", "../merge.yml", "child"],
        "evolve": ["evolve", "run.yaml"],
        "migrate": ["migrate"],
        "export": ["export", "-o", "all.kinbase"],
        "sql": ["sql", "-o", "rows.csv", "from models"],
    }


def _fresh(folder: Path, whole: Path, name: str) -> Path:
    """A folder of its own with what the command starts from: nothing, an older database, or the whole one."""
    place = folder / "place"
    shutil.rmtree(place, ignore_errors=True)
    place.mkdir()
    if name == "migrate":
        (place / "kin.duckdb").write_bytes(gzip.decompress(OLDER.read_bytes()))
    elif name != "first import":
        shutil.copy(whole / "kin.duckdb", place)
    (place / "run.yaml").write_text(RUN)
    (place / "evaluator.py").write_text(EVALUATOR)
    return place


def _start(words: list[str], place: Path, most: int = 0) -> "subprocess.Popen[str]":
    def limit() -> None:
        if most:
            resource.setrlimit(resource.RLIMIT_FSIZE, (most, most))

    environment = {**os.environ, "KINBASE_DB": "kin.duckdb", "PYTHONPATH": os.pathsep.join(sys.path)}
    return subprocess.Popen(
        [sys.executable, "-m", "kinbase", *words], cwd=place, env=environment, preexec_fn=limit,
        stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


def _done(words: list[str], place: Path, most: int = 0) -> tuple[int, str]:
    process = _start(words, place, most)
    _, said = process.communicate(timeout=300)
    return process.returncode, said


def _again(words: list[str], place: Path) -> tuple[int, str]:
    """The same command again; a run that was begun is resumed."""
    code, said = _done(words, place)
    if code and "--resume" in said:
        return _done(["evolve", "--resume", "run"], place)
    return code, said


def _state(place: Path) -> list[object]:
    """What a command left: models, and the files it made, whole."""
    rows = kinbase.open(place / "kin.duckdb").sql(ASKED).rows()
    made = sorted(
        p.relative_to(place).as_posix()
        for p in place.rglob("*")
        if p.is_file() and "kin.duckdb" not in p.name and p.suffix != ".pyc"
    )
    return [rows, made]
