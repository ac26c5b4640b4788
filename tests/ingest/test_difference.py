"""What differs between two models, stored or not: against numbers made by hand."""

import json

import numpy as np
import pytest
import torch
from families import write_safetensors

import kinbase
from kinbase.errors import KinbaseError


@pytest.fixture
def pair(tmp_path):
    """Two folders that differ in every way tensors, configurations and tokenizers can."""
    torch.manual_seed(0)
    same, old = torch.randn(5, 7), torch.randn(4, 6)
    new = old.clone()
    new[1, 2] += 0.5
    new[3, 3] -= 0.25
    a = {"layers.0.same.weight": same, "layers.1.w.weight": old, "layers.1.wide.weight": torch.ones(8, 2),
         "count": torch.tensor([1, 2]), "gone.weight": torch.ones(2), "d.weight": torch.ones(3)}  # fmt: skip
    b = {"model.layers.0.same.weight": same, "model.layers.1.w.weight": new, "layers.1.wide.weight": torch.ones(9, 2),
         "count": torch.tensor([1, 3]), "new.weight": torch.ones(2), "d.weight": torch.ones(3).bfloat16()}  # fmt: skip
    for name, tensors, config, vocabulary in (
        ("a", a, {"x": 1, "deep": {"y": [1, 2], "z": "s"}}, {"p": 0}),
        ("b", b, {"x": 1, "deep": {"y": [1, 3]}, "more": None}, {"p": 0, "q": 1}),
    ):
        write_safetensors(tmp_path / name / "model.safetensors", tensors)
        (tmp_path / name / "config.json").write_text(json.dumps(config))
        (tmp_path / name / "tokenizer.json").write_text(json.dumps({"model": {"vocab": vocabulary}}))
    (tmp_path / "a" / "merges.txt").write_text("p q")
    return tmp_path / "a", tmp_path / "b", old, new


def by_item(rows, part):
    return {row["item"]: row for row in rows.filter(rows["part"] == part).iter_rows(named=True)}


def test_folders_that_no_database_knows(pair, tmp_path):
    a, b, old, new = pair
    rows, notes = kinbase.open(tmp_path / "no.duckdb").diff(a, b)
    assert notes == [] and not (tmp_path / "no.duckdb").exists()
    tensors = by_item(rows, "tensor")
    assert {name: row["difference"] for name, row in tensors.items()} == {
        "layers.0.same.weight": "equal",
        "layers.1.w.weight": "changed",
        "layers.1.wide.weight": "shape",
        "count": "changed",
        "gone.weight": "only in a",
        "new.weight": "only in b",
        "d.weight": "dtype",
    }
    changed = tensors["layers.1.w.weight"]
    delta = (new.double() - old.double()).numpy()
    assert changed["relative"] == pytest.approx(
        np.linalg.norm(delta) / np.linalg.norm(old.double()), rel=1e-12
    )
    assert changed["max_abs"] == np.abs(delta).max()
    assert changed["changed"] == 2 / 24
    assert tensors["d.weight"]["relative"] == 0
    assert {name: (row["a"], row["b"]) for name, row in by_item(rows, "config").items()} == {
        "config.json: deep.y": ("[1, 2]", "[1, 3]"),
        "config.json: deep.z": ('"s"', None),
        "config.json: more": (None, "null"),
    }
    files = by_item(rows, "tokenizer")
    assert (files["tokenizer.json"]["a"], files["tokenizer.json"]["b"]) == ("1 tokens", "2 tokens")
    assert files["merges.txt"]["difference"] == "only in a"


def test_counts_by_layer(pair, tmp_path):
    a, b, *_ = pair
    stat = kinbase.open(tmp_path / "no.duckdb").diff(a, b, stat=True)[0]
    assert stat.filter(stat["part"] == "tensor").select("of", "equal", "changed", "other").rows() == [
        ("outside the layers", 0, 2, 2),
        ("layers.0", 1, 0, 0),
        ("layers.1", 0, 1, 1),
    ]


def test_nan_is_equal_to_itself_and_counted_where_it_is_new(tmp_path):
    x = torch.tensor([1.0, float("nan"), 2.0, 3.0])
    y = torch.tensor([1.0, float("nan"), float("inf"), 3.5])
    for name, tensor in (("a", x), ("b", y)):
        write_safetensors(tmp_path / name / "model.safetensors", {"w": tensor})
    rows, _ = kinbase.open(tmp_path / "no.duckdb").diff(tmp_path / "a", tmp_path / "b")
    (row,) = by_item(rows, "tensor").values()
    assert (row["changed"], row["max_abs"]) == (0.5, 0.5)
    assert row["relative"] == pytest.approx(0.5 / 10**0.5)


def test_what_is_said_of_stored_models(db):
    db.set("ft_a", license="mit")
    db.score("ft_a", "mmlu", 61.5)
    db.link("ft_b", ["ft_c"], weights=[0.5])
    rows, notes = db.diff("ft_a", "ft_b")
    assert by_item(rows, "fact")["license"]["a"] == "mit"
    assert by_item(rows, "score")["mmlu acc of user"]["difference"] == "only in a"
    assert by_item(rows, "lineage")["ft_c (finetune)"]["b"] == "0.5"
    db.rm(["ft_c"])
    rows, notes = db.diff("ft_a", "ft_c")
    assert not by_item(rows, "tensor") and "ft_c has no weights here" in notes[0]
    with pytest.raises(KinbaseError, match="there is no model 'nobody'"):
        db.diff("ft_a", "nobody")


def test_the_same_weights_are_not_read(db):
    rows, notes = db.diff("ft_a", "ft_a")
    assert not rows.height and "the same weights" in notes[0]
