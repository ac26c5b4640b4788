"""`kin --aligned` of stored models and folders: the delta kinship that the undisguised model has, and who is a stranger."""

import json

import disguises
import pytest

import kinbase
from kinbase.errors import UsageError

KINDS = ("units", "heads", "values", "channels", "signs")


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """Folders: base, one, two (akin to one), masked (two, disguised), other (independent)."""
    place = tmp_path_factory.mktemp("disguised")
    base = disguises.llama(1, 2)
    one = disguises.tuned(base, 2)
    two = {
        name: (w + 0.5 * (one[name] - base[name])).astype("f4")
        for name, w in disguises.tuned(base, 3).items()
    }
    weights = {"base": base, "one": one, "two": two, "masked": disguises.disguised(two, 4, *KINDS, groups=2),
               "masked-base": disguises.disguised(base, 5, *KINDS, groups=2), "other": disguises.llama(8, 2)}  # fmt: skip
    folders = {name: disguises.save(place / name, w, groups=2) for name, w in weights.items()}
    return folders, disguises.pearson(one, two, base)


@pytest.fixture
def stored(models, tmp_path):
    db = kinbase.open(tmp_path / "kin.duckdb")
    folders, _ = models
    db.import_([folders[name] for name in ("base", "one", "two", "masked")], base="base")
    return db


def test_a_disguised_fine_tune_has_its_true_kinship(stored, models):
    (row,) = stored.kin(["one", "masked"], aligned=True).to_dicts()
    assert (row["verdict"], row["base"], row["coverage"]) == ("aligned", "base", 1)
    assert abs(row["delta_before"]) < 0.05
    assert row["delta"] == pytest.approx(
        models[1], abs=1e-6
    )  # float64 sums, and float32 deltas stored by nobody
    assert row["p"] < 1e-100
    assert (
        row["units"] > 150
        and row["channels"] > 40
        and row["heads"] > 0
        and row["flipped"] > 0 == row["scaled"]
    )


def test_what_is_in_place_has_the_kinship_that_kin_gives(stored):
    (row,) = stored.kin(["one", "two"], aligned=True).to_dicts()
    assert row["verdict"] == "in place"
    assert row["delta"] == row["delta_before"]
    assert row["delta"] == pytest.approx(stored.kinship(["one", "two"])["pcc"].item(), abs=1e-9)


def test_all_members_may_lie_in_another_order_than_their_base(models, tmp_path):
    folders, _ = models
    db = kinbase.open(tmp_path / "kin.duckdb")
    db.import_([folders[name] for name in ("masked-base", "one", "masked")], base="masked-base")
    (row,) = db.kin(["one", "masked"], aligned=True).to_dicts()
    assert (row["verdict"], row["base"]) == ("aligned", "masked-base")
    base = disguises.llama(1, 2)
    one = disguises.tuned(base, 2)
    two = {
        name: (w + 0.5 * (one[name] - base[name])).astype("f4")
        for name, w in disguises.tuned(base, 3).items()
    }
    # Flipped channels change the mean that Pearson takes away, so the truth is that of all three in the base's order.
    truth = disguises.pearson(*(disguises.disguised(m, 5, *KINDS, groups=2) for m in (one, two, base)))
    assert row["delta"] == pytest.approx(truth, abs=1e-9)


def test_folders_need_no_database(models, tmp_path):
    folders, _ = models
    db = kinbase.open(tmp_path / "none.duckdb")
    rows = db.kin([str(folders[name]) for name in ("two", "masked", "other")], aligned=True).to_dicts()
    assert [row["verdict"] for row in rows] == ["aligned", "not aligned", "not aligned"]
    assert rows[0]["pcc"] == pytest.approx(1, abs=1e-12) and rows[0]["base"] is None
    assert rows[1]["p"] > 0.001 < rows[2]["p"]
    assert not db.store.path.exists()


def test_tensor_by_tensor_and_by_layer(stored):
    tensors = stored.kin(["one", "masked"], aligned=True, by="tensor")
    layers = stored.kin(["one", "masked"], aligned=True, by="layer")
    assert tensors["numel"].sum() == layers["numel"].sum()
    assert layers["part"].to_list() == ["", "0", "1"]
    assert tensors["delta"].min() > 0.1
    with pytest.raises(UsageError, match="by tensor or layer"):
        stored.kin(["one", "masked"], aligned=True, by="block")


def test_infer_finds_the_family_of_a_disguised_model(models, tmp_path):
    folders, _ = models
    db = kinbase.open(tmp_path / "kin.duckdb")
    db.import_([folders[name] for name in ("base", "one", "masked", "other")])
    rows, notes = db.infer()
    assert "masked" not in rows["child"].to_list() + rows["parent"].to_list()
    rows, notes = db.infer(aligned=True)
    edges = {frozenset(pair) for pair in rows.select("parent", "child").iter_rows()}
    assert len(edges) == 2 and set.union(*map(set, edges)) == {"base", "one", "masked"}
    assert "masked is compared with its units in the order of base" in notes
    assert "other stands alone: nothing here is akin to it" in notes
    db.infer(["base", "one"], aligned=True)  # nothing of another order was kept
    assert (
        db.check(["one"]).height >= 0
        and db.kin(["base", "one"], aligned=True)["verdict"].item() == "in place"
    )


def test_the_command_line(stored, cli, models):
    folders, _ = models
    done = cli("kin", "one", "masked", "--aligned", "--save", "order.safetensors", "-f", "json")
    (row,) = json.loads(done.stdout)
    assert (done.returncode, row["verdict"]) == (0, "aligned")
    assert "--alignment order.safetensors" in done.stderr
    assert cli("kin", "one", folders["other"], "--aligned", "-f", "json").returncode == 0
    for arguments, code, words in [
        (("one", "--aligned"), 2, "name two"),
        (("one", "nobody", "--aligned"), 1, "there is no model 'nobody'"),
        (("one", "two", "--save", "x"), 2, "--save is of --aligned"),
    ]:
        failed = cli("kin", *arguments)
        assert failed.returncode == code and words in failed.stderr and failed.stderr.count("\n") == 1
