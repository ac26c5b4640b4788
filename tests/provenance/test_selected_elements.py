"""Parents of TIES and DARE told element by element, and none told where there are none.

The merges are made here with torch in the models' dtype, as the papers have them: Yadav et al. 2023 (2306.01708) and Yu et al.
2023 (2311.03099).
"""

import families
import numpy as np
import pytest
import torch

import kinbase
from kinbase.provenance.phylogeny.infer import infer
from kinbase.provenance.recipes.elements import Elements, most_common
from kinbase.provenance.recipes.least_squares import BITS
from kinbase.provenance.recipes.sampled_elements import RUN, places
from kinbase.provenance.recipes.search import recover
from kinbase.provenance.recipes.selected_elements import selected

SHAPES = [(60, 100)] * 4 + [(64,)]


class Models:
    """A base b and fine-tunes t0.. of it, {name: [tensors]}; `own` of their squares is not along a direction they share."""

    def __init__(self, dtype="BF16", size=0.03, seed=0, count=5, own=0.8):
        self.dtype, self.torch = dtype, torch.Generator().manual_seed(seed)
        base = [0.02 * self.normal(s) if len(s) == 2 else 1 + 0.05 * self.normal(s) for s in SHAPES]
        shared = [self.normal(s) for s in SHAPES]
        self.weights = {"b": self.stored(base)}
        for i in range(count):
            self.weights[f"t{i}"] = self.stored(
                [b + size * b.std() * ((1 - own) ** 0.5 * s + own**0.5 * self.normal(b.shape))
                 for b, s in zip(base, shared, strict=True)]
            )  # fmt: skip

    def normal(self, shape):
        return torch.randn(shape, generator=self.torch)

    def stored(self, tensors):
        return [t.to(families.TORCH_DTYPES[self.dtype]) for t in tensors]

    def add(self, name, make):
        """A model made tensor by tensor of (base, {name: change})."""
        self.weights[name] = self.stored(
            [make(b, {n: w[t] - b for n, w in self.weights.items()}) for t, b in enumerate(self.weights["b"])]
        )

    def told(self, child, without=()):
        flat = {n: torch.cat([t.flatten() for t in w]).double().numpy() for n, w in self.weights.items()}
        sizes = [b.numel() for b in self.weights["b"]]
        return selected(
            Elements(
                flat[child], flat["b"], {n: w for n, w in flat.items() if n not in ("b", child, *without)},
                np.full(sum(sizes), BITS[self.dtype]), np.repeat(np.arange(len(sizes)), sizes),
            )
        )  # fmt: skip


def ties(weights, density, normalize=True):
    def make(base, changes):
        kept = []
        for name, weight in weights.items():
            d = changes[name]
            cut = d.abs().flatten().sort(descending=True).values[int(density * d.numel()) - 1]
            kept.append(weight * torch.where(d.abs() >= cut, d, torch.zeros_like(d)))
        elected = torch.sign(sum(kept))
        agree = [(torch.sign(k) == elected) & (k != 0) for k in kept]
        total = sum(k * a for k, a in zip(kept, agree, strict=True))
        share = sum(w * a for w, a in zip(weights.values(), agree, strict=True))
        return base + (total / torch.where(share == 0, 1.0, share) if normalize else total)

    return make


def dare(weights, density, generator, by_tensor=False):
    def make(base, changes):
        total = torch.zeros_like(base)
        for name, weight in weights.items():
            d = changes[name]
            mask = torch.rand(d.shape, generator=generator) < density
            scale = d.abs().sum() / (d * mask).abs().sum() if by_tensor else 1 / density
            total = total + weight * (d * mask * scale)
        return base + total

    return make


def check(found, weights, density=None):
    assert found is not None and found.is_whole
    assert set(found.parents) == set(weights)
    for name, kept in zip(found.parents, found.kept, strict=True):
        if density is not None:
            # 12,000 elements or more of each parent are in or out: 0.5% is a standard error, and rounding hides a few.
            assert abs(kept - density) < 0.03, name


@pytest.mark.parametrize(
    ("dtype", "size"), [("BF16", 0.01), ("BF16", 0.1), ("F16", 0.01), ("F32", 0.01), ("F32", 0.1)]
)
def test_ties(dtype, size):
    models = Models(dtype, size)
    models.add("c", ties({"t0": 1.0, "t1": 1.0}, 0.4))
    found = models.told("c")
    check(found, {"t0", "t1"})
    assert found.largest and found.weights is not None


@pytest.mark.parametrize("by_tensor", [False, True])
@pytest.mark.parametrize(("dtype", "size"), [("BF16", 0.03), ("F16", 0.01), ("F32", 0.01)])
def test_dare_with_its_weights_and_density(dtype, size, by_tensor):
    """Also where a mask's rescaling keeps each tensor's sum of absolute changes."""
    models = Models(dtype, size, seed=1)
    models.add("c", dare({"t1": 0.6, "t3": 0.4}, 0.5, models.torch, by_tensor))
    found = models.told("c")
    check(found, {"t1", "t3"}, 0.5)
    assert not found.largest and not found.elected and found.weights is None
    weights = {n: c * k for n, c, k in zip(found.parents, found.counts, found.kept, strict=True)}
    assert weights == pytest.approx({"t1": 0.6, "t3": 0.4}, abs=0.03)


def test_weighted_ties_of_three_and_one_of_density_one():
    models = Models("F32", 0.02, seed=2)
    models.add("c", ties({"t0": 0.5, "t2": 0.3, "t4": 0.2}, 0.5))
    models.add("all", ties({"t0": 1.0, "t2": 1.0}, 1.0))
    found = models.told("c", without=["all"])
    check(found, {"t0", "t2", "t4"})
    assert dict(
        zip(found.parents, np.array(found.weights) / sum(found.weights), strict=True)
    ) == pytest.approx({"t0": 0.5, "t2": 0.3, "t4": 0.2}, abs=0.01)
    check(models.told("all", without=["c"]), {"t0", "t2"})


def test_children_and_siblings_are_no_parents():
    """Of TIES and DARE of one another, merges of them beside them: each has its own parents, whoever else is there."""
    models = Models("BF16", 0.03, seed=3)
    models.add("c", ties({"t0": 1.0, "t1": 1.0}, 0.5))
    models.add("of_c", dare({"c": 0.5, "t2": 0.5}, 0.5, models.torch))
    models.add("beside", ties({"t0": 1.0, "t3": 1.0}, 0.5))
    models.add("mean", lambda base, d: base + 0.5 * d["c"] + 0.5 * d["t4"])
    check(models.told("c"), {"t0", "t1"})
    check(models.told("of_c"), {"c", "t2"})
    check(models.told("beside"), {"t0", "t3"})
    for i in range(5):
        found = models.told(f"t{i}")
        assert found is None or not found.is_whole


def test_a_missing_parent_leaves_it_in_parts():
    models = Models("F32", 0.02, seed=4)
    models.add("c", dare({"t0": 0.5, "t1": 0.5}, 0.5, models.torch))
    found = models.told("c", without=["t1"])
    assert found is not None and not found.is_whole and found.parents == ["t0"]


@pytest.mark.parametrize("dtype", ["BF16", "F32"])
def test_fine_tunes_of_a_fine_tune_and_twins_are_not_selected(dtype):
    models = Models(dtype, 0.02, seed=5, own=0.02)  # cosines of 0.98
    noise = [0.005 * b.std() * models.normal(b.shape) for b in models.weights["b"]]
    models.weights["on"] = models.stored([w + n for w, n in zip(models.weights["t0"], noise, strict=True)])
    for name in models.weights:
        found = models.told(name) if name != "b" else None
        assert found is None or not found.is_whole


def test_the_number_in_most_intervals():
    rng = np.random.default_rng(0)
    centre = np.concatenate([0.7 + 1e-3 * rng.uniform(-1, 1, 200), rng.uniform(-3, 3, 1000)])
    assert most_common(centre, np.full(1200, 1e-3)) == pytest.approx(0.7, abs=5e-4)


def test_places_are_spread_over_a_model(tmp_path):
    path = families.write_safetensors(
        tmp_path / "m.safetensors", {"a": np.zeros((1000, 300), np.float32), "b": np.zeros(5, np.float32)}
    )
    checkpoint = families.open_checkpoint(path)
    few, everything = places(checkpoint, runs=10), places(checkpoint, runs=100_000)
    checkpoint.close()
    assert everything == [(0, 0, 300_000), (1, 0, 5)]
    assert len(few) == 10 and all(p == 0 and 0 < n <= RUN and s + n <= 300_000 for p, s, n in few)
    assert [s // 30_000 for _, s, _ in few] == list(range(10))


def test_recipe_infer_and_check_say_the_same_of_files(tmp_path):
    models = Models("BF16", 0.03, seed=6)
    models.add("merged", ties({"t0": 1.0, "t1": 1.0}, 0.4))
    models.add("dropped", dare({"t2": 1.0}, 0.3, models.torch))
    for name, weights in models.weights.items():
        families.write_safetensors(
            tmp_path / name / "model.safetensors",
            {f"model.layers.{t}.mlp.up_proj.weight": w for t, w in enumerate(weights)},
        )
    db = kinbase.open(tmp_path / "kb.duckdb")
    db.import_([tmp_path / name for name in models.weights], base="b")
    merged, dropped, alone = (recover(db.store, name).as_dict() for name in ("merged", "dropped", "t3"))
    assert (merged["verdict"], merged["method"]) == ("TIES/DARE-like merge", "ties")
    assert {p["parent"] for p in merged["parents"]} == {"t0", "t1"}
    assert dropped["method"] == "dare_linear" and [p["parent"] for p in dropped["parents"]] == ["t2"]
    edges = {(e.parent, e.child, e.relation) for family in infer(db.store)[0] for e in family.edges}
    assert {("t0", "merged", "merge"), ("t1", "merged", "merge"), ("t2", "dropped", "merge")} <= edges
    assert alone["verdict"] == "fine-tune of the base"
