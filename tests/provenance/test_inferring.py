"""Histories told from weights: families of known construction, in arrays and through the database."""

import json

import numpy as np
import pytest
import torch
from families import TORCH_DTYPES, family_weights, write_safetensors
from hypothesis import given, settings
from hypothesis import strategies as st

import kinbase
from kinbase.errors import KinbaseError
from kinbase.provenance.phylogeny import infer, tree_search
from kinbase.provenance.phylogeny.distances import Points
from kinbase.provenance.phylogeny.merges import _tree, infer_family
from kinbase.provenance.phylogeny.tree_search import MODEL, Tree, log_density
from kinbase.provenance.recipes.least_squares import BITS
from kinbase.provenance.recipes.rounding import spacing, to_dtype

TENSORS, NUMEL = 6, 2000


def grow(parents, *, seed=0, step=0.1, merges=None, dtype="F32"):
    """Weights [T, n] of models by name: the first drawn, each other one its parent plus a step, or a combination
    {parent: coefficient} of others. Steps from one parent have a cosine of 0.11, all others of 0."""
    rng = np.random.default_rng(seed)
    weights = {}
    common = {name: 0.35 * rng.standard_normal((TENSORS, NUMEL)) for name in parents}
    for child, parent in parents.items():
        if child in (merges or {}):
            theta = sum(c * weights[p] for p, c in merges[child].items())
        elif parent is None:
            theta = rng.standard_normal((TENSORS, NUMEL))
        else:
            theta = weights[parent] + step * rng.uniform(0.5, 2) * (
                common[parent] + rng.standard_normal((TENSORS, NUMEL))
            )
        weights[child] = to_dtype(theta, dtype)
    return weights


def points_of(weights, dtypes=None, dates=None):
    names = list(weights)
    theta = np.stack([weights[name] for name in names], axis=1)  # [T, N, n]
    dtypes = dtypes or ["F32"] * len(names)
    squared = ((theta[:, :, None] - theta[:, None]) ** 2).sum(axis=3)
    noise = np.stack([(spacing(theta[:, i], d) ** 2).sum(axis=1) / 12 for i, d in enumerate(dtypes)], axis=1)
    return Points(
        names,
        squared,
        (theta**2).sum(axis=2),
        noise,
        np.full(TENSORS, float(NUMEL)),
        dtypes,
        dates or [None] * len(names),
    )


def edges_of(family):
    return {(edge.parent, edge.child): edge for edge in family.edges}


SHAPE = {
    "root": None,
    "a": "root",
    "b": "root",
    "c": "root",
    "d": "root",
    "a1": "a",
    "a2": "a",
    "b1": "b",
    "b11": "b1",
}
TRUE = {(parent, child) for child, parent in SHAPE.items() if parent}


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("known", [True, False])
def test_steps_give_their_tree_back(seed, known):
    # Squared distances are additive along the tree but for what siblings have in common, and that tells the root.
    points = points_of(grow(SHAPE, seed=seed))
    order = np.random.default_rng(seed).permutation(len(points.names))
    points = points.of(order)
    family = infer_family(points, root=points.names.index("root") if known else None)
    assert family.root == "root"
    assert set(edges_of(family)) == TRUE
    assert {edge.relation for edge in family.edges} == {"finetune"}


def test_merges_are_told_with_their_coefficients():
    parents = {**SHAPE, "m": "a", "k": "b", "m1": "m"}
    merges = {"m": {"a": 0.7, "b11": 0.3}, "k": {"c": 0.5, "d": 0.5}}
    family = infer_family(points_of(grow(parents, merges=merges)))
    found = edges_of(family)
    assert set(found) == TRUE | {("a", "m"), ("b11", "m"), ("c", "k"), ("d", "k"), ("m", "m1")}
    for child, shares in merges.items():
        for parent, share in shares.items():
            assert found[parent, child].relation == "merge"
            # Rounding to 24 bits moves a coefficient by far less.
            assert found[parent, child].weight == pytest.approx(share, abs=1e-4)


def test_task_vectors_added_whole_are_a_merge_and_not_the_base():
    weights = grow(SHAPE, dtype="BF16")
    weights["m"] = to_dtype(weights["a"] + weights["b"] - weights["root"], "BF16")
    family = infer_family(points_of(weights, ["BF16"] * len(weights)))
    found = edges_of(family)
    assert family.root == "root"
    assert {found["a", "m"].relation, found["b", "m"].relation} == {"merge"}


def test_a_copy_in_fewer_bits_is_quantized_and_one_in_more_holds_nothing_new():
    weights = grow(SHAPE, dtype="BF16")
    weights["fine"] = weights["a"]
    weights["coarse"] = to_dtype(weights["b1"], "F8_E4M3")
    dtypes = ["BF16"] * len(SHAPE) + ["F32", "F8_E4M3"]
    found = edges_of(infer_family(points_of(weights, dtypes)))
    assert found["a", "fine"].relation == "duplicate"
    assert found["b1", "coarse"].relation == "quantized"
    assert set(found) == TRUE | {("a", "fine"), ("b1", "coarse")}


def test_equal_weights_of_one_dtype_have_no_direction():
    weights = grow(SHAPE)
    weights["again"] = weights["c"]
    found = edges_of(infer_family(points_of(weights)))
    assert found["c", "again"].confidence == 0.5
    dates = [100.0] * len(SHAPE) + [50.0]
    found = edges_of(infer_family(points_of(weights, dates=dates)))
    assert ("again", "c") in found


def test_a_date_speaks_against_a_younger_parent():
    weights = grow({"x": None, "y": "x", "z": "x"}, step=0.05)
    day = 86400.0
    straight = infer_family(points_of(weights, dates=[0.0, 9 * day, 9 * day]))
    assert straight.root == "x"
    late = infer_family(points_of(weights, dates=[9 * day, 0.0, 9 * day]), model=tree_search.Model(late=50.0))
    assert late.root == "y"


def test_estimated_distances_give_a_tree_without_copies_and_merges():
    weights = grow(SHAPE)
    weights["again"] = weights["c"]
    points = points_of(weights)
    rough = Points(
        points.names, points.squared.sum(axis=0)[None], points.sumsq.sum(axis=0)[None], points.noise.sum(axis=0)[None],
        points.numel[:1] * TENSORS, points.dtypes, points.dates, exact=False,
    )  # fmt: skip
    family = infer_family(rough)
    assert {edge.relation for edge in family.edges} == {"finetune"}
    assert len(family.edges) == len(points.names) - 1


@pytest.mark.parametrize("shape", [MODEL.sibling, MODEL.chain, MODEL.other])
def test_densities_are_densities(shape):
    x = np.linspace(-1, 1, 200_001)
    # The uniform share reaches from the mode to 1 and the trace over all, so the total is 1 but for both.
    total = np.exp(log_density(x, shape)).sum() * (x[1] - x[0])
    assert total == pytest.approx(1, abs=0.02)


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 1000))
def test_a_score_does_not_depend_on_the_order_of_models(seed):
    rng = np.random.default_rng(seed)
    points = points_of(grow(SHAPE, seed=seed))
    tree = _tree(points, {}, None, MODEL)
    order = rng.permutation(len(points.names))
    shuffled = _tree(points.of(order), {}, None, MODEL)
    back = np.argsort(order)
    parents = tree.parents[order]
    moved = np.where(parents < 0, -1, back[parents])
    assert shuffled.score(moved) == pytest.approx(tree.score(tree.parents), abs=1e-6)


def test_no_move_betters_a_tree_that_was_searched():
    points = points_of(grow(SHAPE, seed=5))
    tree = _tree(points, {}, None, MODEL)
    tree.search()
    best = tree.score(tree.parents)
    for child in range(tree.size):
        for parent in range(tree.size):
            below = tree._below(tree.parents, child)
            if tree.parents[child] >= 0 and tree.allowed[parent, child] and not below[parent]:
                trial = tree.parents.copy()
                trial[child] = parent
                assert tree.score(trial) <= best + 1e-9
    assert all(tree.score(trial) <= best + 1e-9 for trial in tree._turns(tree.parents))
    assert all(margin >= -1e-9 for margin, _ in tree.margins().values())


@given(st.integers(0, 10_000))
@settings(max_examples=10, deadline=None)
def test_what_a_move_gains_is_the_difference_of_scores(seed):
    tree = _tree(points_of(grow(SHAPE, seed=seed % 7)), {}, None, MODEL)
    rng = np.random.default_rng(seed)
    for _ in range(6):  # any tree of the same models
        gains = tree._branches(tree.parents)
        rows, columns = np.nonzero(np.isfinite(gains))
        at = rng.integers(len(rows))
        trial = tree.parents.copy()
        trial[columns[at]] = rows[at]
        # Sums of a few hundred logarithms of float64.
        assert tree.score(trial) - tree.score(tree.parents) == pytest.approx(
            gains[rows[at], columns[at]], abs=1e-8
        )
        tree.parents = trial


def test_a_tree_keeps_its_merges_and_runs_in_no_circle():
    points = points_of(grow({**SHAPE, "m": "a"}, merges={"m": {"a": 0.5, "b11": 0.5}}))
    m, a, b = (points.names.index(name) for name in ("m", "a", "b11"))
    tree = Tree(points.squared, np.zeros((10, 10)), {m: [a, b]})
    tree.search()
    assert tree.parents[m] == a
    assert tree._circular(tree.parents) == 0


# Through the database.


@pytest.fixture
def wordless(tmp_path):
    """A database of two families without a word about bases or parents, a merge in each."""
    db = kinbase.open(tmp_path / "kin.duckdb")
    paths = []
    for prefix, seed in (("x", 0), ("y", 1)):
        grown = grow({**SHAPE, "m": "a"}, seed=seed, merges={"m": {"a": 0.6, "b": 0.4}})
        for name, theta in grown.items():
            weights = {
                f"layers.{t}.weight": torch.from_numpy(values).float().reshape(40, 50)
                for t, values in enumerate(theta)
            }
            paths.append(
                write_safetensors(tmp_path / f"{prefix}-{name}" / "model.safetensors", weights).parent
            )
    assert set(db.import_(paths)["status"]) == {"imported"}
    return db


def test_families_are_told_apart_and_their_trees_found(wordless):
    rows, notes = wordless.infer()
    assert notes == []
    assert rows.columns[:4] == ["parent", "child", "relation", "confidence"]
    found = {tuple(edge) for edge in rows.select("family", "parent", "child").iter_rows()}
    assert found == {
        (f"{prefix}-root", f"{prefix}-{parent}", f"{prefix}-{child}")
        for prefix in "xy"
        for parent, child in TRUE | {("a", "m"), ("b", "m")}
    }
    assert set(rows.filter(relation="merge")["child"]) == {"x-m", "y-m"}


def test_stored_grams_and_reading_give_the_same_distances(db, tmp_path):
    with db.store.reading() as con:
        members = infer.naming.members(con)
        base = infer.naming.find(con, "base")
        stored = infer._stored(con, members, base).points
    (read,) = infer._read(db.store, members, "cpu", lambda done, total: None, [])
    weights = family_weights()
    theta = {
        name: torch.cat([weights[name][t].double().flatten() for t in sorted(weights[name])])
        for name in weights
    }
    for points in (stored, read.points):
        for i, a in enumerate(points.names):
            for j, b in enumerate(points.names):
                real = float(((theta[a] - theta[b]) ** 2).sum())
                # Sums of squares of deltas 10 times as long as the smallest distance, in float64.
                assert points.squared[:, i, j].sum() == pytest.approx(real, rel=1e-9, abs=1e-15)
        assert points.sumsq.sum(axis=0) == pytest.approx(
            [float((theta[n] ** 2).sum()) for n in points.names], rel=1e-6
        )


def test_a_known_base_is_the_root_unless_blind(db):
    rows, _ = db.infer()
    assert set(rows["family"]) == {"base"}
    assert set(db.infer(blind=True)[0].columns) == set(rows.columns)
    (only,) = db.infer(["ft_a"], among=["base"])[0].to_dicts()
    assert (only["confidence"], "no other tree is possible" in only["evidence"]) == (1, True)


def test_the_named_models_alone_are_children(wordless):
    rows, _ = wordless.infer(["x-m"], among=["x-a", "x-b", "x-root"])
    assert {tuple(edge) for edge in rows.select("parent", "child").iter_rows()} == {
        ("x-a", "x-m"),
        ("x-b", "x-m"),
    }


def test_recorded_edges_are_claims_of_the_weights(wordless):
    rows, notes = wordless.infer(record=True)
    claims = wordless.sql("from lineage where evidence = 'weights' order by parent, child")
    assert notes == []
    assert claims.height == rows.height
    detail = json.loads(claims.filter(child="x-c")["detail"].item())
    assert 0 < detail["confidence"] <= 1
    wordless.infer(record=True)
    assert wordless.sql("select count(*) from lineage where evidence = 'weights'").item() == rows.height


def test_an_edge_against_other_claims_is_not_recorded(wordless):
    wordless.link("x-root", ["x-c"])
    _, notes = wordless.infer(record=True)
    assert notes == ["x-root descends from x-c by other claims: the edge is not recorded"]


def test_unlikely_edges_can_be_left_out(wordless):
    likely = wordless.infer()[0]["confidence"].sort()
    rows, _ = wordless.infer(least=likely[5])
    assert rows["confidence"].sort().to_list() == likely.filter(likely >= likely[5]).to_list()


def test_what_cannot_be_compared_is_said(wordless, tmp_path):
    odd = write_safetensors(tmp_path / "odd" / "model.safetensors", {"w": torch.ones(3, 3)})
    wordless.import_([odd.parent])
    _, notes = wordless.infer()
    assert notes == ["odd stands alone: no other model has tensors like its"]
    with pytest.raises(KinbaseError, match="no two models"):
        wordless.infer(["x-root"])
    with pytest.raises(KinbaseError, match="no model"):
        wordless.infer(["nobody"])


def test_an_adapter_is_left_to_its_own_words(db, tmp_path):
    shapes = {n: w.shape for n, w in family_weights()["base"].items() if "q_proj" in n}
    factors = {}
    for name, (rows, columns) in shapes.items():
        stem = f"base_model.model.{name.removesuffix('.weight')}"
        factors[f"{stem}.lora_A.weight"] = torch.ones(2, columns)
        factors[f"{stem}.lora_B.weight"] = torch.ones(rows, 2)
    folder = write_safetensors(tmp_path / "lora" / "adapter_model.safetensors", factors).parent
    config = {
        "peft_type": "LORA",
        "r": 2,
        "lora_alpha": 2,
        "base_model_name_or_path": "base",
        "target_modules": ["q_proj"],
    }
    (folder / "adapter_config.json").write_text(json.dumps(config))
    assert db.import_([folder])["status"].to_list() == ["imported"]
    rows, notes = db.infer()
    assert notes == ["lora is an adapter: its parent is the model it was made for"]
    assert "lora" not in {*rows["parent"], *rows["child"]}


def test_the_command(cli, family):
    cli("import", *family.values())
    found = cli("infer", "-f", "json", "--among", "")
    assert found.returncode == 0, found.stderr
    rows = json.loads(found.stdout)
    assert {(r["parent"], r["child"]) for r in rows} >= {("ft_a", "merge_ab"), ("ft_b", "merge_ab")}
    assert list(rows[0])[:4] == ["parent", "child", "relation", "confidence"]
    assert cli("infer", "nobody").returncode == 1
    alone = cli("infer", "base")
    assert (alone.returncode, "--among" in alone.stderr) == (1, True)
    assert cli("infer", "--least", "nan").returncode == 2


def test_dtypes_that_hold_weights_have_a_width():
    # A type's width is that of its significand: eps = 2^(1 - bits). Forms that are no dtype, of packed integers, lie below.
    for code, dtype in TORCH_DTYPES.items():
        assert torch.finfo(dtype).eps == 2.0 ** (1 - BITS[code])
    forms = BITS.keys() - TORCH_DTYPES.keys()
    assert {BITS[form] for form in forms} <= set(range(1, 8))
