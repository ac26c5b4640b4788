"""Fixtures of the terminal UI tests."""

import pytest

import kinbase
from kinbase.store import Store
from kinbase.tui.widgets import model_tree


@pytest.fixture(autouse=True)
def no_rest(monkeypatch):
    """The cursor need not rest before a details is read."""
    monkeypatch.setattr(model_tree, "REST", 0.01)


@pytest.fixture(autouse=True)
def own_settings(monkeypatch, tmp_path):
    """Nothing is remembered from one test to the next."""
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))


@pytest.fixture(scope="session")
def imported(tmp_path_factory, family):
    """The fixture family with claims and scores."""
    path = tmp_path_factory.mktemp("tui") / "kin.duckdb"
    kinbase.open(path).import_(family.values(), base="base")
    with Store(path).writing() as con:
        ids = dict(con.execute("select name, model_id from raw.model").fetchall())
        con.execute("delete from raw.claim")
        rows = [
            (ids["ft_a"], ids["base"], "finetune", None, None, "card"),
            (ids["merge_ab"], ids["ft_a"], "merge", "linear", 0.6, "config"),
            (ids["merge_ab"], ids["ft_b"], "merge", "linear", 0.4, "config"),
            (ids["merge_ab"], ids["base"], "base", None, None, "config"),
            (ids["merge_ab"], ids["ft_a"], "merge", "linear", 0.598, "weights"),
        ]
        con.executemany(
            "insert into raw.claim (child_id, parent_id, relation, method, weight, evidence) values (?, ?, ?, ?, ?, ?)",
            rows,
        )
        con.executemany(
            "insert into raw.score (model_id, benchmark, metric, value) values (?, 'mmlu', 'acc', ?)",
            [(ids["ft_a"], 0.5), (ids["ft_b"], 0.6), (ids["merge_ab"], 0.65), (ids["base"], 0.4)],
        )
        con.execute("update raw.model set license = 'mit' where name in ('ft_a', 'ft_c')")
    return path


@pytest.fixture
def path(imported, tmp_path):
    """A database of one's own to look at or to spoil."""
    own = tmp_path / "kin.duckdb"
    own.write_bytes(imported.read_bytes())
    return own
