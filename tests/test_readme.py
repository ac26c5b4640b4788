"""The README and the pages beside it stay true: commands, packages, links and paths are there, and the tours run."""

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
TOUR = (ROOT / "docs" / "tour.md").read_text()
COMMANDS = (ROOT / "docs" / "commands.md").read_text()
SESSION = "```console\n$ export KINBASE_DB"
"""How the session in the demo's database begins, in both."""


def test_it_is_short():
    assert len(README.splitlines()) <= 150


def test_every_command_is_in_the_table():
    table = COMMANDS[: COMMANDS.index("## Exit codes")]
    rows = [row.split("|")[1] for row in table.splitlines() if row.startswith("| `")]
    told = set(re.findall(r"`([a-z]+)", " ".join(rows)))
    assert told == set(cli.commands)


def test_every_package_is_listed():
    table = README[README.index("## Every package") : README.index("## Documentation")]
    for folder in [
        *(ROOT / "kinbase").glob("*/__init__.py"),
        *(ROOT / "kinbase").glob("provenance/*/__init__.py"),
    ]:
        assert f"`{folder.parent.relative_to(ROOT)}/`" in table, folder


def test_every_view_it_names_is_there_and_every_one_there_is_named(db):
    there = db.sql("select view_name from duckdb_views() where not internal and schema_name = 'main'")[
        "view_name"
    ].to_list()
    told = set(re.findall(r"`(\w+)(?:\([^`]*\))?`", COMMANDS[COMMANDS.index("## Views") :]))
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


@pytest.mark.parametrize(
    "page",
    [
        "README.md",
        "CONTRIBUTING.md",
        "CHANGELOG.md",
        *sorted(f"docs/{p.name}" for p in (ROOT / "docs").glob("*.md")),
    ],
)
def test_every_link_leads_somewhere(page):
    for target in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", (ROOT / page).read_text()):
        assert target.startswith("https://") or (ROOT / page).parent.joinpath(target).exists(), target


def test_every_page_is_listed():
    for page in (ROOT / "docs").glob("*.md"):
        assert f"](docs/{page.name})" in README, page


def test_every_path_that_contributors_are_sent_to_is_there():
    text = (ROOT / "CONTRIBUTING.md").read_text()
    paths = re.findall(r"`((?:kinbase|importers|tui|schema|tests|docs|benchmarks)/[\w./]*)`", text)
    assert len(paths) > 30
    for path in paths:
        if not re.search("NAME|NNNN", path):
            assert (ROOT / path).exists(), path


@pytest.fixture(scope="module")
def tour(tmp_path_factory):
    """A folder with a demo of small models and next to no training, and its database."""
    from kinbase.demo import family
    from kinbase.demo.model import Config

    folder = tmp_path_factory.mktemp("tour")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(family, "CONFIG", Config(hidden_size=32, intermediate_size=64, layers=2, heads=2))
        patch.setattr(family, "EXAMPLES", 20)
        models = family.make_family(folder / "kinbase-demo", steps_scale=0.01)
    report = kinbase.open(folder / "kinbase-demo" / "kinbase.duckdb").import_(models, base=models[0].name)
    assert set(report["status"]) == {"imported"}
    return folder


@pytest.mark.parametrize(("text", "count"), [(README, 2), (TOUR, 3)], ids=["README", "tour"])
def test_the_session_runs(tour, text, count):
    block = text[text.index(SESSION) :].split("```")[1]
    commands = [line[2:] for line in block.splitlines() if line.startswith("$ kinbase")]
    assert len(commands) == count
    for command in commands:
        arguments = shlex.split(command)[1:]
        result = subprocess.run(
            [sys.executable, "-m", "kinbase", "--db", "kinbase-demo/kinbase.duckdb", *arguments],
            cwd=tour, capture_output=True, text=True,
        )  # fmt: skip
        assert result.returncode == 0, result.stderr
        # This command's columns are shown.
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


@pytest.mark.parametrize("text", [README, TOUR], ids=["README", "tour"])
def test_the_python_example_runs(tour, text, monkeypatch):
    monkeypatch.chdir(tour)
    exec(text[text.index("```python\n") + len("```python\n") :].split("```")[0], {})
