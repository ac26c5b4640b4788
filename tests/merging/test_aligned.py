"""`merge --align`: a model and a permuted copy of it give the model, to the bit; other parents the same child in any order."""

import disguises
import pytest
import torch
from checkpoints import contents

import kinbase
from kinbase.checkpoint.open import read
from kinbase.errors import UsageError

PERMUTED = ("units", "heads", "values", "channels", "signs")


def config(*models, **more):
    return {
        "merge_method": "linear",
        "models": [{"model": str(m), "parameters": {"weight": 0.5}} for m in models],
        **more,
    }


def weights(folder):
    """{name: (dtype, shape, digest)} of a checkpoint folder."""
    return contents(read(str(folder)).checkpoint)


@pytest.fixture
def places(tmp_path):
    """Folders of a model, a fine-tune, and both disguised alike and otherwise, in bfloat16."""
    model = disguises.llama(1, 2)
    tuned = disguises.tuned(model, 2)
    made = {"model": model, "tuned": tuned, "copy": disguises.disguised(model, 3, *PERMUTED, groups=2),
            "masked": disguises.disguised(tuned, 4, *PERMUTED, groups=2), "other": disguises.llama(9, 2)}  # fmt: skip
    return {n: disguises.save(tmp_path / n, w, groups=2, dtype=torch.bfloat16) for n, w in made.items()}


@pytest.fixture
def db(tmp_path):
    return kinbase.open(tmp_path / "kin.duckdb")


def test_a_model_and_its_permuted_copy_give_the_model(db, places, tmp_path):
    half = config(places["model"], places["copy"])
    (row,) = db.merge(half, tmp_path / "aligned", align=True, import_=False).to_dicts()
    assert row["notes"][0].startswith("copy: 48 channels, 18") and "p = " in row["notes"][0]
    assert weights(tmp_path / "aligned") == weights(places["model"])
    db.merge(half, tmp_path / "plain", import_=False)
    assert weights(tmp_path / "plain") != weights(places["model"])


@pytest.mark.parametrize("method", ["linear", "task_arithmetic", "ties"])
def test_a_disguised_parent_makes_the_same_child(db, places, tmp_path, method):
    more = {} if method == "linear" else {"base_model": str(places["model"])}
    for name in ("tuned", "masked"):
        recipe = config(*([] if more else [places["model"]]), places[name], merge_method=method, **more)
        db.merge(recipe, tmp_path / f"of-{name}", align=name == "masked", import_=False)
    assert weights(tmp_path / "of-tuned") == weights(tmp_path / "of-masked")


def test_the_order_is_the_bases(db, places, tmp_path):
    recipe = config(places["tuned"], merge_method="task_arithmetic", base_model=str(places["copy"]))
    db.merge({**recipe, "parameters": {"weight": 1.0}}, tmp_path / "child", align=True, import_=False)
    (row,) = db.kin([str(places["copy"]), str(tmp_path / "child")], aligned=True).to_dicts()
    assert row["verdict"] == "in place"


def test_a_file_of_permutations_is_read(db, places, tmp_path, cli):
    order = tmp_path / "order.safetensors"
    db.kin([str(places["model"]), str(places["masked"])], aligned=True, save=order)
    (tmp_path / "merge.yml").write_text(
        f"merge_method: linear\nmodels:\n- {{model: {places['model']}, parameters: {{weight: 1}}}}\n"
        f"- {{model: {places['masked']}, parameters: {{weight: 1}}}}\n"
    )
    done = cli("merge", "merge.yml", "by-file", "--alignment", order)
    assert done.returncode == 0 and "order.safetensors' says" in done.stderr
    assert cli("merge", "merge.yml", "found", "--align").returncode == 0
    assert weights(tmp_path / "by-file") == weights(tmp_path / "found")
    assert "order.safetensors" in (tmp_path / "by-file" / "mergekit_config.yml").read_text()
    for child in ("by-file", "found"):  # the configuration beside it says that it was aligned
        assert "proved" in cli("check", child, "--replay").stdout


def test_a_file_of_other_models_is_refused(db, places, tmp_path):
    order = tmp_path / "order.safetensors"
    db.kin([str(places["model"]), str(places["copy"])], aligned=True, save=order)
    with pytest.raises(UsageError, match="no parent here is the one"):
        db.merge(config(places["model"], places["masked"]), tmp_path / "child", align=[order], import_=False)
    assert not (tmp_path / "child").exists() and not (tmp_path / "child.part").exists()


def test_strangers_are_merged_in_the_best_order_and_that_is_said(db, places, tmp_path):
    (row,) = db.merge(
        config(places["model"], places["other"]), tmp_path / "child", align=True, import_=False
    ).to_dicts()
    assert row["notes"][0].startswith("other: not aligned, merged in the best order found")


def test_wrong_requests(db, places, tmp_path):
    half = config(places["model"], places["copy"])
    with pytest.raises(UsageError, match="mergekit aligns no units"):
        db.merge(half, tmp_path / "child", align=True, backend="mergekit")
    with pytest.raises(kinbase.errors.KinbaseError, match="align is '3'"):
        db.merge({**half, "align": 3}, tmp_path / "child")
