"""Stacks of layers and Model Stock by sums; and copies that claim to be merges, by their files."""

import shutil

import families
import numpy as np
import pytest
import torch
from gram_families import NAMES, Family

import kinbase
from kinbase.provenance.recipes.least_squares import Grams
from kinbase.provenance.recipes.verdict import MERGE, MERGES, NONE, UNDECIDABLE, judge


def layer(name):
    return int(name.split(".")[2])


@pytest.mark.parametrize("dtype", ["BF16", "F32"])
def test_a_stack_of_layers_and_a_graft_onto_the_base(dtype):
    family = Family(dtype, 0.05, seed=11)
    one, other = family.models[1], family.models[4]
    stack = [one[t] if layer(n) < 2 else other[t] for t, n in enumerate(NAMES)]
    finding = family.judge(stack)
    assert (finding.verdict, finding.method) == (MERGE, "passthrough")
    assert {p.parent: p.coefficient for p in finding.parents} == pytest.approx({"1": 0.4, "4": 0.6})
    assert "1 has layers 0 to 1" in finding.reason and "4 has layers 2 to 4" in finding.reason
    graft = [one[t] if "mlp" in n else family.base[t] for t, n in enumerate(NAMES)]
    finding = family.judge(graft)
    # One's MLPs on the base, or one was trained on from it in all else: the weights say the same of both.
    assert (finding.verdict, [p.parent for p in finding.nearest]) == (UNDECIDABLE, ["1"])
    assert "1 may as well have been trained from some of its tensors" in finding.reason
    graft = [one[t] if layer(n) < 2 else family.base[t] for t, n in enumerate(NAMES)]
    finding = family.judge(graft)
    assert (finding.method, [p.parent for p in finding.parents]) == ("passthrough", ["1"])
    assert family.judge(one, family.models[2:]).verdict == NONE


@pytest.mark.parametrize(("dtype", "size"), [("BF16", 0.1), ("F16", 0.05), ("F32", 0.02)])
def test_model_stock(dtype, size):
    """As its authors have it, tensor by tensor, of fine-tunes that share a direction."""
    family = Family(dtype, size, seed=12, count=0)
    family.models = [family.rounded(family.tune(0.6)) for _ in range(5)]
    chosen = (0, 2, 3)
    child = []
    for t, base in enumerate(family.base):
        changes = [family.models[i][t] - base for i in chosen]
        unit = [c / np.linalg.norm(c) for c in changes]
        cosine = np.mean([unit[i] @ unit[j] for i in range(3) for j in range(i)])
        share = 3 * cosine / (1 + 2 * cosine)
        child.append(share * (base + np.mean(changes, axis=0)) + (1 - share) * base)
    finding = family.judge(family.rounded(child))
    assert (finding.verdict, finding.method) == (MERGE, "model_stock"), finding.reason
    assert {p.parent for p in finding.parents} == {"0", "2", "3"}


CARD = "---\nbase_model: [t0, t1]\ntags: [merge]\n---\n"


@pytest.fixture
def database(tmp_path):
    family = Family("BF16", 0.05, seed=13, count=3)

    def write(name, weights, dtype=torch.bfloat16, card=None):
        tensors = {n: torch.from_numpy(w).to(dtype) for n, w in zip(NAMES, weights, strict=True)}
        families.write_safetensors(tmp_path / name / "model.safetensors", tensors)
        if card:
            (tmp_path / name / "README.md").write_text(card)

    write("base", family.base)
    for i, weights in enumerate(family.models):
        write(f"t{i}", weights)
    write("of_t0", family.models[0], card=CARD)
    write("of_base", family.base, card=CARD)
    write("of_t2", family.models[2], card=CARD)
    write("single", family.models[0], torch.float32, CARD)
    merged = family.rounded([0.6 * a + 0.4 * b for a, b in zip(*family.models[:2], strict=True)])
    write("true", merged, card=CARD)
    write(
        "nearly",
        family.rounded([0.97 * a + 0.03 * b for a, b in zip(*family.models[:2], strict=True)]),
        card=CARD,
    )
    db = kinbase.open(tmp_path / "kb.duckdb")
    db.import_([tmp_path / n for n in ("base", "t0", "t1", "t2")], base="base")
    shutil.copytree(tmp_path / "true", tmp_path / "again")
    names = ("of_t0", "of_base", "of_t2", "single", "true", "nearly", "again")
    db.import_([tmp_path / n for n in names], base="base")
    return db


def test_a_copy_that_claims_a_merge_has_nothing_applied(database):
    rows = {row["subject"]: (row["verdict"], row["detail"]) for row in database.check().to_dicts()}
    for name, original in (("of_t0", "t0"), ("of_base", "base"), ("single", "t0")):
        verdict, detail = rows[name]
        assert verdict == "contradicted" and detail.startswith("nothing was applied"), (name, detail)
        assert original in detail
    assert rows["of_t2"][0] == "contradicted" and "t2" not in rows["of_t2"][1].split(";")[0]
    assert rows["true"][0] == "supported"
    assert rows["nearly"][0] == "supported"
    assert "again" not in rows or rows["again"][0] == "supported"
    of_one = database.check(["of_t2"]).to_dicts()
    assert [row["subject"] for row in of_one] == ["of_t2"]


def test_the_base_under_another_name_is_no_member_of_its_family(tmp_path):
    family = Family("BF16", 0.05, seed=14, count=1)
    for name, weights in (("copied", family.base), ("base", family.base), ("t0", family.models[0])):
        families.write_safetensors(
            tmp_path / name / "model.safetensors",
            {n: torch.from_numpy(w).bfloat16() for n, w in zip(NAMES, weights, strict=True)},
        )
    (tmp_path / "copied" / "README.md").write_text(CARD)
    db = kinbase.open(tmp_path / "kb.duckdb")
    db.import_([tmp_path / "copied"])
    db.import_([tmp_path / "base", tmp_path / "t0"], base="base")
    done = db.import_([tmp_path / "copied", tmp_path / "base", tmp_path / "t0"], base="base")
    assert "failed" not in set(done["status"])


def partly_trained(rng, tensors, scale):
    """A model's change and those of two fine-tunes of it: of its attention alone, and of its MLPs alone."""
    parent = {name: 0.02 * rng.standard_normal(400) for name in tensors}
    trained = []
    for part in ("self_attn", "mlp"):
        trained.append(
            {n: d + (scale * rng.standard_normal(400) if part in n else 0) for n, d in parent.items()}
        )
    return parent, trained


def sums(child, models, tensors, base):
    """The sums of a child and candidates, of float64 changes: Grams of tensors [T]."""
    rows = [np.array([[m[t] for m in models] + [base[t]] for t in [name]])[0] for name in tensors]
    gram = np.array([r @ r.T for r in rows])
    cross = np.array([r @ child[t] for r, t in zip(rows, tensors, strict=True)])
    sumsq = np.array([child[t] @ child[t] for t in tensors])
    numel = np.full(len(tensors), 400.0)
    return Grams(
        [f"m{i}" for i in range(len(models))], list(tensors), numel, gram, cross, sumsq, numel * 1e-12
    )


TENSORS = [
    f"model.layers.{i}.{part}.weight" for i in range(3) for part in ("self_attn.q_proj", "mlp.up_proj")
]


@pytest.mark.parametrize("scale", [0.01, 0.03])
def test_a_model_is_no_stack_of_what_was_trained_from_parts_of_it(scale):
    rng = np.random.default_rng(1)
    base = {name: rng.standard_normal(400) for name in TENSORS}
    parent, trained = partly_trained(rng, TENSORS, scale)
    found = judge(sums(parent, trained, TENSORS, base))
    assert found.verdict == UNDECIDABLE and not found.parents
    assert "m0 and m1 may as well" in found.reason or "m1 and m0 may as well" in found.reason
    # Layers of strangers, each whole, are a stack still; and so are parts of strangers inside a layer.
    others = [{name: 0.02 * rng.standard_normal(400) for name in TENSORS} for _ in range(2)]
    for is_first in (lambda name: "layers.0" in name, lambda name: "self_attn" in name):
        stack = {name: others[0 if is_first(name) else 1][name] for name in TENSORS}
        found = judge(sums(stack, others, TENSORS, base))
        assert found.verdict in MERGES and {p.parent for p in found.parents} == {"m0", "m1"}
