"""The commands that correct and take back: what they say, what they ask, their exit codes."""

import json


def test_removing_asks_and_can_be_undone(db, cli):
    asked = cli("rm", "ft_a")
    assert asked.returncode == 2 and "--yes" in asked.stderr
    assert "ft_a" in db.names()
    assert "removed ft_a" in cli("rm", "ft_a", "--yes").stderr
    assert "ft_a" not in db.names()
    undone = cli("undo")
    assert undone.returncode == 0 and undone.stderr.startswith("undone: rm ft_a (")
    assert "ft_a" in db.names()


def test_a_day_is_told_and_taken_back(db, cli):
    for words in (
        ("rename", "ft_a", "first"),
        ("alias", "first", "org/first"),
        ("set", "first", "license=mit", "notes=two words"),
        ("tag", "first", "keep", "best"),
        ("score", "first", "mmlu", "-0.5", "--metric", "mcc", "--n-shot", "5"),
    ):
        assert cli(*words).returncode == 0, words
    shown = cli("show", "ft_a").stdout
    assert "best, keep" in shown and "two words" in shown
    log = json.loads(cli("log", "-f", "json").stdout)
    assert [row["verb"] for row in log] == ["score", "tag", "set", "alias", "rename", "import"]
    assert log[2]["said"] == 'first license=mit "notes=two words"'
    assert log[-1]["can_be_undone"] is False
    assert cli("undo", "5").returncode == 0
    assert "ft_a" in db.names()


def test_what_is_wrong_is_said_in_a_line(db, cli):
    for code, *words in (
        (1, "rm", "nobody", "--yes"),
        (1, "undo"),
        (2, "undo", "0"),
        (2, "set", "ft_a", "license"),
        (2, "set", "ft_a", "created_at=soon"),
        (2, "tag", "ft_a"),
        (2, "tag", "ft_a", "two words"),
        (2, "alias", "ft_a"),
        (1, "rename", "ft_a", "ft_b"),
        (2, "score", "ft_a", "mmlu", "nan"),
    ):
        result = cli(*words)
        assert result.returncode == code, (words, result.stderr)
        assert "Traceback" not in result.stderr


def test_no_database_is_made_by_correcting(cli, tmp_path):
    for words in (("tag", "a", "x"), ("undo",), ("link", "a", "b"), ("rm", "a", "--yes")):
        assert cli("--db", str(tmp_path / "no.duckdb"), *words).returncode == 3
    assert not (tmp_path / "no.duckdb").exists()
