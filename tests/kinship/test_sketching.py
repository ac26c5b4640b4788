"""Power sums and sketches of weights against float64 references, and kinship by sketches through a database.

A sketched cosine has standard deviation (1 - c^2) / sqrt(k): a test of one draw allows five of them, a mean of
n draws five over sqrt(n), which a right implementation fails once in two million times (and, seeded, never).
"""

import json
import shutil

import families
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from test_kinship import checkpoint, gaussian_family, vocabulary_family

import kinbase
from kinbase.checkpoint import FLOAT_DTYPES
from kinbase.checkpoint.alignment import bare, labels
from kinbase.checkpoint.digest import LEAF, SPAN
from kinbase.kinship import stream as kinship
from kinbase.kinship.sketch import BUCKETS, CELL, SCHEME, Buffers, TensorSketch, compare, empty, similarity
from kinbase.kinship.sketch_correction import misfit
from kinbase.kinship.stream import Plan, run
from kinbase.store import sketches
from kinbase.store.models import put_base

STORED = dict(zip(FLOAT_DTYPES, (52, 23, 10, 7, 3, 2), strict=True))  # bits of the fraction
SMALLEST = dict(zip(FLOAT_DTYPES, (-1022, -126, -14, -126, -6, -14), strict=True))


def weighed(tensors):
    """Power sums by name and the sketch of {name: torch.Tensor}, read alone."""
    total, sums = empty(), {}
    for found in run(Plan(checkpoint(tensors), hash_base=True)):
        sums[found.name] = found.weights[0]
        if found.sketches[0]:
            found.sketches[0].pour(total)
    return sums, total


def sketch_of(values, label="w", start=0, seed=0):
    """The sketch of a vector, called by another name for another seed."""
    flat = np.asarray(values, np.float64).reshape(-1)
    tensor, buffers, total = TensorSketch(f"{label} {seed}", start + len(flat)), Buffers(), empty()
    for at in range(0, len(flat), SPAN):
        raw = memoryview(flat[at : at + SPAN]).cast("B")
        tensor.weigh(raw, start + at, "F64", buffers, 0, np.zeros(3))
        tensor.flush(buffers, 0)
    tensor.pour(total)
    return total


def spacing(values, dtype):
    """Distance from each number to the next in its dtype; that of the smallest normal ones below them."""
    exponent = np.full(values.shape, SMALLEST[dtype])
    exponent[values != 0] = np.maximum(np.frexp(values[values != 0])[1] - 1, SMALLEST[dtype])
    return 2.0 ** (exponent - STORED[dtype])


# --- power sums ---


@pytest.mark.parametrize("dtype", FLOAT_DTYPES)
@pytest.mark.parametrize("mean", [0.0, 1.0])
def test_power_sums_of_every_dtype_meet_float64(dtype, mean):
    g = torch.Generator().manual_seed(0)
    weights = (mean + 0.05 * torch.randn(3 * LEAF // 2 + 77, generator=g, dtype=torch.float64)).to(
        families.TORCH_DTYPES[dtype]
    )
    sums, _ = weighed({"w": weights})
    x = weights.double().numpy()
    # Narrow floats are added in float32 within a cell of 2048: 2048 roundings of 2^-24 that mostly cancel.
    tolerance = 1e-12 if dtype in ("F64", "F32") else 2e-7
    for power in (1, 2):
        assert abs(sums["w"][power - 1] - (x**power).sum()) <= tolerance * (np.abs(x) ** power).sum()
    # And one cell of 2048 in a leaf tells the spacing of all, in proportion to squares whose ratio to it spreads by
    # a factor of 4 at most, a standard deviation below 0.4: five of them over sqrt(2048).
    rel = 1e-12 if dtype in ("F64", "F32") else 0.045
    assert sums["w"][2] == pytest.approx((spacing(x, dtype) ** 2).sum(), rel=rel)


def test_numbers_with_no_room_in_float32_powers_are_summed_in_float64():
    for scale in (1e-18, 1e15):
        x = (scale * torch.randn(9000, generator=torch.Generator().manual_seed(1))).bfloat16()
        sums, _ = weighed({"w": x})
        assert sums["w"][1] == pytest.approx((x.double() ** 2).sum().item(), rel=1e-12)


def test_what_is_not_finite_has_no_sums_and_makes_no_sketch():
    for bad in (float("nan"), float("inf"), -float("inf")):
        x = torch.ones(5000)
        x[4321] = bad
        x[7] = -bad
        sums, total = weighed({"w": x, "v": torch.ones(3)})
        assert np.isnan(sums["w"]).all() and sums["v"][0] == 3
        assert not np.isfinite(total).all()


# --- the map ---


def everything(plan, **options):
    """Power sums and the sketches of a run, comparable to the bit."""
    sums, totals = [], np.zeros((len(plan.hashed), BUCKETS))
    for found in run(plan, **options):
        sums.append((found.name, found.weights.tobytes()))
        for sketch, total in zip(found.sketches, totals, strict=True):
            if sketch:
                sketch.pour(total)
    return sums, totals


def test_threads_tiles_and_company_do_not_change_a_bit(monkeypatch):
    base, members = vocabulary_family()
    plan = Plan(base, members, hash_base=True)
    sums, totals = everything(plan, threads=1)
    again = everything(plan, threads=5)
    assert again[0] == sums and again[1].tobytes() == totals.tobytes()
    monkeypatch.setattr(kinship, "TILE_BYTES", 1)
    again = everything(plan, threads=2)
    assert again[0] == sums and again[1].tobytes() == totals.tobytes()
    for one, total in zip(plan.hashed, totals, strict=True):
        one.tensors.reverse()
        assert everything(Plan(one, hash_base=True))[1][0].tobytes() == total.tobytes()


def test_wrappers_and_shards_do_not_change_the_sketch():
    _, (weights,) = gaussian_family({"a.w": (300, 200), "b.w": (70,)}, 1)
    wrapped = {f"model.{name}": tensor for name, tensor in reversed(weights.items())}
    assert weighed(weights)[1].tobytes() == weighed(wrapped)[1].tobytes()
    twice = checkpoint({"model.w": torch.ones(3), "w": torch.ones(3), "model.v": torch.ones(2)})
    assert labels(twice.tensors) == {"model.w": "model.w", "w": "w", "model.v": "v"}


@settings(deadline=None, max_examples=40)
@given(st.integers(1, 3 * CELL * 9), st.integers(0, 99), st.floats(-3, 3))
def test_the_sketch_is_linear(n, seed, factor):
    g = np.random.default_rng(seed)
    a, b = g.standard_normal((2, n))
    whole = sketch_of(a + factor * b)
    parts = sketch_of(a) + factor * sketch_of(b)
    # Each element is rounded to float32 once, and a bucket adds a few of them.
    assert whole == pytest.approx(parts, abs=2e-5)


@settings(deadline=None, max_examples=40)
@given(st.integers(1, 60_000), st.data())
def test_a_vector_is_the_sum_of_its_stretches(n, data):
    cut = data.draw(st.integers(0, n))
    x = np.random.default_rng(n).standard_normal(n)
    tensor, buffers, parts = TensorSketch("w 0", n), Buffers(), empty()
    for first, last in ((0, cut), (cut, n)):
        tensor.weigh(memoryview(x[first:last]).cast("B"), first, "F64", buffers, 0, np.zeros(3))
        tensor.flush(buffers, 0)
    tensor.pour(parts)
    assert sketch_of(x) == pytest.approx(parts, abs=1e-5)


def test_short_vectors_keep_their_length_and_no_place_is_used_twice_within_a_cell():
    x = np.random.default_rng(0).standard_normal(CELL)
    assert np.linalg.norm(sketch_of(x)) == pytest.approx(np.linalg.norm(x), rel=1e-6)
    assert sorted(np.abs(sketch_of(x))[np.abs(sketch_of(x)) > 0]) == pytest.approx(
        sorted(np.abs(x)), rel=1e-6
    )


def changes(kind, g):
    """Two vectors of 400,000 elements, rows of 500, that differ from zero as `kind` says."""
    a, b = np.zeros((2, 800, 500))
    if kind == "dense":
        a[:] = g.standard_normal(a.shape)
        b[:] = 0.5 * a + g.standard_normal(a.shape)
    elif kind == "sparse":
        where = g.random(a.shape) < 1e-3
        a[where], b[where] = g.standard_normal((2, where.sum()))
    elif kind == "low rank":
        shared = g.standard_normal((2, 500))
        a[:], b[:] = g.standard_normal((800, 2)) @ shared, g.standard_normal((800, 2)) @ shared
    elif kind == "column":
        a[:, 3], b[:, 3] = g.standard_normal((2, 800))
    elif kind == "rows":
        a[:20], b[:20] = g.standard_normal((2, 20, 500))
    elif kind == "constant":
        a[:], b[:400], b[400:] = 1.0, 1.0, -0.5
    return a.ravel(), b.ravel()


@pytest.mark.parametrize("kind", ["dense", "sparse", "low rank", "column", "rows", "constant"])
def test_the_cosine_is_unbiased_with_the_stated_error(kind):
    a, b = changes(kind, np.random.default_rng(5))
    true = a @ b / np.linalg.norm(a) / np.linalg.norm(b)
    seeds = 40
    found = np.array([similarity(sketch_of(a, seed=s), sketch_of(b, seed=s)) for s in range(seeds)])
    off = found[:, 0] - true
    theory = (1 - true**2) / np.sqrt(BUCKETS)
    assert abs(off.mean()) < 5 * theory / np.sqrt(seeds)
    # The root mean square of 40 normal draws is within 1.3 of its own but once in 300; five of its deviations are 1.56.
    assert np.sqrt((off**2).mean()) < 1.56 * theory
    assert (found[:, 1] >= (1 - found[:, 0] ** 2) / np.sqrt(BUCKETS) - 1e-12).all()
    assert np.sqrt((off**2).mean()) < 1.3 * found[:, 1].mean()


def test_an_estimate_that_hangs_on_two_elements_says_so():
    a, b = np.zeros((2, 100_000))
    a[[5, 70_000]], b[[5, 70_000]] = (1, 1), (1, -1)
    cosine, stderr = similarity(sketch_of(a), sketch_of(b))
    assert abs(cosine) < 1e-6 and stderr > 0.5
    cosine, stderr = similarity(sketch_of(a), sketch_of(a))
    assert cosine == pytest.approx(1) and stderr >= 0


def test_strangers_of_one_shape_and_of_others_are_near_zero():
    g = np.random.default_rng(3)
    a, b = g.standard_normal((2, 500_000))
    for other in (sketch_of(b), sketch_of(a, label="another"), sketch_of(b[:90_000])):
        cosine, stderr = similarity(sketch_of(a), other)
        assert abs(cosine) < 5 / np.sqrt(BUCKETS) and stderr >= 0.999 / np.sqrt(BUCKETS)
    common = similarity(sketch_of(a), sketch_of(a[:250_000]))[0]
    assert common == pytest.approx(np.sqrt(0.5), abs=5 * 0.5 / np.sqrt(BUCKETS))


def test_zero_has_no_cosine():
    one = sketch_of(np.ones(9)).astype(np.float32)
    for cosine, stderr, *_ in (compare(one, np.zeros((1, BUCKETS), np.float32)), compare(0 * one, one[None])):
        assert np.isnan(cosine).all() and np.isnan(stderr).all()
    assert similarity(one, one, base=one) == pytest.approx((np.nan, np.nan), nan_ok=True)


# --- what does not fit the base ---


def cut(tensors, rows):
    return {n: t[:rows].clone() if n.startswith("e") else t for n, t in tensors.items()}


def test_the_change_of_resized_extra_and_missing_tensors_is_that_of_what_meets():
    base, (member,) = gaussian_family({"e": (900, 301), "w": (64, 65), "gone": (50,)}, 1, ("F32",))
    longer = {**member, "e": torch.cat([member["e"], torch.ones(7, 301)]), "new": torch.ones(999)}
    del longer["gone"]
    for ours, theirs in ((base, longer), (base, cut(longer, 850)), (cut(base, 800), longer)):
        opened = checkpoint(ours, "base"), checkpoint(theirs, "m")
        change = misfit(*opened)
        found = weighed(theirs)[1] - weighed(ours)[1] + change.sums
        rows = min(ours["e"].shape[0], theirs["e"].shape[0])
        delta = {
            "e": theirs["e"][:rows].double() - ours["e"][:rows].double(),
            "w": theirs["w"].double() - ours["w"].double(),
        }
        # Weights are ten times their changes and are rounded to float32 in sums of a dozen.
        assert found == pytest.approx(weighed(delta)[1], abs=1e-5)
        assert change.numel == sum(t.numel() for t in delta.values())
        sums = [sum(s[0] for s in weighed(c)[0].values()) for c in (theirs, ours)]
        expected = sum(t.sum().item() for t in delta.values())
        assert sums[0] - sums[1] + change.sum == pytest.approx(expected, abs=1e-6)


# --- in a database ---


def rows(db, query, *parameters):
    return db.sql(query, parameters).rows()


KINSHIP = "select model_a, model_b, pcc, cs, ed, stderr, coverage, method from kinship where model_a < model_b order by all"


def assert_estimates(found, exact):
    assert [row[:2] for row in found] == [row[:2] for row in exact] and exact
    for (*_, pcc, cs, ed, stderr, coverage, method), (*_, true_pcc, true_cs, true_ed, _, whole, _) in zip(
        found, exact, strict=True
    ):
        assert method == "sketch" and 0 < stderr < 0.03
        assert abs(cs - true_cs) < 5 * stderr and abs(pcc - true_pcc) < 5 * stderr
        # The length of a sketch has relative standard deviation 1 / sqrt(2 k), here of three lengths.
        assert ed == pytest.approx(true_ed, rel=5 / np.sqrt(BUCKETS))
        assert coverage == pytest.approx(whole)


def test_every_model_has_its_power_sums_whatever_it_came_with(db, family, tmp_path):
    query = (
        "select name, tensor, w.dtype, numel, sum, sumsq from raw.weight w join raw.model using (model_id)"
    )
    found = rows(db, query)
    assert len(found) == 5 * len(load_file(family["base"] / "model.safetensors"))
    loaded = {
        name: {bare(key): t.double().numpy() for key, t in load_file(path / "model.safetensors").items()}
        for name, path in family.items()
    }
    for name, tensor, dtype, numel, *sums in found:
        x = loaded[name][tensor]
        assert (dtype, numel) == ("BF16", x.size)
        for power, value in enumerate(sums, 1):
            assert abs(value - (x**power).sum()) <= 2e-7 * (np.abs(x) ** power).sum()
    other = kinbase.open(tmp_path / "other.duckdb")
    other.import_([family["ft_a"], family["base"]], kinship=False)
    assert rows(other, f"{query} order by all") == [r for r in sorted(found) if r[0] in ("base", "ft_a")]


def test_a_new_model_meets_all_others_by_reading_only_itself(db, tmp_path, family):
    there = {name: shutil.copytree(path, tmp_path / "there" / name) for name, path in family.items()}
    other = kinbase.open(tmp_path / "other.duckdb")
    for name, folder in there.items():
        report = other.import_([folder], base=None if name == "base" else "base", sketch=True)
        assert report["status"].to_list() == ["imported"]
        shutil.rmtree(folder)  # nobody reads it again
    assert_estimates(rows(other, KINSHIP), rows(db, KINSHIP))
    assert rows(other, "select count(*) from raw.pair") == [(0,)]
    assert other.nearest_kin("merge_ab", 1)["model"].to_list() == ["ft_a"]
    assert rows(other, "from kinship where stderr = 0") == []  # a sketch proves nothing equal


def test_importing_a_sketched_model_again_changes_nothing(tmp_path, family):
    db = kinbase.open(tmp_path / "kin.duckdb")
    db.import_(family.values(), base="base", sketch=True)
    before = rows(db, KINSHIP)
    assert set(db.import_(family.values(), base="base", sketch=True)["status"]) == {"unchanged"}
    assert rows(db, KINSHIP) == before


def test_exact_measures_what_is_only_sketched(db, tmp_path, family):
    other = kinbase.open(tmp_path / "other.duckdb")
    other.import_(family.values(), base="base", sketch=True)
    assert other.measure(["ft_a", "ft_b"]) == []
    assert {row[-1] for row in rows(other, KINSHIP)} == {"sketch"}
    assert other.measure(["ft_a", "ft_b"], exact=True) == []
    assert [row[:2] for row in rows(other, KINSHIP) if row[-1] == "exact"] == [("ft_a", "ft_b")]
    other.measure(["ft_a"], exact=True)
    other.measure(["ft_b", "ft_c", "merge_ab"], exact=True)
    assert rows(other, KINSHIP) == rows(db, KINSHIP)


def test_resized_vocabularies_meet_by_sketches_too(tmp_path, family):
    folders = {"base": family["base"], "ft_a": family["ft_a"]}
    for name, source, extra in (("longer", "ft_b", 4), ("shorter", "ft_c", -6)):
        folders[name] = shutil.copytree(family[source], tmp_path / name)
        tensors = load_file(folders[name] / "model.safetensors")
        for key in ("model.embed_tokens.weight", "lm_head.weight"):
            t = tensors[key]
            more = torch.ones(max(extra, 0), t.shape[1], dtype=t.dtype)
            tensors[key] = torch.cat([t[: t.shape[0] + min(extra, 0)], more])
        save_file(tensors, folders[name] / "model.safetensors")
    exact, db = kinbase.open(tmp_path / "exact.duckdb"), kinbase.open(tmp_path / "kin.duckdb")
    exact.import_(folders.values(), base="base")
    db.import_([folders["base"]])
    for name in ("ft_a", "longer", "shorter"):
        db.import_([folders[name]], base="base", sketch=True)
    found = {row[:2]: row for row in rows(db, KINSHIP)}
    for a, b, pcc, *_ in rows(exact, KINSHIP):
        assert abs(found[a, b][2] - pcc) < 5 * found[a, b][5]
    # The base gone: what a longer one has more is still told by its size, what a shorter one lacks is not.
    gone = kinbase.open(tmp_path / "gone.duckdb")
    moved = shutil.copytree(folders["base"], tmp_path / "moved" / "base")
    gone.import_([moved, folders["ft_a"]], base="base")
    shutil.rmtree(moved)
    reports = [gone.import_([folders[name]], base="base") for name in ("longer", "shorter")]
    assert [len(report["notes"][0]) for report in reports] == [1, 2]
    assert "no sketch of its change" in reports[1]["notes"][0][1]
    ((pcc, stderr),) = rows(gone, "select pcc, stderr from kinship where model_a = 'longer'")
    ((true,),) = rows(exact, "select pcc from kinship where model_a = 'longer' and model_b = 'ft_a'")
    assert abs(pcc - true) < 5 * stderr


def test_an_adapter_meets_by_the_sketch_of_its_change(tmp_path, family):
    g = torch.Generator().manual_seed(0)
    base = load_file(family["base"] / "model.safetensors")
    name = "model.layers.0.mlp.up_proj"
    out, into = base[f"{name}.weight"].shape
    a, b = torch.randn(4, into, generator=g), torch.randn(out, 4, generator=g)
    folder = tmp_path / "lora"
    families.write_safetensors(
        folder / "adapter_model.safetensors",
        {f"base_model.model.{name}.lora_A.weight": a, f"base_model.model.{name}.lora_B.weight": b},
    )
    config = {
        "peft_type": "LORA",
        "r": 4,
        "lora_alpha": 4,
        "base_model_name_or_path": "base",
        "target_modules": ["up_proj"],
    }
    (folder / "adapter_config.json").write_text(json.dumps(config))
    merged = shutil.copytree(family["base"], tmp_path / "merged")
    # Half of the adapter's change, and another: they are akin.
    other = torch.randn(out, into, generator=g)
    delta = 0.5 * (b @ a) + other
    save_file(
        {k: t.float() + (delta if k == f"{name}.weight" else 0) for k, t in base.items()},
        merged / "model.safetensors",
    )
    exact, db = kinbase.open(tmp_path / "exact.duckdb"), kinbase.open(tmp_path / "kin.duckdb")
    exact.import_([family["base"], merged, folder], base="base")
    db.import_([family["base"]])
    for source in (merged, folder):
        assert db.import_([source], base="base", sketch=True)["status"].to_list() == ["imported"]
    ((true,),) = rows(exact, "select cs from kinship where model_a = 'lora'")
    ((cs, stderr),) = rows(db, "select cs, stderr from kinship where model_a = 'lora'")
    assert 0.5 < true < 0.9 and abs(cs - true) < 5 * stderr
    assert rows(
        db, "select count(*) from raw.weight join raw.model using (model_id) where name = 'lora'"
    ) == [(0,)]


def test_a_database_from_before_is_filled_by_importing_again(db, family):
    before = rows(db, "select tensor, sum, sumsq from raw.weight order by all")
    sketched = rows(db, "select model_id, scheme, sum from raw.sketch order by all")
    with db.store.writing() as con:
        for table in ("weight", "sketch", "direction"):
            con.execute(f"delete from raw.{table}")
    exact = rows(db, KINSHIP)
    report = db.import_(family.values(), base="base")
    assert "failed" not in set(report["status"])
    assert rows(db, "select tensor, sum, sumsq from raw.weight order by all") == before
    assert rows(db, "select model_id, scheme, sum from raw.sketch order by all") == sketched
    assert rows(db, KINSHIP) == exact
    assert set(db.import_(family.values(), base="base")["status"]) == {"unchanged"}


def test_a_model_that_changes_family_is_met_in_the_old_one_no_more(db):
    old = rows(db, "select model_id, base_id from raw.direction order by all")
    (model_id, base_id), *others = old
    with db.store.writing() as con:
        put_base(con, model_id, base_id + 1000)
    assert rows(db, "select model_id, base_id from raw.direction order by all") == others != []


def test_an_unknown_checkpoint_is_placed_by_its_weights(db, tmp_path, family):
    stranger = shutil.copytree(family["ft_b"], tmp_path / "stranger")
    tensors = load_file(stranger / "model.safetensors")
    tensors["model.norm.weight"] += 0.25
    save_file(tensors, stranger / "model.safetensors")
    (notes,) = db.import_([stranger])["notes"].to_list()
    assert len(notes) == 1 and "nearest to base (0.99" in notes[0] and "--base" in notes[0]
    assert rows(db, "select base from models where name = 'stranger'") == [(None,)]
    other = tmp_path / "other"
    g = torch.Generator().manual_seed(9)
    random = {k: (0.02 * torch.randn(t.shape, generator=g)).to(t.dtype) for k, t in tensors.items()}
    families.write_safetensors(other / "model.safetensors", random)
    assert db.import_([other])["notes"].to_list() == [[]]


def test_what_is_not_finite_is_stored_without_a_sketch(db, tmp_path, family):
    hurt = shutil.copytree(family["ft_a"], tmp_path / "hurt")
    tensors = load_file(hurt / "model.safetensors")
    tensors["lm_head.weight"][0, 0] = float("nan")
    save_file(tensors, hurt / "model.safetensors")
    db.import_([hurt], base="base")
    assert rows(
        db, "select s.sums is null from raw.sketch s join raw.model using (model_id) where name = 'hurt'"
    ) == [(True,)]
    query = (
        "select tensor from raw.weight join raw.model using (model_id) where name = 'hurt' and sumsq is null"
    )
    assert rows(db, query) == [("lm_head.weight",)]
    assert set(db.import_([hurt], base="base")["status"]) == {"unchanged"}


def test_a_whole_export_keeps_sketches(db, tmp_path):
    db.export(tmp_path / "all.kinbase")
    other = kinbase.open(tmp_path / "other.duckdb")
    other.import_([tmp_path / "all.kinbase"])
    for table in ("sketch", "direction", "weight"):
        query = f"from raw.{table} order by all"
        assert rows(other, query) == rows(db, query) != []


def test_sketching_goes_with_no_other_depth(db, family):
    for options in ({"metadata_only": True}, {"kinship": False}):
        with pytest.raises(kinbase.errors.UsageError, match="--sketch"):
            db.import_([family["ft_a"]], sketch=True, **options)


def test_an_adapter_of_a_model_that_cannot_be_compared_cannot_be_either(tmp_path):
    """One of another size: what its adapter adds says nothing of the base's family."""
    db = kinbase.open(tmp_path / "kin.duckdb")
    flat = np.ones(BUCKETS, "<f4").tobytes()
    with db.store.writing() as con:
        for model_id, (name, onto, numel) in enumerate(
            [
                ("base", None, 100),
                ("larger", None, 120),
                ("lora", 2, 100),
                ("on_top", 3, 100),
                ("own", 1, 100),
            ],
            1,
        ):
            con.execute("insert into raw.model (model_id, name) values (?, ?)", [model_id, name])
            con.execute(
                "insert into raw.sketch values (?, ?, ?, ?, 0, ?)", [model_id, SCHEME, onto, numel, flat]
            )
        assert sketches.deltas(con, 1, [2, 3, 4, 5]).keys() == {5}
        assert sketches.deltas(con, 2, [3, 4]).keys() == {3, 4}
