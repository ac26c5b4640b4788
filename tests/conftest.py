"""Fixtures every test may use: the tiny family on disk, a database it was imported into, and the command line."""

import contextlib
import io
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))
# The tensors here are tiny: threads of torch cost more than they bring, and every worker has a core of its own.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import families

import kinbase


@pytest.fixture(scope="session", autouse=True)
def state(tmp_path_factory):
    """A place of the tests' own for what a person's machine remembers, here and in the programs they start."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_STATE_HOME", str(tmp_path_factory.mktemp("state")))
        patch.setenv("XDG_CONFIG_HOME", str(tmp_path_factory.mktemp("config")))
        yield


@pytest.fixture(scope="session")
def family(tmp_path_factory):
    """Folders of the fixture family by name: base, ft_a, ft_b, ft_c, merge_ab = 0.6 ft_a + 0.4 ft_b."""
    return families.make_family(tmp_path_factory.mktemp("family"))


@pytest.fixture
def db(tmp_path, family):
    """A database with the whole family in it."""
    db = kinbase.open(tmp_path / "kin.duckdb")
    report = db.import_(family.values(), base="base")
    assert set(report["status"]) == {"imported"}
    return db


@pytest.fixture(scope="session")
def empty_file(tmp_path_factory):
    """A database file without models: copying one is ten times faster than making one."""
    path = tmp_path_factory.mktemp("empty") / "kin.duckdb"
    with kinbase.open(path).store.writing():
        return path


@pytest.fixture
def empty(empty_file, tmp_path):
    """A database without models, where `cli` looks for one."""
    return kinbase.open(shutil.copy(empty_file, tmp_path / "kin.duckdb"))


@pytest.fixture(scope="session")
def published(tmp_path_factory):
    """A database of the published family in examples/model-kinship, which has no weights; only for reading."""
    db = kinbase.open(tmp_path_factory.mktemp("published") / "kin.duckdb")
    (row,) = db.import_([Path(__file__).parent.parent / "examples" / "model-kinship"]).to_dicts()
    assert row["status"] == "records" and row["notes"] == [
        "167 claims of parents, 376 scores, 75 kinships, 116 models' facts, 77 other names"
    ]
    return db


@pytest.fixture
def cli(tmp_path):
    """Run the command line in a process of its own, in `tmp_path`: cli("ls", ...) -> CompletedProcess."""

    def run(*arguments, stdin=None, env=None, **options):
        command = [sys.executable, "-m", "kinbase", *map(str, arguments)]
        environment = {**os.environ, "KINBASE_DB": str(tmp_path / "kin.duckdb"), **(env or {})}
        return subprocess.run(
            command,
            cwd=tmp_path,
            env=environment,
            input=stdin,
            capture_output=True,
            text=True,
            timeout=600,  # a hang, not a slow machine
            **options,
        )

    return run


@pytest.fixture
def inline_cli(tmp_path, monkeypatch):
    """The same in this process, a second faster: for tests of what is said, not of how a process starts and ends."""
    from kinbase.cli import main

    def run(*arguments):
        out, err = io.StringIO(), io.StringIO()
        with (
            monkeypatch.context() as patch,
            contextlib.redirect_stdout(out),
            contextlib.redirect_stderr(err),
            contextlib.chdir(tmp_path),
        ):
            patch.setattr(sys, "argv", ["kinbase", *map(str, arguments)])
            patch.setenv("KINBASE_DB", str(tmp_path / "kin.duckdb"))
            try:
                main()
                code = 0
            except SystemExit as ended:
                code = ended.code or 0
        return subprocess.CompletedProcess(arguments, code, out.getvalue(), err.getvalue())

    return run
