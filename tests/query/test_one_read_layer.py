"""The tables are named in the store, in the read layer and in the schema, and nowhere else."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SCRIPTS = "".join(script.read_text() for script in (ROOT / "schema" / "migrations").glob("*.sql"))
TABLES = sorted(set(re.findall(r"create table raw\.(\w+)", SCRIPTS)))
NAMED = re.compile(rf"\braw\.({'|'.join(TABLES)})\b")
ELSEWHERE = (
    "kinbase/cli", "kinbase/evolution", "kinbase/ingest", "kinbase/plotting", "kinbase/provenance", "kinbase/merging",
    "kinbase/kinship", "kinbase/demo", "kinbase/checkpoint", "kinbase/database.py", "kinbase/text.py", "tui", "importers",
)  # fmt: skip


def test_the_tables_are_known():
    assert {"model", "claim", "pair", "score", "run", "offspring"} <= set(TABLES)
    assert NAMED.search("select name from raw.model m") and not NAMED.search("raw.to(device)")


@pytest.mark.parametrize("folder", ELSEWHERE)
def test_no_table_is_named_outside_of_store_query_and_schema(folder):
    place = ROOT / folder
    files = [place] if place.is_file() else sorted(place.rglob("*.py"))
    assert files
    named = [
        f"{file.relative_to(ROOT)}:{number}: {line.strip()}"
        for file in files
        for number, line in enumerate(file.read_text().splitlines(), 1)
        if NAMED.search(line)
    ]
    assert not named, "move this read to kinbase/query, or this write to kinbase/store"


EXECUTED = re.compile(r"""\.execute\(|["']\s*(select .* from |from [a-z_]+ (where|order by) )""")
OWN = {"kinbase/cli/show.py", "tui/screens/sql.py", "kinbase/cli/pages.py"}
"""What its user typed, and queries that are offered to be typed."""


@pytest.mark.parametrize("folder", ELSEWHERE)
def test_no_query_is_run_outside_of_store_and_query(folder):
    place = ROOT / folder
    files = [place] if place.is_file() else sorted(place.rglob("*.py"))
    run = {str(file.relative_to(ROOT)) for file in files if EXECUTED.search(file.read_text())}
    assert run <= OWN, "move this read to kinbase/query, or this write to kinbase/store"


def test_the_pattern_of_a_query_that_is_run_is_found_where_queries_are():
    assert all(
        any(EXECUTED.search(file.read_text()) for file in (ROOT / "kinbase" / layer).glob("*.py"))
        for layer in ("store", "query")
    )
