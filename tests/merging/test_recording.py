"""`kinbase merge`: names become checkpoints, and the child is recorded."""

import json
import shutil

import pytest
from merges import delta_config, models

from kinbase.errors import KinbaseError, UsageError


def test_names_become_checkpoints_and_the_child_is_recorded(tmp_path, db, cli):
    (tmp_path / "merge.yml").write_text(
        "merge_method: ties\nbase_model: base\ndtype: bfloat16\nmodels:\n"
        "  - {model: ft_a, parameters: {weight: 0.6, density: 0.5}}\n  - {model: ft_b, parameters: {weight: 0.4, density: 0.5}}\n"
    )
    got = cli("merge", "merge.yml", "out/child")
    assert got.returncode == 0, got.stderr
    assert "merged into out/child, imported as child against base" in got.stderr
    edges = db.sql(
        "select parent, relation, method, weight from lineage where child = 'child' and evidence = 'config' order by all"
    )
    assert edges.rows() == [
        ("base", "base", "ties", None),
        ("ft_a", "merge", "ties", 0.6),
        ("ft_b", "merge", "ties", 0.4),
    ]
    assert db.nearest_kin("child", 1)["method"].to_list() == ["exact"]
    assert set(db.sql("select name from models")["name"]) == {
        "base",
        "ft_a",
        "ft_b",
        "ft_c",
        "merge_ab",
        "child",
    }
    again = cli("merge", "merge.yml", "elsewhere/child")
    assert again.returncode == 1 and "there is a model 'child' already" in again.stderr
    assert not (tmp_path / "elsewhere").exists()


def test_parents_by_path_come_in_with_the_child(tmp_path, empty, family):
    config = {"merge_method": "linear", "models": models(family, ft_a=0.6, ft_b=0.4)}
    (row,) = empty.merge(config, tmp_path / "child").to_dicts()
    assert (row["model"], row["status"]) == ("child", "imported")
    assert empty.names() == ["child", "ft_a", "ft_b"]
    assert set(empty.sql("select parent from lineage where child = 'child'")["parent"]) == {"ft_a", "ft_b"}


def test_without_import_the_database_is_not_made(tmp_path, family, cli):
    (tmp_path / "merge.json").write_text(json.dumps(delta_config(family, "ties")))
    got = cli("merge", "--no-import", "merge.json", "child")
    assert (got.returncode, got.stderr) == (0, "merged into child\n")
    assert not (tmp_path / "kin.duckdb").exists()


@pytest.mark.parametrize(
    "model, said",
    [("ft_aa", "there is no model 'ft_aa': did you mean ft_a"), ("ghost", "known by name only")],
)
def test_unknown_models_are_named(tmp_path, db, model, said):
    db.link("ft_c", ["ghost"])
    with pytest.raises(KinbaseError, match=said):
        db.merge(
            {"merge_method": "linear", "models": [model, "ft_b"], "parameters": {"weight": 1}},
            tmp_path / "child",
        )


def test_the_other_backend_says_how_it_is_had(tmp_path, db):
    if shutil.which("mergekit-yaml") or _has_mergekit():
        pytest.skip("mergekit is installed")
    with pytest.raises(UsageError, match=r"pip install 'kinbase\[mergekit\]'"):
        db.merge(
            {"merge_method": "della", "base_model": "base", "models": ["ft_a", "ft_b"]},
            tmp_path / "child",
            backend="mergekit",
        )


def _has_mergekit():
    from importlib.util import find_spec

    return find_spec("mergekit") is not None
