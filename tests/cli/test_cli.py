"""The command line as a user meets it: what stands on stdout and stderr, and the exit codes."""

import csv
import io
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import families
import polars as pl
import pytest
import torch


@pytest.fixture
def kin(db, cli):
    """The command line over the imported family."""
    return cli


def test_import_tells_each_model(cli, family):
    result = cli("import", *family.values(), "--base", "base")
    assert result.returncode == 0
    assert result.stdout == ""
    assert "imported ft_a against base" in result.stderr and "5 imported" in result.stderr
    assert "leaked" not in result.stderr


EXIT_CODES = [
    (0, ("ls",)),
    (0, ("--help",)),
    (1, ("show", "nobody")),
    (1, ("sql", "select nonsense")),
    (1, ("sql", "drop view models")),
    (1, ("import", "/nowhere")),
    (2, ("show",)),
    (2, ("ls", "--format", "xml")),
    (2, ("ls", "-f", "parquet")),
    (2, ("kin", "--metric", "pcc,xyz")),
    (2, ("sql", " ")),
    (2, ("nosuchcommand",)),
    (3, ("--db", "missing.duckdb", "ls")),
    (3, ("--db", "foreign.duckdb", "ls")),
    (3, ("--db", "missing.duckdb", "migrate")),
]


@pytest.mark.parametrize(("code", "arguments"), EXIT_CODES)
def test_exit_codes(kin, tmp_path, code, arguments):
    (tmp_path / "foreign.duckdb").write_text("something else")
    result = kin(*arguments)
    assert result.returncode == code
    if code in (1, 3):
        # one line that says what happened, and of a query the place
        assert len(result.stderr.splitlines()) == (3 if "nonsense" in str(arguments) else 1)
        assert "Traceback" not in result.stderr
    assert not (tmp_path / "missing.duckdb").exists()


def test_ls_is_a_table_of_the_families(kin):
    lines = kin("ls").stdout.splitlines()
    assert lines[0].split() == [
        "name",
        "base",
        "relation",
        "params",
        "dtype",
        "license",
        "weights",
        "imported",
    ]
    assert [line.split()[0] for line in lines[2:]] == ["base", "ft_a", "ft_b", "ft_c", "merge_ab"]
    assert [line.split()[0] for line in kin("ls", "MERGE").stdout.splitlines()[2:]] == ["merge_ab"]


def test_every_format_tells_the_same_rows(kin, tmp_path):
    query = "select name, parameters, has_weights, null as nothing from models order by name"
    want = [json.loads(line) for line in kin("sql", query, "-f", "jsonl").stdout.splitlines()]
    assert [row["name"] for row in want] == ["base", "ft_a", "ft_b", "ft_c", "merge_ab"]
    assert json.loads(kin("sql", query, "-f", "json").stdout) == want
    table = kin("sql", query).stdout.splitlines()
    assert table[0].split() == ["name", "parameters", "has_weights", "nothing"] and len(table) == 2 + len(
        want
    )
    rows = list(csv.DictReader(io.StringIO(kin("sql", query, "-f", "csv").stdout)))
    assert [(row["name"], int(row["parameters"]), row["nothing"]) for row in rows] == [
        (row["name"], row["parameters"], "") for row in want
    ]
    for name in ("out.parquet", "out.csv", "out.json", "out.jsonl"):
        assert kin("sql", query, "-o", name).returncode == 0
    assert pl.read_parquet(tmp_path / "out.parquet").to_dicts() == want
    assert json.loads((tmp_path / "out.json").read_text()) == want
    assert not list(tmp_path.glob("*.part"))


def test_an_empty_result_is_valid_in_every_format(kin):
    query = "select name from models where false"
    assert json.loads(kin("sql", query, "-f", "json").stdout) == []
    assert kin("sql", query, "-f", "jsonl").stdout == ""
    assert kin("sql", query, "-f", "csv").stdout == "name\n"
    assert kin("sql", query).stdout.splitlines()[0] == "name"


def test_undefined_numbers_are_null_in_json(kin):
    assert json.loads(kin("sql", "select 'nan'::double as x, 'inf'::double as y", "-f", "json").stdout) == [
        {"x": None, "y": None}
    ]


def test_sql_reads_stdin(kin):
    assert "ft_a" in kin("sql", "-", stdin="select name from models").stdout


def test_sql_streams_and_a_reader_that_leaves_ends_it(db):
    command = f"{sys.executable} -m kinbase --db {db.store.path} sql 'select * from range(3000000000)' -f csv | head -3"
    result = subprocess.run(["bash", "-c", command], capture_output=True, text=True, timeout=600)
    assert result.stdout.split() == ["range", "0", "1"]
    assert result.stderr == ""


def test_kin_of_several_is_a_matrix_with_the_groups_kinship(kin):
    lines = kin("kin", "ft_a", "ft_b", "merge_ab").stdout.splitlines()
    assert lines[0].split() == ["pcc", "1", "2", "3"]
    # In the order of the clusters, as the heatmap: the merge stands beside or between its parents.
    assert [line.split()[1] for line in lines[1:4]] in (
        ["ft_a", "merge_ab", "ft_b"],
        ["ft_b", "merge_ab", "ft_a"],
    )
    matrix = [[None if cell == "." else float(cell) for cell in line.split()[2:]] for line in lines[1:4]]
    assert [row[i] for i, row in enumerate(matrix)] == [None] * 3
    assert all(matrix[i][j] == matrix[j][i] for i in range(3) for j in range(3))
    rows = json.loads(kin("kin", "ft_a", "ft_b", "merge_ab", "-f", "json").stdout)
    assert len(rows) == 3
    mean = sum(row["pcc"] for row in rows) / 3
    assert lines[-1].startswith(f"group kinship of 3 models: pcc {mean:.4f}")


def test_kin_shows_every_metric_asked_for(kin):
    out = kin("kin", "ft_a", "ft_b", "--metric", "pcc,cs,ed").stdout
    assert [line.split()[0] for line in out.splitlines() if line.endswith(" 2")] == ["pcc", "cs", "ed"]


def test_kin_of_one_lists_the_nearest_first(kin):
    rows = json.loads(kin("kin", "merge_ab", "-k", "2", "-f", "json").stdout)
    assert [row["model"] for row in rows] == ["ft_a", "ft_b"]


def test_kin_says_why_a_model_has_none(cli, family):
    cli("import", family["base"], family["ft_a"])
    assert "ft_a has no known base; by its weights it is nearest to base" in cli("kin", "ft_a").stderr
    cli("import", family["ft_a"], "--base", "base")
    assert "base is the base of 1 model:" in cli("kin", "base").stderr
    assert "ft_a has no kin yet" in cli("kin", "ft_a").stderr


@pytest.mark.parametrize("by", ["tensor", "layer", "block"])
def test_kin_by_parts(kin, by):
    rows = json.loads(kin("kin", "ft_a", "ft_b", "--by", by, "--metric", "cs", "-f", "json").stdout)
    assert len(rows) > 3
    assert all({"model_a", "model_b", by, "cs"} <= row.keys() and "pcc" not in row for row in rows)


def test_the_tree_draws_each_model_once(kin):
    assert kin("tree", "base").stdout.split() == [
        "base",
        "├──",
        "ft_a",
        "├──",
        "ft_b",
        "├──",
        "ft_c",
        "└──",
        "merge_ab",
    ]
    assert kin("tree", "ft_a").stdout.splitlines() == ["base", "└── ft_a"]
    assert kin("tree", "ft_a", "--up").stdout.splitlines()[0] == "ft_a"
    assert json.loads(kin("tree", "ft_a", "-f", "json").stdout)[0]["parent"] == "base"


def test_show_tells_the_facts(kin):
    out = kin("show", "merge_ab").stdout
    for word in ("digest", "LlamaForCausalLM", "nearest kin", "coverage     1.0000", "BF16"):
        assert word in out
    assert json.loads(kin("show", "merge_ab", "-f", "json").stdout)[0]["kin"][0]["model"] == "ft_a"


def test_hostile_names_are_shown_escaped(cli, tmp_path):
    name = "\x1b]0;owned\x07\u202e[/]\nx"
    folder = tmp_path / "plain"
    families.write_safetensors(folder / "model.safetensors", {"w": torch.ones(3)})
    assert cli("import", folder, "--name", name).returncode == 0
    for arguments in (("ls",), ("show", name), ("tree", name), ("sql", "from models"), ("show", name + "?")):
        result = cli(*arguments)
        assert not set(result.stdout + result.stderr) & {"\x1b", "\x07", "\u202e"}
        assert "\\x1b]0;owned\\x07\\u202e[/]\\x0ax" in result.stdout + result.stderr
    assert json.loads(cli("ls", "-f", "json").stdout)[0]["name"] == name


def test_a_bad_source_is_reported_and_the_rest_imported(cli, family, tmp_path):
    result = cli("import", family["base"], tmp_path / "nowhere", family["ft_a"], "--base", "base")
    assert result.returncode == 1
    assert "nowhere" in result.stderr and "2 imported" in result.stderr and "1 failed" in result.stderr
    assert len(cli("ls").stdout.splitlines()) == 4


def test_a_locked_database_says_who_holds_it(kin, tmp_path):
    code = f"import duckdb, time; c = duckdb.connect({str(tmp_path / 'kin.duckdb')!r}); print(1, flush=True); time.sleep(60)"
    holder = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE)
    try:
        holder.stdout.readline()
        result = kin("--wait", "0.2", "ls")
        assert result.returncode == 3
        assert f"PID {holder.pid}" in result.stderr
    finally:
        holder.kill()
        holder.wait()


def test_ctrl_c_ends_with_130_and_leaves_no_model(tmp_path):
    folders = []
    for name in ("base", "one"):
        folder = tmp_path / name
        tensors = {f"layers.{i}.weight": torch.randn(256, 256) for i in range(24)}
        families.write_safetensors(folder / "model.safetensors", tensors)
        folders.append(str(folder))
    slow = tmp_path / "slow.py"
    # The real command with a reader slowed down, so that the signal finds it at work, one tensor finished and to be kept.
    slow.write_text(
        "import time, kinbase.ingest.family_pass as m\n"
        "run = m.run\n"
        "def slowly(*a, **k):\n"
        "    for sums in run(*a, **k):\n"
        "        yield sums\n"
        "        print('measured', flush=True)\n"
        "        time.sleep(2)\n"
        "m.run = slowly\n"
        "from kinbase.cli import main\n"
        "main()\n"
    )
    command = [
        sys.executable,
        str(slow),
        "--db",
        str(tmp_path / "kin.duckdb"),
        "import",
        *folders,
        "--base",
        "base",
    ]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    process.stdout.readline()
    process.send_signal(signal.SIGINT)
    _, stderr = process.communicate(timeout=600)
    assert process.returncode == 130
    assert stderr.strip() == "kinbase: interrupted"
    count = [
        sys.executable,
        "-m",
        "kinbase",
        "--db",
        str(tmp_path / "kin.duckdb"),
        "sql",
        "select count(*) as n from models",
        "-f",
        "json",
    ]
    assert json.loads(subprocess.run(count, capture_output=True, text=True).stdout) == [{"n": 0}]
    shutil.rmtree(tmp_path / "base")


def test_completion_offers_models(kin, tmp_path):
    env = {"_KINBASE_COMPLETE": "bash_complete", "COMP_WORDS": "kinbase show ft", "COMP_CWORD": "2"}
    # `python -m` would be completed under another name, so the program itself is called
    program = shutil.which("kinbase", path=Path(sys.executable).parent)
    result = subprocess.run(
        [program],
        capture_output=True,
        text=True,
        env={**os.environ, **env, "KINBASE_DB": str(tmp_path / "kin.duckdb")},
    )
    assert result.stdout.splitlines() == ["plain,ft_a", "plain,ft_b", "plain,ft_c"]


def test_a_wrong_query_is_shown_with_its_place(db, cli):
    run = cli("--db", db.store.path, "sql", "select name,\n  'ü' as x, nam from models")
    assert run.returncode == 1
    message, line, caret = run.stderr.splitlines()
    assert "nam" in message and line == "  line 2:   'ü' as x, nam from models"
    assert line[caret.index("^") :].startswith("nam from")


def test_records_are_counted_and_a_name_that_is_not_there_is_said(empty, cli, tmp_path):
    (tmp_path / "s.csv").write_text("model,benchmark,metric,value\na,b,acc,0.5\na,c,acc,0.5\n")
    assert "2 scores" in cli("--db", empty.store.path, "import", "s.csv").stderr
    run = cli("--db", empty.store.path, "ls", "nosuch")
    assert run.returncode == 0 and "no model's name holds 'nosuch'" in run.stderr
