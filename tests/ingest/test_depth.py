"""Layers matched by content, and the same weights in another layout: as an import tells and stores them."""

import json

import numpy as np
import pytest
import torch
from families import CONFIG, write_safetensors
from safetensors.torch import load_file

import kinbase

LAYERS, HIDDEN, INNER, VOCAB = 5, 48, 96, 128


def weights(seed, base=None, shared=None):
    """A small decoder's weights; with a base, its fine-tune, which shares seven tenths of its change."""
    generator = torch.Generator().manual_seed(seed)
    shapes = {"model.embed_tokens.weight": (VOCAB, HIDDEN), "lm_head.weight": (VOCAB, HIDDEN)}
    for layer in range(LAYERS):
        at = f"model.layers.{layer}."
        shapes |= {f"{at}self_attn.{n}_proj.weight": (HIDDEN, HIDDEN) for n in "qkvo"}
        shapes |= {f"{at}mlp.{n}_proj.weight": (INNER, HIDDEN) for n in ("gate", "up")}
        shapes |= {f"{at}mlp.down_proj.weight": (HIDDEN, INNER), f"{at}input_layernorm.weight": (HIDDEN,)}
    drawn = {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}
    if base is None:
        return {n: t if t.ndim > 1 else torch.ones_like(t) for n, t in drawn.items()}
    return {n: base[n] + 0.03 * (0.7 * shared[n] + 0.51**0.5 * t) for n, t in drawn.items()}


BASE, SHARED = weights(1), weights(9)
TUNED = {name: weights(seed, BASE, SHARED) for name, seed in (("a", 2), ("b", 3))}


def relayered(parts):
    """Weights whose layers are those of models: [(model, layer), ...]; the rest is the first model's."""
    child = {n: t for n, t in parts[0][0].items() if ".layers." not in n}
    for number, (model, layer) in enumerate(parts):
        at = f"model.layers.{layer}."
        child |= {n.replace(at, f"model.layers.{number}."): t for n, t in model.items() if n.startswith(at)}
    return child


@pytest.fixture
def db(tmp_path):
    return kinbase.open(tmp_path / "kb.duckdb")


def save(folder, tensors, **config):
    write_safetensors(folder / "model.safetensors", {n: t.clone() for n, t in tensors.items()})
    (folder / "config.json").write_text(json.dumps(CONFIG | config))
    return folder


def brought(db, tmp_path, **models):
    """Import a base, its fine-tunes and others beside them; the notes of each by name."""
    folders = [save(tmp_path / n, t) for n, t in ({"base": BASE} | TUNED | models).items()]
    found = db.import_(folders, base="base")
    assert set(found["status"]) == {"imported"}
    return {row["model"]: " / ".join(row["notes"]) for row in found.to_dicts()}


def pcc(x, y, names):
    u, v = (torch.cat([(m[n].double() - BASE[n].double()).flatten() for n in names]) for m in (x, y))
    return float(np.corrcoef(u, v)[0, 1])


def kinship(db, a, b):
    return db.sql("select pcc, coverage from kinship where model_a = ? and model_b = ?", [a, b]).row(0)


def test_a_frankenmerge_meets_the_layers_that_it_is_made_of(db, tmp_path):
    a, b = TUNED["a"], TUNED["b"]
    stacked = relayered([(b, 0), (b, 1), (a, 1), (a, 2), (a, 3), (b, 3), (b, 4)])
    notes = brought(db, tmp_path, stacked=stacked)
    assert "stacked has 7 layers (layers) where base has 5" in notes["stacked"]
    assert "layer 3 is a's layer 2" in notes["stacked"] and "layer 6 is b's layer 4" in notes["stacked"]
    # Of two copies of a layer the nearer one is compared: all of the base's tensors are met.
    found, coverage = kinship(db, "stacked", "b")
    assert coverage == 1 and found > 0.6
    reasons = db.sql("select distinct reason from skipped where model = 'stacked'").rows()
    assert reasons == [("a layer that is compared once already",)]
    # And again when its files are opened beside others that come later.
    save(tmp_path / "later", weights(4, BASE, SHARED))
    db.import_([tmp_path / "later"], base="base")
    assert kinship(db, "stacked", "later")[1] == 1 and kinship(db, "stacked", "later")[0] > 0.4


def test_a_pruned_model_is_compared_by_the_layers_it_kept(db, tmp_path):
    b, kept = TUNED["b"], [0, 3, 4]
    pruned = relayered([(b, layer) for layer in kept])
    notes = brought(db, tmp_path, pruned=pruned)
    assert "pruned has 3 layers (layers) where base has 5" in notes["pruned"]
    assert "layer 1 is the base's layer 3" in notes["pruned"]
    names = [n for n in BASE if ".layers." not in n or any(f".layers.{layer}." in n for layer in kept)]
    found, coverage = kinship(db, "pruned", "a")
    assert coverage == pytest.approx(
        sum(BASE[n].numel() for n in names) / sum(t.numel() for t in BASE.values())
    )
    # Deltas of float32 weights, their sums in float64.
    assert found == pytest.approx(pcc(b, TUNED["a"], names), abs=1e-6)


def test_layers_in_another_order_are_found_though_their_number_is_the_same(db, tmp_path):
    b = TUNED["b"]
    notes = brought(db, tmp_path, turned=relayered([(b, layer) for layer in (0, 2, 1, 3, 4)]))
    assert "layer 1 is the base's layer 2" in notes["turned"]
    assert kinship(db, "turned", "a")[0] == pytest.approx(pcc(b, TUNED["a"], BASE), abs=1e-6)


def test_a_fine_tune_costs_no_word(db, tmp_path):
    assert brought(db, tmp_path)["a"] == ""


def test_a_vocabulary_in_another_order_is_said(db, tmp_path):
    rows = torch.randperm(VOCAB, generator=torch.Generator().manual_seed(0))
    mixed = TUNED["b"] | {"model.embed_tokens.weight": TUNED["b"]["model.embed_tokens.weight"][rows]}
    notes = brought(db, tmp_path, mixed=mixed)
    assert "mixed: model.embed_tokens.weight" in notes["mixed"] and "in another order" in notes["mixed"]


def test_another_training_of_the_same_shape_is_said_to_have_nothing_in_common(db, tmp_path):
    notes = brought(db, tmp_path, stranger=weights(77))
    assert "nothing in common" in notes["stranger"] and "matched by content" not in notes["stranger"]


def fused(tensors):
    left = {n: t for n, t in tensors.items() if not any(f".{w}_proj." in n for w in ("q", "k", "v"))}
    for layer in range(LAYERS):
        at = f"model.layers.{layer}.self_attn."
        left[at + "qkv_proj.weight"] = torch.cat([tensors[f"{at}{w}_proj.weight"] for w in "qkv"])
    return left


def same(db, name):
    return db.sql("select same_as, same_how from models where name = ?", [name]).row(0)


def test_the_same_weights_in_another_layout_are_the_same_and_compared_whole(db, tmp_path):
    notes = brought(db, tmp_path, again=fused(TUNED["a"]), base_again=fused(BASE))
    assert "again: the same weights as a, in another layout" in notes["again"]
    assert same(db, "again") == ("a", "layout") and same(db, "base_again") == ("base", "layout")
    assert kinship(db, "again", "b") == kinship(db, "a", "b") and kinship(db, "a", "b")[1] == 1
    assert same(db, "a") == (None, None) and same(db, "b") == (None, None)


def test_one_element_makes_another_model(db, tmp_path):
    other = {n: t.clone() for n, t in fused(TUNED["a"]).items()}
    other["lm_head.weight"][3, 4] = torch.nextafter(other["lm_head.weight"][3, 4], torch.tensor(9.0))
    brought(db, tmp_path, near=other)
    assert same(db, "near") == (None, None)


def test_a_wider_dtype_of_the_same_numbers_is_said_to_be_one(db, tmp_path):
    narrow = {n: t.bfloat16() for n, t in BASE.items()}
    save(tmp_path / "narrow", narrow)
    save(tmp_path / "wide", {n: t.float() for n, t in narrow.items()})
    db.import_([tmp_path / "narrow", tmp_path / "wide"], base="narrow")
    assert same(db, "wide") == ("narrow", "dtype")


def test_sketches_of_another_layout_are_those_of_the_same_weights(tmp_path):
    """Read by themselves, without the base's files beside them being measured."""
    db = kinbase.open(tmp_path / "sketch.duckdb")
    for name, tensors in {"base": BASE, "b": TUNED["b"], "again": fused(TUNED["a"])}.items():
        save(tmp_path / name, tensors)
        assert db.import_([tmp_path / name], base=None if name == "base" else "base", sketch=name != "base")[
            "status"
        ].to_list() == ["imported"]
    found = db.sql("select pcc, stderr, coverage from kinship where model_a = 'again' and model_b = 'b'").row(
        0
    )
    # Five standard errors of the sketch.
    assert found[0] == pytest.approx(pcc(TUNED["a"], TUNED["b"], BASE), abs=5 * found[1])
    assert found[2] == 1 and load_file(tmp_path / "again" / "model.safetensors").keys() != BASE.keys()


@pytest.mark.parametrize("leaf", ["self_attn.o_proj", "mlp.up_proj"])
def test_matrices_in_another_order_inside_the_layers_are_told(db, tmp_path, leaf):
    """Transposed where that cannot be seen by the shape, or with units in another order."""
    names = [f"model.layers.{layer}.{leaf}.weight" for layer in range(LAYERS)]
    order = torch.randperm(INNER, generator=torch.Generator().manual_seed(0))
    odd = {n: TUNED["b"][n].T.contiguous() if "attn" in leaf else TUNED["b"][n][order] for n in names}
    notes = brought(db, tmp_path, odd=TUNED["b"] | odd)
    share = sum(BASE[n].numel() for n in names) / sum(t.numel() for t in BASE.values())
    assert notes["odd"] == (
        f"odd: model.layers.2.{leaf}.weight ({share:.1%} of the base's parameters, with their like in other layers) have "
        "nothing in common with the base's: in another order, transposed, or of another training?"
    )
    assert notes["a"] == notes["b"] == ""


def test_layers_are_matched_with_a_relatives_where_the_base_is_gone(db, tmp_path):
    brought(db, tmp_path)
    (tmp_path / "base").rename(tmp_path / "moved")
    order = [3, 1, 2, 0, 4]
    save(tmp_path / "shuffled", relayered([(TUNED["a"], layer) for layer in order]))
    save(tmp_path / "later", weights(4, BASE, SHARED))
    found = db.import_([tmp_path / "shuffled", tmp_path / "later"], base="base")
    shuffled, later = (" / ".join(notes) for notes in found["notes"])
    assert (
        "layer 0 is a's layer 3, layer 3 is a's layer 0" in shuffled and "no sketch of its change" in shuffled
    )
    assert "layer" not in later
    assert db.sql("select count(*) from kinship where model_a = 'shuffled'").item() == 0
    assert db.sql("select count(*) from kinship where model_a = 'later' and method = 'sketch'").item() == 2


def test_layers_are_taken_by_number_and_so_it_is_said_where_nothing_is_left_to_match_them_with(db, tmp_path):
    brought(db, tmp_path)
    for name in ("base", "a", "b"):
        (tmp_path / name).rename(tmp_path / f"moved-{name}")
    (notes,) = db.import_([save(tmp_path / "later", weights(4, BASE, SHARED))], base="base")["notes"]
    assert notes[-1] == (
        "later: its layers are compared by their numbers: whether they are the layers of base that have these numbers "
        "cannot be told without its files"
    )
