"""docs/tables.md names every column that is read, and every other name for it; the help names the required ones."""

import re
from pathlib import Path

from kinbase.checkpoint import relations
from kinbase.importers.columns import OTHER_NAMES
from kinbase.importers.table import VIEWS

PAGE = (Path(__file__).parents[2] / "docs" / "tables.md").read_text()


def test_every_column_is_documented():
    rows = {
        match[1]: set(re.findall(r"`(\w+)`", match[2]))
        for match in re.finditer(r"^\| `(\w+)` \| (.+) \|$", PAGE, re.M)
    }
    for name, view in VIEWS.items():
        assert rows[name] >= {*view.required, *view.optional}, name
    for column, others in OTHER_NAMES.items():
        assert rows[column] >= set(others), column


def test_every_relation_is_documented():
    assert all(f"`{word}`" in PAGE for word in relations.KNOWN)


def test_the_help_names_what_is_required(cli):
    said = " ".join(cli("import", "--help").stdout.split())
    for view in ("lineage", "scores", "kinship", "aliases"):
        assert all(column in said for column in VIEWS[view].required), view
