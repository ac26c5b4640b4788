"""What each command loads, proved in processes of their own: the quick ones stay quick."""

import subprocess
import sys
from pathlib import Path

import pytest

HEAVY = {"torch", "transformers", "huggingface_hub"}


def loaded(code, *arguments):
    """Top-level modules in sys.modules after `code`, and what it printed."""
    script = f"{code}\nimport sys\nprint('MODULES', *sorted({{m.partition('.')[0] for m in sys.modules}}))"
    result = subprocess.run(
        [sys.executable, "-c", script, *map(str, arguments)], capture_output=True, text=True, check=True
    )
    return set(result.stdout.rpartition("MODULES")[2].split())


COMMAND = """
import sys
from kinbase.cli import cli
cli.main(sys.argv[1:], standalone_mode=False)
"""


def test_help_loads_nothing_but_click():
    modules = loaded(COMMAND, "--help")
    assert not modules & (HEAVY | {"duckdb", "polars", "numpy", "numba", "textual", "rich", "networkx"})


@pytest.mark.parametrize(
    "arguments",
    [("ls",), ("sql", "from kinship"), ("show", "ft_a"), ("tree", "base"), ("kin",), ("scan", "ft_a")],
)
def test_reading_commands_load_no_tensor_library(db, arguments):
    modules = loaded(COMMAND, "--db", db.store.path, *arguments)
    assert "duckdb" in modules
    assert not modules & (HEAVY | {"numba", "textual"})


def test_an_import_on_the_cpu_loads_no_torch(tmp_path, family):
    modules = loaded(
        COMMAND,
        "--db",
        tmp_path / "x.duckdb",
        "import",
        *family.values(),
        "--base",
        "base",
        "--device",
        "cpu",
    )
    assert "llvmlite" in modules  # numba only where the kernels were never compiled
    assert not modules & HEAVY


def test_the_package_itself_loads_nothing():
    assert not loaded("import kinbase") & (HEAVY | {"duckdb", "polars", "numpy", "click"})


@pytest.mark.parametrize("name", ["schema", "tui", "importers"])
def test_the_sibling_folders_refuse_a_second_name(name):
    root = Path(__file__).parents[1]
    result = subprocess.run(
        [sys.executable, "-c", f"import {name}"], cwd=root, capture_output=True, text=True
    )
    assert f"import kinbase.{name}, not {name}" in result.stderr


def test_the_wheel_holds_every_module(tmp_path):
    """A subpackage left out of `packages` would be missing from the wheel, while an editable install sees it."""
    import zipfile

    root = Path(__file__).parents[1]
    subprocess.run(
        [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "-w", tmp_path, root],
        check=True, capture_output=True,
    )  # fmt: skip
    (wheel,) = tmp_path.glob("*.whl")
    inside = set(zipfile.ZipFile(wheel).namelist())
    for folder, place in (
        ("kinbase", "kinbase"),
        ("tui", "kinbase/tui"),
        ("importers", "kinbase/importers"),
        ("schema", "kinbase/schema"),
    ):
        for path in (root / folder).rglob("*"):
            if path.suffix in (".py", ".sql", ".tcss", ".typed"):
                assert f"{place}/{path.relative_to(root / folder)}" in inside
    assert all(name.startswith(("kinbase/", "kinbase-")) for name in inside)
