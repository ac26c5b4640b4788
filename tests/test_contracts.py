"""The layers are what the README draws, and the import contracts break for whatever crosses them."""

import json
import os
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
LINTER = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]

LAYERS = "A package imports only what stands below it"
IMPORTERS = "An importer sees the checkpoint package and the errors, nothing else of ours"
DUCKDB = "Only the store imports duckdb"
TENSORS = "What knows a database, and the terminal UI, imports no tensor library"
CIRCLES = "No modules, and no packages beside each other, import each other in a circle"

# What is planted: (file, line added to it, the contract that has to break, what its report has to name).
VIOLATIONS = {
    "torch in a query": ("query/models.py", "import torch", TENSORS, "kinbase.query.models -> torch"),
    "torch in a query, for its type alone": (
        "query/models.py",
        "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import torch",
        TENSORS,
        "kinbase.query.models -> torch",
    ),
    "torch in a function of the terminal UI": (
        "tui/widgets/heatmap.py",
        "def planted():\n    import torch",
        TENSORS,
        "kinbase.tui.widgets.heatmap -> torch",
    ),
    "duckdb outside the store": (
        "query/frames.py",
        "import duckdb",
        DUCKDB,
        "kinbase.query.frames -> duckdb",
    ),
    "the terminal UI in the store": (
        "store/names.py",
        "import kinbase.tui.app",
        LAYERS,
        "kinbase.store.names -> kinbase.tui.app",
    ),
    "kinship in an importer": (
        "importers/gguf.py",
        "from kinbase.kinship import sums",
        IMPORTERS,
        "kinbase.importers.gguf -> kinbase.kinship.sums",
    ),
    "the command line in provenance": (
        "provenance/claims/claims.py",
        "from kinbase.cli import pages",
        LAYERS,
        "kinbase.provenance.claims.claims -> kinbase.cli.pages",
    ),
    "packages beside each other": (
        "plotting/layout.py",
        "import kinbase.evolution.config",
        LAYERS,
        "kinbase.plotting.layout -> kinbase.evolution.config",
    ),
    "a package outside the drawing": ("extra/__init__.py", "", LAYERS, "extra"),
    "a circle, for a type alone": (
        "plotting/marks.py",
        "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from kinbase.plotting.page import page",
        CIRCLES,
        "No cycles are allowed in kinbase.plotting",
    ),
    "a circle of packages beside each other": (
        "tui/widgets/heatmap.py",
        "import kinbase.tui.app",
        CIRCLES,
        "No cycles are allowed in kinbase.tui",
    ),
}

# A circle that the contract does not see, because it goes through the names that a package hands on.
THROUGH_A_PACKAGE = {
    "through a package": ("checkpoint/contract.py", "from kinbase.checkpoint import open as planted")
}

# Lints the copy as it is, then once with each violation: {name: (exit code, output, circles of modules)} on the
# last line.
LINT = """
import contextlib, io, json, sys
from pathlib import Path
import grimp, networkx
from importlinter.cli import lint_imports

def lint():
    with contextlib.redirect_stdout(io.StringIO()) as out:
        code = lint_imports(config_filename=sys.argv[1], cache_dir=sys.argv[2])
    modules = grimp.build_graph("kinbase", cache_dir=None)
    imports = networkx.DiGraph(
        (importer, imported) for importer in modules.modules
        for imported in modules.find_modules_directly_imported_by(importer)
    )
    circles = [sorted(c) for c in networkx.strongly_connected_components(imports) if len(c) > 1]
    return code, out.getvalue(), circles

outcomes = {"": lint()}
for name, (file, line, *_) in json.load(sys.stdin).items():
    path = Path("kinbase", file)
    before = path.read_text() if path.exists() else None
    path.parent.mkdir(exist_ok=True)
    path.write_text((before or "") + "\\n" + line + "\\n")
    outcomes[name] = lint()
    if before is None:
        path.unlink()
        path.parent.rmdir()
    else:
        path.write_text(before)
print()
print(json.dumps(outcomes))
"""


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory):
    """What the linter says of a copy of the packages, as it is and with each violation planted."""
    place = tmp_path_factory.mktemp("planted")
    hidden = shutil.ignore_patterns("__pycache__")
    shutil.copytree(ROOT / "kinbase", place / "kinbase", ignore=hidden)
    for sibling in ("importers", "tui", "schema"):
        shutil.copytree(ROOT / sibling, place / "kinbase" / sibling, ignore=hidden)
    done = subprocess.run(
        [sys.executable, "-c", LINT, ROOT / "pyproject.toml", place / "cache"],
        cwd=place, input=json.dumps(VIOLATIONS | THROUGH_A_PACKAGE), capture_output=True, text=True,
        env={**os.environ, "PYTHONPATH": str(place), "COLUMNS": "250"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def test_the_packages_keep_every_contract(outcomes):
    code, text, _ = outcomes[""]
    assert code == 0, text
    for contract in LINTER["contracts"]:
        assert f"{contract['name']} KEPT" in text


@pytest.mark.parametrize("name", VIOLATIONS)
def test_a_planted_violation_breaks_its_contract(outcomes, name):
    _, _, contract, named = VIOLATIONS[name]
    code, text, _ = outcomes[name]
    assert code == 1
    assert f"{contract} BROKEN" in text
    assert named in text


def test_no_modules_import_each_other_in_a_circle(outcomes):
    assert outcomes[""][2] == []
    ((*circle,),) = outcomes["through a package"][2]
    assert {"kinbase.checkpoint", "kinbase.checkpoint.contract", "kinbase.checkpoint.open"} <= set(circle)


def test_the_drawing_of_the_readme_is_the_contract():
    (layers,) = [contract["layers"] for contract in LINTER["contracts"] if contract["type"] == "layers"]
    text = (ROOT / "README.md").read_text()
    drawing = text[text.index("enforces this drawing") :].split("```")[1].strip("\n")
    # Descriptions begin in a column of their own.
    column = drawing.index("argv")
    drawn = [set(row[:column].split()) for row in drawing.splitlines()]
    assert drawn == [set(layer.split(" | ")) for layer in layers]


def test_the_linter_counts_imports_for_types_alone():
    assert not LINTER.get("exclude_type_checking_imports", False)
