"""Recipes through a database: what is found, recorded and shown."""

import json

import families
import numpy as np
import pytest
import torch
from ruamel.yaml import YAML
from safetensors.torch import load_file

import kinbase
from kinbase.checkpoint import Edge
from kinbase.errors import KinbaseError
from kinbase.provenance.recipes import mergekit_config
from kinbase.provenance.recipes.search import places, record, recover
from kinbase.store.lineage import put_edges

# In the database.


def test_the_fixture_merge(db):
    row = db.recipe("merge_ab").row(0, named=True)
    assert list(row)[:5] == ["model", "verdict", "residual", "floor", "parents"]
    assert (row["verdict"], row["method"]) == ("merge", "linear")
    for parent in row["parents"]:
        truth = families.MERGE[parent["parent"]]
        assert parent["low"] <= truth <= parent["high"]
        assert parent["high"] - parent["low"] < 0.01


def test_residual_and_floor_are_what_the_files_say(db):
    """Recomputed from the tensors: the formula's floor, and the residual of the coefficients found."""
    weights = families.family_weights()
    row = db.recipe("merge_ab").row(0, named=True)
    shares = {p["parent"]: p["coefficient"] for p in row["parents"]}
    left = square = units = 0.0
    for name, base in weights["base"].items():
        base, child = base.double(), weights["merge_ab"][name].double()
        made = base + sum(a * (weights[p][name].double() - base) for p, a in shares.items())
        left += float(((child - made) ** 2).sum())
        square += float(((child - base) ** 2).sum())
        units += float((torch.exp2(torch.frexp(child[child != 0])[1].double() - 8) ** 2).sum())
    # The spacing is counted in one cell of a tensor, to five standard deviations of 0.2 / sqrt(2048) of a length.
    assert row["floor"] == pytest.approx(np.sqrt(units / 12 / square), rel=0.02)
    # The coefficients are those freed of rounding; the residual is of those fitted: a hair less.
    assert row["residual"] == pytest.approx(np.sqrt(left / square), rel=1e-2)


def test_recording_stores_edges_once_and_takes_back_what_is_no_longer_so(db):
    db.recipe("merge_ab")
    assert db.sql("from lineage where evidence = 'weights'").height == 0
    for _ in range(2):
        db.recipe("merge_ab", record=True)
    rows = db.sql(
        "select parent, relation, method, weight, detail from lineage where evidence = 'weights' order by 1"
    )
    assert rows["parent"].to_list() == ["ft_a", "ft_b"]
    assert rows["weight"].to_list() == pytest.approx([0.6, 0.4], abs=0.01)
    assert json.loads(rows["detail"][0])["verdict"] == "merge"
    db.recipe("merge_ab", ["ft_c"], record=True)
    assert db.sql("from lineage where evidence = 'weights'").height == 0


def test_nothing_is_recorded_that_would_make_a_circle(db):
    with db.store.writing() as con:
        put_edges(con, None, "card", [Edge("merge_ab", "finetune", "card", "ft_a")])
    found = recover(db.store, "merge_ab", among=["ft_a", "ft_b"])
    lines = record(db.store, found)
    assert any("ft_a descends from merge_ab" in line for line in lines)
    assert db.sql("select parent from lineage where evidence = 'weights'")["parent"].to_list() == ["ft_b"]


def test_descendants_and_younger_models_are_no_candidates(db):
    db.link("merge_ab", ["ft_a", "ft_b"])
    row = db.recipe("ft_a").row(0, named=True)
    assert row["candidates"] == 2
    assert "descend from it: merge_ab" in " ".join(row["notes"])
    with db.store.writing() as con:
        con.execute("update raw.model set created_at = '2024-01-01' where name = 'merge_ab'")
        con.execute("update raw.model set created_at = '2025-01-01' where name = 'ft_b'")
    row = db.recipe("merge_ab").row(0, named=True)
    assert "younger: ft_b" in " ".join(row["notes"])
    assert row["verdict"] != "merge"


def test_missing_pairs_are_measured(tmp_path, family):
    db = kinbase.open(tmp_path / "late.duckdb")
    db.import_(family.values(), base="base", kinship=False)
    for path in family.values():
        db.import_([path], base="base")
    assert db.recipe("merge_ab").row(0, named=True)["verdict"] == "merge"


def test_a_model_without_sums_of_its_own_weights_is_told_to_come_again(db):
    with db.store.writing() as con:
        con.execute(
            "delete from raw.weight where model_id = (select model_id from raw.model where name = 'merge_ab')"
        )
    with pytest.raises(KinbaseError, match="import it again"):
        db.recipe("merge_ab")


def test_without_the_bases_sums_there_is_a_recipe_and_a_note(db):
    with db.store.writing() as con:
        con.execute(
            "delete from raw.weight where model_id = (select model_id from raw.model where name = 'base')"
        )
    row = db.recipe("merge_ab").row(0, named=True)
    assert row["verdict"] == "merge"
    assert "SLERP is not looked for" in " ".join(row["notes"])


def test_a_configuration_makes_the_model_again(db, family):
    found = recover(db.store, "merge_ab")
    text = mergekit_config.config(found, *places(db.store, ["base", *found.named()], "merge_ab"))
    config = YAML(typ="safe").load(text)
    assert config["merge_method"] == "linear"
    assert config["out_dtype"] == "bfloat16"
    weights = {m["model"]: m["parameters"]["weight"] for m in config["models"]}
    assert weights == {
        str(family["ft_a"]): 0.6,
        str(family["ft_b"]): 0.4,
    }  # the roundest numbers in the intervals


def test_the_remade_merge_is_the_same(db, tmp_path, family):
    """Both add up in float32, in another order: that moves a weight only from within 2^-24 of a tie, about 1 in 10^4."""
    found = recover(db.store, "merge_ab")
    config = tmp_path / "again.yaml"
    config.write_text(mergekit_config.config(found, *places(db.store, ["base", *found.named()], "merge_ab")))
    db.merge(config, tmp_path / "again")
    weights = load_file(tmp_path / "again" / "model.safetensors")
    truth = load_file(family["merge_ab"] / "model.safetensors")
    different = sum(int((weights[name] != truth[name]).sum()) for name in truth)
    assert different <= 3e-3 * sum(t.numel() for t in truth.values())


@pytest.mark.parametrize(("value", "low", "high", "expected"), [
    (0.6002, 0.5998, 0.6006, 0.6), (0.3333, 0.3330, 0.3337, 0.333), (-0.0001, -0.01, 0.01, 0.0), (1.0, 1.0, 1.0, 1.0),
])  # fmt: skip
def test_the_roundest_number(value, low, high, expected):
    assert mergekit_config.nearest_round(value, low, high) == expected


# On the command line.


def test_json_is_one_object(db, cli):
    run = cli("recipe", "merge_ab", "-f", "json")
    assert run.returncode == 0
    found = json.loads(run.stdout)
    assert list(found)[:5] == ["model", "verdict", "residual", "floor", "parents"]
    assert [list(p) for p in found["parents"]] == [["parent", "coefficient", "low", "high"]] * 2


def test_the_page_and_the_files(db, cli, tmp_path):
    run = cli("recipe", "merge_ab", "--record", "--config", "again.yaml", "-o", "page.txt")
    assert (run.returncode, run.stdout) == (0, "")
    assert "ft_a -> merge_ab merge" in run.stderr
    page = (tmp_path / "page.txt").read_text()
    assert page.startswith("merge_ab: merge (linear)")
    assert "residual / floor" in page
    assert YAML(typ="safe").load((tmp_path / "again.yaml").read_text())["merge_method"] == "linear"
    assert cli("recipe", "merge_ab", "-o", "second.yml").returncode == 0
    assert (tmp_path / "second.yml").read_text() == (tmp_path / "again.yaml").read_text()


@pytest.mark.parametrize(("arguments", "said"), [
    (["nobody"], "there is no model 'nobody'"),
    (["base"], "is the base of its family"),
    (["merge_ab", "--among", "ft_a,nobody"], "there is no model 'nobody'"),
    (["merge_ab", "--among", "base"], "base: not measured against the base of merge_ab"),
    (["ft_c", "--config", "x.yaml"], "there is no merge to make again"),
    (["bare"], "known without its weights"),
    (["alone"], "no base is known for alone"),
])  # fmt: skip
def test_what_cannot_be_answered_is_one_line(db, cli, tmp_path, arguments, said):
    db.link("ft_c", ["bare"])
    families.write_safetensors(tmp_path / "alone" / "model.safetensors", {"w": np.ones((2, 3), np.float32)})
    db.import_([tmp_path / "alone"])
    run = cli("recipe", *arguments)
    assert run.returncode == 1
    assert run.stderr.count("\n") == 1
    assert said in run.stderr
    assert not (tmp_path / "x.yaml").exists()
