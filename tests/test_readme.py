"""The README stays true: its commands and files are those there are, and its tour runs."""

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

import kinbase
from kinbase.cli import cli

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()


def test_every_command_is_in_the_table():
    table = README[README.index("## Commands") : README.index("## How it works")]
    rows = [row.split("|")[1] for row in table.splitlines() if row.startswith("| `")]
    told = set(re.findall(r"`([a-z]+)", " ".join(rows)))
    assert told == set(cli.commands)


def test_every_package_is_listed():
    table = README[README.index("## Every package") : README.index("## Developing")]
    for folder in [
        *(ROOT / "kinbase").glob("*/__init__.py"),
        *(ROOT / "kinbase").glob("provenance/*/__init__.py"),
    ]:
        assert f"`{folder.parent.relative_to(ROOT)}/`" in table, folder


def test_every_view_it_names_is_there_and_every_one_there_is_named(db):
    there = db.sql("select view_name from duckdb_views() where not internal and schema_name = 'main'")[
        "view_name"
    ].to_list()
    told = set(
        re.findall(
            r"`(\w+)(?:\([^`]*\))?`", README[README.index("The views are") : README.index("## How it works")]
        )
    )
    functions = set(
        db.sql("select function_name from duckdb_functions() where not internal")["function_name"]
    )
    assert told <= set(there) | functions
    assert {
        "models",
        "lineage",
        "deltas",
        "kinship",
        "kinship_by_tensor",
        "kinship_by_layer",
        "scores",
        "merge_gains",
    } <= told


def test_every_link_leads_somewhere():
    for target in re.findall(r"\]\(([^)#]+)\)", README):
        assert (ROOT / target).exists(), target


@pytest.fixture(scope="module")
def tour(tmp_path_factory):
    """A folder with a demo of next to no training, and its database."""
    from kinbase.demo.family import make_family

    folder = tmp_path_factory.mktemp("tour")
    models = make_family(folder / "kinbase-demo", steps_scale=0.01)
    report = kinbase.open(folder / "kinbase-demo" / "kinbase.duckdb").import_(models, base=models[0].name)
    assert set(report["status"]) == {"imported"}
    return folder


def test_the_tour_runs(tour):
    block = README[README.index("```console\n$ export KINBASE_DB") :].split("```")[1]
    commands = [line[2:] for line in block.splitlines() if line.startswith("$ kinbase")]
    assert len(commands) == 3
    for command in commands:
        arguments = shlex.split(command)[1:]
        result = subprocess.run(
            [sys.executable, "-m", "kinbase", "--db", "kinbase-demo/kinbase.duckdb", *arguments],
            cwd=tour, capture_output=True, text=True,
        )  # fmt: skip
        assert result.returncode == 0, result.stderr
        # The README shows this command's columns.
        assert result.stdout.splitlines()[0].split() == block[block.index(command) :].splitlines()[1].split()


def test_the_demos_evolution_can_begin(tour):
    from kinbase.demo.family import EVOLUTION

    config = tour / "evolve.yaml"
    config.write_text(EVOLUTION)
    plan = kinbase.open(tour / "kinbase-demo" / "kinbase.duckdb").first_generation(config)
    assert sorted(plan["role"]) == ["explore", "pair"]
    assert {parent for parents in plan["parents"] for parent in parents} <= {
        "digits-reverse",
        "digits-sort",
        "digits-rank",
    }


def test_the_python_example_runs(tour, monkeypatch):
    monkeypatch.chdir(tour)
    exec(README[README.index("```python\n") + len("```python\n") :].split("```")[0], {})
