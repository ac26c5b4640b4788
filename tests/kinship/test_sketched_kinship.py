"""Kinship by sketches through a database.

A sketched cosine has standard deviation (1 - c^2) / sqrt(k): a test of one draw allows five of them.
"""

import json
import shutil

import families
import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

import kinbase
from kinbase.checkpoint.names import bare
from kinbase.kinship.layout import BUCKETS
from kinbase.kinship.sketch import SCHEME
from kinbase.store import sketches
from kinbase.store.models import put_bases


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
        put_bases(con, {model_id: base_id + 1000})
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


@pytest.mark.filterwarnings("error::RuntimeWarning")
def test_sums_that_float32_cannot_hold_leave_no_sketch_and_no_warning(tmp_path):
    wide = {"w.weight": torch.full((64, 64), 1e200, dtype=torch.float64)}
    families.write_safetensors(tmp_path / "wide.safetensors", wide)
    db = kinbase.open(tmp_path / "kin.duckdb")
    assert db.import_([tmp_path / "wide.safetensors"])["status"].to_list() == ["imported"]
    assert rows(db, "select count(*) from raw.sketch where sums is not null") == [(0,)]
